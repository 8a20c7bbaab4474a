"""What one connection can make an engine keep, on every QUIC engine: answers that it does not take, bodies that nobody takes from it."""

from collections.abc import Callable

import pytest

from proxy.engine.events import ConnectionClosed, Drained, RequestBody, RequestHead
from proxy.engine.seam import HIGH_WATER, LOW_WATER, EngineLimits
from proxy.errors import Reset
from proxy.pipe import Pipe
from tests.sim import engines
from tests.sim.simulator import Client, Link, World

pytestmark = pytest.mark.parametrize("engine", engines.parameters())

READ = 64 * 1024
"""Of a backend, at once (``upstream/h1.py``)."""

PIECE = bytes(READ)
STREAMS = 100
MIB = 1024 * 1024
HEADS = 100
"""Bytes of heads and frames of a stream."""


class Backend:
    """Gives a body as fast as it is let, as ``upstream/h1.py`` reads one."""

    def __init__(self, world: World, handle: int, stream: int, size: int) -> None:
        self.left, self._end = size, lambda: world.endpoint.send_data(handle, stream, b"", end=True)
        self._uncredited, self._paused = 0, False
        self.pipe = Pipe(lambda data: world.endpoint.send_data(handle, stream, data, end=False), self._credit, self._hold)

    def _credit(self, taken: int) -> None:
        self._uncredited -= taken
        if self._uncredited <= LOW_WATER:
            self._paused = False

    def _hold(self) -> None:
        self._paused = True

    def read(self) -> bool:
        """One read; False where there is none to do."""
        if self._paused or not self.left:
            return False
        size = min(READ, self.left)
        self.left -= size
        self._uncredited += size
        self.pipe.push(PIECE[:size], size)
        if self._uncredited > HIGH_WATER:
            self._paused = True
        if not self.left:
            self._end()
        return True


class Site:
    """Answers every request by a backend of its own; ``most`` is what waited at any time."""

    def __init__(self, world: World, size: int) -> None:
        self._world, self._size = world, size
        self.backends: dict[tuple[int, int], Backend] = {}
        self.most = 0
        world.serve = self._serve

    def _serve(self, handle: int, event: object) -> None:
        if isinstance(event, RequestHead):
            self._world.endpoint.send_head(handle, event.stream, 200, [], end=False)
            self.backends[handle, event.stream] = Backend(self._world, handle, event.stream, self._size)
        elif isinstance(event, Drained):
            self.backends[handle, event.stream].pipe.drained()

    def turn(self) -> bool:
        """Everybody reads once."""
        reads = [backend.read() for backend in self.backends.values()]
        self.most = max(self.most, self._world.endpoint.output_bytes)
        return any(reads)

    def run(self, until: Callable[[], bool], seconds: float) -> bool:
        """Run until *until*, and the backends read whenever they may."""

        def turned() -> bool:
            self.turn()
            return until()

        return self._world.run(turned, seconds=seconds)


def world_with(engine: engines.Engine, output: int, **options: object) -> tuple[World, Client]:
    world = World(Link(latency=0.002), EngineLimits(output=output), engine=engine)
    client = world.connect(Client(**options))
    assert world.run(lambda: client.ready)
    return world, client


def bound(output: int, streams: int = STREAMS) -> int:
    return output + streams * (LOW_WATER + READ + HEADS)


@pytest.mark.parametrize("output", [MIB, 4 * MIB])
@pytest.mark.parametrize("how", ["opens no windows", "acknowledges nothing"])
def test_what_waits_for_one_client_is_bounded_whatever_it_asks_for(engine, how, output) -> None:
    options = {"max_stream_data": 100} if how == "opens no windows" else {"max_stream_data": 2**30, "max_data": 2**30}
    world, client = world_with(engine, output, **options)
    client.quic._write_stream_limits = lambda *_, **__: None
    site = Site(world, 2**40)
    for _ in range(STREAMS):
        client.request()
    assert world.run(lambda: len(site.backends) == STREAMS, seconds=5)
    if how == "acknowledges nothing":
        world.clients.clear()
    while site.turn():
        world.endpoint.take_datagrams(world.now)
    assert output < site.most <= bound(output)
    assert world.endpoint.holds >= STREAMS // 2
    assert world.of(ConnectionClosed) == []


def test_without_the_bound_it_were_three_times_as_much(engine) -> None:
    """That the test above can fail."""
    world, client = world_with(engine, 2**30, max_stream_data=100)
    client.quic._write_stream_limits = lambda *_, **__: None
    site = Site(world, 2**40)
    for _ in range(STREAMS):
        client.request()
    assert world.run(lambda: len(site.backends) == STREAMS, seconds=5)
    while site.turn():
        world.endpoint.take_datagrams(world.now)
    assert site.most > 2 * bound(4 * MIB)
    assert world.endpoint.holds == 0


def test_a_client_that_is_slow_gets_everything_under_a_tight_bound(engine) -> None:
    """Back-pressure, and no failure; when it is over, nothing waits by the books either."""
    size, streams = 150_000, 20
    world, client = world_with(engine, 2 * READ)
    site = Site(world, size)
    for _ in range(streams):
        client.request()
    assert site.run(lambda: len(client.answers) == streams and all(answer.ended for answer in client.answers.values()), seconds=60)
    assert {len(answer.body) for answer in client.answers.values()} == {size}
    assert site.most <= bound(2 * READ, streams)
    assert world.endpoint.holds > 0
    assert world.endpoint.output_bytes == 0
    assert world.of(ConnectionClosed) == []


def test_streams_that_are_held_do_not_starve_their_neighbours(engine) -> None:
    size = 120_000
    world, client = world_with(engine, MIB, max_stream_data=20_000, max_data=2**30)
    stuck: set[int] = set()
    write_limits = client.quic._write_stream_limits

    def limits(*, stream, **more) -> None:
        if stream.stream_id not in stuck:
            write_limits(stream=stream, **more)

    client.quic._write_stream_limits = limits
    site = Site(world, 2**40)
    stuck.update(client.request() for _ in range(40))
    assert site.run(lambda: len(site.backends) == 40 and world.endpoint.output_bytes > MIB, seconds=10)
    site._size = size
    free = [client.request() for _ in range(10)]
    assert site.run(lambda: all(client.answers[stream].ended for stream in free), seconds=60)
    assert {len(client.answers[stream].body) for stream in free} == {size}
    assert site.most <= bound(MIB, 50)


def test_what_is_cut_waits_no_more(engine) -> None:
    """By the client, and by us."""
    world, client = world_with(engine, MIB, max_stream_data=20_000)
    client.quic._write_stream_limits = lambda *_, **__: None
    site = Site(world, 2**40)
    streams = [client.request() for _ in range(20)]
    assert site.run(lambda: world.endpoint.output_bytes > MIB, seconds=10)
    site.backends.clear()
    handle = world.events[0][0]
    for stream in streams[:10]:
        client.quic.stop_stream(stream, 0x10C)
    for stream in streams[10:]:
        world.endpoint.reset(handle, stream, Reset.CANCEL)
    assert world.run(lambda: world.endpoint.output_bytes == 0, seconds=10)
    holds = world.endpoint.holds
    world.endpoint.close(handle, Reset.NO_ERROR)
    world.run(seconds=1)
    assert world.endpoint.holds == holds > 0


def test_what_one_client_uploads_to_nobody_is_bounded_by_its_window(engine) -> None:
    limits = EngineLimits(stream_window=64 * 1024, connection_window=256 * 1024)
    world = World(Link(latency=0.002), limits, engine=engine)
    client = world.connect()
    assert world.run(lambda: client.ready)
    for _ in range(STREAMS):
        client.request(b"/", b"POST", body=bytes(20_000))
    world.run(seconds=2)
    used = client.quic._remote_max_data_used
    got = sum(len(event.data) for event in world.of(RequestBody))
    assert len(world.of(RequestHead)) > 3
    assert 128 * 1024 < used <= 256 * 1024 + STREAMS * HEADS  # heads are consumed at once
    assert got <= 256 * 1024
    # and it all comes when somebody takes it
    taken = 0
    for _ in range(1000):
        fresh = [(handle, event) for handle, event in world.events[taken:] if isinstance(event, RequestBody)]
        taken = len(world.events)
        for handle, event in fresh:
            world.endpoint.consumed(handle, event.stream, event.credit)
        world.run(seconds=0.01)
        if (got := sum(len(event.data) for event in world.of(RequestBody))) == STREAMS * 20_000:
            break
    assert got == STREAMS * 20_000
    assert world.of(ConnectionClosed) == []


def test_a_bound_that_shrinks_holds_living_connections_and_new_ones_and_lets_go_when_it_grows(engine) -> None:
    world, client = world_with(engine, 16 * MIB, max_stream_data=20_000, max_data=2**30)
    opens = True
    write_limits = client.quic._write_stream_limits

    def limits(**more) -> None:
        if opens:
            write_limits(**more)

    client.quic._write_stream_limits = limits
    site = Site(world, 2**40)

    def settled() -> int:
        """What waits when nothing moves any more."""
        while site.turn():
            world.run(seconds=0.01)
        return world.endpoint.output_bytes

    opens = False
    for _ in range(10):
        client.request()
    assert world.run(lambda: len(site.backends) == 10, seconds=5)
    before = settled()
    assert before > 10 * HIGH_WATER
    world.endpoint.bound_output(LOW_WATER)
    for _ in range(10):
        client.request()
    assert world.run(lambda: len(site.backends) == 20, seconds=5)
    late = world.connect(Client(address=("198.51.100.8", 4001), max_stream_data=100))
    late.quic._write_stream_limits = lambda *_, **__: None
    assert world.run(lambda: late.ready)
    for _ in range(10):
        late.request()
    assert world.run(lambda: len(site.backends) == 30, seconds=5)
    small = settled()
    assert before < small <= before + 20 * (LOW_WATER + READ + HEADS)
    held = world.endpoint.holds
    assert held >= 10
    world.endpoint.bound_output(16 * MIB)
    opens = True
    assert site.run(lambda: all(len(answer.body) > 4 * HIGH_WATER for answer in client.answers.values()), seconds=20)
    opens = False
    assert settled() > 20 * HIGH_WATER
    assert world.of(ConnectionClosed) == []
