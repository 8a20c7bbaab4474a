"""The wheel of deadlines, in virtual time."""

from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.deadlines import TICK, Deadlines


class Item:
    def __init__(self, again: float | None = None) -> None:
        self.bucket: dict[Item, None] | None = None
        self.fired: list[float] = []
        self.again = again

    def on_deadline(self, now: float) -> float | None:
        self.fired.append(now)
        again, self.again = self.again, None
        return again


def run(wheel: Deadlines, start: float, end: float) -> None:
    steps = int((end - start) / TICK) + 2
    for step in range(steps):
        wheel.turn(start + step * TICK)


def test_an_item_fires_once_and_not_before_its_time() -> None:
    wheel = Deadlines(100.0)
    item = Item()
    wheel.set(item, 101.0)
    wheel.turn(100.95)
    assert item.fired == []
    wheel.turn(101.2)
    wheel.turn(105.0)
    assert item.fired == [101.2]
    assert len(wheel) == 0


def test_a_cancelled_item_never_fires_and_leaves_nothing_behind() -> None:
    wheel = Deadlines(0.0)
    item = Item()
    wheel.set(item, 1.0)
    wheel.cancel(item)
    wheel.cancel(item)
    assert len(wheel) == 0
    run(wheel, 0.0, 2.0)
    assert item.fired == []


def test_setting_again_replaces_the_earlier_deadline() -> None:
    wheel = Deadlines(0.0)
    item = Item()
    wheel.set(item, 5.0)
    wheel.set(item, 1.0)
    assert len(wheel) == 1
    wheel.turn(1.2)
    wheel.turn(6.0)
    assert item.fired == [1.2]


def test_an_item_may_ask_for_another_time_when_it_fires() -> None:
    wheel = Deadlines(0.0)
    item = Item(again=3.0)
    wheel.set(item, 1.0)
    wheel.turn(1.2)
    wheel.turn(2.9)
    wheel.turn(3.2)
    assert item.fired == [1.2, 3.2]


def test_items_that_begin_between_two_turns_fire_together_and_no_later_than_they_asked_for() -> None:
    wheel = Deadlines(0.0)
    items = [Item(), Item(), Item(again=9.0)]
    for number, item in enumerate(items):
        wheel.begin(item, 1.0, number * 0.04)
    wheel.cancel(items[1])
    assert len(wheel) == 2
    run(wheel, 0.0, 1.2)
    assert [len(item.fired) for item in items] == [1, 0, 1]
    assert 1.0 <= items[0].fired[0] <= 1.0 + 2 * TICK
    wheel.begin(items[0], 1.0, 1.2)
    run(wheel, 1.2, 1.9)
    assert len(items[0].fired) == 1
    run(wheel, 1.9, 10.0)
    assert [len(item.fired) for item in items] == [2, 0, 2]
    assert len(wheel) == 0


def test_what_begins_while_the_wheel_turns_late_is_not_lost() -> None:
    wheel = Deadlines(0.0)
    late = Item()

    class Starter(Item):
        def on_deadline(self, now: float) -> float | None:
            wheel.begin(late, 0.05, 1.0)
            return super().on_deadline(now)

    wheel.set(Starter(), 1.0)
    wheel.turn(9.0)
    wheel.begin(other := Item(), 0.05, 9.0)
    wheel.turn(9.3)
    assert (len(late.fired), len(other.fired), len(wheel)) == (1, 1, 0)


def test_a_deadline_in_the_past_fires_at_the_next_turn() -> None:
    wheel = Deadlines(10.0)
    item = Item()
    wheel.set(item, 2.0)
    wheel.turn(10.0 + 2 * TICK)
    assert len(item.fired) == 1


def test_an_item_cancelled_by_another_of_the_same_turn_does_not_fire() -> None:
    wheel = Deadlines(0.0)
    victim = Item()

    class Killer(Item):
        def on_deadline(self, now: float) -> float | None:
            wheel.cancel(victim)
            return super().on_deadline(now)

    killer = Killer()
    wheel.set(victim, 1.0)
    wheel.set(killer, 1.0)  # fires first: the last one set of a slot does
    wheel.turn(1.2)
    assert killer.fired == [1.2]
    assert victim.fired == []
    wheel.turn(9.0)
    assert victim.fired == []


@settings(max_examples=60)
@given(st.lists(st.floats(min_value=0.0, max_value=30.0), max_size=40))
def test_every_deadline_fires_once_within_two_ticks(dues: list[float]) -> None:
    wheel = Deadlines(0.0)
    items = [Item() for _ in dues]
    for item, due in zip(items, dues, strict=True):
        wheel.set(item, due)
    for step in range(1, 320):
        wheel.turn(step * TICK)
    for item, due in zip(items, dues, strict=True):
        assert len(item.fired) == 1
        assert due <= item.fired[0] + 1e-9
        assert item.fired[0] <= due + 2 * TICK + 1e-6
