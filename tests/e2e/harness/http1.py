"""An HTTP/1.1 client on asyncio with the same hand on its requests as ``http2`` and ``http3``: each has a connection to itself."""

import asyncio
import hashlib
import ssl
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

import httptools

from harness.authority import Authority
from harness.clients import trusting
from harness.http3 import Answer


class Http1Connection(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self) -> None:
        self.lost = asyncio.get_running_loop().create_future()
        self.writable = asyncio.Event()
        self.writable.set()
        self.done: asyncio.Future[Answer] | None = None
        self.answer = Answer()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    def connection_lost(self, error: Exception | None) -> None:
        self.writable.set()
        self.lost.set_result(error)
        if self.done is not None and not self.done.done():
            self.done.set_exception(ConnectionError(f"the connection ended: {error}"))
            self.done.exception()  # whoever waits gets it; nobody has to

    def begin(self, head: bytes, *, keep: bool) -> None:
        """Send a request head; ``done`` will have the answer."""
        self._parser = httptools.HttpResponseParser(self)
        self.answer, self._hash, self._keep = Answer(), hashlib.sha256(), keep
        self._pieces: list[bytes] = []
        self.done = asyncio.get_running_loop().create_future()
        self.transport.write(head)

    async def get(self, path: str, *, host: str, limit: float = 60) -> Answer:
        self.begin(_head("GET", path, host, (), end=True), keep=True)
        assert self.done is not None
        return await asyncio.wait_for(self.done, limit)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_header(self, name: bytes, value: bytes) -> None:
        fields = self.answer.trailers if self.answer.status else self.answer.headers
        fields[name.decode().lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < 200:
            self.answer.informational.append(status)
            self.answer.headers.clear()
        else:
            self.answer.status = status

    def on_body(self, data: bytes) -> None:
        self._hash.update(data)
        self.answer.size += len(data)
        if self._keep:
            self._pieces.append(data)

    def on_message_complete(self) -> None:
        if self.answer.status and self.done is not None and not self.done.done():
            self.answer.body, self.answer.sha256 = b"".join(self._pieces), self._hash.hexdigest()
            self.done.set_result(self.answer)


class Http1:
    """A client whose connections are reused once their answer is complete."""

    def __init__(self, context: ssl.SSLContext, port: int, sni: str) -> None:
        self._context, self._port, self._sni = context, port, sni
        self._all: list[Http1Connection] = []
        self._idle: list[Http1Connection] = []
        self._requests: dict[int, asyncio.Task[Http1Connection]] = {}
        self._number = 0

    async def _connection(self) -> Http1Connection:
        while self._idle:
            connection = self._idle.pop()
            if not connection.lost.done():
                return connection
        connection = await http1_connect(self._context, self._port, sni=self._sni)
        self._all.append(connection)
        return connection

    async def _request(self, head: bytes, *, keep: bool) -> Http1Connection:
        connection = await self._connection()
        connection.begin(head, keep=keep)
        return connection

    async def close(self) -> None:
        for connection in self._all:
            connection.transport.abort()
            await connection.lost

    # As in http2 and http3

    def open(
        self,
        path: str,
        *,
        method: str = "GET",
        host: str,
        headers: Iterable[tuple[str, str]] = (),
        end: bool = True,
        keep: bool = True,
    ) -> int:
        self._number += 1
        self._requests[self._number] = asyncio.ensure_future(self._request(_head(method, path, host, headers, end=end), keep=keep))
        return self._number

    async def size(self, number: int) -> int:
        """Bytes of the answer so far."""
        return (await self._requests[number]).answer.size

    async def pause(self, number: int) -> None:
        (await self._requests[number]).transport.pause_reading()

    async def resume(self, number: int) -> None:
        (await self._requests[number]).transport.resume_reading()

    async def fall_silent(self) -> None:
        """Read and say nothing any more, on every connection."""
        for number in self._requests:
            await self.pause(number)

    async def cancel(self, number: int) -> None:
        """The only way that the version has: end the connection."""
        (await self._requests.pop(number)).transport.abort()

    async def send(self, number: int, pieces: Iterable[bytes]) -> None:
        """Send a body in chunks, as the socket takes them, and end it."""
        connection = await self._requests[number]
        for piece in (*pieces, b""):
            await connection.writable.wait()
            if connection.lost.done():
                return
            connection.transport.write(b"%x\r\n%b\r\n" % (len(piece), piece))

    async def answer(self, number: int, limit: float = 60) -> Answer:
        connection = await self._requests.pop(number)
        assert connection.done is not None
        answer = await asyncio.wait_for(connection.done, limit)
        self._idle.append(connection)
        return answer

    async def get(self, path: str, *, host: str, limit: float = 60, **more: Any) -> Answer:
        return await self.answer(self.open(path, host=host, **more), limit)


def _head(method: str, path: str, host: str, headers: Iterable[tuple[str, str]], *, end: bool) -> bytes:
    fields = [("host", host), *headers, *([] if end else [("transfer-encoding", "chunked")])]
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields), "", ""]
    return "\r\n".join(lines).encode()


@asynccontextmanager
async def http1(authority: Authority, port: int, *, sni: str = "a.example.com") -> AsyncIterator[Http1]:
    """A client of 127.0.0.1:*port* by HTTP/1.1."""
    client = Http1(trusting(authority), port, sni)
    try:
        yield client
    finally:
        await client.close()


async def http1_connect(context: ssl.SSLContext, port: int, *, sni: str = "a.example.com") -> Http1Connection:
    """One connection; the caller closes ``transport``."""
    loop = asyncio.get_running_loop()
    _, connection = await loop.create_connection(Http1Connection, "127.0.0.1", port, ssl=context, server_hostname=sni)
    return connection
