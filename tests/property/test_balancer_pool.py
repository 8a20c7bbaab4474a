"""What a pool promises for any members and any history."""

from collections import Counter
from math import gcd

from hypothesis import given, settings
from hypothesis import strategies as st

from balancer.backend import Backend
from balancer.health import Health, Outcome
from balancer.pool import Member, Pool, PoolSettings

POLICIES = st.sampled_from(["consistent_hash", "round_robin", "least_request", "random"])
MEMBERS = st.lists(
    st.builds(Member, st.text("abcdef", min_size=1, max_size=5), st.integers(1, 6), st.booleans()),
    min_size=1,
    max_size=8,
    unique_by=lambda member: member.identity,
)
OUTCOMES = st.sampled_from(list(Outcome))


@settings(max_examples=60, deadline=None)
@given(MEMBERS, POLICIES, st.binary(max_size=20), st.data())
def test_the_walk_is_a_permutation_of_the_available_ones_primaries_first(members, policy, key, data):
    pool = Pool("p", members, PoolSettings(policy=policy, probed=True), b"secret", 1)
    for backend in pool.backends:
        if data.draw(st.booleans()):
            pool.report(backend, Outcome.PROBE_FAILED, 0.0)
        if data.draw(st.booleans()):
            pool.drain(backend, 0.0)
    pinned = data.draw(st.sampled_from([None, *pool.backends]))
    walk = list(pool.candidates(key, 0.0, pinned))
    usable = [backend for backend in pool.backends if backend.state == "up"]
    assert sorted(backend.identity for backend in walk) == sorted(backend.identity for backend in usable)
    if pinned in usable:
        assert walk.pop(0) is pinned
    assert [backend.backup for backend in walk] == sorted(backend.backup for backend in walk)


@settings(max_examples=60, deadline=None)
@given(MEMBERS, POLICIES, st.booleans(), st.booleans(), st.lists(st.tuples(st.integers(0, 7), OUTCOMES, st.floats(0, 5)), max_size=60))
def test_any_history_leaves_a_bounded_walk_without_doubles(members, policy, probed, panic, history):
    settings_ = PoolSettings(policy=policy, probed=probed, panic=panic, passive_fall=1, rise=1)
    pool = Pool("p", members, settings_, b"secret", 1)
    now = 0.0
    for index, outcome, pause in history:
        now += pause
        backend = pool.backends[index % len(pool.backends)]
        before = backend.state
        assert pool.report(backend, outcome, now) == (backend.state != before)
        explained = pool.explain(b"key", now)
        walk = list(pool.candidates(b"key", now))
        assert len(set(walk)) == len(walk)
        assert [step.backend for step in explained if step.chosen] == walk[:1], "explain names the one that is then taken"
        assert sorted(step.backend.identity for step in explained) == sorted(member.identity for member in members)
        assert bool(walk) or not panic
    if not probed:
        assert list(pool.candidates(b"key", now + 60.0)), "without probes no backend is lost for good"


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=7))
def test_smooth_round_robin_is_exact_over_a_cycle_and_never_clumps(weights):
    members = [Member(str(number), weight) for number, weight in enumerate(weights)]
    pool = Pool("p", members, PoolSettings(policy="round_robin"), b"secret", 1)
    cycle = sum(weights) // gcd(*weights)
    for _ in range(3):
        turns = [next(pool.candidates(b"", 0.0)).identity for _ in range(cycle)]
        assert Counter(turns) == {str(number): weight // gcd(*weights) for number, weight in enumerate(weights)}
    for number, weight in enumerate(weights):
        given_so_far = 0
        for turn, identity in enumerate(turns, 1):
            given_so_far += identity == str(number)
            assert abs(given_so_far - turn * weight / sum(weights)) < len(weights), "at no time far from its share"


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 4), st.integers(1, 4), st.lists(st.booleans(), max_size=60))
def test_health_never_flaps_under_rise_and_fall(rise, fall, probes):
    """Each change comes after *rise* or *fall* probes in a row that ask for it, but for the first probe of all."""
    health = Health(rise=rise, fall=fall, passive_fall=0, probed=True)
    backend = Backend("b")
    for count, success in enumerate(probes, 1):
        changed = health.report(backend, Outcome.PROBE_OK if success else Outcome.PROBE_FAILED, float(count))
        needed = rise if success else fall
        in_a_row = probes[max(0, count - needed) : count]
        unanimous = len(in_a_row) == needed and set(in_a_row) == {success}
        if changed:
            assert (backend.state == "up") == success
            assert unanimous or not any(probes[:count])
        elif unanimous:
            assert (backend.state == "up") == success, "as many in a row are always enough"
