"""How much memory the answers of all connections may take while their clients do not take them.

One object for all listeners of a process. Each engine bounds what one connection has waiting; here that bound is lowered while the sum
is more than ``limits.output``, so that whoever takes nothing gets nothing more. A request whose answer goes out as it comes costs nothing
here: pieces of bodies that pile up are added, and only when they could have used up the budget since the last look, or once in a
while, is the sum made. Knows listeners by three words, and numbers; nothing of engines or sockets.
"""

import sys
from typing import Protocol

from proxy.engine.seam import LOW_WATER
from proxy.meters import ProxyMetrics
from proxy.observe import Log
from proxy.snapshot import Limits

STEPS = 16
"""Looks within a whole budget, at most: what is added between two may be more than is left by one part in so many."""

TELL_EVERY = 10.0
"""Seconds between two log lines, at least, however often the sum comes and goes."""


class Holder(Protocol):
    """A listener: where answers wait."""

    @property
    def output_bytes(self) -> int:
        """Bytes that wait, of all its connections: a walk over them."""

    @property
    def holds(self) -> int:
        """How often so far a backend was told to stop at once, since its connection has as much waiting as it may."""

    def bound_output(self, most: int) -> None:
        """From now on each connection may have *most* bytes waiting."""


class OutputBudget:
    """The sum, and what it leaves each connection."""

    __slots__ = (
        "_came",
        "_counted",
        "_hits",
        "_log",
        "_meters",
        "_most",
        "_room",
        "_told_at",
        "_told_over",
        "bound",
        "each",
        "holders",
    )

    def __init__(self, limits: Limits, meters: ProxyMetrics, log: Log) -> None:
        self._meters = meters
        self._log = log
        self._most = limits.output
        self.each = limits.engine.output
        """What one connection may have waiting in quiet times (``limits.output_per_connection``)."""
        self.bound = self.each
        """The same now: less while all together have more than they may."""
        self.holders: list[Holder] = []
        self._hits = (meters.limits_hit.cell("output_per_connection"), meters.limits_hit.cell("output"))
        self._counted: dict[Holder, int] = {}
        self._came = 0
        self._room = self._most
        self._told_over = False
        self._told_at = float("-inf")

    @property
    def over(self) -> bool:
        """Connections get less than they are configured to."""
        return self.bound < self.each

    def replace(self, limits: Limits) -> None:
        """Take the limits of a new configuration, for living connections too."""
        was_over = self.over
        self._most = limits.output
        self.each = limits.engine.output
        self._bound(min(self.bound, self.each) if was_over else self.each)
        self.look()

    def queued(self, size: int) -> None:
        """A piece of a body was queued that its client does not take at once."""
        self._came += size
        if self._came > self._room:
            self.look()

    def look(self) -> None:
        """Make the sum, and give each connection less, or more again.

        Less is at once as little as lets every stream go on: to come there step by step would let the sum grow on the way. More comes
        step by step, a look for each, when a quarter of the budget is free: those who were held would fill it again at once.
        """
        total = self.measure()
        most = self._most
        if total > most:
            self._bound(LOW_WATER)
        elif self.bound < self.each and total <= most - most // 4:
            self._bound(min(2 * self.bound, self.each))
        self._came = 0
        # Where nobody can have less, only time makes a difference.
        self._room = sys.maxsize if self.bound <= LOW_WATER else max(most - total, most // STEPS)

    def turn(self, now: float) -> None:
        """Look, and tell what changed. For once a second or so."""
        if self.holders:
            self.look()
        over = self.over
        if over is self._told_over or now < self._told_at + TELL_EVERY:
            return
        self._told_over = over
        self._told_at = now
        waiting = int(self._meters.output.cell().value)
        if over:
            self._log.warning("clients leave more of their answers waiting than limits.output", bytes=waiting, limit=self._most)
        else:
            self._log.info("clients leave no more of their answers waiting than limits.output", bytes=waiting, limit=self._most)

    def measure(self) -> int:
        """Bytes that wait, of all connections; the metrics are brought up to date. A walk over them."""
        total = 0
        hits = self._hits[self.over]
        for holder in self.holders:
            total += holder.output_bytes
            holds = holder.holds
            hits.value += holds - self._counted.get(holder, 0)
            self._counted[holder] = holds
        self._meters.output.cell().value = float(total)
        self._meters.output_bound.cell().value = float(self.bound)
        return total

    def show(self) -> None:
        """A hook for ``Metrics.before_read``."""
        self.measure()

    def _bound(self, most: int) -> None:
        if most != self.bound:
            self.bound = most
            for holder in self.holders:
                holder.bound_output(most)
