"""UDP in: one socket, all QUIC connections of a listener behind one endpoint, and HTTP/3 on each.

Reads datagrams in batches with the address they were sent to (so that an answer leaves from there on a host with several), hands them to
the engine at once, and sends what the engine gives once for each turn of the loop. A full socket waits for writability; nothing is
dropped here. Decides nothing about requests.
"""

import asyncio
import contextlib
import ipaddress
import socket
import struct
from collections import deque
from collections.abc import Callable
from typing import TypeAlias

from balancer.affinity import connection_key
from proxy.engine.events import ConnectionClosed, ConnectionReady, Event, PathChanged
from proxy.engine.quic.endpoint import QuicEndpoint
from proxy.engine.seam import Datagram, Handle, Transmit
from proxy.errors import Reset
from proxy.listen.batch import joined
from proxy.listen.client import ClientStreams
from proxy.listen.limits import AcceptLimits
from proxy.message import Address, Headers
from proxy.observe import Cell
from proxy.services import Services
from proxy.snapshot import Listener, TlsProfile

BATCH = 64
"""Datagrams read before the engine works on them: enough to save calls, few enough to stay fair to TCP."""

DATAGRAM_BYTES = 65536
"""The largest datagram that UDP has: nothing is cut."""

SOCKET_BUFFER = 4 * 1024 * 1024
"""Asked of the kernel for each direction; it takes the smaller of this and rmem_max or wmem_max."""

MAX_UNSENT = 4096
"""Datagrams that wait for a full socket; beyond it the engine is not asked for more."""


MakeEndpoint: TypeAlias = Callable[[Callable[[Handle, Address], bool]], QuicEndpoint]
"""Makes the endpoint, given what asks whether a new connection may begin."""


class QuicClient(ClientStreams):
    """One client over QUIC."""

    def __init__(self, owner: "UdpListener", handle: Handle, ready: ConnectionReady) -> None:
        super().__init__(owner.services, owner.listener, ready.peer)
        self._owner = owner
        self._endpoint = owner.endpoint
        self._handle = handle
        assert isinstance(ready.tls_profile, TlsProfile)
        self.tls = ready.tls_profile
        self.sni = ready.sni
        self.affinity_key = connection_key(owner.services.secret, ready.original_destination_cid)
        self.speaks("HTTP/3")

    def respond(self, stream: int, status: int, headers: Headers, body: bytes) -> None:
        """See ``engine/seam.py``, as for all of these."""
        self._endpoint.respond(self._handle, stream, status, headers, body)
        self._owner.want_flush()

    def send_head(self, stream: int, status: int, headers: Headers, end: bool) -> None:
        """A response head."""
        self._endpoint.send_head(self._handle, stream, status, headers, end)
        self._owner.want_flush()

    def send_data(self, stream: int, data: bytes, end: bool) -> int:
        """Body bytes; returns what is queued for the stream."""
        queued = self._endpoint.send_data(self._handle, stream, data, end)
        self._owner.want_flush()
        return queued

    def send_trailers(self, stream: int, headers: Headers) -> None:
        """The end of a body, with trailers."""
        self._endpoint.send_trailers(self._handle, stream, headers)
        self._owner.want_flush()

    def inform(self, stream: int, status: int, headers: Headers) -> None:
        """A 1xx response."""
        self._endpoint.inform(self._handle, stream, status, headers)
        self._owner.want_flush()

    def consumed(self, stream: int, credit: int) -> None:
        """Credit for request body bytes."""
        self._endpoint.consumed(self._handle, stream, credit)
        self._owner.want_flush()

    def reset(self, stream: int, reason: Reset) -> None:
        """Cut one stream."""
        self.services.meters.stream_errors.cell(self.version, reason.value).value += 1
        self._endpoint.reset(self._handle, stream, reason)
        self._owner.want_flush()


class UdpListener:
    """One UDP socket with its endpoint."""

    def __init__(
        self, listener: Listener, services: Services, make_endpoint: MakeEndpoint, limits: AcceptLimits, sock: socket.socket
    ) -> None:
        self.listener = listener
        self.services = services
        self.endpoint = make_endpoint(self._admit)
        self.clients: dict[Handle, QuicClient] = {}
        self._admitted: dict[Handle, str] = {}
        self._limits = limits
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self._local: dict[bytes, str] = {}
        self._unsent: deque[Transmit] = deque()
        self._flush_scheduled = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due = 0.0
        self._closed = False
        meters = services.meters
        self._received: Cell = meters.datagrams.cell("in")
        self._sent: Cell = meters.datagrams.cell("out")

    def _admit(self, handle: Handle, peer: Address) -> bool:
        """Whether a new connection may begin; it is counted until it closes, under the address that it came from."""
        limit = self._limits.admit(peer[0], self.services.clock())
        if limit is not None:
            self.services.log.debug("connection refused", limit=limit, client=peer[0])
            return False
        self._admitted[handle] = peer[0]
        return True

    def start(self) -> None:
        """Read from the socket from now on."""
        self._loop.add_reader(self._sock.fileno(), self._readable)

    # In

    def _readable(self) -> None:
        batch: list[Datagram] = []
        sock = self._sock
        port = self.listener.address[1]
        for _ in range(BATCH):
            try:
                data, ancillary, _, source = sock.recvmsg(DATAGRAM_BYTES, 64)
            except (BlockingIOError, InterruptedError):
                break
            except OSError:
                continue  # an ICMP error of an earlier send: it belongs to no connection of ours
            batch.append(Datagram(data, _address(source), (self._destination(ancillary), port)))
        if batch:
            self._received.value += len(batch)
            try:
                self._deliver(self.endpoint.receive(batch, self.services.clock()))
            except Exception as error:  # the listener outlives a fault of its engine
                self.services.log.exception("the QUIC endpoint failed on a datagram", exc_info=error)
            self._flush()

    def _destination(self, ancillary: list[tuple[int, int, bytes]]) -> str:
        """The local address that a datagram was sent to, as text (memoised)."""
        for level, kind, data in ancillary:
            packed = b""
            if level == socket.IPPROTO_IP and kind == IP_PKTINFO:
                packed = data[8:12]
            elif level == socket.IPPROTO_IPV6 and kind == socket.IPV6_PKTINFO:
                packed = data[:16]
            if packed:
                text = self._local.get(packed)
                if text is None:
                    if len(self._local) > MAX_UNSENT:
                        self._local.clear()
                    text = self._local[packed] = str(ipaddress.ip_address(packed))
                return text
        return self.listener.address[0]

    def _deliver(self, events: list[tuple[Handle, Event]]) -> None:
        for handle, event in joined(events):
            try:
                self._deliver_one(handle, event)
            except Exception as error:  # one connection's fault is not its neighbours'
                self.services.log.exception("a QUIC connection failed", exc_info=error)
                self.endpoint.close(handle, Reset.INTERNAL)

    def _deliver_one(self, handle: Handle, event: Event) -> None:
        if isinstance(event, ConnectionReady):
            self._ready(handle, event)
            return
        client = self.clients.get(handle)
        if isinstance(event, ConnectionClosed):
            self._gone(handle, client, event)
        elif client is None:
            return
        elif isinstance(event, PathChanged):
            self.services.log.info("path changed", old=client.peer[0], new=event.peer[0], key=client.affinity_key.hex())
            self.services.meters.quic_path_changes.cell().value += 1
            client.peer = event.peer
        else:
            client.deliver(event)

    def _ready(self, handle: Handle, event: ConnectionReady) -> None:
        client = self.clients[handle] = QuicClient(self, handle, event)
        meters = self.services.meters
        assert client.tls is not None
        meters.sni_resolutions.cell(client.tls.domain).value += 1
        meters.http3_connections.cell().value += 1
        meters.connections.cell(self.listener.name, "HTTP/3").value += 1
        meters.connections_open.cell("HTTP/3").value += 1
        if self.services.draining:
            self.endpoint.goaway(handle)

    def _gone(self, handle: Handle, client: QuicClient | None, event: ConnectionClosed) -> None:
        meters = self.services.meters
        admitted = self._admitted.pop(handle, None)
        if admitted is not None:
            self._limits.release(admitted)
        if client is None:
            meters.handshake_failures.cell("quic", event.error or "closed").value += 1
            self.services.log.debug("handshake failed", reason=event.error, detail=event.detail)
        else:
            del self.clients[handle]
            meters.connections_open.cell("HTTP/3").value -= 1
            if event.error:
                meters.connection_errors.cell("HTTP/3", event.error).value += 1
            client.lose_exchanges(event.detail or event.error or "connection closed")

    # Out

    def want_flush(self) -> None:
        """Send at the end of this turn of the loop."""
        if not self._flush_scheduled and not self._closed:
            self._flush_scheduled = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_scheduled = False
        if self._closed:
            return
        try:
            self._send_all()
        except Exception as error:  # the listener outlives a fault of its engine
            self.services.log.exception("the QUIC endpoint failed", exc_info=error)
        self._set_timer()

    def _send_all(self) -> None:
        while len(self._unsent) < MAX_UNSENT:
            datagrams = self.endpoint.take_datagrams(self.services.clock())
            events = self.endpoint.take_events()
            self._unsent.extend(datagrams)
            if not self._send_unsent():
                self._loop.add_writer(self._sock.fileno(), self._writable)
            self._deliver(events)
            if not datagrams and not events:
                break

    def _send_unsent(self) -> bool:
        """Send until nothing is left (True) or the socket is full (False)."""
        unsent = self._unsent
        sock = self._sock
        wildcard = self.listener.address[0] in {"0.0.0.0", "::"}  # noqa: S104  # compared with, not bound to
        while unsent:
            transmit = unsent[0]
            try:
                if wildcard and transmit.local[0] != self.listener.address[0]:
                    sock.sendmsg([transmit.data], _from(transmit.local[0], sock.family), 0, _sockaddr(transmit.peer, sock.family))
                else:
                    sock.sendto(transmit.data, _sockaddr(transmit.peer, sock.family))
            except (BlockingIOError, InterruptedError):
                return False
            except OSError as error:
                # this path is not to be reached: loss detection deals with it
                self.services.log.debug("a datagram could not be sent", peer=transmit.peer[0], error=str(error))
            unsent.popleft()
            self._sent.value += 1
        return True

    def _writable(self) -> None:
        if self._send_unsent():
            self._loop.remove_writer(self._sock.fileno())
            self._flush()

    # Time

    def _set_timer(self) -> None:
        due = self.endpoint.deadline()
        if due is None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            return
        if self._timer is not None:
            if self._timer_due == due:
                return
            self._timer.cancel()
        self._timer_due = due
        self._timer = self._loop.call_later(max(0.0, due - self.services.clock()), self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        try:
            self._deliver(self.endpoint.on_deadline(self.services.clock()))
        except Exception as error:  # the listener outlives a fault of its engine
            self.services.log.exception("the QUIC endpoint failed on a timer", exc_info=error)
        self._flush()

    # Life

    def drain(self) -> None:
        """Refuse new connections and tell every present one to finish."""
        self.endpoint.refuse_new()
        for handle in list(self.clients):
            self.endpoint.goaway(handle)
        self.want_flush()

    def abort(self) -> None:
        """Close what is left."""
        for handle in list(self.clients):
            self.endpoint.close(handle, Reset.NO_ERROR)
        self._flush()

    def close(self) -> None:
        """Let go of the socket."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        with contextlib.suppress(OSError):
            self._loop.remove_reader(self._sock.fileno())
            self._loop.remove_writer(self._sock.fileno())
        self._sock.close()


IP_PKTINFO = getattr(socket, "IP_PKTINFO", 8)
"""Linux's number; Python names it from 3.14 on."""


def bind_udp(address: Address) -> socket.socket:
    """A bound UDP socket that tells the destination of each datagram. Raises OSError."""
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_DGRAM)
    try:
        sock.setblocking(False)
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            sock.setsockopt(socket.SOL_SOCKET, option, SOCKET_BUFFER)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
        sock.bind(address)
    except BaseException:
        sock.close()
        raise
    return sock


def _address(source: tuple[str, int] | tuple[str, int, int, int]) -> Address:
    host = source[0]
    return (host[7:] if host.startswith("::ffff:") and "." in host else host, source[1])


def _sockaddr(peer: Address, family: int) -> Address:
    if family == socket.AF_INET6 and ":" not in peer[0]:
        return ("::ffff:" + peer[0], peer[1])
    return peer


def _from(local: str, family: int) -> list[tuple[int, int, bytes]]:
    """The control message that makes *local* the source address."""
    packed = ipaddress.ip_address(local).packed
    if len(packed) == 4:
        if family == socket.AF_INET6:
            packed = b"\0" * 10 + b"\xff\xff" + packed
        else:
            return [(socket.IPPROTO_IP, IP_PKTINFO, struct.pack("=I4s4s", 0, packed, b"\0" * 4))]
    return [(socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, packed + struct.pack("=I", 0))]
