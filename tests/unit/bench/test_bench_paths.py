"""Emulated paths: the bottleneck by its computed times, the plan, the table."""

from itertools import pairwise

import pytest

from bench.paths import told
from bench.paths.measure import Sent
from bench.paths.plan import ALL, BLOATED, CONTROLLERS, SHALLOW, SOME, Path
from bench.paths.relay import Bottleneck

RATE = 1_250_000.0  # bytes a second: 10 Mbit
SIZE = 1250  # a millisecond of it


def test_what_comes_at_once_leaves_at_the_rate() -> None:
    path = Bottleneck(RATE, 100 * SIZE, 0.0, 1)
    times = [path.take(SIZE, 5.0) for _ in range(50)]
    assert times[0] == pytest.approx(5.001)
    assert {round(late - soon, 9) for soon, late in pairwise(times)} == {0.001}
    assert list(path.waits) == pytest.approx([number / 1000 for number in range(50)])


def test_after_a_pause_it_is_idle() -> None:
    path = Bottleneck(RATE, 100 * SIZE, 0.0, 1)
    path.take(SIZE, 5.0)
    assert path.take(SIZE, 6.0) == pytest.approx(6.001)
    assert list(path.waits) == [0.0, 0.0]


def test_what_the_queue_does_not_hold_is_dropped() -> None:
    path = Bottleneck(RATE, 10 * SIZE, 0.0, 1)
    passed = [path.take(SIZE, 0.0) is not None for _ in range(30)]
    assert passed == [True] * 10 + [False] * 20
    assert (path.offered, path.offered_bytes, path.overflowed, path.lost) == (30, 30 * SIZE, 20, 0)
    assert path.take(SIZE, 0.005) is not None


def test_losses_are_of_that_share_the_same_by_a_seed_and_take_their_time_of_the_rate() -> None:
    one, again, other = (Bottleneck(RATE, 100 * SIZE, 0.03, seed) for seed in (1, 1, 2))
    lost = [[path.take(SIZE, at / 1000) is None for at in range(20_000)] for path in (one, again, other)]
    assert lost[0] == lost[1] != lost[2]
    assert 0.025 < sum(lost[0]) / 20_000 < 0.035
    assert one.overflowed == 0


def test_every_path_and_controller_is_of_the_plan() -> None:
    assert len(set(ALL)) == 2 * 2 * 3 * 2
    assert set(SOME) <= set(ALL)
    assert len(set(CONTROLLERS)) == 5
    assert Path(10, 0.02, 0.0, SHALLOW).queue_bytes == 6250
    assert Path(100, 0.2, 0.0, BLOATED).queue_bytes == 10_000_000


def test_the_table_tells_shares_waits_and_what_was_sent() -> None:
    runs = []
    for controller, goodput in zip(CONTROLLERS[:2], (9e6, 5e6), strict=True):
        for path in SOME[:1]:
            relay = {"queue_mean": 0.01, "queue_p95": 0.02, "late_mean": 0.0001, "late_p99": 0.001}
            runs.append(Sent(path, controller, 0, goodput, 0.05, relay))
    text = told.markdown(runs, {"seconds": 5.0, "rounds": 1}, ["aioquic reno: not here"])
    assert "| path | native bbr | native cubic |" in text
    assert "| 10 Mbit/s, 20 ms, 0% lost, queue of 4 BDP | 90% | 50% |" in text
    assert "| 10.0 / 20.0 | 10.0 / 20.0 |" in text
    assert "| 1.05 | 1.05 |" in text
    assert "| all (1) | 90% | 50% |" in text
    assert "Left out: aioquic reno: not here" in text
    assert [Sent.load(run.dump()) for run in runs] == runs
