"""Workers that share a port: datagrams that came to the wrong one are handed over, and clients notice nothing."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from aioquic.h3.connection import H3_ALPN, H3Connection
from aioquic.h3.events import DataReceived, HeadersReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.events import ConnectionTerminated

from proxy.engine.quic.endpoint import QuicEndpoint
from proxy.engine.quic.settings import QuicSettings
from proxy.engine.seam import Datagram
from proxy.keys import Keyring
from proxy.listen.bind import pair_for_strays
from proxy.listen.handover import Handover
from proxy.listen.steering import Steering, attach
from proxy.listen.udp import UdpListener
from tests.sim import engines
from tests.unit.listen.conftest import Authority
from tests.unit.listen.edge import HOST, Edge, edge
from tests.unit.listen.group import bind_group
from tests.unit.upstream.rig import until

KEY = 0x5EED1E55
UPLOAD = 300_000

# The way from worker to worker


@pytest.fixture
def ways() -> Iterator[list[Handover]]:
    """Of three workers."""
    made = handovers(3)
    yield made
    for handover in made:
        handover.close()


def handovers(count: int) -> list[Handover]:
    """As the supervisor makes them: each worker has copies of what others send to."""
    pairs = [pair_for_strays() for _ in range(count)]
    made = []
    for slot, (receiving, _) in enumerate(pairs):
        made.append(Handover(receiving, {other: sending.dup() for other, (_, sending) in enumerate(pairs) if other != slot}))
    for _, sending in pairs:
        sending.close()
    return made


@pytest.mark.parametrize(
    ("peer", "local"),
    [(("203.0.113.9", 999), ("192.0.2.1", 443)), (("2001:db8::9", 65535), ("2001:db8::1", 1)), (("fe80::1", 5), ("::1", 6))],
)
def test_a_datagram_arrives_as_it_was(ways: list[Handover], peer: tuple[str, int], local: tuple[str, int]) -> None:
    datagrams = [Datagram(bytes([size % 251]) * size, peer, local) for size in (1, 21, 1200, 9000, 65527)]
    for datagram in datagrams:
        ways[0].send(2, datagram)
    assert ways[2].receive(2) == datagrams[:2]
    assert ways[2].receive(10) == datagrams[2:]
    assert ways[2].receive(10) == ways[1].receive(10) == ways[0].receive(10) == []
    assert [(way.sent, way.received, way.dropped) for way in ways] == [(5, 0, 0), (0, 0, 0), (0, 5, 0)]


def test_many_wait_and_a_full_socket_drops_and_counts(ways: list[Handover]) -> None:
    datagram = Datagram(bytes(1200), ("203.0.113.9", 999), ("192.0.2.1", 443))
    for _ in range(20_000):
        ways[0].send(1, datagram)
    assert ways[0].dropped > 0
    assert ways[0].sent >= 64  # a batch of GRO
    ways[2].send(1, datagram)  # the buffer is of the end that all others share
    assert ways[2].dropped == 1
    assert len(ways[1].receive(30_000)) == ways[0].sent
    ways[2].send(1, datagram)
    assert ways[1].receive(1) == [datagram]


def test_what_is_no_datagram_of_ours_is_dropped(ways: list[Handover]) -> None:
    datagram = Datagram(b"data", ("203.0.113.9", 999), ("192.0.2.1", 443))
    ways[0].send(1, datagram)
    written = ways[1]._receiving.recv(100)
    to = ways[0]._sending[1]
    for wrong in (b"", written[:1], written[:-4], b"\x02" + written[1:], b"\0" * 100):
        to.send(wrong)
    to.send(written)
    assert ways[1].receive(10) == [datagram]
    assert (ways[1].received, ways[1].dropped) == (1, 5)


def test_who_is_not_there_gets_nothing(ways: list[Handover]) -> None:
    datagram = Datagram(b"data", ("203.0.113.9", 999), ("192.0.2.1", 443))
    ways[0].send(9, datagram)
    ways[1].close()
    ways[0].send(1, datagram)
    assert (ways[0].sent, ways[0].dropped) == (0, 2)


# Listeners of one port


class Workers:
    """A listener for each slot, all on one port, with the backend of an edge behind them."""

    def __init__(self, made: Edge, engine: type[QuicEndpoint], count: int, *, share: bool = True, **settings: Any) -> None:
        self.made = made
        self.sockets = bind_group("127.0.0.1", count)
        self.address = self.sockets[0].getsockname()
        services = made.world.services
        services.clock = asyncio.get_running_loop().time
        self.listeners = []
        for slot, sock in enumerate(self.sockets):

            def endpoint(admit: Any, slot: int = slot) -> QuicEndpoint:
                limits = services.snapshot.limits.engine
                quic = QuicSettings(slot=slot, **settings)
                return engine(services.snapshot.sni.select, limits, quic, Keyring.alone(b"s" * 32), admit=admit)

            self.listeners.append(UdpListener(made.listener.listener, services, endpoint, made.limits, sock))
        if share:
            for slot, handover in enumerate(handovers(count)):
                self.listeners[slot].share(handover, frozenset(range(count)) - {slot})
        for listener in self.listeners:
            listener.start()
        self.steer(range(count))

    def steer(self, accepting: Any) -> None:
        live = {slot: slot for slot in range(len(self.listeners))}
        attach(self.sockets[0], Steering(live, accepting, KEY, {}).program())

    def total(self, name: str, *labels: str) -> float:
        """Of a metric, over all."""
        for listener in self.listeners:
            listener.show()
        return self.made.count(name, *labels)

    def strays(self) -> tuple[float, float, float]:
        return tuple(self.total("quic_strays", result) for result in ("sent", "received", "dropped"))  # type: ignore[return-value]

    def lost(self) -> tuple[float, float]:
        """Datagrams that went nowhere, and connections that were told to be gone."""
        return self.total("quic_dropped"), self.total("quic_resets_sent")

    def stop(self) -> None:
        for listener in self.listeners:
            listener.abort()
            listener.close()
            assert listener.clients == {}
            assert listener._admitted == {}


@contextlib.asynccontextmanager
async def workers(authority: Authority, engine: engines.Engine, count: int, **settings: Any) -> AsyncIterator[Workers]:
    async with edge(authority) as made:
        both = Workers(made, engine.load(), count, **settings)
        try:
            yield both
        finally:
            both.stop()


class Connection:
    """One of a client's."""

    def __init__(self, address: tuple[str, int], now: float) -> None:
        configuration = QuicConfiguration(is_client=True, alpn_protocols=H3_ALPN, server_name=HOST, verify_mode=ssl.CERT_NONE)
        self.quic = QuicConnection(configuration=configuration)
        self.http = H3Connection(self.quic)
        self.bodies: dict[int, int] = {}
        self.ended: set[int] = set()
        self.status: dict[int, int] = {}
        self.terminated: ConnectionTerminated | None = None
        self.quic.connect(address, now=now)

    @property
    def slot(self) -> int:
        return self.quic._peer_cid.cid[-1]

    def ask(self, path: str, body: bytes | None = None) -> int:
        stream = self.quic.get_next_available_stream_id()
        method = b"GET" if body is None else b"POST"
        fields = [(b":method", method), (b":scheme", b"https"), (b":authority", HOST.encode()), (b":path", path.encode())]
        self.http.send_headers(stream, fields, end_stream=body is None)
        if body is not None:
            self.http.send_data(stream, body, end_stream=True)
        return stream

    def take(self) -> None:
        while (event := self.quic.next_event()) is not None:
            if isinstance(event, ConnectionTerminated):
                self.terminated = event
            for told in self.http.handle_event(event):
                if isinstance(told, HeadersReceived):
                    self.status[told.stream_id] = int(dict(told.headers)[b":status"])
                elif isinstance(told, DataReceived):
                    self.bodies[told.stream_id] = self.bodies.get(told.stream_id, 0) + len(told.data)
                if isinstance(told, HeadersReceived | DataReceived) and told.stream_ended:
                    self.ended.add(told.stream_id)


class Socket:
    """One address of a client, from which any number of connections speak. Datagrams of one size leave as one, whose ever they are (GSO):
    so they come to the server as they do where GRO has merged them."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.address = address
        self.loop = asyncio.get_running_loop()
        self.connections: list[Connection] = []
        self.merged = 0
        self.timer: asyncio.TimerHandle | None = None
        self.sock = self._open()

    def _open(self) -> socket.socket:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * 1024 * 1024)
        sock.setblocking(False)
        sock.connect(self.address)
        self.loop.add_reader(sock.fileno(), self.readable)
        return sock

    def close(self) -> None:
        self.loop.remove_reader(self.sock.fileno())
        self.sock.close()
        if self.timer is not None:
            self.timer.cancel()

    def rebind(self) -> None:
        """A NAT gives another port; what is on its way to the old one is lost."""
        self.loop.remove_reader(self.sock.fileno())
        self.sock.close()
        self.sock = self._open()

    async def connect(self) -> Connection:
        connection = Connection(self.address, self.loop.time())
        self.connections.append(connection)
        self.flush()
        await until(lambda: connection.quic._handshake_confirmed, 20)
        return connection

    def readable(self) -> None:
        with contextlib.suppress(BlockingIOError, ConnectionRefusedError):
            while True:
                data = self.sock.recv(65536)
                cid = data[6 : 6 + data[5]] if data[0] & 0x80 else data[1:9]
                for connection in self.connections:
                    if cid in {known.cid for known in connection.quic._host_cids}:
                        connection.quic.receive_datagram(data, self.address, self.loop.time())
                        connection.take()
                        break
        self.flush()

    def flush(self) -> None:
        now = self.loop.time()
        flights = [[data for data, _ in connection.quic.datagrams_to_send(now)] for connection in self.connections]
        turns = (data for turn in itertools.zip_longest(*flights) for data in turn if data)
        for _, group in itertools.groupby(turns, len):
            self.send(list(group))
        dues = [due for connection in self.connections if (due := connection.quic.get_timer()) is not None]
        if self.timer is not None:
            self.timer.cancel()
        self.timer = self.loop.call_at(min(dues), self.due) if dues else None

    def send(self, group: list[bytes]) -> None:
        while group:
            some, group = group[:40], group[40:]
            self.merged += len(some) > 1
            with contextlib.suppress(ConnectionRefusedError):
                self.sock.sendmsg(some, [(17, 103, struct.pack("=H", len(some[0])))] if len(some) > 1 else [])

    def due(self) -> None:
        now = self.loop.time()
        for connection in self.connections:
            due = connection.quic.get_timer()
            if due is not None and due <= now:
                connection.quic.handle_timer(now)
                connection.take()
        self.flush()


@contextlib.asynccontextmanager
async def client(address: tuple[str, int]) -> AsyncIterator[Socket]:
    made = Socket(address)
    try:
        yield made
    finally:
        made.close()


async def two_of_different_workers(one: Socket) -> tuple[Connection, Connection]:
    first = await one.connect()
    for _ in range(30):
        second = await one.connect()
        if second.slot != first.slot:
            one.connections = [first, second]
            return first, second
        second.quic.close()
        one.flush()
        one.connections.remove(second)
    raise AssertionError("all new connections come to one worker")


every_engine = pytest.mark.parametrize("engine", engines.parameters())


@every_engine
async def test_two_connections_of_one_address_lose_nothing_though_they_are_merged(authority: Authority, engine: engines.Engine) -> None:
    async with workers(authority, engine, 2) as both, client(both.address) as one:
        pair = await two_of_different_workers(one)
        before = both.lost()
        for _ in range(3):
            streams = [connection.ask("/echo", bytes(UPLOAD)) for connection in pair]
            one.flush()
            for connection, stream in zip(pair, streams, strict=True):
                await until(lambda: stream in connection.ended or connection.terminated, 30)  # noqa: B023  # run within the turn
                assert connection.terminated is None
                assert (connection.status[stream], connection.bodies[stream]) == (200, UPLOAD)
        assert one.merged > 10
        await until(lambda: both.strays()[0] == both.strays()[1], 10)  # the last one may be under way between the workers
        sent, _, dropped = both.strays()
        assert sent > 20
        assert dropped == 0
        assert both.lost() == before
        assert sorted(len(listener.clients) for listener in both.listeners) >= [1, 1]


@every_engine
async def test_without_it_such_connections_would_be_told_that_they_are_gone(authority: Authority, engine: engines.Engine) -> None:
    """A test of the test above: its datagrams do come to the wrong worker."""
    async with workers(authority, engine, 2, share=False) as both, client(both.address) as one:
        pair = await two_of_different_workers(one)
        merged = one.merged
        for _ in range(50):
            for connection in pair:
                connection.quic.send_ping(1)
            one.flush()
            if one.merged > merged:
                break
            await asyncio.sleep(0.02)  # one of them has more to say, so that theirs are not of one size; bounded
        assert one.merged > merged
        await until(lambda: both.total("quic_resets_sent") > 0, 30)
        assert both.strays() == (0, 0, 0)


@every_engine
async def test_clients_whose_port_changes_stay_with_their_worker_whoever_accepts(authority: Authority, engine: engines.Engine) -> None:
    async with workers(authority, engine, 4) as all_four, contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(client(all_four.address)) for _ in range(12)]
        connections = [await one.connect() for one in clients]
        slots = [connection.slot for connection in connections]
        assert len(set(slots)) >= 3
        for number, accepting in enumerate(({0}, {1, 2}, {3}, {0, 1, 2, 3}), 1):
            streams = [connection.ask("/echo", bytes(20_000)) for connection in connections]
            for one in clients:
                one.flush()
                one.rebind()
            all_four.steer(accepting)
            for connection, one in zip(connections, clients, strict=True):
                connection.quic.send_ping(number)
                one.flush()
            for connection, stream in zip(connections, streams, strict=True):
                await until(lambda: stream in connection.ended or connection.terminated, 30)  # noqa: B023  # run within the turn
                assert connection.terminated is None
                assert connection.bodies[stream] == 20_000
        assert [connection.slot for connection in connections] == slots
        assert all_four.lost() == (0, 0)
        assert all_four.strays() == (0, 0, 0)
        assert all_four.total("quic_path_changes", "rebinding") >= 12


@every_engine
async def test_a_retry_is_answered_to_who_asked_and_all_is_well(authority: Authority, engine: engines.Engine) -> None:
    async with workers(authority, engine, 4, retry="always") as all_four, client(all_four.address) as one:
        for _ in range(10):
            connection = await one.connect()
            assert connection.quic._retry_count == 1
            assert connection.quic._retry_source_connection_id is not None
            assert connection.quic._retry_source_connection_id[-1] == connection.slot
        assert all_four.total("quic_tokens", "valid") == 10
        assert all_four.lost() == (0, 0)


@every_engine
async def test_what_was_of_a_worker_that_is_gone_is_told_so_by_another(authority: Authority, engine: engines.Engine) -> None:
    async with workers(authority, engine, 2) as both, client(both.address) as one:
        connection = await one.connect()
        gone = connection.slot
        both.listeners[1 - gone].know(frozenset())
        attach(both.sockets[0], Steering({1 - gone: 1 - gone}, {1 - gone}, KEY, {}).program())
        connection.quic.send_ping(1)
        one.flush()
        await until(lambda: both.total("quic_resets_sent") > 0, 10)  # aioquic's client knows no resets
        one.connections.remove(connection)
        assert (await one.connect()).slot == 1 - gone
