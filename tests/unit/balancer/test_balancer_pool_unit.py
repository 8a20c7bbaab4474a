"""The pool: pins, tiers, panic, trials, adoption, and what it tells people."""

from collections import Counter

import pytest

from balancer.pool import Member, Outcome, Pool, PoolSettings, Step

SECRET = b"secret"
KEY = b"key"


def make(*members, **settings):
    wanted = [member if isinstance(member, Member) else Member(member) for member in members]
    return Pool("web", wanted, PoolSettings(**settings), SECRET, 1)


def names(pool, now=0.0, key=KEY, pinned=None):
    return [backend.identity for backend in pool.candidates(key, now, pinned)]


def fail(pool, *identities, now=0.0):
    for identity in identities:
        pool.report(pool.find(identity), Outcome.PROBE_FAILED, now)


def test_the_walk_covers_all_and_sticks_to_the_key():
    pool = make(*"abc", probed=True)
    assert sorted(names(pool)) == ["a", "b", "c"]
    assert names(pool) == names(pool, now=99.0)
    assert len({tuple(names(pool, key=b"%d" % number)) for number in range(100)}) == 6


def test_what_is_down_is_not_given_and_comes_back():
    pool = make(*"abc", probed=True, rise=1)
    order = names(pool)
    fail(pool, order[0])
    assert names(pool) == order[1:]
    pool.report(pool.find(order[0]), Outcome.PROBE_OK, 1.0)
    assert names(pool) == order


def test_nothing_when_all_are_down_or_there_are_none():
    pool = make(*"ab", probed=True)
    fail(pool, "a", "b")
    assert names(pool) == []
    assert names(make()) == []
    assert names(make(panic=True)) == []


def test_the_pinned_one_comes_first_and_once():
    pool = make(*"abc", probed=True)
    order = names(pool)
    last = pool.find(order[2])
    assert names(pool, pinned=last) == [order[2], order[0], order[1]]
    fail(pool, order[2])
    assert names(pool, pinned=last) == order[:2]
    pool.drain(pool.find(order[1]), 1.0)
    assert names(pool, pinned=pool.find(order[1])) == order[:1]


def test_a_pin_from_another_pool_is_nothing():
    pool = make(*"abc", probed=True)
    stranger = make("a").find("a")
    assert names(pool, pinned=stranger) == names(pool)


def test_backups_come_after_the_primaries_and_first_only_without_them():
    pool = make("a", "b", Member("x", backup=True), Member("y", backup=True), policy="round_robin", probed=True)
    assert names(pool) == ["a", "b", "x", "y"]
    fail(pool, "a")
    assert names(pool)[0] == "b"
    fail(pool, "b")
    assert set(names(pool)) == {"x", "y"}


def test_a_connection_that_was_pinned_to_a_backup_stays_there():
    pool = make("a", Member("x", backup=True), probed=True, rise=1)
    fail(pool, "a")
    backup = next(pool.candidates(KEY, 0.0))
    pool.report(pool.find("a"), Outcome.PROBE_OK, 1.0)
    assert names(pool, pinned=backup) == ["x", "a"]


def test_what_goes_down_in_mid_walk_is_passed_over():
    pool = make(*"abcd", Member("x", backup=True), probed=True)
    walk = pool.candidates(KEY, 0.0)
    first = next(walk)
    fail(pool, *"abcd")
    assert [backend.identity for backend in walk] == ["x"]
    assert first.state == "down"


def test_panic_goes_by_the_last_known_good():
    pool = make(*"abcd", probed=True, fall=1, panic=True)
    for identity in "abc":
        pool.report(pool.find(identity), Outcome.PROBE_OK, 0.0)
    fail(pool, "b", now=1.0)
    fail(pool, "a", now=3.0)
    fail(pool, "c", now=2.0)
    assert names(pool, now=4.0) == ["d"], "no panic while one is left"
    fail(pool, "d", now=5.0)
    assert names(pool, now=6.0) == ["a", "c", "b", "d"], "d was never healthy"
    pool.drain(pool.find("c"), 7.0)
    assert names(pool, now=8.0) == ["a", "b", "d"], "who drains a backend means it"


def test_panic_with_a_pin_that_is_down_does_not_favour_it():
    pool = make(*"ab", probed=True, panic=True)
    fail(pool, *"ab")
    assert names(pool, pinned=pool.find("b")) == ["a", "b"]


def test_a_trial_lets_one_request_through_and_its_success_all():
    pool = make("a", "b", policy="round_robin", passive_fall=1)
    dead = pool.find("a")
    assert pool.report(dead, Outcome.CONNECT_FAILED, 10.0)
    assert {tuple(names(pool, now=10.9)) for _ in range(5)} == {("b",)}
    taken = [next(pool.candidates(KEY, 11.0)).identity for _ in range(6)]
    assert Counter(taken) == {"b": 5, "a": 1}
    assert pool.report(dead, Outcome.SUCCESS, 11.5)
    assert sorted(next(pool.candidates(KEY, 12.0)).identity for _ in range(4)) == ["a", "a", "b", "b"]


def test_a_failed_trial_waits_longer():
    pool = make("a", passive_fall=1)
    dead = pool.find("a")
    pool.report(dead, Outcome.CONNECT_FAILED, 0.0)
    assert names(pool, now=0.5) == []
    assert names(pool, now=1.0) == ["a"]
    assert not pool.report(dead, Outcome.CONNECT_FAILED, 1.0)
    assert names(pool, now=2.5) == []
    assert names(pool, now=3.0) == ["a"]


def test_a_trial_of_which_nobody_reports_the_end_is_given_again():
    pool = make("a", passive_fall=1)
    pool.report(pool.find("a"), Outcome.CONNECT_FAILED, 0.0)
    assert names(pool, now=1.0) == ["a"]
    assert names(pool, now=1.5) == []
    assert names(pool, now=2.0) == ["a"]


def test_a_pinned_connection_may_carry_the_trial():
    pool = make(*"abc", passive_fall=1)
    pinned = pool.find("b")
    pool.report(pinned, Outcome.CONNECT_FAILED, 0.0)
    assert "b" not in names(pool, now=0.5, pinned=pinned)
    walk = pool.candidates(KEY, 1.0, pinned)
    assert next(walk) is pinned
    assert sorted(backend.identity for backend in walk) == ["a", "c"]
    assert "b" not in names(pool, now=1.1, pinned=pinned)


def test_a_pinned_one_that_stays_is_the_first_of_the_walk_and_the_others_follow():
    pool = make(*"abc", probed=True)
    for backend in pool.backends:
        assert pool.stays(backend)
        rest = [other.identity for other in pool.others(KEY, 0.0, backend)]
        assert names(pool, pinned=backend) == [backend.identity, *rest]
    last = pool.find(names(pool)[2])
    pool.drain(pool.find(names(pool)[0]), 1.0)
    assert [other.identity for other in pool.others(KEY, 1.0, last)] == names(pool)[:1]


def test_a_pinned_one_that_is_down_on_trial_or_of_another_pool_does_not_stay():
    pool = make(*"ab", passive_fall=1)
    backend = pool.find("a")
    pool.report(backend, Outcome.CONNECT_FAILED, 0.0)
    assert not pool.stays(backend)
    names(pool, now=1.5)
    pool.report(backend, Outcome.SUCCESS, 1.6)
    assert pool.stays(backend)
    assert not make("a").stays(backend)


def test_a_finished_request_says_how_it_went_or_nothing():
    pool = make("a", passive_fall=1)
    backend = pool.find("a")
    for _ in range(3):
        pool.acquire(backend)
    assert not pool.release(backend, None, 0.0)
    assert not pool.release(backend, Outcome.SUCCESS, 0.0)
    assert (backend.proven, backend.state) == (True, "up")
    assert pool.release(backend, Outcome.RESPONSE_FAILED, 0.0)
    assert (backend.inflight, backend.state) == (0, "down")


def test_requests_in_flight_are_counted():
    pool = make("a")
    backend = pool.find("a")
    pool.acquire(backend)
    pool.acquire(backend)
    pool.release(backend, None, 0.0)
    assert backend.inflight == 1
    pool.release(backend, None, 0.0)
    with pytest.raises(AssertionError):
        pool.release(backend, None, 0.0)


def test_the_retry_budget_is_the_pools():
    pool = make("a", retry_budget_ratio=0.5, retry_budget_min=0)
    assert not pool.allow_retry(0.0)
    pool.note_request(0.0)
    pool.note_request(0.0)
    assert pool.allow_retry(0.0)
    assert not pool.allow_retry(0.0)


def test_adoption_keeps_backends_state_and_load():
    old = make("a", "b", "c", probed=True)
    fail(old, "b")
    old.acquire(old.find("c"))
    new = make(Member("c", weight=3), Member("b", backup=True), "d", probed=True)
    new.adopt(old, 1.0)
    assert [backend.identity for backend in new.backends] == ["c", "b", "d"]
    assert new.find("b") is old.find("b")
    assert new.find("c") is old.find("c")
    assert new.find("a") is None
    assert (new.find("b").state, new.find("b").backup) == ("down", True)
    assert (new.find("c").inflight, new.find("c").weight) == (1, 3)
    assert sorted(names(new)) == ["c", "d"]


@pytest.mark.parametrize("policy", ["consistent_hash", "round_robin", "least_request", "random"])
def test_what_is_reported_through_either_pool_is_seen_in_both(policy):
    old = make(*"abc", probed=True, policy=policy, rise=1)
    new = make(*"abcd", probed=True, policy=policy, rise=1)
    new.adopt(old, 1.0)
    assert len(names(old)) == 3
    assert len(names(new)) == 4
    fail(old, "a")
    assert "a" not in names(new)
    fail(new, "b")
    assert names(old) == ["c"]
    assert sorted(names(new)) == ["c", "d"]


def test_a_trial_that_an_old_pool_brings_about_is_given_by_the_new_one():
    old = make(*"ab", passive_fall=1)
    new = make(*"ab", passive_fall=1)
    new.adopt(old, 0.0)
    old.report(old.find("a"), Outcome.CONNECT_FAILED, 1.0)
    old.report(old.find("b"), Outcome.CONNECT_FAILED, 1.0)
    assert names(new, now=1.5) == []
    assert sorted(names(new, now=2.0)) == ["a", "b"]


def test_when_probes_are_switched_off_what_is_down_gets_trials():
    old = make("a", probed=True)
    fail(old, "a")
    new = make("a", probed=False)
    new.adopt(old, 5.0)
    assert names(new, now=5.0) == []
    assert names(new, now=6.0) == ["a"]
    assert new.report(new.find("a"), Outcome.SUCCESS, 6.1)


def test_when_probes_are_switched_on_they_alone_decide():
    old = make("a", passive_fall=1)
    old.report(old.find("a"), Outcome.CONNECT_FAILED, 0.0)
    new = make("a", probed=True, rise=1)
    new.adopt(old, 0.5)
    assert names(new, now=99.0) == []
    assert new.report(new.find("a"), Outcome.PROBE_OK, 100.0)


def test_the_retry_budget_is_adopted_unless_its_terms_changed():
    old = make("a", retry_budget_ratio=0, retry_budget_min=1)
    assert old.allow_retry(0.0)
    same, other = make("a", retry_budget_ratio=0, retry_budget_min=1), make("a", retry_budget_ratio=0, retry_budget_min=2)
    same.adopt(old, 0.0)
    other.adopt(old, 0.0)
    assert not same.allow_retry(0.0)
    assert other.allow_retry(0.0)


def test_explain_tells_the_walk_and_why():
    pool = make(*"abc", Member("x", backup=True), probed=True)
    first, second, third, backup = (pool.find(identity) for identity in names(pool))
    fail(pool, first.identity)
    pool.drain(second, 0.0)
    assert pool.explain(KEY, 1.0) == [
        Step(first, "down", chosen=False, why="is down (health probes fail)"),
        Step(second, "draining", chosen=False, why="is draining and takes nothing new"),
        Step(third, "up", chosen=True, why="comes next"),
        Step(backup, "up", chosen=False, why="backup: owns the key on the ring"),
    ]


def test_explain_says_what_the_first_choice_was_made_by_and_takes_no_turn():
    pool = make(*"ab", policy="round_robin", probed=True)
    steps = [(step.backend.identity, step.chosen, step.why) for step in pool.explain(KEY, 0.0)]
    assert steps == [("a", True, "has the next turn"), ("b", False, "comes next")]
    assert names(pool)[0] == "a"
    fail(pool, "b")
    assert [(step.backend.identity, step.state) for step in pool.explain(KEY, 0.0)] == [("a", "up"), ("b", "down")]


def test_explain_of_a_trial_does_not_take_it():
    pool = make("a", passive_fall=1)
    pool.report(pool.find("a"), Outcome.CONNECT_FAILED, 0.0)
    waiting = pool.explain(KEY, 0.5)
    assert names(pool, now=0.9) == []
    due = pool.explain(KEY, 1.0)
    reason = "is down (1 live requests failed in a row (connect failed))"
    assert [(step.state, step.chosen, step.why) for step in waiting + due] == [
        ("down", False, reason),
        ("down", True, f"{reason}, but a trial request is due"),
    ]
    assert names(pool, now=1.0) == ["a"]
    assert names(pool, now=1.0) == []


def test_explain_of_panic():
    pool = make(*"ab", "c", probed=True, fall=1, panic=True)
    pool.report(pool.find("b"), Outcome.PROBE_OK, 0.0)
    fail(pool, *"abc", now=1.0)
    pool.drain(pool.find("c"), 1.0)
    steps = pool.explain(KEY, 2.0)
    assert [(step.backend.identity, step.chosen) for step in steps] == [("b", True), ("a", False), ("c", False)]
    assert steps[0].why == "all are down, and the pool panics: was healthy last"
    assert steps[2].why == "is draining and takes nothing new"


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ([Member("a"), Member("a")], "web: an endpoint stands twice"),
        ([Member("a", weight=0)], "web: weights"),
        ([Member("a", weight=400_001)], "add up"),
    ],
)
def test_impossible_pools_are_refused(members, words):
    with pytest.raises(ValueError, match=words):
        make(*members)


@pytest.mark.parametrize(
    "settings",
    [{"rise": 0}, {"fall": 0}, {"passive_fall": -1}, {"retry_budget_ratio": -0.1}, {"retry_budget_min": float("nan")}],
)
def test_impossible_settings_are_refused(settings):
    with pytest.raises(ValueError, match="at least"):
        PoolSettings(**settings)
