"""What answers may keep in an engine for TCP, and that it can be changed while they wait: HTTP/1.1, and both engines of HTTP/2."""

from __future__ import annotations

from collections.abc import Callable

import h2.config
import h2.connection
import h2.events
import h2.settings
import pytest

from proxy.engine.events import Drained, RequestHead, StreamReset
from proxy.engine.h1 import H1Connection
from proxy.engine.h2 import H2Connection
from proxy.engine.h2_ngh2 import Ngh2Connection
from proxy.engine.seam import HIGH_WATER, HOLD, LOW_WATER, EngineLimits
from proxy.errors import Reset
from proxy.pipe import Pipe

KIB, MIB = 1024, 1024 * 1024
READ = 64 * KIB
"""Of a backend, at once (``upstream/h1.py``)."""
STREAMS = 100
GET = [(b":method", b"GET"), (b":scheme", b"https"), (b":authority", b"a.example.com"), (b":path", b"/x")]

both = pytest.mark.parametrize("make", [H2Connection, Ngh2Connection], ids=["h2", "ngh2"])


class Backend:
    """Gives a body as fast as it is let, as ``upstream/h1.py`` reads one."""

    def __init__(self, connection: H2, stream: int, size: int) -> None:
        self.left = size
        self._connection, self._stream = connection, stream
        self._uncredited, self.paused = 0, False
        engine = connection.engine
        self.pipe = Pipe(lambda data: engine.send_data(stream, data, end=False), self._credit, self._hold)

    def _credit(self, taken: int) -> None:
        self._uncredited -= taken
        if self._uncredited <= LOW_WATER:
            self.paused = False

    def _hold(self) -> None:
        self._connection.holds += 1
        self.paused = True

    def read(self) -> bool:
        """One read; False where there is none to do."""
        if self.paused or not self.left:
            return False
        size = min(READ, self.left)
        self.left -= size
        self._uncredited += size
        self.pipe.push(bytes(size), size)
        if self._uncredited > HIGH_WATER:
            self.paused = True
        if not self.left:
            self._connection.engine.send_data(self._stream, b"", end=True)
        return True


class H2:
    """A client whose windows are opened by hand, one of our engines, and a backend for each request."""

    def __init__(self, make: Callable[[EngineLimits], H2Connection | Ngh2Connection], output: int, *, window: int = 1000) -> None:
        self.engine = make(EngineLimits(output=output))
        self.client = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding=None))
        self.client.local_settings = h2.settings.Settings(
            client=True, initial_values={h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: window}
        )
        self.client.initiate_connection()
        self.client.increment_flow_control_window(2**30)
        self.backends: dict[int, Backend] = {}
        self.got: dict[int, int] = {}
        self.ended: set[int] = set()
        self.holds = self.most = 0
        self.exchange()

    def ask(self, size: int = 2**40) -> int:
        stream = self.client.get_next_available_stream_id()
        self.client.send_headers(stream, GET, end_stream=True)
        self.got[stream] = 0
        self.exchange()
        self.engine.send_head(stream, 200, [], end=False)
        self.backends[stream] = Backend(self, stream, size)
        return stream

    def exchange(self) -> None:
        """Bytes both ways until neither has more."""
        while True:
            up = self.client.data_to_send()
            events = self.engine.receive(up, 0.0) if up else []
            down = self.engine.take_output(128 * KIB)
            events += self.engine.take_events()
            for event in events:
                if isinstance(event, Drained):
                    self.backends[event.stream].pipe.drained()
                else:
                    assert isinstance(event, RequestHead | StreamReset)
            for heard in self.client.receive_data(down):
                if isinstance(heard, h2.events.DataReceived):
                    self.got[heard.stream_id] += len(heard.data)
                elif isinstance(heard, h2.events.StreamEnded):
                    self.ended.add(heard.stream_id)
            if not up and not down:
                return

    def turn(self) -> bool:
        """Every backend reads once, as in one turn of the loop; then what may be sent is sent."""
        read = any(backend.read() for backend in self.backends.values())
        self.most = max(self.most, self.engine.output_bytes)
        self.exchange()
        return read

    def settle(self) -> None:
        while self.turn():
            pass

    def open(self, stream: int, size: int) -> None:
        if stream not in self.ended:
            self.client.increment_flow_control_window(size, stream)
            self.exchange()


def bound(output: int, streams: int = STREAMS) -> int:
    return output + streams * (LOW_WATER + READ)


@both
def test_what_waits_for_one_client_is_bounded(make) -> None:
    peer = H2(make, MIB)
    for _ in range(STREAMS):
        peer.ask()
    peer.settle()
    assert MIB < peer.engine.output_bytes <= peer.most <= bound(MIB)
    assert peer.holds >= STREAMS // 2


@both
def test_without_the_bound_it_were_several_times_as_much(make) -> None:
    """That the test above can fail."""
    peer = H2(make, 2**30)
    for _ in range(STREAMS):
        peer.ask()
    peer.settle()
    assert peer.engine.output_bytes > 2 * bound(MIB)
    assert peer.holds == 0


@both
def test_a_bound_that_shrinks_holds_for_what_comes_and_lets_go_when_it_grows(make) -> None:
    peer = H2(make, 16 * MIB)
    for _ in range(10):
        peer.ask()
    peer.settle()
    before = peer.engine.output_bytes
    assert before > 10 * HIGH_WATER
    peer.engine.bound_output(LOW_WATER)
    later = [peer.ask() for _ in range(10)]
    peer.settle()
    assert before < peer.engine.output_bytes <= before + 10 * (LOW_WATER + READ)
    held = peer.holds
    assert held >= 10
    peer.engine.bound_output(16 * MIB)
    for stream in later:
        peer.open(stream, READ)
    peer.settle()
    assert peer.engine.output_bytes > before + 10 * HIGH_WATER
    assert peer.holds == held


@both
def test_streams_that_are_held_go_on_at_the_least_bound_and_starve_nobody(make) -> None:
    peer = H2(make, LOW_WATER)
    stuck = [peer.ask() for _ in range(40)]
    peer.settle()
    free = [peer.ask(300_000) for _ in range(5)]
    for _ in range(1000):
        peer.turn()
        for stream in free:
            peer.open(stream, 20_000)
        if peer.ended == set(free):
            break
    assert {peer.got[stream] for stream in free} == {300_000}
    assert {peer.got[stream] for stream in stuck} == {1000}
    assert peer.most <= bound(LOW_WATER, 45)


@both
def test_the_books_are_even_when_streams_are_cut_or_done(make) -> None:
    """By the client, by us, by their end, by the end of the connection."""
    peer = H2(make, MIB)
    streams = [peer.ask(200_000) for _ in range(20)]
    whole = peer.client.get_next_available_stream_id()
    peer.client.send_headers(whole, GET, end_stream=True)
    peer.got[whole] = 0
    peer.exchange()
    peer.engine.respond(whole, 200, [], bytes(50_000))
    peer.settle()
    assert peer.engine.output_bytes > MIB
    peer.open(whole, 50_000)
    for stream in streams[:5]:
        del peer.backends[stream]
        peer.client.reset_stream(stream)
    for stream in streams[5:10]:
        del peer.backends[stream]
        peer.engine.reset(stream, Reset.CANCEL)
    for stream in streams[10:15]:
        peer.open(stream, 200_000)
    for _ in range(100):
        peer.turn()
    assert len(peer.ended) == 6
    waiting = peer.engine.output_bytes
    assert 5 * LOW_WATER < waiting <= 5 * 200_000
    for stream in streams[15:]:
        peer.open(stream, 200_000)
    for _ in range(100):
        peer.turn()
    assert peer.engine.output_bytes == 0
    peer.ask()
    peer.settle()
    peer.engine.close(Reset.NO_ERROR)
    assert peer.engine.output_bytes < 100
    assert peer.engine.take_output(MIB)
    assert peer.engine.output_bytes == 0


def test_on_http_1_one_answer_is_held_and_goes_on() -> None:
    engine = H1Connection(EngineLimits(output=64 * KIB))
    engine.receive(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n", 0.0)
    engine.send_head(1, 200, [], end=False)
    assert engine.send_data(1, bytes(50 * KIB), end=False) < HIGH_WATER
    assert engine.send_data(1, bytes(50 * KIB), end=False) > HOLD
    assert engine.output_bytes > 100 * KIB
    engine.bound_output(LOW_WATER)
    while engine.output_bytes > LOW_WATER:
        assert engine.take_events() == []
        engine.take_output(16 * KIB)
    assert engine.take_events() == [Drained(1)]
    assert engine.send_data(1, bytes(READ), end=False) > HOLD
    while engine.take_output(16 * KIB):
        pass
    assert engine.take_events() == [Drained(1)]
    engine.bound_output(4 * MIB)
    assert engine.send_data(1, bytes(HIGH_WATER - KIB), end=False) < HIGH_WATER
    assert HIGH_WATER < engine.send_data(1, bytes(READ), end=False) < HOLD
