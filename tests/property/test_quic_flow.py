"""Flow control of what clients send (RFC 9000, section 4): credit by consumption, whatever comes in whatever order."""

from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.engine.events import ConnectionClosed, RequestBody
from proxy.engine.quic.flow import ReceiveWindows
from proxy.engine.seam import EngineLimits
from tests.sim import engines
from tests.sim.simulator import Link, World

STREAM_WINDOW, CONNECTION_WINDOW = 1000, 2500
HEADS = 200
"""Bytes of a stream that are no body: consumed at once."""

steps = st.one_of(
    st.tuples(st.just("comes"), st.integers(0, 3), st.integers(1, 400)),
    st.tuples(st.just("consumed"), st.integers(0, 3), st.integers(1, 600)),
    st.tuples(st.just("ends"), st.integers(0, 3), st.just(0)),
    st.tuples(st.just("dropped"), st.integers(0, 3), st.just(0)),
)


@given(st.lists(steps, max_size=60), st.booleans())
def test_credit_is_what_was_consumed_and_never_more(taken: list[tuple[str, int, int]], grows: bool) -> None:
    """By the books: the connection's credit is the sum of its streams', and no limit is more than the largest window above it."""
    windows = ReceiveWindows(STREAM_WINDOW, CONNECTION_WINDOW)
    largest = 4 if grows else 1
    windows.let_grow(largest * STREAM_WINDOW, largest * CONNECTION_WINDOW)
    streams = {
        number: SimpleNamespace(stream_id=4 * number, max_stream_data_local=STREAM_WINDOW, receiver=_receiver()) for number in range(4)
    }
    consumed = dict.fromkeys(streams, 0)
    limits = dict.fromkeys(streams, STREAM_WINDOW)
    limit = CONNECTION_WINDOW
    gone: set[int] = set()
    for now, (step, number, count) in enumerate(taken):
        stream = streams[number]
        if number in gone:
            continue
        if step == "comes" and stream.receiver._final_size is None:
            others = sum(other.receiver.highest_offset for other in streams.values() if other is not stream)
            stream.receiver.highest_offset += max(0, min(count, min(limits[number], limit - others) - stream.receiver.highest_offset))
        elif step == "consumed":
            consumed[number] = min(consumed[number] + count, stream.receiver.highest_offset)
            if windows.credit(stream, count):
                limits[number] = stream.max_stream_data_local = windows.stream_limit(stream, now, 3.0)
        elif step == "ends":
            stream.receiver._final_size = stream.receiver.highest_offset
        elif step == "dropped":
            consumed[number] = stream.receiver.highest_offset
            windows.forget(stream)
            gone.add(number)
        before, limit = limit, windows.connection_limit(limit, now, 3.0)
        assert windows.connection == sum(consumed.values())
        assert before <= limit <= windows.connection + largest * CONNECTION_WINDOW
        assert limits[number] <= consumed[number] + largest * STREAM_WINDOW
        assert windows.tracked <= len(streams) - len(gone)


def _receiver() -> SimpleNamespace:
    return SimpleNamespace(highest_offset=0, _final_size=None)


@pytest.mark.parametrize("engine", engines.parameters())
@settings(max_examples=12, deadline=None)
@given(
    bodies=st.lists(st.integers(1, 40_000), min_size=1, max_size=6),
    shares=st.lists(st.integers(0, 100), min_size=3, max_size=12),
    loss=st.sampled_from([0.0, 0.03]),
)
def test_a_client_is_never_allowed_more_than_a_window_beyond_what_was_consumed(engine, bodies, shares, loss) -> None:
    """By what the client hears, on every engine: after each step, for the connection and for each stream; and in the end all of it came."""
    limits = EngineLimits(stream_window=16_384, connection_window=32_768)
    world = World(Link(latency=0.001, loss=loss), limits, engine=engine)
    client = world.connect()
    assert world.run(lambda: client.ready, seconds=20)
    control = client.quic._remote_max_data_used  # of the control stream and QPACK's
    streams = [client.request(b"/", b"POST", body=bytes(size)) for size in bodies]
    held: dict[int, int] = dict.fromkeys(streams, 0)
    consumed: dict[int, int] = dict.fromkeys(streams, 0)
    seen = 0

    def look() -> None:
        nonlocal seen
        for _, event in world.events[seen:]:
            if isinstance(event, RequestBody):
                held[event.stream] += event.credit
        seen = len(world.events)

    def take(share: int) -> None:
        look()
        for stream in streams:
            count = held[stream] * share // 100
            held[stream] -= count
            consumed[stream] += count
            if count:
                world.endpoint.consumed(world.events[0][0], stream, count)

    def check() -> None:
        assert client.quic._remote_max_data <= limits.connection_window + sum(consumed.values()) + control + HEADS * (len(streams) + 1)
        for stream in streams:
            if (sending := client.quic._streams.get(stream)) is not None:
                assert sending.max_stream_data_remote <= limits.stream_window + consumed[stream] + HEADS

    for share in shares:
        take(share)
        world.run(seconds=0.01)
        check()
    for _ in range(1000):
        take(100)
        world.run(seconds=0.01)
        check()
        if list(consumed.values()) == bodies:
            break
    assert list(consumed.values()) == bodies
    assert world.of(ConnectionClosed) == []
