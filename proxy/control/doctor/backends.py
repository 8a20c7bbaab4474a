"""The backends themselves: whether DNS knows them, they can be connected to, and they answer their health check.

Asks each once, as the proxy would: by its own resolver and its own check.
"""

import asyncio
import shlex
from collections.abc import Callable, Mapping

from proxy.config.compile_pool import service_of
from proxy.control.check import Checker
from proxy.control.doctor.finding import Finding
from proxy.errors import ProxyError
from proxy.snapshot import Endpoint, HealthCheck, Pool
from proxy.upstream.connect import connect
from proxy.upstream.resolve import Addresses, is_address

PARALLEL = 64
"""Backends that are asked at the same time."""

CONNECT_SECONDS = 5.0
"""For a backend that has no health check."""


async def examine_backends(pools: Mapping[str, Pool], addresses: Addresses, services: Callable[[str], str | None]) -> list[Finding]:
    """Ask all of them. *services* tells how the lookup of an SRV name went."""
    gate = asyncio.Semaphore(PARALLEL)
    findings = [
        _service(pool, member.identity, services(name))
        for pool in pools.values()
        for member in pool.written
        if (name := service_of(member.identity))
    ]
    checkers = [Checker(pool.health, pool.tls, addresses) if pool.health is not None else None for pool in pools.values()]
    asked = [
        _examine(pool, endpoint, checker, addresses, gate)
        for pool, checker in zip(pools.values(), checkers, strict=True)
        for endpoint in pool.endpoints.values()
    ]
    try:
        findings += await asyncio.gather(*asked)
    finally:
        for checker in checkers:
            if checker is not None:
                await checker.close()
    return findings


def _service(pool: Pool, url: str, words: str | None) -> Finding:
    what = f"{pool.name} {url}"
    if words is not None and words.startswith("fresh"):
        return Finding("ok", "backend", what, f"SRV records: {words}")
    found = words or "not looked up"
    return Finding("failure", "backend", what, found, "SRV records", f"dig SRV {shlex.quote(service_of(url))}")


async def _examine(pool: Pool, endpoint: Endpoint, checker: Checker | None, addresses: Addresses, gate: asyncio.Semaphore) -> Finding:
    what = f"{pool.name} {endpoint.url}"
    async with gate:
        try:
            at = await _where(endpoint, addresses)
        except ProxyError as error:
            return Finding("failure", "backend", what, error.detail, "a name that DNS knows", f"dig {shlex.quote(endpoint.host)}")
        if checker is None:
            try:
                await connect(_Touch, endpoint, pool.tls, CONNECT_SECONDS, addresses=addresses, fast_open=False)
            except ProxyError as error:
                found = error.detail.removeprefix(f"{endpoint.url}: ") + at
                return Finding("failure", "backend", what, found, "a connection", _curl(endpoint, "/"))
            return Finding("ok", "backend", what, f"can be connected to; the pool has no health check{at}")
        verdict = await checker.check(endpoint)
    if verdict.healthy:
        return Finding("ok", "backend", what, verdict.words + at)
    assert pool.health is not None
    return Finding(
        "failure", "backend", what, verdict.words + at, f"a healthy answer for {pool.health.path}", _curl_of_check(endpoint, pool.health)
    )


async def _where(endpoint: Endpoint, addresses: Addresses) -> str:
    if endpoint.unix_path is not None or is_address(endpoint.host):
        return ""
    return f", at {', '.join(await addresses.of(endpoint.host))}"


class _Touch(asyncio.Protocol):
    """Connects, and that is all."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Close at once."""
        transport.close()


def _curl_of_check(endpoint: Endpoint, health: HealthCheck) -> str:
    """For what is asked at a port of its own, or of an instance behind the L4 tier, whose address has no scheme."""
    if endpoint.unix_path is not None or not (health.port or health.proxy_protocol or endpoint.url.startswith("tcp:")):
        return _curl(endpoint, health.path)
    host = f"[{endpoint.host}]" if ":" in endpoint.host else endpoint.host
    url = f"{'https' if endpoint.secure else 'http'}://{host}:{health.port or endpoint.port}{health.path}"
    return f"curl -v {'--haproxy-protocol ' if health.proxy_protocol else ''}{shlex.quote(url)}"


def _curl(endpoint: Endpoint, path: str) -> str:
    """The command that shows what the check saw. What is wrong there is the backend's, and no command of ours mends it."""
    if endpoint.unix_path is not None:
        return f"curl -v --unix-socket {shlex.quote(endpoint.unix_path)} http://localhost{shlex.quote(path)}"
    return f"curl -v {shlex.quote(endpoint.url + path)}"
