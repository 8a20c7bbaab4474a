"""The metrics page: what the data path counted, in the words of Prometheus.

Knows ``observe`` and prometheus-client. Reading copies the plain numbers and is quick; formatting takes long with many routes and is safe
in another thread, so that a scrape never holds up requests.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import TypeAlias

from prometheus_client import CollectorRegistry, GCCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder

from proxy.counters import Cell
from proxy.observe import Metrics

Value: TypeAlias = float | tuple[tuple[float, ...], tuple[int, ...], float]
"""Of a counter or gauge; of a histogram: the bounds, the counts by bucket and the sum."""


@dataclass(frozen=True, slots=True)
class Reading:
    """One family at one moment."""

    name: str
    help: str
    kind: str
    labels: tuple[str, ...]
    values: list[tuple[tuple[str, ...], Value]]


def read(metrics: Metrics) -> list[Reading]:
    """All numbers now. Only on the thread that counts."""
    return [
        Reading(
            family.name,
            family.help,
            family.kind,
            family.labels,
            [
                (labels, cell.value if isinstance(cell, Cell) else (cell.bounds, tuple(cell.counts), cell.sum))
                for labels, cell in family.cells.items()
            ],
        )
        for family in metrics.collect()
    ]


class Exposition:
    """Renders families, with those of this process itself and its garbage collector."""

    __slots__ = ("_process",)

    def __init__(self) -> None:
        self._process = CollectorRegistry()
        ProcessCollector(registry=self._process)
        GCCollector(registry=self._process)

    def format(self, readings: Iterable[Reading], accept: str = "") -> tuple[str, bytes]:
        """Content type and page; *accept* is the scraper's Accept field: OpenMetrics where it asks for it, else the text format."""
        encode, content_type = choose_encoder(accept)
        return content_type, encode(_Page(readings, self._process))


class _Page:
    """A collector of numbers that were read already."""

    def __init__(self, readings: Iterable[Reading], process: CollectorRegistry) -> None:
        self._readings = readings
        self._process = process

    def collect(self) -> Iterator[Metric]:
        """What prometheus-client asks for."""
        for reading in self._readings:
            yield _family(reading)
        yield from self._process.collect()


def _family(reading: Reading) -> Metric:
    if reading.kind == "histogram":
        histogram = HistogramMetricFamily(reading.name, reading.help, labels=reading.labels)
        for labels, value in reading.values:
            assert isinstance(value, tuple)
            bounds, counts, total = value
            buckets = (*(repr(float(bound)) for bound in bounds), "+Inf")
            histogram.add_metric(labels, list(zip(buckets, accumulate(counts), strict=True)), sum_value=total)
        return histogram
    simple = (CounterMetricFamily if reading.kind == "counter" else GaugeMetricFamily)(reading.name, reading.help, labels=reading.labels)
    for labels, value in reading.values:
        assert not isinstance(value, tuple)
        simple.add_metric(labels, value)
    return simple
