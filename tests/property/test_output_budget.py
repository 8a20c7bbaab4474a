"""Whoever asks, reads and goes away in whatever order: what waits in a process stays within its arithmetic, and everybody goes on."""

from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.engine.h1 import H1Connection
from proxy.engine.h2_output import Output, Stream
from proxy.engine.seam import HIGH_WATER, HOLD, LOW_WATER, EngineLimits
from proxy.meters import ProxyMetrics
from proxy.observe import Metrics, NullLog
from proxy.output import STEPS, OutputBudget
from proxy.snapshot import Limits

KIB, MIB = 1024, 1024 * 1024
READ = 64 * KIB
TOTAL, EACH = MIB, 4 * MIB
STREAMS = 6


class Source:
    """A backend's answer: held, or credited up to the high-water mark."""

    def __init__(self) -> None:
        self.paused = False

    def on_queued(self, queued: int) -> None:
        self.paused = queued > HIGH_WATER


class Multiplexed:
    """A connection with as many streams, on the sending half of HTTP/2."""

    streams = STREAMS

    def __init__(self, bound: int) -> None:
        self._drained: list[object] = []
        self._output = Output(None, self._drained, lambda _: None, bound)  # type: ignore[arg-type]  # no head is sent
        self._output.window = 2**31 - 1
        self._streams = [
            Stream(identity, 2**31 - 1, remote_ended=True, bodyless=False, expected=None) for identity in range(1, 2 * STREAMS, 2)
        ]

    def send(self, stream: int, size: int) -> int:
        return self._output.queue(self._streams[stream], bytes(size), end=False)

    def read(self, size: int) -> list[int]:
        """The client takes so much; the streams that may go on."""
        self._output.take(size)
        drained = [(event.stream - 1) // 2 for event in self._drained]  # type: ignore[attr-defined]
        self._drained.clear()
        return drained

    def bound_output(self, most: int) -> None:
        self._output.bound = most

    @property
    def output_bytes(self) -> int:
        return self._output.queued


class Single:
    """A connection with one answer, on HTTP/1.1."""

    streams = 1

    def __init__(self, bound: int) -> None:
        self._engine = H1Connection(EngineLimits(output=bound))
        self._engine.receive(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n", 0.0)
        self._engine.send_head(1, 200, [(b"content-length", b"%d" % 10**12)], end=False)
        self._engine.take_output(10**6)

    def send(self, _stream: int, size: int) -> int:
        return self._engine.send_data(1, bytes(size), end=False)

    def read(self, size: int) -> list[int]:
        self._engine.take_output(size)
        return [0 for _ in self._engine.take_events()]

    def bound_output(self, most: int) -> None:
        self._engine.bound_output(most)

    @property
    def output_bytes(self) -> int:
        return self._engine.output_bytes


class Listener:
    """Connections with their backends, each of which gives whatever it may."""

    def __init__(self, budget: OutputBudget) -> None:
        self._budget = budget
        budget.holders.append(self)
        self.connections: list[Multiplexed | Single] = []
        self.sources: list[list[Source]] = []
        self.holds = 0

    @property
    def output_bytes(self) -> int:
        return sum(connection.output_bytes for connection in self.connections)

    def bound_output(self, most: int) -> None:
        for connection in self.connections:
            connection.bound_output(most)

    def open(self, kind: type[Multiplexed | Single]) -> None:
        self.connections.append(kind(self._budget.bound))
        self.sources.append([Source() for _ in range(kind.streams)])

    def give(self, number: int, stream: int, size: int) -> None:
        source = self.sources[number][stream]
        if source.paused:
            return
        queued = self.connections[number].send(stream, size)
        if queued > LOW_WATER:
            self._budget.queued(size)
            self.holds += queued >= HOLD
        source.on_queued(queued)

    def read(self, number: int, size: int) -> None:
        for stream in self.connections[number].read(size):
            self.sources[number][stream].paused = False

    def close(self, number: int) -> None:
        del self.connections[number], self.sources[number]


STEP = st.one_of(
    st.tuples(st.just("open"), st.sampled_from([Multiplexed, Single]), st.just(0)),
    st.tuples(st.just("give"), st.integers(0, 999), st.integers(1, READ)),
    st.tuples(st.just("flood"), st.integers(0, 999), st.integers(1, 8)),
    st.tuples(st.just("read"), st.integers(0, 999), st.integers(0, MIB)),
    st.tuples(st.just("close"), st.integers(0, 999), st.just(0)),
    st.tuples(st.just("turn"), st.just(0), st.just(0)),
)


@settings(deadline=None)
@given(st.lists(STEP, max_size=120))
def test_what_waits_stays_within_its_arithmetic_and_everybody_goes_on(steps) -> None:
    budget = OutputBudget(Limits(0, 0, 0, 0, EngineLimits(output=EACH), TOTAL), ProxyMetrics(Metrics()), NullLog())
    listener = Listener(budget)
    for _ in range(4):
        listener.open(Multiplexed)
    now = 0.0
    for action, what, size in steps:
        connections = listener.connections
        if action == "open":
            listener.open(what)
        elif action == "turn":
            now += 1.0
            budget.turn(now)
        elif connections:
            number = what % len(connections)
            if action == "give":
                listener.give(number, what % connections[number].streams, size)
            elif action == "flood":  # every backend gives what it may
                for _ in range(size):
                    for each in range(len(connections)):
                        for stream in range(connections[each].streams):
                            listener.give(each, stream, READ)
            elif action == "read":
                listener.read(number, size)
            else:
                listener.close(number)
        streams = max(len(sources) for sources in listener.sources) if listener.sources else 0
        floors = sum(connection.streams for connection in listener.connections) * (LOW_WATER + READ)
        for connection in listener.connections:
            assert connection.output_bytes <= EACH + streams * (LOW_WATER + READ)
        assert listener.output_bytes <= TOTAL + TOTAL // STEPS + floors
    for _ in range(12):
        for number in range(len(listener.connections)):
            while listener.connections[number].output_bytes:
                listener.read(number, MIB)
        now += 1.0
        budget.turn(now)
    assert (listener.output_bytes, budget.bound) == (0, EACH)
    assert not any(source.paused for sources in listener.sources for source in sources)
    for number, connection in enumerate(listener.connections):
        for stream in range(connection.streams):
            listener.give(number, stream, READ)
    assert listener.output_bytes >= sum(connection.streams for connection in listener.connections) * READ
