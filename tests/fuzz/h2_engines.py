"""Hostile bytes against both engines of HTTP/2, for a given time: ``python -m tests.fuzz.h2_engines --seconds 60``.

Each case is a number (``runner.py``). What is asked of it:

- nothing raises, and no connection ends with ``internal``; ConnectionClosed comes once and last; no stream has events after its end;
- what the engine sends is whole frames, HEADERS before DATA, nothing behind an end but RST_STREAM, bodies right and within the windows;
- cut in any other way, the same bytes give each stream the same events (ngh2);
- a request that both engines take is the same request, with the same body as far as both have one; one that only one of them takes was
  refused, cut or never reached by the other.
"""

from random import Random
from struct import unpack_from

from proxy.engine.events import ConnectionClosed, Drained, Rejected, RequestBody, RequestEnd, RequestHead, StreamReset
from proxy.engine.h2 import H2Connection
from proxy.engine.h2_ngh2 import Ngh2Connection
from proxy.engine.seam import EngineLimits
from proxy.errors import Reset
from tests.fuzz.h2_dialogues import Client
from tests.fuzz.runner import main
from tests.fuzz.streams import follow

LIMITS = (
    EngineLimits(streams=3, stream_window=70_000, connection_window=90_000, header_bytes=9000, header_count=40),
    EngineLimits(),
    EngineLimits(streams=10, stream_window=1000, connection_window=65_535),
)


class Run:
    """One engine through one dialogue, its requests answered by a plan that the case fixes."""

    def __init__(self, make, case, pieces, *, answers, flush):
        random = Random(case)
        self.limits = random.choice(LIMITS)
        self.engine = make(self.limits)
        self.streams = {}
        self.closed = None
        self.case = case
        self.sent = bytearray()
        self.planned = {}
        self.drains = random.random() < 0.05
        for number, piece in enumerate(pieces):
            events = self.engine.receive(piece, number / 50)
            self.take(events, answers=answers)
            if flush:
                self.output(random.choice((1000, 16_393, 40_000, 1 << 20)))
            if self.drains and number == len(pieces) // 2:
                self.engine.goaway()
        self.take(self.engine.take_events(), answers=answers)
        self.output(1 << 20)
        self.settled = self.engine.finished, self.engine.head_in_progress
        self.take(self.engine.receive_eof(1e6), answers=False)
        assert self.engine.finished
        assert self.engine.streams == 0
        assert self.engine.receive(b"more", 1e6) == []
        self.output(1 << 20)
        self.check_output()

    def output(self, limit):
        for _ in range(10_000):
            out = self.engine.take_output(limit)
            events = self.engine.take_events()
            self.sent += out
            self.take(events, answers=True)
            if not out and not events:
                return
        raise AssertionError("output without end")

    def take(self, events, *, answers):
        for event in events:
            assert self.closed is None, f"{event} after {self.closed}"
            if isinstance(event, ConnectionClosed):
                assert event.error != "internal", event
                self.closed = event
                continue
            follow(self.streams.setdefault(event.stream, []), event)
            if answers:
                self.answer(event)

    def answer(self, event):
        engine, stream = self.engine, event.stream
        if isinstance(event, RequestBody):
            engine.consumed(stream, event.credit)
            return
        if isinstance(event, Drained):
            engine.send_data(stream, b"end", end=True)
            return
        random = Random(self.case * 1000003 + stream)
        plan = random.randrange(9)
        if isinstance(event, RequestHead) == (random.random() < 0.3) or isinstance(event, Rejected | StreamReset):
            return
        if plan < 3:
            body = b"abc"[:plan] * random.choice((1, 1000, 40_000))
            self.planned.setdefault(stream, body)
            engine.respond(stream, random.choice((200, 200, 404, 204)), [(b"server", b"q")], body)
        elif plan < 6:
            body = b"z" * random.choice((0, 10, 70_000, 200_000))
            self.planned.setdefault(stream, body)
            engine.inform(stream, 103, [(b"link", b"</a>")])
            engine.send_head(stream, 200, [(b"x-a", b"b")], end=False)
            for at in range(0, len(body), 30_000):
                engine.send_data(stream, body[at : at + 30_000], end=False)
            if plan == 3:
                engine.send_trailers(stream, [(b"t", b"v")])
            elif plan == 4:
                engine.send_data(stream, b"", end=True)
        elif plan == 6:
            engine.reset(stream, random.choice(list(Reset)))
        elif plan == 7 and random.random() < 0.05:
            random.choice((engine.goaway, engine.time_out, lambda: engine.close(Reset.EXCESSIVE_LOAD)))()
            self.take(engine.take_events(), answers=False)

    def check_output(self):
        """Whole frames in a possible order; bodies as planned."""
        data, at = bytes(self.sent), 0
        states, bodies = {}, {}
        while at < len(data):
            assert at + 9 <= len(data), "half a frame header"
            word, flags, stream = unpack_from(">LBL", data, at)
            size, kind = word >> 8, word & 255
            payload = data[at + 9 : at + 9 + size]
            at += 9 + size
            assert size <= 2**24 - 1
            assert kind in {0, 1, 3, 4, 6, 7, 8, 9}
            assert at <= len(data), "half a frame"
            if kind in {0, 1}:
                assert stream & 1
                assert states.get(stream) not in {"end", "reset"}, f"frame {kind} on {stream} after its {states[stream]}"
                assert kind == 1 or stream in states, f"DATA on {stream} without a head"
                states[stream] = "end" if flags & 1 else "open"
                if kind == 0:
                    bodies[stream] = bodies.get(stream, b"") + payload
            elif kind == 3:
                assert stream
                assert states.get(stream) != "reset" or isinstance(self.engine, H2Connection), f"{stream} was reset twice"
                states[stream] = "reset"
        for stream, body in bodies.items():
            planned = self.planned.get(stream, b"") + b"end"
            assert planned.startswith(body), f"body of {stream}: {len(body)} bytes that were not ours"


def requests(run):
    """Of each stream: its head, body, trailers once it has ended, and whether it was cut or refused."""
    known = {}
    for stream, events in run.streams.items():
        head = events[0] if isinstance(events[0], RequestHead) else None
        body = b"".join(event.data for event in events if isinstance(event, RequestBody))
        ends = [event.trailers for event in events if isinstance(event, RequestEnd)]
        known[stream] = head, body, ends, any(isinstance(event, StreamReset | Rejected) for event in events)
    return known


def compare(case, portable, fast):
    """What both take is the same; what one alone takes has its reason in the other."""
    ours, theirs = requests(portable), requests(fast)
    for stream in ours.keys() | theirs.keys():
        one, other = ours.get(stream), theirs.get(stream)
        if one is not None and other is not None and one[0] is not None and other[0] is not None:
            assert one[0] == other[0], (case, one[0], other[0])
            assert one[1].startswith(other[1]) or other[1].startswith(one[1]), (case, stream)
            if one[2] and other[2]:
                assert (one[1], one[2]) == (other[1], other[2]), (case, stream, one[2], other[2])
            continue
        for mine, its, run in ((one, other, fast), (other, one, portable)):
            if mine is not None and mine[0] is not None and its is None:
                assert run.closed or run.settled[0] or run.drains, f"{stream} was neither taken nor refused by {type(run.engine).__name__}"


def same(whole, split):
    """Other pieces, same events. Beside the end of the connection in one batch, the refusal of a stream may go unsaid.

    More frames on a refused stream may end the connection until the refusal was sent, and are ignored afterwards. Behind the client's
    GOAWAY the refusal of its last stream is the end of the connection.
    """
    if (whole.closed is None) != (split.closed is None):
        alive = whole if whole.closed is None else split
        assert any(isinstance(event, Rejected | StreamReset) for events in alive.streams.values() for event in events)
        return
    if whole.closed is None and not (whole.settled[0] or split.settled[0]):
        assert whole.streams == split.streams
        assert whole.settled == split.settled
        return
    one, other = requests(whole), requests(split)
    for stream in one.keys() & other.keys():
        assert one[stream][0] == other[stream][0]


def check(case):
    """Run one case; how many connections it took."""
    random = Random(case)
    frames = Client(case).dialogue()
    wire = b"".join(frames)
    cuts = sorted(random.randint(0, len(wire)) for _ in range(random.choice((0, 1, 5, 30))))
    split = [wire[a:b] for a, b in zip([0, *cuts], [*cuts, len(wire)], strict=True)]
    silent = Run(Ngh2Connection, case, [wire], answers=False, flush=False)
    others = Run(Ngh2Connection, case, [b"", *split], answers=False, flush=False) if len(split) > 1 else silent
    if not silent.drains and len(frames) < 200:  # the clock, and so the budgets, go another way with other pieces
        same(silent, others)
    compare(case, Run(H2Connection, case, [wire], answers=False, flush=False), silent)
    Run(Ngh2Connection, case, split, answers=True, flush=True)
    Run(H2Connection, case, split, answers=True, flush=True)
    return 5


if __name__ == "__main__":
    main("tests.fuzz.h2_engines", check, __doc__)
