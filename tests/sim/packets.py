"""Datagrams of a client that has no connection: Initials with frames of our own, and junk."""

from aioquic.quic.crypto import CryptoPair
from aioquic.quic.packet import QuicPacketType
from aioquic.quic.packet_builder import QuicPacketBuilder

from tests.sim.hostile import v


def initial(  # what such a packet is made of
    dcid: bytes = b"d" * 8,
    payload: bytes = b"\1",
    *,
    scid: bytes = b"s" * 8,
    number: int = 0,
    version: int = 1,
    token: bytes = b"",
) -> bytes:
    """An Initial packet in a datagram of 1200 bytes, with frames of our own."""
    keys = CryptoPair()
    keys.setup_initial(cid=dcid, is_client=True, version=version)
    builder = QuicPacketBuilder(
        host_cid=scid, peer_cid=dcid, peer_token=token, version=version, is_client=True, max_datagram_size=1200, packet_number=number
    )
    builder.start_packet(QuicPacketType.INITIAL, keys)
    builder._buffer.push_bytes(payload)
    return builder.flush()[0][0]


def crypto(offset: int, data: bytes) -> bytes:
    return v(0x06, offset, len(data)) + data


JUNK = {
    "empty": b"",
    "one byte": b"\xc0",
    "short header": b"\x40" + bytes(20),
    "fixed bit off": bytes(1300),
    "small initial": initial()[:1199],
    "long header cut": b"\xc0\0\0\0\1\x14",
    "version 0": b"\xc0\0\0\0\0\x08" + bytes(1300),
    "short client id": initial(b"d" * 7, crypto(0, b"\1")),
    "long client id": b"\xc0\0\0\0\1\x15" + bytes(1300),
    "handshake": bytes([0xE0]) + initial(b"d" * 8)[1:],
    "not authentic": initial()[:40] + bytes(1160),
}
