"""Happy eyeballs: several addresses raced for one connection (RFC 8305, section 5).

Knows sockets and the loop. The first address has a head start, then the next one joins in, and so on; an address that fails lets the next
one start at once. Whichever connects first wins, and the others are dropped.
"""

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import Sequence

STAGGER = 0.25
"""Seconds that an address is ahead of the next one (the Connection Attempt Delay that RFC 8305 recommends)."""

TCP_FASTOPEN_CONNECT = getattr(
    socket, "TCP_FASTOPEN_CONNECT", 30 if hasattr(socket, "SO_REUSEPORT") and hasattr(socket, "AF_PACKET") else 0
)
"""The Linux socket option (since 4.11) that sends the first bytes with the SYN; Python names it from 3.15 on. 0: not this system."""


NONBLOCK = getattr(socket, "SOCK_NONBLOCK", 0)
"""Of the type of a new socket; 0: not this system."""

UNDER_WAY = frozenset({errno.EINPROGRESS, errno.EINTR})
"""What a connect that does not block says of itself when all is well."""


async def race(addresses: Sequence[str], port: int, *, fast_open: bool) -> socket.socket:
    """A connected socket, without blocking and with nodelay. The caller limits the time. Raises OSError: that of the last address to fail.

    *fast_open* is for a single address: with it a connect may succeed before the peer has answered, and so would win any race.
    """
    running = _Race(addresses, port, fast_open=fast_open and len(addresses) == 1)
    try:
        return await running.run()
    finally:
        running.end()


def begin(address: str, port: int, *, fast_open: bool = False) -> tuple[socket.socket, bool]:
    """A socket with nodelay that connects without blocking, and whether it has already. Raises OSError where that fails at once."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM | NONBLOCK)
    try:
        if not NONBLOCK:
            sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if TCP_FASTOPEN_CONNECT and fast_open:
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1)
        code = sock.connect_ex((address, port))
    except OSError:
        sock.close()
        raise
    if code and code not in UNDER_WAY:
        sock.close()
        raise OSError(code, os.strerror(code))
    return sock, not code


class _Race:
    """One connect to several addresses. No tasks: sockets, and a timer."""

    def __init__(self, addresses: Sequence[str], port: int, *, fast_open: bool) -> None:
        self._loop = asyncio.get_running_loop()
        self._left = list(reversed(addresses))
        self._port = port
        self._fast_open = fast_open
        self._trying: list[socket.socket] = []
        self._timer: asyncio.TimerHandle | None = None
        self._failure = OSError("there is no address")
        self._won: asyncio.Future[socket.socket] = self._loop.create_future()

    async def run(self) -> socket.socket:
        self._start()
        try:
            return await self._won
        except asyncio.CancelledError:
            if self._won.done() and not self._won.cancelled() and self._won.exception() is None:
                self._won.result().close()  # won and given up in one turn of the loop
            raise

    def end(self) -> None:
        """Drop all that have not won."""
        if self._timer is not None:
            self._timer.cancel()
        for sock in self._trying:
            self._loop.remove_writer(sock)
            sock.close()
        self._trying.clear()

    def _start(self) -> None:
        """Begin with the next address that can be begun with; give up when there is none left, and none under way."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._left and not self._won.done():
            if self._begin(self._left.pop()):
                if self._left and not self._won.done():
                    self._timer = self._loop.call_later(STAGGER, self._start)
                return
        if not self._trying and not self._won.done():
            self._won.set_exception(self._failure)

    def _begin(self, address: str) -> bool:
        """Connect to *address*; False where that failed at once."""
        try:
            sock, connected = begin(address, self._port, fast_open=self._fast_open)
        except OSError as error:  # no such family here, no descriptor, or it failed at once
            self._failure = error
            return False
        if connected:
            self._won.set_result(sock)
            return True
        self._trying.append(sock)
        self._loop.add_writer(sock, self._done, sock)
        return True

    def _done(self, sock: socket.socket) -> None:
        """A connect is over."""
        self._loop.remove_writer(sock)
        self._trying.remove(sock)
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if not code and not self._won.done():
            self._won.set_result(sock)
            return
        sock.close()
        if code:
            self._failure = OSError(code, os.strerror(code))
            self._start()
