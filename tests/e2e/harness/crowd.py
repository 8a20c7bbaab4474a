"""Many QUIC clients for little: connections by aioquic without its event loop's machinery, several to a socket, as behind one NAT port."""

import asyncio
import contextlib
import socket
import struct
import time
from collections.abc import Callable, Iterable
from typing import Any

from aioquic.h3.connection import H3_ALPN, H3Connection
from aioquic.h3.events import HeadersReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.events import ConnectionIdIssued, ConnectionTerminated, PingAcknowledged, ProtocolNegotiated

from harness.authority import Authority
from harness.spoken import note

UDP_SEGMENT = 103  # of linux/udp.h


async def until(condition: Callable[[], bool], what: str, limit: float = 300) -> None:
    """Wait for *condition*, at most *limit* seconds: a bound, far above what a busy machine needs."""
    end = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < end, f"never: {what}"
        await asyncio.sleep(0.05)  # many connections have no one event


class One:
    """One connection."""

    def __init__(self, quic: QuicConnection) -> None:
        self.quic = quic
        self.http: H3Connection | None = None
        self.pings = 0
        self.acknowledged = 0
        self.answers: dict[int, dict[str, str]] = {}
        self.terminated: ConnectionTerminated | None = None

    def ask(self, path: str, host: str, *, method: str = "GET", end: bool = True, fields: Iterable[tuple[str, str]] = ()) -> int:
        """Begin a request, with header *fields* besides; ``end=False``: its body goes on."""
        assert self.http is not None
        stream = self.quic.get_next_available_stream_id()
        head = ((b":method", method.encode()), (b":scheme", b"https"), (b":authority", host.encode()), (b":path", path.encode()))
        more = [(name.encode(), value.encode()) for name, value in fields]
        self.http.send_headers(stream, [*head, *more], end_stream=end)
        return stream


class Port:
    """A socket, and the connections that share it."""

    def __init__(self, authority: Authority, port: int, host: str, count: int, sni: str) -> None:
        note("HTTP/3")
        self._host, self._server, self._loop = host, ("127.0.0.1", port), asyncio.get_running_loop()
        self._by_id: dict[bytes, One] = {}
        self.sock = self._bind()
        self.ones = []
        for _ in range(count):
            configuration = QuicConfiguration(is_client=True, alpn_protocols=H3_ALPN, server_name=sni, idle_timeout=1200)
            configuration.load_verify_locations(cafile=str(authority.file))
            one = One(QuicConnection(configuration=configuration))
            self._by_id[one.quic.host_cid] = one
            one.quic.connect(self._server, now=time.monotonic())
            self.ones.append(one)
        self._timer: asyncio.TimerHandle | None = None
        self.flush()

    def _bind(self) -> socket.socket:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.setblocking(False)
        sock.bind((self._host, 0))
        sock.connect(self._server)
        self._loop.add_reader(sock, self._receive)
        return sock

    def rebind(self) -> None:
        """From now on from another port."""
        self._loop.remove_reader(self.sock)
        self.sock.close()
        self.sock = self._bind()

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._loop.remove_reader(self.sock)
        self.sock.close()

    def _late(self) -> None:
        """The time of one of them has come."""
        self._timer = None
        now = time.monotonic()
        for one in self.ones:
            if (due := one.quic.get_timer()) is not None and due <= now:
                one.quic.handle_timer(now)
                self._events(one)
        self.flush()

    def _made(self) -> list[bytes]:
        now = time.monotonic()
        return [data for one in self.ones for data, _ in one.quic.datagrams_to_send(now)]

    def flush(self) -> None:
        """Send what there is, a datagram at a time."""
        for data in self._made():
            with contextlib.suppress(OSError):  # lost, as on any path
                self.sock.send(data)
        self._wait()

    def _wait(self) -> None:
        due = min((due for one in self.ones if (due := one.quic.get_timer()) is not None), default=None)
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if due is None else self._loop.call_at(due, self._late)  # the loop's clock is the monotonic one, as theirs

    def ping(self) -> None:
        """A PING of each, together in one system call where they are of one size: they come as one batch (GRO)."""
        for one in self.ones:
            assert one.terminated is None, one.terminated
            one.pings += 1
            one.quic.send_ping(one.pings)
        made = self._made()
        size = len(made[0])
        batch = [data for data in made if len(data) == size]
        self.sock.sendmsg([b"".join(batch)], [(socket.IPPROTO_UDP, UDP_SEGMENT, struct.pack("=H", size))])
        for data in made:
            if len(data) != size:
                self.sock.send(data)
        self._wait()

    def _receive(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                data = self.sock.recv(65536)
                one = self._by_id.get(data[6 : 6 + data[5]] if data[0] & 0x80 else data[1:9])
                if one is None:
                    continue
                one.quic.receive_datagram(data, self._server, time.monotonic())
                self._events(one)
        self.flush()

    def _events(self, one: One) -> None:
        while (event := one.quic.next_event()) is not None:
            if isinstance(event, ConnectionIdIssued):
                self._by_id[event.connection_id] = one
            elif isinstance(event, ProtocolNegotiated):
                one.http = H3Connection(one.quic)
            elif isinstance(event, PingAcknowledged):
                one.acknowledged += 1
            elif isinstance(event, ConnectionTerminated):
                one.terminated = event
            if one.http is not None:
                for told in one.http.handle_event(event):
                    self._take(one, told)

    def _take(self, one: One, told: Any) -> None:
        if isinstance(told, HeadersReceived):
            one.answers[told.stream_id] = {name.decode(): value.decode("latin-1") for name, value in told.headers}
