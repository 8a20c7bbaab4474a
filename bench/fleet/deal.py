"""How evenly the balancer's policies deal, and how many keys move when a pool changes. Pure but for the policies' own code."""

import heapq
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import get_args

from balancer.policies import PolicyName
from balancer.pool import Member, Pool, PoolSettings

KEYS = 100_000
BACKENDS = 100
LIFETIME = 1.0
"""Mean of a request's, in the unit in which arrivals come: as many are in flight as come in one."""


@dataclass(frozen=True)
class Spread:
    """How one policy deals."""

    policy: str
    by_count: float
    """Requests of the backend that got most, over the mean; by weight."""
    in_flight: float
    """Requests in flight at the fullest backend over the mean, on average over the run; by weight."""


@dataclass(frozen=True)
class Moved:
    """What one change of a pool does to keys."""

    change: str
    ring: float
    """Share of keys that have another backend than before."""
    least: float
    """The share that has to move for shares to be right again."""
    modulo: float
    """The share that moves where the hash is taken modulo the number of backends."""


def members(number: int, *, weights: Sequence[int] = (1,)) -> list[Member]:
    """So many backends, with *weights* by turns."""
    return [Member(f"http://10.0.{at >> 8}.{at & 255}:8080", weights[at % len(weights)]) for at in range(number)]


def spreads(seed: int = 1, keys: int = KEYS, backends: int = BACKENDS) -> list[Spread]:
    """Of each policy, over backends of weights 1 and 2: requests at random times and of random length, ten in flight for each backend."""
    found = []
    for policy in get_args(PolicyName):
        pool = Pool("fleet", members(backends, weights=(1, 2)), PoolSettings(policy=policy), b"fleet", seed)
        found.append(_spread(policy, pool, Random(seed), keys))
    return found


def _spread(policy: str, pool: Pool, random: Random, keys: int) -> Spread:
    counts: Counter[str] = Counter()
    ends: list[tuple[float, int]] = []
    backends = pool.backends
    places = {id(backend): at for at, backend in enumerate(backends)}
    total = sum(backend.weight for backend in backends)
    now, fullest, looks = 0.0, 0.0, 0
    rate = 10.0 * len(backends) / LIFETIME
    for number in range(keys):
        now += random.expovariate(rate)
        while ends and ends[0][0] <= now:
            pool.release(backends[heapq.heappop(ends)[1]], None, now)
        backend = next(pool.candidates(random.randbytes(16), now))
        pool.acquire(backend)
        counts[backend.identity] += 1
        heapq.heappush(ends, (now + random.expovariate(1 / LIFETIME), places[id(backend)]))
        if number > keys // 10 and number % 1000 == 0:
            fullest += max(one.inflight / one.weight for one in backends) / (sum(one.inflight for one in backends) / total)
            looks += 1
    most = max(counts[backend.identity] / backend.weight for backend in backends) / (keys / total)
    return Spread(policy, most, fullest / looks)


def moves(seed: int = 1, keys: int = KEYS, backends: int = BACKENDS) -> list[Moved]:
    """What usual changes move."""
    plain = members(backends)
    heavier = [Member(plain[0].identity, 2), *plain[1:]]
    changes: list[tuple[str, list[Member], float]] = [
        ("one backend more", members(backends + 1), 1 / (backends + 1)),
        ("one backend less", plain[1:], 1 / backends),
        ("one of twice the weight", heavier, 2 / (backends + 1) - 1 / backends),
        ("ten more", members(backends + 10), 10 / (backends + 10)),
        ("the same, in another order", plain[::-1], 0.0),
    ]
    random = Random(seed)
    drawn = [random.randbytes(16) for _ in range(keys)]
    before = _ring_owners(plain, drawn)
    before_modulo = _modulo_owners(plain, drawn)
    return [
        Moved(change, _share(before, _ring_owners(after, drawn)), least, _share(before_modulo, _modulo_owners(after, drawn)))
        for change, after, least in changes
    ]


def _owners(keys: Sequence[bytes], owner: Callable[[bytes], str]) -> list[str]:
    return [owner(key) for key in keys]


def _ring_owners(pool_members: Sequence[Member], keys: Sequence[bytes]) -> list[str]:
    pool = Pool("fleet", pool_members, PoolSettings(), b"fleet", 1)
    return _owners(keys, lambda key: next(pool.candidates(key, 0.0)).identity)


def _modulo_owners(pool_members: Sequence[Member], keys: Sequence[bytes]) -> list[str]:
    turns = [member.identity for member in pool_members for _ in range(member.weight)]
    return _owners(keys, lambda key: turns[int.from_bytes(key[:8]) % len(turns)])


def _share(one: Sequence[str], other: Sequence[str]) -> float:
    return sum(first != second for first, second in zip(one, other, strict=True)) / len(one)
