"""The connections to every endpoint, kept alive between requests.

Last in, first out: the freshest connection is the least likely to have been closed by the backend, and the others grow old and are let
go. Decides nothing about which backend to take; that was the balancer.
"""

import asyncio
from collections.abc import Callable, Collection, Mapping
from math import inf
from typing import cast

from proxy.errors import Kind, ProxyError
from proxy.meters import ProxyMetrics
from proxy.snapshot import Endpoint, Pool, UpstreamConnections, UpstreamTls
from proxy.stream import Waiter
from proxy.tasks import Tasks
from proxy.upstream.connect import connect
from proxy.upstream.h1 import UpstreamConnection
from proxy.upstream.resolve import Addresses


class Attempt:
    """A connect in progress; ``abandon`` when nobody waits for it any more: the connection made then goes to the idle ones."""

    __slots__ = ("waiter",)

    def __init__(self, waiter: Waiter) -> None:
        self.waiter: Waiter | None = waiter

    def abandon(self) -> None:
        """Its waiter is gone."""
        self.waiter = None


class EndpointConnections:
    """All connections to one endpoint of one pool."""

    def __init__(  # noqa: PLR0913, PLR0917  # what Upstreams has, and which endpoint
        self, pool: Pool, endpoint: Endpoint, meters: ProxyMetrics, tasks: Tasks, clock: Callable[[], float], addresses: Addresses
    ) -> None:
        self._endpoint = endpoint
        self._addresses = addresses
        self._tls: UpstreamTls | None = pool.tls
        self._settings: UpstreamConnections = pool.connections
        self._tasks = tasks
        self.clock = clock
        self._idle: list[UpstreamConnection] = []
        self._retired = False
        self._moved_at = -inf
        self._located: Collection[str] = ()
        """Where DNS has the endpoint's host since then."""
        self._connected = meters.upstream_connects.cell(pool.name, "ok")
        self._failed = meters.upstream_connects.cell(pool.name, "failed")
        self._reused = meters.upstream_reused.cell(pool.name)
        self._open = meters.upstream_open.cell(pool.name)
        self.seconds = meters.upstream_seconds.cell(pool.name)
        """From sending a request to its response head."""

    @property
    def host(self) -> str:
        """The endpoint's."""
        return self._endpoint.host

    def configure(self, pool: Pool) -> None:
        """After a reload that left the endpoint as it was."""
        self._settings = pool.connections
        self._tls = pool.tls

    def take(self) -> UpstreamConnection | None:
        """An idle connection, or None."""
        idle = self._idle
        while idle:
            connection = idle.pop()
            if not connection.closed:
                self._reused.value += 1
                return connection
        return None

    def open(self, waiter: Waiter, timeout: float, *, fast_open: bool = True) -> Attempt:
        """Connect, and tell *waiter* within *timeout* seconds. *fast_open* as in ``connect``: for what may arrive twice."""
        attempt = Attempt(waiter)
        self._tasks.start(f"connect {self._endpoint.url}", self._open_one(attempt, timeout, fast_open=fast_open))
        return attempt

    async def _open_one(self, attempt: Attempt, timeout: float, *, fast_open: bool) -> None:  # noqa: ASYNC109  # handed on to connect()
        connection: UpstreamConnection | None = None
        try:
            try:
                connection = await self._connect(timeout, fast_open=fast_open)
            except ProxyError as error:
                self._failed.value += 1
                if attempt.waiter is not None:
                    attempt.waiter.on_connect_failed(error)
                return
            self._connected.value += 1
            if attempt.waiter is not None:
                attempt.waiter.on_connected(connection)
            else:
                self.give_back(connection, self.clock())
        except Exception as error:  # contained to this exchange, which would wait for ever otherwise
            if connection is not None:
                connection.abort()
            if attempt.waiter is None:
                raise
            attempt.waiter.on_internal_error(error)

    async def _connect(self, timeout: float, *, fast_open: bool) -> UpstreamConnection:  # noqa: ASYNC109  # handed on to connect()
        early = fast_open or self._endpoint.secure  # with TLS it is a ClientHello that may arrive twice
        began = self.clock()  # and not when it is made: what was connected to an old address is as old as that
        made = await connect(lambda: self._protocol(began), self._endpoint, self._tls, timeout, addresses=self._addresses, fast_open=early)
        connection = cast("UpstreamConnection", made)
        if connection.closed:  # meanwhile
            raise ProxyError(Kind.UPSTREAM_CLOSED, f"{self._endpoint.url} accepted a connection and closed it", retry=True)
        return connection

    def _protocol(self, opened: float) -> asyncio.BufferedProtocol:
        return cast("asyncio.BufferedProtocol", UpstreamConnection(self, opened))

    def give_back(self, connection: UpstreamConnection, now: float) -> None:
        """An exchange is done with it and it can serve another."""
        settings = self._settings
        if self._retired or len(self._idle) >= settings.max_idle or now - connection.opened > settings.lifetime:
            connection.close()
            return
        if connection.opened <= self._moved_at and connection.peer not in self._located:
            connection.close()
            return
        connection.idle_since = now
        self._idle.append(connection)

    def made(self) -> None:
        """A connection was established."""
        self._open.value += 1

    def lost(self, connection: UpstreamConnection) -> None:
        """The connection closed."""
        self._open.value -= 1
        if connection in self._idle:
            self._idle.remove(connection)

    def expire(self, now: float) -> None:
        """Close what was idle for too long: the oldest stand first."""
        idle = self._idle
        limit = now - self._settings.idle_timeout
        stale = 0
        while stale < len(idle) and idle[stale].idle_since < limit:
            stale += 1
        if stale:
            old, self._idle = idle[:stale], idle[stale:]
            for connection in old:
                connection.close()

    def move(self, addresses: Collection[str]) -> None:
        """DNS has the endpoint's host at *addresses* now: idle connections to others close, busy ones after their exchange."""
        self._moved_at, self._located = self.clock(), addresses
        for connection in [connection for connection in self._idle if connection.peer not in addresses]:
            self._idle.remove(connection)
            connection.close()

    def retire(self) -> None:
        """The endpoint left the configuration: idle connections close now, busy ones after their exchange."""
        self._retired = True
        self.close_idle()

    def close_idle(self) -> None:
        """Close the idle connections."""
        idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()


class Upstreams:
    """The endpoints of every pool."""

    def __init__(self, meters: ProxyMetrics, tasks: Tasks, clock: Callable[[], float], addresses: Addresses) -> None:
        self._addresses = addresses
        self._meters = meters
        self._tasks = tasks
        self._clock = clock
        self._endpoints: dict[tuple[str, str], EndpointConnections] = {}
        self._fingerprints: dict[tuple[str, str], object] = {}
        self._current: Mapping[str, Pool] | None = None
        """The pools of the latest reload; None before the first."""

    def of(self, pool: Pool, identity: str) -> EndpointConnections:
        """The connections to one backend of *pool*."""
        key = (pool.name, identity)
        found = self._endpoints.get(key)
        if found is None:
            found = EndpointConnections(pool, pool.endpoint(identity), self._meters, self._tasks, self._clock, self._addresses)
            if (self._current is not None and self._current.get(pool.name) is not pool) or identity not in pool.endpoints:
                # An exchange of an older snapshot goes on to an endpoint that a reload or DNS took away, or that is reached differently
                # now: it gets its connection, and nobody else gets it afterwards.
                found.retire()
                return found
            self._endpoints[key] = found
            self._fingerprints[key] = _fingerprint(pool)
        return found

    def replace(self, pools: Mapping[str, Pool]) -> None:
        """After a reload: endpoints that are gone, or reached differently now, let their connections go; the others keep them."""
        self._current = pools
        wanted = {(pool.name, identity): pool for pool in pools.values() for identity in pool.endpoints}
        for key in list(self._endpoints):
            pool = wanted.get(key)
            if pool is not None and self._fingerprints[key] == _fingerprint(pool):
                self._endpoints[key].configure(pool)
            else:
                self._endpoints.pop(key).retire()
                del self._fingerprints[key]

    def shrink(self, pool: Pool) -> None:
        """DNS has taken endpoints out of *pool*: they let their connections go."""
        for key in [key for key in self._endpoints if key[0] == pool.name and key[1] not in pool.endpoints]:
            self._endpoints.pop(key).retire()
            del self._fingerprints[key]

    def move(self, host: str, addresses: Collection[str]) -> None:
        """DNS has *host* at *addresses* now."""
        for endpoint in self._endpoints.values():
            if endpoint.host == host:
                endpoint.move(addresses)

    def expire(self, now: float) -> None:
        """Close connections that were idle for too long."""
        for endpoint in self._endpoints.values():
            endpoint.expire(now)

    def close_idle(self) -> None:
        """Close every idle connection: their file descriptors are needed."""
        for endpoint in self._endpoints.values():
            endpoint.close_idle()

    def close(self) -> None:
        """Let every idle connection go, and every other one after its exchange."""
        for endpoint in self._endpoints.values():
            endpoint.retire()


def _fingerprint(pool: Pool) -> object:
    return pool.tls.fingerprint if pool.tls is not None else None
