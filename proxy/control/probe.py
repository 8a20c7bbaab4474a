"""Active probes: every endpoint of every pool that has a health check is asked, again and again, and its pool is told.

Knows pools, their health checks and time; ``check`` asks, the pool's balancer judges. One task for each endpoint, so that probes of one
never overlap and a slow one delays no other. Over a reload the probes of a pool go on as they were, unless what they ask for has changed.
"""

import asyncio
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import monotonic

from balancer.pool import Outcome
from proxy.control.check import Checker, Verdict
from proxy.counters import Cell, Histogram
from proxy.observe import Log, Metrics
from proxy.snapshot import Endpoint, HealthCheck, Pool
from proxy.tasks import Tasks
from proxy.upstream.resolve import Addresses

PARALLEL = 128
"""Probes of one pool that run at the same time; each lasts no longer than the pool's timeout."""


@dataclass(frozen=True, slots=True)
class Means:
    """What the prober was given to work with."""

    log: Log
    clock: Callable[[], float]
    random: Callable[[], float]
    """0 to 1, for the jitter."""
    tasks: Tasks
    addresses: Addresses
    """Where the endpoints' hosts are: the same as for requests."""


@dataclass(frozen=True, slots=True)
class Meters:
    """One pool's counters."""

    ok: Cell
    failed: Cell
    seconds: Histogram


class Prober:
    """Probes all pools of the current snapshot. ``clock`` gives monotonic seconds, the same as the data path's."""

    def __init__(  # noqa: PLR0913  # what it probes, what it tells, and what a test replaces
        self,
        pools: Mapping[str, Pool],
        log: Log,
        metrics: Metrics,
        addresses: Addresses,
        *,
        clock: Callable[[], float] = monotonic,
        random: Callable[[], float] = random.random,
    ) -> None:
        self._pools = pools
        self._probes = metrics.counter("qproxy_probes_total", "Health probes of backends, by result (ok, failed)", ("pool", "result"))
        self._seconds = metrics.histogram("qproxy_probe_seconds", "Time that a health probe took", ("pool",))
        self._means = Means(log, clock, random, Tasks(log), addresses)
        self._probed: dict[str, _ProbedPool] = {}
        self._running = False

    async def start(self) -> None:
        """Begin: the first probe of each endpoint goes out at once."""
        self._running = True
        self.replace(self._pools)

    def replace(self, pools: Mapping[str, Pool]) -> None:
        """Probe *pools* from now on. What is asked in the same way as before goes on without a break."""
        self._pools = pools
        if not self._running:
            return
        for name in [name for name in self._probed if name not in pools or pools[name].health is None]:
            self._probed.pop(name).close()
            self._forget(name)
        for name, pool in pools.items():
            if pool.health is None:
                continue
            present = self._probed.get(name)
            if present is not None and present.asks_like(pool):
                present.follow(pool)
                continue
            if present is not None:
                present.close()
            meters = Meters(self._probes.cell(name, "ok"), self._probes.cell(name, "failed"), self._seconds.cell(name))
            self._probed[name] = _ProbedPool(pool, pool.health, self._means, meters)

    async def stop(self) -> None:
        """End all probes and close their connections."""
        self._running = False
        probed = list(self._probed.values())
        self._probed.clear()
        await self._means.tasks.close()
        for pool in probed:
            await pool.checker.close()

    def last_probe(self, pool: str, identity: str) -> str | None:
        """What the last probe of a backend found, for people; None when there was none yet."""
        probed = self._probed.get(pool)
        endpoint = probed.endpoints.get(identity) if probed is not None else None
        return endpoint.last if endpoint is not None else None

    def _forget(self, pool: str) -> None:
        """Drop the counts of a pool that is no more, so that label values don't pile up over reloads."""
        for result in ("ok", "failed"):
            self._probes.cells.pop((pool, result), None)
        self._seconds.cells.pop((pool,), None)


class _ProbedPool:
    """A pool under probes: what its endpoints share."""

    def __init__(self, pool: Pool, health: HealthCheck, means: Means, meters: Meters) -> None:
        self.pool = pool
        self.health = health
        self.means = means
        self.meters = meters
        self.checker = Checker(health, pool.tls, means.addresses)
        self.parallel = asyncio.Semaphore(PARALLEL)
        self.endpoints: dict[str, _ProbedEndpoint] = {}
        self._tls = pool.tls
        self.follow(pool)

    def asks_like(self, pool: Pool) -> bool:
        """Whether probes of *pool* would be the same as these."""
        if pool.health != self.health or (pool.tls is None) != (self._tls is None):
            return False
        if pool.tls is None or self._tls is None:
            return True
        return (pool.tls.fingerprint, pool.tls.server_name) == (self._tls.fingerprint, self._tls.server_name)

    def follow(self, pool: Pool) -> None:
        """Report to *pool* from now on, and begin and end probes as its endpoints came and went."""
        self.pool = pool
        for identity in [identity for identity, present in self.endpoints.items() if pool.endpoints.get(identity) != present.endpoint]:
            self.endpoints.pop(identity).task.cancel()
        for identity, endpoint in pool.endpoints.items():
            if identity not in self.endpoints:
                self.endpoints[identity] = _ProbedEndpoint(self, identity, endpoint)

    def close(self) -> None:
        """End the probes; their connections are closed behind them."""
        ended = [endpoint.task for endpoint in self.endpoints.values()]
        for task in ended:
            task.cancel()
        self.means.tasks.start(f"close probes of pool {self.pool.name}", self._close(ended))

    async def _close(self, ended: list[asyncio.Task[None]]) -> None:
        await asyncio.gather(*ended, return_exceptions=True)
        await self.checker.close()


class _ProbedEndpoint:
    """One endpoint's probes, one after the other."""

    def __init__(self, owner: _ProbedPool, identity: str, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.last: str | None = None
        self._owner = owner
        self._identity = identity
        self.task = owner.means.tasks.start(f"probe {identity} of pool {owner.pool.name}", self._run())

    async def _run(self) -> None:
        owner = self._owner
        clock = owner.means.clock
        while True:
            async with owner.parallel:
                began = clock()
                verdict = await owner.checker.check(self.endpoint)
                ended = clock()
            self._report(verdict, ended - began, ended)
            pause = owner.health.interval * (1 + owner.health.jitter * (2 * owner.means.random() - 1))
            # from start to start; also a probe that took longer than that leaves the loop to the others once
            await asyncio.sleep(max(0.0, pause - (ended - began)))

    def _report(self, verdict: Verdict, seconds: float, now: float) -> None:
        owner = self._owner
        owner.meters.seconds.observe(seconds)
        (owner.meters.ok if verdict.healthy else owner.meters.failed).value += 1
        self.last = f"{'ok' if verdict.healthy else 'failed'}: {verdict.words}"
        if verdict.ours:
            return
        backend = owner.pool.balancer.find(self._identity)
        assert backend is not None, "a pool's endpoints and its balancer's backends are made from one list"
        balancer = owner.pool.balancer
        changed = balancer.report(backend, Outcome.PROBE_OK if verdict.healthy else Outcome.PROBE_FAILED, now)
        if verdict.draining:
            changed = balancer.drain(backend, now) or changed
        elif verdict.healthy and owner.health.draining:
            changed = balancer.restore(backend, now) or changed
        if changed:
            say = owner.means.log.info if verdict.healthy else owner.means.log.warning
            say(
                f"backend {self._identity} of pool {owner.pool.name} is {backend.state}: {verdict.words}",
                pool=owner.pool.name,
                backend=self._identity,
                state=backend.state,
            )
