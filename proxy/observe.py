"""Counters and events: what the data path reports, and nothing of how it is shown.

A counter is a number on a slotted cell that its owner holds (``counters``: no lookup, no lock on the data path);
``control/metrics.py`` reads the families when Prometheus asks. Label values come from the configuration or from fixed sets, never from a
client.
"""

from collections.abc import Callable, Iterable
from typing import Any, Generic, Protocol, TypeVar

from proxy.counters import SECONDS, Cell, Histogram

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
        self.families: dict[str, Family[Any]] = {}
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

    def collect(self) -> Iterable[Family[Any]]:
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
        return family


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
