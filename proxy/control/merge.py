"""The numbers of several processes as one page: each sends what has changed, and what a process counted outlives it.

Knows readings (``metrics.py``), and no process.
"""

from collections.abc import Callable, Iterable
from operator import add

from proxy.control.metrics import Reading, Value

Labels = tuple[str, ...]

LARGEST = frozenset(
    {
        "server_up",
        "qproxy_config_generation",
        "qproxy_load",
        "qproxy_quic_retry",
        "qproxy_dns_answer_age_seconds",
        "qproxy_dns_names",
        "qproxy_peer_round_trip_seconds",
    }
)
"""Gauges of which the largest says it for all; those that are not SMALLEST either are added up."""

SMALLEST = frozenset({"qproxy_accepting", "qproxy_output_bound_bytes"})
"""Gauges of which the smallest says it for all."""


class Changes:
    """What one process sends: the values that differ from those sent before."""

    def __init__(self) -> None:
        self._sent: dict[str, dict[Labels, Value]] = {}

    def of(self, readings: Iterable[Reading]) -> list[tuple[Reading, list[Labels]]]:
        """Families with the values that have changed, each with the labels that are no more."""
        changes = []
        for reading in readings:
            sent = self._sent.setdefault(reading.name, {})
            new = [(labels, value) for labels, value in reading.values if sent.get(labels) != value]
            sent.update(new)
            gone: list[Labels] = []
            if len(sent) > len(reading.values):
                present = {labels for labels, _ in reading.values}
                gone = [labels for labels in sent if labels not in present]
                for labels in gone:
                    del sent[labels]
            if new or gone:
                changes.append((Reading(reading.name, reading.help, reading.kind, reading.labels, new), gone))
        return changes


class Counted:
    """What one process has counted so far, as its changes tell."""

    def __init__(self) -> None:
        self.families: dict[str, tuple[Reading, dict[Labels, Value]]] = {}

    def take(self, changes: Iterable[tuple[Reading, list[Labels]]]) -> None:
        """Take in what it sent."""
        for reading, gone in changes:
            known = self.families.get(reading.name)
            if known is None:
                known = self.families[reading.name] = (Reading(reading.name, reading.help, reading.kind, reading.labels, []), {})
            known[1].update(reading.values)
            for labels in gone:
                known[1].pop(labels, None)

    def gauge(self, name: str) -> float | None:
        """The value of one without labels; None: it has told none."""
        found = self.families.get(name)
        value = found[1].get(()) if found is not None else None
        return value if isinstance(value, float) else None

    def readings(self) -> list[Reading]:
        """As one process's own."""
        return [Reading(head.name, head.help, head.kind, head.labels, list(values.items())) for head, values in self.families.values()]

    def keep_counts(self, ended: "Counted") -> None:
        """Add what a process had counted that is gone: its counters and histograms, and none of its gauges."""
        both = merged([self.readings(), [reading for reading in ended.readings() if reading.kind != "gauge"]])
        self.families = {
            reading.name: (Reading(reading.name, reading.help, reading.kind, reading.labels, []), dict(reading.values)) for reading in both
        }


def merged(processes: Iterable[Iterable[Reading]]) -> list[Reading]:
    """One reading for each family, over all *processes*."""
    heads: dict[str, Reading] = {}
    values: dict[str, dict[Labels, Value]] = {}
    for readings in processes:
        for reading in readings:
            heads.setdefault(reading.name, reading)
            known = values.setdefault(reading.name, {})
            which = max if reading.name in LARGEST else min if reading.name in SMALLEST else add
            for labels, value in reading.values:
                old = known.get(labels)
                known[labels] = value if old is None else _both(old, value, which=which)
    return [Reading(head.name, head.help, head.kind, head.labels, list(values[name].items())) for name, head in heads.items()]


def _both(one: Value, other: Value, *, which: Callable[[float, float], float]) -> Value:
    if isinstance(one, tuple) and isinstance(other, tuple):
        (bounds, counts, total), (_, more, sum_of_more) = one, other
        return (bounds, tuple(a + b for a, b in zip(counts, more, strict=True)), total + sum_of_more)
    assert not isinstance(one, tuple)
    assert not isinstance(other, tuple)
    return which(one, other)
