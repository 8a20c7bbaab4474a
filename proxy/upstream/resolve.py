"""The addresses of endpoints that are named by host, in the order in which they are to be tried.

Knows hosts and addresses; ``names`` keeps the answers. An address in the place of a name is its own answer, and nobody is asked.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from ipaddress import ip_address
from itertools import zip_longest
from typing import Protocol

from proxy.errors import Kind, ProxyError
from proxy.snapshot import Pool
from proxy.upstream.names import Answer, Known, Means, Names

MAX_ADDRESSES = 8
"""Addresses of one name that are tried."""


class Addresses(Protocol):
    """Where hosts are."""

    async def of(self, host: str) -> Sequence[str]:
        """The addresses of *host*, first choice first, at once where they are known. Raises ProxyError, with ``retry`` set."""


class Source(Protocol):
    """Who is asked (``ares.Ares`` is one)."""

    async def addresses(self, host: str) -> Answer[str]:
        """The addresses of *host*. Raises DnsError."""

    async def close(self) -> None:
        """End what is being asked."""


class Resolver:
    """Keeps the addresses of all backends' hosts fresh."""

    def __init__(self, source: Source, means: Means) -> None:
        self._source = source
        self._names: Names[str] = Names("address", source.addresses, means, self._changed)
        self._clock = means.clock
        self.moved: list[Callable[[str, Sequence[str]], None]] = []
        """Told a host and its addresses whenever it has others than before."""
        means.metrics.before_read.append(self._names.show)

    def follow(self, pools: Mapping[str, Pool]) -> None:
        """Keep the hosts of *pools* fresh from now on."""
        self._names.follow(hosts(pools.values()))

    async def of(self, host: str) -> Sequence[str]:
        """As in ``Addresses``. Waits for the first answer only."""
        if is_address(host):
            return (host,)
        known = self._names.known(host)
        if known is None or not known.records:
            known = await self._names.settled(host)
            if not known.records:
                raise ProxyError(Kind.DNS_ERROR, f"{host}: {known.problem}", retry=True)
        return in_order(known.records)

    async def close(self) -> None:
        """End what is being asked; the tasks that ask have ended."""
        await self._source.close()

    def _changed(self, known: Known[str]) -> None:
        if known.records:
            for told in self.moved:
                told(known.name, known.records)

    def shown(self, host: str) -> tuple[tuple[str, ...], str] | None:
        """For people: the addresses of a host in use, and how old they are; None for what is no name that is looked up."""
        known = self._names.known(host)
        if known is None:
            return None
        return tuple(in_order(known.records)) if known.records else (), known.words(self._clock())


def hosts(pools: Iterable[Pool]) -> Iterator[str]:
    """The hosts that have to be looked up, some perhaps more than once."""
    for pool in pools:
        for endpoint in pool.endpoints.values():
            if endpoint.unix_path is None and not is_address(endpoint.host):
                yield endpoint.host


@lru_cache(maxsize=1024)
def is_address(host: str) -> bool:
    """Whether *host* is an IP address (IPv6 without brackets) and no name."""
    if ":" not in host and not host[-1:].isdigit():
        return False
    with contextlib.suppress(ValueError):
        ip_address(host)
        return True
    return False


def in_order(addresses: Sequence[str]) -> Sequence[str]:
    """The two families by turns, that of the first address first, each in its own order (RFC 8305, section 4); MAX_ADDRESSES at most."""
    first = ":" in addresses[0]
    same = [address for address in addresses if (":" in address) == first]
    other = [address for address in addresses if (":" in address) != first]
    mixed = [address for pair in zip_longest(same, other) for address in pair if address is not None]
    return mixed[:MAX_ADDRESSES]
