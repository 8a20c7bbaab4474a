"""Traces of connections (qlog), on every QUIC engine: whose, what is in them, and that they end where no more is wanted."""

import json
import random

import pytest

from proxy.engine.events import ConnectionClosed, RequestHead
from proxy.engine.quic.settings import QuicSettings
from tests.sim import engines
from tests.sim.packets import JUNK
from tests.sim.simulator import Client, Link, World

pytestmark = pytest.mark.parametrize("engine", engines.parameters())

BEGAN = 1_700_000_000.0


class Sink:
    """Keeps a trace; full after so many bytes."""

    def __init__(self, room: int = 1 << 30) -> None:
        self.began = BEGAN
        self.data = b""
        self.refused = self.closed = 0
        self._room = room

    def write(self, records: bytes) -> bool:
        assert not self.closed
        if len(self.data) + len(records) > self._room:
            self.refused += 1
            return False
        self.data += records
        return True

    def close(self) -> None:
        self.closed += 1

    def records(self) -> list[dict]:
        assert self.data[:1] == b"\x1e"
        assert self.data[-1:] == b"\n"
        return [json.loads(record) for record in self.data.split(b"\x1e")[1:]]


class Tracer:
    """Traces the clients at these hosts."""

    def __init__(self, *hosts: str, room: int = 1 << 30) -> None:
        self.hosts = hosts
        self.room = room
        self.asked: list[tuple[tuple[str, int], bytes]] = []
        self.sinks: list[Sink] = []

    def __call__(self, peer: tuple[str, int], original: bytes) -> Sink | None:
        self.asked.append((peer, original))
        if peer[0] not in self.hosts:
            return None
        self.sinks.append(Sink(self.room))
        return self.sinks[-1]


HOME = ("198.51.100.7", 4000)
OTHER = ("203.0.113.1", 4000)


def download(world: World, client: Client, size: int = 300_000) -> None:
    """One answer; then the client leaves."""
    body = random.Random(3).randbytes(size)
    world.serve = lambda handle, event: isinstance(event, RequestHead) and world.endpoint.respond(handle, event.stream, 200, [], body)
    world.connect(client)
    client.on_ready = lambda: client.request(b"/secret-path")
    assert world.run(lambda: bool(client.answers) and client.answers[0].ended, seconds=20)
    client.quic.close(error_code=0x100)
    world.run(lambda: not world.endpoint.connections, seconds=10)


def test_the_trace_of_a_connection_tells_its_packets_and_frames(engine) -> None:
    tracer = Tracer(HOME[0])
    world = World(Link(latency=0.01, loss=0.02, seed=4), engine=engine, trace=tracer)
    client = Client(address=HOME)
    download(world, client)
    assert tracer.asked == [(HOME, client.quic.original_destination_connection_id)]
    (sink,) = tracer.sinks
    assert (sink.refused, sink.closed) == (0, 1)
    head, *events = sink.records()
    assert (head.get("qlog_format") or head["serialization_format"], head["trace"]["vantage_point"]["type"]) == ("JSON-SEQ", "server")
    assert client.quic.original_destination_connection_id.hex() in json.dumps(head)
    names = {event["name"].partition(":")[2] for event in events}
    assert {"packet_sent", "packet_received", "parameters_set"} <= names
    assert any(name.endswith("metrics_updated") for name in names)
    times = [event["time"] for event in events]
    assert times == sorted(times)
    assert 0 <= times[0] < 1000
    assert times[-1] > 20  # milliseconds: two round trips at least
    sent = [frame for event in events if event["name"].endswith(":packet_sent") for frame in event["data"]["frames"]]
    came = [frame for event in events if event["name"].endswith(":packet_received") for frame in event["data"]["frames"]]
    assert {"crypto", "ack", "stream", "new_connection_id", "handshake_done"} <= {frame["frame_type"] for frame in sent}
    assert {"crypto", "ack", "stream"} <= {frame["frame_type"] for frame in came}
    assert sum(frame.get("length") or frame["raw"]["payload_length"] for frame in sent if frame["frame_type"] == "stream") >= 300_000
    assert b"secret-path" not in sink.data


def test_who_is_not_chosen_leaves_no_trace(engine) -> None:
    tracer = Tracer(HOME[0])
    world = World(engine=engine, trace=tracer)
    download(world, Client(address=OTHER), 1000)
    assert [peer for peer, _ in tracer.asked] == [OTHER]
    assert tracer.sinks == []


@pytest.mark.parametrize("name", JUNK)
def test_what_makes_no_connection_leaves_no_trace(engine, name: str) -> None:
    tracer = Tracer("203.0.113.9")
    world = World(engine=engine, trace=tracer)
    world.inject(JUNK[name])
    world.run(seconds=0.1)
    assert not world.endpoint.connections
    assert [(sink.data, sink.closed) for sink in tracer.sinks] == [(b"", 1)] * len(tracer.sinks)


def test_a_trace_that_is_full_ends_and_the_connection_goes_on(engine) -> None:
    tracer = Tracer(HOME[0], room=20_000)
    world = World(engine=engine, trace=tracer)
    download(world, Client(address=HOME))
    (sink,) = tracer.sinks
    assert (sink.refused, sink.closed) == (1, 1)
    assert 0 < len(sink.data) <= 20_000
    assert [event.error for event in world.of(ConnectionClosed)] == [""]


def test_a_client_that_goes_without_a_word_has_its_trace_closed(engine) -> None:
    tracer = Tracer(HOME[0])
    world = World(engine=engine, trace=tracer, settings=QuicSettings(idle_timeout=0.5))
    client = world.connect(Client(address=HOME))
    assert world.run(lambda: client.ready)
    world.clients.clear()
    world.run(lambda: not world.endpoint.connections, seconds=5)
    assert [sink.closed for sink in tracer.sinks] == [1]
