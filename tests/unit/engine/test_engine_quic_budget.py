"""The budget of control frames knows a fast or lossy upload from an attack."""

import pylsqpack
import pytest

from proxy.engine.events import RequestBody
from proxy.engine.seam import EngineLimits
from tests.sim.hostile import Attacker, stream_frame, v

ACK, STREAM_DATA_BLOCKED = 0x02, 0x15
PIECE = 1000
FIELDS = [(b":method", b"POST"), (b":scheme", b"https"), (b":authority", b"a.example"), (b":path", b"/")]


class Uploader(Attacker):
    """Sends a body piece by piece on stream 0; the application takes it at once."""

    def __init__(self) -> None:
        super().__init__(EngineLimits(stream_window=64 * 1024))
        self.world.serve = self.take
        self.taken = self.offset = 0
        block = pylsqpack.Encoder().encode(0, FIELDS)[1]
        self.send(v(0x01, len(block)) + block + v(0x00, 1 << 40))

    def take(self, handle, event) -> None:
        if isinstance(event, RequestBody):
            self.taken += len(event.data)
            self.world.endpoint.consumed(handle, event.stream, event.credit)

    def send(self, data: bytes) -> None:
        self.frames(stream_frame(0, self.offset, data))
        self.offset += len(data)

    def answers(self) -> int:
        """Packets of the server, a millisecond later; none of them reaches the client, whose packets we write ourselves."""
        self.world.now += 0.001
        return len(self.world.endpoint.take_datagrams(self.world.now))


@pytest.fixture(autouse=True)
def _small_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a short upload is as long as it needs to be."""
    monkeypatch.setattr("proxy.engine.quic.connection.CONTROL_BURST", 60)


def test_a_client_that_tells_of_every_limit_it_meets_uploads_as_much_as_it_likes() -> None:
    """ngtcp2 does: beside the acknowledgement of each MAX_STREAM_DATA, a STREAM_DATA_BLOCKED once it has sent up to there."""
    client = Uploader()
    told = 0
    while client.taken < 5_000_000:
        for _ in range(17):  # a quarter of the window, and a little: one limit
            client.send(bytes(PIECE))
        told += client.answers()
        client.frames(v(ACK, client.transport._packet_number - 1, 0, 0, 0) + v(STREAM_DATA_BLOCKED, 0, client.offset))
        assert not client.closed, f"after {client.taken} bytes and {told} packets"
    assert 200 < told < 400


def test_a_limit_that_is_told_of_again_and_again_is_cut() -> None:
    client = Uploader()
    client.many(v(STREAM_DATA_BLOCKED, 0, 64 * 1024), 1000)
    assert client.closed


def test_what_was_lost_and_is_sent_again_costs_nothing() -> None:
    client = Uploader()
    for number in range(200):
        hole = client.offset
        client.offset += PIECE
        client.send(bytes(PIECE))
        client.frames(stream_frame(0, hole, bytes(PIECE)))
        if number % 8 == 7:
            client.answers()
        assert not client.closed, f"after {client.taken} bytes"
    assert client.taken == 400 * PIECE


def test_what_is_sent_twice_without_need_is_cut() -> None:
    client = Uploader()
    client.send(bytes(PIECE))
    client.many(stream_frame(0, client.offset - PIECE, bytes(PIECE)), 1000)
    assert client.closed
