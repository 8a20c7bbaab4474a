"""HPACK (RFC 7541) with bounds: header blocks to fields and back, for one connection.

Knows the dynamic tables, the static table and the integer and Huffman codings of the hpack library. Knows no frames and no HTTP: what
the fields mean is the validator's affair. Why not hpack's own Decoder and Encoder: the one copies the rest of the block at each
literal (quadratic in hostile bytes) and can't read on past its size limit, so that one large header section would cost the whole
connection; the other lets the client choose how large our table grows, and searches it field by field.
"""

from collections import deque
from collections.abc import Iterable

from h2.errors import ErrorCodes
from hpack.exceptions import HPACKError
from hpack.hpack import decode_integer
from hpack.huffman_table import decode_huffman
from hpack.table import HeaderTable

from proxy.engine.h2_fault import Fault
from proxy.engine.seam import EngineLimits
from proxy.message import Header, Headers

TABLE_BYTES = 4096
"""Largest dynamic table, each way: the initial SETTINGS_HEADER_TABLE_SIZE (RFC 9113, section 6.5.2), never raised by either side."""

BLOCK_FACTOR = 2
"""A block of up to so many times ``header_bytes`` is still read to its end, to keep the tables in step for the other streams."""

FIELDS_FACTOR = 4
"""The same for the count of fields: a reference of one byte costs us a microsecond and the client nothing."""

_OVERHEAD = 32  # RFC 7541, section 4.1
_STATIC = HeaderTable.STATIC_TABLE
_STATIC_FIELDS = {field: index for index, field in reversed(list(enumerate(_STATIC, 1)))}
_STATIC_NAMES = {name: index for index, (name, _) in reversed(list(enumerate(_STATIC, 1)))}
_FIRST_DYNAMIC = len(_STATIC) + 1
_INTEGER_BYTES = 6  # a prefix octet and the five that decode_integer takes at most
_VOLATILE = frozenset(  # rarely the same twice: they would only push the others out of the table
    (b"age", b"content-length", b"content-range", b"etag", b"expires", b"last-modified", b"location", b"set-cookie", b"x-request-id")
)


class Decoder:
    """Decodes the client's header blocks, in order."""

    def __init__(self, limits: EngineLimits) -> None:
        self.block_bytes = limits.header_bytes * BLOCK_FACTOR
        self.max_header_list_size = limits.header_bytes
        self.max_allowed_table_size = TABLE_BYTES
        self._fields = limits.header_count * FIELDS_FACTOR
        self._table = HeaderTable()

    def decode(self, block: bytes) -> Headers | None:
        """The fields, or None when they are larger than ``max_header_list_size``: the tables are right all the same.

        Raises Fault: a block that can't be decoded leaves the tables out of step, so the connection is lost (RFC 9113, section 4.3);
        so does one that is beyond what is worth reading to its end.
        """
        if len(block) > self.block_bytes:
            raise Fault(ErrorCodes.ENHANCE_YOUR_CALM, f"header block of {len(block)} bytes")
        try:
            return self._decode(block)
        except (HPACKError, IndexError) as error:
            raise Fault(ErrorCodes.COMPRESSION_ERROR, str(error)[:100]) from error

    def _decode(self, block: bytes) -> Headers | None:
        fields: Headers = []
        table = self._table
        dynamic = table.dynamic_entries
        size = at = steps = 0
        end = len(block)
        while at < end:
            steps += 1
            octet = block[at]
            if octet > 0x80:  # indexed (section 6.1)
                index = octet & 0x7F
                at += 1
                if index == 0x7F:
                    index, used = decode_integer(block[at - 1 : at + _INTEGER_BYTES], 7)
                    at += used - 1
                field = _STATIC[index - 1] if index < _FIRST_DYNAMIC else dynamic[index - _FIRST_DYNAMIC]
            elif octet == 0x80:
                raise Fault(ErrorCodes.COMPRESSION_ERROR, "index 0")
            elif octet & 0x60 == 0x20:  # size update (section 6.3)
                if fields or size:
                    raise Fault(ErrorCodes.COMPRESSION_ERROR, "table size update after a field")
                new, used = decode_integer(block[at : at + _INTEGER_BYTES], 5)
                at += used
                if new > self.max_allowed_table_size:
                    raise Fault(ErrorCodes.COMPRESSION_ERROR, f"table of {new} bytes")
                table.maxsize = new
                if steps > self._fields:
                    raise Fault(ErrorCodes.ENHANCE_YOUR_CALM, f"{steps} table size updates")
                continue
            else:  # literal (section 6.2)
                indexing = octet & 0x40
                bits = 6 if indexing else 4
                index = octet & (0x3F if indexing else 0x0F)
                used = 1
                if index == (0x3F if indexing else 0x0F):
                    index, used = decode_integer(block[at : at + _INTEGER_BYTES], bits)
                at += used
                if index:
                    name = (_STATIC[index - 1] if index < _FIRST_DYNAMIC else dynamic[index - _FIRST_DYNAMIC])[0]
                else:
                    name, at = _string(block, at)
                value, at = _string(block, at)
                field = (name, value)
                if indexing:
                    table.add(name, value)
            size += len(field[0]) + len(field[1]) + _OVERHEAD
            if size <= self.max_header_list_size:
                fields.append(field)
            if steps > self._fields:
                raise Fault(ErrorCodes.ENHANCE_YOUR_CALM, f"more than {self._fields} fields")
        return fields if size <= self.max_header_list_size else None


def _string(block: bytes, at: int) -> tuple[bytes, int]:
    """A string literal (section 5.2) and where the next thing begins."""
    octet = block[at]
    length = octet & 0x7F
    used = 1
    if length == 0x7F:
        length, used = decode_integer(block[at : at + _INTEGER_BYTES], 7)
    at += used
    stop = at + length
    if stop > len(block):
        raise Fault(ErrorCodes.COMPRESSION_ERROR, "truncated string")
    raw = block[at:stop]
    return (bytes(decode_huffman(raw)) if octet & 0x80 else raw), stop


class Encoder:
    """Encodes our header blocks, in the order in which they go out.

    No Huffman coding: in Python it costs more than the bytes it saves, and what repeats is sent by index anyway.
    """

    def __init__(self) -> None:
        self._numbers: dict[Header, int] = {}
        self._order: deque[tuple[Header, int]] = deque()
        self._inserted = 0
        self._size = 0
        self._limit = TABLE_BYTES
        self._smallest: int | None = None

    @property
    def header_table_size(self) -> int:
        """Bytes that the dynamic table may take: what the client allows, and at most TABLE_BYTES."""
        return self._limit

    @header_table_size.setter
    def header_table_size(self, value: int) -> None:
        value = min(value, TABLE_BYTES)
        if value != self._limit:
            self._smallest = value if self._smallest is None else min(self._smallest, value)
            self._limit = value
            self._evict(0)

    def encode(self, fields: Iterable[Header]) -> bytes:
        """A header block for these fields."""
        out = bytearray()
        if self._smallest is not None:  # both the smallest and the present size are to be said (section 4.2)
            if self._smallest < self._limit:
                out += _integer(self._smallest, 5, 0x20)
            out += _integer(self._limit, 5, 0x20)
            self._smallest = None
        numbers = self._numbers
        for field in fields:
            index = _STATIC_FIELDS.get(field)
            if index is None:
                number = numbers.get(field)
                if number is None:
                    self._literal(field, out)
                    continue
                index = _FIRST_DYNAMIC + self._inserted - number
            if index < 0x7F:
                out.append(0x80 | index)
            else:
                out += _integer(index, 7, 0x80)
        return bytes(out)

    def _literal(self, field: Header, out: bytearray) -> None:
        name, value = field
        size = len(name) + len(value) + _OVERHEAD
        index = _STATIC_NAMES.get(name, 0)
        if name in _VOLATILE or size > self._limit // 2:
            out += _integer(index, 4, 0)
        else:
            out += _integer(index, 6, 0x40)
            self._evict(size)
            self._inserted += 1
            self._numbers[field] = self._inserted
            self._order.append((field, size))
            self._size += size
        if not index:
            out += _integer(len(name), 7, 0)
            out += name
        out += _integer(len(value), 7, 0)
        out += value

    def _evict(self, room: int) -> None:
        while self._order and self._size + room > self._limit:
            field, size = self._order.popleft()
            del self._numbers[field]
            self._size -= size


def _integer(value: int, bits: int, pattern: int) -> bytes:
    """*value* in a prefix of *bits* bits under *pattern* (section 5.1)."""
    top = (1 << bits) - 1
    if value < top:
        return bytes((pattern | value,))
    out = [pattern | top]
    value -= top
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
