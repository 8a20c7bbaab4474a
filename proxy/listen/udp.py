"""UDP in: one socket, all QUIC connections of a listener behind one endpoint, and HTTP/3 on each.

Lets the engine have what has come at once, and send what it has once for each turn of the loop (``datagrams.py`` says by what way). A full
socket waits for writability; nothing is dropped here. Decides nothing about requests.
"""

import asyncio
import contextlib
import socket
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TypeAlias

from proxy.cluster.relays import is_relayed
from proxy.counters import Cell
from proxy.early import EarlyRequests
from proxy.engine.events import (
    ConnectionClosed,
    ConnectionIdsRenewed,
    ConnectionReady,
    ConnectionStats,
    Event,
    HandshakeCompleted,
    PathChanged,
    RequestHead,
)
from proxy.engine.quic.ids import Routable
from proxy.engine.seam import LOW_WATER, Datagram, Endpoint, Handle, Transmit
from proxy.errors import Reset
from proxy.listen.age import begin_age
from proxy.listen.batch import joined
from proxy.listen.client import ClientStreams
from proxy.listen.datagrams import BATCH, Datagrams, Fast, Portable, is_fast
from proxy.listen.envelopes import Envelopes
from proxy.listen.handover import Handover
from proxy.listen.limits import AcceptLimits
from proxy.listen.totals import Totals
from proxy.listen.udp_socket import UdpSocket
from proxy.message import Address, Headers
from proxy.services import Services
from proxy.snapshot import Listener
from proxy.sni import TlsProfile

RENEWALS = 32
"""Connections that are given other connection IDs at once, after a change of their form: some ms, with their packets."""

MAX_PASSED_ON = 4096
"""Datagrams of other instances that wait for a full socket; what comes beyond is dropped, and loss detection deals with it."""

RENEW_EVERY = 0.01
"""Seconds between such turns: 10,000 connections are done in a few seconds, beside their requests."""

MakeEndpoint: TypeAlias = Callable[[Callable[[Handle, Address], bool]], Endpoint]
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
        self.affinity_key = ready.affinity
        self.early = EarlyRequests(owner.services, self, vouched=ready.vouched) if ready.early else None
        """What waits for the end of the handshake; None once that is complete."""
        self.speaks("HTTP/3")
        self.age = begin_age(self.services, self.version, self._too_old, 2)

    def await_handshake(self, stream: int) -> bool:
        """See ``stream.ClientConnection``."""
        if self.early is None:
            return False
        self.early.repeat(stream)
        return True

    def handshake_completed(self) -> None:
        """Let those go on that waited for it."""
        early, self.early = self.early, None
        if early is None:
            return
        for event in early.release():
            self.deliver(event)
        for stream in early.repeated:
            exchange = self.exchanges.get(stream)
            if exchange is not None:
                try:
                    exchange.on_handshake_completed()
                except Exception as error:  # noqa: BLE001  # one exchange's fault is not its neighbours'
                    exchange.on_internal_error(error)

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
        if queued > LOW_WATER:
            self.services.output.queued(len(data))
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

    def _too_old(self) -> None:
        try:
            self._endpoint.goaway(self._handle)
        except Exception as error:  # the wheel turns for everybody
            self.services.log.exception("a QUIC connection failed", exc_info=error)
            self._endpoint.close(self._handle, Reset.INTERNAL)
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
        self._admitted: dict[Handle, tuple[str, float]] = {}
        self._leaving: set[Handle] = set()
        self._limits = limits
        self._socket = UdpSocket(sock, listener.address)
        self._datagrams: Datagrams = (
            Fast(self.endpoint, sock.fileno()) if is_fast(self.endpoint) else Portable(self.endpoint, self._socket, services.log)
        )
        self._handover: Handover | None = None
        self._envelopes: Envelopes | None = None
        self._counted_in = self._counted_out = 0
        self._totals = Totals()
        self._asking = self.endpoint.first_packets(services.clock()).asking
        self._waits_for_room = False
        self._loop = asyncio.get_running_loop()
        self._flush_scheduled = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due = 0.0
        self._closed = False
        meters = services.meters
        self._received: Cell = meters.datagrams.cell("in")
        self._sent: Cell = meters.datagrams.cell("out")

    def show(self) -> None:
        """A hook for ``Metrics.before_read``: what the endpoint counts by itself."""
        meters, endpoint, tell = self.services.meters, self.endpoint, self._totals.tell
        tell(meters.quic_dropped.cell(), endpoint.dropped)
        tell(meters.quic_resets_sent.cell(), endpoint.resets_sent)
        tell(meters.quic_moves_refused.cell(), endpoint.moves_refused)
        meters.quic_handshakes.cell(self.listener.name).value = float(endpoint.handshakes)
        meters.quic_connections_to_renew.cell(self.listener.name).value = float(endpoint.connections_to_renew)
        tell(meters.quic_kernel_drops.cell(self.listener.name), self._socket.kernel_drops())
        for algorithm, count in endpoint.certificates_compressed.items():
            tell(meters.quic_certificates_compressed.cell(algorithm), count)
        meters.quic_output.cell(self.listener.name).value = float(endpoint.output_bytes)
        if (handover := self._handover) is not None:
            tell(meters.quic_strays.cell("sent"), handover.sent)
            tell(meters.quic_strays.cell("received"), handover.received)
            tell(meters.quic_strays.cell("dropped"), handover.dropped)
        if handover is not None or self._envelopes is not None:
            tell(meters.quic_strays.cell("dropped"), endpoint.strays_dropped)
            tell(meters.misrouted.cell("looped"), endpoint.looped)
        first = endpoint.first_packets(self.services.clock())
        tell(meters.quic_retries.cell(), first.retries)
        meters.quic_retry.cell(self.listener.name).value = float(first.asking)
        for result, count in first.tokens.items():
            tell(meters.quic_tokens.cell(result), count)
        for limit, count in first.limits_hit.items():
            tell(meters.limits_hit.cell(limit), count)

    def look(self) -> None:
        """Say when clients begin to be asked for their address, and when they are no longer. For now and then, not for every datagram."""
        asking = self.endpoint.first_packets(self.services.clock()).asking
        if asking == self._asking:
            return
        self._asking = asking
        if asking:
            handshakes = self.endpoint.handshakes
            self.services.log.warning("new QUIC clients have to prove their address", listener=self.listener.name, handshakes=handshakes)
        else:
            self.services.log.info("new QUIC clients need not prove their address any more", listener=self.listener.name)

    def _admit(self, handle: Handle, peer: Address) -> bool:
        """Whether a new connection may begin; it is counted until it closes, under the address that it came from."""
        now = self.services.clock()
        limit = self._limits.admit(peer[0], now)
        if limit is not None:
            self.services.log.debug("connection refused", limit=limit, client=peer[0])
            return False
        self._admitted[handle] = (peer[0], now)
        return True

    def start(self) -> None:
        """Read from the socket from now on."""
        self.services.output.holders.append(self)
        self._loop.add_reader(self._socket.fileno(), self._readable)

    @property
    def output_bytes(self) -> int:
        """Bytes of answers that wait for clients, of all connections."""
        return self.endpoint.output_bytes

    @property
    def holds(self) -> int:
        """How often a backend was told to stop at once, since its connection has as much waiting as it may."""
        return self.endpoint.holds

    def bound_output(self, most: int) -> None:
        """From now on each connection may have *most* bytes waiting."""
        self.endpoint.bound_output(most)

    # Other workers of the port

    def share(self, handover: Handover, siblings: frozenset[int]) -> None:
        """Hand over to the workers of the slots *siblings* what is theirs, and take what they hand over. *handover* ends with this."""
        self._handover = handover
        self.endpoint.siblings = siblings
        self._loop.add_reader(handover.fileno(), self._handed_over)

    def know(self, siblings: frozenset[int]) -> None:
        """Others are alive from now on.

        What names a slot that is not among them is answered with a stateless reset: a worker is known here before it has connections,
        and until it has none.
        """
        self.endpoint.siblings = siblings

    def _hand_over(self) -> None:
        for slot, datagram in self.endpoint.take_strays():
            if self._envelopes is not None and is_relayed(datagram.local):
                self._envelopes.hand_over(slot, datagram)
            elif self._handover is not None:
                self._handover.send(slot, datagram)

    # Other instances

    def join(self, envelopes: Envelopes) -> None:
        """Send to other instances what is theirs, and answer through relays those who came by them."""
        self._envelopes = envelopes
        self._datagrams.answer = envelopes.answer
        self.endpoint.others = envelopes if envelopes.peers.wanted else None

    @property
    def port(self) -> int:
        """See ``envelopes.Ends``, as for the next three."""
        return self.listener.address[1]

    def has(self, local: Address) -> bool:
        """Whether *local* is an address of the socket."""
        host, port = self.listener.address
        return port == local[1] and host in {local[0], "0.0.0.0", "::"}  # noqa: S104  # compared with, not bound to

    def take_relayed(self, datagrams: Sequence[Datagram], *, handed_over: bool) -> None:
        """What came through relays."""
        try:
            receive = self.endpoint.receive_strays if handed_over else self.endpoint.receive_relayed
            self._deliver(receive(datagrams, self.services.clock()))
            self._hand_over()
        except Exception as error:  # the listener outlives a fault of its engine
            self.services.log.exception("the QUIC endpoint failed on a datagram", exc_info=error)
        self._flush()

    def pass_on(self, datagrams: Sequence[Transmit]) -> int:
        """To clients that another instance answers."""
        if self._closed or len(self._socket) + len(datagrams) > MAX_PASSED_ON:
            return len(datagrams)
        self._socket.queue(datagrams)
        if not self._socket.send():
            self._wait_for_room(wait=True)
        return 0

    def _handed_over(self) -> None:
        assert self._handover is not None
        try:
            datagrams = self._handover.receive(BATCH)
            self._deliver(self.endpoint.receive_strays(datagrams, self.services.clock()))
        except Exception as error:  # the listener outlives a fault of its engine
            self.services.log.exception("the QUIC endpoint failed on a datagram", exc_info=error)
        self._flush()

    # In

    def _readable(self) -> None:
        try:
            self._deliver(self._datagrams.receive(self.services.clock()))  # first: a fault in what follows costs nobody an event
            if self._handover is not None:
                self._hand_over()
            if self._envelopes is not None and (foreign := self.endpoint.take_foreign()):
                self._envelopes.forward(foreign, self)
        except Exception as error:  # the listener outlives a fault of its engine
            self.services.log.exception("the QUIC endpoint failed on a datagram", exc_info=error)
        self._flush()

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
        elif isinstance(event, HandshakeCompleted):
            self._shook_hands(handle)
            client.handshake_completed()
        elif isinstance(event, PathChanged):
            self._moved(client, event.peer)
        elif isinstance(event, ConnectionIdsRenewed):
            self._renewed(client)
        elif client.early is None or not client.early.holds(event):
            client.deliver(event)
            if self._leaving and type(event) is RequestHead and handle in self._leaving:
                self._leaving.discard(handle)
                self.endpoint.goaway(handle)

    def _ready(self, handle: Handle, event: ConnectionReady) -> None:
        client = self.clients[handle] = QuicClient(self, handle, event)
        meters = self.services.meters
        assert client.tls is not None
        meters.sni_resolutions.cell(client.tls.domain).value += 1
        meters.http3_connections.cell().value += 1
        meters.quic_resumed.cell().value += event.resumed
        key = event.affinity.hex()
        self.services.log.debug("connection began", client=event.peer[0], sni=event.sni, resumed=event.resumed, early=event.early, key=key)
        if not event.early:
            self._shook_hands(handle)
        meters.connections.cell(self.listener.name, "HTTP/3").value += 1
        meters.connections_open.cell("HTTP/3").value += 1
        if self.services.draining:
            self._leaving.add(handle)  # told behind its first request: a client that hears GOAWAY before has nobody to send it to

    def _moved(self, client: QuicClient, to: Address) -> None:
        """The client is known under another address from now on: its NAT gave it another port, or it changed its network."""
        kind = "rebinding" if to[0] == client.peer[0] else "migration"
        old, new = (f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in (client.peer, to))
        self.services.log.info("path changed", kind=kind, old=old, new=new, key=client.affinity_key.hex())
        self.services.meters.quic_path_changes.cell(kind).value += 1
        client.peer = to

    def _renewed(self, client: QuicClient) -> None:
        """The client has no connection IDs of an earlier form any more."""
        self.services.log.debug("connection IDs renewed", client=client.peer[0], key=client.affinity_key.hex())
        self.services.meters.quic_ids_renewed.cell().value += 1

    def _shook_hands(self, handle: Handle) -> None:
        _, began = self._admitted[handle]
        self.services.meters.handshake_seconds.cell("quic").observe(self.services.clock() - began)

    def _gone(self, handle: Handle, client: QuicClient | None, event: ConnectionClosed) -> None:
        meters = self.services.meters
        admitted = self._admitted.pop(handle, None)
        if admitted is not None:
            self._limits.release(admitted[0])
        if client is None:
            meters.handshake_failures.cell("quic", event.error or "closed").value += 1
            self.services.log.debug("handshake failed", reason=event.error, detail=event.detail)
        else:
            del self.clients[handle]
            self._leaving.discard(handle)
            if client.age is not None:
                self.services.deadlines.cancel(client.age)
            meters.connections_open.cell("HTTP/3").value -= 1
            if event.error:
                meters.connection_errors.cell("HTTP/3", event.error).value += 1
            if event.stats is not None:
                self._saw(client, event.stats)
            client.lose_exchanges(event.detail or event.error or "connection closed")

    def _saw(self, client: QuicClient, stats: ConnectionStats) -> None:
        meters = self.services.meters
        meters.quic_round_trip.cell().observe(stats.round_trip)
        meters.quic_congestion_window.cell().observe(stats.congestion_window)
        meters.quic_packets_sent.cell().value += stats.packets_sent
        meters.quic_packets_lost.cell().value += stats.packets_lost
        meters.quic_bytes_lost.cell().value += stats.bytes_lost
        meters.quic_black_holes.cell().value += stats.black_holes
        self.services.log.debug("connection ended", client=client.peer[0], **asdict(stats))

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
        """What the engine has, and what comes of the events that sending brings about."""
        more = True
        while more:
            done = self._send()
            events = self.endpoint.take_events()
            self._deliver(events)
            more = done and bool(events)

    def _send(self) -> bool:
        """False when the socket is full; it tells when there is room again."""
        done = self._datagrams.transmit(self.services.clock())
        if self._socket and done:  # what ``pass_on`` left
            done = self._socket.send()
        self._count()
        self._wait_for_room(wait=not done)
        return done

    def _wait_for_room(self, *, wait: bool) -> None:
        if wait == self._waits_for_room:
            return
        self._waits_for_room = wait
        if wait:
            self._loop.add_writer(self._socket.fileno(), self._flush)
        else:
            self._loop.remove_writer(self._socket.fileno())

    def _count(self) -> None:
        """Several listeners share the counters."""
        received, sent = self._datagrams.received, self._datagrams.sent
        self._received.value += received - self._counted_in
        self._sent.value += sent - self._counted_out
        self._counted_in, self._counted_out = received, sent

    # Connection IDs

    def change_connection_ids(self, routable: Routable | None, known: Sequence[Routable] = ()) -> None:
        """Issue connection IDs of another form from now on, and have living connections change theirs, so many in a turn of the loop."""
        if self.endpoint.change_connection_ids(routable, known):
            connections = self.endpoint.connections_to_renew
            self.services.log.info("connection IDs have another form", listener=self.listener.name, connections=connections)
            self._renew()

    def _renew(self) -> None:
        if self._closed:
            return
        try:
            more = self.endpoint.renew_connection_ids(RENEWALS)
        except Exception as error:  # the listener outlives a fault of its engine
            self.services.log.exception("the QUIC endpoint failed to renew connection IDs", exc_info=error)
            return
        self._flush()
        if more:
            self._loop.call_later(RENEW_EVERY, self._renew)

    # Time

    def _set_timer(self) -> None:
        due = self.endpoint.deadline()
        if self._timer is not None:
            if due is not None and self._timer_due <= due:
                return  # it looks again when it fires: most deadlines move on before they come, and a new timer for each would cost
            self._timer.cancel()
            self._timer = None
        if due is not None:
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
        self._leaving.clear()
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
            self._loop.remove_reader(self._socket.fileno())
            self._loop.remove_writer(self._socket.fileno())
        self._socket.close()
        if self._handover is not None:
            self._loop.remove_reader(self._handover.fileno())
            self._handover.close()
