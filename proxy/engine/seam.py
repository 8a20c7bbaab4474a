"""What a listener needs of an engine: the seam behind which HTTP/1.1, HTTP/2 and HTTP/3 look alike.

Batches in, batches out. An engine does no I/O and has no clock: time is an argument (seconds, monotonic). ``send_data`` accepts
everything and says how much is queued; above ``HIGH_WATER`` the caller stops its source, and a ``Drained`` event lets it go on. So
no partial-write loop exists above an engine.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeAlias

from proxy.engine.events import Event
from proxy.engine.quic.ids import Routable
from proxy.errors import Reset
from proxy.message import Address, Headers

HIGH_WATER = 128 * 1024
"""Bytes queued for one stream above which its source is to pause."""

LOW_WATER = 32 * 1024
"""Bytes queued for one stream under which ``Drained`` is given."""

HOLD = 1 << 40
"""What ``send_data`` returns, at least, where the whole connection has as much queued as it may: the source is to stop at once."""


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """Bounds that an engine enforces by itself on hostile input, and on answers that are not taken."""

    streams: int = 100
    """Concurrent requests of one connection (HTTP/2 and HTTP/3)."""
    header_count: int = 100
    """Fields of one header or trailer section."""
    header_bytes: int = 32 * 1024
    """Bytes of one header section: names, values and 32 for each field (RFC 9113, section 6.5.2); HTTP/1.1: with its request line."""
    stream_window: int = 256 * 1024
    """Bytes of request body in flight for one stream that the other side has not consumed yet."""
    connection_window: int = 1024 * 1024
    """The same for a whole connection."""
    output: int = 4 * 1024 * 1024
    """Bytes of answers that wait for one connection, beyond which each of its streams has no more than ``LOW_WATER``."""


class Connection(Protocol):
    """An HTTP/1.1 or HTTP/2 connection, listener side."""

    version: str
    """``HTTP/1.1`` or ``HTTP/2``: what is said to people and backends."""

    def receive(self, data: bytes, now: float) -> list[Event]:
        """Take decrypted bytes. Never raises on hostile input: the answer is an event, output to send, or both."""

    def receive_eof(self, now: float) -> list[Event]:
        """The client closed its side: StreamReset for what can't be completed any more."""

    def respond(self, stream: int, status: int, headers: Headers, body: bytes) -> None:
        """A whole answer with a known body (adds content-length where the status allows one; a HEAD request gets no body)."""

    def send_head(self, stream: int, status: int, headers: Headers, end: bool) -> None:
        """A final response head; ``end`` when no body follows."""

    def send_data(self, stream: int, data: bytes, end: bool) -> int:
        """Queue body bytes; returns the bytes now queued for the stream. A stream that is gone takes them silently (returns 0)."""

    def send_trailers(self, stream: int, headers: Headers) -> None:
        """End the body with trailers (left out where the version or the framing has no room for them)."""

    def inform(self, stream: int, status: int, headers: Headers) -> None:
        """A 1xx response. HTTP/1.0 clients get none."""

    def consumed(self, stream: int, credit: int) -> None:
        """The other side took *credit* bytes of the request body: let the client send as many more."""

    def reset(self, stream: int, reason: Reset) -> None:
        """Cut one stream. On HTTP/1.1 that is the connection, unless nothing was sent yet."""

    def goaway(self) -> None:
        """Tell the client that the end is near (RFC 9113 section 6.8; Connection: close on HTTP/1.1), in two calls.

        After the first, what is on its way is still taken. The second, some round trips later, accepts no new requests: the connection
        finishes the present ones and closes.
        """

    def close(self, reason: Reset) -> None:
        """End the connection at once, telling why where the protocol can."""

    def time_out(self) -> None:
        """The client was silent for too long: HTTP/1.1 answers 408 when part of a head has come, HTTP/2 says goodbye; then finished."""

    def take_output(self, limit: int) -> bytes:
        """Bytes to send now, at most about *limit* of body (control frames always). May bring about events (``take_events``)."""

    def take_events(self) -> list[Event]:
        """Events that arose outside ``receive`` (Drained; a pipelined request whose turn has come). Cheap when there are none."""

    def bound_output(self, most: int) -> None:
        """From now on *most* stands for ``EngineLimits.output``; ``LOW_WATER`` at least, so that every stream goes on."""

    @property
    def output_bytes(self) -> int:
        """Bytes that wait here to be taken, of all streams. For now and then, not for every turn."""

    @property
    def quiet(self) -> bool:
        """True when there is nothing that a listener has to do: a short answer for all of the questions below and ``take_events``.

        No output, no event, no head in progress, more input is wanted, and not finished. False where it would cost much to tell.
        """

    @property
    def wants_input(self) -> bool:
        """False while the listener should not read from the transport (HTTP/1.1 back-pressure, pipelined requests waiting)."""

    @property
    def finished(self) -> bool:
        """True when the connection is to be closed as soon as its output has been sent."""

    @property
    def streams(self) -> int:
        """Requests in progress."""

    @property
    def head_in_progress(self) -> bool:
        """True while part of a request head was received and not yet all of it (the header timeout runs)."""


@dataclass(slots=True)
class Datagram:
    """A UDP datagram as received."""

    data: bytes
    peer: Address
    local: Address


@dataclass(slots=True)
class Transmit:
    """A UDP datagram to send."""

    data: bytes
    peer: Address
    local: Address


@dataclass(frozen=True, slots=True)
class FirstPackets:
    """What became of the first packets of clients, counted from the endpoint's start."""

    retries: int
    """Retry packets sent (RFC 9000, section 8.1.2)."""
    tokens: Mapping[str, int]
    """Tokens that clients brought, by ``valid`` or what was wrong with them (``quic/retry.py``)."""
    limits_hit: Mapping[str, int]
    """Packets that were dropped, by the bound that they hit: ``handshakes``, ``handshakes_per_network``."""
    asking: bool
    """Clients have to prove their address now, whatever their network."""


Handle: TypeAlias = int
"""Names a QUIC connection of an endpoint: small, never reused within a process."""

Select: TypeAlias = Callable[[str | None], object | None]
"""SNI to TLS profile (a ``snapshot.TlsProfile``); None refuses the handshake with unrecognized_name."""


class TraceSink(Protocol):
    """Where the trace of one QUIC connection goes (qlog, JSON text sequences)."""

    @property
    def began(self) -> float:
        """Seconds since 1970."""

    def write(self, records: bytes) -> bool:
        """Take complete records; never blocks and never raises. False: no more of them is wanted."""

    def close(self) -> None:
        """There are no more."""


Tracer: TypeAlias = Callable[[Address, bytes], TraceSink | None]
"""Client's address and original destination connection ID of a connection that begins, to where its trace goes; None: nowhere."""


class Others(Protocol):
    """The other instances of the service, by the server ID in their connection IDs."""

    def lives(self, server_id: bytes) -> bool:
        """Whether that one is there: its datagrams are kept for it."""

    def is_gone(self, server_id: bytes) -> bool:
        """Whether it is known that nobody is: its clients are told so. Neither is true where that can't be said yet."""


class Foreign(NamedTuple):
    """A datagram for a connection of another instance."""

    server_id: bytes
    slot: int | None
    """Of the worker there, where the connection ID names it."""
    datagram: Datagram


class Endpoint(Protocol):
    """All QUIC connections of one UDP listener, HTTP/3 on each: the verbs of ``Connection`` with (connection, stream)."""

    version: str

    siblings: frozenset[int]
    """Slots of the other workers of this port that are alive (``QuicSettings.slot``); none at first. What no connection here has and names
    one of these is not answered, but kept for ``take_strays``."""

    def receive(self, datagrams: Sequence[Datagram], now: float) -> list[tuple[Handle, Event]]:
        """Take datagrams. Never raises on hostile input."""

    def receive_strays(self, datagrams: Sequence[Datagram], now: float) -> list[tuple[Handle, Event]]:
        """The same with datagrams that another worker handed over: what is not ours goes no further."""

    def take_strays(self) -> list[tuple[int, Datagram]]:
        """Datagrams of other workers' connections, a bounded number, with the slots that they name. Cheap when there are none."""

    others: Others | None
    """The other instances; None at first. What no connection here has and names one that lives is not answered, but kept for
    ``take_foreign``; but for first packets and 0-RTT packets, whose connection ID is the client's own."""

    def receive_relayed(self, datagrams: Sequence[Datagram], now: float) -> list[tuple[Handle, Event]]:
        """``receive`` with datagrams that came through a relay: what is another instance's goes no further, and is not answered."""

    def take_foreign(self) -> list[Foreign]:
        """Datagrams of other instances' connections, a bounded number. Cheap when there are none."""

    def take_datagrams(self, now: float) -> list[Transmit]:
        """Datagrams to send now, of all connections with something to send, each bounded by congestion control and pacing."""

    def take_events(self) -> list[tuple[Handle, Event]]:
        """Events that arose outside ``receive`` and ``on_deadline``."""

    def deadline(self) -> float | None:
        """When ``on_deadline`` is to be called next, or None."""

    def on_deadline(self, now: float) -> list[tuple[Handle, Event]]:
        """Handle the timers that are due (loss detection, idle, pacing)."""

    def respond(self, connection: Handle, stream: int, status: int, headers: Headers, body: bytes) -> None: ...
    def send_head(self, connection: Handle, stream: int, status: int, headers: Headers, end: bool) -> None: ...
    def send_data(self, connection: Handle, stream: int, data: bytes, end: bool) -> int: ...
    def send_trailers(self, connection: Handle, stream: int, headers: Headers) -> None: ...
    def inform(self, connection: Handle, stream: int, status: int, headers: Headers) -> None: ...
    def consumed(self, connection: Handle, stream: int, credit: int) -> None: ...
    def reset(self, connection: Handle, stream: int, reason: Reset) -> None: ...

    def goaway(self, connection: Handle) -> None:
        """As ``Connection.goaway``, in two calls (RFC 9114, section 5.2)."""

    def close(self, connection: Handle, reason: Reset) -> None:
        """Close the connection at once."""

    def refuse_new(self) -> None:
        """Answer new connection attempts with CONNECTION_REFUSED from now on (drain)."""

    def change_connection_ids(self, routable: Routable | None, known: Sequence[Routable] = ()) -> bool:
        """Issue connection IDs of another form from now on (config rotation of QUIC-LB); None: opaque ones. False: it is the present one.

        *known* are forms whose IDs are ours too (``QuicSettings.known``).

        Living connections keep theirs until ``renew_connection_ids``; handshakes in progress are renewed when they are complete.
        """

    def renew_connection_ids(self, most: int) -> bool:
        """Give the clients of so many connections IDs of the present form, and have them retire the others (RFC 9000, section 5.1.2).

        True: there are more. What comes to an ID is taken until the client has retired it; when it has retired the last of an earlier
        form, there is ``ConnectionIdsRenewed``.
        """

    @property
    def connections_to_renew(self) -> int:
        """Connections whose client has connection IDs of an earlier form. For metrics: not for every turn."""

    @property
    def connections(self) -> int:
        """Connections that are alive, handshakes included."""

    @property
    def handshakes(self) -> int:
        """Handshakes in progress."""

    def first_packets(self, now: float) -> FirstPackets:
        """How it went with clients that nobody knew yet. For metrics: not for every turn."""

    @property
    def dropped(self) -> int:
        """Datagrams so far that belonged nowhere, or came beyond a bound."""

    @property
    def certificates_compressed(self) -> Mapping[str, int]:
        """Handshakes so far in which the certificate went compressed, by algorithm; empty where the engine has none."""

    @property
    def moves_refused(self) -> int:
        """Datagrams so far that came from another IP address than their client's, where clients may not change theirs."""

    def bound_output(self, most: int) -> None:
        """As ``Connection.bound_output``, for every connection."""

    @property
    def output_bytes(self) -> int:
        """Bytes of answers that wait here, of all connections, and were never sent. For now and then: not for every turn."""

    @property
    def holds(self) -> int:
        """How often so far a source was told to ``HOLD``."""

    @property
    def resets_sent(self) -> int:
        """Stateless resets so far (RFC 9000, section 10.3)."""

    @property
    def strays_dropped(self) -> int:
        """Datagrams so far of others' connections that came beyond a bound, or were handed over to the wrong worker."""

    @property
    def looped(self) -> int:
        """Datagrams so far that came through a relay and are of another instance."""


class FastEndpoint(Endpoint, Protocol):
    """An endpoint that reads and writes its socket by itself, many datagrams with one system call: none of them becomes an object here.

    An optional capability: a listener that finds it uses it instead of ``receive`` and ``take_datagrams``. The socket stays the
    listener's: it binds, watches and closes it.
    """

    @property
    def datagrams_in(self) -> int:
        """Datagrams read so far."""

    @property
    def datagrams_out(self) -> int:
        """Datagrams that the kernel took so far."""

    def receive_fd(self, fd: int, now: float) -> list[tuple[Handle, Event]]:
        """Read what has come, a bounded number, and handle it. Never raises on hostile input, nor on an error of the socket."""

    def take_relayed(self) -> list[tuple[bytes, int, Address, Address]]:
        """What ``transmit_fd`` did not write, since it leaves by a relay: its local address is in 100::/64 (``cluster/relays.py``).

        (datagrams, bytes of each but for the last which may have less, peer, local). Cheap when there are none.
        """

    def transmit_fd(self, fd: int, now: float) -> bool:
        """Send what may be sent now. False when the socket is full: what is left is kept, call again when it is writable.

        Until then ``deadline`` tells of timers only: what waits for the socket is not due at any time.
        """
