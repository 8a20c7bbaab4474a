"""What an exchange needs of the listener side: the client's connection, with verbs by stream number.

Knows no engine and no socket. ``listen/tcp.py`` and ``listen/udp.py`` implement it; tests use a fake.
"""

from typing import TYPE_CHECKING, Protocol

from proxy.errors import Reset
from proxy.message import Address, Headers

if TYPE_CHECKING:
    from balancer.backend import Backend
    from proxy.admission import Admitted
    from proxy.snapshot import Listener, TlsProfile


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
