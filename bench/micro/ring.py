"""What the balancer costs: building a ring, and the first candidate of a request, by policy and size.

Run: ``python bench/micro/ring.py``. Prints microseconds for one call (best of several rounds) and, for the ring, how even it is.
"""

import time
from collections import Counter
from timeit import Timer

from balancer.pool import Member, Outcome, Pool, PoolSettings
from balancer.ring import Ring

SIZES = (3, 1000)
POLICIES = ("consistent_hash", "round_robin", "least_request", "random")
KEY = b"0123456789abcdef"
CALLS = 20_000
ROUNDS = 5


def members(size, *, uneven=False):
    return [Member(f"http://10.0.{number >> 8}.{number & 255}:8080", 1 + number % 3 if uneven else 1) for number in range(size)]


def microseconds(call):
    return min(Timer(call).repeat(ROUNDS, CALLS)) / CALLS * 1e6


def main():
    for size in SIZES:
        nodes = tuple((member.identity, 1) for member in members(size))
        began = time.perf_counter()
        ring = Ring(nodes, b"secret")
        built = time.perf_counter() - began
        shares = Counter(ring.owners[ring.position(b"key %d" % number)] for number in range(100_000))
        print(
            f"ring of {size}: built in {built * 1e3:.1f} ms, position {microseconds(lambda ring=ring: ring.position(KEY)):.2f} us, ", end=""
        )
        print(f"fullest over mean {max(shares.values()) * size / 100_000:.2f}")
    for policy in POLICIES:
        for size in SIZES:
            pool = Pool("bench", members(size, uneven=policy == "round_robin"), PoolSettings(policy=policy), b"secret", 1)
            backend = pool.backends[0]
            first = microseconds(lambda pool=pool: next(pool.candidates(KEY, 1.0)))
            pinned = microseconds(lambda pool=pool, backend=backend: next(pool.candidates(KEY, 1.0, backend)))
            print(f"{policy} of {size}: first candidate {first:.2f} us, pinned {pinned:.2f} us")
            pool.report(backend, Outcome.SUCCESS, 1.0)
    print(f"report(SUCCESS): {microseconds(lambda: pool.report(backend, Outcome.SUCCESS, 1.0)):.2f} us")
    print(f"note_request: {microseconds(lambda: pool.note_request(1.0)):.2f} us")


if __name__ == "__main__":
    main()
