"""All QUIC connections of one UDP listener: which datagram is whose, timers, and who there is to speak to (``verbs``).

Knows connection IDs, the life of connections and ``engine/seam.py``. Knows no packets beyond their heads and no HTTP beyond its verbs.
Pure: datagrams, time and randomness are arguments.

Only connections with something to do are visited: those that datagrams, timers or verbs touched. Deadlines stand in a heap, at most one
current entry for each connection; a later deadline leaves the entry where it is, and it is put right when it comes up.

Who may begin a handshake ``gate`` says.
"""

import heapq
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace

from aioquic.quic import events as quic
from aioquic.quic.configuration import QuicConfiguration

from proxy.engine.events import ConnectionClosed, ConnectionIdsRenewed, Event, HandshakeCompleted, PathChanged, RequestHead
from proxy.engine.h3 import H3Connection
from proxy.engine.h3_frames import NO_ERROR, FieldSections
from proxy.engine.quic import packets
from proxy.engine.quic.connection import Transport
from proxy.engine.quic.gate import Arrival, Gate
from proxy.engine.quic.ids import Minter, Routable
from proxy.engine.quic.reasons import reason
from proxy.engine.quic.resets import Resets
from proxy.engine.quic.sessions import ALPN, Sessions, configuration_epoch
from proxy.engine.quic.settings import MIN_DATAGRAM, QuicSettings
from proxy.engine.quic.strays import Strays, StrayVerbs
from proxy.engine.quic.tickets import Tickets
from proxy.engine.quic.tls import CIPHERS, Identities
from proxy.engine.quic.trace import Trace
from proxy.engine.quic.verbs import Verbs
from proxy.engine.seam import Datagram, EngineLimits, FirstPackets, Handle, Select, Tracer, Transmit
from proxy.keys import Keyring
from proxy.message import Address

STATELESS_ANSWERS = 16
"""Version negotiations, Retry packets, refusals and resets for one batch of datagrams; the rest gets none."""

GOAWAY_LINGER = 0.25
"""Seconds between the last acknowledged response after GOAWAY and the close, for GOAWAY to arrive."""

TIMER_GRAIN = 0.001
"""A deadline that is not in the future although its timer was handled is put off by so much: nothing can spin."""

_ALGORITHMS = {"auto": "cubic", "cubic": "cubic", "reno": "reno"}
"""``congestion_control`` to the library's name; it has no bbr."""


class _Connection:
    __slots__ = (
        "cids",
        "closed",
        "complete_by",
        "generation",
        "handle",
        "http",
        "linger_until",
        "path",
        "pinged_at",
        "renewing",
        "timer",
        "trace",
        "transport",
    )

    def __init__(self, handle: Handle, transport: Transport, path: tuple[Address, Address], complete_by: float) -> None:
        self.handle = handle
        self.transport = transport
        self.path = path
        self.complete_by: float | None = complete_by
        self.http: H3Connection | None = None
        self.closed = False
        self.cids: set[bytes] = set()
        self.generation = 0  # of the form of its connection IDs
        self.renewing = False  # the client has yet to retire some of an earlier form
        self.linger_until: float | None = None
        self.pinged_at = 0.0  # or its handshake was complete
        self.trace: Trace | None = None
        self.timer: float | None = None  # of its current entry in the heap


class QuicEndpoint(Verbs, StrayVerbs):
    """Implements ``seam.Endpoint``.

    *select* gives the TLS profile for an SNI; *keys* are for what must not be guessed; *random_bytes* makes connection
    IDs differ from one start to the next; *admit* says whether a new client may come in, by its address; *tickets* makes session
    tickets, where there are to be any; *trace* says whose connection is traced, where any is; *wall* is the time of day, in seconds since
    1970, by which processes with the same keys agree on the age of a token.
    """

    version = "HTTP/3"

    def __init__(  # noqa: PLR0913  # what the seam needs, and two choices of the listener
        self,
        select: Select,
        limits: EngineLimits,
        settings: QuicSettings,
        keys: Keyring,
        *,
        random_bytes: Callable[[int], bytes] = bytes,
        admit: Callable[[Handle, Address], bool] | None = None,
        tickets: Tickets | None = None,
        wall: Callable[[], float] = float,
        trace: Tracer | None = None,
    ) -> None:
        self._limits = limits
        self._settings = settings
        self._keeps_alive = settings.keep_alive > 0
        self._identities = Identities(Sessions(select, keys, wall, tickets, configuration_epoch("aioquic", limits, settings)))
        self._admit = admit
        self._trace = trace
        self._now = 0.0
        self._mint = Minter(keys, random_bytes, settings.routable, settings.slot, settings.known)
        self._resets = Resets(self._mint, random_bytes)
        self._strays = Strays(self._mint, settings.slot)
        self._gate = Gate(settings, keys, self._mint, random_bytes, wall)
        self._sections = FieldSections()
        self._configuration = QuicConfiguration(
            is_client=False,
            alpn_protocols=[ALPN],
            cipher_suites=CIPHERS,
            congestion_control_algorithm=_ALGORITHMS[settings.congestion_control],
            connection_id_length=self._mint.cid_bytes,
            idle_timeout=settings.idle_timeout,
            max_data=limits.connection_window,
            max_stream_data=limits.stream_window,
            max_datagram_size=settings.max_datagram_size or MIN_DATAGRAM,
            certificate=object(),  # the library wants one before it knows the name: ``tls.ServerContext`` puts the right one
            private_key=object(),
        )
        self._by_handle: dict[Handle, _Connection] = {}
        self._by_cid: dict[bytes, _Connection] = {}
        self._dirty: dict[Handle, _Connection] = {}
        self._to_renew: deque[Handle] = deque()
        self._heap: list[tuple[float, Handle]] = []
        self._answers: list[Transmit] = []
        self._events: list[tuple[Handle, Event]] = []
        self._last_handle = 0
        self._refusing = False
        self._holds = 0  # of connections that are gone
        self._output_bound = limits.output
        self.dropped = 0
        """Datagrams that belonged nowhere, or came beyond a bound."""
        self.certificates_compressed: dict[str, int] = {}
        """The library has none."""
        self.moves_refused = 0
        """Datagrams from another IP address than their client's, where clients may not move."""

    # In, out and time

    def receive(self, datagrams: Sequence[Datagram], now: float) -> list[tuple[Handle, Event]]:
        """Take datagrams. Never raises on hostile input."""
        self._now = now
        touched: dict[Handle, _Connection] = {}
        answers = STATELESS_ANSWERS
        by_cid, stays = self._by_cid, not self._settings.migration
        cid_bytes, *other_lengths = self._mint.lengths
        for datagram in datagrams:
            data = datagram.data
            cid = packets.destination_of(data, cid_bytes)
            connection = by_cid.get(cid) if cid is not None else None
            if other_lengths:
                cid, connection = self._find(data, cid, connection)
            if connection is None:
                if self._strays.watching and cid is not None and self._strays.keep(data, datagram.peer, datagram.local):
                    continue
                may_answer = answers > len(self._answers)
                if cid is not None and not data[0] & 0x80:
                    start = data[1 : 1 + packets.MAX_CID]
                    self._answer(datagram, self._resets.answer(start, len(data), now) if may_answer else None)
                    continue
                if len(data) < MIN_DATAGRAM or not data[0] & 0x80 or not (header := packets.read_long_header(data)):
                    self.dropped += 1
                    continue
                connection = self._accept(header, datagram, may_answer, now)
                if connection is None:
                    continue
            elif stays and datagram.peer[0] != connection.path[0][0]:
                self.moves_refused += 1
                continue
            touched[connection.handle] = connection
            try:
                connection.transport.receive_datagram(data, (datagram.peer, datagram.local), now)
            except Exception as error:  # noqa: BLE001  # a fault of the library costs the client that found it its own connection
                connection.transport.close(error_code=1, frame_type=0, reason_phrase=type(error).__name__)
            if not connection.transport.begun:  # no authentic packet: nothing is kept for it
                self.dropped += 1
                self._gate.leave(connection.handle, complete=False)
                if connection.trace is not None:
                    connection.trace.abandon()
                self._remove(connection)
                if self._admit is not None:  # who admitted it has counted it
                    self._events.append((connection.handle, ConnectionClosed("not_authentic", "")))
                del touched[connection.handle]
        for connection in touched.values():
            self._collect(connection, now)
        self._dirty.update(touched)
        return self.take_events()

    def _find(self, data: bytes, cid: bytes | None, connection: _Connection | None) -> tuple[bytes | None, _Connection | None]:
        """Whose datagram it is, where connection IDs of several lengths are in use: by the one of our usual length, or else by another."""
        if connection is None and data and not data[0] & 0x80:
            for length in self._mint.lengths[1:]:
                other = packets.destination_of(data, length)
                connection = self._by_cid.get(other) if other is not None else None
                cid = cid or other
                if connection is not None:
                    cid = other
                    break
        if connection is not None and cid is not None:
            connection.transport.expect(len(cid))
        return cid, connection

    def take_datagrams(self, now: float) -> list[Transmit]:
        """Datagrams to send now, of all connections with something to send."""
        self._now = now
        out, self._answers = self._answers, []
        dirty, self._dirty = self._dirty, {}
        for connection in dirty.values():
            transport = connection.transport
            http = connection.http
            while True:
                fed = http is not None and http.feed()
                try:
                    datagrams = transport.datagrams_to_send(now)
                except Exception as error:  # noqa: BLE001  # as in ``receive``; the library can't even say goodbye here
                    self._drop(connection, "internal_error", repr(error))
                    break
                for data, (peer, local) in datagrams:
                    out.append(Transmit(data, peer, local))
                if not fed or not datagrams:
                    break
            self._collect(connection, now)
            if connection.handle in self._by_handle:
                self._schedule(connection, now)
        return out

    def take_events(self) -> list[tuple[Handle, Event]]:
        """Events that arose outside ``receive`` and ``on_deadline``."""
        if not self._events:
            return []
        taken, self._events = self._events, []
        return taken

    def deadline(self) -> float | None:
        """When ``on_deadline`` is to be called next, or None."""
        heap = self._heap
        while heap:
            due, handle = heap[0]
            connection = self._by_handle.get(handle)
            if connection is not None and connection.timer == due:
                return due
            heapq.heappop(heap)
        return None

    def on_deadline(self, now: float) -> list[tuple[Handle, Event]]:
        """Handle the timers that are due (loss detection, acknowledgements, pacing, idle, handshake, drain)."""
        self._now = now
        heap = self._heap
        while heap and heap[0][0] <= now:
            due, handle = heapq.heappop(heap)
            connection = self._by_handle.get(handle)
            if connection is None or connection.timer != due:
                continue
            connection.timer = None
            self._on_timer(connection, now)
        return self.take_events()

    def refuse_new(self) -> None:
        """Answer new connection attempts with CONNECTION_REFUSED from now on."""
        self._refusing = True

    def change_connection_ids(self, routable: Routable | None, known: Sequence[Routable] = ()) -> bool:
        """See ``seam.Endpoint``, as for the next two."""
        if not self._mint.change(routable, known):
            return False
        self._to_renew = deque(self._by_handle)
        return True

    def renew_connection_ids(self, most: int) -> bool:
        """Renew those of so many connections."""
        for _ in range(min(most, len(self._to_renew))):
            connection = self._by_handle.get(self._to_renew.popleft())
            if connection is not None and self._renew(connection):
                self._dirty[connection.handle] = connection
        return bool(self._to_renew)

    @property
    def connections_to_renew(self) -> int:
        """Connections whose client has connection IDs of an earlier form."""
        generation = self._mint.generation
        return sum(connection.renewing or connection.generation != generation for connection in self._by_handle.values())

    @property
    def connections(self) -> int:
        """Connections that are alive, handshakes included."""
        return len(self._by_handle)

    @property
    def handshakes(self) -> int:
        """Handshakes in progress."""
        return self._gate.handshakes

    def first_packets(self, now: float) -> FirstPackets:
        """How it went with clients that nobody knew yet."""
        return self._gate.first_packets(now)

    def _http(self, handle: Handle) -> H3Connection | None:
        connection = self._by_handle.get(handle)
        if connection is None or connection.closed:
            return None
        self._dirty[handle] = connection
        return connection.http

    def bound_output(self, most: int) -> None:
        """Hold each stream at the low-water mark while more than *most* waits for its connection."""
        self._output_bound = most
        for connection in self._by_handle.values():
            if connection.http is not None:
                connection.http.output_bound = most

    @property
    def output_bytes(self) -> int:
        """Bytes of answers that wait here, of all connections."""
        return sum(connection.http.output_bytes for connection in self._by_handle.values() if connection.http is not None)

    @property
    def holds(self) -> int:
        """How often a source was told to hold."""
        present = sum(connection.http.holds for connection in self._by_handle.values() if connection.http is not None)
        return self._holds + present

    @property
    def resets_sent(self) -> int:
        """Stateless resets."""
        return self._resets.sent

    # The life of a connection

    def _accept(self, header: packets.LongHeader, datagram: Datagram, may_answer: bool, now: float) -> _Connection | None:
        """The connection that this datagram begins, or None: it was answered or dropped."""
        if header.version not in packets.VERSIONS:
            may_answer = may_answer and header.version != 0
            self._answer(datagram, packets.version_negotiation(header, self._mint()[0][0]) if may_answer else None)
            return None
        if not header.initial or max(len(header.destination), len(header.source)) > packets.MAX_CID:
            self.dropped += 1
            return None
        if self._refusing or len(self._by_handle) >= self._settings.connections:
            self._refuse(header, datagram, may_answer)
            return None
        judged = self._gate.judge(header, datagram.peer, now, may_answer=may_answer)
        if not isinstance(judged, Arrival):
            self._answer(datagram, judged)
            return None
        if self._admit is not None and not self._admit(self._last_handle + 1, datagram.peer):
            self._refuse(header, datagram, may_answer)
            return None
        return self._begin(header, datagram, judged, now)

    def _begin(self, header: packets.LongHeader, datagram: Datagram, arrival: Arrival, now: float) -> _Connection:
        self._last_handle += 1
        minted: set[bytes] = set()
        connection: _Connection | None = None

        def mint() -> tuple[bytes, bytes]:
            cid, token = self._mint()
            while cid in self._by_cid:  # a client's own choice may stand there
                cid, token = self._mint()
            minted.add(cid)
            if connection is not None:
                self._by_cid[cid] = connection
            return cid, token

        configuration, trace = self._configuration, None
        if self._trace is not None and (sink := self._trace(datagram.peer, arrival.original)) is not None:
            trace = Trace(sink, arrival.original, lambda: self._now)
            configuration = replace(configuration, quic_logger=trace)  # type: ignore[arg-type]  # it has what is asked of one
        transport = Transport(configuration, self._identities, self._limits, mint, arrival)
        transport.let_windows_grow(self._settings.max_stream_window, self._settings.max_connection_window)
        transport.may_move = self._settings.migration
        transport.key_packets = self._settings.key_packets
        connection = _Connection(self._last_handle, transport, (datagram.peer, datagram.local), now + self._settings.handshake_timeout)
        connection.trace = trace
        connection.cids = minted
        connection.generation = self._mint.generation
        minted.add(header.destination)
        for cid in minted:
            self._by_cid[cid] = connection
        self._by_handle[connection.handle] = connection
        self._gate.enter(connection.handle, datagram.peer[0])
        return connection

    def _refuse(self, header: packets.LongHeader, datagram: Datagram, may_answer: bool) -> None:
        self._answer(datagram, packets.refusal(header, self._mint()[0], packets.CONNECTION_REFUSED) if may_answer else None)

    def _answer(self, datagram: Datagram, answer: bytes | None) -> None:
        """Answer what belongs to no connection, or drop it."""
        if answer is None:
            self.dropped += 1
        else:
            self._answers.append(Transmit(answer, datagram.peer, datagram.local))

    def _collect(self, connection: _Connection, now: float) -> None:
        """Turn what the transport has to tell into events."""
        transport = connection.transport
        handle = connection.handle
        out = self._events
        http = connection.http
        try:
            if http is None and transport.early:
                connection.pinged_at = now
                http = self._ready(connection, early=True)
            while (event := transport.next_event()) is not None:
                if isinstance(event, quic.ConnectionIdRetired):
                    connection.cids.discard(event.connection_id)
                    self._by_cid.pop(event.connection_id, None)
                    if connection.renewing and not transport.retiring:
                        connection.renewing = False
                        out.append((handle, ConnectionIdsRenewed()))
                        self._renew(connection)  # the form may have changed again
                elif isinstance(event, quic.HandshakeCompleted):
                    http = self._completed(connection, now)
                elif http is not None and transport.close_event is None:
                    http.handle(event)
        except Exception as error:  # noqa: BLE001  # as in ``receive``
            transport.close(error_code=1, frame_type=0, reason_phrase=type(error).__name__)
        if http is not None and http.events and not connection.closed:
            if connection.complete_by is not None:
                _mark_early(http.events)
            out.extend([(handle, told) for told in http.events])
            http.events.clear()
        if not connection.closed:
            path = transport.settled_path()
            if connection.complete_by is None and path is not None and path != connection.path:
                if path[0][0] != connection.path[0][0]:
                    transport.begin_anew()
                if path[0] != connection.path[0]:  # else it only comes by another relay
                    out.append((handle, PathChanged(path[0])))
                connection.path = path
            if transport.close_event is not None:
                self._tell_closed(connection, *reason(transport.close_event))
            elif http is not None and http.draining and not transport.requests_open and not http.streams:
                if connection.linger_until is None:
                    connection.linger_until = now + GOAWAY_LINGER
            else:
                connection.linger_until = None
        if connection.trace is not None and not connection.trace.flush():
            transport.end_trace()
        if transport.terminated:
            self._remove(connection)

    def _renew(self, connection: _Connection) -> bool:
        """Give a client connection IDs of the present form for those of another; True where it did.

        Not before the handshake is complete; and one change after the other, so that no client makes us keep more than twice as many.
        """
        generation = self._mint.generation
        if connection.generation == generation or connection.complete_by is not None or connection.renewing or connection.closed:
            return False
        connection.generation = generation
        connection.renewing = True
        connection.transport.renew_connection_ids()
        return True

    def _completed(self, connection: _Connection, now: float) -> H3Connection:
        connection.complete_by = None
        connection.pinged_at = now
        self._gate.leave(connection.handle, complete=True)
        self._renew(connection)
        if connection.http is None:
            return self._ready(connection, early=False)
        self._events.append((connection.handle, HandshakeCompleted()))
        return connection.http

    def _ready(self, connection: _Connection, *, early: bool) -> H3Connection:
        transport = connection.transport
        http = connection.http = H3Connection(transport, self._limits, self._sections)
        http.output_bound = self._output_bound
        peer, local = transport.settled_path() or connection.path
        connection.path = (peer, local)
        session, tls = transport.session, transport.tls
        assert session is not None
        random = tls.client_random if early else None
        self._events.append((connection.handle, session.ready(peer, resumed=tls.session_resumed, early=random or b"")))
        return http

    def _tell_closed(self, connection: _Connection, error: str, detail: str) -> None:
        if connection.closed:
            return
        connection.closed = True
        if connection.http is not None:
            self._holds += connection.http.holds
        connection.http = None
        if connection.complete_by is not None:
            self._gate.leave(connection.handle, complete=False)
            error = error or "closed"
        self._events.append((connection.handle, ConnectionClosed(error, detail)))

    def _drop(self, connection: _Connection, error: str, detail: str) -> None:
        self._tell_closed(connection, error, detail)
        self._remove(connection)

    def _remove(self, connection: _Connection) -> None:
        for cid in connection.cids:
            if self._by_cid.get(cid) is connection:
                del self._by_cid[cid]
        if connection.trace is not None:
            connection.trace.close()
        self._by_handle.pop(connection.handle, None)
        self._dirty.pop(connection.handle, None)

    # Timers

    def _on_timer(self, connection: _Connection, now: float) -> None:
        transport = connection.transport
        if connection.complete_by is not None and now >= connection.complete_by and not connection.closed:
            self._drop(connection, "handshake_timeout", "the handshake took too long")
            return
        if connection.linger_until is not None and now >= connection.linger_until:
            connection.linger_until = None
            transport.close(error_code=NO_ERROR, reason_phrase="")
        if self._keeps_alive and (at := self._ping_at(connection)) is not None and at <= now:
            connection.pinged_at = now
            transport.send_ping(0)
        due = transport.get_timer()
        if due is not None and due <= now:
            try:
                transport.handle_timer(now)
            except Exception as error:  # noqa: BLE001  # as in ``receive``
                self._drop(connection, "internal_error", repr(error))
                return
        self._collect(connection, now)
        if connection.handle in self._by_handle:
            self._dirty[connection.handle] = connection

    def _schedule(self, connection: _Connection, now: float) -> None:
        due = connection.transport.get_timer()
        for other in (connection.complete_by, connection.linger_until):
            if other is not None and (due is None or other < due):
                due = other
        if self._keeps_alive and (at := self._ping_at(connection)) is not None and (due is None or at < due):
            due = at
        if due is None:
            return
        due = max(due, now + TIMER_GRAIN) if due <= now else due
        if connection.timer is None or due < connection.timer:
            connection.timer = due
            heapq.heappush(self._heap, (due, connection.handle))

    def _ping_at(self, connection: _Connection) -> float | None:
        """When a client is sent a PING if nothing comes of it; None where it need not be."""
        transport = connection.transport
        if connection.http is None or not (self._settings.keep_alive_idle or transport.requests_open):
            return None
        return max(transport.heard_at, connection.pinged_at) + self._settings.keep_alive


def _mark_early(events: list[Event]) -> None:
    for event in events:
        if isinstance(event, RequestHead):
            event.early = True
