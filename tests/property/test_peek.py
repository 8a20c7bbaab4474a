"""Properties of the ClientHello peek: the pieces don't matter, and no bytes make it raise or wait for ever."""

import base64
import itertools
import json
import ssl
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.listen.peek import MAX_HELLO, ClientHello, Malformed, NotTls, Peek, PlainHttp, Result

CAPTURED = {
    name: base64.b64decode(text) for name, text in json.loads((Path(__file__).parents[1] / "data/client_hellos.json").read_text()).items()
}


def openssl_hello(name: str | None, alpn: list[str]) -> bytes:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if alpn:
        context.set_alpn_protocols(alpn)
    outgoing = ssl.MemoryBIO()
    client = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


def feed_all(pieces: list[bytes]) -> Result | None:
    reader = Peek()
    for piece in pieces:
        result = reader.feed(piece)
        if result is not None:
            return result
    return None


@pytest.mark.parametrize("name", CAPTURED)
def test_a_hello_cut_in_two_anywhere_reads_the_same(name):
    hello = CAPTURED[name]
    expected = feed_all([hello])
    assert isinstance(expected, ClientHello)
    assert all(feed_all([hello[:at], hello[at:]]) == expected for at in range(1, len(hello)))


@pytest.mark.parametrize("name", CAPTURED)
def test_a_hello_byte_by_byte_is_complete_with_its_last_byte(name):
    hello = CAPTURED[name]
    reader = Peek()
    results = [reader.feed(hello[at : at + 1]) for at in range(len(hello))]
    assert results == [None] * (len(hello) - 1) + [feed_all([hello])]


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(sorted(CAPTURED)), st.lists(st.integers(1, 2000), max_size=8), st.lists(st.integers(1, 2000), max_size=8))
def test_any_records_and_any_reads_give_the_same(name, record_cuts, read_cuts):
    whole = CAPTURED[name]
    handshake = whole[5:]
    edges = sorted({min(cut, len(handshake)) for cut in record_cuts} | {0, len(handshake)})
    fragments = [handshake[a:b] for a, b in itertools.pairwise(edges)]
    stream = b"".join(b"\x16\x03\x01" + len(part).to_bytes(2) + part for part in fragments)
    edges = sorted({min(cut, len(stream)) for cut in read_cuts} | {0, len(stream)})
    assert feed_all([stream[a:b] for a, b in itertools.pairwise(edges)]) == feed_all([whole])


label = st.from_regex(r"[a-zA-Z0-9]([a-zA-Z0-9-]{0,20}[a-zA-Z0-9])?", fullmatch=True)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(label, min_size=2, max_size=5).map(".".join).filter(lambda name: not name.rpartition(".")[2].isdigit()),
    st.lists(st.from_regex(r"[a-z0-9/.]{1,20}", fullmatch=True), max_size=5),
)
def test_what_openssl_asks_for_is_what_is_read(name, alpn):
    hello = openssl_hello(name, alpn)
    result = feed_all([hello])
    assert isinstance(result, ClientHello)
    assert result.sni == name.lower()
    assert result.alpn == tuple(protocol.encode() for protocol in alpn)
    assert 0x0304 in result.versions


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300), st.integers(0, 3))
def test_random_bytes_never_raise(data, tls_like):
    prefix = (b"", b"\x16", b"\x16\x03\x01\x00\x40", b"\x16\x03\x01\x00\x80\x01\x00\x00\x7c\x03\x03")[tls_like]
    assert isinstance(feed_all([prefix + data]), ClientHello | Malformed | NotTls | PlainHttp | None)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted(CAPTURED)), st.lists(st.tuples(st.integers(0, 1999), st.integers(0, 255)), min_size=1, max_size=6))
def test_a_hello_with_wrong_bytes_never_raises(name, changes):
    hello = bytearray(CAPTURED[name])
    for at, value in changes:
        hello[at % len(hello)] = value
    result = feed_all([bytes(hello)])
    assert isinstance(result, ClientHello | Malformed | NotTls | PlainHttp | None)
    if isinstance(result, ClientHello) and result.sni is not None:
        assert result.sni.isascii()
        assert result.sni == result.sni.lower()


@settings(max_examples=50, deadline=None)
@given(st.binary(min_size=1, max_size=400))
def test_a_result_comes_within_the_bound(seed):
    stream = b"\x16\x03\x01\x40\x00\x01\x00\xff\xf0" + (seed * (2 * MAX_HELLO // len(seed) + 1))
    assert feed_all([stream[at : at + 4096] for at in range(0, MAX_HELLO + 4096, 4096)]) is not None
