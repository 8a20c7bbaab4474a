"""What may be written about a pool of backends."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator

from proxy.config.model_base import Model
from proxy.config.names import SRV, EndpointUrl, FieldName, FileName, ProbePath, ServerName, StatusRange, Token
from proxy.config.units import Duration, DurationOrOff, is_off, says, wrong

MAX_ENDPOINTS = 1000
"""Endpoints of one pool: a ring of so many is built in a third of a second."""


MAX_WEIGHT = 256
"""Of one endpoint."""


class Endpoint(Model):
    """One backend instance. A text alone is its ``url``."""

    url: EndpointUrl
    """``http://host:port``, ``https://host:port`` or ``unix:/path``. It is the backend's identity: the same URL keeps its
    state over a reload. ``srv+http://_http._tcp.api.example.com`` (or ``srv+https://``) stands for as many backends as that name has SRV
    records, which come and go with the answers of DNS."""
    weight: int = Field(default=1, ge=1, le=MAX_WEIGHT)
    """Its share, against the other endpoints' weights. SRV records bring their own."""
    backup: bool = False
    """Used only when no other endpoint of the pool is available."""

    @model_validator(mode="before")
    @classmethod
    def _shorthand(cls, value: Any) -> Any:
        return {"url": value} if isinstance(value, str) else value


class HeaderKey(Model):
    """The value of a request header field."""

    header: FieldName
    """The field's name."""


class CookieKey(Model):
    """The value of a cookie."""

    cookie: Token
    """The cookie's name; case counts."""


class QueryKey(Model):
    """The value of a query parameter."""

    query: Token
    """The parameter's name; case counts."""


KEYS = ("connection", "client_address", "path")


def _key(value: Any) -> Any:
    """Which of the forms of a key it is; so that a mistake is told once and not for each form."""
    expected = "connection, client_address, path, or one of {header: NAME}, {cookie: NAME}, {query: NAME}"
    if isinstance(value, dict):
        models: dict[str, type[Model]] = {"header": HeaderKey, "cookie": CookieKey, "query": QueryKey}
        names = [name for name in models if name in value]
        if len(names) == 1 and len(value) == 1:
            return models[names[0]].model_validate(value)
        raise wrong(expected)
    if value in KEYS:
        return value
    from difflib import get_close_matches  # noqa: PLC0415  # needed for a message only

    near = get_close_matches(str(value), KEYS, n=1)
    raise wrong(expected, suggestion=near[0] if near else None)


_KEY_SCHEMA = {
    "anyOf": [
        {"enum": list(KEYS)},
        *(
            {"type": "object", "properties": {name: {"type": "string"}}, "required": [name], "additionalProperties": False}
            for name in ("header", "cookie", "query")
        ),
    ]
}

KeyChoice = Annotated[
    HeaderKey | CookieKey | QueryKey | Literal["connection", "client_address", "path"], BeforeValidator(_key), WithJsonSchema(_KEY_SCHEMA)
]


class Balance(Model):
    """How the backend of a request is chosen."""

    policy: Literal["consistent_hash", "round_robin", "least_request", "random"] = "consistent_hash"
    """``consistent_hash``: by key, so that the same key keeps its backend; ``round_robin``: in turn, by weight; ``least_request``: the
    less busy of two drawn at random; ``random``."""
    key: KeyChoice | None = None
    """What ``consistent_hash`` hashes: ``connection`` (default: the QUIC connection; on TCP the client's address),
    ``client_address`` (IPv6 by /64), ``path``, ``{header: NAME}``, ``{cookie: NAME}`` or ``{query: NAME}``. A request without that
    field uses its connection."""

    @model_validator(mode="after")
    def _key_counts(self) -> "Balance":
        if self.key is not None and self.policy != "consistent_hash":
            text = f"'key' has no effect with policy {self.policy}; expected no key, or policy consistent_hash"
            raise says(text, "key")
        return self


class HealthCheck(Model):
    """Active probing of every endpoint; ``health: off`` (default) leaves it to live requests."""

    path: ProbePath = "/health"
    """Path that is asked for, by GET."""
    host: ServerName | None = None
    """Host sent with the probe; default: the endpoint's own."""
    interval: Duration = 2.0
    """Time between two probes of one endpoint."""
    jitter: float = Field(default=0.1, ge=0, le=1)
    """Share of the interval by which each probe is moved at random."""
    timeout: Duration = 1.0
    """A probe that takes longer has failed."""
    rise: int = Field(default=2, ge=1, le=100)
    """Successful probes in a row that bring an endpoint up."""
    fall: int = Field(default=3, ge=1, le=100)
    """Failed probes in a row that take an endpoint down."""
    status: list[StatusRange] = Field(default=[(200, 399)], min_length=1, max_length=50)
    """Status codes and ranges that count as healthy; default ``["200-399"]``."""
    body: str | None = Field(default=None, min_length=1, max_length=1024)
    """Text that must occur in the first 64 KiB of the answer's body."""


class Passive(Model):
    """What live requests say about an endpoint."""

    fall: int = Field(default=3, ge=0, le=1000)
    """Live failures in a row (no connection, no answer) that take an endpoint down; 0 is off."""


class RetryBudget(Model):
    """How many retries a pool allows, so that a failing pool is not flooded by them."""

    ratio: float = Field(default=0.2, ge=0, le=10)
    """Retries for each request of the last seconds."""
    minimum: float = Field(default=10, ge=0, le=100_000)
    """Retries a second that are always allowed."""


class Connections(Model):
    """Keep-alive of connections to one endpoint."""

    max_idle: int = Field(default=1024, ge=0, le=65536)
    """Idle connections kept for one endpoint, at most."""
    idle_timeout: Duration = 60.0
    """An idle connection is closed after this time; keep it below the backend's own."""
    lifetime: DurationOrOff = 3600.0
    """A connection this old takes no new request; ``off`` sets no limit."""


class PoolTls(Model):
    """TLS towards ``https://`` endpoints."""

    ca: FileName | None = None
    """PEM file with the authorities to trust; default: those of the system."""
    server_name: ServerName | None = None
    """Name sent as SNI and verified; default: the endpoint's own host."""
    verify: bool = True
    """Whether the endpoint's certificate is verified. Switch it off only for tests."""
    certificate: FileName | None = None
    """PEM file with the client certificate that we show."""
    key: FileName | None = None
    """PEM file with its private key; default: the certificate's file."""
    minimum: Literal["1.2", "1.3"] = "1.2"
    """Lowest version of TLS."""

    @model_validator(mode="after")
    def _whole(self) -> "PoolTls":
        if self.key is not None and self.certificate is None:
            raise says("'key' stands without 'certificate'; expected both, or none", "key")
        if self.ca is not None and not self.verify:
            raise says("'ca' has no effect with 'verify: false'; expected one of the two", "ca")
        return self


NO_TLS = PoolTls()


class Pool(Model):
    """Backends that serve the same thing."""

    endpoints: list[Endpoint] = Field(min_length=1, max_length=MAX_ENDPOINTS)
    """The backend instances, each a URL or ``{url, weight, backup}``."""
    balance: Balance = Balance()
    """How the backend of a request is chosen."""
    health: HealthCheck | None = None
    """Active probing, or ``off``."""
    passive: Passive = Passive()
    """What live requests say about an endpoint; ``off`` switches it off."""
    panic: bool = False
    """When all endpoints are down: true sends requests to all of them as if they were up, false answers 503."""
    retry_budget: RetryBudget = RetryBudget()
    """How many retries the pool allows."""
    connections: Connections = Connections()
    """Keep-alive of connections to one endpoint."""
    tls: PoolTls = NO_TLS
    """TLS towards ``https://`` endpoints."""

    @model_validator(mode="before")
    @classmethod
    def _switches(cls, value: Any) -> Any:
        if isinstance(value, dict):
            value = dict(value)
            if is_off(value.get("health")):
                value["health"] = None
            elif "health" in value and value["health"] is None:
                value["health"] = {}
            if is_off(value.get("passive")):
                value["passive"] = {"fall": 0}
        return value

    @model_validator(mode="after")
    def _distinct(self) -> "Pool":
        seen: set[str] = set()
        for index, endpoint in enumerate(self.endpoints):
            if endpoint.url in seen:
                raise says(f"endpoint {endpoint.url} stands twice in this pool; expected each once (use weight)", "endpoints", str(index))
            seen.add(endpoint.url)
            if endpoint.url[:4] == SRV and "weight" in endpoint.model_fields_set:
                text = "'weight' has no effect: SRV records bring their own weights; expected no weight"
                raise says(text, "endpoints", str(index), "weight")
        if all(endpoint.backup for endpoint in self.endpoints):
            raise says("all endpoints are backups; expected one at least that is not", "endpoints")
        if (
            self.tls is not NO_TLS
            and self.tls != NO_TLS
            and not any(endpoint.url.startswith(("https:", SRV + "https:")) for endpoint in self.endpoints)
        ):
            raise says("'tls' has no effect: no endpoint of the pool is https://", "tls")
        return self
