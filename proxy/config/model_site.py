"""What may be written about a site: hosts, certificate, routes, policies."""

from typing import Annotated, Any, Literal

from pydantic import Field, Tag, model_validator

from proxy.config.model_base import SWITCH, Model
from proxy.config.model_pool import Pool
from proxy.config.names import (
    BodyText,
    Condition,
    EditableField,
    FieldName,
    FieldValue,
    FileName,
    HostName,
    Method,
    Name,
    Network,
    Path,
    TemplateText,
    UpstreamHost,
)
from proxy.config.units import Duration, DurationOrOff, SizeOrOff, is_off, says

ACTIONS = ("pool", "redirect", "respond")


class Health(Model):
    """The proxy's own health answer."""

    path: Path = "/health"
    """Path that answers GET and HEAD: 200 and ``OK``, or 503 and why. See docs/explanation/health.md."""


HealthOrOff = Annotated[Annotated[Health, Tag("on")] | Annotated[Literal["off"], Tag("off")], SWITCH]


class ClientCertificates(Model):
    """Certificates that clients show."""

    ca: FileName
    """PEM file with the authorities that sign them."""
    mode: Literal["require", "request"] = "require"
    """``require``: no handshake without one; ``request``: verified when given."""


class Pair(Model):
    """A certificate with its key."""

    certificate: FileName
    """PEM file with the certificate and its chain."""
    key: FileName | None = None
    """PEM file with the private key; default: the certificate's file."""


class SiteTls(Model):
    """The certificate of a site's hosts. Without one, ``server.tls`` must cover them."""

    certificate: FileName | None = None
    """PEM file with the certificate and its chain, the site's own first."""
    key: FileName | None = None
    """PEM file with the private key; default: the certificate's file."""
    alternatives: list[Pair] = Field(default_factory=list, max_length=2)
    """Certificates of the same hosts with keys of other kinds, as RSA beside ECDSA, on TCP and QUIC alike. A client gets the first
    that it can verify by its own word (``signature_algorithms``), in the order ECDSA, Ed25519, RSA."""
    self_signed: bool = False
    """Make a certificate and keep it in the state folder: for tests and development."""
    client_certificates: ClientCertificates | None = None
    """Ask clients for certificates."""

    @model_validator(mode="after")
    def _one_source(self) -> "SiteTls":
        if self.self_signed and self.certificate is not None:
            raise says("'self_signed' and 'certificate' exclude each other; expected one of the two", "self_signed")
        if self.key is not None and self.certificate is None:
            raise says("'key' stands without 'certificate'; expected both, or none", "key")
        if self.alternatives and self.certificate is None:
            raise says("'alternatives' stand without 'certificate'; expected both, or none", "alternatives")
        return self


class Access(Model):
    """Who may, by client address. ``deny`` wins; with ``allow``, only those."""

    allow: list[Network] | None = Field(default=None, max_length=10_000)
    """Networks that may; a route's list takes the place of its site's."""
    deny: list[Network] = Field(default_factory=list, max_length=10_000)
    """Networks that may not; a route's list adds to its site's."""


class HeaderEdits(Model):
    """Header fields to set and to remove."""

    set: dict[EditableField, TemplateText] = Field(default_factory=dict)
    """Fields to set, each in place of all of that name; ``{variables}`` are filled in."""
    remove: list[EditableField] = Field(default_factory=list)
    """Fields to remove."""

    @model_validator(mode="after")
    def _distinct(self) -> "HeaderEdits":
        seen: dict[str, str] = {}
        for name in self.set:
            if name.lower() in seen:
                raise says(f"field {name!r} is set twice (case does not count): first as {seen[name.lower()]!r}", "set", name)
            seen[name.lower()] = name
        return self


class Headers(Model):
    """Edits of header fields. A site's and its routes' add up; the route's win."""

    request: HeaderEdits = HeaderEdits()
    """On the way to the backend."""
    response: HeaderEdits = HeaderEdits()
    """On the way to the client."""


class Timeouts(Model):
    """Time limits of one exchange. A route's take the place of its site's, key by key."""

    connect: Duration | None = None
    """To a connection with the backend; default 5s. Then the next candidate is tried."""
    response: Duration | None = None
    """From the end of the request to the head of the answer; default 60s."""
    idle: Duration | None = None
    """Without a byte of a body moving, either way; default 60s."""
    total: DurationOrOff | None = None
    """For the whole exchange; default off."""


class Retry(Model):
    """Trying a request on the next candidate: only idempotent ones, and only before a byte of an answer."""

    attempts: int | None = Field(default=None, ge=1, le=10)
    """Tries in all, the first one included; default 2. 1 means no retry."""
    body: SizeOrOff | None = None
    """Request body kept for another try, at most; default 64KiB. A request with more is tried once."""

    @model_validator(mode="after")
    def _bounded(self) -> "Retry":
        if self.body is not None and self.body > MAX_KEPT_BODY:
            raise says("'body' is more than a request may keep in memory; expected 16MiB at most", "body")
        return self


MAX_KEPT_BODY = 16 * 1024 * 1024

NO_HEADERS, NO_TIMEOUTS, NO_RETRY = Headers(), Timeouts(), Retry()
"""What stands where a key is not given: these very objects, so that the compiler sees it at a glance."""


class RouteLimits(Model):
    """Bounds on requests."""

    body_size: SizeOrOff | None = None
    """Largest request body; ``off`` sets no limit. Default: what stands one level up."""


class Match(Model):
    """What a request must be like; all conditions must hold. Nothing given matches everything."""

    path: Path | None = None
    """Prefix of the path, by whole segments."""
    exact: Path | None = None
    """The whole path."""
    methods: list[Method] = Field(default_factory=list, max_length=50)
    """Methods; empty: any."""
    headers: dict[FieldName, Condition] = Field(default_factory=dict)
    """Header fields and their values; no value: the field must be there."""
    query: dict[str, Condition] = Field(default_factory=dict)
    """Query parameters and their values; no value: the parameter must be there."""

    @model_validator(mode="after")
    def _one_path(self) -> "Match":
        if self.path is not None and self.exact is not None:
            raise says("'path' and 'exact' exclude each other; expected one of the two", "exact")
        return self


class Redirect(Model):
    """Send the client elsewhere. A text alone is ``to``."""

    to: TemplateText = Field(min_length=1)
    """The Location; ``{host}``, ``{path}`` (with its query) and other variables are filled in."""
    status: Literal[301, 302, 303, 307, 308] = 308
    """Status code."""

    @model_validator(mode="before")
    @classmethod
    def _shorthand(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"to": value}
        return _whole_status(value)


class Respond(Model):
    """A fixed answer."""

    status: int = Field(default=200, ge=200, le=599)
    """Status code."""
    body: BodyText = ""
    """The body; ``!file`` takes it from a file."""
    headers: dict[EditableField, FieldValue] = Field(default_factory=dict)
    """Header fields; content-type is ``text/plain; charset=utf-8`` unless set here."""

    @model_validator(mode="after")
    def _bodiless(self) -> "Respond":
        if self.body and self.status in (204, 205, 304):
            raise says(f"status {self.status} has no body (RFC 9110, section 15); expected no 'body', or another status", "body")
        return self


class ReplacePrefix(Model):
    """Put another prefix in the place of one, on the way to the backend."""

    from_: Path = Field(alias="from")
    """Prefix to take off, by whole segments."""
    to: Path
    """What takes its place."""


class Route(Model):
    """What happens to the requests that match: exactly one of ``pool``, ``redirect`` and ``respond``."""

    match: Match = Match()
    """Which requests. The order: exact path, longest prefix, more conditions, order of the file."""
    pool: Name | None = None
    """Send them to this pool, of the site or shared."""
    redirect: Redirect | None = None
    """Send the client elsewhere."""
    respond: Respond | None = None
    """Answer at once."""
    strip_prefix: Path | None = None
    """Prefix that is taken off the path on the way to the backend."""
    replace_prefix: ReplacePrefix | None = None
    """Prefix in whose place another one is put."""
    host: UpstreamHost | None = None
    """Host sent to the backend: ``preserve`` (default) keeps the client's, ``endpoint`` takes the endpoint's own; else it is literal."""
    priority: Literal["low", "normal", "high"] = "normal"
    """The class of its requests: under overload, ``low`` is turned away first and ``high`` served as long as possible
    (``server.overload``)."""
    access: Access | None = None
    """Who may, by client address."""
    headers: Headers = NO_HEADERS
    """Edits of header fields."""
    timeouts: Timeouts = NO_TIMEOUTS
    """Time limits."""
    retry: Retry = NO_RETRY
    """Trying a request again."""
    limits: RouteLimits = RouteLimits()
    """Bounds on requests."""

    @model_validator(mode="after")
    def _one_action(self) -> "Route":
        given = [name for name in ACTIONS if getattr(self, name) is not None]
        if len(given) != 1:
            have = " and ".join(given) if given else "none"
            raise says(f"this route has {have}; expected exactly one of pool, redirect, respond", *given[1:2])
        if self.strip_prefix is not None and self.replace_prefix is not None:
            raise says("'strip_prefix' and 'replace_prefix' exclude each other; expected one of the two", "replace_prefix")
        if self.pool is None:
            useless = ("strip_prefix", "replace_prefix", "host", "retry", "timeouts")
            found = next((name for name in useless if name in self.model_fields_set), None)
            if found is not None:
                raise says(f"{found!r} has no effect without 'pool'; expected it on routes to a pool", found)
        return self


class Site(Model):
    """Hosts that share a certificate, routes and rules."""

    hosts: list[HostName] = Field(min_length=1, max_length=1000)
    """Host names; ``*.example.com`` stands for one label in front. The first one names the site."""
    tls: SiteTls | None = None
    """The certificate; without one, ``server.tls`` must cover the hosts."""
    health: HealthOrOff | None = None
    """The proxy's own health answer on these hosts, or ``off``; default: as in ``server``."""
    access: Access | None = None
    """Who may, by client address."""
    headers: Headers = NO_HEADERS
    """Edits of header fields for all routes."""
    timeouts: Timeouts = NO_TIMEOUTS
    """Time limits for all routes."""
    retry: Retry = NO_RETRY
    """Trying a request again, for all routes."""
    limits: RouteLimits = RouteLimits()
    """Bounds on requests, for all routes."""
    early_data: bool = False
    """Whether HTTP/3 clients that come back may send requests before the end of the handshake (0-RTT), which saves them a round trip. Only
    GET, HEAD and OPTIONS go on at once, with ``Early-Data: 1`` (RFC 8470), and only where surely nobody has sent a copy: other processes
    with the same state folder are noticed, and then all wait for the end; machines that have a copy of its secret are not, so leave it off
    there. With ``server.cluster`` all wait always, so that it saves no round trip there."""
    routes: list[Route] = Field(min_length=1, max_length=10_000)
    """What happens to requests."""
    pools: dict[Name, Pool] = Field(default_factory=dict)
    """Pools of this site; ``pools`` of a file are shared by all sites."""

    @model_validator(mode="before")
    @classmethod
    def _switch(cls, value: Any) -> Any:
        return health_switch(value)

    @model_validator(mode="after")
    def _early(self) -> "Site":
        if self.early_data and self.tls is not None and self.tls.client_certificates is not None:
            raise says("'early_data' has no effect with client certificates: they are asked for in the handshake", "early_data")
        return self


def health_switch(value: Any) -> Any:
    """``health: off`` and ``health:`` alone, in their one form."""
    if isinstance(value, dict) and "health" in value:
        given = value["health"]
        if is_off(given):
            return {**value, "health": "off"}
        if given is None:
            return {**value, "health": {}}
    return value


def _whole_status(value: Any) -> Any:
    """A Literal takes no text for a number."""
    if (
        isinstance(value, dict)
        and isinstance(status := value.get("status"), str)
        and status.isascii()
        and status.isdigit()
        and len(status) < 5
    ):
        return {**value, "status": int(status)}
    return value
