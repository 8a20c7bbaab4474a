"""Counts of connections that several processes keep together without a lock: one shared mapping, of which each writes only its own row.

Knows addresses as bytes and the time it is given; nothing of limits, sockets or of how processes come and go. Only the standard library
is behind it, so that a supervisor may make it.

A *row* is one writer. What is counted stands in columns, the same number of all rows side by side, so that to read the sum of them is one
step: about a microsecond for 64 rows. Every number is written whole, as one aligned word of 4 or 8 bytes, so that no reader sees half of a
change. Nobody waits for anybody: between one process's look and its word each other one may let somebody in as well, so that those who race
for the last place may pass a limit by one connection for each other process.
"""

import contextlib
import math
import mmap
import os
import struct
import tempfile
from hashlib import blake2b

DEPTH = 4
"""Tables of the count-min sketch."""

WIDTH = 1 << 16
"""Counters in each table, for up to 10,000 connections."""

MAX_WIDTH = 1 << 20
"""For more: 16 MiB for each row, and the error of the smallest form at 160,000 connections."""

CONNECTIONS_PER_WIDTH = 10_000 / WIDTH
"""How full a table may become."""

MAX_ROWS = 1024
"""Far more than there are processes."""

_MAGIC = int.from_bytes(b"qproxy-1", "little")
_KEY_BYTES = 32
_HEADER = struct.Struct(f"=QII{_KEY_BYTES}s")
_PAGE = 4096
_COUNT = (1 << 32) - 1
_DIGITS = struct.Struct(f"={DEPTH}I")


class SharedCounts:
    """Connections of all processes, of each client, and how many came lately.

    Clients are counted in a count-min sketch (Cormode and Muthukrishnan, 2005): *depth* 4 tables of *width* 65,536 counters, in each of
    which a client has one place, by a hash that is keyed with random bytes of the mapping; the least of its four counts. That is never
    less than the client has. It is more only where other clients share all four places: with N connections of N other clients, each place
    has N / width of them on average, and all four have some with a probability of (1 - exp(-N / width)) ** depth. At 10,000 connections
    that are 0.15 and 0.0004: of ten thousand clients, four are taken to have one connection more. At twice as many it is 0.005, so that a
    mapping which is made for more connections is wider in proportion, up to 1,048,576. Rows add up before the least is taken, so the error
    depends on the connections, not on the number of processes. Clients that know no key can't look for others to share with.
    """

    def __init__(self, mapping: mmap.mmap, descriptor: int, row: int | None) -> None:
        """Not to be called: ``create`` and ``attach`` make it."""
        magic, rows, width, key = _HEADER.unpack_from(mapping) if len(mapping) >= _PAGE else (0, 0, 0, b"")
        if magic != _MAGIC or not 1 <= rows <= MAX_ROWS or len(mapping) != _size(rows, width):
            msg = "not a mapping of counts, or of another version"
            raise ValueError(msg)
        if row is not None and not 0 <= row < rows:
            msg = f"row {row} where there are {rows}"
            raise ValueError(msg)
        self.rows: int = rows
        self.width: int = width
        self.descriptor = descriptor
        """Of the mapping, to pass on."""
        self._row = row
        self._key: bytes = key
        self._mapping = mapping
        self._open = memoryview(mapping)[_PAGE : _PAGE + 8 * rows].cast("Q")
        self._lately = [memoryview(mapping)[_PAGE + 8 * rows * n : _PAGE + 8 * rows * (n + 1)].cast("Q") for n in (1, 2)]
        self._clients = memoryview(mapping)[_tables(rows) :].cast("I")

    @classmethod
    def create(cls, rows: int, connections: int = 10_000) -> "SharedCounts":
        """Make the mapping for *rows* processes: an anonymous file, of 1 MiB a row for up to 10,000 *connections* in all.

        Who makes it may read and ``clear``, but counts nothing itself. Raises OSError, and ValueError for rows that are none or too many.
        """
        if not 1 <= rows <= MAX_ROWS:
            msg = f"{rows} rows where 1 to {MAX_ROWS} were expected"
            raise ValueError(msg)
        width = WIDTH
        while width < MAX_WIDTH and connections > width * CONNECTIONS_PER_WIDTH:
            width *= 2
        descriptor = _anonymous_file()
        try:
            os.ftruncate(descriptor, _size(rows, width))
            mapping = mmap.mmap(descriptor, 0)
            _HEADER.pack_into(mapping, 0, _MAGIC, rows, width, os.urandom(_KEY_BYTES))
            return cls(mapping, descriptor, None)
        except BaseException:
            os.close(descriptor)
            raise

    @classmethod
    def of(cls, descriptor: int) -> "SharedCounts":
        """What ``create`` made, for whoever holds it in its place. Raises as ``attach`` does."""
        return cls(mmap.mmap(descriptor, 0), descriptor, None)

    @classmethod
    def attach(cls, descriptor: int, row: int) -> "SharedCounts":
        """Map what *descriptor* leads to, and count in *row*, which nobody else does.

        The descriptor becomes this object's, unless it raises. What stands in the row from a process before is for the mapping's maker to
        ``clear`` first. Raises OSError, and ValueError where it is no such mapping or has no such row.
        """
        return cls(mmap.mmap(descriptor, 0), descriptor, row)

    def close(self) -> None:
        """Let go of the mapping and the descriptor. The counts stay, for the others."""
        for view in (self._open, *self._lately, self._clients):
            view.release()
        self._mapping.close()
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def clear(self, row: int) -> None:
        """Zero the row of a process that is dead: its connections are gone with it. Takes some ms for a row of the smallest width."""
        rows = self.rows
        if not 0 <= row < rows:
            msg = f"row {row} where there are {rows}"
            raise ValueError(msg)
        self._open[row] = 0
        for words in self._lately:
            words[row] = 0
        clients = self._clients
        clients[row::rows] = memoryview(bytes(4 * self.width * DEPTH)).cast("I")

    # Reading

    @property
    def connections(self) -> int:
        """Connections that are open, of all rows."""
        return sum(self._open)

    def connections_of(self, row: int) -> int:
        """Connections that are open, of one row."""
        return self._open[row]

    def held(self, client: bytes) -> int:
        """Connections of one client, of all rows: at least what it has, and hardly ever more."""
        rows, clients = self.rows, self._clients
        return min(sum(clients[place : place + rows]) for place in self._places(client))

    # Counting

    def add(self, client: bytes) -> None:
        """A connection of *client* is open."""
        row = self._row
        assert row is not None
        self._open[row] += 1
        clients = self._clients
        for place in self._places(client):
            clients[place + row] += 1

    def remove(self, client: bytes) -> None:
        """It is gone."""
        row = self._row
        assert row is not None
        assert self._open[row] > 0
        self._open[row] -= 1
        clients = self._clients
        for place in self._places(client):
            clients[place + row] -= 1

    def take(self, rate: float, now: float) -> bool:
        """Count a new connection where fewer than *rate* a second came of late, over all rows; else count nothing and give False.

        A sliding window: as many as the rate has in a second (rounded up, in a window that is longer by as much), of which those of the
        window before count by the share of it that is not over yet. *now* is monotonic, and the same for all processes.
        """
        row = self._row
        assert row is not None
        most = math.ceil(rate)
        position = now * rate / most
        window = int(position) & _COUNT
        before, present = self._lately[~window & 1], self._lately[window & 1]
        came = _count(present, window)
        if came + int(_count(before, window - 1) * (1 - position % 1)) >= most:
            return False
        word = present[row]
        present[row] = word + 1 if word >> 32 == window else window << 32 | 1
        return True

    def _places(self, client: bytes) -> list[int]:
        """Where its counters stand, of the first row."""
        rows, width = self.rows, self.width
        digits = _DIGITS.unpack(blake2b(client, digest_size=_DIGITS.size, key=self._key, person=b"qproxy-count").digest())
        return [(table * width + digit % width) * rows for table, digit in enumerate(digits)]


def _count(words: memoryview, window: int) -> int:
    """How many came in *window*: a word has its window and its count."""
    return sum([word & _COUNT for word in words if word >> 32 == window])


def _tables(rows: int) -> int:
    """Where the sketch begins: behind the header and three columns, on a page of its own."""
    return _PAGE + (3 * 8 * rows + _PAGE - 1) // _PAGE * _PAGE


def _size(rows: int, width: int) -> int:
    return _tables(rows) + 4 * rows * width * DEPTH


def _anonymous_file() -> int:
    """A file without a name, in memory where the system has such."""
    if hasattr(os, "memfd_create"):
        with contextlib.suppress(OSError):  # forbidden, or not known to the kernel
            return os.memfd_create("qproxy-counts")
    with tempfile.TemporaryFile(prefix="qproxy-counts-") as file:
        return os.dup(file.fileno())
