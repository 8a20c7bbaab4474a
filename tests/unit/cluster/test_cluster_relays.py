"""Relays: one name for each, the same everywhere, in a prefix of nobody's."""

from ipaddress import ip_address, ip_network

import pytest

from proxy.cluster import relays as module
from proxy.cluster.envelope import packed
from proxy.cluster.relays import Relay, Relays, is_relayed

HERE = packed(("203.0.113.1", 443))
TIER = Relay(("192.0.2.1", 8444), HERE, 3)


def test_a_relay_has_one_address_in_all_workers_and_is_found_by_it() -> None:
    one, other = Relays(), Relays()
    host = one.host_of(TIER)
    assert host == other.host_of(TIER) == one.host_of(TIER)
    assert ip_address(host) in ip_network("100::/64")
    assert is_relayed((host, 443))
    assert one.relay_of(host) == TIER
    assert len(one) == 1


def test_each_end_and_each_worker_of_a_relay_makes_another() -> None:
    relays = Relays()
    others = [TIER._replace(address=("192.0.2.1", 8445)), TIER._replace(local=packed(("203.0.113.1", 444))), TIER._replace(back=4)]
    assert len({relays.host_of(relay) for relay in [TIER, *others]}) == 4


@pytest.mark.parametrize("host", ["203.0.113.1", "2001:db8::1", "::1", "1000::1", "10:0::1"])
def test_no_address_of_ours_is_a_relay(host: str) -> None:
    assert not is_relayed((host, 443))
    assert Relays().relay_of(host) is None


def test_the_oldest_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_RELAYS", 2)
    relays = Relays()
    hosts = [relays.host_of(TIER._replace(back=back)) for back in range(3)]
    assert [relays.relay_of(host) is not None for host in hosts] == [False, True, True]
    assert len(relays) == 2
