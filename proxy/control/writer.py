"""Lines to a file descriptor from a thread of its own: whoever logs never waits for whoever reads.

Knows bytes. A pipe whose reader has stopped, a full disk or a closed terminal costs lines, which are counted, and never a request. The
descriptor is not made non-blocking, since that would change it for every process that shares it.
"""

import atexit
import os
import select
import stat
from collections.abc import Iterator
from queue import SimpleQueue
from threading import Lock, Thread
from time import monotonic

MAX_PENDING = 8 * 1024 * 1024
"""Bytes that wait for the descriptor, at most; further lines are dropped."""

CLOSE_SECONDS = 2.0
"""How long ``close`` waits for a reader that takes nothing."""


class LineWriter:
    """Owns no descriptor: the caller's stays open. ``write`` may be called from any thread."""

    def __init__(self, descriptor: int, *, max_pending: int = MAX_PENDING) -> None:
        self._descriptor = descriptor
        self._piecewise = _is_pipe(descriptor)
        self._max_pending = max_pending
        self._queue: SimpleQueue[tuple[bytes, int] | None] = SimpleQueue()
        self._lock = Lock()
        self._pending = 0
        self._closed = False
        self.dropped = 0
        """Lines that were lost."""
        self._thread = Thread(target=self._run, name="log writer", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def write(self, data: bytes, lines: int = 1) -> bool:
        """Queue complete lines; False when they had to be dropped."""
        size = len(data)
        with self._lock:
            if self._closed or self._pending + size > self._max_pending:
                self.dropped += lines
                return False
            self._pending += size
            self._queue.put((data, lines))
        return True

    def close(self, seconds: float = CLOSE_SECONDS) -> None:
        """Write what is queued, for at most so many seconds. Later lines are dropped."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._queue.put(None)
        self._thread.join(seconds)
        atexit.unregister(self.close)

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            data, lines = item
            written = self._deliver(data)
            with self._lock:
                self._pending -= len(data)
                if not written:
                    self.dropped += lines

    def _deliver(self, data: bytes) -> bool:
        if self._piecewise and len(data) > select.PIPE_BUF:
            return all(self._write(piece) for piece in _pieces(data))
        return self._write(data)

    def _write(self, data: bytes) -> bool:
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[os.write(self._descriptor, rest) :]
            except BlockingIOError:
                # somebody who shares the descriptor made it non-blocking
                if not self._writable():
                    return False
            except OSError:
                return False
        return True

    def _writable(self) -> bool:
        """Wait until the descriptor takes bytes; once closing, no longer than ``CLOSE_SECONDS``."""
        poll = select.poll()
        poll.register(self._descriptor, select.POLLOUT)
        give_up: float | None = None
        while not poll.poll(250):
            if self._closed:
                give_up = give_up or monotonic() + CLOSE_SECONDS
                if monotonic() > give_up:
                    return False
        return True


def _is_pipe(descriptor: int) -> bool:
    try:
        return stat.S_ISFIFO(os.fstat(descriptor).st_mode)
    except OSError:
        return False


def _pieces(data: bytes) -> Iterator[bytes]:
    """Whole lines, as many as a pipe takes in one piece (PIPE_BUF): other processes write to it too, and lines must not mix."""
    at = 0
    while at < len(data):
        end = data.rfind(b"\n", at, at + select.PIPE_BUF) + 1
        if end <= at:
            end = data.find(b"\n", at) + 1 or len(data)  # one line that is longer than that
        yield data[at:end]
        at = end
