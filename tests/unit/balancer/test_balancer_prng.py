"""SplitMix64: the published sequence, and numbers within their bound."""

from collections import Counter

from balancer.prng import SplitMix


def test_it_gives_the_published_sequence():
    random = SplitMix(1234567)
    assert [random.below(1 << 64) for _ in range(5)] == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


def test_numbers_stay_in_bounds_and_are_even():
    random = SplitMix(7)
    counts = Counter(random.below(5) for _ in range(10_000))
    assert set(counts) == set(range(5))
    assert all(1800 < count < 2200 for count in counts.values())


def test_a_fork_goes_on_alike_and_apart():
    random = SplitMix(-3)
    random.below(9)
    fork = random.fork()
    ahead = [fork.below(1000) for _ in range(10)]
    assert [random.below(1000) for _ in range(10)] == ahead
