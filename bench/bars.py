"""What qproxy is to reach, and whether a comparison shows it. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass

from bench.figures import VERSIONS, Runs
from bench.plan import LATENCY_BESIDE, PEER

COLUMNS = (("H1", "get-1k", "h1"), ("H2", "get-1k", "h2"), ("H3", "get-1k", "h3"), ("H3 1 MB", "get-1m", "h3"))
"""Title, workload and version. 32 connections with 10 streams each, HTTP/1.1 with one; defaults, access log off."""
ROWS = (
    ("against Envoy", "qproxy", "envoy", (1.2, 1.4, 3.0, 1.0)),
    ("against Caddy", "qproxy", "caddy", (1.6, 3.0, 3.5, 1.0)),
    ("against nginx", "qproxy", "nginx", (0.42, 0.6, 0.55, 0.75)),
    ("against its own floor", "qproxy", "floor", (0.75, 0.7, 0.65, 0.9)),
    ("portable engines against their floor", "qproxy-portable", "floor-portable", (0.7, 0.75, 0.75, 0.9)),
)
"""Title, ours, theirs, and the least ratio of rates for each column."""
AIMS = (
    ("ahead of HAProxy", "qproxy", "haproxy", (None, 1.0, 1.0, None)),
    ("within 1.2x of nginx", "qproxy", "nginx", (None, 1 / 1.2, 1 / 1.2, None)),
)
"""Higher than the bars: told, not asked for."""
IDLE_BYTES = (
    ("h1", "qproxy", 40_000),
    ("h2", "qproxy", 60_000),
    ("h3", "qproxy", 60_000),
    ("h3", "qproxy-portable", 130_000),
)
"""Memory of one idle connection, at most."""
LOOKUPS = (
    ("route lookup, 10,000 sites (us)", "route_10000", 3.0),
    ("route lookup, 10,000 sites over 10 sites", "route_growth", 1.3),
    ("ring lookup (us)", "ring", 3.0),
    ("loading 10,000 sites (s)", "load_10000", 5.0),
)
"""Title, figure of the workload ``lookups``, and its most. Flat is taken as growth within the noise of a microsecond's measurement."""


@dataclass(frozen=True)
class Bar:
    """One thing asked for, and what was measured."""

    title: str
    asked: float
    found: float | None
    at_most: bool = False

    @property
    def passed(self) -> bool | None:
        """None where it was not measured."""
        if self.found is None:
            return None
        return self.found <= self.asked if self.at_most else self.found >= self.asked

    @property
    def verdict(self) -> str:
        """For a table's cell."""
        return {True: "pass", False: "**miss**", None: "not measured"}[self.passed]


def rates(runs: Runs, rows: tuple[tuple[str, str, str, tuple[float | None, ...]], ...] = ROWS) -> Iterator[tuple[str, list[Bar | None]]]:
    """The table of ratios of rates: each row's title with a bar for each column, None where none is asked for."""
    for title, ours, theirs, least in rows:
        cells: list[Bar | None] = []
        for (column, workload, version), asked in zip(COLUMNS, least, strict=True):
            if asked is None:
                cells.append(None)
            else:
                cells.append(Bar(f"{title}, {column}", asked, runs.ratio(workload, version, ours, theirs)))
        yield title, cells


def others(runs: Runs) -> Iterator[Bar]:
    """The bars that are no ratios of rates: latency, memory, lookups."""
    for version, name in VERSIONS.items():
        found = runs.ratio(LATENCY_BESIDE.name, version, "qproxy", PEER, "p99")
        yield Bar(f"p99 at half of Caddy's best rate over Caddy's, {name}", 1.0, found, at_most=True)
    for version, target, most in IDLE_BYTES:
        found = runs.median("idle", version, target, "bytes")
        yield Bar(f"memory of an idle connection, {VERSIONS[version]}, {target} (bytes)", most, found, at_most=True)
    for title, figure, most in LOOKUPS:
        yield Bar(title, most, runs.median("lookups", "h1", "qproxy", figure), at_most=True)
