"""Policies: in which order the available backends of a tier are tried.

Each is a bounded walk, first choice first, that gives no backend twice and none that is unavailable by the time it is reached. Knows
nothing of health rules, pins or tiers other than its own; ``pool`` joins those.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from math import gcd
from typing import Literal, Protocol, TypeAlias

from balancer.backend import Backend
from balancer.prng import SplitMix
from balancer.ring import shared_ring
from balancer.tier import Tier

PolicyName: TypeAlias = Literal["consistent_hash", "round_robin", "least_request", "random"]

MAX_CYCLE = 4096
"""Turns of weighted round robin that are remembered, so that a turn costs the same for any number of backends."""


class Policy(Protocol):
    """How one tier's backends are chosen."""

    why: str
    """What the first choice was made by, for ``explain``."""

    def walk(self, key: bytes) -> Iterator[Backend]:
        """The available backends, first choice first."""

    def preview(self, key: bytes) -> list[Backend]:
        """What ``walk`` would give now, without taking a turn. May have unavailable ones where they would stand."""


def make_policy(name: PolicyName, tier: Tier, secret: bytes, seed: int) -> Policy:
    """The policy *name* over *tier*. Raises ValueError where the ring can't be built (see ``ring.Ring``)."""
    if name == "consistent_hash":
        return ConsistentHash(tier, secret)
    if name == "round_robin":
        return RoundRobin(tier)
    return LeastRequest(tier, seed) if name == "least_request" else RandomChoice(tier, seed)


class ConsistentHash:
    """The owner of the key on the ring, then the next ones around it."""

    why = "owns the key on the ring"

    def __init__(self, tier: Tier, secret: bytes) -> None:
        self._tier = tier
        self._backends = tier.backends
        names = (backend.identity for backend in tier.backends)
        self._ring = shared_ring(tuple(zip(names, tier.weights, strict=True)), secret)

    def walk(self, key: bytes) -> Iterator[Backend]:
        """See ``Policy``. Ends when as many as are available have been given: it need not go all around for the last one."""
        ring = self._ring
        if not ring.size:
            return
        position = ring.position(key)
        backends = self._backends
        backend = backends[ring.owners[position]]
        if backend.available:
            yield backend
        left = len(self._tier.active()) - backend.available
        if left <= 0:
            return
        for index in ring.after(position):
            backend = backends[index]
            if backend.available:
                yield backend
                left -= 1
                if left <= 0:
                    return

    def preview(self, key: bytes) -> list[Backend]:
        """See ``Policy``: the whole walk."""
        if not self._ring.size:
            return []
        position = self._ring.position(key)
        return [self._backends[index] for index in (self._ring.owners[position], *self._ring.after(position))]


class RoundRobin:
    """Smooth weighted round robin, as nginx does it: 5:1:1 gives a a b a c a a, and not five in a row.

    Each turn adds every weight to its backend's balance, takes the highest balance and charges it the sum of the weights. The turns
    repeat after sum/gcd of them; they are remembered up to ``MAX_CYCLE``. A change of states begins anew, so that the turns of a backend
    that is down are shared by all the others and do not fall to its successor.
    """

    why = "has the next turn"

    def __init__(self, tier: Tier) -> None:
        self._tier = tier
        self._seen = -1
        self._turn = 0
        self._cycle = 0
        self._turns: list[int] = []
        self._weights: list[int] = []
        self._balance: list[int] = []

    def walk(self, key: bytes) -> Iterator[Backend]:  # noqa: ARG002  # the key plays no part in turns
        """See ``Policy``."""
        if not self._tier.active():
            return
        place = self._next()
        self._turn += 1
        if self._cycle > MAX_CYCLE:
            self._turns.clear()
            self._turn = 0
        elif self._turn == self._cycle:
            self._turn = 0
        yield from self._from(place)

    def preview(self, key: bytes) -> list[Backend]:  # noqa: ARG002  # as above
        """See ``Policy``."""
        return list(self._from(self._next())) if self._tier.active() else []

    def _from(self, place: int) -> Iterator[Backend]:
        backend = self._tier.backends[self._tier.active()[place]]
        if backend.available:
            yield backend
        yield from self._tier.rotation(place, backend)

    def _next(self) -> int:
        """Whose turn it is, as a place in ``active``."""
        if self._seen != self._tier.version:
            self._begin()
        if self._turn < len(self._turns):
            return self._turns[self._turn]
        balance = self._balance
        for place, weight in enumerate(self._weights):
            balance[place] += weight
        best = balance.index(max(balance))
        balance[best] -= sum(self._weights)
        self._turns.append(best)
        return best

    def _begin(self) -> None:
        self._seen = self._tier.version
        active = self._tier.active()
        self._weights = [self._tier.weights[index] for index in active]
        self._balance = [0] * len(active)
        self._turn = 0
        self._cycle = sum(self._weights) // gcd(*self._weights)
        self._turns = list(range(len(active))) if self._cycle == len(active) else []  # equal weights: no need to work it out


class Sampled(ABC):
    """What the two policies that draw by weight share."""

    why = ""

    def __init__(self, tier: Tier, seed: int) -> None:
        self._tier = tier
        self._random = SplitMix(seed)

    def walk(self, key: bytes) -> Iterator[Backend]:  # noqa: ARG002  # the key plays no part in draws
        """See ``Policy``."""
        return self._draw(self._random)

    def preview(self, key: bytes) -> list[Backend]:  # noqa: ARG002  # as above
        """See ``Policy``."""
        return list(self._draw(self._random.fork()))

    @abstractmethod
    def _prefer(self, first: int, second: int) -> bool:
        """Whether the first drawn stays first; both are positions in the tier."""

    def _draw(self, random: SplitMix) -> Iterator[Backend]:
        tier = self._tier
        active = tier.active()
        if len(active) < 2:
            yield from tier.rotation(0)
            return
        place, other = tier.draw_two(random)
        first, second = active[place], active[other]
        if not self._prefer(first, second):
            first, second = second, first
        pair = tier.backends[first], tier.backends[second]
        for backend in pair:
            if backend.available:
                yield backend
        yield from tier.rotation(other, *pair)


class LeastRequest(Sampled):
    """Of two drawn by weight, the one with fewer requests in flight for its weight (Mitzenmacher 2001: the power of two choices)."""

    why = "has fewer requests in flight for its weight, of two drawn at random"

    def _prefer(self, first: int, second: int) -> bool:
        backends, weights = self._tier.backends, self._tier.weights
        return backends[first].inflight * weights[second] <= backends[second].inflight * weights[first]


class RandomChoice(Sampled):
    """Drawn by weight."""

    why = "was drawn at random, by weight"

    def _prefer(self, first: int, second: int) -> bool:  # noqa: ARG002  # the first drawn is as good as any
        return True
