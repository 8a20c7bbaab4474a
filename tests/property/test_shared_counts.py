"""Shared counts against an exact model: whatever several rows count in whatever order, the sums are right."""

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.engine.seam import EngineLimits
from proxy.listen.limits import AcceptLimits
from proxy.listen.shared_counts import SharedCounts
from proxy.observe import Metrics
from proxy.policy.access import Networks
from proxy.snapshot import Limits

ROWS = 3

rows = st.integers(0, ROWS - 1)
clients = st.integers(0, 9).map(lambda number: b"client %d" % number)
steps = st.lists(st.one_of(st.tuples(st.just("add"), rows, clients), st.tuples(st.just("remove"), rows, st.integers(0)),
                           st.tuples(st.just("die"), rows, st.none())), max_size=80)  # fmt: skip


@contextmanager
def attached(count: int = ROWS) -> Iterator[tuple[SharedCounts, list[SharedCounts]]]:
    """The maker of a mapping, and a writer for each row."""
    maker = SharedCounts.create(count)
    writers = [SharedCounts.attach(os.dup(maker.descriptor), row) for row in range(count)]
    try:
        yield maker, writers
    finally:
        for counts in (maker, *writers):
            counts.close()


@settings(max_examples=60, deadline=None)
@given(steps)
def test_every_order_of_counting_and_dying_gives_the_sums_of_an_exact_table(steps):
    with attached() as (maker, writers):
        model: list[list[bytes]] = [[] for _ in range(ROWS)]
        for step, row, what in steps:
            if step == "add":
                writers[row].add(what)
                model[row].append(what)
            elif step == "remove" and model[row]:
                writers[row].remove(model[row].pop(what % len(model[row])))
            elif step == "die":
                maker.clear(row)
                model[row].clear()
            exact = Counter(client for open_ones in model for client in open_ones)
            for reader in (maker, *writers):
                assert reader.connections == exact.total()
            assert [maker.connections_of(row) for row in range(ROWS)] == [len(open_ones) for open_ones in model]
        for number in range(10):
            client = b"client %d" % number
            held = {reader.held(client) for reader in (maker, *writers)}
            assert held == {exact[client] if steps else 0}  # ten clients in 65,536 places, four times: none shares all


arrivals = st.lists(st.tuples(rows, st.floats(0, 3, allow_subnormal=False)), max_size=200)


@settings(max_examples=150, deadline=None)
@given(arrivals, st.sampled_from([0.3, 0.5, 1.0, 1.5, 2.5, 7.0, 30.0]), st.floats(0, 1e6))
def test_no_stretch_of_time_has_more_than_the_rate_and_one_burst(arrivals, rate, began):
    with attached() as (_, writers):
        came: list[float] = []
        now = began
        for row, passes in arrivals:
            now += passes / rate
            if writers[row].take(rate, now):
                came.append(now)
        burst = -(-rate // 1)
        for first, start in enumerate(came):
            for last in range(first, len(came)):
                assert last - first + 1 <= (came[last] - start) * rate + 2 * burst


@settings(max_examples=40, deadline=None)
@given(st.sampled_from([0.4, 1.0, 1.5, 2.5, 10.0, 33.3]), st.lists(rows, min_size=1, max_size=20), st.floats(0, 1e6))
def test_those_who_always_ask_get_the_whole_rate(rate, order, began):
    with attached() as (_, writers):
        seconds = 30 / rate
        asked = [began + seconds * number / 3000 for number in range(3000)]
        came = sum(writers[order[number % len(order)]].take(rate, now) for number, now in enumerate(asked))
        assert 30 - 1 - -(-rate // 1) <= came <= 30 + 2 * -(-rate // 1)


addresses = st.sampled_from(["192.0.2.1", "192.0.2.2", "::ffff:192.0.2.1", "2001:db8:0:1::1", "2001:db8:0:1::2", "2001:db8:0:2::1", "odd"])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(addresses, st.integers(0)), max_size=60), st.integers(0, 6), st.integers(0, 3))
def test_one_process_is_told_the_same_with_shared_counts_as_with_its_own(steps, connections, connections_per_client):
    with attached(1) as (_, writers):
        limits = Limits(connections, connections_per_client, 0, 0, EngineLimits())
        trusted = Networks(["192.0.2.2/32"])
        own = AcceptLimits(limits, trusted, Metrics())
        shared = AcceptLimits(limits, trusted, Metrics(), writers[0])
        admitted: list[str] = []
        for step in steps:
            if isinstance(step, str):
                verdict = own.admit(step, 0.0)
                assert shared.admit(step, 0.0) == verdict
                if verdict is None:
                    admitted.append(step)
            elif admitted:
                gone = admitted.pop(step % len(admitted))
                own.release(gone)
                shared.release(gone)
            assert shared.connections == own.connections == len(admitted)
