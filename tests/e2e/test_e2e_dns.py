"""Backends named by host, with a nameserver of the test's own: addresses that change, fail, are late, and don't connect."""

import contextlib
import re
import socket
import time

import httpx
import pytest
from harness import clients
from harness.backends import Backend
from harness.cli import qproxy
from harness.dns import SILENT, Nameserver
from harness.load import Load
from harness.ports import free_port

NAME = "web.internal"
POOL = "a.example.com/web"


@pytest.fixture
def nameserver():
    with Nameserver() as server:
        yield server


@pytest.fixture
def pair():
    """Two backends on one port, at 127.0.0.1 and at 127.0.0.2."""
    port = free_port()
    running = [Backend("first", "127.0.0.1", port), Backend("second", "127.0.0.2", port)]
    try:
        yield running
    finally:
        for backend in running:
            backend.kill()


@pytest.fixture
def start(start_proxy, nameserver, pair):
    """Start a proxy whose pool is the name. One process: each asks for itself, and what is counted here is one's."""

    def start(endpoints=None, dns=None, **pool):
        pool["endpoints"] = endpoints or [f"http://{NAME}:{pair[0].port}"]
        sites = {"a.example.com": {"pools": {"web": pool}, "retry": {"attempts": 1}}}
        return start_proxy(server={"workers": 1, "dns": {"nameservers": [nameserver.address]} | (dns or {})}, sites=sites, backends=pair)

    return start


def backend(proxy):
    """What the admin API shows of the backend."""
    pools = httpx.get(f"http://127.0.0.1:{proxy.admin_port}/pools", trust_env=False).raise_for_status().json()["pools"]
    (shown,) = next(pool["backends"] for pool in pools if pool["pool"] == POOL)
    return shown


def get(authority, proxy, path="/hello"):
    with clients.httpx_client(authority) as client:
        return client.get(proxy.url(path))


def who(authority, proxy):
    return get(authority, proxy).headers["x-backend"]


def timed(authority, proxy):
    """Seconds that a request to the first backend takes."""
    began = time.monotonic()
    assert who(authority, proxy) == "first"
    return time.monotonic() - began


@contextlib.contextmanager
def black_hole(port):
    """An address that never answers a connect: ::1, with a listener whose queue is full."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_INET6))
        listener.bind(("::1", port))
        listener.listen(0)
        for _ in range(4):
            client = stack.enter_context(socket.socket(socket.AF_INET6))
            client.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                client.connect(("::1", port))
        yield


@pytest.mark.speaks("HTTP/2", "HTTP/3")
def test_an_address_that_changes_moves_the_requests_and_loses_none(authority, start, nameserver, pair):
    nameserver.zone[NAME] = {"A": ["127.0.0.1"]}
    proxy = start()
    assert backend(proxy)["addresses"] == ["127.0.0.1"]
    assert backend(proxy)["dns"].startswith("fresh, answered ")
    told = qproxy("explain", "-c", proxy.config, proxy.url()).out
    assert f"* 1. {backend(proxy)['backend']} (up)" in told
    assert re.search(r"\n +at 127\.0\.0\.1 \(fresh, answered [0-9] s ago with TTL 1 s\)\n", told), told
    with Load(authority, proxy.port, clients=2, streams=2) as load:
        load.more(20)
        for address, name in (("127.0.0.2", "second"), ("127.0.0.1", "first")):
            nameserver.zone[NAME] = {"A": [address]}
            changed = time.monotonic()
            proxy.wait_for(lambda address=address: backend(proxy)["addresses"] == [address], f"has found {address}")
            assert time.monotonic() - changed < 3, "the TTL is one second"
            load.more(10)  # what was on its way
            moved = time.monotonic()
            load.more(20)
            assert {result.backend for result in load.results if result.at > moved} == {name}, "connections to the old address are let go"
    assert not load.lost, load.summary()
    metrics = proxy.metrics()
    assert metrics['qproxy_dns_changes_total{change="changed",kind="address"}'] == 2
    assert metrics['qproxy_dns_lookups_total{kind="address",result="ok"}'] >= 3
    assert metrics[f'qproxy_dns_answer_age_seconds{{kind="address",name="{NAME}"}}'] < 3
    assert proxy.logs().count(f"{NAME} has changed in DNS") == 2
    assert nameserver.count(NAME) < 30, "asked once for each TTL, and not for each request"


@pytest.mark.parametrize("failure", [SILENT, "SERVFAIL", "REFUSED", None])
def test_dns_that_fails_takes_no_backend_with_it(authority, start, nameserver, failure):
    nameserver.zone[NAME] = {"A": ["127.0.0.1"]}
    proxy = start(dns={"timeout": "1s"}, health="off", connections={"max_idle": 0})
    assert who(authority, proxy) == "first"
    nameserver.zone[NAME] = failure
    proxy.wait_for(lambda: backend(proxy)["dns"].startswith("stale"), "has seen that DNS fails")
    asked = nameserver.count(NAME)
    proxy.wait_for(lambda: nameserver.count(NAME) > asked, "asks on")
    for _ in range(5):
        began = time.monotonic()
        assert who(authority, proxy) == "first"
        assert time.monotonic() - began < 0.9, "it waits for no lookup"
    log = proxy.logs()
    assert log.count("does not get an answer from DNS: the last one is kept") == 1
    assert proxy.metrics()['qproxy_dns_names{kind="address",state="stale"}'] == 1
    nameserver.zone[NAME] = {"A": ["127.0.0.2"]}
    proxy.wait_for(lambda: backend(proxy)["addresses"] == ["127.0.0.2"], "has the new address", 20)
    assert who(authority, proxy) == "second"
    proxy.wait_for(lambda: f"{NAME} is answered again by DNS" in proxy.logs(), "has logged that")


def test_an_answer_is_kept_only_so_long(authority, start, nameserver):
    nameserver.zone[NAME] = {"A": ["127.0.0.1"]}
    proxy = start(dns={"stale": "1s"}, health="off", passive="off")
    assert who(authority, proxy) == "first"
    nameserver.zone[NAME] = "SERVFAIL"
    proxy.wait_for(lambda: backend(proxy)["addresses"] == [], "has given the address up")
    with clients.httpx_client(authority) as client:
        assert client.get(proxy.url("/close")).status_code == 502  # the last connection that there was
        answer = client.get(proxy.url())
    assert (answer.status_code, answer.headers["proxy-status"]) == (502, "qproxy; error=dns_error")
    assert backend(proxy)["dns"].startswith("unknown: ")


def test_a_name_that_appears_later_is_found(authority, start, nameserver):
    proxy = start(health="off", passive="off")
    answer = get(authority, proxy)
    assert (answer.status_code, answer.headers["proxy-status"]) == (502, "qproxy; error=dns_error")
    nameserver.zone[NAME] = {"A": ["127.0.0.1"]}
    proxy.wait_for(lambda: backend(proxy)["addresses"], "has found it", 15)
    assert who(authority, proxy) == "first"


def test_an_ipv6_address_that_does_not_connect_costs_a_quarter_of_a_second(authority, start, nameserver, pair):
    nameserver.zone[NAME] = {"A": ["127.0.0.1"], "AAAA": ["::1"]}
    with black_hole(pair[0].port):
        proxy = start(health={"timeout": "2s", "interval": "100ms"}, connections={"max_idle": 0})
        assert backend(proxy)["addresses"] == ["::1", "127.0.0.1"]
        took = [timed(authority, proxy) for _ in range(3)]
        assert 0.24 <= min(took) < 0.5, took
        proxy.wait_for(lambda: (backend(proxy)["last_probe"] or "").startswith("ok"), "was found well by its health check, too")


def test_an_address_that_refuses_costs_nothing(authority, start, nameserver):
    nameserver.zone[NAME] = {"A": ["127.0.0.3", "127.0.0.1"], "AAAA": ["::1"]}
    proxy = start(connections={"max_idle": 0})
    took = [timed(authority, proxy) for _ in range(3)]
    assert min(took) < 0.24, took
    proxy.wait_for(lambda: (backend(proxy)["last_probe"] or "").startswith("ok"), "was found well by its health check, too")


def test_a_long_answer_comes_over_tcp(authority, start, nameserver):
    nameserver.zone[NAME] = {"A": [f"127.0.0.{number}" for number in range(1, 61)]}
    with contextlib.closing(Backend("everywhere", "0.0.0.0")) as everywhere:
        proxy = start([f"http://{NAME}:{everywhere.port}"], health="off")
        assert who(authority, proxy) == "everywhere"
    assert nameserver.asked[NAME, "A", "tcp"] >= 1
    assert len(backend(proxy)["addresses"]) == 8


def test_addresses_are_not_asked_for(authority, start, nameserver, pair):
    proxy = start([pair[0].url, f"http://[::1]:{pair[0].port}"], health={"interval": "100ms"})
    assert who(authority, proxy) == "first"
    proxy.wait_for(lambda: proxy.metrics().get(f'qproxy_probes_total{{pool="{POOL}",result="ok"}}', 0) > 3, "has probed")
    assert not nameserver.asked


def test_a_reload_brings_names_and_takes_them(authority, start, nameserver, pair):
    nameserver.zone |= {NAME: {"A": ["127.0.0.1"]}, "other.internal": {"A": ["127.0.0.2"]}}
    proxy = start()
    assert who(authority, proxy) == "first"
    proxy.sites["a.example.com"]["pools"]["web"]["endpoints"] = [f"http://other.internal:{pair[0].port}"]
    proxy.write()
    proxy.reload(expect="configuration reloaded")
    assert who(authority, proxy) == "second"
    proxy.wait_for(lambda: nameserver.count("other.internal") >= 2, "follows the new name")
    asked = nameserver.count(NAME)
    proxy.wait_for(lambda: nameserver.count("other.internal") >= 4, "goes on so")
    assert nameserver.count(NAME) == asked, "the old name is asked for no more"


def test_it_ends_while_lookups_are_under_way(start, nameserver):
    nameserver.zone[NAME] = SILENT
    proxy = start(dns={"timeout": "30s"}, health="off")
    proxy.wait_for(lambda: nameserver.count(NAME) >= 1, "has asked")
    began = time.monotonic()
    assert proxy.terminate() == 0
    assert time.monotonic() - began < 5
    assert "exception" not in proxy.logs().lower()
