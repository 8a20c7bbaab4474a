"""Hostile packets of an established connection: what they can take is bounded, and what has no end is cut."""

import tracemalloc

import pytest

from proxy.engine.events import ConnectionClosed, RequestBody, RequestHead, StreamReset
from proxy.engine.quic.abuse import CONTROL_BURST, CONTROL_RATE, RESET_BURST, Budget
from proxy.engine.seam import EngineLimits
from tests.sim.hostile import Attacker, stream_frame, v
from tests.sim.simulator import Client, Link, World

EXCESSIVE = "excessive_load"
PART = b"\x01\x40\x64" + bytes(20)
"""Of a HEADERS frame of 100 bytes."""


def closed(attacker: Attacker) -> list[str]:
    return [event.error for event in attacker.world.of(ConnectionClosed)]


def test_sparse_offsets_take_no_more_than_the_window() -> None:
    """One byte just under the limit, on stream after stream: the library alone would double its limit each time (128 MiB for 288 bytes)."""
    limits = EngineLimits()
    attacker = Attacker(limits)
    tracemalloc.start()
    for stream in range(0, 400, 4):
        if attacker.closed:
            break
        attacker.frames(stream_frame(stream, limits.stream_window - 1, b"x"))
        attacker.world.run(seconds=0.1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < limits.connection_window + 1_000_000
    assert closed(attacker) == ["flow_control_error"]  # the fifth stream went over the connection's window


def test_limits_don_t_move_while_nothing_is_consumed() -> None:
    attacker = Attacker(EngineLimits(stream_window=65536, connection_window=131072))
    attacker.frames(stream_frame(0, 65535, b"x"))
    attacker.world.run(seconds=1)
    assert attacker.transport._streams[0].max_stream_data_local == 65536
    assert attacker.transport._local_max_data.value == 131072
    attacker.frames(stream_frame(0, 65536, b"x"))
    assert closed(attacker) == ["flow_control_error"]


def test_bytes_of_cut_streams_come_back_to_the_connection() -> None:
    """Thirty streams that are reset with bytes outstanding leave the connection's window whole, and what follows them keeps no bytes."""
    limits = EngineLimits(stream_window=65536, connection_window=131072)
    attacker = Attacker(limits)
    for number in range(30):
        attacker.client.quic._get_or_create_stream_for_send(4 * number)  # it hears of these streams from us
        attacker.frames(stream_frame(4 * number, 60000, b"x"))
        attacker.frames(v(0x04, 4 * number, 0x10C, 60001) + v(0x05, 4 * number, 0x10C))
        attacker.world.run(seconds=0.2)
    assert closed(attacker) == []
    assert attacker.transport._local_max_data.used == 30 * 60001
    assert attacker.transport._windows.connection == 30 * 60001


def test_many_gaps_in_a_stream_close_the_connection() -> None:
    attacker = Attacker()
    for offset in range(0, 60000, 40):
        if attacker.closed:
            break
        attacker.frames(stream_frame(0, offset + 1, bytes(20)))
    assert closed(attacker) == [EXCESSIVE]
    assert attacker.sent < 400 * 80


FLOODS = {
    "ping": b"\x01",
    "path_challenge": b"\x1a" + bytes(8),
    "path_response": b"\x1b" + bytes(8),
    "max_data": v(0x10, 5),
    "max_stream_data": v(0x11, 0, 5),
    "max_streams": v(0x12, 5),
    "data_blocked": v(0x14, 5),
    "stream_data_blocked": v(0x15, 0, 5),
    "streams_blocked": v(0x16, 5),
    "ack": v(0x02, 0, 0, 0, 0),
    "empty_stream": v(0x0A, 0, 0),
    "retire_connection_id": v(0x19, 0),
}


@pytest.mark.parametrize("name", FLOODS)
def test_floods_of_control_frames_are_cut(name: str) -> None:
    attacker = Attacker()
    if "stream" in name:
        attacker.frames(stream_frame(0, 0, PART))
    attacker.many(FLOODS[name], 20 * CONTROL_BURST)
    assert attacker.closed
    assert closed(attacker)[0] in {EXCESSIVE, "protocol_violation"}
    assert attacker.sent < 3 * CONTROL_BURST * (len(FLOODS[name]) + 2) + 5000


def test_one_byte_stream_frames_are_cut() -> None:
    attacker = Attacker()
    for offset in range(5000):
        if attacker.closed:
            break
        attacker.frames(stream_frame(0, offset, b"\x21"))
    assert closed(attacker) == [EXCESSIVE]


def test_new_connection_ids_are_bounded() -> None:
    attacker = Attacker()
    for number in range(8, 2000):
        if attacker.closed:
            break
        attacker.frames(v(0x18, number, number) + b"\x08" + number.to_bytes(8, "big") + bytes(16))
    assert attacker.closed
    assert len(attacker.transport._retire_connection_ids) < 100


@pytest.mark.parametrize("stop", [False, True], ids=["reset", "stop"])
def test_rapid_resets_are_cut(stop: bool) -> None:
    """Request, then cancel, again and again (CVE-2023-44487): hardly more requests than the budget reach the application."""
    world = World(Link(latency=0.001))
    client = world.connect()
    assert world.run(lambda: client.ready)
    for _ in range(5 * RESET_BURST):
        stream = client.request(end=False)
        world.run(seconds=0.002)
        if stop:
            client.quic.stop_stream(stream, 0x10C)
        client.quic.reset_stream(stream, 0x10C)
        world.run(seconds=0.002)
        if world.of(ConnectionClosed):
            break
    assert [event.error for event in world.of(ConnectionClosed)] == [EXCESSIVE]
    assert len(world.of(RequestHead)) <= 2 * RESET_BURST
    assert len(world.of(StreamReset)) >= len(world.of(RequestHead)) - 1


def test_reset_floods_on_one_stream_are_cut() -> None:
    attacker = Attacker()
    attacker.frames(stream_frame(0, 0, PART))
    attacker.many(v(0x05, 0, 0), 10 * RESET_BURST)
    assert closed(attacker)[0] == EXCESSIVE


def test_streams_over_the_limit_can_t_be_opened() -> None:
    attacker = Attacker(EngineLimits(streams=7))
    attacker.frames(stream_frame(4 * 6, 0, b"\x01"))
    assert not attacker.closed
    attacker.frames(stream_frame(4 * 7, 0, b"\x01"))
    assert closed(attacker) == ["stream_limit_error"]


def test_handshake_data_after_the_handshake_is_refused() -> None:
    attacker = Attacker()
    attacker.frames(v(0x06, 0, 4) + b"\x18\0\0\1")
    assert closed(attacker) == ["tls_alert"]


def test_acknowledgements_cost_by_their_ranges() -> None:
    """Each is a list that the library makes and walks."""
    attacker = Attacker()
    attacker.transport._packet_number = 3000  # as if so many had been sent
    ack = v(0x02, 2000, 0, 500, 0) + v(0, 0) * 500
    attacker.many(ack, CONTROL_BURST)
    assert closed(attacker) == [EXCESSIVE]
    assert attacker.sent < CONTROL_BURST // 5 * len(ack)


def test_unknown_frames_and_empty_packets_are_protocol_errors() -> None:
    attacker = Attacker()
    attacker.frames(v(0x40))
    assert closed(attacker) == ["frame_encoding_error"]


def test_a_body_that_nobody_consumes_stops_at_the_window() -> None:
    attacker = Attacker(EngineLimits(stream_window=65536))
    world = attacker.world
    world.clients.clear()
    client = world.connect(Client(address=("198.51.100.9", 1)))
    client.on_ready = lambda: client.request(b"/", b"POST", body=bytes(300_000))
    world.run(seconds=3)
    got = sum(len(event.data) for event in world.of(RequestBody))
    assert 60_000 < got <= 65536
    handle = next(handle for handle, event in world.events if isinstance(event, RequestHead))
    world.endpoint.consumed(handle, 0, got)
    world.run(seconds=3)
    assert 2 * 60_000 < sum(len(event.data) for event in world.of(RequestBody)) <= 2 * 65536


def test_a_budget_refills_with_time_and_with_what_is_earned() -> None:
    budget = Budget(10, 2.0)
    assert [budget.spend(0.0) for _ in range(11)] == [True] * 10 + [False]
    assert budget.spend(1.0)  # two came back, one is spent
    assert budget.spend(1.0)
    assert not budget.spend(1.0)
    assert [budget.spend(1.0, 3) for _ in range(4)].count(True) == 3
    assert [budget.spend(1000.0, 3) for _ in range(11)].count(True) == 10
    assert CONTROL_RATE > 0
