"""The health rules as a dialogue: outcomes in, states out."""

from math import inf

import pytest

from balancer.backend import Backend
from balancer.condition import Condition
from balancer.health import BACKOFF_MAX, BACKOFF_MIN, TRANSITIONS, Health, Outcome, Signal, Status

OK, BAD = Outcome.PROBE_OK, Outcome.PROBE_FAILED
FINE, REFUSED, BROKEN = Outcome.SUCCESS, Outcome.CONNECT_FAILED, Outcome.RESPONSE_FAILED


def rules(*, rise=2, fall=3, passive_fall=3, probed=True):
    return Health(rise=rise, fall=fall, passive_fall=passive_fall, probed=probed)


def dialogue(health, backend, *outcomes, now=0.0):
    """Report the outcomes one after the other; the state after each, and a mark where report said that it changed."""
    said = []
    for outcome in outcomes:
        changed = health.report(backend, outcome, now)
        said.append(backend.state + ("!" if changed else ""))
    return said


def test_a_new_backend_is_up():
    backend = Backend("b")
    assert (backend.state, backend.available, backend.inflight) == ("up", True, 0)
    assert repr(backend) == "Backend('b', up, weight=1, inflight=0)"


def test_the_first_probe_of_a_new_backend_decides():
    assert dialogue(rules(), Backend("b"), BAD) == ["down!"]


def test_after_one_success_it_takes_fall_failures_in_a_row():
    assert dialogue(rules(fall=3), Backend("b"), OK, BAD, BAD, OK, BAD, BAD, BAD) == ["up"] * 6 + ["down!"]


def test_a_live_success_counts_as_having_answered():
    assert dialogue(rules(fall=2), Backend("b"), FINE, BAD, BAD) == ["up", "up", "down!"]


def test_it_takes_rise_successes_in_a_row_to_come_up():
    assert dialogue(rules(rise=3), Backend("b"), BAD, OK, OK, BAD, OK, OK, OK) == ["down!", "down", "down", "down", "down", "down", "up!"]


def test_more_of_the_same_changes_nothing():
    assert dialogue(rules(), Backend("b"), BAD, BAD, BAD) == ["down!", "down", "down"]
    assert dialogue(rules(), Backend("b"), OK, OK, OK) == ["up", "up", "up"]


def test_live_failures_in_a_row_take_it_down_at_once():
    backend = Backend("b")
    assert dialogue(rules(passive_fall=3), backend, REFUSED, BROKEN, REFUSED) == ["up", "up", "down!"]
    assert backend.reason == "3 live requests failed in a row (connect failed)"


def test_a_live_success_starts_the_count_anew():
    assert dialogue(rules(passive_fall=2), Backend("b"), REFUSED, FINE, REFUSED, FINE, BROKEN, REFUSED) == ["up"] * 5 + ["down!"]


def test_a_probe_that_succeeds_does_not_excuse_live_failures():
    assert dialogue(rules(passive_fall=2), Backend("b"), REFUSED, OK, REFUSED) == ["up", "up", "down!"]


def test_live_failures_count_for_nothing_when_that_is_off():
    assert dialogue(rules(passive_fall=0), Backend("b"), *[REFUSED] * 100) == ["up"] * 100


def test_where_probes_run_only_they_bring_it_back():
    backend = Backend("b")
    health = rules(passive_fall=1, rise=2)
    assert dialogue(health, backend, REFUSED, FINE, REFUSED, FINE, OK, OK) == ["down!", "down", "down", "down", "down", "up!"]
    assert backend.trial_at == inf
    assert backend.reason == ""


def test_live_failures_before_a_fall_are_forgotten_when_it_rises():
    health = rules(passive_fall=2, rise=1)
    assert dialogue(health, Backend("b"), REFUSED, BAD, OK, REFUSED) == ["up", "down!", "up!", "up"]


def test_without_probes_a_trial_brings_it_back():
    backend = Backend("b")
    health = rules(passive_fall=1, probed=False)
    assert health.report(backend, REFUSED, 10.0)
    assert backend.trial_at == 10.0 + BACKOFF_MIN
    assert dialogue(health, backend, FINE) == ["down"], "an answer to an older request proves nothing"

    health.open_trial(backend)
    assert (backend.available, backend.state) == (True, "down")
    health.take_trial(backend, 11.5)
    assert (backend.available, backend.trial_at) == (False, 11.5 + BACKOFF_MIN)
    assert dialogue(health, backend, FINE) == ["up!"]
    assert (backend.available, backend.trial_at, backend.reason) == (True, inf, "")


def test_each_failed_trial_doubles_the_back_off_up_to_its_bound():
    backend = Backend("b")
    health = rules(passive_fall=1, probed=False)
    health.report(backend, REFUSED, 0.0)
    waits, now = [], 0.0
    for _ in range(8):
        waits.append(backend.trial_at - now)
        now = backend.trial_at
        health.open_trial(backend)
        health.take_trial(backend, now)
        assert not health.report(backend, REFUSED, now)
        assert not health.report(backend, REFUSED, now), "a late failure of another request is not a second trial"
    assert waits == [1, 2, 4, 8, 16, 32, BACKOFF_MAX, BACKOFF_MAX]


def test_draining_hides_health_but_does_not_forget_it():
    backend = Backend("b")
    health = rules(rise=1, fall=1)
    dialogue(health, backend, OK)
    assert health.drain(backend, 1.0)
    assert (backend.state, backend.available) == ("draining", False)
    assert not health.drain(backend, 1.0)
    assert dialogue(health, backend, BAD) == ["draining"]
    assert health.restore(backend, 2.0)
    assert (backend.state, backend.available) == ("down", False)
    assert health.drain(backend, 3.0)
    assert dialogue(health, backend, OK) == ["draining"]
    assert health.restore(backend, 4.0)
    assert (backend.state, backend.available) == ("up", True)
    assert not health.restore(backend, 4.0)


def test_a_backend_that_is_drained_while_down_gets_no_trial_until_it_is_restored():
    backend = Backend("b")
    health = rules(passive_fall=1, probed=False)
    health.report(backend, REFUSED, 0.0)
    health.drain(backend, 0.5)
    assert backend.trial_at == inf
    health.restore(backend, 9.0)
    assert (backend.state, backend.trial_at) == ("down", 9.0 + BACKOFF_MIN)


def test_when_it_was_last_healthy_is_noted_if_it_ever_was():
    never, once = Backend("never"), Backend("once")
    health = rules(fall=1)
    health.report(never, BAD, 5.0)
    health.report(once, OK, 5.0)
    health.report(once, BAD, 6.0)
    assert (never.last_healthy, once.last_healthy) == (-inf, 6.0)


def test_every_change_is_counted():
    health = rules(fall=1)
    backend = Backend("b")
    before = health.changes.count
    dialogue(health, backend, OK, OK, FINE, REFUSED)
    assert health.changes.count == before
    dialogue(health, backend, BAD)
    assert health.changes.count == before + 1


@pytest.mark.parametrize("condition", Condition)
@pytest.mark.parametrize("signal", Signal)
def test_the_table_never_leads_astray(condition, signal):
    """Health signals never change draining, draining signals never change health."""
    after = TRANSITIONS.get((condition, signal), condition)
    draining = {Condition.DRAINING, Condition.DRAINING_DOWN}
    unhealthy = {Condition.DOWN, Condition.DRAINING_DOWN}
    if signal in {Signal.ROSE, Signal.FELL}:
        assert (after in draining) == (condition in draining)
        assert (after in unhealthy) == (signal is Signal.FELL)
    else:
        assert (after in unhealthy) == (condition in unhealthy)
        assert (after in draining) == (signal is Signal.DRAIN)


def test_news_are_told_and_what_is_known_is_not():
    told = []
    health, backend = Health(rise=1, fall=2, passive_fall=2, probed=True), Backend("a")
    health.watch = lambda backend, outcome, changed: told.append((backend.state, outcome, changed))
    for outcome in (Outcome.PROBE_OK, Outcome.PROBE_OK, Outcome.SUCCESS, Outcome.CONNECT_FAILED, Outcome.CONNECT_FAILED, Outcome.PROBE_OK):
        health.report(backend, outcome, 1.0)
    health.drain(backend, 2.0)
    health.drain(backend, 2.0)
    assert told == [
        ("up", Outcome.PROBE_OK, False),
        ("up", Outcome.CONNECT_FAILED, False),
        ("down", Outcome.CONNECT_FAILED, True),
        ("up", Outcome.PROBE_OK, True),
        ("draining", None, True),
    ]


@pytest.mark.parametrize("probed", [True, False])
def test_what_another_process_knows_is_taken_over(probed):
    here, there = (Health(rise=1, fall=2, passive_fall=2, probed=probed) for _ in range(2))
    one, other = Backend("a"), Backend("a")
    here.report(one, Outcome.SUCCESS, 1.0)
    for _ in range(2):
        here.report(one, Outcome.RESPONSE_FAILED, 2.0)
    there.watch = lambda *_: pytest.fail("what others know is no news for them")
    before = there.changes.count
    there.impose(other, here.status(one), 3.0)
    assert (other.state, other.reason, other.available) == ("down", one.reason, False)
    assert there.changes.count > before, "choices are made anew"
    assert (other.trial_at == 4.0) is not probed, "what nothing probes is tried from here as well"
    there.watch = None
    there.impose(other, Status(Condition.UP, "", proven=True, streak=0, failures=1), 5.0)
    assert (other.state, other.available, other.failures) == ("up", True, 1)
