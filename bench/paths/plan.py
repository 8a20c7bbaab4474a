"""The paths and the controllers. Pure."""

import itertools
from dataclasses import dataclass

MBIT = 1_000_000 / 8
"""Bytes a second."""
LEAST_QUEUE = 2 * 1500
"""Bytes: less holds no two datagrams."""


@dataclass(frozen=True)
class Path:
    """A path with one bottleneck, towards the client. The way back has the delay alone."""

    megabits: int
    """A second, through the bottleneck: of UDP payloads."""
    round_trip: float
    """Seconds, with an empty queue."""
    loss: float
    """Share of the datagrams that are lost behind the bottleneck, whatever its queue."""
    queue: float
    """What the queue before it holds, in bandwidth-delay products."""

    @property
    def rate(self) -> float:
        """Bytes a second."""
        return self.megabits * MBIT

    @property
    def queue_bytes(self) -> int:
        """What the queue holds; what comes beyond is dropped."""
        return max(LEAST_QUEUE, round(self.rate * self.round_trip * self.queue))

    def __str__(self) -> str:
        """For a table."""
        return f"{self.megabits} Mbit/s, {self.round_trip * 1000:.0f} ms, {self.loss:.0%} lost, queue of {self.queue:g} BDP"


@dataclass(frozen=True)
class Controller:
    """An algorithm of an engine."""

    engine: str
    name: str

    def __str__(self) -> str:
        """For a table."""
        return f"{self.engine} {self.name}"


CONTROLLERS = (
    Controller("native", "bbr"),
    Controller("native", "cubic"),
    Controller("native", "reno"),
    Controller("aioquic", "cubic"),
    Controller("aioquic", "reno"),
)
SHALLOW, BLOATED = 0.25, 4.0
ALL = tuple(Path(*each) for each in itertools.product((10, 100), (0.02, 0.2), (0.0, 0.01, 0.03), (SHALLOW, BLOATED)))
SOME = (
    Path(10, 0.02, 0.0, BLOATED),
    Path(100, 0.02, 0.0, SHALLOW),
    Path(100, 0.02, 0.01, SHALLOW),
    Path(10, 0.2, 0.03, BLOATED),
)
"""For minutes: a home line with a bloated queue, a short fast path, the same with loss, a bad mobile one."""
