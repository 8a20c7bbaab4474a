"""Requests in early data (RFC 8470): which go to a backend before the handshake is complete, and where the others wait for its end.

What came before that end may be a copy that somebody recorded, and the client's address anybody's; a copy never completes a handshake.
So a request goes on at once only where the engine vouches that its flight is no copy, where the site allows it, and where neither its
method nor a rule about addresses could do harm; all others are kept until then, and nobody else hears of them before.

Knows the snapshot and events. Knows no engine and no backend.
"""

from collections.abc import Iterator

from proxy.answers import date_header
from proxy.engine.events import Event, Rejected, RequestBody, RequestEnd, RequestHead, StreamReset
from proxy.message import Address, Header, Headers, get, host_of
from proxy.services import Services
from proxy.snapshot import Host, Snapshot
from proxy.stream import ClientConnection

SAFE = frozenset({b"GET", b"HEAD", b"OPTIONS"})
"""Methods that change nothing (RFC 9110, section 9.2.1); of the others, early ones wait."""

EARLY_DATA: Header = (b"early-data", b"1")
"""What a backend is told of a request that was sent on early (RFC 8470, section 5.1)."""

TOO_EARLY = 425
"""The status with which it declines one (section 5.2), and we what would take too much memory."""

HELD_BYTES = 64 * 1024
"""Heads and bodies of a connection that wait, at most: nobody knows yet that the client is where it says, and before it has heard anything
it should send no more than 14,720 (RFC 9002, section 7.2)."""


def why_wait(snapshot: Snapshot, host: Host | None, head: RequestHead, peer: Address) -> str:
    """Why an early request waits whoever vouches for it, in a few words; empty: it need not."""
    if host is None or not host.site.early_data:
        return "early_data is off here"
    if head.method not in SAFE or not head.end:
        return "only GET, HEAD and OPTIONS without a body go on early"
    route = host.site.routes.find(head.method, head.path, head.headers)
    if (route is not None and route.access is not None) or peer[0] in snapshot.trusted_proxies:
        return "who asks is told by an address, which is not validated yet"
    return ""


def marked(headers: Headers) -> Headers:
    """The fields of an early request as a backend gets them. The client may have taken it early itself, and say so."""
    return headers if declared(headers) else [*headers, EARLY_DATA]


def unmarked(headers: Headers) -> Headers:
    """The same fields once the request is early no more."""
    return [field for field in headers if field[0] != b"early-data"]


def declared(headers: Headers) -> bool:
    """Whether the client itself says that the request was early: then 425 is for it (RFC 8470, section 5.2)."""
    return get(headers, b"early-data") is not None


class _Held:
    """One request that waits. Nothing of its body is credited."""

    __slots__ = ("body", "credit", "end", "head")

    def __init__(self, head: RequestHead) -> None:
        self.head = head
        self.body = bytearray()
        self.credit = 0
        self.end: RequestEnd | None = None


class EarlyRequests:
    """The requests of one connection that took early data, until its handshake is complete. *vouched*: its first flight is no copy."""

    def __init__(self, services: Services, client: ClientConnection, *, vouched: bool) -> None:
        self._services = services
        self._client = client
        self._vouched = vouched
        self._held: dict[int, _Held] = {}
        self._bytes = 0
        self.repeated: list[int] = []
        """Streams whose request goes to its backend again."""

    def holds(self, event: Event) -> bool:
        """Whether *event* is kept here."""
        if type(event) is RequestHead:
            if self._vouched and not self._why_wait(event):
                self._count("sent")
                return False
            self._held[event.stream] = _Held(event)
            self._count("waited")
            self._take(event.stream, len(event.path) + sum([len(name) + len(value) for name, value in event.headers]))
            return True
        if isinstance(event, StreamReset | Rejected):
            self._held.pop(event.stream, None)
            return False
        held = self._held.get(event.stream) if isinstance(event, RequestBody | RequestEnd) else None
        if held is None:
            return False
        if isinstance(event, RequestBody):
            held.body += event.data
            held.credit += event.credit
            self._take(event.stream, len(event.data))
        else:
            assert isinstance(event, RequestEnd)
            held.end = event
        return True

    def release(self) -> Iterator[Event]:
        """The handshake is complete: what was kept, in the order of the requests."""
        for stream, held in self._held.items():
            held.head.early = False
            yield held.head
            if held.credit:
                yield RequestBody(stream, bytes(held.body), held.credit)
            if held.end is not None:
                yield held.end

    def repeat(self, stream: int) -> None:
        """The backend wants the request of *stream* after the handshake (RFC 8470, section 5.2)."""
        self._count("repeated")
        self.repeated.append(stream)

    def _take(self, stream: int, size: int) -> None:
        """Count what is kept. A request that would be too much is declined; its client asks again after the handshake."""
        self._bytes += size
        if self._bytes > HELD_BYTES:
            del self._held[stream]
            self._count("declined")
            self._client.respond(stream, TOO_EARLY, [date_header(self._services.wall_clock())], b"")

    def _count(self, outcome: str) -> None:
        self._services.meters.early_requests.cell(outcome).value += 1

    def _why_wait(self, head: RequestHead) -> str:
        snapshot = self._services.snapshot
        return why_wait(snapshot, snapshot.find_host(host_of(head.authority)), head, self._client.peer)
