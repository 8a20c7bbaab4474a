"""What engines tell the rest of the proxy: one small vocabulary for all versions of HTTP.

Listener side: RequestHead, then any number of RequestBody, then RequestEnd; StreamReset may cut it anywhere. Upstream side: any number
of Informational, then ResponseHead, ResponseBody, ResponseEnd. Plain slotted classes and not frozen ones, since several are made for
every request: a frozen dataclass costs three times as much to make.
"""

from dataclasses import dataclass, field
from typing import Any, TypeAlias

from proxy.message import Address, Headers


@dataclass(slots=True)
class RequestHead:
    """A valid request head. ``path`` is in origin-form with its query (or ``*`` for OPTIONS); ``authority`` as the client sent it.

    ``headers`` keeps ``content-length`` (once, canonical); ``end`` says that there is no body, and no RequestEnd follows.
    ``expect_continue`` asks for an ``inform(100)`` before the client sends its body.
    """

    stream: int
    method: bytes
    scheme: bytes
    authority: bytes
    path: bytes
    headers: Headers
    end: bool
    content_length: int | None = None
    expect_continue: bool = False
    plain: bool = field(default=False, compare=False)
    """No field is one that a proxy takes out or writes itself (``policy.forwarded.FROM_STRANGERS``, or named by Connection)."""
    early: bool = field(default=False, compare=False)
    """It came before the end of the handshake (RFC 8470)."""


@dataclass(slots=True)
class RequestBody:
    """Body bytes. ``credit`` bytes go back through ``consumed`` once the other side took them (padding is credited by the engine)."""

    stream: int
    data: bytes
    credit: int


@dataclass(slots=True)
class RequestEnd:
    """The request is complete; ``trailers`` is empty in most."""

    stream: int
    trailers: Headers


@dataclass(slots=True)
class StreamReset:
    """The client cut the stream (or, on HTTP/1.1, went away): nothing can be sent on it any more. ``reason`` is for the log."""

    stream: int
    reason: str


@dataclass(slots=True)
class Rejected:
    """The engine refused a request by itself (malformed, too large) and has already answered or reset it. No RequestHead follows.

    Where the head was accepted and the body or the trailers turned out malformed, StreamReset is given instead, after this event.
    ``reason`` is one of ``validate.REASONS``: a bounded set, fit for a metric's label. ``detail`` is text for the log.
    """

    stream: int
    status: int
    reason: str
    detail: str


@dataclass(slots=True)
class Drained:
    """The stream's send queue has fallen under the low-water mark after ``send_data`` had reported more than the high-water mark."""

    stream: int


@dataclass(slots=True)
class ConnectionReady:
    """QUIC: the handshake has come far enough to serve requests."""

    sni: str | None
    alpn: str
    peer: Address
    affinity: bytes
    """The key of ``key: connection`` (``balancer.affinity.connection_key``); a resumed session's is that of its first connection."""
    tls_profile: Any  # a plain object; mypyc can't make a dataclass of that word
    """What ``select`` returned for this SNI (see ``engine/seam.py``)."""
    resumed: bool
    """By a session ticket (RFC 8446, section 2.2)."""
    early: bool = False
    """The handshake is not complete: what comes before ``HandshakeCompleted`` may be a replay (RFC 8446, section 8)."""
    vouched: bool = False
    """With ``early``: it surely is none."""


@dataclass(slots=True)
class HandshakeCompleted:
    """QUIC: a connection that was ready ``early`` is the client's own."""


@dataclass(slots=True)
class PathChanged:
    """QUIC: the client's address changed and the new path was validated (RFC 9000, section 9)."""

    peer: Address


@dataclass(slots=True)
class ConnectionIdsRenewed:
    """QUIC: the client has retired all connection IDs of an earlier form (``seam.Endpoint.change_connection_ids``)."""


@dataclass(slots=True)
class ConnectionStats:
    """QUIC: what a connection saw of the network: in all, and on the path that it used last."""

    round_trip: float
    """Seconds, smoothed (RFC 9002, section 5.3)."""
    congestion_window: int
    """Bytes."""
    packets_sent: int
    packets_lost: int
    bytes_lost: int
    """Of the packets that were declared lost; what of it was data was sent again."""
    datagram_size: int
    """Bytes that the path was found to carry as one UDP payload (RFC 8899)."""
    black_holes: int
    """Times that it was found to carry no longer what it had carried (RFC 8899, section 4.3)."""


@dataclass(slots=True)
class ConnectionClosed:
    """The connection is over; no event of it follows. ``error`` is a short token for metrics, empty for a clean close."""

    error: str
    detail: str
    stats: ConnectionStats | None = None
    """Of an established QUIC connection, by an engine that keeps them."""


@dataclass(slots=True)
class UpstreamRequest:
    """A request head to a backend."""

    method: bytes
    target: bytes
    host: bytes
    headers: Headers
    content_length: int | None
    """As among *headers*."""
    end: bool
    """There is no body."""
    lines: bytes = b""
    """More fields, as lines of HTTP/1.1 that were made before, each with its end."""


@dataclass(slots=True)
class Informational:
    """A 1xx response from a backend (RFC 9110, section 15.2), never 101."""

    status: int
    headers: Headers


@dataclass(slots=True)
class ResponseHead:
    """A final response head from a backend. ``end`` says that nothing follows it, no ResponseEnd either."""

    status: int
    headers: Headers
    end: bool
    content_length: int | None = None
    body: bytes = b""
    """With ``end``: the whole body, where it came in one piece with the head."""
    plain: bool = field(default=False, compare=False)
    """No field ends at this hop."""
    dated: bool = field(default=False, compare=False)
    """There is a Date."""


@dataclass(slots=True)
class ResponseBody:
    """Body bytes from a backend."""

    data: bytes


@dataclass(slots=True)
class ResponseEnd:
    """The response is complete."""

    trailers: Headers


Event: TypeAlias = (
    RequestHead
    | RequestBody
    | RequestEnd
    | StreamReset
    | Rejected
    | Drained
    | ConnectionReady
    | HandshakeCompleted
    | PathChanged
    | ConnectionIdsRenewed
    | ConnectionClosed
)
UpstreamEvent: TypeAlias = Informational | ResponseHead | ResponseBody | ResponseEnd
