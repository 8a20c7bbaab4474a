"""The floor's way to the backend: keep-alive HTTP/1.1 connections, one request on each, answers collected whole.

No retry, no timeout, no back-pressure, no header policy: what is left is the cost of the libraries and the event loop.
"""

import asyncio
from collections.abc import Callable

import httptools

Answered = Callable[[int, list[tuple[bytes, bytes]], bytes], None]
HOP_BY_HOP = {b"connection", b"keep-alive", b"transfer-encoding"}


class _Upstream(asyncio.Protocol):
    def __init__(self, pool: "Pool", request: bytes, answered: Answered) -> None:
        self.pool, self.first, self.answered = pool, request, answered
        self.parser = httptools.HttpResponseParser(self)

    def connection_made(self, transport: asyncio.Transport) -> None:
        self.transport = transport
        self.ask(self.first, self.answered)

    def ask(self, request: bytes, answered: Answered) -> None:
        self.answered = answered
        self.headers: list[tuple[bytes, bytes]] = []
        self.body: list[bytes] = []
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if name not in HOP_BY_HOP:
            self.headers.append((name, value))

    def on_body(self, body: bytes) -> None:
        self.body.append(body)

    def on_message_complete(self) -> None:
        status = self.parser.get_status_code()
        body = b"".join(self.body)
        self.parser = httptools.HttpResponseParser(self)
        self.pool.idle.append(self)
        self.answered(status, self.headers, body)

    def connection_lost(self, error: Exception | None) -> None:
        del error
        if self in self.pool.idle:
            self.pool.idle.remove(self)


class Pool:
    """Connections to one backend, the last used first."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.idle: list[_Upstream] = []
        self.tasks: set[asyncio.Task[object]] = set()

    def ask(self, request: bytes, answered: Answered) -> None:
        if self.idle:
            self.idle.pop().ask(request, answered)
            return
        loop = asyncio.get_running_loop()
        task = loop.create_task(loop.create_connection(lambda: _Upstream(self, request, answered), "127.0.0.1", self.port))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)


def get(path: bytes, authority: bytes) -> bytes:
    """A GET as sent to the backend."""
    return b"GET %b HTTP/1.1\r\nhost: %b\r\n\r\n" % (path, authority)
