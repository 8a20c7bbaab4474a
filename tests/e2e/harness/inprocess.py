"""Backends on a thread of the test process, for what a port of 127.0.0.1 does not cover: TLS, unix sockets, IPv6."""

import asyncio
import socket
import ssl
import threading
from pathlib import Path
from typing import Any

import uvloop

from harness.backend import Connection, World


class _Connection(Connection):
    """Any transport: a unix socket knows no nodelay."""

    open = False

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.open = True

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.open = False


class InProcess:
    """A backend of ``harness.backend`` on *host* or at *path*, with TLS when it has a context."""

    def __init__(self, name: str, *, host: str = "127.0.0.1", path: Path | None = None, tls: ssl.SSLContext | None = None) -> None:
        self.name = name
        self._world = World(name)
        # asyncio's own (3.11) leaves a connection open that it accepts in the turn in which the server is closed
        self._loop = uvloop.new_event_loop()
        family = socket.AF_UNIX if path is not None else socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_STREAM)
        self._socket.bind(str(path) if path is not None else (host, 0))
        if path is not None:
            self.url = f"unix:{path}"
        else:
            shown = f"[{host}]" if ":" in host else host
            self.url = f"{'https' if tls is not None else 'http'}://{shown}:{self._socket.getsockname()[1]}"
        started = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(tls, started), daemon=True)
        self._thread.start()
        assert started.wait(10)

    def _run(self, tls: ssl.SSLContext | None, started: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve(tls, started))
        self._loop.close()

    async def _serve(self, tls: ssl.SSLContext | None, started: threading.Event) -> None:
        self._stop = asyncio.Event()
        connections: set[_Connection] = set()

        def make() -> _Connection:
            connection = _Connection(self._world)
            connections.add(connection)
            return connection

        loop = asyncio.get_running_loop()
        if self._socket.family == socket.AF_UNIX:
            server = await loop.create_unix_server(make, sock=self._socket, ssl=tls)
        else:
            server = await loop.create_server(make, sock=self._socket, ssl=tls)
        started.set()
        await self._stop.wait()
        server.close()
        while True:
            await asyncio.sleep(0)  # what was accepted is made, and what was aborted closes its socket
            left = [connection for connection in connections if connection.open]
            if not left:
                return
            for connection in left:
                connection.transport.abort()

    def close(self) -> None:
        """End it; its sockets are closed."""
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)
        assert not self._thread.is_alive()
