"""TCP in: a listening socket and the connections that it accepts (``tcp_connection.py``)."""

import asyncio
import socket
from collections.abc import Callable
from typing import cast

from proxy.engine.choice import MakeH2
from proxy.listen.descriptors import OUT_OF_THEM
from proxy.listen.limits import AcceptLimits
from proxy.listen.tcp_connection import TcpConnection
from proxy.listen.tls import TlsContexts
from proxy.services import Services
from proxy.snapshot import Listener
from proxy.tasks import Tasks

BACKLOG = 4096
"""Connections that the kernel holds for accept; it takes the smaller of this and net.core.somaxconn."""


ACCEPTED_AT_ONCE = 64
"""Connections that are accepted in one turn of the loop."""


class TcpListener:
    """One TCP socket and its connections.

    It accepts by itself: at the limit of file descriptors, asyncio's own loop tries again thousands of times in one go, and uvloop's
    closes what waits in the queue. Neither can pause without closing the socket.
    """

    def __init__(self, listener: Listener, services: Services, contexts: TlsContexts, make_h2: MakeH2, limits: AcceptLimits) -> None:
        self.listener = listener
        self.services = services
        self.contexts = contexts
        self.make_h2 = make_h2
        self.limits = limits
        self.connections: set[TcpConnection] = set()
        self.holds = 0
        """How often a backend was told to stop at once, since its connection has as much waiting as it may."""
        self._loop = asyncio.get_running_loop()
        self.call_soon: Callable[[Callable[[], None]], object] = self._loop.call_soon
        self._tasks = Tasks(services.log)
        self._socket: socket.socket | None = None
        self._reading = False
        limits.gate.tell(self._gate_moved)

    @property
    def accepting(self) -> bool:
        """Whether connections were accepted that are not among ``connections`` yet."""
        return len(self._tasks) > 0

    async def start(self, sock: socket.socket) -> None:
        """Accept on *sock*, which is bound, from now on. It is the listener's, and closed by ``stop_accepting``."""
        sock.listen(BACKLOG)
        sock.setblocking(False)
        self._socket = sock
        self.services.output.holders.append(self)
        self._gate_moved()

    def _gate_moved(self) -> None:
        """Accept, or leave those who come in the kernel's queue."""
        sock, wanted = self._socket, self.limits.gate.is_open
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
                accepted, _ = self._socket.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if error.errno in OUT_OF_THEM:
                    self.services.relieve()
                    return
                continue  # the error of a connection that is over already, which Linux tells here (accept(2))
            accepted.setblocking(False)
            self._tasks.start("accept", self._begin(accepted))

    async def _begin(self, accepted: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._connection, accepted)
        except OSError as error:
            accepted.close()
            self.services.log.debug("a connection was lost at accept", error=str(error))

    def _connection(self) -> asyncio.Protocol:
        return cast("asyncio.Protocol", TcpConnection(self))

    def stop_accepting(self) -> None:
        """Take no new connections."""
        sock, self._socket = self._socket, None
        if sock is not None:
            if self._reading:
                self._loop.remove_reader(sock.fileno())
            sock.close()

    def drain(self) -> None:
        """Tell every connection to finish."""
        for connection in list(self.connections):
            connection.goaway()

    @property
    def output_bytes(self) -> int:
        """Bytes of answers that wait for clients, of all connections."""
        return sum(connection.output_bytes for connection in self.connections)

    def bound_output(self, most: int) -> None:
        """From now on each connection may have *most* bytes waiting."""
        for connection in self.connections:
            connection.bound_output(most)

    def abort(self) -> None:
        """Cut what is left."""
        for connection in list(self.connections):
            connection.abort()
