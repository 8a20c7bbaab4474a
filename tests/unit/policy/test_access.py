"""Addresses in networks; deny wins over allow."""

import pytest

from proxy.policy import access
from proxy.policy.access import Access, Networks, plain_address


@pytest.mark.parametrize(
    ("address", "inside"),
    [
        ("10.1.2.3", True),
        ("11.1.2.3", False),
        ("192.0.2.7", True),
        ("192.0.2.8", False),
        ("::ffff:10.1.2.3", True),
        ("2001:db8:1::9", True),
        ("2001:db9::1", False),
        ("2001:0db8:0001:0:0:0:0:9", True),
        ("198.51.100.9", True),
        ("not an address", False),
        ("", False),
    ],
)
def test_membership(address, inside):
    networks = Networks(["10.0.0.0/8", "192.0.2.7", "2001:db8::/32", "::ffff:198.51.100.0/120"])
    assert (address in networks) is inside
    assert (address in networks) is inside  # from memory


def test_networks_as_values():
    assert not Networks([])
    assert Networks(["10.0.0.0/8"])
    assert Networks(["10.0.0.0/8"]) == Networks(["::ffff:10.0.0.0/104"])
    assert len({Networks(["::1"]), Networks(["::1/128"])}) == 1
    assert repr(Networks(["::1"])) == "Networks(['::1/128'])"


@pytest.mark.parametrize("cidr", ["10.0.0.1/8", "10.0.0.0/33", "example.com", ""])
def test_bad_networks_are_refused(cidr):
    with pytest.raises(ValueError, match=r"does not appear|host bits set"):
        Networks([cidr])


def test_the_memory_is_bounded(monkeypatch):
    monkeypatch.setattr(access, "MEMO", 8)
    networks = Networks(["10.0.0.0/8"])
    for last in range(100):
        assert f"10.0.0.{last}" in networks
        assert len(networks._memo) <= 8


def test_long_text_is_not_kept():
    networks = Networks(["10.0.0.0/8"])
    assert "x" * 100_000 not in networks
    assert max(map(len, networks._memo)) <= 64


@pytest.mark.parametrize(
    ("allow", "deny", "address", "permitted"),
    [
        (None, None, "1.1.1.1", True),
        (["10.0.0.0/8"], None, "10.1.1.1", True),
        (["10.0.0.0/8"], None, "1.1.1.1", False),
        (None, ["10.0.0.0/8"], "10.1.1.1", False),
        (None, ["10.0.0.0/8"], "1.1.1.1", True),
        (["10.0.0.0/8"], ["10.1.0.0/16"], "10.1.1.1", False),
        (["10.0.0.0/8"], ["10.1.0.0/16"], "10.2.1.1", True),
        (None, ["10.0.0.0/8"], "garbage", False),
        (["10.0.0.0/8"], None, "garbage", False),
    ],
)
def test_access(allow, deny, address, permitted):
    rule = Access(Networks(allow) if allow else None, Networks(deny) if deny else None)
    assert rule.permits(address) is permitted


def test_plain_address():
    assert plain_address("::ffff:192.0.2.1") == "192.0.2.1"
    assert plain_address("FE80::1%eth0") == "fe80::1"
    with pytest.raises(ValueError, match="does not appear"):
        plain_address("unknown")
