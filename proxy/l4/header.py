"""What a datagram shows of its connection: the part of QUIC's packet header that no version may change (RFC 8999). Pure."""

from typing import NamedTuple

MAX_CID = 20
"""Bytes of a connection ID of versions 1 and 2 (RFC 9000, section 17.2); those of other versions may have up to 255 (RFC 8999)."""

LEAST_SHORT = 21
"""Bytes of a short-header packet at least: no packet that is shorter can be authentic (RFC 9000, section 10.3)."""


LEAST_CID = 8
"""Bytes of a client's first destination connection ID at least (RFC 9000, section 7.2)."""


class LongHeader(NamedTuple):
    """The connection IDs of a long header (RFC 8999, section 5.1)."""

    destination: bytes
    source: bytes
    version: int
    """0: version negotiation, whose source is what the client has made up."""


def is_long(data: bytes) -> bool:
    """Whether a datagram, of one byte at least, begins with a long header."""
    return data[0] >= 0x80


def read_long(data: bytes) -> LongHeader | None:
    """The connection IDs of a datagram that begins with a long header; None where it is cut off."""
    size = len(data)
    if size < 7:
        return None
    end = 6 + data[5]
    if size <= end:
        return None
    source_end = end + 1 + data[end]
    if size < source_end:
        return None
    return LongHeader(data[6:end], data[end + 1 : source_end], int.from_bytes(data[1:5]))
