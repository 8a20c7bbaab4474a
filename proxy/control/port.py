"""A listening socket for the process's own pages: it accepts by itself, and waits while there are no file descriptors.

At their limit, asyncio's own server tries again thousands of times in one go, and uvloop's closes what waits in the queue, as with
``listen/tcp.py``. Here those who come wait in the kernel's queue until there are some again. Knows protocols only as what it makes.
"""

import asyncio
import socket
from collections.abc import Callable

from proxy.listen.descriptors import OUT_OF_THEM
from proxy.message import Address
from proxy.observe import Log
from proxy.tasks import Tasks

PAUSE = 0.5
"""Seconds without accepting once there was no descriptor."""

BACKLOG = 128
"""Connections that wait in the kernel, at most."""

ACCEPTED_AT_ONCE = 16
"""Connections that are accepted in one turn of the loop."""


class Port:
    """One socket. ``address`` is the bound one after ``open``."""

    def __init__(self, address: Address, make: Callable[[], asyncio.Protocol], log: Log) -> None:
        """*make* gives the protocol of each connection."""
        self.address = address
        self._make = make
        self._log = log
        self._tasks = Tasks(log)
        self._socket: socket.socket | None = None
        self._paused: asyncio.TimerHandle | None = None
        self._out = False

    def open(self) -> None:
        """Bind and accept. Raises OSError."""
        family = socket.AF_INET6 if ":" in self.address[0] else socket.AF_INET
        sock = socket.create_server(self.address, family=family, backlog=BACKLOG)
        sock.setblocking(False)
        self._socket = sock
        self.address = sock.getsockname()[:2]
        asyncio.get_running_loop().add_reader(sock.fileno(), self._accept)

    async def close(self) -> None:
        """Accept no more."""
        sock, self._socket = self._socket, None
        if sock is not None:
            if self._paused is not None:
                self._paused.cancel()
            else:
                asyncio.get_running_loop().remove_reader(sock.fileno())
            sock.close()
        await self._tasks.close()

    def _accept(self) -> None:
        for _ in range(ACCEPTED_AT_ONCE):
            if self._socket is None:
                return
            try:
                accepted, _ = self._socket.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if error.errno in OUT_OF_THEM:
                    self._pause()
                    return
                continue  # the error of a connection that is over already
            self._out = False
            accepted.setblocking(False)
            self._tasks.start("accept", self._begin(accepted))

    async def _begin(self, accepted: socket.socket) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(self._make, accepted)
        except OSError as error:
            accepted.close()
            self._log.debug("a connection was lost at accept", error=str(error))

    def _pause(self) -> None:
        assert self._socket is not None
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._socket.fileno())
        self._paused = loop.call_later(PAUSE, self._go_on)
        if not self._out:
            self._out = True
            self._log.warning("out of file descriptors: who connects waits", address=f"{self.address[0]}:{self.address[1]}")

    def _go_on(self) -> None:
        self._paused = None
        if self._socket is not None:
            asyncio.get_running_loop().add_reader(self._socket.fileno(), self._accept)
