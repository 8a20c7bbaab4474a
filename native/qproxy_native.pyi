"""QUIC and HTTP/3 around quiche. ``proxy/engine/quic/native.py`` is its one user, and says what the callables are."""

from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any, Self, TypeAlias, TypedDict

_Headers: TypeAlias = list[tuple[bytes, bytes]]
_Address: TypeAlias = tuple[str, int]

class Settings(TypedDict):
    """What an endpoint is made of. Times in seconds, sizes in bytes."""

    begin: Callable[[str | None, bytes], object | None]
    """SNI (lower case, no final dot) and original connection ID to a ``sessions.Session``; its profile can be weakly referenced."""
    tickets: tuple[int, int] | None
    """Session tickets for each handshake, and seconds for which one resumes; None: there are none."""
    mint: Callable[[], tuple[bytes, bytes]]
    """A connection ID and its stateless reset token."""
    cid_bytes: int
    """Length of those connection IDs."""
    reset: Callable[[bytes, int, float], bytes | None]
    """(a packet from its unknown connection ID on, its size, now) to the stateless reset that answers it."""
    stray: Callable[[bytes, _Address, _Address], bool]
    """(datagram, peer, local) of no connection here to whether it is another's; asked as ``watch_strays`` says."""
    judge: Callable[[bytes, _Address, float, bool], tuple[bytes | None, bytes | None, bytes | None]]
    """(a client's first datagram, its address, now, whether it may be answered) to the answer; or to the destination ID of its very first
    packet, and the source ID of the Retry packet that it answers. None of these: the datagram is dropped."""
    enter: Callable[[int, str], None]
    """A handshake began, of a client at this host."""
    leave: Callable[[int, bool], None]
    """It is over; complete or not."""
    admit: Callable[[int, _Address], bool] | None
    make_head: Callable[[int, _Headers, bool], tuple[object, int, int, bool]]
    """(stream, fields, end) to (event, 0, content length or -1, whether no body is to be sent) or (event, status, -1, False)."""
    make_trailers: Callable[[int, _Headers], _Headers | object]
    """(stream, fields) to the fields, or to an event."""
    refuse: Callable[[bytes], bytes | None]
    """A client's first datagram to the one that refuses it."""
    events: ModuleType
    """Has the classes of events by name."""
    transmit: Callable[[bytes, _Address, _Address], object]
    """(data, peer, local) to what ``take_datagrams`` gives."""
    trace: Callable[[_Address, bytes], object | None] | None
    """A ``seam.Tracer``."""
    streams: int
    header_count: int
    header_bytes: int
    stream_window: int
    connection_window: int
    max_stream_window: int
    """What the window grows to."""
    max_connection_window: int
    high_water: int
    low_water: int
    output: int
    """Bytes queued for a connection above which its streams are held at ``low_water``."""
    idle_timeout: float
    keep_alive: float
    """0: no PINGs."""
    keep_alive_idle: bool
    handshake_timeout: float
    connections: int
    max_datagram_size: int
    """Above 1200, the path is probed for datagrams up to this size (RFC 8899); 0: as far as the link goes."""
    key_packets: int
    migration: bool
    """Clients may change their IP address."""
    certificate_compression: list[str]
    """``brotli``, ``zlib``: best first."""
    congestion_control: str
    """``bbr``, ``cubic`` or ``reno``."""

class Endpoint:
    """The verbs of ``seam.FastEndpoint``, but for the codes of ``reset`` and ``close``. Bound to the thread that made it."""

    def __new__(cls, settings: Settings) -> Self: ...
    @property
    def connections(self) -> int: ...
    @property
    def dropped(self) -> int: ...
    @property
    def certificates_compressed(self) -> dict[str, int]: ...
    @property
    def moves_refused(self) -> int: ...
    @property
    def output_bytes(self) -> int: ...
    @property
    def holds(self) -> int: ...
    @property
    def datagrams_in(self) -> int: ...
    @property
    def datagrams_out(self) -> int: ...
    @property
    def datagrams_failed(self) -> int: ...
    def receive(self, datagrams: Iterable[Any], now: float) -> list[tuple[int, Any]]: ...
    def receive_fd(self, fd: int, now: float) -> list[tuple[int, Any]]: ...
    def take_datagrams(self, now: float) -> list[Any]: ...
    def transmit_fd(self, fd: int, now: float) -> bool: ...
    def take_events(self) -> list[tuple[int, Any]]: ...
    def deadline(self) -> float | None: ...
    def on_deadline(self, now: float) -> list[tuple[int, Any]]: ...
    def respond(self, connection: int, stream: int, status: int, headers: _Headers, body: bytes) -> None: ...
    def send_head(self, connection: int, stream: int, status: int, headers: _Headers, end: bool) -> None: ...
    def send_data(self, connection: int, stream: int, data: bytes, end: bool) -> int: ...
    def send_trailers(self, connection: int, stream: int, headers: _Headers) -> None: ...
    def inform(self, connection: int, stream: int, status: int, headers: _Headers) -> None: ...
    def consumed(self, connection: int, stream: int, credit: int) -> None: ...
    def reset_stream(self, connection: int, stream: int, code: int) -> None: ...
    def close_connection(self, connection: int, code: int, words: str) -> None: ...
    def goaway(self, connection: int) -> None: ...
    def watch_strays(self, slots: list[int], forms: list[tuple[int, int]], named: list[tuple[int, int]]) -> None: ...
    def take_relayed(self) -> list[tuple[bytes, int, _Address, _Address]]: ...
    def refuse_new(self) -> None: ...
    def begin_generation(self, cid_bytes: int) -> None: ...
    def renew_connection_ids(self, most: int) -> bool: ...
    @property
    def connections_to_renew(self) -> int: ...

def versions() -> dict[str, str]: ...
