"""Accepts connections on a listening TCP socket, while the gate is open and there are file descriptors.

It accepts by itself: at the limit of file descriptors, asyncio's own loop tries again thousands of times in one go, and uvloop's closes
what waits in the queue. Neither can pause without closing the socket.
"""

import asyncio
import socket
from collections.abc import Callable
from typing import TypeAlias, cast

from proxy.listen.descriptors import OUT_OF_THEM
from proxy.listen.gate import Gate
from proxy.message import Address
from proxy.observe import Log
from proxy.tasks import Tasks

BACKLOG = 4096
"""Connections that the kernel holds for accept; it takes the smaller of this and net.core.somaxconn."""

ACCEPTED_AT_ONCE = 64
"""Connections that are accepted in one turn of the loop."""


Take: TypeAlias = Callable[[socket.socket, Address], None]
"""Given an accepted socket, which does not block, and its client's address (two of four parts, for IPv6)."""


class Acceptor:
    """One socket's. *take* has each new connection from then on; *relieve* is called where no descriptor is left."""

    def __init__(self, gate: Gate, take: Take, relieve: Callable[[], None]) -> None:
        self._gate = gate
        self._take = take
        self._relieve = relieve
        self._loop = asyncio.get_running_loop()
        self._socket: socket.socket | None = None
        self._reading = False
        gate.tell(self._gate_moved)

    def start(self, sock: socket.socket) -> None:
        """Accept on *sock*, which is bound, from now on. It is the acceptor's, and closed by ``stop``."""
        sock.listen(BACKLOG)
        sock.setblocking(False)
        self._socket = sock
        self._gate_moved()

    def stop(self) -> None:
        """Take no new connections."""
        sock, self._socket = self._socket, None
        if sock is not None:
            if self._reading:
                self._loop.remove_reader(sock.fileno())
            sock.close()

    def _gate_moved(self) -> None:
        """Accept, or leave those who come in the kernel's queue."""
        sock, wanted = self._socket, self._gate.is_open
        if sock is not None and wanted is not self._reading:
            self._reading = wanted
            if wanted:
                self._loop.add_reader(sock.fileno(), self._accept)
            else:
                self._loop.remove_reader(sock.fileno())

    def _accept(self) -> None:
        """Take some of those who wait; the others have their turn behind what the connections have to do."""
        for _ in range(ACCEPTED_AT_ONCE):
            if not self._reading or self._socket is None:
                return
            try:
                accepted, address = self._socket.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if error.errno in OUT_OF_THEM:
                    self._relieve()
                    return
                continue  # the error of a connection that is over already, which Linux tells here (accept(2))
            accepted.setblocking(False)
            self._take(accepted, address)


class Protocols:
    """A protocol, and a transport, for each accepted connection. *make* gives the protocol."""

    def __init__(self, make: Callable[[], asyncio.BaseProtocol], log: Log) -> None:
        self._make = cast("Callable[[], asyncio.Protocol]", make)
        self._log = log
        self._loop = asyncio.get_running_loop()
        self._tasks = Tasks(log)

    def __len__(self) -> int:
        """Connections that have none yet."""
        return len(self._tasks)

    def take(self, accepted: socket.socket, _: Address) -> None:
        """See ``Take``."""
        self._tasks.start("accept", self._begin(accepted))

    async def settle(self) -> None:
        """Have no more connections without one: those are cut."""
        await self._tasks.close()

    async def _begin(self, accepted: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._make, accepted)
        except OSError as error:
            accepted.close()
            self._log.debug("a connection was lost at accept", error=str(error))
