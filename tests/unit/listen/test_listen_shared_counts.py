"""Counts that several processes keep together: their form, their error, and real processes that write, die and are cleared away."""

import multiprocessing
import os
import time
from multiprocessing import reduction
from typing import Any

import pytest

from proxy.engine.seam import EngineLimits
from proxy.listen.limits import AcceptLimits
from proxy.listen.shared_counts import MAX_WIDTH, WIDTH, SharedCounts
from proxy.observe import Metrics
from proxy.policy.access import Networks
from proxy.snapshot import Limits

SPAWN = multiprocessing.get_context("spawn")
NOBODY = Networks([])


@pytest.fixture
def counts():
    made: list[SharedCounts] = []

    def make(rows: int, connections: int = 10_000) -> SharedCounts:
        made.append(SharedCounts.create(rows, connections))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def attach():
    made: list[SharedCounts] = []

    def attach(counts: SharedCounts, row: int) -> SharedCounts:
        made.append(SharedCounts.attach(os.dup(counts.descriptor), row))
        return made[-1]

    yield attach
    for each in made:
        each.close()


def test_two_rows_add_up_and_a_cleared_one_is_gone(counts, attach):
    maker = counts(2)
    one, other = attach(maker, 0), attach(maker, 1)
    one.add(b"a")
    one.add(b"b")
    other.add(b"a")
    assert (maker.connections, maker.held(b"a"), maker.held(b"b"), maker.held(b"c")) == (3, 2, 1, 0)
    assert [maker.connections_of(row) for row in (0, 1)] == [2, 1]
    maker.clear(0)
    assert (other.connections, other.held(b"a"), other.held(b"b")) == (1, 1, 0)
    other.remove(b"a")
    assert (one.connections, one.held(b"a")) == (0, 0)


def test_limits_hold_over_two_processes(counts, attach):
    maker = counts(2)
    limits = Limits(3, 2, 0, 0, EngineLimits())
    one, other = (AcceptLimits(limits, NOBODY, Metrics(), attach(maker, row)) for row in (0, 1))
    assert [one.admit("192.0.2.1", 0.0), other.admit("192.0.2.1", 0.0)] == [None, None]
    assert [one.admit("192.0.2.1", 0.0), other.admit("192.0.2.1", 0.0)] == ["connections_per_client"] * 2
    assert other.admit("192.0.2.2", 0.0) is None
    assert [one.admit("192.0.2.3", 0.0), other.admit("192.0.2.4", 0.0)] == ["connections"] * 2
    other.release("192.0.2.1")
    assert one.admit("192.0.2.1", 0.0) is None
    maker.clear(1)
    assert one.connections == 2
    assert one.admit("192.0.2.2", 0.0) is None


def test_new_connections_a_second_over_two_processes(counts, attach):
    maker = counts(2)
    one, other = (AcceptLimits(Limits(0, 0, 4, 0, EngineLimits()), NOBODY, Metrics(), attach(maker, row)) for row in (0, 1))
    assert [each.admit("192.0.2.1", 100.0) for each in (one, other, one, other, one)] == [None] * 4 + ["connection_rate"]
    assert [other.admit("192.0.2.1", 100.999), one.admit("192.0.2.1", 101.0)] == ["connection_rate"] * 2
    assert [each.admit("192.0.2.1", 101.5) for each in (one, other, one)] == [None, None, "connection_rate"]
    assert [each.admit("192.0.2.1", 200.0) for each in (one, other, one, other, one)] == [None] * 4 + ["connection_rate"]


def test_a_reload_that_changes_the_rate_locks_nobody_out(counts, attach):
    only = attach(counts(1), 0)
    assert all(only.take(10, 1000.0) for _ in range(10))
    assert only.take(0.5, 1000.5)
    assert not only.take(0.5, 1001.0)
    assert [only.take(10, 1002.5) for _ in range(11)] == [True] * 10 + [False]


def test_ten_thousand_clients_are_told_apart(counts, attach):
    """Four in ten thousand share all places by expectation; more than thirty is less likely than one in 10 ** 15."""
    maker = counts(4)
    writers = [attach(maker, row) for row in range(4)]
    for number in range(10_000):
        writers[number % 4].add(b"%d" % number)
    held = [maker.held(b"%d" % number) for number in range(10_000)]
    assert min(held) == 1
    assert sum(each > 1 for each in held) <= 30
    assert sum(maker.held(b"absent %d" % number) > 0 for number in range(10_000)) <= 30


def test_a_mapping_has_its_own_key(counts, attach):
    one, other = (attach(counts(1), 0) for _ in range(2))
    assert one._places(b"192.0.2.1") != other._places(b"192.0.2.1")


@pytest.mark.parametrize(("connections", "width"), [(1, WIDTH), (10_000, WIDTH), (10_001, 2 * WIDTH), (10_000_000, MAX_WIDTH)])
def test_more_connections_have_a_wider_table(counts, attach, connections, width):
    maker = counts(1, connections)
    assert (maker.width, attach(maker, 0).width) == (width, width)


@pytest.mark.parametrize("rows", [0, -1, 1025])
def test_so_many_rows_are_refused(rows):
    with pytest.raises(ValueError, match="1 to 1024"):
        SharedCounts.create(rows)


def test_a_row_that_is_not_there_is_refused(counts, attach):
    maker = counts(2)
    for wrong in (2, -1):
        with pytest.raises(ValueError, match="where there are 2"):
            attach(maker, wrong)
        with pytest.raises(ValueError, match="where there are 2"):
            maker.clear(wrong)


@pytest.mark.parametrize("size", [1, 100_000])
def test_a_file_that_is_something_else_is_refused(tmp_path, size):
    file = tmp_path / "other"
    file.write_bytes(bytes(size))
    descriptor = os.open(file, os.O_RDWR)
    try:
        with pytest.raises(ValueError, match="not a mapping of counts"):
            SharedCounts.attach(descriptor, 0)
    finally:
        os.close(descriptor)


def test_without_anonymous_memory_a_file_without_a_name_serves(monkeypatch, counts, attach):
    monkeypatch.delattr(os, "memfd_create")
    maker = counts(2)
    attach(maker, 1).add(b"a")
    assert (maker.connections, maker.held(b"a")) == (1, 1)


def test_what_was_never_counted_is_not_taken_away(counts, attach):
    writer = attach(counts(1), 0)
    with pytest.raises(AssertionError):
        writer.remove(b"a")
    assert writer.connections == 0


# Processes


def _attached(fd: Any, row: int) -> SharedCounts:
    return SharedCounts.attach(fd.detach(), row)


def _fill(fd: Any, row: int, pipe: Any) -> None:
    """At each word: admit until refused, tell how many that were; at the next word let all go, and come and go for a while."""
    counts = _attached(fd, row)
    accept = AcceptLimits(Limits(300, 0, 0, 0, EngineLimits()), NOBODY, Metrics(), counts)
    pipe.send("ready")
    while pipe.recv() == "fill":
        mine = 0
        while accept.admit(f"192.0.2.{mine % 7}", 0.0) is None:
            mine += 1
        pipe.send(mine)
        pipe.recv()
        for number in range(mine):
            accept.release(f"192.0.2.{number % 7}")
        for number in range(300):
            if accept.admit(f"192.0.2.{number % 7}", 0.0) is None:
                accept.release(f"192.0.2.{number % 7}")
        pipe.send("empty")
    counts.close()


def _hold(fd: Any, row: int, out: Any) -> None:
    """Hold connections until killed."""
    counts = _attached(fd, row)
    for number in range(100):
        counts.add(b"%d" % number)
        counts.take(1000, 5.0)
    out.send("ready")
    while True:
        counts.add(b"x")
        counts.remove(b"x")


def _flip(fd: Any, row: int, seconds: float) -> None:
    """Write words of which every part differs, as fast as can be."""
    counts = _attached(fd, row)
    words, cells, end = counts._open, counts._clients, time.monotonic() + seconds
    while time.monotonic() < end:
        for _ in range(1000):
            words[row], cells[row] = 0x0102_0304_0506_0708, 0x0102_0304
            words[row], cells[row] = 0xF1F2_F3F4_F5F6_F7F8, 0xF1F2_F3F4


def _processes(maker: SharedCounts, target: Any, count: int) -> list[tuple[Any, Any]]:
    started = []
    for row in range(count):
        ours, theirs = SPAWN.Pipe()
        process = _start(maker, target, row, theirs)
        theirs.close()
        started.append((process, ours))
    return started


def _hear(pipes: list[Any]) -> list[Any]:
    told = []
    for pipe in pipes:
        assert pipe.poll(60)
        told.append(pipe.recv())
    return told


def _start(maker: SharedCounts, target: Any, *arguments: Any) -> Any:
    context = _PassesDescriptor(maker.descriptor)
    process = SPAWN.Process(target=target, args=(context, *arguments), daemon=True)
    process.start()
    return process


class _PassesDescriptor:
    """A descriptor as an argument of a process that is about to be spawned."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def __reduce__(self) -> Any:
        return _Passed, (reduction.DupFd(self._descriptor),)


class _Passed:
    def __init__(self, duplicate: Any) -> None:
        self._duplicate = duplicate

    def detach(self) -> int:
        return self._duplicate.detach()


def test_processes_that_race_pass_a_limit_by_one_each_at_most_and_leave_nothing(counts):
    maker = counts(4)
    started = _processes(maker, _fill, 4)
    pipes = [pipe for _, pipe in started]
    assert _hear(pipes) == ["ready"] * 4
    raced = 0
    for _ in range(40):
        for pipe in pipes:
            pipe.send("fill")
        shares = _hear(pipes)
        assert 300 <= sum(shares) <= 300 + 3
        assert [maker.connections_of(row) for row in range(4)] == shares
        raced += sum(share > 0 for share in shares) > 1
        for pipe in pipes:
            pipe.send("let go")
        assert _hear(pipes) == ["empty"] * 4
        assert maker.connections == 0
    assert raced > 0  # or the test showed nothing
    for process, pipe in started:
        pipe.send("end")
        process.join(60)
        assert process.exitcode == 0
        pipe.close()
    assert [maker.held(f"192.0.2.{number}".encode()) for number in range(7)] == [0] * 7
    assert not any(maker._clients)


def test_what_a_killed_process_held_is_cleared_and_the_others_stay(counts, attach):
    maker = counts(3)
    mine = attach(maker, 2)
    mine.add(b"5")
    started = _processes(maker, _hold, 2)
    for _, out in started:
        assert out.poll(60)
        out.recv()
    assert maker.held(b"5") == 3
    assert maker.connections >= 201
    victim, _ = started[0]
    victim.kill()
    victim.join(60)
    maker.clear(0)
    assert maker.connections_of(0) == 0
    assert maker.held(b"5") == 2
    assert 101 <= maker.connections <= 102
    assert not any(maker._clients[0::3])
    survivor, _ = started[1]
    survivor.kill()
    survivor.join(60)
    maker.clear(1)
    assert (maker.connections, maker.held(b"5")) == (1, 1)
    again = attach(maker, 0)
    again.add(b"5")
    assert (maker.connections, mine.held(b"5")) == (2, 2)
    for _, out in started:
        out.close()


def test_no_reader_sees_half_of_a_word(counts):
    maker = counts(3)
    process = _start(maker, _flip, 1, 0.7)
    seen_words, seen_cells = set(), set()
    while process.is_alive():
        for _ in range(500):
            seen_words.add(sum(maker._open))
            seen_cells.add(sum(maker._clients[0:3]))
    process.join(60)
    assert process.exitcode == 0
    assert seen_words == {0, 0x0102_0304_0506_0708, 0xF1F2_F3F4_F5F6_F7F8}
    assert seen_cells == {0, 0x0102_0304, 0xF1F2_F3F4}
