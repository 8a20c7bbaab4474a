"""Closed-loop load on all three versions at once, by clients that know to whom each answer came from and what became of each request.

Every connection has streams that ask again as soon as they are answered, or *pace* seconds later. A client that is told to go
(Connection: close, GOAWAY) begins nothing new on that connection, waits for what runs, and opens another one. A request counts as lost
when it was sent and had no answer.
"""

import asyncio
import contextlib
import itertools
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, Self

import h2.config
import h2.connection
import h2.events
from aioquic.asyncio import connect
from aioquic.h3.connection import H3_ALPN, FrameType, H3Connection
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import ConnectionTerminated

from harness.authority import Authority
from harness.clients import VERSIONS, trusting
from harness.http2 import patient
from harness.http3 import Http3
from harness.spoken import note

LIMIT = 30.0  # seconds for one request

PAUSE = 0.05
"""Seconds from a connection that was refused to the next try: a client that spins would take the core from what is tested."""


@dataclass(slots=True)
class End:
    """The client's end of a connection, by which it can be told whose the other end is, whether there was an answer or not."""

    began: float
    """Monotonic."""
    address: tuple[str, int] = ("", 0)
    """On TCP: the system knows which process has the connection from there."""
    slot: int | None = None
    """On QUIC, where there are several workers: that of the one who answered first, by the connection ID that it gave."""
    heard: float = 0.0
    """When that was."""


@dataclass(frozen=True, slots=True)
class Result:
    """One request."""

    version: str
    client: int
    """Number of the client: on TCP it has an address of its own, and so a key of its own."""
    connection: int
    status: int
    """0: it was lost."""
    backend: str
    why: str
    """How it was lost."""
    at: float
    """When it ended, monotonic."""
    end: End
    worker: str = ""
    """What the answer said in X-Worker or X-Instance, where the site is told to say there whose it is."""


class Load:
    """Load in a thread of its own. ``with Load(...) as load: ...`` begins and ends it; then all of its requests are answered or lost."""

    def __init__(
        self,
        authority: Authority,
        port: int,
        *,
        versions: Iterable[str] = VERSIONS,
        clients: int = 3,
        streams: int = 3,
        path: str = "/hello",
        host: str = "a.example.com",
        reconnect: bool = True,
        limit: float = LIMIT,
        pace: float = 0.0,
    ) -> None:
        self.results: list[Result] = []
        self._authority, self._port, self._path, self._host = authority, port, path, host
        for version in versions:
            note(version)
        self._limit, self._pace = limit, pace
        self._versions, self._clients, self._streams, self._reconnect = tuple(versions), clients, streams, reconnect
        self._numbers = itertools.count(1)
        self.stopping = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._error: BaseException | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stopping = True
        self._thread.join(LIMIT * 2)
        assert not self._thread.is_alive(), "the load did not end"
        if self._error is not None and exc[0] is None:
            raise self._error

    @property
    def lost(self) -> list[Result]:
        return [result for result in self.results if result.status != 200]

    def wait(self, condition: Callable[[], bool], what: str, limit: float = 20) -> None:
        """Wait for *condition* while the load runs on."""
        end = time.monotonic() + limit
        while not condition():
            assert time.monotonic() < end, f"never {what}; {self.summary()}"
            assert self._thread.is_alive() or self._error is None, f"the load broke: {self._error!r}"
            time.sleep(0.02)  # the other thread's results give no event; bounded by *limit*

    def more(self, count: int = 20) -> None:
        """Wait until *count* more requests of every version were answered."""
        before = self.answered()
        self.wait(lambda: all(self.answered()[version] >= before[version] + count for version in self._versions), f"{count} more answers")

    def ended(self, limit: float = 20) -> None:
        """Wait until all clients have ended by themselves (``reconnect=False``)."""
        self._thread.join(limit)
        assert not self._thread.is_alive(), f"the clients never ended; {self.summary()}"

    def answered(self) -> Counter[str]:
        return Counter(result.version for result in list(self.results) if result.status == 200)

    def summary(self) -> str:
        return str(Counter((result.version, result.status, result.why) for result in list(self.results)))

    def backends(self, since: float = 0.0) -> dict[tuple[str, int, int], list[str]]:
        """Backends that answered each (version, client, connection), in order, repetitions left out."""
        found: dict[tuple[str, int, int], list[str]] = {}
        for result in list(self.results):
            if result.at >= since and result.status == 200:
                seen = found.setdefault((result.version, result.client, result.connection), [])
                if not seen or seen[-1] != result.backend:
                    seen.append(result.backend)
        return found

    def _run(self) -> None:
        try:
            asyncio.run(self._main())
        except BaseException as error:  # noqa: BLE001  # raised again where the load ends
            self._error = error

    async def _main(self) -> None:
        kinds = {"HTTP/1.1": self._http1, "HTTP/2": self._http2, "HTTP/3": self._http3}
        async with asyncio.TaskGroup() as group:
            for version in self._versions:
                for client in range(self._clients):
                    group.create_task(self._life(kinds[version], version, client))

    async def _life(self, kind: Callable[["_Count"], Any], version: str, client: int) -> None:
        while not self.stopping:
            count = _Count(self, version, client, next(self._numbers), End(time.monotonic()))
            await kind(count)
            if not self._reconnect:
                return

    async def _pause(self) -> None:
        """After each answer, where the load is to be a light one."""
        if self._pace:
            await asyncio.sleep(self._pace)

    async def _connected(self, count: "_Count") -> socket.socket:
        """A TCP connection from the client's own address."""
        sock = socket.socket()
        sock.setblocking(False)
        try:
            sock.bind((f"127.0.7.{count.client + 1}", 0))
            await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", self._port))
        except OSError:
            sock.close()
            raise
        count.end.address = sock.getsockname()
        return sock

    # HTTP/1.1

    async def _http1(self, count: "_Count") -> None:
        context = trusting(self._authority)
        try:
            sock = await self._connected(count)
            reader, writer = await asyncio.open_connection(sock=sock, ssl=context, server_hostname=self._host)
        except (OSError, ssl.SSLError) as error:
            count.add(0, why=f"connect: {error!r}")
            await asyncio.sleep(PAUSE)
            return
        request = f"GET {self._path} HTTP/1.1\r\nhost: {self._host}\r\n\r\n".encode()
        try:
            while not self.stopping and not reader.at_eof():
                writer.write(request)
                async with asyncio.timeout(self._limit):
                    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
                    fields = dict(line.split(": ", 1) for line in head.split("\r\n")[1:-2])
                    await reader.readexactly(int(fields["content-length"]))
                count.add(int(head.split(" ")[1]), fields)
                await self._pause()
                if fields.get("connection") == "close":
                    break
        except (OSError, asyncio.IncompleteReadError, TimeoutError) as error:
            count.add(0, why=repr(error))
        finally:
            writer.transport.abort()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    # HTTP/2

    async def _http2(self, count: "_Count") -> None:
        context = trusting(self._authority)
        context.set_alpn_protocols(["h2"])
        loop = asyncio.get_running_loop()
        try:
            sock = await self._connected(count)
            transport, protocol = await loop.create_connection(_Http2, sock=sock, ssl=context, server_hostname=self._host)
        except (OSError, ssl.SSLError) as error:
            count.add(0, why=f"connect: {error!r}")
            await asyncio.sleep(PAUSE)
            return
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self._streams):
                    group.create_task(self._http2_stream(protocol, count))
        finally:
            transport.abort()
            await protocol.lost.wait()

    async def _http2_stream(self, protocol: "_Http2", count: "_Count") -> None:
        while not self.stopping and not protocol.leaving:
            try:
                async with asyncio.timeout(self._limit):
                    fields = await protocol.get(self._path, self._host)
                count.add(int(fields[":status"]), fields)
                await self._pause()
            except (OSError, TimeoutError) as error:
                count.add(0, why=repr(error))

    # HTTP/3

    async def _http3(self, count: "_Count") -> None:
        configuration = QuicConfiguration(is_client=True, alpn_protocols=H3_ALPN, server_name=self._host)
        configuration.load_verify_locations(cafile=str(self._authority.file))
        try:
            async with asyncio.timeout(self._limit):
                context = connect("127.0.0.1", self._port, configuration=configuration, create_protocol=partial(Polite, end=count.end))
                client = await context.__aenter__()
        except (OSError, TimeoutError) as error:
            count.add(0, why=f"connect: {error!r}")
            await asyncio.sleep(PAUSE)
            return
        asking = asyncio.ensure_future(client.ask_where_it_is_silent())
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self._streams):
                    group.create_task(self._http3_stream(client, count))
        finally:
            asking.cancel()
            await context.__aexit__(None, None, None)

    async def _http3_stream(self, client: "Polite", count: "_Count") -> None:
        while not self.stopping and not client.http.leaving and client.terminated is None:
            try:
                answer = await client.get(self._path, host=self._host, limit=self._limit)
                if answer.reset is not None:
                    count.add(0, why=f"reset {answer.reset:#x}")
                else:
                    count.add(answer.status, answer.headers)
                await self._pause()
            except (OSError, TimeoutError) as error:
                count.add(0, why=repr(error))


@dataclass(frozen=True, slots=True)
class _Count:
    load: Load
    version: str
    client: int
    connection: int
    end: End

    def add(self, status: int, fields: Mapping[str, str] = MappingProxyType({}), why: str = "") -> None:
        backend, worker = fields.get("x-backend", ""), fields.get("x-worker") or fields.get("x-instance", "")
        now = time.monotonic()
        self.load.results.append(Result(self.version, self.client, self.connection, status, backend, why, now, self.end, worker))


class _Http2(asyncio.Protocol):
    def __init__(self) -> None:
        self.h2 = patient(h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding="utf-8")))
        self.waiting: dict[int, tuple[asyncio.Future[dict[str, str]], dict[str, str]]] = {}
        self.leaving = False
        self.lost = asyncio.Event()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.h2.initiate_connection()
        transport.write(self.h2.data_to_send())

    def connection_lost(self, exc: Exception | None) -> None:
        self.leaving = True
        self.lost.set()
        for number in list(self.waiting):
            self._fail(number, f"connection lost: {exc!r}")

    def get(self, path: str, host: str) -> "asyncio.Future[dict[str, str]]":
        future: asyncio.Future[dict[str, str]] = asyncio.get_running_loop().create_future()
        number = self.h2.get_next_available_stream_id()
        self.waiting[number] = (future, {})
        self.h2.send_headers(number, [(":method", "GET"), (":scheme", "https"), (":authority", host), (":path", path)], end_stream=True)
        self.transport.write(self.h2.data_to_send())
        return future

    def data_received(self, data: bytes) -> None:
        for event in self.h2.receive_data(data):
            if isinstance(event, h2.events.ResponseReceived):
                self.waiting[event.stream_id][1].update(event.headers)
            elif isinstance(event, h2.events.DataReceived):
                self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, h2.events.StreamEnded):
                future, fields = self.waiting.pop(event.stream_id)
                if not future.done():
                    future.set_result(fields)
            elif isinstance(event, h2.events.StreamReset):
                self._fail(event.stream_id, f"reset {event.error_code}")
            elif isinstance(event, h2.events.ConnectionTerminated):
                self.leaving = True
                for number in [number for number in self.waiting if number > (event.last_stream_id or 0)]:
                    self._fail(number, "GOAWAY without it")
        self.transport.write(self.h2.data_to_send())

    def _fail(self, number: int, why: str) -> None:
        found = self.waiting.pop(number, None)
        if found is not None and not found[0].done():
            found[0].set_exception(ConnectionError(why))


class _LeavingHttp3(H3Connection):
    """aioquic's, which does not look at GOAWAY."""

    leaving = False

    def _check_control_frame_type(self, frame_type: int) -> None:
        super()._check_control_frame_type(frame_type)
        if frame_type == FrameType.GOAWAY:
            self.leaving = True


class Polite(Http3):
    """An HTTP/3 connection that knows when it is to go (``http.leaving``), and believes a stateless reset, as aioquic does not."""

    http_class = _LeavingHttp3
    http: _LeavingHttp3

    def __init__(self, *args: Any, end: End | None = None, **more: Any) -> None:
        super().__init__(*args, **more)
        self._end = end

    def datagram_received(self, data: bytes | str, addr: Any) -> None:
        assert isinstance(data, bytes)
        if self._end is not None and self._end.slot is None and (cid := first_id(data)):
            self._end.slot, self._end.heard = cid[-1], time.monotonic()
        known = (self._quic._peer_cid, *self._quic._peer_cid_available)
        if self.terminated is None and any(data[-16:] == cid.stateless_reset_token for cid in known):  # RFC 9000, section 10.3.1
            self.quic_event_received(ConnectionTerminated(error_code=0, frame_type=None, reason_phrase="stateless reset"))
        else:
            super().datagram_received(data, addr)


def first_id(data: bytes) -> bytes:
    """The connection ID that a server chose, from a packet of a handshake; nothing from a Retry packet, which binds nobody, and others."""
    if len(data) < 7 or not data[0] & 0x80 or data[0] & 0x30 == 0x30 or data[1:5] == bytes(4):
        return b""
    at = 6 + data[5]
    return data[at + 1 : at + 1 + data[at]]
