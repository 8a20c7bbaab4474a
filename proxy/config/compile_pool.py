"""One pool: from its model to the balancer's pool and how to reach its endpoints."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import groupby
from math import gcd, inf
from typing import TypeAlias

from balancer.pool import Member, PoolSettings
from balancer.pool import Pool as BalancerPool
from proxy.config import model_pool
from proxy.config.names import DNS, SRV
from proxy.policy.key import FIXED, KeySource
from proxy.snapshot import Endpoint, HealthCheck, Pool, UpstreamConnections, UpstreamTls
from proxy.upstream.names import Service

Services: TypeAlias = Callable[[str], Sequence[Service]]
"""The SRV records of a name, as far as they are known."""

_SEVERAL = (SRV, DNS)
_DEFAULT_PORTS = {"http": 80, "https": 443}

BACKUP = 1 << 16
"""The number of backups: behind all priorities of SRV records."""


def compile_pool(  # noqa: PLR0913  # a pool and what it is made with
    name: str, model: model_pool.Pool, *, tls: UpstreamTls | None, secret: bytes, seed: int, previous: Pool | None, services: Services
) -> Pool:
    """The pool. Takes over the previous one's TLS context when it was made from the same things, so that connections are kept."""
    key = compile_key(model.balance.key)
    if tls is not None and previous is not None and previous.tls is not None and previous.tls.fingerprint == tls.fingerprint:
        tls = previous.tls
    health = model.health
    settings = _settings(
        policy=model.balance.policy,
        rise=health.rise if health is not None else 1,
        fall=health.fall if health is not None else 1,
        panic=model.panic,
        retry_budget_ratio=model.retry_budget.ratio,
        retry_budget_min=model.retry_budget.minimum,
        passive_fall=model.passive.fall,
        probed=health is not None,
    )
    written = tuple([Member(endpoint.url, endpoint.weight, BACKUP if endpoint.backup else 0) for endpoint in model.endpoints])
    members, endpoints = populate(written, services)
    return Pool(
        name=name,
        balancer=BalancerPool(name, members, settings, secret, seed),
        endpoints=endpoints,
        key=key,
        pins=model.balance.policy == "consistent_hash" and key.kind in FIXED,
        tls=tls,
        connections=_connections(
            max_idle=model.connections.max_idle, idle_timeout=model.connections.idle_timeout, lifetime=model.connections.lifetime or inf
        ),
        health=_health(health) if health is not None else None,
        written=written,
    )


def populate(written: tuple[Member, ...], services: Services) -> tuple[tuple[Member, ...], dict[str, Endpoint]]:
    """The backends that the endpoints as *written* stand for now, MAX_ENDPOINTS at most."""
    sources = [member for member in written if member.identity[:4] in _SEVERAL]
    if not sources:
        return written, {member.identity: compile_endpoint(member.identity) for member in written}
    members = [member for member in written if member not in sources]
    endpoints = {member.identity: compile_endpoint(member.identity) for member in members}
    for source in sources:
        name = service_of(source.identity)
        scheme = source.identity.partition("+")[2].partition("://")[0]
        for rank, (_, alike) in enumerate(groupby(sorted(services(name)), key=lambda record: record.priority)):
            records = list(alike)
            for record, weight in zip(records, _weights(records), strict=True):
                host = f"[{record.target}]" if ":" in record.target else record.target
                url = f"{scheme}://{host}" + (f":{record.port}" if record.port != _DEFAULT_PORTS.get(scheme) else "")
                if url not in endpoints and len(endpoints) < model_pool.MAX_ENDPOINTS:
                    members.append(Member(url, weight, source.backup + rank))
                    endpoints[url] = replace(compile_endpoint(url), tls_name=_domain(name))
    return tuple(members), endpoints


def service_of(url: str) -> str:
    """The name whose SRV records ``srv+http://NAME`` stands for, or the name with a port whose addresses ``dns+tcp://NAME:PORT`` does.

    Empty for any other endpoint.
    """
    return url.partition("://")[2] if url[:4] in _SEVERAL else ""


def _weights(records: Sequence[Service]) -> list[int]:
    """Weights of one priority as a pool takes them: in their smallest whole proportion, MAX_WEIGHT at most; 0 is 1 (RFC 2782)."""
    common = gcd(*(record.weight for record in records)) or 1
    scale = max(1.0, max((record.weight // common for record in records), default=1) / model_pool.MAX_WEIGHT)
    return [max(1, round(record.weight // common / scale)) for record in records]


def _domain(name: str) -> str:
    """The domain that a service's name is of: without ``_http._tcp`` (RFC 6125, section 1.8: the source domain is what is verified)."""
    labels = name.split(".")
    while len(labels) > 1 and labels[0].startswith("_"):
        del labels[0]
    return ".".join(labels)


_settings = lru_cache(maxsize=256)(PoolSettings)
_connections = lru_cache(maxsize=256)(UpstreamConnections)
"""Most pools have the same ones: equal settings are one object."""


def compile_endpoint(url: str) -> Endpoint:
    """Where a URL leads that ``names.parse_endpoint`` has normalised: a scheme, a host and perhaps a port, nothing else."""
    if url.startswith("unix:"):
        return Endpoint(url=url, secure=False, host="localhost", port=0, unix_path=url.removeprefix("unix:"))
    secure = url.startswith("https://")
    authority = url.partition("://")[2]
    host, colon, port = authority.rpartition(":")
    if not colon or authority.endswith("]"):
        host, port = authority, "443" if secure else "80"
    return Endpoint(url=url, secure=secure, host=host.strip("[]"), port=int(port), unix_path=None)


def compile_key(model: model_pool.KeyChoice | None) -> KeySource:
    """Where the key comes from; by default, the connection."""
    if isinstance(model, model_pool.HeaderKey):
        return KeySource("header", model.header.lower().encode())
    if isinstance(model, model_pool.CookieKey):
        return KeySource("cookie", model.cookie.encode())
    if isinstance(model, model_pool.QueryKey):
        return KeySource("query", model.query.encode())
    return KeySource(model or "connection")


def _health(model: model_pool.HealthCheck) -> HealthCheck:
    return HealthCheck(
        path=model.path,
        host=model.host,
        interval=model.interval,
        jitter=model.jitter,
        timeout=model.timeout,
        statuses=tuple(model.status),
        body=model.body,
    )
