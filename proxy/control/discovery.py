"""Backends by SRV records: pools whose members come and go with the answers of DNS.

Knows pools, and how to populate one; ``names`` keeps the answers. A change is one for the pool alone: backends that stay keep their state
and their connections as over a reload, those that are gone get nothing new, and what is in progress there is finished.
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Protocol

from proxy.config.compile_pool import populate, service_of
from proxy.snapshot import Pool
from proxy.upstream.names import Answer, Known, Means, Names, Service

MAX_DEPARTED = 4096
"""Endpoints of one pool that are remembered after DNS has taken them away."""


class Source(Protocol):
    """Who is asked (``ares.Ares`` is one)."""

    async def services(self, name: str) -> Answer[Service]:
        """The SRV records of *name*. Raises DnsError."""


class Discovery:
    """Keeps the pools with SRV names as DNS has them."""

    def __init__(self, source: Source, means: Means) -> None:
        self._names: Names[Service] = Names("service", source.services, means, self._answered)
        self._log = means.log
        self._clock = means.clock
        self._pools: dict[str, list[Pool]] = {}
        """By SRV name."""
        self.changed: list[Callable[[Pool], None]] = []
        """Told a pool whose endpoints are others now."""
        means.metrics.before_read.append(self._names.show)

    def follow(self, pools: Mapping[str, Pool]) -> None:
        """Keep *pools* as DNS has them from now on, and no others."""
        self._pools = {}
        for pool in pools.values():
            for name in names_of(member.identity for member in pool.written):
                self._pools.setdefault(name, []).append(pool)
        self._names.follow(self._pools)
        for pool in {pool.name: pool for found in self._pools.values() for pool in found}.values():
            self._populate(pool)

    def services(self, name: str) -> Sequence[Service]:
        """The records of *name* in use."""
        known = self._names.known(name)
        return known.records if known is not None else ()

    async def learn(self, names: Iterable[str], seconds: float) -> None:
        """Look up *names* that nobody has asked for before a pool has them: it is not to begin empty. Waits *seconds* at most."""
        wanted = list(names)
        self._names.follow([*self._pools, *wanted])
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                for name in wanted:
                    await self._names.settled(name)

    def words(self, name: str) -> str | None:
        """How a name stands, for people; None for what is not followed."""
        known = self._names.known(name)
        return known.words(self._clock()) if known is not None else None

    def _answered(self, known: Known[Service]) -> None:
        for pool in self._pools.get(known.name, ()):
            self._populate(pool)

    def _populate(self, pool: Pool) -> None:
        members, endpoints = populate(pool.written, self.services)
        if members == pool.balancer.members:
            return
        changed = pool.balancer.with_members(members, self._clock())
        before = pool.endpoints
        gone = {identity: endpoint for identity, endpoint in before.items() if identity not in endpoints}
        pool.departed = dict(list({**(pool.departed or {}), **gone}.items())[-MAX_DEPARTED:])
        pool.balancer, pool.endpoints = changed, endpoints
        added = [identity for identity in endpoints if identity not in before]
        say = self._log.info
        say(f"backends of pool {pool.name} have changed in DNS", pool=pool.name, added=added, removed=list(gone), backends=len(endpoints))
        for told in self.changed:
            told(pool)


def names_of(urls: Iterable[str]) -> Iterator[str]:
    """The SRV names among the endpoints of a pool as configured."""
    return (name for url in urls if (name := service_of(url)))
