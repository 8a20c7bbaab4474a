"""The ring: who owns a key, who comes next, and what it refuses."""

import gc
from collections import Counter

import pytest

from balancer.ring import AT_FIRST_USE, MAX_POINTS, POINTS, Ring, shared_ring

SECRET = b"secret"


def test_a_walk_names_every_node_once_owner_first():
    ring = Ring(tuple((name, 1) for name in "abcdef"), SECRET)
    for number in range(200):
        position = ring.position(b"key %d" % number)
        walk = [ring.owners[position], *ring.after(position)]
        assert sorted(walk) == list(range(6))


def test_one_node_owns_all():
    ring = Ring((("only", 1),), SECRET)
    position = ring.position(b"any")
    assert ring.owners[position] == 0
    assert list(ring.after(position)) == []


def test_an_empty_ring_is_allowed():
    assert Ring((), SECRET).size == 0


def test_keys_behind_the_last_point_wrap_around():
    ring = Ring((("only", 1), ("other", 1)), SECRET)
    positions = {ring.position(b"%d" % number) for number in range(20_000)}
    assert min(positions) == 0
    assert max(positions) == len(ring.owners) - 1


def test_shares_follow_the_weights():
    ring = Ring((("light", 1), ("heavy", 3)), SECRET)
    owned = Counter(ring.owners[ring.position(b"%d" % number)] for number in range(20_000))
    assert 0.68 < owned[1] / 20_000 < 0.82  # 3/4, give or take the 8 % of POINTS


def test_points_are_in_proportion_to_weight():
    assert Counter(Ring((("light", 1), ("heavy", 3)), SECRET).owners) == {0: POINTS, 1: 3 * POINTS}


def test_heavy_rings_have_fewer_points_for_a_unit_and_the_same_shares():
    ring = Ring((("light", 1000), ("heavy", 3000)), SECRET)
    counted = Counter(ring.owners)
    assert counted == {0: 1000 * POINTS // 2, 1: 3000 * POINTS // 2}
    assert len(ring.owners) <= MAX_POINTS


def test_another_secret_is_another_ring():
    nodes = tuple((name, 1) for name in "abcd")
    one, other = Ring(nodes, b"one"), Ring(nodes, b"other")
    keys = [b"%d" % number for number in range(200)]
    assert [one.owners[one.position(key)] for key in keys] != [other.owners[other.position(key)] for key in keys]


@pytest.mark.parametrize(
    ("nodes", "words"),
    [
        ((("a", 1), ("a", 2)), "twice"),
        ((("a", 0),), "1 and more"),
        ((("a", -1),), "1 and more"),
        ((("a", MAX_POINTS), ("b", 1)), "add up to"),
    ],
)
def test_impossible_rings_are_refused(nodes, words):
    with pytest.raises(ValueError, match=words):
        Ring(nodes, SECRET)


def test_a_ring_that_somebody_holds_is_given_again_and_forgotten_after():
    nodes = (("shared a", 1), ("shared b", 1))
    ring = shared_ring(nodes, SECRET)
    assert shared_ring(nodes, SECRET) is ring
    assert shared_ring(nodes, b"other") is not ring
    marker = id(ring.owners), ring.owners
    del ring
    gc.collect()
    assert shared_ring(nodes, SECRET).owners is not marker[1]


def test_a_small_ring_is_placed_when_it_is_first_asked_and_a_large_one_at_once(monkeypatch):
    placed = []
    monkeypatch.setattr(Ring, "_place", lambda ring, place=Ring._place: placed.append(ring.size) or place(ring))
    small = Ring((("a", 1), ("b", 1)), SECRET)
    assert placed == []
    positions = [small.position(b"key %d" % number) for number in range(10)]
    assert {small.owners[position] for position in positions} == {0, 1}
    assert placed == [2]
    Ring(tuple((f"n{number}", 1) for number in range(AT_FIRST_USE // POINTS + 1)), SECRET)
    assert placed == [2, 26]
    with pytest.raises(AttributeError, match="nothing"):
        _ = small.nothing
