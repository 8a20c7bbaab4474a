"""HTTP/3's alphabet (RFC 9114) and static QPACK (RFC 9204): numbers, integers, field sections.

Knows bytes. Knows no streams and no connection. The dynamic table is not used in either direction: a capacity of 0 leaves nothing
to block on and nothing to blow up (with 4 KB of table, 20 KB on the wire became 64 MB of fields), and costs a few dozen bytes for
each request.
"""

from collections.abc import Iterator, Sequence
from itertools import islice

import pylsqpack

from proxy.engine.grammar import Malformed

DATA, HEADERS, CANCEL_PUSH, SETTINGS, PUSH_PROMISE, GOAWAY, MAX_PUSH_ID = 0x0, 0x1, 0x3, 0x4, 0x5, 0x7, 0xD
HTTP2_FRAMES = frozenset((0x2, 0x6, 0x8, 0x9))
"""Of HTTP/2, errors here (section 7.2.8)."""
CONTROL_ONLY = frozenset((CANCEL_PUSH, SETTINGS, GOAWAY, MAX_PUSH_ID))

CONTROL_STREAM, PUSH_STREAM, ENCODER_STREAM, DECODER_STREAM = 0x0, 0x1, 0x2, 0x3

NO_ERROR = 0x100
GENERAL_PROTOCOL_ERROR = 0x101
INTERNAL_ERROR = 0x102
STREAM_CREATION_ERROR = 0x103
CLOSED_CRITICAL_STREAM = 0x104
FRAME_UNEXPECTED = 0x105
FRAME_ERROR = 0x106
EXCESSIVE_LOAD = 0x107
ID_ERROR = 0x108
SETTINGS_ERROR = 0x109
MISSING_SETTINGS = 0x10A
REQUEST_REJECTED = 0x10B
REQUEST_CANCELLED = 0x10C
REQUEST_INCOMPLETE = 0x10D
MESSAGE_ERROR = 0x10E
QPACK_DECOMPRESSION_FAILED = 0x200
QPACK_ENCODER_STREAM_ERROR = 0x201
QPACK_DECODER_STREAM_ERROR = 0x202

CODE_NAMES = {
    code: name.lower()
    for name, code in list(globals().items())
    if name.isupper() and isinstance(code, int) and (0x100 <= code <= 0x10E or 0x200 <= code <= 0x202)
}
"""Short tokens for metrics."""

SETTING_MAX_FIELD_SECTION_SIZE = 0x6
HTTP2_SETTINGS = frozenset((0x0, 0x2, 0x3, 0x4, 0x5))
"""Of HTTP/2, errors here (section 7.2.4.1)."""

SMALL_SECTION = 512
"""Bytes of an encoded field section that is decoded without counting first: at most so many fields, or 60 KB from the static table."""


class Fault(Exception):  # noqa: N818 - an expected value of the client's making, not a fault of ours
    """Ends the connection with *code* (section 8.1)."""

    def __init__(self, code: int, detail: str) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail


class TooManyFields(Exception):  # noqa: N818 - answered with 431
    """A field section has more fields than allowed; nothing was decoded."""


def pack_int(value: int) -> bytes:
    """A variable-length integer (RFC 9000, section 16)."""
    if value < 0x40:
        return value.to_bytes(1, "big")
    if value < 0x4000:
        return (value | 0x4000).to_bytes(2, "big")
    if value < 0x40000000:
        return (value | 0x80000000).to_bytes(4, "big")
    return (value | 0xC000000000000000).to_bytes(8, "big")


def unpack_int(data: bytes | bytearray, at: int, end: int) -> tuple[int, int]:
    """The integer at *at* and where it ends; (-1, at) where it is not complete before *end*."""
    if at >= end:
        return -1, at
    first = data[at]
    if first < 0x40:
        return first, at + 1
    after = at + (1 << (first >> 6))
    if after > end:
        return -1, at
    return int.from_bytes(data[at:after], "big") & ((1 << (8 * (after - at) - 2)) - 1), after


def pack_frame(kind: int, payload: bytes) -> bytes:
    """A frame of a type below 64."""
    return b"%c%b%b" % (kind, pack_int(len(payload)), payload)


def pack_settings(settings: Sequence[tuple[int, int]]) -> bytes:
    """A SETTINGS frame."""
    return pack_frame(SETTINGS, b"".join(pack_int(key) + pack_int(value) for key, value in settings))


def check_settings(payload: bytes) -> None:
    """Raise Fault for a malformed SETTINGS payload. None of its values matters to us: we send no dynamic references and no pushes."""
    seen: set[int] = set()
    at, end = 0, len(payload)
    while at < end:
        key, at = unpack_int(payload, at, end)
        value, after = unpack_int(payload, at, end)
        if key < 0 or value < 0:
            raise Fault(FRAME_ERROR, "truncated SETTINGS")
        at = after
        if key in seen or key in HTTP2_SETTINGS:
            raise Fault(SETTINGS_ERROR, f"setting {key:#x} twice or reserved")
        seen.add(key)


class FieldSections:
    """Encodes and decodes field sections of all connections: with the static table alone there is no state to keep apart."""

    __slots__ = ("_decoder", "_encoder")

    def __init__(self) -> None:
        self._encoder = pylsqpack.Encoder()
        self._decoder = pylsqpack.Decoder(0, 0)

    def encode(self, fields: list[tuple[bytes, bytes]]) -> bytes:
        """A HEADERS frame with these fields."""
        block: bytes = self._encoder.encode(0, fields)[1]
        return b"\x01%b%b" % (pack_int(len(block)), block)

    def decode(self, block: bytes, max_fields: int) -> list[tuple[bytes, bytes]]:
        """The fields of a section.

        Raises TooManyFields, Malformed for an empty name, and Fault where the section can't be read or refers to a dynamic table.
        """
        if len(block) > SMALL_SECTION and count_fields(block, max_fields) > max_fields:
            raise TooManyFields
        try:
            fields: list[tuple[bytes, bytes]] = self._decoder.feed_header(0, block)[1]
        except (pylsqpack.DecompressionFailed, pylsqpack.StreamBlocked, ValueError) as error:
            self._decoder = pylsqpack.Decoder(0, 0)  # so that nothing of the failed section stays in it
            if 0 in _names(block):  # the library won't read it; it is the fault of one message, not of its coding
                raise Malformed("field_name", "empty") from error
            raise Fault(QPACK_DECOMPRESSION_FAILED, "field section can't be decoded") from error
        return fields


def count_fields(block: bytes, enough: int) -> int:
    """Field lines of an encoded section, counted up to *enough* + 1. Malformed ends count as one line."""
    return sum(1 for _ in islice(_names(block), enough + 1))


def _names(block: bytes) -> Iterator[int]:
    """For each field line of an encoded section (RFC 9204, section 4.5), the bytes of its name, or -1 where that is a reference."""
    end = len(block)
    _, at = _prefixed(block, 0, end, 0xFF)
    _, at = _prefixed(block, at, end, 0x7F)
    while at < end:
        first = block[at]
        name = -1
        if first & 0x80:
            _, at = _prefixed(block, at, end, 0x3F)
        elif first & 0x40:
            _, at = _prefixed(block, at, end, 0x0F)
            at = _skip_string(block, at, end)
        elif first & 0x20:
            name, at = _prefixed(block, at, end, 0x07)
            at = _skip_string(block, at + name, end)
        elif first & 0x10:
            _, at = _prefixed(block, at, end, 0x0F)
        else:
            _, at = _prefixed(block, at, end, 0x07)
            at = _skip_string(block, at, end)
        yield name


def _skip_string(block: bytes, at: int, end: int) -> int:
    length, at = _prefixed(block, at, end, 0x7F)
    return at + length


def _prefixed(block: bytes, at: int, end: int, mask: int) -> tuple[int, int]:
    """An integer with a prefix (RFC 7541, section 5.1) and where it ends: past *end* when it is malformed."""
    if at >= end:
        return 0, end + 1
    value = block[at] & mask
    at += 1
    if value < mask:
        return value, at
    for shift in range(0, 35, 7):
        if at >= end:
            break
        octet = block[at]
        at += 1
        value += (octet & 0x7F) << shift
        if octet < 0x80:
            return value, at
    return 0, end + 1
