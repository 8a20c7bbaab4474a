"""The floor of HTTP/1.1: uvloop's TLS and httptools, nothing else. GET only."""

import asyncio

import httptools

from bench.floor.common import arguments, serve, tls
from bench.floor.upstream import Pool, get


class Server(asyncio.Protocol):
    pool: Pool

    def __init__(self) -> None:
        self.parser = httptools.HttpRequestParser(self)

    def connection_made(self, transport: asyncio.Transport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_message_begin(self) -> None:
        self.path, self.authority = b"", b""

    def on_url(self, url: bytes) -> None:
        self.path += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"host":
            self.authority = value

    def on_message_complete(self) -> None:
        self.pool.ask(get(self.path, self.authority), self.answer)

    def answer(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        lines = [b"%b: %b\r\n" % field for field in headers]
        self.transport.write(b"HTTP/1.1 %d OK\r\n%b\r\n%b" % (status, b"".join(lines), body))


if __name__ == "__main__":
    options = arguments()

    async def start() -> object:
        Server.pool = Pool(options.backend)
        return await asyncio.get_running_loop().create_server(Server, "127.0.0.1", options.port, ssl=tls(options, "http/1.1"))

    serve(start)
