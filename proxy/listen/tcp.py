"""TCP in: a listening socket and the connections that it accepts (``tcp_connection.py``)."""

import asyncio
import socket
from collections.abc import Callable
from typing import cast

from proxy.engine.choice import MakeH2
from proxy.listen.limits import AcceptLimits
from proxy.listen.tcp_connection import TcpConnection
from proxy.listen.tls import TlsContexts
from proxy.services import Services
from proxy.snapshot import Listener

BACKLOG = 4096
"""Connections that the kernel holds for accept; it takes the smaller of this and net.core.somaxconn."""


class TcpListener:
    """One TCP socket and its connections."""

    def __init__(self, listener: Listener, services: Services, contexts: TlsContexts, make_h2: MakeH2, limits: AcceptLimits) -> None:
        self.listener = listener
        self.services = services
        self.contexts = contexts
        self.make_h2 = make_h2
        self.limits = limits
        self.connections: set[TcpConnection] = set()
        self.call_soon: Callable[[Callable[[], None]], object] = asyncio.get_running_loop().call_soon
        self._server: asyncio.Server | None = None

    async def start(self, sock: socket.socket) -> None:
        """Accept on *sock*, which is bound."""
        self._server = await asyncio.get_running_loop().create_server(self._accepted, sock=sock, backlog=BACKLOG)

    def _accepted(self) -> asyncio.Protocol:
        return cast("asyncio.Protocol", TcpConnection(self))

    def stop_accepting(self) -> None:
        """Take no new connections."""
        if self._server is not None:
            self._server.close()
            self._server = None

    def drain(self) -> None:
        """Tell every connection to finish."""
        for connection in list(self.connections):
            connection.goaway()

    def abort(self) -> None:
        """Cut what is left."""
        for connection in list(self.connections):
            connection.abort()
