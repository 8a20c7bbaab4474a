"""The wire of HTTP/1.1, both directions (RFC 9112): heads into lines and fields, chunked coding, heads into bytes.

Knows bytes. Knows nothing of connections, of who speaks, or of what fields mean (``validate``).

Heads are split here and not by httptools, which is as fast (the callbacks cost what the loop costs) but lets pass, out of sight of its
callbacks, what differs between servers: several spaces in the request line, RTSP and ICE as protocols, LF without CR before a request,
chunk sizes and extensions of any length. It also refuses methods that it does not know, and copies every body.
"""

import re
from http import HTTPStatus

from proxy.engine.grammar import LINE_BYTES_REMEMBERED, LINES_REMEMBERED, PRIVATE, Malformed, quote
from proxy.engine.seam import EngineLimits
from proxy.engine.validate import trailers
from proxy.message import Header, Headers

CHUNK_LINE_BYTES = 512
"""Longest chunk-size line with its extensions."""

CHUNK_WASTE_BYTES = 16 * 1024
"""Bytes of extensions in one body beyond those that its data pays for: twice its size, and 16 for every chunk."""

_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,15})(?:;[\t\x20-\x7e\x80-\xff]*)?")
_STATUS_LINES = {int(status): f"HTTP/1.1 {int(status)} {status.phrase}\r\n".encode() for status in HTTPStatus}


def find_head(data: bytes, start: int, scanned: int, limit: int) -> int:
    """Where the head that begins at *start* ends (its empty line begins), or -1 while it is not complete.

    Bytes before *scanned* were looked at in an earlier call. Raises Malformed as soon as more than *limit* bytes (431; 414 within the
    first line) or a bare LF have come, wherever the bytes were split.
    """
    end = data.find(b"\r\n\r\n", max(start, scanned - 3) if scanned else start)
    if 0 <= end <= start + limit:
        return end
    seen = data[max(start, scanned - 1) : start + limit + 4]
    if seen.count(b"\n") != seen.count(b"\r\n") + (scanned > start and seen[:1] == b"\n"):
        raise Malformed("syntax", "LF without CR")
    if end >= 0 or len(data) - start >= limit + 4:
        line = data.find(b"\r\n", start, start + limit)
        raise Malformed("header_too_large", f"over {limit} bytes", 414 if line < 0 else 431)
    return -1


def split_lines(head: bytes, limits: EngineLimits) -> list[bytes]:
    """The lines of a head: the first, and one for each field, not more of them than the limit."""
    lines = head.split(b"\r\n")
    if head.count(b"\n") != len(lines) - 1:
        raise Malformed("syntax", "LF without CR")
    if len(lines) - 1 > limits.header_count:
        raise Malformed("too_many_fields", f"{len(lines) - 1} fields", 431)
    return lines


def split_fields(lines: list[bytes]) -> list[tuple[bytes, bytes]]:
    """Field lines into names and values, as they stand."""
    fields = []
    for line in lines:
        name, colon, value = line.partition(b":")
        if not colon:
            raise Malformed("syntax", quote(line))
        fields.append((name, value))
    return fields


def status_line(status: int) -> bytes:
    """The first line of a response, with its end."""
    return _STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status


def encode_fields(headers: Headers) -> bytes:
    """Field lines. A field that would break its line is left out, whoever made it: no message is split by our doing."""
    return b"".join(map(encoded_lines.__getitem__, headers))


class _Encoded(dict[Header, bytes]):
    """Field lines that were made before; any other is made when it is asked for."""

    def __missing__(self, field: Header) -> bytes:
        return _encode(field)


encoded_lines = _Encoded()
_NOT_KEPT = PRIVATE | {b"x-request-id"}  # no two requests have the same one


def _encode(field: Header) -> bytes:
    line = b"%b: %b\r\n" % field
    if line.count(b"\n") != 1 or line.count(b"\r") != 1 or b"\0" in line:
        return b""
    if len(line) <= LINE_BYTES_REMEMBERED and field[0] not in _NOT_KEPT:
        if len(encoded_lines) >= LINES_REMEMBERED:
            encoded_lines.clear()
        encoded_lines[field] = line
    return line


def encode_chunk(data: bytes) -> bytes:
    """One chunk of not empty *data*."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def encode_last_chunk(fields: Headers) -> bytes:
    """The end of a chunked body with its trailer section."""
    return b"0\r\n%b\r\n" % encode_fields(fields) if fields else b"0\r\n\r\n"


class ChunkDecoder:
    """One chunked body (RFC 9112, section 7.1). Extensions are read over; sizes are hex digits and nothing else."""

    __slots__ = ("_after_data", "_last", "_left", "_limits", "_waste", "trailers")

    def __init__(self, limits: EngineLimits) -> None:
        self.trailers: Headers | None = None
        """The trailer section once the body is complete."""
        self._limits = limits
        self._left = 0
        self._after_data = False
        self._last = False
        self._waste = 0

    def decode(self, data: bytes, at: int, body: list[bytes]) -> int:
        """Read *data* from *at* on, append pieces to *body*; returns how far it came. Give it the rest again with what follows.

        Raises Malformed; the pieces before the fault are in *body*.
        """
        while self.trailers is None:
            if self._left:
                piece = data[at : at + self._left]
                if not piece:
                    break
                body.append(piece)
                at += len(piece)
                self._left -= len(piece)
                self._after_data = not self._left
            elif self._after_data:
                ending = data[at : at + 2]
                if ending != b"\r\n":
                    if ending in (b"", b"\r"):
                        break
                    raise Malformed("chunk", "data longer than its size")
                at += 2
                self._after_data = False
            else:
                after = self._trailer_section(data, at) if self._last else self._size_line(data, at)
                if after < 0:
                    break
                at = after
        return at

    def _size_line(self, data: bytes, at: int) -> int:
        end = data.find(b"\r\n", at, at + CHUNK_LINE_BYTES + 2)
        if end < 0:
            if len(data) - at >= CHUNK_LINE_BYTES + 2:
                raise Malformed("chunk", "size line too long")
            return -1
        line = data[at:end]
        match = _CHUNK_LINE.fullmatch(line)
        if match is None:
            raise Malformed("chunk", quote(line))
        self._left = int(match[1], 16)
        self._last = not self._left
        self._waste = max(0, self._waste + len(line) - 16 - 2 * self._left)
        if self._waste > CHUNK_WASTE_BYTES:
            raise Malformed("chunk", "more extensions than data")
        return end + 2

    def _trailer_section(self, data: bytes, at: int) -> int:
        if data[at : at + 2] == b"\r\n":
            self.trailers = []
            return at + 2
        limit = self._limits.header_bytes
        end = data.find(b"\r\n\r\n", at, at + limit + 4)
        if end < 0:
            if len(data) - at >= limit + 4:
                raise Malformed("header_too_large", f"trailers over {limit} bytes", 431)
            return -1
        lines = split_lines(b"\r\n" + data[at:end], self._limits)
        self.trailers = trailers(split_fields(lines[1:]), self._limits, fold=True)
        return end + 4
