"""The backends that a policy chooses among: a pool's primaries, or its backups of one number.

Keeps what policies derive from the states, and derives it anew only when a state has changed. Knows no policy and no key.
"""

from bisect import bisect
from collections.abc import Iterator, Sequence
from itertools import accumulate

from balancer.backend import Backend
from balancer.health import Changes
from balancer.prng import SplitMix


class Tier:
    """Backends with their weights, and which of them are available."""

    __slots__ = ("_active", "_changes", "_cumulative", "_seen", "backends", "weights")

    def __init__(self, backends: Sequence[Backend], weights: Sequence[int], changes: Changes) -> None:
        self.backends = tuple(backends)
        self.weights = tuple(weights)
        """Of its own, and not the backends': a backend may be in an older pool too, with another weight there."""
        self._changes = changes
        self._seen = -1
        self._active: tuple[int, ...] = ()
        self._cumulative: list[int] = []

    @property
    def version(self) -> int:
        """Moves whenever ``active`` may have changed."""
        return self._changes.count

    def active(self) -> tuple[int, ...]:
        """Positions in ``backends`` of the available ones."""
        if self._seen != self._changes.count:
            self._active = tuple(index for index, backend in enumerate(self.backends) if backend.available)
            self._cumulative = list(accumulate(self.weights[index] for index in self._active))
            self._seen = self._changes.count
        return self._active

    def rotation(self, start: int, *taken: Backend) -> Iterator[Backend]:
        """The available ones from the *start*-th on, around, without *taken*: the order in which retries go on."""
        active = self.active()
        for index in active[start:] + active[:start]:
            backend = self.backends[index]
            if backend not in taken and backend.available:
                yield backend

    def draw_two(self, random: SplitMix) -> tuple[int, int]:
        """Two different ones, each drawn by weight, as places in ``active``. There must be two at least."""
        active = self.active()
        cumulative = self._cumulative
        first = bisect(cumulative, random.below(cumulative[-1]))
        weight = self.weights[active[first]]
        point = random.below(cumulative[-1] - weight)  # on the line of weights with the first one's stretch cut out
        if point >= cumulative[first] - weight:
            point += weight
        return first, bisect(cumulative, point)
