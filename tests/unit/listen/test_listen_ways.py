"""How much a payload may have on the way to an address."""

import pytest

from proxy.listen import ways as module
from proxy.listen.ways import KEPT, MOST, Ways

OVERHEAD = 90


@pytest.fixture
def asked(monkeypatch):
    """Each address that the system was asked for; it knows of 1,500 bytes, unless told otherwise."""
    found = []
    monkeypatch.setattr(module, "mtu_to", lambda address: found.append(address) or 1500)
    return found


@pytest.mark.parametrize(("host", "headers"), [("192.0.2.1", 28), ("2001:db8::1", 48)])
def test_what_is_left_beside_the_headers(asked, host, headers):
    assert Ways(OVERHEAD).room((host, 8444), 0.0) == 1500 - headers - OVERHEAD
    assert asked == [(host, 8444)]


@pytest.mark.parametrize(("told", "mtu"), [(None, 1280), (576, 1280), (9000, 9000), (65536, 65535)])
def test_no_way_is_narrower_than_ipv6_allows_nor_wider_than_ip(monkeypatch, told, mtu):
    monkeypatch.setattr(module, "mtu_to", lambda _: told)
    assert Ways(0).room(("192.0.2.1", 1), 0.0) == mtu - 28


def test_the_system_is_asked_again_after_a_while(asked):
    ways = Ways(OVERHEAD)
    for now in (0.0, 1.0, KEPT - 1):
        ways.room(("192.0.2.1", 1), now)
    assert len(asked) == 1
    ways.room(("192.0.2.1", 1), KEPT)
    assert len(asked) == 2


def test_so_many_are_remembered(asked):
    ways = Ways(OVERHEAD)
    for port in range(MOST + 1):
        ways.room(("192.0.2.1", port), 0.0)
    assert len(ways._known) == 1
    assert len(asked) == MOST + 1
