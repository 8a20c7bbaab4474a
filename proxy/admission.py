"""Which site a request is for, and whether its connection may ask for it: what is settled before any route.

Knows the snapshot and the client's connection, and nothing of backends. What was settled is kept on the connection (``Admitted``), so that
its next request for the same authority pays four comparisons.
"""

from proxy.answers import DRAINING, HEALTH_METHODS, NOT_ALLOWED, OVERLOADED, POOLS_DOWN, READY
from proxy.engine.events import RequestHead
from proxy.errors import Kind, ProxyError
from proxy.message import Header, bracketed, host_of
from proxy.policy.answer import Respond
from proxy.services import Services
from proxy.snapshot import Host, Snapshot
from proxy.stream import ClientConnection


class Admitted:
    """One authority that a connection may ask for, and what all its requests for it have in common."""

    __slots__ = ("address", "alt_svc", "authority", "hop", "host", "requests", "scheme", "site", "snapshot")

    def __init__(self, snapshot: Snapshot, client: ClientConnection, head: RequestHead, host: Host) -> None:
        self.snapshot = snapshot
        self.address = client.peer[0]
        self.authority = head.authority
        self.scheme = head.scheme
        self.host = host
        self.site = host.site
        self.requests = host.requests[client.version]
        """The counter of the host's requests by this version."""
        self.hop = snapshot.forwarding.hop(self.address, authority=head.authority, scheme=head.scheme, version=client.version)
        """What the backend is told of the connection; None: the peer is trusted, and each request says more."""
        alt_svc = client.listener.alt_svc
        self.alt_svc: Header | None = None
        """The field that tells of HTTP/3, for a client that is not on it."""
        if alt_svc is not None and client.version != "HTTP/3":
            self.alt_svc = (b"alt-svc", alt_svc)

    def holds(self, snapshot: Snapshot, client: ClientConnection, head: RequestHead) -> bool:
        """Whether it is for this request too. On QUIC the client's address may change."""
        return (
            self.snapshot is snapshot and self.authority == head.authority and self.address == client.peer[0] and self.scheme == head.scheme
        )


def admit(services: Services, client: ClientConnection, head: RequestHead) -> Admitted | Respond:
    """The site of a request, or an answer that needs none: health, and the redirect to https. ProxyError: misdirected."""
    snapshot = services.snapshot
    name = host_of(head.authority)
    host = snapshot.find_host(name)
    if snapshot.answers_health(host, head.path):
        return health(services, head.method)
    if client.tls is None:
        return _to_https(client, head, name, host)
    if host is None or not _may_ask(client, name, host):
        raise ProxyError(Kind.MISDIRECTED, "this connection's certificate or rules are not for that authority")
    return Admitted(snapshot, client, head, host)


def health(services: Services, method: bytes) -> Respond:
    """The answer to a request for the health path."""
    if method not in HEALTH_METHODS:
        return NOT_ALLOWED
    if services.draining and not services.succeeded:
        return DRAINING
    if services.shedding is not None and services.shedding.full:
        return OVERLOADED
    if not services.readiness.enough(services.snapshot, services.clock()):
        return POOLS_DOWN
    return READY


def _may_ask(client: ClientConnection, name: bytes, host: Host) -> bool:
    """Whether this connection may carry requests for *host* (RFC 9110, section 7.4; RFC 9113, section 9.1.1)."""
    tls = client.tls
    return tls is not None and not tls.is_default and tls.client_rule == host.site.client_rule and tls.covers(name.decode("latin-1"))


def _to_https(client: ClientConnection, head: RequestHead, name: bytes, host: Host | None) -> Respond:
    """Plain HTTP on the TLS port."""
    if host is None:
        raise ProxyError(Kind.MISDIRECTED, "no such host here, and this port speaks https")
    port = client.listener.public_port
    authority = bracketed(name) + (b"" if port == 443 else b":%d" % port)
    path = head.path if head.path[:1] == b"/" else b"/"
    return Respond(308, ((b"location", b"https://" + authority + path), (b"content-length", b"0")), b"")
