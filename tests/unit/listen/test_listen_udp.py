"""The UDP listener on a real socket with aioquic's client: hello, bodies, cuts, limits, forged packets, a full socket, drain."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from aioquic.asyncio import QuicConnectionProtocol
from aioquic.asyncio import connect as quic_connect
from aioquic.h3.connection import H3_ALPN, H3Connection
from aioquic.h3.events import DataReceived, HeadersReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import ConnectionTerminated, QuicEvent, StreamReset

from proxy.engine.events import Event
from proxy.engine.quic.endpoint import QuicEndpoint
from proxy.engine.quic.settings import QuicSettings
from proxy.engine.seam import EngineLimits, Handle, Transmit
from proxy.keys import Keyring
from proxy.listen.bind import bind_udp
from proxy.listen.udp import UdpListener
from proxy.listen.udp_socket import UdpSocket
from proxy.snapshot import Limits
from tests.sim import engines
from tests.unit.listen.conftest import Authority
from tests.unit.listen.edge import HOST, LARGE, Edge, edge
from tests.unit.upstream.rig import until


class Client(QuicConnectionProtocol):
    def __init__(self, *values: Any, **named: Any) -> None:
        super().__init__(*values, **named)
        self.http = H3Connection(self._quic)
        self.status: dict[int, int] = {}
        self.bodies: dict[int, int] = {}
        self.ended: set[int] = set()
        self.terminated: ConnectionTerminated | None = None

    def quic_event_received(self, event: QuicEvent) -> None:
        if isinstance(event, ConnectionTerminated):
            self.terminated = event
        elif isinstance(event, StreamReset):
            self.ended.add(event.stream_id)
        for http in self.http.handle_event(event):
            if isinstance(http, HeadersReceived):
                self.status[http.stream_id] = int(dict(http.headers)[b":status"])
            elif isinstance(http, DataReceived):
                self.bodies[http.stream_id] = self.bodies.get(http.stream_id, 0) + len(http.data)
            if isinstance(http, HeadersReceived | DataReceived) and http.stream_ended:
                self.ended.add(http.stream_id)

    def ask(self, path: str, *, method: str = "GET", body: bytes | None = None) -> int:
        stream = self._quic.get_next_available_stream_id()
        fields = [(b":method", method.encode()), (b":scheme", b"https"), (b":authority", HOST.encode()), (b":path", path.encode())]
        self.http.send_headers(stream, fields, end_stream=body is None)
        if body is not None:
            self.http.send_data(stream, body, end_stream=True)
        self.transmit()
        return stream

    async def get(self, path: str, **values: Any) -> tuple[int, int]:
        stream = self.ask(path, **values)
        await until(lambda: stream in self.ended, 60)
        return self.status[stream], self.bodies.get(stream, 0)


class QuicEdge:
    """Adds a UDP listener to an edge, on the real clock, since QUIC has its own timers."""

    def __init__(self, made: Edge, host: str, engine: type[QuicEndpoint] = QuicEndpoint) -> None:
        self.made = made
        services = made.world.services
        services.clock = asyncio.get_running_loop().time
        sock = bind_udp((host, 0))
        self.port = sock.getsockname()[1]

        def endpoint(admit: Any) -> QuicEndpoint:
            limits = services.snapshot.limits.engine
            return engine(services.snapshot.sni.select, limits, QuicSettings(), Keyring.alone(b"s" * 32), admit=admit)

        self.udp = UdpListener(made.listener.listener, services, endpoint, made.limits, sock)
        self.udp.start()

    @contextlib.asynccontextmanager
    async def client(self, authority: Authority, **settings: Any) -> AsyncIterator[Client]:
        configuration = QuicConfiguration(is_client=True, alpn_protocols=H3_ALPN, server_name=HOST, verify_mode=ssl.CERT_NONE, **settings)
        async with quic_connect("127.0.0.1", self.port, configuration=configuration, create_protocol=Client) as client:
            assert isinstance(client, Client)
            yield client

    def stop(self) -> None:
        self.udp.abort()
        self.udp.close()
        assert self.udp.clients == {}
        assert self.udp._admitted == {}


@contextlib.asynccontextmanager
async def quic(
    authority: Authority, host: str = "127.0.0.1", engine: type[QuicEndpoint] = QuicEndpoint, **options: Any
) -> AsyncIterator[tuple[Edge, QuicEdge]]:
    async with edge(authority, **options) as made:
        both = QuicEdge(made, host, engine)
        try:
            yield made, both
        finally:
            made.app.release.set()
            both.stop()


@pytest.mark.parametrize("engine", engines.parameters())
@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::"])
async def test_hello_a_download_and_an_upload(authority: Authority, host: str, engine: engines.Engine) -> None:
    async with quic(authority, host, engine.load()) as (made, both), both.client(authority) as client:
        assert await client.get("/") == (200, 5)
        assert await client.get("/echo", method="POST", body=bytes(1_000_000)) == (200, 1_000_000)
        assert await client.get("/large") == (200, LARGE)
        assert made.count("http3_connections") == 1
        assert sum(made.world.meters.handshake_seconds.cell("quic").counts) == 1
        assert made.count("streams", "HTTP/3") == 3
        assert made.count("sni_resolutions", HOST) == 1
        assert made.world.records[0].client_address == "127.0.0.1"
        assert made.limits.connections == 1
        assert made.count("datagrams", "in") > 20
        assert made.count("datagrams", "out") > 20


@pytest.mark.parametrize("engine", engines.parameters())
async def test_what_a_connection_saw_of_the_network_is_counted_at_its_end(authority: Authority, engine: engines.Engine) -> None:
    async with quic(authority, engine=engine.load()) as (made, both):
        async with both.client(authority) as client:
            assert await client.get("/large") == (200, LARGE)
        await until(lambda: not both.udp.clients)
        meters = made.world.meters
        ended = int(engine.tells_stats)
        assert sum(meters.quic_round_trip.cell().counts) == sum(meters.quic_congestion_window.cell().counts) == ended
        assert made.count("quic_packets_sent") >= ended * LARGE / 65536
        assert 0 <= meters.quic_round_trip.cell().sum < 5


async def test_a_client_that_cuts_its_download_cuts_the_backends_work_and_not_its_neighbours(authority: Authority) -> None:
    async with quic(authority) as (made, both), both.client(authority) as client:
        stream = client.ask("/half")
        await until(lambda: client.bodies.get(stream))
        client._quic.stop_stream(stream, 0x10C)
        client.transmit()
        await asyncio.wait_for(made.app.cut.wait(), 5)
        assert await client.get("/") == (200, 5)
        assert made.count("stream_errors", "HTTP/3", "reset_by_client") == 1


async def test_a_backend_that_breaks_off_cuts_the_stream_only(authority: Authority) -> None:
    async with quic(authority) as (made, both), both.client(authority) as client:
        stream = client.ask("/broken")
        await until(lambda: client.bodies.get(stream))
        made.app.release.set()
        await until(lambda: stream in client.ended)
        assert await client.get("/hints") == (200, 6)


@pytest.mark.replaces
async def test_a_fault_of_one_exchange_is_500_and_the_connection_lives(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    async with quic(authority) as (made, both), both.client(authority) as client:
        table = type(made.world.host.site.routes)
        with monkeypatch.context() as patch:
            patch.setattr(table, "find", lambda *values: 1 // 0)
            assert (await client.get("/"))[0] == 500
        assert await client.get("/") == (200, 5)


@pytest.mark.replaces
async def test_a_fault_of_one_connection_ends_it_and_no_other(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    async with quic(authority) as (made, both), both.client(authority) as first, both.client(authority) as second:
        assert await first.get("/") == (200, 5)
        (victim, *_) = both.udp.clients.values()
        monkeypatch.setattr(victim, "deliver", lambda event: 1 // 0)
        first.ask("/")
        await until(lambda: first.terminated is not None)
        assert await second.get("/") == (200, 5)
        assert [event for event, _ in made.log.errors] == ["a QUIC connection failed"]


async def test_connections_over_the_limit_are_refused_and_a_place_is_given_back(authority: Authority) -> None:
    async with quic(authority, limits=Limits(1, 0, 0, 0, EngineLimits())) as (made, both):
        async with both.client(authority) as client:
            assert await client.get("/") == (200, 5)
            with pytest.raises(ConnectionError):
                async with both.client(authority):
                    pass
        await until(lambda: made.limits.connections == 0)
        async with both.client(authority) as client:
            assert await client.get("/") == (200, 5)


async def test_forged_first_packets_take_no_place(authority: Authority) -> None:
    async with quic(authority, limits=Limits(4, 0, 0, 0, EngineLimits())) as (made, both):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            for number in range(50):
                forged = b"\xc0\x00\x00\x00\x01\x08" + number.to_bytes(8, "big") + b"\x00\x00\x44\x90" + bytes(1200)
                sock.sendto(forged[:1200], ("127.0.0.1", both.port))
        await until(lambda: made.count("datagrams", "in") == 50)
        assert made.limits.connections == 0
        async with both.client(authority) as client:
            assert await client.get("/") == (200, 5)


class Narrow:
    """A socket that is full now and then, and whose path fails now and then."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.refused = 0
        self._turn = 0

    def sendto(self, *values: Any) -> int:
        self._take_turn()
        return self._sock.sendto(*values)

    def sendmsg(self, *values: Any) -> int:
        self._take_turn()
        return self._sock.sendmsg(*values)

    def _take_turn(self) -> None:
        self._turn += 1
        if self._turn % 9 == 0:
            self.refused += 1
            raise BlockingIOError
        if self._turn % 100 == 0:
            raise OSError(113, "No route to host")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)


async def test_a_full_socket_waits_and_loses_nothing(authority: Authority) -> None:
    async with quic(authority) as (_, both), both.client(authority) as client:
        narrow = both.udp._socket._sock = Narrow(both.udp._socket._sock)  # type: ignore[assignment]
        assert await client.get("/large") == (200, LARGE)
        assert narrow.refused > 0


class OwnIo(QuicEndpoint):
    """An engine that uses the descriptor itself, as ``FastEndpoint`` asks for; it finds the socket full now and then."""

    def __init__(self, *values: Any, **named: Any) -> None:
        super().__init__(*values, **named)
        self.datagrams_in = self.datagrams_out = self.full = 0
        self._left: list[Transmit] = []

    @contextlib.contextmanager
    def _socket(self, fd: int) -> Iterator[UdpSocket]:
        with socket.socket(fileno=os.dup(fd)) as sock:
            yield UdpSocket(sock, sock.getsockname()[:2])

    def receive_fd(self, fd: int, now: float) -> list[tuple[Handle, Event]]:
        with self._socket(fd) as sock:
            batch = sock.receive(16)
        self.datagrams_in += len(batch)
        return self.receive(batch, now)

    def transmit_fd(self, fd: int, now: float) -> bool:
        with self._socket(fd) as sock:
            self._left += self.take_datagrams(now)
            sock.queue(self._left[:4])
            sock.send()
            self.datagrams_out += sock.sent
        self._left = self._left[4:]
        self.full += bool(self._left)
        return not self._left


async def test_an_engine_that_does_its_own_io_gets_the_descriptor(authority: Authority) -> None:
    async with quic(authority, engine=OwnIo) as (made, both), both.client(authority) as client:
        assert await client.get("/large") == (200, LARGE)
        assert await client.get("/echo", method="POST", body=bytes(1_000_000)) == (200, 1_000_000)
        engine = both.udp.endpoint
        assert isinstance(engine, OwnIo)
        assert engine.full > 0
        assert made.count("datagrams", "in") == engine.datagrams_in > 800
        assert made.count("datagrams", "out") == engine.datagrams_out > LARGE / 1200


async def test_drain_finishes_what_runs_and_refuses_new_connections(authority: Authority) -> None:
    async with quic(authority) as (made, both), both.client(authority) as client:
        stream = client.ask("/hold")
        await until(lambda: made.app.seen)
        made.world.services.draining = True
        both.udp.drain()
        await asyncio.sleep(0)
        both.udp.drain()
        with pytest.raises(ConnectionError):
            async with both.client(authority):
                pass
        made.app.release.set()
        await until(lambda: stream in client.ended)
        assert client.status[stream] == 200
        await until(lambda: not both.udp.clients)


async def test_a_client_that_moves_is_known_under_its_new_address(authority: Authority) -> None:
    async with quic(authority) as (made, both), both.client(authority) as client:
        assert await client.get("/") == (200, 5)
        old = next(iter(both.udp.clients.values())).peer
        transport = client._transport
        loop = asyncio.get_running_loop()
        moved, _ = await loop.create_datagram_endpoint(lambda: Relay(client), local_addr=(transport.get_extra_info("sockname")[0], 0))
        client._transport = moved
        try:
            assert await client.get("/") == (200, 5)
            await until(lambda: next(iter(both.udp.clients.values())).peer != old)
            assert made.count("quic_path_changes", "rebinding") == 1
            assert made.count("quic_path_changes", "migration") == 0
        finally:
            client._transport = transport
            moved.close()


class Relay(asyncio.DatagramProtocol):
    def __init__(self, client: Client) -> None:
        self._client = client

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self._client.datagram_received(data, addr)
