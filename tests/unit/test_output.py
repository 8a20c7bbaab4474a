"""The budget of a process for answers that wait: what it leaves each connection, what it tells, and that it holds."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest

from proxy.engine.seam import LOW_WATER, EngineLimits
from proxy.meters import ProxyMetrics
from proxy.observe import Metrics, NullLog
from proxy.output import STEPS, TELL_EVERY, OutputBudget
from proxy.snapshot import Limits

KIB, MIB = 1024, 1024 * 1024
EACH = 4 * MIB
TOTAL = 16 * MIB


class Listener:
    def __init__(self) -> None:
        self.output_bytes = 0
        self.holds = 0
        self.bounds: list[int] = []

    def bound_output(self, most: int) -> None:
        self.bounds.append(most)


class Lines(NullLog):
    def __init__(self) -> None:
        self.lines: list[tuple[str, dict[str, Any]]] = []

    def warning(self, event: str, **details: object) -> None:
        self.lines.append((f"warning: {event}", details))

    def info(self, event: str, **details: object) -> None:
        self.lines.append((f"info: {event}", details))


def limits(total: int = TOTAL, each: int = EACH) -> Limits:
    return Limits(0, 0, 0, 0, EngineLimits(output=each), total)


class Process:
    def __init__(self, *, listeners: int = 1) -> None:
        self.metrics = Metrics()
        self.log = Lines()
        self.budget = OutputBudget(limits(), ProxyMetrics(self.metrics), self.log)
        self.listeners = [Listener() for _ in range(listeners)]
        self.budget.holders.extend(self.listeners)

    def waits(self, size: int) -> None:
        self.listeners[0].output_bytes = size
        self.budget.look()

    def value(self, name: str, *labels: str) -> float:
        return self.metrics.families[name].cells[labels].value


def test_within_the_budget_nobody_hears_of_it() -> None:
    process = Process(listeners=2)
    process.listeners[1].output_bytes = TOTAL // 2
    process.waits(TOTAL // 2)
    process.budget.turn(1.0)
    assert (process.budget.over, process.budget.bound) == (False, EACH)
    assert [listener.bounds for listener in process.listeners] == [[], []]
    assert process.log.lines == []
    assert process.value("qproxy_output_bytes") == TOTAL


def test_beyond_it_everybody_has_the_least_at_once_and_more_again_step_by_step() -> None:
    process = Process(listeners=2)
    process.waits(TOTAL + 1)
    assert process.budget.over
    assert process.value("qproxy_output_bound_bytes") == EACH
    for size in (TOTAL + 1, TOTAL, TOTAL * 3 // 4 + 1):
        process.waits(size)
    assert [listener.bounds for listener in process.listeners] == [[LOW_WATER]] * 2
    process.budget.show()
    assert process.value("qproxy_output_bound_bytes") == LOW_WATER
    steps = 0
    while process.budget.over:
        process.waits(TOTAL * 3 // 4)
        steps += 1
    assert steps == 7
    assert process.listeners[0].bounds == [LOW_WATER << step for step in range(steps)] + [EACH]
    process.waits(0)
    assert process.listeners[0].bounds[-1] == EACH


def test_a_relapse_is_met_from_any_step() -> None:
    process = Process()
    for size in (TOTAL + 1, 0, 0, TOTAL + 1, 0):
        process.waits(size)
    assert process.listeners[0].bounds == [LOW_WATER, 2 * LOW_WATER, 4 * LOW_WATER, LOW_WATER, 2 * LOW_WATER]


def test_the_sum_is_made_when_what_came_could_have_used_up_what_was_left(monkeypatch: pytest.MonkeyPatch) -> None:
    process = Process()
    looks: list[int] = []
    measure = OutputBudget.measure
    counting = lambda budget: looks.append(1) or measure(budget)
    monkeypatch.setattr(OutputBudget, "measure", counting)
    for _ in range(TOTAL // (64 * KIB)):
        process.budget.queued(64 * KIB)
    assert looks == []
    process.budget.queued(1)
    assert len(looks) == 1
    process.listeners[0].output_bytes = TOTAL - 1
    process.budget.look()
    before = len(looks)
    for _ in range(TOTAL // (64 * KIB)):
        process.budget.queued(64 * KIB)  # all of it is taken: a walk for one part in sixteen
    assert len(looks) - before <= STEPS
    assert not process.budget.over


def test_while_nobody_can_have_less_only_time_makes_the_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    process = Process()
    process.waits(2 * TOTAL)
    monkeypatch.setattr(OutputBudget, "measure", lambda _: pytest.fail("a walk"))
    for _ in range(100):
        process.budget.queued(TOTAL)


def test_a_stop_is_counted_under_the_limit_for_which_it_was() -> None:
    process = Process(listeners=2)
    hits = lambda: [process.value("qproxy_limits_hit_total", limit) for limit in ("output_per_connection", "output")]
    assert hits() == [0, 0]
    process.listeners[0].holds = 3
    process.budget.show()
    process.listeners[1].holds = 4
    process.waits(TOTAL + 1)  # those were before
    assert hits() == [7, 0]
    process.listeners[1].holds = 9
    process.waits(TOTAL + 1)
    assert hits() == [7, 5]


def test_it_is_told_once_and_not_at_every_coming_and_going() -> None:
    process = Process()
    budget, (listener,) = process.budget, process.listeners
    now = 100.0
    for turn in range(200):
        listener.output_bytes = (0, TOTAL + 1)[turn % 2]
        for _ in range(8):
            budget.look()
        budget.turn(now)
        now += 1.0
    heard = [line for line, _ in process.log.lines]
    assert 2 <= len(heard) <= 200 / TELL_EVERY
    assert all(one != other for one, other in itertools.pairwise(heard))
    assert heard[0] == "warning: clients leave more of their answers waiting than limits.output"
    assert process.log.lines[0][1] == {"bytes": TOTAL + 1, "limit": TOTAL}
    listener.output_bytes = 0
    for _ in range(40):
        now += 1.0
        budget.turn(now)
    assert process.log.lines[-1] == (
        "info: clients leave no more of their answers waiting than limits.output",
        {"bytes": 0, "limit": TOTAL},
    )


def test_a_reload_holds_for_living_connections() -> None:
    process = Process()
    (listener,) = process.listeners
    listener.output_bytes = 8 * MIB
    process.budget.replace(limits(TOTAL, MIB))
    assert (process.budget.bound, listener.bounds) == (MIB, [MIB])
    process.budget.replace(limits(4 * MIB, MIB))
    assert (process.budget.over, listener.bounds[-1]) == (True, LOW_WATER)
    process.budget.replace(limits(TOTAL, 2 * MIB))  # there is room again, and no jump
    assert listener.bounds[-1] == 2 * LOW_WATER
    for _ in range(10):
        process.budget.turn(0.0)
    assert (process.budget.over, process.budget.bound) == (False, 2 * MIB)


def test_the_limits_of_a_snapshot_are_frozen_with_their_default() -> None:
    fields = {field.name: field.default for field in dataclasses.fields(Limits)}
    assert fields["output"] == 256 * MIB
