"""Who is the client, and what the backend is told about the connection: Forwarded, X-Forwarded-*, Via, X-Request-Id.

Knows addresses and fields; nothing of sockets. What a client says about itself counts only when a trusted proxy passed it on.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

from proxy.message import Header, Headers, get
from proxy.policy.access import Networks, plain_address
from proxy.policy.headers import HOP_BY_HOP, connection_named

MEMO = 4096
"""Peers, authorities and hops that are remembered, at most."""

MAX_HOPS = 32
"""Proxies in front of us whose word is followed, at most."""

MAX_HOP = 64
"""Bytes of a hop with an address, at most: IPv6 in brackets with its port takes 53."""

MAX_COMMAS = 4 * MAX_HOPS
"""Commas of a Forwarded field that are tried as ends of an element, at most: some stand within quotes."""

MAX_REQUEST_ID = 128
"""Bytes of a request id that is taken over from a trusted proxy, at most."""

_OURS = (b"forwarded", b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto", b"x-request-id")
_CLAIMS = (
    b"x-forwarded",
    b"x-forwarded-by",
    b"x-forwarded-client-cert",
    b"x-forwarded-port",
    b"x-forwarded-prefix",
    b"x-forwarded-proto-version",
    b"x-forwarded-scheme",
    b"x-forwarded-server",
    b"x-forwarded-ssl",
    b"x-real-ip",
    b"x-client-ip",
    b"x-cluster-client-ip",
    b"true-client-ip",
    b"x-original-forwarded-for",
)


def _spellings(names: Iterable[bytes]) -> frozenset[bytes]:
    """The names with each hyphen also as an underscore: CGI and WSGI can't tell the two apart (RFC 3875, section 4.1.18)."""
    spellings: set[bytes] = set()
    for name in names:
        first, *rest = name.split(b"-")
        for joints in product((b"-", b"_"), repeat=len(rest)):
            spellings.add(first + b"".join(joint + part for joint, part in zip(joints, rest, strict=True)))
    return frozenset(spellings)


_NEVER = HOP_BY_HOP | {b"proxy"}
"""``proxy`` is no field at all, but CGI makes HTTP_PROXY of it, which many clients behind it obey (CVE-2016-5385 and its like)."""
FROM_STRANGERS = _NEVER | _spellings(_OURS + _CLAIMS)
"""What is not passed on for a peer that isn't trusted: what ends at this hop, and what only a proxy knows about a client."""
_FROM_PROXIES = _NEVER | _spellings(_OURS)
"""What is written anew from what a trusted peer said."""

_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_NEEDS_ESCAPE = re.compile(rb'(["\\])')
_PAIR = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+=(?:[!#$%&'*+.^_`|~0-9A-Za-z:\[\]-]+|\"(?:[^\"\\]|\\.)*\")"
_ELEMENT = re.compile(rb"(?:%b)?(?:[ \t]*;[ \t]*(?:%b)?)*" % (_PAIR, _PAIR))
"""forwarded-element of RFC 7239, section 4; lenient with an address that lacks its quotes."""
_FOR = re.compile(rb"(?:^|;)[ \t]*for=(\"[^\"]*\"|[^;\"]+)", re.IGNORECASE)


@dataclass(slots=True)
class Outbound:
    """What goes to the backend, and what was learnt on the way."""

    headers: Headers
    client_address: str
    """The client behind trusted proxies."""
    request_id: bytes


@dataclass(frozen=True, slots=True)
class Hop:
    """What this hop says of a peer that isn't trusted and asks for one authority: the same for all its requests."""

    address: str
    """The client's."""
    fields: tuple[Header, ...]
    """All but X-Request-Id, which stands behind them."""
    lines: bytes
    """The same as lines of HTTP/1.1, up to the value of X-Request-Id."""


@dataclass(slots=True)
class _Peer:
    """A peer's address in the three forms that are needed."""

    address: str
    trusted: bool
    plain: bytes
    node: bytes
    """``for=...`` of RFC 7239, complete."""


class Forwarding:
    """The rule for all requests of a snapshot: whom to believe, and how request ids are made."""

    __slots__ = ("_hosts", "_make_request_id", "_peers", "_protocols", "_vias", "trusted")

    def __init__(self, trusted: Networks, make_request_id: Callable[[], bytes]) -> None:
        self.trusted = trusted
        self._make_request_id = make_request_id
        self._peers: dict[str, _Peer] = {}
        self._hosts: dict[bytes, bytes] = {}
        self._protocols = {scheme: (b";proto=" + scheme, (b"x-forwarded-proto", scheme)) for scheme in (b"https", b"http")}
        self._vias: dict[str, Header] = {
            version: (b"via", version.removeprefix("HTTP/").encode() + b" qproxy")
            for version in ("HTTP/1.0", "HTTP/1.1", "HTTP/2", "HTTP/3")
        }

    def outbound(self, headers: Headers, *, peer: str, authority: bytes, scheme: bytes, version: str) -> Outbound:
        """The fields for the backend, without hop-by-hop ones and with what this hop knows.

        Via is a list to which each hop adds (RFC 9110, section 7.6.3): ours is a line of its own, behind those that came.
        """
        known = self._peers.get(peer) or self._learn(peer)
        if known.trusted:
            return self._outbound_trusted(headers, known, authority, scheme, version)
        request_id = self._make_request_id()
        said = self._say(known, authority, scheme, version)
        return Outbound([*from_stranger(headers), *said, (b"x-request-id", request_id)], known.address, request_id)

    def hop(self, peer: str, *, authority: bytes, scheme: bytes, version: str) -> Hop | None:
        """What ``outbound`` adds for every request of a peer that isn't trusted; None for one that is: it depends on its fields."""
        known = self._peers.get(peer) or self._learn(peer)
        if known.trusted:
            return None
        fields = self._say(known, authority, scheme, version)
        lines = b"".join([b"%b: %b\r\n" % field for field in fields])
        return Hop(known.address, fields, lines + b"x-request-id: ")

    def _say(self, known: _Peer, authority: bytes, scheme: bytes, version: str) -> tuple[Header, ...]:
        proto, forwarded_proto = self._protocols[scheme]
        address = (b"x-forwarded-for", known.plain)
        if not authority:
            return (b"forwarded", known.node + proto), address, forwarded_proto, self._vias[version]
        host = self._hosts.get(authority) or self._quote_host(authority)
        forwarded = (b"forwarded", known.node + host + proto)
        return forwarded, address, (b"x-forwarded-host", authority), forwarded_proto, self._vias[version]

    def client_address(self, peer: str, headers: Headers) -> str:
        """The address of the client: of all hops, from the nearest on, the first that is not trusted.

        X-Forwarded-For counts, and Forwarded where there is none. A hop without a readable address ends the search at the one before it.
        """
        known = self._peers.get(peer) or self._learn(peer)
        return self._client_behind(known, _chain(headers)) if known.trusted else known.address

    def _outbound_trusted(self, headers: Headers, known: _Peer, authority: bytes, scheme: bytes, version: str) -> Outbound:
        passed = [header for header in headers if header[0] not in _FROM_PROXIES]
        headers = [header for header in headers if header[0] in _FROM_PROXIES]
        named = connection_named(headers)
        if named:
            passed = [header for header in passed if header[0] not in named]
        proto, forwarded_proto = self._protocols[scheme]
        host = (self._hosts.get(authority) or self._quote_host(authority)) if authority else b""
        chain = _chain(headers)
        read = [_address(hop) for hop in chain]
        forwarded = _joined(headers, b"forwarded")
        if None in read or [_address(hop) for hop in _forwarded_chain(forwarded)] != read:
            # A proxy that writes only X-Forwarded-For passes the client's own Forwarded on: it has to agree, or it goes.
            forwarded = b", ".join([_node(hop) for hop in chain])
        addresses = _joined(headers, b"x-forwarded-for") or b", ".join([(hop or "unknown").encode() for hop in read])
        element = known.node + host + proto
        passed.append((b"forwarded", forwarded + b", " + element if forwarded else element))
        passed.append((b"x-forwarded-for", addresses + b", " + known.plain if addresses else known.plain))
        forwarded_host = get(headers, b"x-forwarded-host") or authority
        if forwarded_host:
            passed.append((b"x-forwarded-host", forwarded_host))
        said = get(headers, b"x-forwarded-proto")
        passed.append((b"x-forwarded-proto", said) if said else forwarded_proto)
        passed.append(self._vias[version])
        request_id = get(headers, b"x-request-id")
        if not request_id or len(request_id) > MAX_REQUEST_ID or not _TOKEN.fullmatch(request_id):
            request_id = self._make_request_id()
        passed.append((b"x-request-id", request_id))
        return Outbound(passed, self._client_behind(known, chain), request_id)

    def _client_behind(self, known: _Peer, chain: list[bytes]) -> str:
        client = known.address
        for hop in reversed(chain):
            address = _address(hop)
            if address is None:
                break
            client = address
            if address not in self.trusted:
                break
        return client

    def _learn(self, peer: str) -> _Peer:
        if len(self._peers) >= MEMO:
            self._peers.clear()
        try:
            address = plain_address(peer)
        except ValueError:
            address = "unknown"
        plain = address.encode()
        known = self._peers[peer] = _Peer(address, address in self.trusted, plain, _node(plain))
        return known

    def _quote_host(self, authority: bytes) -> bytes:
        if len(self._hosts) >= MEMO:
            self._hosts.clear()
        value = authority if _TOKEN.fullmatch(authority) else b'"' + _NEEDS_ESCAPE.sub(rb"\\\1", authority) + b'"'
        quoted = self._hosts[authority] = b";host=" + value
        return quoted


def from_stranger(headers: Headers) -> Headers:
    """The fields of a peer that isn't trusted that go on, in a new list."""
    passed = [header for header in headers if header[0] not in FROM_STRANGERS]
    if len(passed) != len(headers):
        named = connection_named(headers)
        if named:
            return [header for header in passed if header[0] not in named]
    return passed


def _node(address: bytes) -> bytes:
    """``for=`` an address (RFC 7239, section 6): IPv6 in brackets, and quoted; what is no address is ``unknown``."""
    plain = _address(address)
    if plain is None:
        return b"for=unknown"
    return b'for="[%b]"' % plain.encode() if ":" in plain else b"for=" + plain.encode()


def _joined(headers: Headers, name: bytes) -> bytes:
    """All lines of a list-based field as one (RFC 9110, section 5.3)."""
    return b", ".join([value for key, value in headers if key == name and value])


def _chain(headers: Headers) -> list[bytes]:
    """The last ``MAX_HOPS`` hops that proxies in front told of, the client's first, each as it was written."""
    addresses = _joined(headers, b"x-forwarded-for")
    if addresses:
        return [hop.strip(b" \t") for hop in addresses.rsplit(b",", MAX_HOPS)[-MAX_HOPS:]]
    return _forwarded_chain(_joined(headers, b"forwarded"))


def _forwarded_chain(text: bytes) -> list[bytes]:
    """The hops of a Forwarded field, read from the right, where the nearest proxy wrote: what a client put in front can't hide that.

    Where it can't be read any further, the rest is one ``unknown`` hop.
    """
    hops: list[bytes] = []
    start = end = len(text)
    for _ in range(MAX_COMMAS):
        if start <= 0 or len(hops) == MAX_HOPS:
            break
        start = max(text.rfind(b",", 0, start), 0)
        element = text[start:end].strip(b", \t")
        if element and _ELEMENT.fullmatch(element):
            found = _FOR.search(element)
            hops.append(found.group(1).strip(b'" \t') if found else b"unknown")
            end = start
    if text[:end].strip(b", \t") and len(hops) < MAX_HOPS:
        hops.append(b"unknown")
    hops.reverse()
    return hops


def _address(hop: bytes) -> str | None:
    """The address in a hop, normalised: port and brackets off; None for names, ``unknown`` and ``_hidden``."""
    return _parse(hop) if len(hop) <= MAX_HOP else None


@lru_cache(MEMO)
def _parse(hop: bytes) -> str | None:
    text = hop.decode("latin-1")
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        return plain_address(text)
    except ValueError:
        return None
