"""PROXY protocol headers: the right ones, as HAProxy writes them, and the wrong ones."""

import struct

import pytest

from proxy.listen.proxy_protocol import MAX_V1, MAX_V2, Header, ProxyProtocolError, Reader

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
INET = bytes((192, 0, 2, 7, 198, 51, 100, 1)) + struct.pack("!HH", 40000, 443)
INET6 = bytes.fromhex("20010db8000000000000000000000007" + "20010db8000000000000000000000001") + struct.pack("!HH", 40000, 443)
MAPPED = bytes.fromhex("00000000000000000000ffffc0000207" * 2) + struct.pack("!HH", 1, 2)


def v2(block: bytes, family: int = 0x11, command: int = 0x21) -> bytes:
    return SIGNATURE + struct.pack("!BBH", command, family, len(block)) + block


@pytest.mark.parametrize(
    ("data", "header"),
    [
        (b"PROXY TCP4 192.0.2.7 198.51.100.1 40000 443\r\n", Header(("192.0.2.7", 40000), ("198.51.100.1", 443))),
        (b"PROXY TCP6 2001:DB8::7 2001:db8:0::1 0 65535\r\n", Header(("2001:db8::7", 0), ("2001:db8::1", 65535))),
        (b"PROXY TCP6 ::ffff:192.0.2.7 ::1 1 2\r\n", Header(("192.0.2.7", 1), ("::1", 2))),
        (b"PROXY UNKNOWN\r\n", Header(None, None)),
        (b"PROXY UNKNOWN ffff::1 whatever else 65535\r\n", Header(None, None)),
        (v2(INET), Header(("192.0.2.7", 40000), ("198.51.100.1", 443))),
        (v2(INET, 0x12), Header(("192.0.2.7", 40000), ("198.51.100.1", 443))),
        (v2(INET6, 0x21), Header(("2001:db8::7", 40000), ("2001:db8::1", 443))),
        (v2(MAPPED, 0x21), Header(("192.0.2.7", 1), ("192.0.2.7", 2))),
        (v2(INET + b"\x04\x00\x03abc" + b"\x01\x00\x00"), Header(("192.0.2.7", 40000), ("198.51.100.1", 443))),
        (v2(INET + b"\x04\x0f\xf1" + bytes(MAX_V2 - 15)), Header(("192.0.2.7", 40000), ("198.51.100.1", 443))),
        (v2(bytes(216), 0x31), Header(None, None)),
        (v2(b"", 0x00), Header(None, None)),
        (v2(b"junk", 0x00), Header(None, None)),
        (v2(b"", 0x00, command=0x20), Header(None, None)),
        (v2(b"\x01\x02junk", 0xFF, command=0x20), Header(None, None)),
    ],
)
def test_right_headers_are_read_and_what_follows_is_kept(data, header):
    reader = Reader()
    assert reader.feed(data + b"\x16\x03rest") == header
    assert reader.rest == b"\x16\x03rest"


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "not a PROXY protocol header"),
        (b"\x16\x03\x01", "not a PROXY protocol header"),
        (b"PROXZ", "not a PROXY protocol header"),
        (b"proxy TCP4", "not a PROXY protocol header"),
        (b"\r\n\r\nX", "not a PROXY protocol header"),
        (b"PROXY " + b"x" * 101, "without an end"),
        (b"PROXY TCP4 192.0.2.7 198.51.100.1 40000 443" + b" " * 63 + b"\r\n", "without an end"),
        (b"PROXY \r\n", "wrong form"),
        (b"PROXY TCP4\r\n", "wrong form"),
        (b"PROXY TCP5 192.0.2.7 198.51.100.1 1 2\r\n", "wrong form"),
        (b"PROXY TCP4  192.0.2.7 198.51.100.1 1 2\r\n", "wrong form"),
        (b"PROXY TCP4 192.0.2.7 198.51.100.1 1 2 \r\n", "wrong form"),
        (b"PROXY TCP4 192.0.2.7 198.51.100.1 1 2\n\r\n", "wrong port"),
        (b"PROXY TCP4 192.0.2.07 198.51.100.1 1 2\r\n", "wrong address"),
        (b"PROXY TCP4 192.0.2.256 198.51.100.1 1 2\r\n", "wrong address"),
        (b"PROXY TCP4 2001:db8::7 2001:db8::1 1 2\r\n", "wrong address"),
        (b"PROXY TCP6 192.0.2.7 198.51.100.1 1 2\r\n", "wrong address"),
        (b"PROXY TCP6 fe80::1%eth0 fe80::2 1 2\r\n", "wrong address"),
        (b"PROXY TCP4 \xff192.0.2.7 198.51.100.1 1 2\r\n", "wrong address"),
        (b"PROXY TCP4 192.0.2.7 198.51.100.1 65536 2\r\n", "wrong port"),
        (b"PROXY TCP4 192.0.2.7 198.51.100.1 01 2\r\n", "wrong port"),
        (b"PROXY TCP4 192.0.2.7 198.51.100.1 -1 2\r\n", "wrong port"),
        (b"PROXY TCP4 192.0.2.7 198.51.100.1 \xb2 2\r\n", "wrong port"),
        (b"PROXY TCP4 192.0.2.7 198.51.100.1 1000000 2\r\n", "wrong port"),
        (v2(INET, command=0x11), "unknown version"),
        (v2(INET, command=0x22), "unknown command"),
        (v2(INET, 0x41), "unknown address family"),
        (v2(INET, 0x13), "unknown address family or transport"),
        (v2(INET[:-1]), "too short"),
        (v2(INET, 0x21), "too short"),
        (v2(bytes(215), 0x31), "too short"),
        (v2(INET + b"\x04\x00"), "TLV cut off"),
        (v2(INET + b"\x04\x00\x04abc"), "TLV longer"),
        (SIGNATURE + b"\x21\x11" + (MAX_V2 + 1).to_bytes(2), "at most"),
    ],
)
def test_wrong_headers_are_refused(data, said):
    with pytest.raises(ProxyProtocolError, match=said):
        Reader().feed(data)


def test_the_longest_version_1_header_fits():
    highest = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"
    line = f"PROXY TCP6 {highest} {highest} 65535 65535\r\n".encode()
    assert MAX_V1 - 4 <= len(line) <= MAX_V1
    assert Reader().feed(line) == Header((highest, 65535), (highest, 65535))


def test_a_header_is_waited_for():
    reader = Reader()
    assert [reader.feed(piece) for piece in (b"", b"P", b"ROXY TCP4 192.0.2.7 ", b"198.51.100.1 1 2\r")] == [None] * 4
    assert reader.feed(b"\n") == Header(("192.0.2.7", 1), ("198.51.100.1", 2))
    assert reader.rest == b""
