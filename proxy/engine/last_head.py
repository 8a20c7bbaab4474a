"""What a connection keeps of its last request head: most clients say the same fields again and again, and change the path only.

Knows when the last head's findings hold for the next one. Knows no rule of its own beside the path's: whatever differs in anything else,
and whatever is wrong, is the validator's to judge, from the beginning. One head for each connection, of bounded size, and seen by nobody
else: what is fast tells a client nothing but that it repeats itself.
"""

from proxy.engine.events import RequestHead
from proxy.engine.grammar import METHODS, Malformed, check_path
from proxy.engine.seam import EngineLimits

REMEMBERED_BYTES = 2048
"""A longer section of fields is not kept, since an idle connection keeps it too."""


def _repeat(last: RequestHead, stream: int, method: bytes, path: bytes) -> RequestHead | None:
    try:
        check_path(path, method)
    except Malformed:
        return None
    return RequestHead(
        stream, method, last.scheme, last.authority, path, last.headers.copy(), True, None, expect_continue=False, plain=last.plain
    )


class LastLines:
    """For HTTP/1.1: the field lines, compared as one string of bytes."""

    __slots__ = ("_head", "_lines", "_room")

    def __init__(self) -> None:
        self._lines = b""
        self._head: RequestHead | None = None
        self._room = 0  # bytes that the limit of a head leaves for the request line

    def keep(self, lines: bytes, head: RequestHead, limits: EngineLimits) -> None:
        """Keep what became of *lines*: a request without a body, in origin-form, that says nothing of its connection but to keep it."""
        if len(lines) <= REMEMBERED_BYTES:
            self._lines = lines
            self._head = _repeat(head, 0, head.method, head.path)
            self._room = limits.header_bytes - len(lines) - 32 * (lines.count(b"\n") + 1)

    def again(self, stream: int, line: bytes, lines: bytes) -> RequestHead | None:
        """The head of a request of the same lines; None where they differ, or the request line has anything uncommon about it."""
        last = self._head
        if last is None or lines != self._lines or len(line) > self._room or line[-9:] != b" HTTP/1.1":
            return None
        method, _, path = line[:-9].partition(b" ")
        return _repeat(last, stream, method, path) if method in METHODS and path[:1] == b"/" else None


class LastFields:
    """For HTTP/2: the fields before the path, and those behind it."""

    __slots__ = ("_after", "_at", "_before", "_head", "_room")

    def __init__(self) -> None:
        self._before: tuple[tuple[bytes, bytes], ...] = ()
        self._after: tuple[tuple[bytes, bytes], ...] = ()
        self._at = 0
        self._head: RequestHead | None = None
        self._room = 0  # bytes that the limit of a head leaves for the path

    def keep(self, fields: tuple[tuple[bytes, bytes], ...], head: RequestHead, limits: EngineLimits) -> None:
        """Keep what became of *fields*: a request without a body."""
        size = sum([len(name) + len(value) for name, value in fields]) - len(head.path)
        if size <= REMEMBERED_BYTES:
            at = self._at = next(at for at, field in enumerate(fields) if field[0] == b":path")
            self._before = fields[:at]
            self._after = fields[at + 1 :]
            self._head = _repeat(head, 0, head.method, head.path)
            self._room = limits.header_bytes - size - 32 * len(fields)

    def again(self, stream: int, fields: tuple[tuple[bytes, bytes], ...]) -> RequestHead | None:
        """The head of a request of the same fields; None where anything but the path differs, or the path is wrong."""
        last, at = self._head, self._at
        if last is None or at >= len(fields) or fields[at + 1 :] != self._after or fields[:at] != self._before:
            return None
        name, path = fields[at]
        return _repeat(last, stream, last.method, path) if name == b":path" and len(path) <= self._room and path[:1] == b"/" else None
