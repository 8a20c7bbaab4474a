"""Our endpoint against aioquic's own client over links that delay, lose, reorder and rebind: the right bytes both ways."""

import gc
import hashlib
import random
import tracemalloc

import pytest

from balancer.affinity import connection_key
from proxy.engine.events import ConnectionClosed, ConnectionReady, Drained, PathChanged, RequestBody, RequestEnd, RequestHead, StreamReset
from proxy.engine.quic.settings import QuicSettings
from proxy.engine.seam import HIGH_WATER, EngineLimits
from tests.sim.simulator import Client, Link, World


class Application:
    """Answers GET /n with n bytes, and anything with a body with the body's SHA-256; obeys back-pressure."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.endpoint = world.endpoint
        self.bodies: dict = {}
        self.pending: dict = {}
        self.most_queued = 0
        world.serve = self.serve

    def serve(self, handle, event) -> None:
        match event:
            case RequestHead(end=True):
                self.endpoint.send_head(handle, event.stream, 200, [(b"x-path", event.path)], end=False)
                self.pending[handle, event.stream] = content(int(event.path[1:]))
                self.push(handle, event.stream)
            case RequestHead():
                self.bodies[handle, event.stream] = hashlib.sha256()
            case RequestBody():
                self.bodies[handle, event.stream].update(event.data)
                self.endpoint.consumed(handle, event.stream, event.credit)
            case RequestEnd():
                digest = self.bodies.pop((handle, event.stream)).hexdigest().encode()
                self.endpoint.respond(handle, event.stream, 200, [], digest)
            case Drained():
                self.push(handle, event.stream)
            case StreamReset():
                self.pending.pop((handle, event.stream), None)

    def push(self, handle, stream) -> None:
        body = self.pending[handle, stream]
        while body:
            piece, body = body[:65536], body[65536:]
            queued = self.endpoint.send_data(handle, stream, piece, end=not body)
            self.most_queued = max(self.most_queued, queued)
            if queued > HIGH_WATER:
                break
        self.pending[handle, stream] = body
        if not body:
            del self.pending[handle, stream]


def content(size: int) -> bytes:
    return random.Random(size).randbytes(size)


def run_requests(world: World, client: Client, total: int, parallel: int, size: int = 100) -> None:
    """*total* requests, always *parallel* of them open."""
    left = total
    bad = 0
    done = 0

    def start(*_) -> None:
        nonlocal left
        if left:
            left -= 1
            client.request(b"/%d" % size)

    def ended(stream: int) -> None:
        nonlocal done, bad
        answer = client.answers.pop(stream)
        done += 1
        bad += answer.status != 200 or bytes(answer.body) != expected
        start()

    expected = content(size)
    client.on_end = ended
    client.on_ready = lambda: [start() for _ in range(parallel)]
    if client.ready:
        client.on_ready()
    assert world.run(lambda: done == total), f"{done} of {total} done, stuck: {sorted(client.answers)}, {client.closed}"
    assert bad == 0
    assert client.closed is None


def test_no_request_fails_in_24_000() -> None:
    """24 connections, 1,000 requests each, ten at a time, with a little reordering: none fails, and none makes the world spin.

    docs/design/h3-prototype-failures.md tells what was found out about the bare prototype that failed four requests for each connection.
    """
    for seed in range(24):
        world = World(Link(latency=0.002, jitter=0.001 if seed % 2 else 0.0, seed=seed))
        Application(world)
        run_requests(world, world.connect(), 1000, 10)
        assert len(world.of(RequestHead)) == 1000
        assert not world.of(StreamReset)
        assert not world.of(ConnectionClosed)


@pytest.mark.parametrize(
    "link", [Link(loss=0.05), Link(jitter=0.02), Link(loss=0.05, jitter=0.02, seed=3)], ids=["loss", "reordering", "both"]
)
def test_lossy_and_reordering_links_end_with_the_right_bytes(link: Link) -> None:
    world = World(link)
    app = Application(world)
    client = world.connect()
    upload = content(600_000)
    streams: list[int] = []
    client.on_ready = lambda: streams.extend(
        [client.request(b"/700000"), client.request(b"/", b"POST", body=upload), client.request(b"/3")]
    )
    assert world.run(lambda: bool(streams) and all(client.answers[stream].ended for stream in streams), seconds=120)
    down, up, small = (client.answers[stream] for stream in streams)
    assert bytes(down.body) == content(700_000)
    assert bytes(up.body) == hashlib.sha256(upload).hexdigest().encode()
    assert bytes(small.body) == content(3)
    assert app.most_queued <= HIGH_WATER + 65536 + 16


def test_small_requests_survive_loss() -> None:
    world = World(Link(loss=0.05, jitter=0.01, seed=11))
    Application(world)
    run_requests(world, world.connect(), 500, 10)


def test_a_client_that_rebinds_in_mid_download_ends_with_the_right_bytes() -> None:
    """The NAT gives the client another port: the path is validated, told, and the connection is the same one."""
    world = World(Link(latency=0.01))
    Application(world)
    client = world.connect()
    stream = -1

    def go() -> None:
        nonlocal stream
        stream = client.request(b"/900000")

    client.on_ready = go
    assert world.run(lambda: stream >= 0 and len(client.answers[stream].body) > 200_000)
    client.address = ("198.51.100.7", 5555)
    assert world.run(lambda: client.answers[stream].ended)
    assert bytes(client.answers[stream].body) == content(900_000)
    assert [event.peer for event in world.of(PathChanged)] == [("198.51.100.7", 5555)]
    assert {handle for handle, _ in world.events} == {1}
    assert not world.of(ConnectionClosed)


def test_a_reader_that_stops_holds_its_source_and_not_its_neighbours() -> None:
    world = World(Link(), EngineLimits())
    Application(world)
    client = Client(max_stream_data=65536)
    world.connect(client)
    client.quic._write_stream_limits = lambda *_, **__: None  # it never reads on
    streams: list[int] = []
    client.on_ready = lambda: streams.extend([client.request(b"/1000000"), client.request(b"/500")])
    assert world.run(lambda: bool(streams) and client.answers[streams[1]].ended, seconds=5)
    assert len(client.answers[streams[0]].body) <= 65536
    held = len(next(iter(world.endpoint._by_handle.values())).transport._streams[streams[0]].sender._buffer)
    assert held <= 256 * 1024


def test_twenty_thousand_requests_take_no_more_memory_than_two_hundred() -> None:
    """Nothing of a finished stream stays, neither in HTTP/3 nor in QUIC."""
    world = World(Link(latency=0.001))
    world.serve = lambda handle, event: isinstance(event, RequestHead) and world.endpoint.respond(handle, event.stream, 200, [], b"x" * 100)
    client = world.connect()

    def some(count: int) -> None:
        client.on_ready = lambda: None
        left = count
        ended = 0

        def start(*_) -> None:
            nonlocal left
            if left:
                left -= 1
                client.request()

        def end(stream: int) -> None:
            nonlocal ended
            ended += 1
            del client.answers[stream]
            start()

        client.on_end = end
        for _ in range(10):
            start()
        assert world.run(lambda: ended == count)
        world.run(seconds=0.1)
        world.events.clear()

    assert world.run(lambda: client.ready)
    some(200)
    state = world.endpoint._by_handle[1]

    def size() -> int:
        """Heap of what endpoint and engine modules allocated."""
        gc.collect()
        kept = tracemalloc.take_snapshot().filter_traces(
            [tracemalloc.Filter(inclusive=True, filename_pattern="*/proxy/engine/*", all_frames=False)]
        )
        return sum(trace.size for trace in kept.traces)

    def shape() -> dict:
        transport = state.transport
        return {
            "quic streams": len(transport._streams),
            "queued": len(transport._streams_queue),
            "credits": transport._windows.tracked,
            "ready": len(transport._ready) + len(transport._held) + len(transport._limits_due),
            "requests": state.http.streams,
            "sent": len(transport._spaces[next(reversed(transport._spaces))].sent_packets),
            "ids": len(world.endpoint._by_cid),
            "heap": len(world.endpoint._heap) <= 16,
        }

    before = shape()
    tracemalloc.start()
    some(300)
    low = size()
    tracemalloc.stop()
    some(19_200)
    tracemalloc.start()
    some(300)
    high = size()
    tracemalloc.stop()
    assert shape() == before
    assert before["quic streams"] == 4  # the client's control and QPACK streams, and our control stream
    assert high <= low * 1.1 + 4096


def test_the_connection_is_told_ready_before_its_requests_and_closed_once() -> None:
    world = World()
    Application(world)
    client = world.connect()
    client.on_ready = lambda: client.request(b"/5")
    assert world.run(lambda: any(answer.ended for answer in client.answers.values()))
    ready = world.of(ConnectionReady)
    assert [(one.sni, one.alpn, one.peer, one.tls_profile) for one in ready] == [
        ("a.example", "h3", client.address, world.profiles["a.example"])
    ]
    assert ready[0].affinity == connection_key(b"s" * 16, client.quic.original_destination_connection_id)
    assert isinstance(world.events[0][1], ConnectionReady)
    client.quic.close(error_code=0x100)
    world.run(seconds=5)
    assert world.of(ConnectionClosed) == [ConnectionClosed("", "")]
    assert world.endpoint.connections == 0
    assert not world.endpoint._by_cid
    assert world.endpoint.deadline() is None


def test_an_idle_connection_ends_cleanly() -> None:
    world = World(settings=QuicSettings(idle_timeout=3.0))
    client = world.connect()
    assert world.run(lambda: client.ready)
    world.clients.clear()  # it went away without a word
    world.run(seconds=10)
    assert world.of(ConnectionClosed) == [ConnectionClosed("", "idle")]
    assert world.endpoint.connections == 0
