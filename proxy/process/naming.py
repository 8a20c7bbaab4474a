"""The names of one process: addresses of hosts and backends by SRV records, both kept fresh for the pools that it serves or probes."""

import time
from collections.abc import Mapping
from dataclasses import dataclass

from proxy.config.compile_l4 import addresses_of
from proxy.config.load import Configuration
from proxy.config.model_server import Dns
from proxy.control.cluster import Cluster, ConfiguredCluster
from proxy.control.discovery import Discovery, names_of
from proxy.observe import Log, Metrics
from proxy.snapshot import Pool
from proxy.tasks import Tasks
from proxy.upstream.ares import Ares
from proxy.upstream.names import Means
from proxy.upstream.resolve import Resolver


@dataclass(frozen=True, slots=True)
class Naming:
    """What looks up names for a process. Nothing is begun before there is a name to look up."""

    resolver: Resolver
    discovery: Discovery
    source: Ares
    means: Means
    patience: float
    """Seconds that a start or a reload waits for the first answers with backends."""

    def cluster(self, configuration: Configuration, secret: bytes) -> Cluster:
        """What other instances have too; *secret* is that of the state folder."""
        return ConfiguredCluster(configuration, secret, self.source, self.means)

    async def begin(self, pools: Mapping[str, Pool]) -> None:
        """Keep the names of *pools* fresh, and wait for the backends that they get from DNS."""
        await self._learn([member.identity for pool in pools.values() for member in pool.written])
        self.follow(pools)

    async def look_ahead(self, configuration: Configuration) -> None:
        """Before a reload: its pools are not to begin without the backends that they get from DNS. ``follow`` undoes it."""
        sites = [pool for site in configuration.sites for pool in site.pools.values()]
        urls = [endpoint.url for pool in (*configuration.pools.values(), *sites) for endpoint in pool.endpoints]
        await self._learn([*urls, *(url for listener in configuration.l4 for url in addresses_of(listener))])

    def follow(self, pools: Mapping[str, Pool]) -> None:
        """Keep the names of *pools* fresh from now on, and no others."""
        self.discovery.follow(pools)
        self.resolver.follow(pools)

    async def close(self) -> None:
        """End what is being asked; the tasks that ask have ended."""
        await self.resolver.close()

    async def _learn(self, urls: list[str]) -> None:
        if names := list(names_of(urls)):
            await self.discovery.learn(names, self.patience)


def make_naming(dns: Dns, log: Log, metrics: Metrics, tasks: Tasks) -> Naming:
    """As ``server.dns`` says."""
    source = Ares(dns.nameservers, dns.timeout)
    means = Means(log, metrics, tasks, time.monotonic, dns.timeout, dns.stale, dns.max_ttl)
    return Naming(Resolver(source, means), Discovery(source, means), source, means, dns.timeout)
