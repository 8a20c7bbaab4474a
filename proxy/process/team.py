"""The workers as the controller sees them: all change together, or none does.

``LocalTeam`` is one worker in the controller's own process; ``remote.RemoteTeam`` is any number of them in processes of their own.
"""

from collections.abc import Collection, Mapping
from typing import Protocol

from proxy.config.load import Configuration
from proxy.control.metrics import Reading, read
from proxy.observe import Metrics
from proxy.process.worker import Worker
from proxy.snapshot import Snapshot
from proxy.sni import Certificate


class Refused(Exception):  # noqa: N818  # the configuration's fault, not ours
    """A worker can't serve a configuration that was thought to be right; the text says what is wrong."""


class Team(Protocol):
    """What the controller steers."""

    @property
    def snapshot(self) -> Snapshot:
        """The one in use: its pools are probed and shown."""

    @property
    def draining(self) -> bool:
        """Whether all is coming to its end."""

    @property
    def is_here(self) -> bool:
        """Whether requests are served in this very process."""

    @property
    def most_workers(self) -> int:
        """So many a reload can make of them; 0 where there is always the one."""

    def compiled(self, configuration: Configuration) -> Snapshot:
        """What *configuration* says, to compare with: it is never served. May be called from another thread."""

    @property
    def workers(self) -> int:
        """That serve."""

    @property
    def accepting(self) -> bool:
        """Whether new connections come in at any worker, as far as is known here."""

    async def change(self, configuration: Configuration, generation: int) -> Snapshot:
        """Have all workers serve *configuration*; gives its snapshot, as configured. Raises ContextError or Refused: then none does."""

    def publish_certificates(self, certificates: Mapping[str, Collection[Certificate]]) -> Collection[str]:
        """New certificates by domain; gives the domains where they differ. Raises ContextError, with nothing changed."""

    async def readings(self) -> list[Reading]:
        """What is counted, over all of them."""


class LocalTeam:
    """A team of one, in this process, whose counters are *metrics*."""

    def __init__(self, worker: Worker, metrics: Metrics) -> None:
        self._worker = worker
        self._metrics = metrics

    @property
    def snapshot(self) -> Snapshot:
        """See ``Team``, as for all of these."""
        return self._worker.snapshot

    @property
    def draining(self) -> bool:
        """From the first signal on."""
        return self._worker.draining

    @property
    def is_here(self) -> bool:
        """It is."""
        return True

    @property
    def most_workers(self) -> int:
        """The one that is here."""
        return 0

    def compiled(self, configuration: Configuration) -> Snapshot:
        """By the worker's own means."""
        return self._worker.compiled(configuration)

    @property
    def workers(self) -> int:
        """Itself."""
        return 1

    @property
    def accepting(self) -> bool:
        """By its gate."""
        return self._worker.accepting

    async def change(self, configuration: Configuration, generation: int) -> Snapshot:
        """At once."""
        snapshot = self._worker.prepare(configuration, generation)
        self._worker.commit(configuration, snapshot)
        return snapshot

    def publish_certificates(self, certificates: Mapping[str, Collection[Certificate]]) -> Collection[str]:
        """At once."""
        return self._worker.publish_certificates(certificates)

    async def readings(self) -> list[Reading]:
        """The process's own."""
        return read(self._metrics)
