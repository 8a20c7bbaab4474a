"""HTTP/2, each engine: how the client's bytes are cut makes no difference, and no bytes at all make it raise."""

import h2.config
import h2.connection
import h2.events
import pytest
from hyperframe.frame import ContinuationFrame, DataFrame, HeadersFrame, PingFrame, RstStreamFrame, SettingsFrame
from hyperframe.frame import WindowUpdateFrame as WindowUpdate
from hypothesis import example, given, settings
from hypothesis import strategies as st

from proxy.engine.events import ConnectionClosed, Rejected, RequestHead, StreamReset
from proxy.engine.h2 import H2Connection
from proxy.engine.h2_ngh2 import Ngh2Connection
from proxy.engine.seam import EngineLimits
from proxy.errors import Reset

ENGINES = pytest.mark.parametrize("make", [H2Connection, Ngh2Connection])
LIMITS = EngineLimits(streams=3, stream_window=70_000, connection_window=90_000)
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + SettingsFrame(0).serialize()
BASE = [(b":method", b"POST"), (b":scheme", b"https"), (b":authority", b"a"), (b":path", b"/")]
BLOCKS = [
    h2.connection.Encoder().encode(fields)
    for fields in (BASE, [*BASE, (b"content-length", b"3")], [*BASE, (b"x-bad", b"\0")], [(b"x", b"y")], [(b"x", b"y" * 40_000)])
]
streams = st.sampled_from([1, 3, 5, 7, 9, 2, 0])
ends = st.sampled_from([[], ["END_STREAM"]])


@st.composite
def headers(draw):
    block, stream, end = draw(st.sampled_from(BLOCKS)), draw(streams.filter(bool)), draw(ends)
    pieces = [block[at : at + 16000] for at in range(0, len(block), 16000)]
    made = [HeadersFrame(stream, pieces[0], flags=end), *[ContinuationFrame(stream, piece) for piece in pieces[1:]]]
    if draw(st.integers(0, 9)):
        made[-1].flags.add("END_HEADERS")
    return b"".join(frame.serialize() for frame in made)


contents = st.sampled_from([b"", b"abc", b"z" * 16384])
data = st.builds(
    lambda s, b, f: DataFrame(s, b, flags=f).serialize(), streams.filter(bool), st.sampled_from([b"", b"abc", b"z" * 16384]), ends
)
control = st.one_of(
    st.builds(lambda s, n: WindowUpdate(s, window_increment=n).serialize(), streams, st.sampled_from([0, 1, 70_000, 2**31 - 1])),
    st.builds(lambda s: RstStreamFrame(s, error_code=8).serialize(), streams.filter(bool)),
    st.builds(lambda n, v: SettingsFrame(0, settings={n: v}).serialize(), st.integers(1, 9), st.sampled_from([0, 1, 16384, 2**31])),
    st.just(PingFrame(0, b"12345678").serialize()),
    st.just(SettingsFrame(0, flags=["ACK"]).serialize()),
    st.binary(min_size=9, max_size=40),
)
dialogues = st.lists(st.one_of(headers(), headers(), data, data, control), max_size=14).map(lambda made: PREFACE + b"".join(made))


def drive(make, pieces):
    engine, events = make(LIMITS), []
    for piece in pieces:
        events += engine.receive(piece, 1.0)
    return engine, events


def check_same(make, whole, split):
    """The events must not depend on the pieces; of libnghttp2's, those of each stream.

    What it refused it tells by what it sends, so refusals come behind the events of the same piece, and where the connection ended with
    that piece they may go unsaid. More frames on a stream that it refused may end the connection until the refusal was sent, and are
    ignored afterwards.
    """
    if make is H2Connection:
        assert whole == split
        return
    alive = [events for events in (whole, split) if not any(isinstance(event, ConnectionClosed) for event in events)]
    if len(alive) == 2:
        assert until_cut(whole) == until_cut(split)
    elif alive:
        assert any(isinstance(event, Rejected | StreamReset) for event in alive[0])


def until_cut(events):
    """By stream, up to the first word that it is cut: by whom is told by what is heard first, where the client cuts what is refused."""
    found = {}
    for event in events:
        told = found.setdefault(event.stream, [])
        if "cut" not in told:
            told.append("cut" if isinstance(event, Rejected | StreamReset) else event)
    return found


@ENGINES
@settings(max_examples=250, deadline=None)
@given(dialogues, st.data())
def test_any_split_gives_the_same_events_and_the_same_output(make, wire, draw):
    cuts = sorted(draw.draw(st.lists(st.integers(0, len(wire)), max_size=12)))
    pieces = [wire[a:b] for a, b in zip([0, *cuts], [*cuts, len(wire)], strict=True)]
    whole, events = drive(make, [wire])
    split, others = drive(make, pieces)
    check_same(make, events, others)
    if make is H2Connection:
        assert split.take_output(1 << 20) == whole.take_output(1 << 20)
    if make is H2Connection or split.finished == whole.finished:
        assert (split.streams, split.finished, split.head_in_progress) == (whole.streams, whole.finished, whole.head_in_progress)


@ENGINES
@settings(max_examples=25, deadline=None)
@given(dialogues.filter(lambda wire: len(wire) < 3000))
@example(PREFACE + b"\1\0\0\4\0\0\0\0\1")  # too long, and on a stream where it can't be: which is found first
def test_byte_by_byte_gives_the_same_events(make, wire):
    check_same(make, drive(make, [wire])[1], drive(make, [wire[at : at + 1] for at in range(len(wire))])[1])


@ENGINES
@settings(max_examples=300, deadline=None)
@given(dialogues, st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=8))
def test_no_mutation_makes_it_raise_and_a_closed_connection_says_so_once(make, wire, changes):
    mutated = bytearray(wire)
    for at, value in changes:
        mutated[24 + at % (len(wire) - 24)] = value
    engine, events = drive(make, [bytes(mutated)])
    closed = [event for event in events if isinstance(event, ConnectionClosed)]
    assert all(event.error != "internal" for event in closed)
    assert len(closed) == engine.finished
    assert not closed or events[-1] is closed[0]
    serve(engine, events)


@ENGINES
@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=400))
def test_no_bytes_make_it_raise(make, junk):
    for start in (b"", PREFACE):
        engine, events = drive(make, [start + junk])
        assert all(event.error != "internal" for event in events if isinstance(event, ConnectionClosed))
        serve(engine, events)


def serve(engine, events):
    """Answer whatever requests came; nothing of it may raise either."""
    for number, event in enumerate(events):
        if isinstance(event, RequestHead):
            if number % 3 == 0:
                engine.respond(event.stream, 200, [], b"x" * 100_000)
            elif number % 3 == 1:
                engine.send_head(event.stream, 200, [], end=False)
                engine.send_data(event.stream, b"y" * 300_000, end=False)
                engine.consumed(event.stream, 10**9)
                engine.send_trailers(event.stream, [(b"a", b"b")])
            else:
                engine.reset(event.stream, Reset.CANCEL)
    while engine.take_output(20_000):
        engine.take_events()
    engine.receive(WindowUpdate(0, window_increment=100_000).serialize(), 2.0)
    engine.take_output(1 << 20)
    engine.receive_eof(3.0)
    assert engine.finished
    assert engine.streams == 0


bodies = st.lists(st.binary(max_size=300).map(lambda body: body * 100), min_size=1, max_size=5)


@ENGINES
@settings(max_examples=40, deadline=None)
@given(bodies, st.integers(1000, 40_000), st.integers(1, 60_000))
def test_bodies_come_down_right_whatever_the_pace(make, contents, limit, credit):
    """Several answers at once, windows opened bit by bit: each body right, each stream ended, all of it within the windows."""
    engine = make(EngineLimits())
    client = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding=None))
    client.initiate_connection()
    got = {}
    for number, _ in enumerate(contents):
        client.send_headers(2 * number + 1, [(b":method", b"GET"), *BASE[1:]], end_stream=True)
        got[2 * number + 1] = b""
    assert len(engine.receive(client.data_to_send(), 0.0)) == len(contents)
    for number, body in enumerate(contents):
        if number % 2:
            engine.respond(2 * number + 1, 200, [], body)
        else:
            engine.send_head(2 * number + 1, 200, [], end=False)
            for at in range(0, len(body), 7000):
                engine.send_data(2 * number + 1, body[at : at + 7000], end=False)
            engine.send_data(2 * number + 1, b"", end=True)
    owed = 0
    for now in range(1, 100_000):
        out = engine.take_output(limit)
        for event in client.receive_data(out):
            if isinstance(event, h2.events.DataReceived):
                got[event.stream_id] += event.data
                owed += event.flow_controlled_length
        if not engine.streams and not out:
            break
        if owed:
            client.increment_flow_control_window(min(credit, owed))
            for stream in list(got):
                if client.streams.get(stream) and client.streams[stream].open:
                    client.increment_flow_control_window(min(credit, owed), stream)
            owed -= min(credit, owed)
        engine.receive(client.data_to_send(), float(now))
    assert list(got.values()) == contents
