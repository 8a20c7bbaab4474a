"""The load of a worker in virtual time: what is turned away first, that it comes to rest, and that it recovers without flapping."""

from typing import Any

import pytest

from proxy.errors import Kind
from proxy.meters import ProxyMetrics
from proxy.observe import Metrics
from proxy.overload import MEMORY_AGAIN, MEMORY_SHEDS, REST, Load
from proxy.policy.access import Networks
from proxy.snapshot import HIGH, LOW, NORMAL, Overload
from tests.unit.exchange_world import FakeClient, World

TICK = 0.1
STRANGER, TRUSTED = "192.0.2.7", "198.51.100.1"


class Worker:
    """A load with its clock, and what it said."""

    def __init__(self, **settings: Any) -> None:
        self.meters = ProxyMetrics(Metrics())
        self.said: list[tuple[str, str, float]] = []
        self.now = 1000.0
        self.load = Load(Overload(**settings), Networks([TRUSTED]), self.meters, self)  # type: ignore[arg-type]

    def info(self, event: str, *, state: str, **details: object) -> None:
        self.said.append(("info", state, round(self.now - 1000, 1)))

    def warning(self, event: str, *, state: str, **details: object) -> None:
        self.said.append(("warning", state, round(self.now - 1000, 1)))

    def look(self, times: int = 1, *, lag: float = 0.0, memory: int = 0, exchanges: int = 0) -> None:
        for _ in range(times):
            self.now += TICK + lag
            self.load.look(lag, memory, exchanges, self.now)

    def shed(self, priority: int, of: int = 100, headers: Any = (), peer: str = STRANGER) -> int:
        return sum(self.load.sheds(priority, list(headers), peer) for _ in range(of))

    def state(self) -> str:
        (state,) = [labels[0] for labels, cell in self.meters.load_state.cells.items() if cell.value]
        assert state == self.load.state
        return state


def test_below_its_limits_a_worker_turns_nobody_away():
    worker = Worker(lag=0.2, memory=1000, exchanges=100)
    worker.look(100, lag=0.19, memory=890, exchanges=99)
    assert not worker.load.shedding
    assert [worker.shed(priority) for priority in (LOW, NORMAL, HIGH)] == [0, 0, 0]
    assert {labels[0]: round(cell.value, 2) for labels, cell in worker.meters.load.cells.items()} == {
        "lag": 0.95,
        "memory": 0.89,
        "exchanges": 0.99,
    }
    assert (worker.state(), worker.said) == ("normal", [])


@pytest.mark.parametrize("reading", [{"lag": 0.2}, {"memory": 900}, {"exchanges": 100}])
def test_at_each_limit_the_lowest_class_goes_first_and_the_highest_never(reading):
    worker = Worker(lag=0.2, memory=1000, exchanges=100)
    told = []
    for _ in range(30):
        worker.look(**reading)
        told.append([worker.shed(priority) for priority in (LOW, NORMAL, HIGH)])
    low, normal, high = zip(*told, strict=True)
    assert low[0] == 10
    assert list(low) == sorted(low)
    assert list(normal) == sorted(normal)
    assert all(each == 0 or below == 100 for below, each in zip(low, normal, strict=True)), "one class after the other"
    assert (low[-1], normal[-1], set(high)) == (100, 100, {0})
    assert worker.state() == "overloaded"
    shed = {labels[0]: cell.value for labels, cell in worker.meters.shed.cells.items()}
    assert shed == {"low": sum(low), "normal": sum(normal), "high": 0}


def test_one_bad_look_is_no_reason_to_turn_everybody_away():
    worker = Worker(lag=0.2)
    worker.look(lag=30.0)
    assert [worker.shed(priority) for priority in (LOW, NORMAL, HIGH)] == [50, 0, 0]
    worker.look(10)
    assert not worker.load.shedding


def test_a_state_is_left_late_and_said_once():
    worker = Worker(exchanges=10)
    worker.look(15, exchanges=10)
    assert worker.state() == "overloaded"
    worker.look(15, exchanges=0)
    assert worker.load.level == 75
    assert worker.state() == "overloaded"
    worker.look(6, exchanges=0)
    assert worker.state() == "busy"
    worker.look(9, exchanges=0)
    assert not worker.load.shedding
    worker.look(int(REST / TICK) - 2, exchanges=0)
    assert worker.state() == "busy"
    worker.look(3, exchanges=0)
    assert worker.state() == "normal"
    assert [(kind, state) for kind, state, _ in worker.said] == [
        ("info", "busy"),
        ("warning", "overloaded"),
        ("info", "busy"),
        ("info", "normal"),
    ]


def test_what_hovers_about_the_limit_does_not_flap():
    worker = Worker(exchanges=10)
    for number in range(600):
        worker.look(exchanges=11 if number % 3 == 0 else 9)
    assert len(worker.said) <= 2


@pytest.mark.parametrize("offered", [1.2, 1.7, 2.5, 6.0])
def test_more_than_a_worker_can_do_settles_where_it_does_what_it_can(offered):
    """A queue, and a loop that is late by what is in it: a minute of too much, then a minute of little."""
    capacity, cost_of_shedding = 100.0, 0.05
    worker = Worker(lag=0.2)
    backlog, served, came, lags = 0.0, [0, 0, 0], [0, 0, 0], []
    for number in range(1200):
        rate = offered if number < 600 else 0.3
        lag = backlog / capacity * TICK
        elapsed = TICK + lag
        worker.look(lag=lag)
        lags.append(lag)
        for request in range(int(rate * capacity * elapsed / TICK)):
            priority = (LOW, LOW, NORMAL, NORMAL, HIGH, LOW, NORMAL, LOW, NORMAL, LOW)[request % 10]
            came[priority] += number < 600
            if worker.load.sheds(priority, [], STRANGER):
                backlog += cost_of_shedding
            else:
                served[priority] += number < 600
                backlog += 1
        backlog = max(0.0, backlog - capacity * elapsed / TICK)
    assert served[HIGH] == came[HIGH]
    assert served[LOW] / came[LOW] <= served[NORMAL] / came[NORMAL]
    if offered * 0.5 + 0.1 < 1:  # without the lowest class it can do all
        assert served[NORMAL] / came[NORMAL] > 0.9
    if offered < 2:
        assert served[LOW] > 0
    assert 0.1 < min(lags[200:600]) <= max(lags[200:600]) < 0.3, "it keeps to the limit"
    assert lags[-1] == 0
    assert worker.state() == "normal"
    assert len(worker.said) <= 4, worker.said


def test_at_the_limit_of_memory_nothing_is_served_until_there_is_less():
    worker = Worker(memory=1000)
    worker.look(memory=int(1000 * MEMORY_SHEDS))
    assert worker.shed(HIGH) == 0
    worker.look(memory=1000)
    assert worker.load.full
    assert [worker.shed(priority) for priority in (LOW, NORMAL, HIGH)] == [100] * 3
    worker.look(memory=int(1000 * MEMORY_AGAIN))
    assert worker.load.full
    worker.look(memory=int(1000 * MEMORY_AGAIN) - 1)
    assert not worker.load.full
    assert [worker.shed(priority) for priority in (LOW, NORMAL, HIGH)] == [100, 100, 0]
    worker.look(60, memory=800)
    assert not worker.load.shedding
    assert (worker.state(), worker.said[0][:2]) == ("busy", ("info", "busy"))


@pytest.mark.parametrize(
    ("value", "peer", "shed"),
    [
        (b"low", STRANGER, 100),
        (b"LOW", STRANGER, 100),
        (b"high", STRANGER, 0),
        (b"low", TRUSTED, 100),
        (b"nonsense", STRANGER, 0),
    ],
)
def test_anybody_may_lower_the_class_of_a_request(value, peer, shed):
    worker = Worker(exchanges=1, header=b"x-class")
    worker.look(10, exchanges=1)
    assert worker.shed(NORMAL) == 0
    assert worker.shed(NORMAL, headers=[(b"a", b"b"), (b"x-class", value)], peer=peer) == shed


def test_only_who_is_trusted_may_raise_it():
    worker = Worker(exchanges=1, header=b"x-class")
    worker.look(10, exchanges=1)
    assert worker.shed(LOW, headers=[(b"x-class", b"high")]) == 100
    assert worker.shed(LOW, headers=[(b"x-class", b"high")], peer=TRUSTED) == 0


def test_a_reload_may_take_the_limits_away():
    worker = Worker(lag=0.2, exchanges=10)
    worker.look(20, exchanges=100)
    worker.load.replace(Overload(), Networks([]))
    assert not worker.load.wanted
    worker.look(100, exchanges=100)
    assert (worker.state(), worker.load.shedding) == ("normal", False)
    assert worker.meters.load.cells == {}


def test_when_to_come_again_follows_how_long_it_has_lasted_and_is_spread():
    worker = Worker(exchanges=100)
    worker.look(100, exchanges=99)

    def answers():
        return [worker.load.retry_after() for _ in range(1000)]

    worker.look(2, exchanges=200)
    assert {answers().count(seconds) // 100 for seconds in (2, 3, 4)} == {2, 5}  # halves at the ends of 2 to 4
    worker.look(100, exchanges=200)
    few = answers()
    assert (min(few), max(few)) == (10, 20)
    assert all(70 <= few.count(seconds) <= 130 for seconds in range(11, 20))
    worker.look(10_000, exchanges=200)
    many = answers()
    assert (min(many), max(many)) == (30, 60)
    worker.look(1000, exchanges=0)
    assert worker.state() == "normal"
    worker.look(2, exchanges=200)
    assert max(answers()) == 4, "a new one begins anew"


# In the exchange


def test_a_request_that_is_turned_away_asks_no_backend_and_says_when_to_come_again():
    world, client = World(priority=LOW), FakeClient()
    worker = Worker(exchanges=1)
    worker.look(10, exchanges=1)
    world.services.shedding = worker.load
    world.request(client)
    ((_, _, status, headers, _),) = client.said
    assert status == Kind.OVERLOADED.status == 503
    assert (b"retry-after", b"3") in headers
    assert (b"proxy-status", b"qproxy; error=proxy_internal_response") in headers
    assert world.upstreams.endpoints == {}
    assert world.records[0].ended == "overloaded"
    assert worker.meters.shed.cell("low").value == 1


def test_a_class_above_the_level_is_served():
    world, client = World(priority=NORMAL), FakeClient()
    worker = Worker(exchanges=1)
    worker.look(10, exchanges=1)
    world.services.shedding = worker.load
    world.request(client)
    assert len(world.upstreams.endpoints) == 1


@pytest.mark.parametrize(("memory", "answer"), [(999, (200, b"OK")), (1000, (503, b"overloaded\n"))])
def test_health_is_well_through_overload_but_not_where_nothing_is_served(memory, answer):
    world, client = World(), FakeClient()
    worker = Worker(memory=1000)
    worker.look(30, memory=memory)
    world.services.shedding = worker.load
    world.request(client, path=b"/health")
    ((_, _, status, _, body),) = client.said
    assert (status, body) == answer
