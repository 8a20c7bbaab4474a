"""The two ends of a connection through the tier: what one has sent, the other is given.

Knows sockets and bytes; nothing of instances or limits. What one side does not take has the other one wait: one read at most is held in
each direction. Half of a connection may end before the other (RFC 9293, section 3.6).
"""

import socket
import struct
import time
from collections.abc import Callable

from proxy.counters import Cell
from proxy.deadlines import Deadlines, Expiring
from proxy.l4.poller import READ, WRITE, Poller

READ_SIZE = 256 * 1024
"""Bytes of one read, and so the most that waits for one side."""

_RESET = struct.pack("ii", 1, 0)
"""For SO_LINGER: no bytes of before go out after the close, but a reset."""

FLUSH = 30.0
"""Seconds in which one side may take what is left for it when the other one is gone."""


class Shared:
    """What all sides of a listener use."""

    __slots__ = ("buffer", "clock", "deadlines", "poller")

    def __init__(self, poller: Poller, deadlines: Deadlines, clock: Callable[[], float] = time.monotonic) -> None:
        self.poller = poller
        self.deadlines = deadlines
        self.clock = clock
        self.buffer = memoryview(bytearray(READ_SIZE))


class Side:
    """One end; ``other`` is the other one, while there are both."""

    __slots__ = ("_descriptor", "_events", "active_at", "bucket", "closed", "ended", "moved", "other", "shared", "sock", "waiting")

    def __init__(self, shared: Shared, sock: socket.socket, moved: Cell) -> None:
        """*moved* counts the bytes that it has sent."""
        self.shared = shared
        self.sock = sock
        self.moved = moved
        self.other: Side | None = None
        self.ended = False
        """Whether it has sent all that it will (FIN)."""
        self.waiting: bytes | memoryview = b""
        """Bytes that it has yet to take."""
        self.active_at = 0.0
        self.closed = False
        self.bucket: dict[Expiring, None] | None = None
        self._descriptor = sock.fileno()
        self._events = 0

    def ready(self, events: int) -> None:
        """It can be read, or written."""
        if events & WRITE and self.waiting:
            self._send_waiting()
        if events & ~WRITE and self.other is not None:
            self._read(self.other)

    def watch(self, events: int) -> None:
        """Have it told of *events*."""
        if events != self._events and not self.closed:
            self._events = events
            self.shared.poller.watch(self._descriptor, events, self)

    def settle(self) -> None:
        """Have it told of what can be done: it is read while the other one takes what comes."""
        other = self.other
        events = WRITE if self.waiting else 0
        if other is not None and not self.ended and not other.waiting:
            events |= READ
        self.watch(events)

    def _read(self, other: "Side") -> None:
        shared = self.shared
        try:
            size = self.sock.recv_into(shared.buffer)
        except BlockingIOError:
            return
        except OSError:
            self.lose()
            return
        if not size:
            self._end(other)
            return
        self.active_at = shared.clock()
        self.moved.value += size
        data = shared.buffer[:size]
        try:
            sent = other.sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            other.lose()
            return
        if sent < size:
            other.waiting = bytes(data[sent:])
            self.settle()
            other.settle()

    def _send_waiting(self) -> None:
        """It takes more again. When it has all, the other one is read at once: who always has more changes nothing for the poller."""
        try:
            sent = self.sock.send(self.waiting)
        except BlockingIOError:
            return
        except OSError:
            self.lose()
            return
        self.active_at = self.shared.clock()
        if sent < len(self.waiting):
            self.waiting = memoryview(self.waiting)[sent:]
            return
        self.waiting = b""
        other = self.other
        if other is None:
            self.close()
            return
        if other.ended:
            self._end_writing()
        else:
            other._read(self)  # noqa: SLF001  # of the same class
            other.settle()
        self.settle()

    def _end(self, other: "Side") -> None:
        """Half of the connection is over: the other half goes on, until that is over as well."""
        self.ended = True
        if other.ended:
            self.other = other.other = None
            self.finish()
            other.finish()
            return
        if not other.waiting:
            other._end_writing()  # noqa: SLF001  # of the same class
        self.settle()

    def _end_writing(self) -> None:
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self.lose()

    def lose(self) -> None:
        """It was reset, or the like. So is the other end, unless it has all that this one was to send."""
        other, self.other = self.other, None
        self.close()
        if other is not None:
            other.other = None
            if self.ended:
                other.finish()
            else:
                other.reset()

    def finish(self) -> None:
        """Send what waits, and close; but not for ever."""
        if self.waiting:
            self.shared.deadlines.set(self, self.shared.clock() + FLUSH)
            self.settle()
        else:
            self.close()

    def on_deadline(self, now: float) -> float | None:  # noqa: ARG002  # of ``Expiring``
        """It has not taken the rest in time."""
        self.reset()
        return None

    def close(self) -> None:
        """End it at once."""
        if not self.closed:
            self.closed = True
            self.shared.deadlines.cancel(self)
            self.shared.poller.forget(self._descriptor)
            self.sock.close()
            self._gone()

    def reset(self) -> None:
        """End it at once by a reset (RFC 9293, section 3.10.5): it has not had all, and is not to take the rest for that."""
        if not self.closed:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self.close()

    def cut(self) -> None:
        """End it at once, on both sides."""
        other, self.other = self.other, None
        if other is not None:
            other.other = None
            other.reset()
        self.reset()

    def _gone(self) -> None:
        """For those who count."""
