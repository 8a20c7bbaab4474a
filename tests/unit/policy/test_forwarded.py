"""What the backend is told of the client, and who is believed about it."""

from itertools import count

import pytest

from proxy.engine.h1_wire import encode_fields
from proxy.policy import forwarded
from proxy.policy.access import Networks
from proxy.policy.forwarded import MAX_HOPS, MAX_REQUEST_ID, Forwarding


def forwarding(*trusted: str) -> Forwarding:
    numbers = count(1)
    return Forwarding(Networks(trusted or ["10.0.0.0/8", "2001:db8:1::/48"]), lambda: b"made-%d" % next(numbers))


def outbound(headers, peer="192.0.2.1", authority=b"a.example.com", scheme=b"https", version="HTTP/2"):
    return forwarding().outbound(headers, peer=peer, authority=authority, scheme=scheme, version=version)


def values(result, name):
    return [value for key, value in result.headers if key == name]


def test_a_stranger_is_told_of_as_seen():
    headers = [(b"accept", b"*/*"), (b"cookie", b"a=1")]
    result = outbound(headers)
    assert result.headers == [
        (b"accept", b"*/*"),
        (b"cookie", b"a=1"),
        (b"forwarded", b"for=192.0.2.1;host=a.example.com;proto=https"),
        (b"x-forwarded-for", b"192.0.2.1"),
        (b"x-forwarded-host", b"a.example.com"),
        (b"x-forwarded-proto", b"https"),
        (b"via", b"2 qproxy"),
        (b"x-request-id", b"made-1"),
    ]
    assert (result.client_address, result.request_id) == ("192.0.2.1", b"made-1")
    assert len(headers) == 2


@pytest.mark.parametrize(
    "name",
    [
        b"forwarded",
        b"x-forwarded-for",
        b"x_forwarded_for",
        b"x-forwarded_for",
        b"x-forwarded-host",
        b"x-forwarded-proto",
        b"x-forwarded-port",
        b"x-forwarded-client-cert",
        b"x-real-ip",
        b"x_real_ip",
        b"true-client-ip",
        b"x-request-id",
        b"connection",
        b"te",
        b"upgrade",
        b"proxy-authorization",
        b"http2-settings",
        b"proxy",
    ],
)
def test_a_stranger_cant_speak_for_a_proxy(name):
    result = outbound([(name, b"forged")])
    assert not any(b"forged" in value for _, value in result.headers)


def test_fields_that_connection_names_go_but_never_framing():
    result = outbound(
        [(b"connection", b"X-Secret, content-length, x-forwarded-for"), (b"x-secret", b"1"), (b"content-length", b"3"), (b"y", b"2")]
    )
    assert result.headers[:2] == [(b"content-length", b"3"), (b"y", b"2")]
    assert values(result, b"x-forwarded-for") == [b"192.0.2.1"]


@pytest.mark.parametrize(
    ("peer", "node", "plain"),
    [
        ("2001:DB8::1", b'for="[2001:db8::1]"', b"2001:db8::1"),
        ("::ffff:192.0.2.9", b"for=192.0.2.9", b"192.0.2.9"),
        ("fe80::1%eth0", b'for="[fe80::1]"', b"fe80::1"),
        ("/run/x.sock", b"for=unknown", b"unknown"),
    ],
)
def test_addresses_are_written_as_rfc_7239_wants_them(peer, node, plain):
    result = outbound([], peer=peer)
    assert values(result, b"forwarded") == [node + b";host=a.example.com;proto=https"]
    assert values(result, b"x-forwarded-for") == [plain]


@pytest.mark.parametrize(
    ("authority", "host"),
    [
        (b"a.example.com", b";host=a.example.com"),
        (b"a.example.com:8443", b';host="a.example.com:8443"'),
        (b"[::1]:8443", b';host="[::1]:8443"'),
        (b'a"b\\c', b';host="a\\"b\\\\c"'),
        (b"", b""),
    ],
)
def test_hosts_are_quoted_where_they_are_no_token(authority, host):
    result = outbound([], authority=authority)
    assert values(result, b"forwarded") == [b"for=192.0.2.1" + host + b";proto=https"]
    assert values(result, b"x-forwarded-host") == ([authority] if authority else [])


@pytest.mark.parametrize(("version", "via"), [("HTTP/1.0", b"1.0 qproxy"), ("HTTP/1.1", b"1.1 qproxy"), ("HTTP/3", b"3 qproxy")])
def test_via_adds_a_line_behind_those_that_came(version, via):
    assert values(outbound([(b"via", b"1.1 other")], version=version), b"via") == [b"1.1 other", via]


def test_a_trusted_proxy_is_believed_and_added_to():
    headers = [
        (b"x-forwarded-for", b"198.51.100.7, 10.0.0.2"),
        (b"forwarded", b'for=198.51.100.7;proto=http, for="10.0.0.2:1234"'),
        (b"x-forwarded-proto", b"http"),
        (b"x-forwarded-host", b"www.example.com"),
        (b"x-forwarded-port", b"80"),
        (b"x-request-id", b"Given_1.2"),
        (b"te", b"trailers"),
    ]
    result = outbound(headers, peer="10.0.0.1", scheme=b"https")
    assert result.headers == [
        (b"x-forwarded-port", b"80"),
        (b"forwarded", b'for=198.51.100.7;proto=http, for="10.0.0.2:1234", for=10.0.0.1;host=a.example.com;proto=https'),
        (b"x-forwarded-for", b"198.51.100.7, 10.0.0.2, 10.0.0.1"),
        (b"x-forwarded-host", b"www.example.com"),
        (b"x-forwarded-proto", b"http"),
        (b"via", b"2 qproxy"),
        (b"x-request-id", b"Given_1.2"),
    ]
    assert (result.client_address, result.request_id) == ("198.51.100.7", b"Given_1.2")


def test_a_trusted_proxy_without_such_fields_gets_them():
    result = outbound([], peer="10.0.0.1")
    assert result.headers == outbound([], peer="10.0.0.1").headers
    assert values(result, b"x-forwarded-for") == [b"10.0.0.1"]
    assert values(result, b"x-forwarded-host") == [b"a.example.com"]
    assert values(result, b"x-forwarded-proto") == [b"https"]
    assert result.client_address == "10.0.0.1"


def test_what_one_of_the_two_lists_lacks_is_taken_from_the_other():
    only_old = outbound([(b"x-forwarded-for", b"2001:db8::7"), (b"x-forwarded-for", b"10.0.0.2")], peer="10.0.0.1")
    assert values(only_old, b"forwarded") == [b'for="[2001:db8::7]", for=10.0.0.2, for=10.0.0.1;host=a.example.com;proto=https']
    only_new = outbound([(b"forwarded", b'FOR="[2001:db8::7]:99"; proto=http')], peer="10.0.0.1")
    assert values(only_new, b"x-forwarded-for") == [b"2001:db8::7, 10.0.0.1"]
    assert only_new.client_address == "2001:db8::7"


def test_a_forwarded_that_contradicts_or_cant_be_read_is_made_anew():
    forged = [(b"x-forwarded-for", b"198.51.100.7"), (b"forwarded", b"for=127.0.0.1")]
    assert values(outbound(forged, peer="10.0.0.1"), b"forwarded") == [b"for=198.51.100.7, for=10.0.0.1;host=a.example.com;proto=https"]
    broken = [(b"forwarded", b'for="'), (b"forwarded", b"for=198.51.100.7")]
    result = outbound(broken, peer="10.0.0.1")
    assert values(result, b"forwarded") == [b"for=unknown, for=198.51.100.7, for=10.0.0.1;host=a.example.com;proto=https"]
    assert result.client_address == "198.51.100.7"


@pytest.mark.parametrize("given", [b"", b"a b", b"x" * (MAX_REQUEST_ID + 1), b"a\xff", b"a;b", b'"q"'])
def test_a_request_id_is_taken_over_only_when_it_is_well_formed(given):
    assert outbound([(b"x-request-id", given)], peer="10.0.0.1").request_id == b"made-1"


@pytest.mark.parametrize(
    ("peer", "headers", "client"),
    [
        ("192.0.2.1", [(b"x-forwarded-for", b"198.51.100.7")], "192.0.2.1"),
        ("::ffff:192.0.2.1", [], "192.0.2.1"),
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", [(b"x-forwarded-for", b"198.51.100.7")], "198.51.100.7"),
        ("10.0.0.1", [(b"x-forwarded-for", b"127.0.0.1, 198.51.100.7, 10.0.0.9")], "198.51.100.7"),
        ("10.0.0.1", [(b"x-forwarded-for", b"10.0.0.3, 10.0.0.2")], "10.0.0.3"),
        ("10.0.0.1", [(b"x-forwarded-for", b"127.0.0.1"), (b"x-forwarded-for", b"198.51.100.7")], "198.51.100.7"),
        ("10.0.0.1", [(b"x-forwarded-for", b"198.51.100.7:4711")], "198.51.100.7"),
        ("10.0.0.1", [(b"x-forwarded-for", b"[2001:db8::7]:4711")], "2001:db8::7"),
        ("10.0.0.1", [(b"x-forwarded-for", b"2001:db8::7")], "2001:db8::7"),
        ("2001:db8:1::1", [(b"x-forwarded-for", b"198.51.100.7")], "198.51.100.7"),
        ("10.0.0.1", [(b"x-forwarded-for", b"198.51.100.7, junk, 10.0.0.2")], "10.0.0.2"),
        ("10.0.0.1", [(b"x-forwarded-for", b"198.51.100.7, , 10.0.0.2")], "10.0.0.2"),
        ("10.0.0.1", [(b"forwarded", b"for=198.51.100.7")], "198.51.100.7"),
        ("10.0.0.1", [(b"forwarded", b"for=198.51.100.7, for=_hidden")], "10.0.0.1"),
        ("10.0.0.1", [(b"forwarded", b"proto=https")], "10.0.0.1"),
        ("10.0.0.1", [(b"forwarded", b'for=198.51.100.7;host="a,for=10.0.0.5"')], "198.51.100.7"),
        ("10.0.0.1", [(b"forwarded", b'for=198.51.100.7;host="a,for=10.0.0.5;b=\\""')], "198.51.100.7"),
        ("10.0.0.1", [(b"forwarded", b"for=127.0.0.1"), (b"x-forwarded-for", b"198.51.100.7")], "198.51.100.7"),
    ],
)
def test_the_client_is_the_nearest_that_is_not_trusted(peer, headers, client):
    rule = forwarding()
    assert rule.client_address(peer, headers) == client
    assert rule.outbound(headers, peer=peer, authority=b"a", scheme=b"https", version="HTTP/2").client_address == client


def test_no_more_than_so_many_hops_are_followed():
    hops = [b"10.1.0.%d" % number for number in range(MAX_HOPS + 10)]
    rule = forwarding()
    assert rule.client_address("10.0.0.1", [(b"x-forwarded-for", b", ".join(hops))]) == hops[-MAX_HOPS].decode()
    assert rule.client_address("10.0.0.1", [(b"forwarded", b", ".join(b"for=" + hop for hop in hops))]) == hops[-MAX_HOPS].decode()
    assert rule.client_address("10.0.0.1", [(b"forwarded", b'"' + b"," * 30_000)]) == "10.0.0.1"


def test_what_is_remembered_is_bounded(monkeypatch):
    monkeypatch.setattr(forwarded, "MEMO", 8)
    rule = forwarding()
    for number in range(50):
        rule.outbound([], peer=f"192.0.2.{number}", authority=b"h%d" % number, scheme=b"https", version="HTTP/2")
        assert len(rule._peers) <= 8
        assert len(rule._hosts) <= 8


@pytest.mark.parametrize("authority", [b"a.example.com", b"[::1]:8443", b""])
@pytest.mark.parametrize("peer", ["192.0.2.1", "2001:db8::1", ""])
def test_what_is_made_once_for_a_connection_is_what_each_request_would_get(peer, authority):
    hop = forwarding().hop(peer, authority=authority, scheme=b"http", version="HTTP/1.1")
    whole = outbound([], peer, authority, b"http", "HTTP/1.1")
    assert whole.headers == [*hop.fields, (b"x-request-id", b"made-1")]
    assert encode_fields(whole.headers) == hop.lines + b"made-1\r\n"
    assert hop.address == whole.client_address


def test_nothing_is_made_once_for_a_trusted_proxy():
    assert forwarding().hop("10.0.0.1", authority=b"a", scheme=b"https", version="HTTP/2") is None
