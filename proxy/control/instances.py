"""Where the other instances are: addresses as configured, and those of host names, kept fresh.

Knows hosts and ports; ``names`` keeps the answers. Who is there ``cluster/peers.py`` finds out.
"""

from collections.abc import Callable, Iterable
from typing import Protocol

from proxy.message import Address
from proxy.upstream.names import Answer, Known, Means, Names
from proxy.upstream.resolve import is_address


class Source(Protocol):
    """Who is asked (``ares.Ares`` is one)."""

    async def addresses(self, host: str) -> Answer[str]:
        """The addresses of *host*. Raises DnsError."""


class Instances:
    """Keeps the addresses of peers. ``changed`` is told all of them, after each change."""

    def __init__(self, source: Source, means: Means) -> None:
        self._names: Names[str] = Names("peer", source.addresses, means, self._answered)
        self._places: tuple[Address, ...] = ()
        self.changed: Callable[[list[Address]], None] = _nobody
        means.metrics.before_read.append(self._names.show)

    def follow(self, places: Iterable[Address]) -> None:
        """Look for them at these places from now on: a name stands for each of its addresses."""
        self._places = tuple(places)
        self._names.follow(host for host, _ in self._places if not is_address(host))
        self.changed(self._addresses())

    def _answered(self, _known: Known[str]) -> None:
        self.changed(self._addresses())

    def _addresses(self) -> list[Address]:
        found: list[Address] = []
        for host, port in self._places:
            if is_address(host):
                found.append((host, port))
            elif (known := self._names.known(host)) is not None:
                found += [(address, port) for address in known.records]
        return found


def _nobody(_addresses: list[Address]) -> None:
    pass
