"""A client that makes connections: one after the other, each for one request, with a full or a resumed handshake, or many that stay.

Its own cost does not matter: what is measured is the server's processor time and memory. Run as ``python -m bench.load.connections``;
prints ``ready`` once it could begin, begins when it reads a line, prints one JSON object, and ends when its input ends. For each line that
comes meanwhile, it asks on each connection that stays for one thing more, and prints a JSON object again.
"""

import argparse
import asyncio
import contextlib
import json
import socket
import ssl
import sys

import h2.config
import h2.connection
import h2.events
from aioquic.asyncio import QuicConnectionProtocol, connect
from aioquic.h3.connection import H3Connection
from aioquic.h3.events import DataReceived, H3Event, HeadersReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import QuicEvent
from aioquic.tls import SessionTicket

SIZE = 1024
"""Bytes of the answer's body that make it a right one."""
PATH = "/1k"
TIMEOUT = 20.0


class WrongError(Exception):
    """Not the answer that was expected."""


class Tcp:
    """HTTP/1.1 or HTTP/2 over TLS, by blocking sockets."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.h2 = options.version == "h2"
        self.context = ssl.create_default_context()
        self.context.check_hostname = False
        self.context.verify_mode = ssl.CERT_NONE
        self.context.minimum_version = ssl.TLSVersion.TLSv1_3
        self.context.set_alpn_protocols(["h2" if self.h2 else "http/1.1"])
        self.session: ssl.SSLSession | None = None
        self.kept: list[tuple[ssl.SSLSocket, h2.connection.H2Connection]] = []

    def open(self, *, resume: bool) -> tuple[ssl.SSLSocket, h2.connection.H2Connection]:
        """A connection that was asked for one thing, and what HTTP/2 needs to ask for another."""
        plain = socket.create_connection(("127.0.0.1", self.options.port), timeout=TIMEOUT)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        tls = self.context.wrap_socket(plain, server_hostname=self.options.host, session=self.session if resume else None)
        http = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding=None))
        if self.h2:
            http.initiate_connection()
        self._get(tls, http)
        return tls, http

    def _get(self, tls: ssl.SSLSocket, http: h2.connection.H2Connection) -> None:
        if self.h2:
            self._get_h2(tls, http)
        else:
            self._get_h1(tls)

    async def one(self, *, resume: bool) -> bool:
        """A connection of which nothing stays but its ticket; gives whether it was resumed."""
        with self.open(resume=resume)[0] as tls:
            self.session = tls.session  # tickets come after the handshake, before or with the answer
            return bool(tls.session_reused)

    async def keep(self) -> None:
        """A connection that stays."""
        self.kept.append(self.open(resume=False))

    async def again(self) -> int:
        """Ask on each that stays; gives how many answered."""
        return sum([self._answers(*kept) for kept in self.kept])

    def _answers(self, tls: ssl.SSLSocket, http: h2.connection.H2Connection) -> bool:
        try:
            self._get(tls, http)
        except (OSError, WrongError):
            return False
        return True

    def _get_h1(self, tls: ssl.SSLSocket) -> None:
        tls.sendall(f"GET {PATH} HTTP/1.1\r\nhost: {self.options.host}:{self.options.port}\r\n\r\n".encode())
        data = b""
        while len(data.partition(b"\r\n\r\n")[2]) < SIZE:
            piece = tls.recv(65536)
            if not piece:
                raise WrongError
            data += piece
        if not data.startswith(b"HTTP/1.1 200 "):
            raise WrongError

    def _get_h2(self, tls: ssl.SSLSocket, http: h2.connection.H2Connection) -> None:
        authority = f"{self.options.host}:{self.options.port}"
        head = [(":method", "GET"), (":scheme", "https"), (":authority", authority), (":path", PATH)]
        http.send_headers(http.get_next_available_stream_id(), head, end_stream=True)
        status, size, ended = b"", 0, False
        while not ended:
            tls.sendall(http.data_to_send())
            piece = tls.recv(65536)
            if not piece:
                raise WrongError
            for event in http.receive_data(piece):
                if isinstance(event, h2.events.ResponseReceived):
                    status = dict(event.headers)[b":status"]
                elif isinstance(event, h2.events.DataReceived):
                    size += len(event.data)
                elif isinstance(event, h2.events.StreamEnded):
                    ended = True
                elif isinstance(event, (h2.events.StreamReset, h2.events.ConnectionTerminated)):
                    raise WrongError
        tls.sendall(http.data_to_send())
        if (status, size) != (b"200", SIZE):
            raise WrongError


class Http3(QuicConnectionProtocol):
    """One GET on a QUIC connection."""

    http: H3Connection | None = None

    async def get(self, authority: str) -> None:
        self.http = self.http or H3Connection(self._quic)
        self.answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.status, self.size = b"", 0
        stream = self._quic.get_next_available_stream_id()
        head = [(b":method", b"GET"), (b":scheme", b"https"), (b":authority", authority.encode()), (b":path", PATH.encode())]
        self.http.send_headers(stream, head, end_stream=True)
        self.transmit()
        await asyncio.wait_for(self.answer, TIMEOUT)

    def quic_event_received(self, event: QuicEvent) -> None:
        if self.http is not None:
            for http_event in self.http.handle_event(event):
                self.http_event_received(http_event)

    def http_event_received(self, event: H3Event) -> None:
        if isinstance(event, HeadersReceived):
            self.status = dict(event.headers).get(b":status", b"")
        elif isinstance(event, DataReceived):
            self.size += len(event.data)
        else:
            return
        if event.stream_ended and not self.answer.done():
            if (self.status, self.size) == (b"200", SIZE):
                self.answer.set_result(None)
            else:
                self.answer.set_exception(WrongError())


class Quic:
    """HTTP/3, by aioquic."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.ticket: SessionTicket | None = None
        self.kept = contextlib.AsyncExitStack()
        self.clients: list[Http3] = []

    def connect(self, *, resume: bool) -> contextlib.AbstractAsyncContextManager[QuicConnectionProtocol]:
        configuration = QuicConfiguration(is_client=True, alpn_protocols=["h3"], server_name=self.options.host, verify_mode=ssl.CERT_NONE)
        configuration.idle_timeout = 3600
        configuration.session_ticket = self.ticket if resume else None
        return connect(
            "127.0.0.1", self.options.port, configuration=configuration, create_protocol=Http3, session_ticket_handler=self.take_ticket
        )

    def take_ticket(self, ticket: SessionTicket) -> None:
        self.ticket = ticket

    async def one(self, *, resume: bool) -> bool:
        """As ``Tcp.one``."""
        async with asyncio.timeout(TIMEOUT), self.connect(resume=resume) as client:
            assert isinstance(client, Http3)
            await client.get(f"{self.options.host}:{self.options.port}")
            return client._quic.tls.session_resumed  # noqa: SLF001  # aioquic tells it nowhere else once the handshake is over

    async def keep(self) -> None:
        """As ``Tcp.keep``."""
        async with asyncio.timeout(TIMEOUT):
            client = await self.kept.enter_async_context(self.connect(resume=False))
            assert isinstance(client, Http3)
            await client.get(f"{self.options.host}:{self.options.port}")
            self.clients.append(client)

    async def again(self) -> int:
        """As ``Tcp.again``."""
        served = 0
        for client in self.clients:
            with contextlib.suppress(OSError, TimeoutError, WrongError):
                await client.get(f"{self.options.host}:{self.options.port}")
                served += 1
        return served


async def main(options: argparse.Namespace) -> None:
    """All of it, in the order of the module's docstring."""
    client = Quic(options) if options.version == "h3" else Tcp(options)
    for _ in range(options.first):
        await client.one(resume=False)
    loop = asyncio.get_running_loop()
    print("ready", flush=True)
    await loop.run_in_executor(None, sys.stdin.readline)
    made = resumed = failed = 0
    for _ in range(options.count):
        try:
            if options.keep:
                await client.keep()
            else:
                resumed += await client.one(resume=options.resume)
            made += 1
        except (OSError, TimeoutError, WrongError, ssl.SSLError):
            failed += 1
    print(json.dumps({"made": made, "resumed": resumed, "failed": failed}), flush=True)
    while await loop.run_in_executor(None, sys.stdin.readline):  # QUIC needs the loop meanwhile
        print(json.dumps({"served": await client.again()}), flush=True)
    if isinstance(client, Quic):
        await client.kept.aclose()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("version", choices=("h1", "h2", "h3"))
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--host", default="a.example.com")
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--first", type=int, default=5, help="connections before the ones that count")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--keep", action="store_true")
    asyncio.run(main(parser.parse_args()))
