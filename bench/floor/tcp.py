"""HTTP/1.1 and HTTP/2 on the product's engines and its TLS session, without the peek at the ClientHello and without deadlines."""

import asyncio
import ssl
from collections.abc import Callable
from typing import cast

from bench.floor.requests import Requests
from bench.floor.upstream import Pool
from proxy.engine.seam import HIGH_WATER, Connection
from proxy.listen.tls import TlsSession
from proxy.message import Headers

FLUSH_BYTES = 128 * 1024


class TcpClient(Requests, asyncio.Protocol):
    """One connection of a client."""

    def __init__(self, pool: Pool, engine: Connection, context: ssl.SSLContext, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(pool)
        self.engine = engine
        self.tls = TlsSession(context)
        self.loop = loop
        self.shaken = self.scheduled = self.write_paused = self.read_paused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.transport.set_write_buffer_limits(high=HIGH_WATER)

    def data_received(self, data: bytes) -> None:
        tls, engine = self.tls, self.engine
        if self.shaken:
            plain = tls.decrypt(data)
        else:
            tls.feed(data)
            self.shaken = tls.handshake()
            self.transport.write(tls.take())
            if not self.shaken:
                return
            plain = tls.read()
        while plain:
            for event in engine.receive(plain, 0.0):
                self.deliver(event)
            plain = tls.read() if tls.pending else b""
        if not engine.quiet or self.read_paused:
            self.flush()

    def want_flush(self) -> None:
        if not self.scheduled:
            self.scheduled = True
            self.loop.call_soon(self.flush)

    def flush(self) -> None:
        self.scheduled = False
        engine, transport = self.engine, self.transport
        if transport.is_closing():
            return
        while not self.write_paused:
            output = engine.take_output(FLUSH_BYTES)
            if output:
                transport.write(self.tls.encrypt(output))
                if engine.quiet and not self.read_paused:
                    return
            events = engine.take_events()
            for event in events:
                self.deliver(event)
            if not events and len(output) < FLUSH_BYTES:
                break
        if engine.finished and not self.write_paused:
            transport.close()
        elif engine.wants_input is self.read_paused:
            self.read_paused = not self.read_paused
            if self.read_paused:
                transport.pause_reading()
            else:
                transport.resume_reading()

    def pause_writing(self) -> None:
        self.write_paused = True

    def resume_writing(self) -> None:
        self.write_paused = False
        self.flush()

    def connection_lost(self, error: Exception | None) -> None:
        del error
        self.lose()

    def respond(self, stream: int, status: int, headers: Headers, body: bytes) -> None:
        self.engine.respond(stream, status, headers, body)
        if self.engine.version == "HTTP/1.1":  # no other answer could share the write
            self.flush()
        else:
            self.want_flush()

    def send_head(self, stream: int, status: int, headers: Headers, end: bool) -> None:
        self.engine.send_head(stream, status, headers, end)
        self.want_flush()

    def send_data(self, stream: int, data: bytes, end: bool) -> int:
        queued = self.engine.send_data(stream, data, end)
        self.want_flush()
        return queued

    def consumed(self, stream: int, credit: int) -> None:
        self.engine.consumed(stream, credit)
        self.want_flush()


async def listen(port: int, pool: Pool, make: Callable[[], Connection], context: ssl.SSLContext) -> asyncio.Server:
    """Accept on *port* of 127.0.0.1; *make* gives each connection its engine."""
    loop = asyncio.get_running_loop()
    return await loop.create_server(lambda: TcpClient(pool, make(), context, loop), "127.0.0.1", port, backlog=4096)
