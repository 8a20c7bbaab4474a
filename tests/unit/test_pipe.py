"""Back-pressure of the pipe, as a dialogue."""

from proxy.engine.seam import HIGH_WATER, HOLD
from proxy.pipe import Pipe


class Ends:
    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.credits: list[int] = []
        self.queued = 0

    def write(self, data: bytes) -> int:
        self.written.append(data)
        return self.queued

    def pipe(self) -> Pipe:
        return Pipe(self.write, self.credits.append)


def test_what_the_sink_takes_is_credited_at_once() -> None:
    ends = Ends()
    pipe = ends.pipe()
    pipe.push(b"abc", 5)
    assert (ends.written, ends.credits, pipe.moved, pipe.stalled) == ([b"abc"], [5], 3, False)


def test_above_high_water_credit_is_kept_until_the_sink_drains() -> None:
    ends = Ends()
    pipe = ends.pipe()
    ends.queued = HIGH_WATER + 1
    pipe.push(b"abc", 3)
    pipe.push(b"de", 2)
    assert (ends.credits, pipe.stalled) == ([], True)
    ends.queued = 0
    pipe.drained()
    assert (ends.credits, pipe.stalled, pipe.moved) == ([5], False, 5)
    pipe.drained()
    assert ends.credits == [5]


def test_at_high_water_exactly_the_source_goes_on() -> None:
    ends = Ends()
    ends.queued = HIGH_WATER
    ends.pipe().push(b"x", 1)
    assert ends.credits == [1]


def test_where_all_of_the_connection_is_full_the_source_stops_at_once() -> None:
    ends = Ends()
    holds: list[None] = []
    pipe = Pipe(ends.write, ends.credits.append, lambda: holds.append(None))
    ends.queued = HIGH_WATER + 1
    pipe.push(b"abc", 3)
    assert holds == []
    ends.queued = HOLD + 1
    pipe.push(b"de", 2)
    assert (len(holds), ends.credits, pipe.stalled) == (1, [], True)
    ends.pipe().push(b"x", 1)  # a source that can't be held waits for credit
    pipe.drained()
    assert (ends.credits, pipe.stalled) == ([5], False)
