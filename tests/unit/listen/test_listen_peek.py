"""The first bytes of a TCP connection: real ClientHellos, in any pieces, and hostile ones."""

import base64
import json
import struct
from pathlib import Path

import pytest

from proxy.listen.peek import MAX_HELLO, ClientHello, Malformed, NotTls, Peek, PlainHttp, Result

CAPTURED = {
    name: base64.b64decode(text) for name, text in json.loads((Path(__file__).parents[2] / "data/client_hellos.json").read_text()).items()
}
"""Taken from curl, openssl s_client and curl_cffi's Chrome, Firefox and Safari; GREASE and post-quantum key shares included."""


def extension(kind: int, content: bytes) -> bytes:
    return struct.pack("!HH", kind, len(content)) + content


def server_name(name: bytes, kind: int = 0) -> bytes:
    return extension(0, struct.pack("!HBH", len(name) + 3, kind, len(name)) + name)


def vector(content: bytes) -> bytes:
    return struct.pack("!H", len(content)) + content


def hello_body(extensions: bytes, *, session: bytes = bytes(32), suites: bytes = b"\x13\x01", compression: bytes = b"\0") -> bytes:
    head = b"\x03\x03" + bytes(32) + bytes((len(session),)) + session + vector(suites) + bytes((len(compression),)) + compression
    return head + vector(extensions)


def message(body: bytes) -> bytes:
    return b"\x01" + len(body).to_bytes(3) + body


def records(handshake: bytes, size: int = 16384) -> bytes:
    return b"".join(b"\x16\x03\x01" + vector(handshake[at : at + size]) for at in range(0, len(handshake), size))


def peek(data: bytes) -> Result | None:
    return Peek().feed(data)


VERSIONS = extension(43, b"\x04\x03\x04\x03\x03")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("curl", ClientHello("a.example.com", (b"h2", b"http/1.1"), (772, 771, 770, 769))),
        ("openssl", ClientHello("a.example.com", (), (772, 771, 770, 769))),
        ("openssl_tls12", ClientHello(None, (), (771,))),
        ("chrome136", ClientHello("a.example.com", (b"h2", b"http/1.1"), (6682, 772, 771))),
        ("firefox135", ClientHello("a.example.com", (b"h2", b"http/1.1"), (772, 771))),
        ("safari18_0", ClientHello("a.example.com", (b"h2", b"http/1.1"), (43690, 772, 771, 770, 769))),
    ],
)
def test_hellos_of_real_clients_are_read(name, expected):
    assert peek(CAPTURED[name]) == expected


def test_a_post_quantum_hello_may_come_in_several_segments():
    hello = CAPTURED["chrome136"]
    assert len(hello) > 1460
    reader = Peek()
    assert reader.feed(hello[:1460]) is None
    assert reader.feed(hello[1460:]) == peek(hello)
    assert reader.data == hello


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 100, 500, 1700])
def test_a_hello_may_span_records(size):
    whole = CAPTURED["chrome136"]
    assert peek(records(whole[5:], size)) == peek(whole)


def test_tls12_knew_hellos_without_extensions():
    bare = hello_body(b"")[:-2]
    result = peek(records(message(bare)))
    assert result == ClientHello(None, (), (0x0303,))
    assert not result.offers_tls13


def test_bytes_behind_the_hello_are_kept_for_tls():
    reader = Peek()
    assert isinstance(reader.feed(CAPTURED["curl"] + b"more"), ClientHello)
    assert reader.data == CAPTURED["curl"] + b"more"


@pytest.mark.parametrize("start", [b"GET / HTTP/1.1\r\n", b"P", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"get /"])
def test_what_begins_like_a_method_is_plain_http(start):
    assert peek(start) == PlainHttp()


@pytest.mark.parametrize("start", [b"\x80\x2e\x01", b"\x00", b"\r\n", b"\x15\x03\x03\x00\x02", b"\x16\x02", b"\xff" * 99])
def test_what_is_neither_is_said_to_be_neither(start):
    result = peek(start)
    assert isinstance(result, NotTls)
    assert result.reason == "not_tls"


def test_too_few_bytes_are_waited_for():
    reader = Peek()
    assert [reader.feed(piece) for piece in (b"", b"\x16", b"\x03", b"\x01\x01", b"\x00")] == [None] * 5


@pytest.mark.parametrize(
    ("sni", "expected"),
    [
        (b"A.Example.COM", "a.example.com"),
        (b"a.example.com.", "a.example.com"),
        (b"xn--bcher-kva.example", "xn--bcher-kva.example"),
        (b"_srv.example", "_srv.example"),
        (b"127.0.0.1", "127.0.0.1"),
        (b"a" * 255, "a" * 255),
        (b"a" * 256, None),
        (b"a..example", None),
        (b".example", None),
        (b".", None),
        (b"a b.example", None),
        (b"a\x00.example", None),
        (b"a.example\n", None),
        (b"a/../b", None),
        ("bücher.example".encode(), None),
        (b"::1", None),
    ],
)
def test_only_host_names_count_as_sni(sni, expected):
    assert peek(records(message(hello_body(server_name(sni) + VERSIONS)))) == ClientHello(expected, (), (0x0304, 0x0303))


@pytest.mark.parametrize(
    "extensions",
    [
        server_name(b"a.example") + server_name(b"b.example"),
        extension(0, b""),
        extension(0, b"\x00"),
        server_name(b""),
        server_name(b"a.example", kind=1),
        extension(0, vector(b"\x00" + vector(b"a.example") + b"\x00" + vector(b"b.example"))),
        extension(0, b"\x00\x0c\x00\x00\x0aa.example"),
        extension(16, b""),
        extension(16, b"\x00\x00"),
        extension(16, vector(b"\x00")),
        extension(16, vector(b"\x03h2")),
        extension(16, b"\x00\x04\x02h2"),
        extension(16, vector(b"\x02h2")) * 2,
        extension(43, b""),
        extension(43, b"\x00"),
        extension(43, b"\x03\x03\x04\x03"),
        extension(43, b"\x04\x03\x04"),
        VERSIONS + VERSIONS,
        extension(10, b""),
        extension(10, b"\x00\x00"),
        extension(10, b"\x00\x03\x00\x1d\x00"),
        extension(51, b""),
        extension(51, b"\x00\x04\x00\x1d\x00\x20"),
        struct.pack("!HH", 13, 9999),
        b"\x00",
        b"\x00\x00\x00",
    ],
)
def test_extensions_of_a_wrong_form_are_malformed(extensions):
    result = peek(records(message(hello_body(extensions))))
    assert isinstance(result, Malformed)
    assert result.reason == "decode_error"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\x03",
        b"\x03\x03" + bytes(31),
        hello_body(VERSIONS, session=bytes(33)),
        hello_body(VERSIONS, suites=b"\x13"),
        hello_body(VERSIONS, suites=b""),
        hello_body(VERSIONS)[:-1],
        hello_body(VERSIONS) + b"\x00",
        hello_body(VERSIONS)[:50],
    ],
)
def test_bodies_of_a_wrong_form_are_malformed(body):
    assert isinstance(peek(records(message(body))), Malformed)


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x00\x00",
        b"\x16\x03\x01\x40\x01",
        b"\x16\x03\x01\x00\x01\x02",
        b"\x16\x03\x01\x00\x04\x02\x00\x00\x00\x00\x00",
        b"\x16\x03\x01\x00\x01\x01\x17\x03\x01\x00\x01",
        b"\x16\x03\x01\x00\x01\x01\x15\x03\x01\x00\x02",
        b"\x16\x03\x01\x00\x01\x01\x16\x02\x01\x00\x01",
        records(b"\x01" + MAX_HELLO.to_bytes(3)),
        records(b"\x01\xff\xff\xff"),
    ],
)
def test_record_layers_of_a_wrong_form_are_malformed(data):
    assert isinstance(peek(data), Malformed)


@pytest.mark.parametrize("size", [1, 3, 16384])
def test_an_endless_hello_is_given_up_within_the_bound(size):
    """One just within the announced length, in records of any size, never complete."""
    stream = records(b"\x01" + (MAX_HELLO - 4).to_bytes(3) + bytes(MAX_HELLO - 5), size)
    reader = Peek()
    fed = 0
    result = None
    while result is None:
        assert fed < MAX_HELLO + 999
        result = reader.feed(stream[fed : fed + 999])
        fed += 999
    assert result == Malformed("ClientHello too large")


def test_the_largest_hello_passes():
    padding = extension(21, bytes(60000))
    assert peek(records(message(hello_body(VERSIONS + padding)))) == ClientHello(None, (), (0x0304, 0x0303))


GROUPS = {"x25519": 0x1D, "p256": 0x17, "mlkem": 0x11EC, "grease": 0x1A1A, "ffdhe2048": 0x100, "ffdhe8192": 0x104}


def key_exchange(groups: list[str], shares: list[str]) -> bytes:
    listed = b"".join(GROUPS[name].to_bytes(2) for name in groups)
    shared = b"".join(GROUPS[name].to_bytes(2) + vector(b"k" * 7) for name in shares)
    return extension(10, vector(listed)) + extension(51, vector(shared))


@pytest.mark.parametrize(
    ("groups", "shares", "finite_field"),
    [
        (["x25519", "p256"], ["x25519"], False),
        (["grease", "mlkem", "x25519"], ["grease", "mlkem", "x25519"], False),
        (["x25519", "ffdhe2048"], ["x25519"], False),
        (["ffdhe8192", "x25519"], [], False),
        (["ffdhe8192", "x25519"], ["ffdhe8192"], True),
        (["x25519", "ffdhe8192"], ["x25519", "ffdhe8192"], True),
        (["ffdhe2048"], [], True),
        (["ffdhe2048", "ffdhe8192"], [], True),
    ],
)
def test_a_key_exchange_over_a_finite_field_is_told(groups, shares, finite_field):
    result = peek(records(message(hello_body(VERSIONS + key_exchange(groups, shares)))))
    assert result == ClientHello(None, (), (0x0304, 0x0303), finite_field)
