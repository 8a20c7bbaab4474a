"""HTTP/1.1 on uvloop's own TLS and httptools, nothing of the product: what the Python ecosystem's fast parts do by themselves.

Parses both sides with llhttp, passes fields through, answers with what came. GET only, no back-pressure.
"""

import asyncio
import ssl
from pathlib import Path
from typing import cast

import httptools

HOP_BY_HOP = frozenset((b"connection", b"keep-alive", b"transfer-encoding"))


class BareUpstream(asyncio.Protocol):
    """One connection to the backend."""

    def __init__(self, idle: list["BareUpstream"], first: bytes, client: "BareClient") -> None:
        self.idle, self.first, self.client = idle, first, client

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.ask(self.first, self.client)

    def ask(self, request: bytes, client: "BareClient") -> None:
        self.client = client
        self.headers: list[bytes] = []
        self.out: list[bytes] = []
        self.complete = False
        self.parser = httptools.HttpResponseParser(self)
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)
        client = self.client
        if self.out:
            client.transport.write(b"".join(self.out))
            self.out.clear()
        if self.complete:
            self.complete = False
            self.idle.append(self)

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() not in HOP_BY_HOP:
            self.headers.append(b"%b: %b\r\n" % (name, value))

    def on_headers_complete(self) -> None:
        self.out.append(b"HTTP/1.1 %d OK\r\n%b\r\n" % (self.parser.get_status_code(), b"".join(self.headers)))

    def on_body(self, body: bytes) -> None:
        self.out.append(body)

    def on_message_complete(self) -> None:
        self.complete = True

    def connection_lost(self, error: Exception | None) -> None:
        del error
        if self in self.idle:
            self.idle.remove(self)


class BareClient(asyncio.Protocol):
    """One connection of a client."""

    def __init__(self, backend: int, idle: list[BareUpstream], connecting: set[asyncio.Task[object]]) -> None:
        self.backend, self.idle, self.connecting = backend, idle, connecting
        self.parser = httptools.HttpRequestParser(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_message_begin(self) -> None:
        self.path = b""
        self.headers: list[bytes] = []

    def on_url(self, url: bytes) -> None:
        self.path += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() not in HOP_BY_HOP:
            self.headers.append(b"%b: %b\r\n" % (name, value))

    def on_message_complete(self) -> None:
        request = b"GET %b HTTP/1.1\r\n%b\r\n" % (self.path, b"".join(self.headers))
        if self.idle:
            self.idle.pop().ask(request, self)
            return
        loop = asyncio.get_running_loop()
        task = loop.create_task(loop.create_connection(lambda: BareUpstream(self.idle, request, self), "127.0.0.1", self.backend))
        self.connecting.add(task)
        task.add_done_callback(self.connecting.discard)


async def listen(port: int, backend: int, certificate: Path) -> asyncio.Server:
    """Accept on *port* of 127.0.0.1."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(certificate)
    context.set_alpn_protocols(["http/1.1"])
    idle: list[BareUpstream] = []
    connecting: set[asyncio.Task[object]] = set()
    loop = asyncio.get_running_loop()
    return await loop.create_server(lambda: BareClient(backend, idle, connecting), "127.0.0.1", port, ssl=context, backlog=4096)
