"""Where a request would go, step by step, and why: the decisions of ``exchange.py`` retold for people.

Uses the same snapshot, tables and pools as the data path, and changes nothing in them. Knows no sockets.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from balancer.affinity import address_key
from balancer.pool import Step
from proxy.early import why_wait
from proxy.engine.events import RequestHead
from proxy.engine.seam import EngineLimits
from proxy.engine.validate import Malformed, pseudo_request
from proxy.message import Headers, host_of
from proxy.policy.answer import Redirect, Respond
from proxy.policy.template import Variables
from proxy.snapshot import CLASSES, HIGH, LOW, TCP_PROTOCOLS, Forward, Host, Listener, Pool, Route, Snapshot
from proxy.sni import TlsProfile

TRANSPORTS = {**dict.fromkeys(TCP_PROTOCOLS, "TCP"), "h3": "UDP"}
VERSIONS = {"http/1.1": b"HTTP/1.1", "h2": b"HTTP/2", "h3": b"HTTP/3"}

EXPLAINED_LIMITS = EngineLimits(header_count=1000, header_bytes=1024 * 1024)
"""A request on a command line is not hostile."""


@dataclass(frozen=True, slots=True)
class Question:
    """A request as one would ask about it."""

    authority: str
    port: int
    path: str
    """With its query."""
    plain: bool
    """``http://`` instead of ``https://``."""
    method: str
    headers: Headers
    client: str
    """The peer's address."""
    protocol: str
    """``http/1.1``, ``h2`` or ``h3``."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the answer: the step's name (empty where the step goes on) and what there is to say."""

    step: str
    text: str


Places: TypeAlias = Mapping[tuple[str, str], str]
"""By pool and backend: addresses, and how old they are."""

NOWHERE: Places = {}


def explain(snapshot: Snapshot, question: Question, secret: bytes, now: float, places: Places = NOWHERE) -> Iterator[Line]:
    """The steps in the order in which a request meets them; the last line says how it ends.

    *places* tells where DNS has backends that are named by host.
    """
    listener = _listener(snapshot, question)
    if listener is None:
        yield Line("listener", f"none speaks {question.protocol}: there {_are(snapshot)}")
        return
    meant = "" if _meant(listener, question) else f" (the first one: none for {question.protocol} has port {question.port})"
    yield Line("listener", f"{listener.name}, {question.protocol} over {TRANSPORTS[question.protocol]}{meant}")
    try:
        parts = pseudo_request(
            0,
            [
                (b":method", question.method.encode()),
                (b":scheme", b"http" if question.plain else b"https"),
                (b":authority", question.authority.encode()),
                (b":path", question.path.encode()),
                *question.headers,
            ],
            EXPLAINED_LIMITS,
            end=True,
        )
    except Malformed as error:
        yield Line("request", f"refused as malformed: {error.detail} ({error.status}, {error.reason})")
        return
    name = host_of(parts.authority)
    profile = None
    if question.plain:
        yield Line("certificate", "none: plain HTTP on the TLS port gets the health answer, or a redirect to https")
    else:
        sni = name.decode() if not is_address(name.decode()) else None
        profile = snapshot.sni.select(sni)
        if profile is None:
            yield Line(
                "certificate", f"SNI {sni or '(none)'}: unknown, and unknown_sni is 'refuse': the handshake ends with unrecognized_name"
            )
            return
        yield Line(
            "certificate",
            f"SNI {sni or '(none)'} -> {profile.domain}: {profile.certificate.source}, {', '.join(profile.certificate.names)}",
        )
        for other in profile.alternatives:
            kinds = " or ".join(each.kind for each in profile.certificates[: profile.certificates.index(other)])
            yield Line("certificate", f"a client that can't verify {kinds}: {other.source} ({other.kind})")
    host = snapshot.find_host(name)
    if snapshot.answers_health(host, parts.path):
        yield Line("health", f"{parts.path.partition(b'?')[0].decode()} is answered by the proxy itself: 200 OK")
        return
    refusal = _misdirected(host, profile, name.decode(), question)
    if host is None or refusal:
        yield Line("site", refusal)
        return
    yield Line("site", f"{host.site.name} (host {host.pattern})")
    if question.plain:
        port = "" if listener.public_port == 443 else f":{listener.public_port}"
        yield Line("answer", f"308 to https://{_bracketed(name).decode()}{port}{parts.path.decode()}")
        return
    chosen: Route | None = None
    for route, taken, why in host.site.routes.explain(parts.method, parts.path, parts.headers):
        yield Line("route" if route.name else "", f"{'*' if taken else ' '} {route.name} [{route.match.describe()}] {why}")
        chosen = route if taken else chosen
    if question.protocol == "h3" and host.site.early_data:
        wait = why_wait(snapshot, host, parts, (question.client, 0))
        told = f"waits for the end of the handshake: {wait}" if wait else "goes on at once where its flight can't be a copy, else waits"
        yield Line("early data", told)
    if chosen is None:
        yield Line("answer", "404: no route of the site matches")
        return
    client = snapshot.forwarding.client_address(question.client, parts.headers)
    yield Line("class", f"{CLASSES[chosen.priority]}{_shed(snapshot, chosen)}")
    yield from _policies(chosen, client)
    if chosen.access is not None and not chosen.access.permits(client):
        yield Line("answer", "403")
        return
    if isinstance(chosen.action, Redirect):
        location = chosen.action.location
        filled = ""
        if location.constant is None:
            target = chosen.action.target(_variables(parts, question, client, address_key(secret, question.client)))
            filled = f", here {target.decode('latin-1')}"
        yield Line("answer", f"{chosen.action.status} to {location.text}{filled}")
    elif isinstance(chosen.action, Respond):
        yield Line("answer", f"{chosen.action.status} with {len(chosen.action.body)} bytes of its own")
    else:
        pool = chosen.action.pool
        connection_key = address_key(secret, question.client)
        client_key = address_key(secret, client)
        key = pool.key.key(connection_key=connection_key, client_key=lambda: client_key, path=parts.path, headers=parts.headers)
        yield from _forward(chosen.action, key, _key_source(pool, key, connection_key, question), now, places)


def _listener(snapshot: Snapshot, question: Question) -> Listener | None:
    speaking = [listener for listener in snapshot.listeners if question.protocol in listener.protocols]
    for listener in speaking:
        if _meant(listener, question):
            return listener
    return speaking[0] if speaking else None


def _meant(listener: Listener, question: Question) -> bool:
    return question.port in {listener.public_port, listener.address[1]}


def _are(snapshot: Snapshot) -> str:
    return "are " + "; ".join(f"{listener.name} ({', '.join(sorted(listener.protocols))})" for listener in snapshot.sockets)


def is_address(host: str) -> bool:
    """Whether a client would send no SNI for it."""
    return ":" in host or host.replace(".", "").isdigit()


def _bracketed(host: bytes) -> bytes:
    return b"[%b]" % host if b":" in host else host


def _variables(parts: RequestHead, question: Question, client: str, connection_key: bytes) -> Variables:
    """As the exchange would fill them in; the request id is one that no request has."""
    name = host_of(parts.authority)
    return Variables(
        method=parts.method,
        scheme=parts.scheme,
        host=_bracketed(name),
        path=parts.path,
        version=VERSIONS[question.protocol],
        client_address=client.encode(),
        request_id=b"REQUEST-ID",
        affinity_key=connection_key.hex().encode(),
        sni=b"" if is_address(name.decode()) else name,
    )


def _misdirected(host: Host | None, profile: TlsProfile | None, name: str, question: Question) -> str:
    """Why the connection may not carry the request; empty when it may."""
    if host is None:
        return f"421: no site has the host {name}"
    if question.plain:
        return ""
    assert profile is not None
    if profile.is_default:
        return "421: the default certificate serves only the health answer"
    if profile.client_rule != host.site.client_rule:
        return "421: the site's rule for client certificates is not the one of this SNI"
    if not profile.covers(name):
        return f"421: the certificate does not cover {name}"
    return ""


def _shed(snapshot: Snapshot, route: Route) -> str:
    header = snapshot.overload.header
    otherwise = f"; {header.decode()} may say otherwise" if header is not None else ""
    return {LOW: ", the first to be turned away under overload", HIGH: ", served through overload"}.get(route.priority, "") + otherwise


def _policies(route: Route, client: str) -> Iterator[Line]:
    said = False
    for text in _policy_texts(route, client):
        yield Line("" if said else "policies", text)
        said = True
    if not said:
        yield Line("policies", "none")


def _policy_texts(route: Route, client: str) -> Iterator[str]:
    if route.access is not None:
        yield f"access: client {client} is {'allowed' if route.access.permits(client) else 'denied'}"
    if route.body_bytes:
        yield f"request body: {route.body_bytes} bytes at most"
    if isinstance(route.action, Forward) and route.action.rewrite is not None:
        rewrite = route.action.rewrite
        yield f"path prefix {rewrite.prefix.decode()} becomes {rewrite.replacement.decode() or '/'}"
    for what, edit in (("request", route.request_headers), ("response", route.response_headers)):
        if edit is not None:
            changes = [f"set {name.decode()}: {template.text}" for name, template in edit.set]
            changes += [f"remove {name.decode()}" for name in sorted(edit.remove)]
            yield f"{what} headers: {'; '.join(changes)}"


def _forward(action: Forward, key: bytes, source: str, now: float, places: Places) -> Iterator[Line]:
    pool = action.pool
    pinned = ", pinned to the connection" if pool.pins else ""
    count = len(pool.endpoints)
    yield Line("pool", f"{pool.name}: {pool.balancer.settings.policy}{pinned}, {count} endpoint{'' if count == 1 else 's'}")
    shown = key.hex() if pool.key.kind in {"connection", "client_address"} else repr(key)
    yield Line("key", f"{source}: {shown}")
    steps = pool.balancer.explain(key, now)
    yield from candidates(pool, steps, places)
    if not any(step.chosen for step in steps):
        yield Line("answer", "503: no backend of the pool is available")
    else:
        host = {None: "the client's Host", b"": "the endpoint's own Host"}.get(action.host, f"Host {(action.host or b'').decode()}")
        yield Line("answer", f"the backend's; it is sent {host}")


def candidates(pool: Pool, steps: Sequence[Step], places: Places) -> Iterator[Line]:
    """The walk through a pool, and who is chosen."""
    if not steps:
        yield Line(
            "candidates", f"none: DNS has no backends for {', '.join(member.identity for member in pool.written)}, as far as is known"
        )
    for number, step in enumerate(steps, 1):
        mark = "*" if step.chosen else " "
        yield Line("candidates" if number == 1 else "", f"{mark} {number}. {step.backend.identity} ({step.state}): {step.why}")
        if place := places.get((pool.name, step.backend.identity)):
            yield Line("", f"     at {place}")


def _key_source(pool: Pool, key: bytes, connection_key: bytes, question: Question) -> str:
    kind = pool.key.kind
    if kind == "connection" or (kind not in {"client_address", "path"} and key == connection_key):
        fallback = "" if kind == "connection" else f"{kind} {pool.key.name.decode()} is missing, so the connection's: "
        if question.protocol == "h3":
            return fallback + "connection: on HTTP/3 a hash of the client's first connection id; here the one of its address stands for it"
        return fallback + f"connection: on TCP a hash of the client's address, {question.client}"
    return f"{kind} {pool.key.name.decode()}".rstrip()
