"""The two ends of an exchange, as it sees them: the client's connection, with verbs by stream number, and the connections to backends.

Knows no engine and no socket. ``listen`` has the one and ``upstream`` the other; tests use fakes.
"""

from typing import TYPE_CHECKING, Protocol

from proxy.counters import Histogram
from proxy.errors import ProxyError, Reset
from proxy.message import Address, Headers

if TYPE_CHECKING:
    from balancer.backend import Backend
    from proxy.admission import Admitted
    from proxy.engine.events import Informational, ResponseHead, UpstreamRequest
    from proxy.snapshot import Listener, Pool
    from proxy.sni import TlsProfile


class ClientConnection(Protocol):
    """One connection of a client, of any version. The verbs mean what ``engine/seam.py`` says, and schedule their own sending."""

    version: str
    """``HTTP/1.1``, ``HTTP/2`` or ``HTTP/3``."""
    peer: Address
    """Who sent the packets, or whom a trusted PROXY protocol header named. QUIC: the current path."""
    listener: "Listener"
    tls: "TlsProfile | None"
    """The certificate and client-certificate rule in use; None for plain HTTP on the TLS port."""
    sni: str | None
    affinity_key: bytes
    """The key of ``key: connection``: fixed for the life of the connection."""
    pins: "dict[str, Backend]"
    """Pool name to the backend that this connection stays with."""
    admitted: "Admitted | None"
    """The last authority that was allowed on this connection, so that the next request need not be checked again."""

    def respond(self, stream: int, status: int, headers: Headers, body: bytes) -> None: ...
    def send_head(self, stream: int, status: int, headers: Headers, end: bool) -> None: ...
    def send_data(self, stream: int, data: bytes, end: bool) -> int: ...
    def send_trailers(self, stream: int, headers: Headers) -> None: ...
    def inform(self, stream: int, status: int, headers: Headers) -> None: ...
    def consumed(self, stream: int, credit: int) -> None: ...
    def reset(self, stream: int, reason: Reset) -> None: ...

    def await_handshake(self, stream: int) -> bool:
        """The exchange of an early request waits: it hears ``on_handshake_completed``. False: the handshake is complete already."""

    def exchange_done(self, stream: int) -> None:
        """The exchange of this stream is over; the connection forgets it."""


class Consumer(Protocol):
    """What takes the answer: the exchange. *now* is when its bytes came."""

    def on_informational(self, event: "Informational") -> None: ...
    def on_response_head(self, event: "ResponseHead", now: float) -> None: ...
    def on_response_body(self, data: bytes, now: float) -> None: ...
    def on_response_end(self, trailers: Headers, now: float) -> None: ...

    def on_upstream_error(self, error: ProxyError, *, stale: bool) -> None:
        """The connection failed. ``stale``: it was a reused one and no byte of an answer had come."""

    def on_upstream_drained(self) -> None:
        """The request body may flow again."""

    def on_internal_error(self, error: Exception) -> None:
        """One of the methods above failed by a fault of our own."""


class BackendConnection(Protocol):
    """A connection to a backend: one exchange has it at a time."""

    def begin(self, consumer: Consumer, request: "UpstreamRequest") -> None:
        """Send a request head."""

    def send_data(self, data: bytes) -> int:
        """Send body bytes; more than HIGH_WATER is returned while the backend does not take them."""

    def send_end(self, trailers: Headers) -> None:
        """The request body is complete."""

    def credit(self, taken: int) -> None:
        """The exchange's client took *taken* bytes of the answer."""

    def hold(self) -> None:
        """Read no more of the answer before there is credit for all that was delivered."""

    def abort(self) -> None:
        """Drop the connection: its exchange has no more use for the answer. No more callbacks."""


class Waiter(Protocol):
    """Who asked for a new connection: the exchange."""

    def on_connected(self, connection: BackendConnection) -> None: ...
    def on_connect_failed(self, error: ProxyError) -> None: ...

    def on_internal_error(self, error: Exception) -> None:
        """One of the methods above failed by a fault of our own."""


class Attempt(Protocol):
    """A connect in progress."""

    def abandon(self) -> None:
        """Its waiter is gone."""


class BackendConnections(Protocol):
    """All connections to one backend of one pool."""

    seconds: Histogram
    """From sending a request to its response head."""

    def take(self) -> BackendConnection | None:
        """An idle connection, or None."""

    def open(self, waiter: Waiter, timeout: float, *, fast_open: bool = True) -> Attempt:
        """Connect, and tell *waiter* within *timeout* seconds. *fast_open*: the request may arrive twice (RFC 7413, section 6.2)."""


class Backends(Protocol):
    """The connections to all backends."""

    def of(self, pool: "Pool", identity: str) -> BackendConnections:
        """Those to one backend of *pool*."""
