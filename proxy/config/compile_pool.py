"""One pool: from its model to the balancer's pool and how to reach its endpoints."""

from functools import lru_cache
from math import inf

from balancer.pool import Member, PoolSettings
from balancer.pool import Pool as BalancerPool
from proxy.config import model_pool
from proxy.policy.key import FIXED, KeySource
from proxy.snapshot import Endpoint, HealthCheck, Pool, UpstreamConnections, UpstreamTls


def compile_pool(  # noqa: PLR0913  # a pool and what it is made with
    name: str, model: model_pool.Pool, *, tls: UpstreamTls | None, secret: bytes, seed: int, previous: Pool | None
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
    members = [Member(endpoint.url, endpoint.weight, endpoint.backup) for endpoint in model.endpoints]
    return Pool(
        name=name,
        balancer=BalancerPool(name, members, settings, secret, seed),
        endpoints={endpoint.url: compile_endpoint(endpoint.url) for endpoint in model.endpoints},
        key=key,
        pins=model.balance.policy == "consistent_hash" and key.kind in FIXED,
        tls=tls,
        connections=_connections(
            max_idle=model.connections.max_idle, idle_timeout=model.connections.idle_timeout, lifetime=model.connections.lifetime or inf
        ),
        health=_health(health) if health is not None else None,
    )


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
