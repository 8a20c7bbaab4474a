"""TCP in: a listening socket (``accept.py``) and the connections that it accepts (``tcp_connection.py``)."""

import asyncio
import socket
from collections.abc import Callable
from typing import cast

from proxy.engine.choice import MakeH2
from proxy.listen.accept import Acceptor, Protocols
from proxy.listen.limits import AcceptLimits
from proxy.listen.tcp_connection import TcpConnection
from proxy.listen.tls import TlsContexts
from proxy.services import Services
from proxy.snapshot import Listener


class TcpListener:
    """One TCP socket and its connections."""

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
        self._protocols = Protocols(self._connection, services.log)
        self._acceptor = Acceptor(limits.gate, self._protocols.take, lambda: services.relieve())  # noqa: PLW0108  # set later

    @property
    def accepting(self) -> bool:
        """Whether connections were accepted that are not among ``connections`` yet."""
        return len(self._protocols) > 0

    async def start(self, sock: socket.socket) -> None:
        """Accept on *sock*, which is bound, from now on. It is the listener's, and closed by ``stop_accepting``."""
        self._acceptor.start(sock)
        self.services.output.holders.append(self)

    def _connection(self) -> asyncio.BaseProtocol:
        return cast("asyncio.BaseProtocol", TcpConnection(self))

    def stop_accepting(self) -> None:
        """Take no new connections."""
        self._acceptor.stop()

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
