"""A TCP listener in this process with a real backend behind it, on a clock that is set by hand; and clients that speak to it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import h2.config
import h2.connection
import h2.events
import httpx

from proxy.engine.h2 import H2Connection
from proxy.engine.seam import EngineLimits
from proxy.listen.bind import bind_tcp
from proxy.listen.limits import AcceptLimits
from proxy.listen.tcp import TcpListener
from proxy.listen.tcp_connection import TcpConnection
from proxy.listen.tls import TlsContexts
from proxy.observe import Metrics, NullLog
from proxy.snapshot import Endpoint, Limits, Listener, ServerTimeouts
from proxy.sni import SniTable, TlsProfile
from proxy.tasks import Tasks
from proxy.upstream.pool import Upstreams
from tests.unit.exchange_world import World
from tests.unit.listen.conftest import Authority
from tests.unit.upstream.book import Book
from tests.unit.upstream.rig import Backend, read_head, serve, until

HOST = "a.example.com"
BIG = 8 * 1024 * 1024
LARGE = 2 * 1024 * 1024  # over QUIC by an engine in Python, 8 MiB would take seconds, and many of them where coverage is measured
TIMEOUTS = ServerTimeouts(handshake=10, header=5, idle=60, drain=30)
LIMITS = Limits(0, 0, 0, 0, EngineLimits())


class Faults(NullLog):
    """Keeps what would be logged as an error."""

    def __init__(self) -> None:
        self.errors: list[tuple[str, Any]] = []

    def error(self, event: str, **details: object) -> None:
        self.errors.append((event, details.get("exc_info")))

    exception = error


class App:
    """What the backend does, by path."""

    def __init__(self) -> None:
        self.release = asyncio.Event()
        self.cut = asyncio.Event()
        self.seen: list[bytes] = []

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = await read_head(reader)
            self.seen.append(head)
            path = head.split(b" ", 2)[1]
            if path == b"/echo":
                await self._echo(head, reader, writer)
            elif path == b"/big":
                await self._send(writer, bytes(BIG))
            elif path == b"/large":
                await self._send(writer, bytes(LARGE))
            elif path == b"/hold":
                await self.release.wait()
                await self._send(writer, b"held")
            elif path == b"/half":
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf")
                await self._until_cut(reader)
            elif path == b"/broken":
                writer.write(b"HTTP/1.1 200 OK\r\n\r\npart")
                await writer.drain()
                await self.release.wait()
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                writer.transport.abort()
                return
            elif path == b"/hints":
                writer.write(b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n")
                await self._send(writer, b"hinted")
            elif path == b"/no":
                writer.write(b"HTTP/1.1 413 Content Too Large\r\ncontent-length: 2\r\n\r\nno")
                await self._until_cut(reader)
            else:
                await self._send(writer, b"hello")

    async def _until_cut(self, reader: asyncio.StreamReader) -> None:
        try:
            while await reader.read(65536):
                pass
        finally:
            self.cut.set()

    async def _send(self, writer: asyncio.StreamWriter, body: bytes) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body))
        writer.write(body)
        await writer.drain()

    async def _echo(self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        body = bytearray()
        lower = head.lower()
        if b"content-length: " in lower:
            body += await reader.readexactly(int(lower.split(b"content-length: ")[1].split(b"\r\n")[0]))
        else:
            while size := int(await reader.readline(), 16):
                body += (await reader.readexactly(size + 2))[:-2]
            await reader.readline()
        await self._send(writer, bytes(body))


class Edge:
    def __init__(self, backend: Backend, app: App, authority: Authority, **options: Any) -> None:
        self.app = app
        self.backend = backend
        self.world = world = World(backends=1, **options.pop("route", {}))
        world.pool.endpoints = {identity: Endpoint(identity, False, "127.0.0.1", backend.port, None) for identity in world.pool.endpoints}
        self.log = Faults()
        self.tasks = Tasks(self.log)
        protocols = options.pop("protocols", frozenset({"http/1.1", "h2"}))
        listener = Listener(("127.0.0.1", 0), protocols, 443, options.pop("proxied", None), None)
        profile = TlsProfile(authority.sign(HOST).certificate(), None, HOST)
        default = TlsProfile(authority.sign("localhost").certificate(), None, "default", is_default=True)
        services = world.services
        services.snapshot = replace(
            services.snapshot,
            sni=SniTable({HOST: profile}, {}, default, options.pop("refuse", False)),
            listeners=(listener,),
            limits=options.pop("limits", LIMITS),
            timeouts=options.pop("timeouts", TIMEOUTS),
        )
        assert not options, options
        services.upstreams = Upstreams(world.meters, self.tasks, lambda: world.now, Book())
        services.log = self.log
        contexts = TlsContexts()
        contexts.build(services.snapshot)
        self.metrics = Metrics()
        self.limits = AcceptLimits(services.snapshot.limits, services.snapshot.trusted_proxies, self.metrics)
        self.listener = TcpListener(listener, services, contexts, H2Connection, self.limits)
        self.client_context = ssl.create_default_context(cadata=authority.pem.decode())
        self.meters = world.meters
        self.port = 0

    async def start(self) -> None:
        sock = bind_tcp(("127.0.0.1", 0))
        self.port = sock.getsockname()[1]
        await self.listener.start(sock)

    async def stop(self) -> None:
        """Everything ends, and nothing is left counted as open."""
        self.listener.stop_accepting()
        self.listener.abort()
        self.world.services.upstreams.close()
        await until(lambda: not self.listener.connections)
        await self.tasks.close()
        await until(lambda: self.meters.upstream_open.cell("web").value == 0)
        for family in (self.meters.connections_open, self.meters.streams_open):
            assert {labels: cell.value for labels, cell in family.cells.items() if cell.value} == {}
        assert (self.world.inflight, len(self.world.deadlines), self.limits.connections) == (0, 0, 0)

    async def pass_time(self, seconds: float) -> None:
        self.world.pass_time(seconds)
        await asyncio.sleep(0)

    @property
    def connection(self) -> TcpConnection:
        (connection,) = self.listener.connections
        return connection

    def count(self, family: str, *labels: str) -> float:
        return getattr(self.meters, family).cell(*labels).value

    # Clients

    def tls(self, *alpn: str) -> ssl.SSLContext:
        self.client_context.set_alpn_protocols(list(alpn) or ["http/1.1"])
        return self.client_context

    @contextlib.asynccontextmanager
    async def h1(self, *, host: str = HOST, plain: bool = False, first: bytes = b"") -> AsyncIterator[H1]:
        context = None if plain else self.tls("http/1.1")
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, ssl=context, server_hostname=None if plain else host)
        try:
            if first:
                writer.write(first)
            yield H1(reader, writer)
        finally:
            writer.transport.abort()
            with contextlib.suppress(ConnectionError, ssl.SSLError):
                await writer.wait_closed()

    @contextlib.asynccontextmanager
    async def h2(self) -> AsyncIterator[H2]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, ssl=self.tls("h2"), server_hostname=HOST)
        try:
            yield H2(reader, writer)
        finally:
            writer.transport.abort()
            with contextlib.suppress(ConnectionError, ssl.SSLError):
                await writer.wait_closed()

    def httpx(self, *, http2: bool) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            http1=not http2, http2=http2, verify=self.client_context, base_url=f"https://127.0.0.1:{self.port}", headers={"host": HOST}
        )


class H1:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    def ask(self, path: str, *fields: str, method: str = "GET", version: str = "1.1") -> None:
        self.send("\r\n".join([f"{method} {path} HTTP/{version}", f"host: {HOST}", *fields, "", ""]).encode())

    async def head(self) -> bytes:
        return await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), 5)

    async def answer(self) -> tuple[int, bytes]:
        head = await self.head()
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        return int(head.split(b" ")[1]), await asyncio.wait_for(self.reader.readexactly(length), 20)

    async def rest(self) -> bytes:
        return await asyncio.wait_for(self.reader.read(), 5)


class H2:
    """A bare client: it reads only when it is told to, and gives credit only where it is told to."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.events: list[Any] = []
        self.core = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding=None))
        machine = self.core.state_machine  # the library takes the first GOAWAY for the end, and drain says it twice
        machine._transitions = {
            **machine._transitions,
            (h2.connection.ConnectionState.CLIENT_OPEN, h2.connection.ConnectionInputs.RECV_GOAWAY): (
                None,
                h2.connection.ConnectionState.CLIENT_OPEN,
            ),
        }
        self.core.initiate_connection()
        self.flush()

    def flush(self) -> None:
        self.writer.write(self.core.data_to_send())

    def ask(self, path: str, *, method: str = "GET", end: bool = True) -> int:
        stream = self.core.get_next_available_stream_id()
        self.core.send_headers(stream, [(":method", method), (":scheme", "https"), (":authority", HOST), (":path", path)], end_stream=end)
        self.flush()
        return stream

    async def read(self, done: Callable[[], object], credit: Callable[[int], bool] = lambda stream: True) -> None:
        async with asyncio.timeout(10):
            while not done():
                data = await self.reader.read(65536)
                if not data:
                    self.events.append("eof")
                    return
                for event in self.core.receive_data(data):
                    self.events.append(event)
                    if isinstance(event, h2.events.DataReceived) and credit(event.stream_id):
                        self.core.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                self.flush()

    def of(self, kind: type, stream: int | None = None) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind) and (stream is None or event.stream_id == stream)]

    def body(self, stream: int) -> int:
        return sum(len(event.data) for event in self.of(h2.events.DataReceived, stream))

    def ended(self, stream: int) -> bool:
        return bool(self.of(h2.events.StreamEnded, stream) or self.of(h2.events.StreamReset, stream))

    def status(self, stream: int) -> int:
        return int(dict(self.of(h2.events.ResponseReceived, stream)[0].headers)[b":status"])


@contextlib.asynccontextmanager
async def edge(authority: Authority, **options: Any) -> AsyncIterator[Edge]:
    app = App()
    async with serve(app) as backend:
        made = Edge(backend, app, authority, **options)
        await made.start()
        try:
            yield made
        finally:
            app.release.set()
            await made.stop()
