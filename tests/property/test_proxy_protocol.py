"""Properties of the PROXY protocol reader: what is written is read, in any pieces, and no bytes make it raise but its own error."""

import contextlib
import ipaddress
import itertools
import struct

from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.listen.proxy_protocol import MAX_V2, Header, ProxyProtocolError, Reader

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"

port = st.integers(0, 65535)
v4 = st.tuples(st.ip_addresses(v=4), st.ip_addresses(v=4), port, port)
v6 = st.tuples(st.ip_addresses(v=6), st.ip_addresses(v=6), port, port)
tlvs = st.lists(st.tuples(st.integers(0, 255), st.binary(max_size=60)), max_size=5)


def encode_v1(source, destination, source_port, destination_port) -> bytes:
    return f"PROXY TCP{source.version} {source} {destination} {source_port} {destination_port}\r\n".encode()


def encode_v2(source, destination, source_port, destination_port, extra=()) -> bytes:
    block = source.packed + destination.packed + struct.pack("!HH", source_port, destination_port)
    block += b"".join(struct.pack("!BH", kind, len(value)) + value for kind, value in extra)
    return SIGNATURE + struct.pack("!BBH", 0x21, 0x11 if source.version == 4 else 0x21, len(block)) + block


def told(source, destination, source_port, destination_port) -> Header:
    def text(address) -> str:
        mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
        return str(mapped or address)

    return Header((text(source), source_port), (text(destination), destination_port))


def read(data: bytes, cuts: list[int]) -> tuple[Header | None, bytes]:
    reader = Reader()
    edges = sorted({min(cut, len(data)) for cut in cuts} | {0, len(data)})
    for at, (a, b) in enumerate(itertools.pairwise(edges)):
        header = reader.feed(data[a:b])
        if header is not None:
            return header, reader.rest + data[edges[at + 1] :]
    return None, b""


cut_list = st.lists(st.integers(1, 300), max_size=6)


@settings(max_examples=100, deadline=None)
@given(v4 | v6, cut_list, st.binary(max_size=50))
def test_version_1_round_trips_in_any_pieces(addresses, cuts, rest):
    assert read(encode_v1(*addresses) + rest, cuts) == (told(*addresses), rest)


@settings(max_examples=100, deadline=None)
@given(v4 | v6, tlvs, cut_list, st.binary(max_size=50))
def test_version_2_round_trips_in_any_pieces(addresses, extra, cuts, rest):
    assert read(encode_v2(*addresses, extra) + rest, cuts) == (told(*addresses), rest)


@settings(max_examples=100, deadline=None)
@given(v4 | v6, st.booleans())
def test_a_header_byte_by_byte_is_complete_with_its_last_byte(addresses, second):
    data = encode_v2(*addresses) if second else encode_v1(*addresses)
    reader = Reader()
    results = [reader.feed(data[at : at + 1]) for at in range(len(data))]
    assert results == [None] * (len(data) - 1) + [told(*addresses)]


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from([b"", b"PROXY ", b"PROXY TCP4 ", SIGNATURE, SIGNATURE + b"\x21\x11", SIGNATURE + b"\x21\x21\x00"]),
    st.binary(max_size=300),
)
def test_any_bytes_give_a_header_or_the_error_or_a_wait(prefix, data):
    try:
        header = Reader().feed(prefix + data)
    except ProxyProtocolError as error:
        assert str(error)  # noqa: PT017  # the error is one of three right outcomes
    else:
        assert header is None or isinstance(header, Header)


@settings(max_examples=50, deadline=None)
@given(st.sampled_from([b"PROXY ", SIGNATURE + b"\x21\x11\x10\x00", SIGNATURE + b"\x20\x00\x0f\xff"]), st.binary(min_size=1, max_size=50))
def test_the_wait_is_bounded(prefix, seed):
    data = prefix + seed * (MAX_V2 // len(seed) + 1)
    with contextlib.suppress(ProxyProtocolError):
        assert read(data, list(range(0, len(data), 100)))[0] is not None
