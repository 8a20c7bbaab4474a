"""Runs and what is made of them: medians, spread, ratios within a round. Pure: no socket, no clock.

A *run* is one measurement of one server. Machines drift, by a third within an hour, so what counts between two servers is the median of
their ratios, each of two runs of one round that followed one another.
"""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

VERSIONS = {"h1": "HTTP/1.1", "h2": "HTTP/2", "h3": "HTTP/3"}


@dataclass(frozen=True)
class Run:
    """One measurement."""

    workload: str
    version: str
    """h1, h2 or h3."""
    target: str
    round: int
    figures: dict[str, float] = field(default_factory=dict)
    """What was measured, by name. ``rate`` in requests a second; ``failed`` answers; ``cpu`` in microseconds of the server's processes
    for a request, ``system`` those of them inside the kernel; ``busy`` and ``load_busy`` as shares of the server's and the load's core;
    latencies in milliseconds; ``bytes``."""
    error: str = ""
    """Why there are no figures."""


class Runs:
    """All runs of a comparison."""

    def __init__(self, runs: Iterable[Run] = ()) -> None:
        self.runs = list(runs)

    def add(self, run: Run) -> None:
        """Take one more."""
        self.runs.append(run)

    def values(self, workload: str, version: str, target: str, figure: str = "rate") -> dict[int, float]:
        """One figure by round, without the runs that failed: a rate of wrong answers is no rate."""
        return {
            run.round: run.figures[figure]
            for run in self.runs
            if (run.workload, run.version, run.target) == (workload, version, target)
            and not run.error
            and not run.figures.get("failed")
            and figure in run.figures
        }

    def median(self, workload: str, version: str, target: str, figure: str = "rate") -> float | None:
        """Over the rounds; None where there is no good run."""
        values = self.values(workload, version, target, figure)
        return statistics.median(values.values()) if values else None

    def spread(self, workload: str, version: str, target: str, figure: str = "rate") -> float | None:
        """Largest less smallest, as a share of the median; None for fewer than two runs."""
        values = self.values(workload, version, target, figure)
        if len(values) < 2:
            return None
        middle = statistics.median(values.values())
        return (max(values.values()) - min(values.values())) / middle if middle else None

    def ratio(self, workload: str, version: str, one: str, other: str, figure: str = "rate") -> float | None:
        """The median of *one*'s figure over *other*'s, round by round; None where no round has both."""
        ours, theirs = (self.values(workload, version, target, figure) for target in (one, other))
        ratios = [ours[number] / theirs[number] for number in ours if theirs.get(number)]
        return statistics.median(ratios) if ratios else None

    def failures(self, workload: str, version: str, target: str) -> list[str]:
        """What went wrong, in words; empty where nothing did."""
        told = []
        for run in self.runs:
            if (run.workload, run.version, run.target) == (workload, version, target):
                if run.error:
                    told.append(run.error)
                elif run.figures.get("failed"):
                    told.append(f"{run.figures['failed']:.0f} answers were wrong or missing")
        return told

    def workloads(self) -> list[str]:
        """Those that were run, in order."""
        return list(dict.fromkeys(run.workload for run in self.runs))

    def targets(self, workload: str, version: str) -> list[str]:
        """Those that were asked, in order."""
        return list(dict.fromkeys(run.target for run in self.runs if (run.workload, run.version) == (workload, version)))

    def dump(self) -> list[dict[str, Any]]:
        """For JSON."""
        return [asdict(run) for run in self.runs]

    @classmethod
    def load(cls, dumped: Iterable[dict[str, Any]]) -> "Runs":
        """What ``dump`` gave."""
        return cls(Run(**one) for one in dumped)


def quantile(ordered: Sequence[float], share: float) -> float:
    """The smallest value that *share* of the *ordered* values do not exceed (nearest rank). Raises ValueError for none."""
    if not ordered:
        msg = "no values"
        raise ValueError(msg)
    rank = max(1, -(-len(ordered) * round(share * 10_000) // 10_000))
    return ordered[rank - 1]
