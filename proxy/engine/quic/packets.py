"""Packets outside any connection: where a datagram belongs, version negotiation, Retry, refusal.

Reads only what no version of QUIC may change (RFC 8999) and the type bits of versions 1 and 2. Keeps no state.
"""

from dataclasses import dataclass

from aioquic.quic.crypto import CryptoPair
from aioquic.quic.packet import QuicFrameType, QuicPacketType, QuicProtocolVersion, encode_quic_retry
from aioquic.quic.packet_builder import QuicPacketBuilder

from proxy.engine.quic.settings import MIN_DATAGRAM

VERSIONS = (int(QuicProtocolVersion.VERSION_1), int(QuicProtocolVersion.VERSION_2))
"""Spoken here, the preferred one first."""

MAX_CID = 20
"""Longest connection ID of versions 1 and 2 (RFC 9000, section 17.2)."""

MIN_CLIENT_DCID = 8
"""Shortest destination ID that a client may make up for its first packet (RFC 9000, section 7.2)."""

CONNECTION_REFUSED = 0x2
INVALID_TOKEN = 0xB
"""Errors of the transport (RFC 9000, section 20.1)."""

_GREASE_VERSION = 0x1A2A3A4A  # of the reserved form 0x?a?a?a?a (RFC 9000, section 15)
_INITIAL_BITS = {VERSIONS[0]: 0x00, VERSIONS[1]: 0x10}
_ZERO_RTT_BITS = {VERSIONS[0]: 0x10, VERSIONS[1]: 0x20}
_HANDSHAKE_BITS = {VERSIONS[0]: 0x20, VERSIONS[1]: 0x30}


@dataclass(slots=True)
class LongHeader:
    """The head of a long-header packet."""

    version: int
    destination: bytes
    source: bytes
    initial: bool
    """An Initial of a version that we speak, with its token whole."""
    early: bool
    """A 0-RTT packet of a version that we speak."""
    token: bytes
    """Of an Initial; empty where it has none."""


def destination_of(data: bytes, cid_bytes: int) -> bytes | None:
    """The connection ID that a datagram is for, or None where it is none of QUIC's. Those that we issue have *cid_bytes*."""
    if len(data) <= cid_bytes:
        return None
    first = data[0]
    if not first & 0x80:
        return data[1 : 1 + cid_bytes] if first & 0x40 else None
    length = data[5] if len(data) > 6 else 256
    return data[6 : 6 + length] if len(data) > 6 + length else None


def is_handshake(data: bytes) -> bool:
    """Whether a datagram begins with a Handshake packet of a version that we speak: its destination ID is one that a server gave."""
    version = int.from_bytes(data[1:5], "big")
    return data[0] & 0xC0 == 0xC0 and data[0] & 0x30 == _HANDSHAKE_BITS.get(version)


def read_long_header(data: bytes) -> LongHeader | None:
    """The head of a datagram that begins with a long header; None for anything else."""
    if len(data) < 7 or not data[0] & 0x80:
        return None
    version = int.from_bytes(data[1:5], "big")
    end = 6 + data[5]
    if len(data) <= end:
        return None
    source_end = end + 1 + data[end]
    if len(data) < source_end:
        return None
    kind = data[0] & 0x30 if data[0] & 0x40 else -1
    initial = kind == _INITIAL_BITS.get(version)
    token = _token(data, source_end) if initial else None
    early = kind == _ZERO_RTT_BITS.get(version)
    return LongHeader(version, data[6:end], data[end + 1 : source_end], initial and token is not None, early, token or b"")


def _token(data: bytes, at: int) -> bytes | None:
    """What stands behind the connection IDs of an Initial (RFC 9000, section 17.2.2); None where it is cut off."""
    if len(data) <= at:
        return None
    end = at + (1 << (data[at] >> 6))
    length = int.from_bytes(data[at:end], "big") & (1 << (8 * (end - at) - 2)) - 1
    return data[end : end + length] if len(data) > end + length else None


def version_negotiation(header: LongHeader, first_byte: int) -> bytes:
    """The versions that we speak (RFC 9000, section 17.2.1), with one that nobody speaks. *first_byte* is random.

    At most 7 + 2 * 255 + 12 bytes, for a datagram of at least 1200: it can't amplify.
    """
    versions = b"".join(version.to_bytes(4, "big") for version in (*VERSIONS, _GREASE_VERSION))
    return b"%c\0\0\0\0%c%b%c%b%b" % (
        first_byte & 0x7F | 0xC0,
        len(header.source),
        header.source,
        len(header.destination),
        header.destination,
        versions,
    )


def retry(header: LongHeader, source: bytes, token: bytes) -> bytes:
    """A Retry packet (RFC 9000, section 17.2.5): the client's next Initial brings *token* to *source*. Less than 200 bytes for 1200."""
    return encode_quic_retry(header.version, source, header.source, header.destination, token)


def refusal(header: LongHeader, source: bytes, error: int) -> bytes:
    """An Initial with CONNECTION_CLOSE (RFC 9000, section 10.2.3): about 60 bytes for 1200."""
    keys = CryptoPair()
    keys.setup_initial(cid=header.destination, is_client=False, version=header.version)
    builder = QuicPacketBuilder(
        host_cid=source, peer_cid=header.source, version=header.version, is_client=False, max_datagram_size=MIN_DATAGRAM
    )
    builder.start_packet(QuicPacketType.INITIAL, keys)
    frame = builder.start_frame(QuicFrameType.TRANSPORT_CLOSE, capacity=8)
    frame.push_uint_var(error)
    frame.push_uint_var(QuicFrameType.PADDING)
    frame.push_uint_var(0)
    return builder.flush()[0][0]
