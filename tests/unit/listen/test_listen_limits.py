"""Limits at accept, as a dialogue of admissions and releases."""

from proxy.engine.seam import EngineLimits
from proxy.listen.limits import AcceptLimits
from proxy.observe import Metrics
from proxy.policy.access import Networks
from proxy.snapshot import Limits


def limits(connections: int = 0, connections_per_client: int = 0, connection_rate: float = 0) -> Limits:
    return Limits(connections, connections_per_client, connection_rate, 0, EngineLimits())


def hits(metrics: Metrics) -> dict[str, float]:
    return {labels[0]: cell.value for labels, cell in metrics.families["qproxy_limits_hit_total"].cells.items()}


NOBODY = Networks([])


def test_without_limits_everybody_comes_in():
    accept = AcceptLimits(limits(), NOBODY, Metrics())
    assert [accept.admit("192.0.2.1", 0.0) for _ in range(1000)] == [None] * 1000
    assert accept.connections == 1000


def test_connections_in_all():
    metrics = Metrics()
    accept = AcceptLimits(limits(connections=2), NOBODY, metrics)
    assert [accept.admit(f"192.0.2.{i}", 0.0) for i in range(4)] == [None, None, "connections", "connections"]
    accept.release("192.0.2.0")
    assert accept.admit("192.0.2.9", 0.0) is None
    assert hits(metrics) == {"connections": 2, "connections_per_client": 0, "connection_rate": 0}


def test_connections_of_one_client():
    metrics = Metrics()
    accept = AcceptLimits(limits(connections_per_client=1), NOBODY, metrics)
    assert accept.admit("192.0.2.1", 0.0) is None
    assert accept.admit("192.0.2.1", 0.0) == "connections_per_client"
    assert accept.admit("192.0.2.2", 0.0) is None
    accept.release("192.0.2.1")
    assert accept.admit("192.0.2.1", 0.0) is None
    assert hits(metrics) == {"connections": 0, "connections_per_client": 1, "connection_rate": 0}


def test_an_ipv6_client_is_its_64():
    accept = AcceptLimits(limits(connections_per_client=1), NOBODY, Metrics())
    assert accept.admit("2001:db8:0:1::1", 0.0) is None
    assert accept.admit("2001:db8:0:1:ffff::2", 0.0) == "connections_per_client"
    assert accept.admit("2001:db8:0:2::1", 0.0) is None
    accept.release("2001:DB8:0:1:0:0:0:1")
    assert accept.admit("2001:db8:0:1::3%eth0", 0.0) is None


def test_ipv4_in_ipv6_is_the_ipv4_client():
    accept = AcceptLimits(limits(connections_per_client=1), NOBODY, Metrics())
    assert accept.admit("::ffff:192.0.2.1", 0.0) is None
    assert accept.admit("192.0.2.1", 0.0) == "connections_per_client"
    assert accept.admit("::ffff:192.0.2.2", 0.0) is None


def test_trusted_proxies_are_exempt_from_the_limit_of_one_client_only():
    accept = AcceptLimits(limits(connections=3, connections_per_client=1), Networks(["192.0.2.0/24"]), Metrics())
    assert [accept.admit("192.0.2.1", 0.0) for _ in range(4)] == [None, None, None, "connections"]


def test_new_connections_a_second_with_a_second_of_burst():
    metrics = Metrics()
    accept = AcceptLimits(limits(connection_rate=4), NOBODY, metrics)
    assert [accept.admit("192.0.2.1", 100.0) for _ in range(5)] == [None] * 4 + ["connection_rate"]
    assert [accept.admit("192.0.2.1", 100.5) for _ in range(3)] == [None] * 2 + ["connection_rate"]
    assert [accept.admit("192.0.2.1", 200.0) for _ in range(5)] == [None] * 4 + ["connection_rate"]
    assert hits(metrics) == {"connections": 0, "connections_per_client": 0, "connection_rate": 3}


def test_a_rate_below_one_a_second_still_lets_one_in():
    accept = AcceptLimits(limits(connection_rate=0.5), NOBODY, Metrics())
    assert [accept.admit("192.0.2.1", now) for now in (0.0, 1.0, 2.5, 3.0, 5.0)] == [None, "connection_rate", None, "connection_rate", None]


def test_a_clock_that_goes_back_gives_nothing_away():
    accept = AcceptLimits(limits(connection_rate=1), NOBODY, Metrics())
    assert [accept.admit("192.0.2.1", now) for now in (10.0, 5.0, 5.5)] == [None, "connection_rate", "connection_rate"]


def test_a_refused_connection_costs_nothing():
    accept = AcceptLimits(limits(connections=9, connections_per_client=1, connection_rate=2), NOBODY, Metrics())
    assert accept.admit("192.0.2.1", 0.0) is None
    assert [accept.admit("192.0.2.1", 0.0) for _ in range(5)] == ["connections_per_client"] * 5
    assert accept.admit("192.0.2.2", 0.0) is None
    assert accept.connections == 2


def test_a_reload_counts_who_was_there_before():
    accept = AcceptLimits(limits(), NOBODY, Metrics())
    assert [accept.admit("192.0.2.1", 0.0) for _ in range(3)] == [None] * 3
    accept.replace(limits(connections=10, connections_per_client=2), NOBODY)
    assert accept.admit("192.0.2.1", 0.0) == "connections_per_client"
    for _ in range(2):
        accept.release("192.0.2.1")
    assert accept.admit("192.0.2.1", 0.0) is None
    accept.replace(limits(connections=10, connections_per_client=2), Networks(["192.0.2.1/32"]))
    assert [accept.admit("192.0.2.1", 0.0) for _ in range(3)] == [None] * 3


def test_a_rate_turned_on_by_a_reload_begins_with_a_full_bucket():
    accept = AcceptLimits(limits(), NOBODY, Metrics())
    accept.admit("192.0.2.1", 0.0)
    accept.replace(limits(connection_rate=2), NOBODY)
    assert [accept.admit("192.0.2.1", 9.0) for _ in range(3)] == [None, None, "connection_rate"]


def test_the_table_is_empty_when_all_are_gone():
    accept = AcceptLimits(limits(), NOBODY, Metrics())
    addresses = [f"192.0.2.{i}" for i in range(50)] + [f"2001:db8:{i}::1" for i in range(50)] + ["not an address", "not:one"]
    for address in addresses * 2:
        accept.admit(address, 0.0)
    for address in addresses * 2:
        accept.release(address)
    assert accept.connections == 0
    assert accept._counts._clients == {}
