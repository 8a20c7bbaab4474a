"""What the instances of one service share: keys, and where each of them is. One interface to it, and the store that it has today.

Workers know ``Cluster`` alone, which may change by itself at any time. ``ConfiguredCluster`` keeps it in files and in DNS; a store that
instances write to (Redis, Valkey) is another class with the same methods, which ``Naming.cluster`` makes in its place. Who of the
others lives ``cluster/peers.py`` finds out.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

from proxy.config.connection_ids import keys_of
from proxy.config.load import Configuration
from proxy.keys import KeySet
from proxy.message import Address
from proxy.upstream.names import Answer, Known, Means, Names
from proxy.upstream.resolve import is_address


class Cluster(Protocol):
    """What this instance knows of it."""

    @property
    def keys(self) -> KeySet:
        """What it seals and opens with."""

    @property
    def peers(self) -> Sequence[Address]:
        """Where envelopes reach the other instances; this one may be among them."""

    @property
    def has_peers(self) -> bool:
        """Whether there are to be any, be they known yet or not."""

    def keys_with(self, configuration: Configuration) -> KeySet:
        """What ``keys`` would be with *configuration*, which is not followed yet, and perhaps never will be."""

    def follow(self, configuration: Configuration) -> None:
        """Go by *configuration* from now on."""

    def tell(self, changed: Callable[[], None]) -> None:
        """Call *changed* after each change of keys or peers."""


class Source(Protocol):
    """Who is asked for the addresses of names (``ares.Ares`` is one)."""

    async def addresses(self, host: str) -> Answer[str]:
        """The addresses of *host*. Raises DnsError."""


class ConfiguredCluster:
    """A ``Cluster`` as ``server.cluster`` says: keys out of a file, peers by their addresses, and by names that are kept fresh.

    Where nothing is configured, *secret* is the only key, and nobody else is there.
    """

    def __init__(self, configuration: Configuration, secret: bytes, source: Source, means: Means) -> None:
        self._secret = secret
        self._names: Names[str] = Names("peer", source.addresses, means, self._answered)
        self._configuration = configuration
        self._changed: list[Callable[[], None]] = []
        means.metrics.before_read.append(self._names.show)

    @property
    def keys(self) -> KeySet:
        """See ``Cluster``, as for all of these."""
        return self.keys_with(self._configuration)

    @property
    def peers(self) -> Sequence[Address]:
        """A name stands for each of its addresses."""
        found: list[Address] = []
        for host, port in _places(self._configuration):
            if is_address(host):
                found.append((host, port))
            elif (known := self._names.known(host)) is not None:
                found += [(address, port) for address in known.records]
        return found

    @property
    def has_peers(self) -> bool:
        """Where some are configured."""
        return bool(_places(self._configuration))

    def keys_with(self, configuration: Configuration) -> KeySet:
        """Those that the configuration was read with."""
        return keys_of(configuration, self._secret)

    def follow(self, configuration: Configuration) -> None:
        """Names are looked up from now on, and again as DNS says."""
        self._configuration = configuration
        self._names.follow(host for host, _ in _places(configuration) if not is_address(host))
        self._tell()

    def tell(self, changed: Callable[[], None]) -> None:
        """To whoever asks for it."""
        self._changed.append(changed)

    def _answered(self, _known: Known[str]) -> None:
        self._tell()

    def _tell(self) -> None:
        for changed in self._changed:
            changed()


def _places(configuration: Configuration) -> Sequence[Address]:
    cluster = configuration.server.cluster
    return cluster.peers if cluster is not None else ()
