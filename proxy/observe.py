"""Counters and events: what the data path reports, and nothing of how it is shown.

A counter is a plain integer on a slotted cell that its owner holds (no lookup, no lock on the data path); ``control/metrics.py`` reads
the families when Prometheus asks. Label values come from the configuration or from fixed sets, never from a client.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable
from typing import Generic, Protocol, TypeVar

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds of latency histograms, in seconds."""

BYTES = tuple(float(1 << power) for power in range(14, 25))
"""Upper bounds of histograms of congestion windows, in bytes: 16 KiB to 16 MiB."""


class Cell:
    """One counter or gauge: ``cell.value += 1``."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: float = 0


class Histogram:
    """Counts by bucket (the last one is +Inf) and the sum of what was observed."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...] = SECONDS) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count one, in the unit of the bounds."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


CellT = TypeVar("CellT", Cell, Histogram)


class Family(Generic[CellT]):
    """All cells of one metric, by label values."""

    def __init__(self, name: str, help_text: str, labels: tuple[str, ...], kind: str, make: Callable[[], CellT]) -> None:
        self.name = name
        self.help = help_text
        self.labels = labels
        self.kind = kind
        """``counter``, ``gauge`` or ``histogram``."""
        self.cells: dict[tuple[str, ...], CellT] = {}
        self._make: Callable[[], CellT] = make

    def cell(self, *values: str) -> CellT:
        """The cell for these label values, made at the first call; the same values give the same cell."""
        found = self.cells.get(values)
        if found is None:
            if len(values) != len(self.labels):
                msg = f"{self.name} takes labels {self.labels}, got {values}"
                raise ValueError(msg)
            found = self.cells[values] = self._make()
        return found


class Metrics:
    """Every metric family of one process. Declaring a family twice with the same shape gives the same family."""

    def __init__(self) -> None:
        self.families: dict[str, Family[Cell] | Family[Histogram]] = {}
        self.before_read: list[Callable[[], None]] = []
        """Called before the families are read, to set gauges that are derived from state."""

    def counter(self, name: str, help_text: str, labels: tuple[str, ...] = ()) -> Family[Cell]:
        """A counter family; *name* as exposed, ``_total`` included."""
        return self._declare(name, help_text, labels, "counter", Cell)

    def gauge(self, name: str, help_text: str, labels: tuple[str, ...] = ()) -> Family[Cell]:
        """A gauge family."""
        return self._declare(name, help_text, labels, "gauge", Cell)

    def histogram(self, name: str, help_text: str, labels: tuple[str, ...] = (), bounds: tuple[float, ...] = SECONDS) -> Family[Histogram]:
        """A histogram family, of seconds unless *bounds* are of something else."""
        return self._declare(name, help_text, labels, "histogram", lambda: Histogram(bounds))

    def collect(self) -> Iterable[Family[Cell] | Family[Histogram]]:
        """The families, gauges brought up to date."""
        for hook in self.before_read:
            hook()
        return list(self.families.values())

    def _declare(self, name: str, help_text: str, labels: tuple[str, ...], kind: str, make: Callable[[], CellT]) -> Family[CellT]:
        family = self.families.get(name)
        if family is None:
            family = self.families[name] = Family(name, help_text, labels, kind, make)
        elif family.labels != labels or family.kind != kind:
            msg = f"metric {name} is declared twice, differently"
            raise ValueError(msg)
        return family  # type: ignore[return-value]  # the kind was compared above


class Log(Protocol):
    """Event log: one short event name or sentence, details as keywords. structlog's loggers fit."""

    def debug(self, event: str, **details: object) -> object: ...
    def info(self, event: str, **details: object) -> object: ...
    def warning(self, event: str, **details: object) -> object: ...
    def error(self, event: str, **details: object) -> object: ...
    def exception(self, event: str, **details: object) -> object: ...


class NullLog:
    """Says nothing: for tests and for parts that run without an application around them."""

    def debug(self, event: str, **details: object) -> None:
        """Drop it."""

    info = warning = error = exception = debug
