"""Dialogues: h2's own client, or raw frames where it would refuse to be that wrong, with each of our HTTP/2 engines.

One suite for all of them. Where they rightly differ, ``proxy.engine.differences`` says how and why.
"""

import tracemalloc

import h2.config
import h2.connection
import h2.events
import pytest
from h2.errors import ErrorCodes
from h2.settings import SettingCodes
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    PriorityFrame,
    PushPromiseFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from proxy.engine import h2_abuse, h2_core
from proxy.engine.differences import DIFFERENCES
from proxy.engine.events import ConnectionClosed, Drained, Rejected, RequestBody, RequestEnd, RequestHead, StreamReset
from proxy.engine.h2 import H2Connection
from proxy.engine.h2_ngh2 import Ngh2Connection
from proxy.engine.seam import HIGH_WATER, LOW_WATER, EngineLimits
from proxy.errors import Reset
from tests.unit.engine.quiet import keeps_quiet


class AnyText(str):
    """Equal to every text, and a text itself: the compiled build takes nothing else in its place."""

    __slots__ = ()
    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, str)


ANY = AnyText()


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = SettingsFrame(0).serialize()
GET = [(b":method", b"GET"), (b":scheme", b"https"), (b":authority", b"a.example.com"), (b":path", b"/x")]
POST = [(b":method", b"POST"), *GET[1:]]
HEAD = [(b":method", b"HEAD"), *GET[1:]]
LIMITS = EngineLimits()

ENGINES = {"h2": H2Connection, "ngh2": Ngh2Connection}

OUTCOMES = {
    "refused by the library": ("refusals", lambda reason: reason, lambda reason: "protocol"),
    ":protocol": ("extended CONNECT", 501, 400),
    "order of refusals": ("refusals", lambda events: events, lambda events: sorted(events, key=lambda event: isinstance(event, Rejected))),
    "RFC 9218": ("priorities", {}, {9: 1}),
    "stream window": ("faults of streams", "stream", "connection"),
    "half-closed": ("faults of streams", "stream", "connection"),
    "made reset": ("faults of streams", lambda h2: h2, lambda h2: 1),
    "self-dependency": ("self-dependency", True, False),
    "empty end": ("empty ends", "now", "later"),
    "window of a dead stream": ("closed streams", "flow_control", None),
    "closed stream": ("closed streams", "fault", "ignored"),
    "refused after GOAWAY": ("streams behind GOAWAY", b"\0\0\4\3\0\0\0\0\5\0\0\0\7", b""),
    "reset of a queued answer": ("answers that are reset", True, False),
    "wording": ("refusals", lambda detail: detail, lambda detail: ANY),
}
"""What the tests see of a difference, by its name in ``proxy.engine.differences``: on h2, on ngh2."""
"""What: why; what h2's engine does; what ngh2's does."""


class Current:
    """The engine that a test runs with."""

    name = "h2"


@pytest.fixture(autouse=True, params=ENGINES)
def _engine(request):
    Current.name = request.param


def made(limits):
    return ENGINES[Current.name](limits)


def here(difference):
    """What the present engine does."""
    name, *outcomes = OUTCOMES[difference]
    assert set(DIFFERENCES[name].does) == set(ENGINES)
    return outcomes[list(ENGINES).index(Current.name)]


def head(stream, method=b"GET", headers=(), *, end=True, length=None, expect=False):
    return RequestHead(stream, method, b"https", b"a.example.com", b"/x", list(headers), end, length, expect)


class Peer:
    """h2's client and our engine, joined by their bytes."""

    def __init__(self, limits=LIMITS, *, settings=None):
        self.engine = made(limits)
        self.client = h2.connection.H2Connection(
            h2.config.H2Configuration(
                client_side=True, header_encoding=None, validate_outbound_headers=False, normalize_outbound_headers=False
            )
        )
        if settings:
            self.client.local_settings = h2.settings.Settings(client=True, initial_values=settings)
        self.client.initiate_connection()
        self.now = 0.0
        self.seen = []
        assert self.pump() == []

    def up(self):
        """Client to engine: the engine's events."""
        events = self.engine.receive(self.client.data_to_send(), self.now)
        keeps_quiet(self.engine)
        return events

    def down(self, limit=1 << 30):
        """Engine to client: the client's events, without those of settings and windows."""
        events = self.client.receive_data(self.engine.take_output(limit))
        boring = (
            h2.events.RemoteSettingsChanged,
            h2.events.SettingsAcknowledged,
            h2.events.WindowUpdated,
            h2.events.PingAckReceived,
            h2.events.PingReceived,
        )
        new = [event for event in events if not isinstance(event, boring)]
        self.seen += new
        return new

    def pump(self):
        """Both ways until both are silent: the engine's events."""
        events = []
        for _ in range(1000):
            data = self.client.data_to_send()
            events += self.engine.receive(data, self.now) if data else []
            out = self.engine.take_output(1 << 30)
            events += self.engine.take_events()
            keeps_quiet(self.engine)
            if not data and not out:
                return events
            if out:
                self.seen += self.client.receive_data(out)
        pytest.fail("no end")

    def answer(self, stream):
        """What the client got on a stream: (status, headers, body, how it ended)."""
        status, headers, body, end = None, [], b"", None
        for event in self.seen:
            if getattr(event, "stream_id", None) != stream:
                continue
            if isinstance(event, h2.events.ResponseReceived):
                (_, status), *headers = [tuple(field) for field in event.headers]
            elif isinstance(event, h2.events.DataReceived):
                body += event.data
            elif isinstance(event, h2.events.TrailersReceived):
                end = [tuple(field) for field in event.headers]
            elif isinstance(event, h2.events.StreamEnded):
                end = end or "end"
            elif isinstance(event, h2.events.StreamReset):
                end = (end, ErrorCodes(event.error_code).name)
        return status, headers, body, end


class Raw:
    """A client that writes frames by hand: knows HPACK and nothing of the rules."""

    def __init__(self, limits=LIMITS, *, started=True):
        self.engine = made(limits)
        self.encoder = h2.connection.Encoder()
        self.rest = b""
        self.now = 0.0
        if started:
            assert self.send(PREFACE, SETTINGS) == []
            self.frames()

    def headers(self, stream, fields=GET, *, end=True, flags=(), **more):
        frame = HeadersFrame(stream, self.encoder.encode(fields), **more)
        frame.flags.add("END_HEADERS")
        if end:
            frame.flags.add("END_STREAM")
        for flag in flags:
            frame.flags.add(flag)
        return frame

    def send(self, *frames):
        return self.engine.receive(b"".join(f if isinstance(f, bytes) else f.serialize() for f in frames), self.now)

    def frames(self):
        """What the engine wrote: (type, stream, what matters)."""
        data, seen = self.rest + self.engine.take_output(1 << 30), []
        self.rest = b""
        while data:
            frame, length = Frame.parse_frame_header(memoryview(data[:9]))
            frame.parse_body(memoryview(data[9 : 9 + length]))
            data = data[9 + length :]
            what = {
                RstStreamFrame: lambda f: ErrorCodes(f.error_code).name,
                GoAwayFrame: lambda f: (f.last_stream_id, ErrorCodes(f.error_code).name),
                WindowUpdateFrame: lambda f: f.window_increment,
                DataFrame: lambda f: (bytes(f.data), "END_STREAM" in f.flags),
                HeadersFrame: lambda f: "END_STREAM" in f.flags,
                PingFrame: lambda f: (f.opaque_data, "ACK" in f.flags),
                SettingsFrame: lambda f: "ACK" in f.flags,
            }[type(frame)](frame)
            seen.append((type(frame).__name__.removesuffix("Frame"), frame.stream_id, what))
        return seen

    def alive(self, stream):
        """A neighbour is served as if nothing had happened."""
        assert self.send(self.headers(stream)) == [head(stream)]
        self.engine.respond(stream, 200, [], b"ok")
        assert self.frames()[-2:] == [("Headers", stream, False), ("Data", stream, (b"ok", True))]


# What a request becomes.


def test_a_get_is_one_event_and_its_answer_two_frames():
    peer = Peer()
    peer.client.send_headers(1, [*GET, (b"accept", b"*/*")], end_stream=True)
    assert peer.up() == [head(1, headers=[(b"accept", b"*/*")])]
    assert peer.engine.streams == 1
    peer.engine.respond(1, 200, [(b"server", b"s")], b"hello")
    peer.pump()
    assert peer.engine.streams == 0
    assert peer.answer(1) == (b"200", [(b"server", b"s"), (b"content-length", b"5")], b"hello", "end")


def test_our_settings_say_the_limits():
    peer = Peer(EngineLimits(streams=7, header_bytes=9000, stream_window=100_000, connection_window=300_000))
    assert dict(peer.client.remote_settings) == {
        SettingCodes.HEADER_TABLE_SIZE: 4096,
        SettingCodes.ENABLE_PUSH: 0,
        SettingCodes.INITIAL_WINDOW_SIZE: 100_000,
        SettingCodes.MAX_FRAME_SIZE: 16384,
        SettingCodes.MAX_CONCURRENT_STREAMS: 7,
        SettingCodes.MAX_HEADER_LIST_SIZE: 9000,
        SettingCodes.ENABLE_CONNECT_PROTOCOL: 0,
    } | here("RFC 9218")
    assert peer.client.outbound_flow_control_window == 300_000


def test_a_body_with_trailers_both_ways():
    peer = Peer()
    peer.client.send_headers(1, [*POST, (b"content-length", b"6")])
    peer.client.send_data(1, b"abc")
    peer.client.send_data(1, b"def", pad_length=10)
    peer.client.send_headers(1, [(b"x-sum", b"1")], end_stream=True)
    assert peer.up() == [
        head(1, b"POST", [(b"content-length", b"6")], end=False, length=6),
        RequestBody(1, b"abc", 3),
        RequestBody(1, b"def", 3),
        RequestEnd(1, [(b"x-sum", b"1")]),
    ]
    peer.engine.inform(1, 103, [(b"link", b"</a>")])
    peer.engine.send_head(1, 200, [], end=False)
    assert peer.engine.send_data(1, b"xyz", end=False) == 3
    peer.engine.send_trailers(1, [(b"grpc-status", b"0")])
    assert [type(event).__name__ for event in peer.down()] == [
        "InformationalResponseReceived",
        "ResponseReceived",
        "DataReceived",
        "TrailersReceived",
        "StreamEnded",
    ]
    assert peer.answer(1) == (b"200", [], b"xyz", [(b"grpc-status", b"0")])
    assert peer.engine.streams == 0


def test_expect_continue_is_told_and_informed():
    peer = Peer()
    peer.client.send_headers(1, [*POST, (b"expect", b"100-continue")])
    (event,) = peer.up()
    assert event.expect_continue
    peer.engine.inform(1, 100, [])
    (event,) = peer.down()
    assert [tuple(field) for field in event.headers] == [(b":status", b"100")]


@pytest.mark.parametrize(("request_", "status"), [(HEAD, 200), (GET, 204), (GET, 304)])
@pytest.mark.parametrize("whole", [True, False])
def test_no_data_frame_where_no_body_may_be(request_, status, whole):
    raw = Raw()
    raw.send(raw.headers(1, request_))
    if whole:
        raw.engine.respond(1, status, [], b"body")
    else:
        raw.engine.send_head(1, status, [], end=False)
        assert raw.engine.send_data(1, b"body", end=True) == 0
        raw.engine.send_trailers(1, [(b"x", b"y")])
    assert raw.frames() == [("Headers", 1, True)]
    assert raw.engine.streams == 0


def test_head_has_the_length_that_get_would_have():
    peer = Peer()
    peer.client.send_headers(1, HEAD, end_stream=True)
    peer.up()
    peer.engine.respond(1, 200, [], b"12345")
    peer.pump()
    assert peer.answer(1) == (b"200", [(b"content-length", b"5")], b"", "end")


def test_an_answer_before_the_end_of_the_request_asks_the_client_to_stop_and_drops_what_is_under_way():
    raw = Raw()
    raw.send(raw.headers(1, POST, end=False), DataFrame(1, b"a" * 1000))
    raw.engine.respond(1, 413, [], b"no")
    assert raw.frames() == [("Headers", 1, False), ("Data", 1, (b"no", True)), ("RstStream", 1, "NO_ERROR")]
    assert raw.send(DataFrame(1, b"b" * 16384), raw.headers(1, [(b"x", b"y")])) == []
    assert raw.frames() == []
    raw.alive(3)


def test_a_head_larger_than_a_frame_goes_out_in_several():
    peer = Peer()
    peer.client.send_headers(1, GET, end_stream=True)
    peer.up()
    fields = [(b"x-%d" % number, bytes([97 + number]) * 9000) for number in range(5)]
    peer.engine.respond(1, 200, fields, b"")
    peer.pump()
    assert peer.answer(1) == (b"200", [*fields, (b"content-length", b"0")], b"", "end")


# Flow control.


def test_a_big_body_comes_down_whole():
    peer = Peer()
    body = bytes(range(256)) * 20_000
    peer.client.send_headers(1, GET, end_stream=True)
    peer.up()
    peer.engine.respond(1, 200, [], body)
    got = b""
    while not (peer.seen and isinstance(peer.seen[-1], h2.events.StreamEnded)):
        for event in peer.down(50_000):
            if isinstance(event, h2.events.DataReceived):
                got += event.data
                peer.client.acknowledge_received_data(event.flow_controlled_length, 1)
        peer.up()
    assert got == body
    assert peer.engine.streams == 0


def test_a_big_body_comes_up_whole_and_only_consumption_gives_credit():
    peer = Peer(EngineLimits(stream_window=100_000, connection_window=150_000))
    body = bytes(range(256)) * 4_000
    peer.client.send_headers(1, POST)
    sent, got = 0, b""
    for _ in range(1000):
        while sent < len(body) and (size := min(peer.client.local_flow_control_window(1), 16384, len(body) - sent)):
            peer.client.send_data(1, body[sent : sent + size])
            sent += size
        in_flight = sent - len(got)
        assert in_flight <= 100_000
        credit = 0
        for event in peer.up():
            if isinstance(event, RequestBody):
                got += event.data
                credit += event.credit
        assert peer.down() == []
        if got == body:
            break
        assert peer.client.local_flow_control_window(1) == 0
        peer.engine.consumed(1, credit)
        peer.down()
    assert got == body


def test_padding_is_credited_by_the_engine():
    raw = Raw(EngineLimits(connection_window=65535, stream_window=65535))
    raw.send(raw.headers(1, POST, end=False))
    for _ in range(150):
        frame = DataFrame(1, b"", pad_length=255)
        frame.flags.add("PADDED")
        raw.send(frame)
    updates = [frame for frame in raw.frames() if frame[0] == "WindowUpdate"]
    assert [stream for _, stream, _ in updates] == [0, 1]
    assert raw.engine.streams == 1


def test_what_a_cut_stream_had_not_consumed_is_credited_to_the_connection():
    raw = Raw(EngineLimits(connection_window=65535, stream_window=65535))
    raw.send(raw.headers(1, POST, end=False), *[DataFrame(1, b"x" * 16000) for _ in range(4)])
    assert raw.frames() == []
    raw.engine.reset(1, Reset.CANCEL)
    assert raw.frames() == [("RstStream", 1, "CANCEL"), ("WindowUpdate", 0, 64000)]
    raw.engine.consumed(1, 64000)
    assert raw.frames() == []


def test_more_than_the_stream_window_costs_the_stream():
    raw = Raw(EngineLimits(stream_window=65535, connection_window=1_000_000))
    raw.send(raw.headers(1, POST, end=False), *[DataFrame(1, b"x" * 16000) for _ in range(4)])
    events = raw.send(DataFrame(1, b"x" * 16000))
    if here("stream window") == "stream":
        assert events == [StreamReset(1, "more DATA than the stream's window")]
        assert raw.frames() == [("RstStream", 1, "FLOW_CONTROL_ERROR")]
        raw.alive(3)
    else:
        assert events == [StreamReset(1, "flow_control"), ConnectionClosed("flow_control", ANY)]
        assert raw.frames() == [("GoAway", 0, (1, "FLOW_CONTROL_ERROR"))]


def test_more_than_the_connection_window_costs_the_connection():
    raw = Raw(EngineLimits(stream_window=1_000_000, connection_window=65535))
    raw.send(raw.headers(1, POST, end=False), *[DataFrame(1, b"x" * 16000) for _ in range(4)])
    assert raw.send(DataFrame(1, b"x" * 16000)) == [
        StreamReset(1, "flow_control"),
        ConnectionClosed("flow_control", here("wording")("Flow control window shrunk below 0")),
    ]


def test_a_small_stream_window_is_enforced_only_once_the_client_knows_it():
    limits = EngineLimits(stream_window=1000)
    raw = Raw(limits)
    raw.send(raw.headers(1, POST, end=False))
    assert raw.send(DataFrame(1, b"x" * 5000)) == [RequestBody(1, b"x" * 5000, 5000)]
    raw.send(SettingsFrame(0, flags=["ACK"]), raw.headers(3, POST, end=False))
    assert raw.send(DataFrame(3, b"x" * 1000)) == [RequestBody(3, b"x" * 1000, 1000)]
    if here("stream window") == "stream":
        assert raw.send(DataFrame(3, b"x")) == [StreamReset(3, "more DATA than the stream's window")]
        assert raw.send(DataFrame(1, b"x")) == [StreamReset(1, "more DATA than the stream's window")]
    else:
        assert raw.send(DataFrame(3, b"x"))[-1] == ConnectionClosed("flow_control", ANY)


def test_a_reset_stream_may_not_send_beyond_its_window_either():
    raw = Raw(EngineLimits(stream_window=65535))
    raw.send(raw.headers(1, POST, end=False))
    raw.engine.reset(1, Reset.INTERNAL)
    assert raw.send(*[DataFrame(1, b"x" * 16000) for _ in range(4)]) == []
    errors = [event.error for event in raw.send(DataFrame(1, b"x" * 16000))]
    assert errors == [error for error in [here("window of a dead stream")] if error]


def test_a_reader_that_stalls_blocks_only_its_own_stream():
    peer = Peer()
    for stream in (1, 3):
        peer.client.send_headers(stream, GET, end_stream=True)
    peer.up()
    for stream in (1, 3):
        peer.engine.send_head(stream, 200, [], end=False)
        peer.engine.send_data(stream, b"z" * 200_000, end=True)
    peer.client.increment_flow_control_window(1_000_000)
    peer.client.increment_flow_control_window(1_000_000, 3)
    peer.up()
    peer.pump()
    status, _, body, end = peer.answer(3)
    assert (status, len(body), end) == (b"200", 200_000, "end")
    _, _, body, end = peer.answer(1)
    assert (len(body), end) == (65535, None)
    peer.client.increment_flow_control_window(1_000_000, 1)
    peer.pump()
    _, _, body, end = peer.answer(1)
    assert (len(body), end) == (200_000, "end")


def test_the_connection_window_does_not_keep_an_empty_end_back():
    raw = Raw()
    raw.send(raw.headers(1), raw.headers(3))
    for stream in (1, 3):
        raw.engine.send_head(stream, 200, [], end=False)
    raw.engine.send_data(1, b"x" * 65536, end=True)
    raw.frames()
    raw.engine.send_data(3, b"", end=True)
    now = [("Data", 3, (b"", True))]
    assert raw.frames() == (now if here("empty end") == "now" else [])
    assert raw.send(WindowUpdateFrame(1, window_increment=1), WindowUpdateFrame(0, window_increment=2)) == []
    assert sorted(raw.frames()) == [("Data", 1, (b"x", True)), *(now if here("empty end") == "later" else [])]
    assert raw.engine.streams == 0


def test_a_shut_connection_window_keeps_every_turn_and_opens_for_all():
    raw = Raw()
    raw.send(SettingsFrame(0, settings={4: 1_000_000}), *[raw.headers(stream) for stream in (1, 3, 5)])
    for stream in (1, 3):
        raw.engine.send_head(stream, 200, [], end=False)
        raw.engine.send_data(stream, b"x" * 60_000, end=True)
    assert sum(len(what[0]) for name, _, what in raw.frames() if name == "Data") == 65535
    raw.engine.send_head(5, 200, [], end=False)
    raw.engine.send_data(5, b"", end=True)
    fifth = raw.frames()
    assert fifth[0] == ("Headers", 5, False)
    assert fifth[1:] == ([("Data", 5, (b"", True))] if here("empty end") == "now" else [])
    assert raw.frames() == []
    assert raw.send(WindowUpdateFrame(0, window_increment=100_000)) == []
    ends = [stream for name, stream, what in raw.frames() if name == "Data" and what[1]]
    assert sorted(ends) == ([1, 3] if here("empty end") == "now" else [1, 3, 5])
    assert raw.engine.streams == 0


def test_a_window_that_shrank_below_zero_gives_up_the_turn():
    raw = Raw()
    raw.send(raw.headers(1))
    raw.engine.send_head(1, 200, [], end=False)
    raw.engine.send_data(1, b"x" * 30_000, end=True)
    raw.rest = raw.engine.take_output(9000)
    assert 9000 <= len(raw.rest) < 17_000
    raw.send(SettingsFrame(0, settings={4: 0}))
    first = raw.frames()
    assert [frame for frame in first if frame[0] != "Headers"] in (
        [("Data", 1, (b"x" * 16384, False)), ("Settings", 0, True)],
        [("Data", 1, (b"x" * 8192, False)), ("Settings", 0, True)],
    )
    sent = sum(len(what[0]) for name, _, what in first if name == "Data")
    raw.send(SettingsFrame(0, settings={4: 65535}))
    assert raw.frames() == [("Settings", 0, True), ("Data", 1, (b"x" * (30_000 - sent), True))]


def test_frames_under_way_to_a_cut_stream_are_dropped_and_counted():
    raw = Raw()
    raw.send(raw.headers(1, POST, end=False), raw.headers(3, POST, end=False))
    raw.engine.reset(1, Reset.CANCEL)
    raw.engine.reset(3, Reset.CANCEL)
    raw.frames()
    assert raw.send() == []
    before = raw.engine.control.level
    assert raw.send(DataFrame(1, b""), WindowUpdateFrame(1, window_increment=1), DataFrame(1, b"x", flags=["END_STREAM"])) == []
    assert raw.send(RstStreamFrame(3, error_code=8)) == []
    assert raw.engine.control.level == before - 3
    if Current.name == "h2":
        assert raw.engine.dead == {}
    assert raw.frames() == []


def test_a_larger_initial_window_lets_streams_go_on():
    raw = Raw()
    raw.send(SettingsFrame(0, settings={4: 10}), raw.headers(1))
    raw.engine.respond(1, 200, [], b"0123456789abc")
    assert raw.frames() == [("Settings", 0, True), ("Headers", 1, False), ("Data", 1, (b"0123456789", False))]
    raw.send(SettingsFrame(0, settings={4: 12}))
    assert raw.frames() == [("Settings", 0, True), ("Data", 1, (b"ab", False))]
    raw.send(SettingsFrame(0, settings={4: 0}))
    raw.send(WindowUpdateFrame(1, window_increment=12))
    assert raw.frames() == [("Settings", 0, True)]
    raw.send(WindowUpdateFrame(1, window_increment=1))
    assert raw.frames() == [("Data", 1, (b"c", True))]


def test_a_hundred_streams_get_equal_turns():
    peer = Peer(settings={SettingCodes.INITIAL_WINDOW_SIZE: 1_000_000})
    peer.client.increment_flow_control_window(100_000_000)
    streams = range(1, 201, 2)
    for stream in streams:
        peer.client.send_headers(stream, GET, end_stream=True)
    assert len(peer.up()) == 100
    for stream in streams:
        peer.engine.send_head(stream, 200, [], end=False)
        peer.engine.send_data(stream, b"f" * 300_000, end=True)
    totals = dict.fromkeys(streams, 0)
    for _ in range(70):
        for event in peer.down(100_000):
            if isinstance(event, h2.events.DataReceived):
                totals[event.stream_id] += len(event.data)
        assert max(totals.values()) - min(totals.values()) <= 16384
    assert sum(totals.values()) > 5_000_000


def test_take_output_keeps_near_its_limit():
    raw = Raw()
    raw.send(SettingsFrame(0, settings={4: 10_000_000}), WindowUpdateFrame(0, window_increment=10_000_000), raw.headers(1))
    raw.engine.respond(1, 200, [], b"x" * 1_000_000)
    sizes = []
    while data := raw.engine.take_output(40_000):
        sizes.append(len(data))
    assert max(sizes) < 40_000 + 16384 + 200
    assert sum(sizes) > 1_000_000


def test_drained_is_told_once_after_the_high_water_mark():
    raw = Raw()
    raw.send(SettingsFrame(0, settings={4: 10_000_000}), WindowUpdateFrame(0, window_increment=10_000_000), raw.headers(1))
    raw.engine.send_head(1, 200, [], end=False)
    assert raw.engine.send_data(1, b"x" * HIGH_WATER, end=False) == HIGH_WATER
    assert raw.engine.send_data(1, b"x", end=False) == HIGH_WATER + 1
    raw.engine.take_output(HIGH_WATER - LOW_WATER - 20_000)
    assert raw.engine.take_events() == []
    raw.engine.take_output(1 << 30)
    assert raw.engine.take_events() == [Drained(1)]
    assert raw.engine.take_events() == []


def test_a_stream_that_is_gone_takes_everything_silently():
    raw = Raw()
    raw.send(raw.headers(1, POST, end=False))
    assert raw.send(RstStreamFrame(1, error_code=8)) == [StreamReset(1, "client: cancel")]
    raw.engine.inform(1, 103, [])
    raw.engine.send_head(1, 200, [], end=False)
    assert raw.engine.send_data(1, b"x", end=True) == 0
    raw.engine.send_trailers(1, [])
    raw.engine.respond(1, 200, [], b"x")
    raw.engine.consumed(1, 10)
    raw.engine.reset(1, Reset.CANCEL)
    assert raw.frames() == []


def test_a_reset_drops_what_was_queued():
    raw = Raw()
    raw.send(raw.headers(1))
    raw.engine.send_head(1, 200, [], end=False)
    raw.engine.send_data(1, b"x" * 100_000, end=False)
    raw.engine.reset(1, Reset.INTERNAL)
    first = [("Headers", 1, False)] if here("reset of a queued answer") else []
    assert raw.frames() == [*first, ("RstStream", 1, "INTERNAL_ERROR")]
    assert raw.engine.streams == 0


# Malformed: the stream pays, its neighbours don't.

MALFORMED_HEADS = {
    "pseudo_field: missing": ([(b":method", b"GET"), (b":scheme", b"https"), (b":authority", b"a")], "pseudo_field"),
    "pseudo_field: late": ([*GET[:3], (b"a", b"b"), GET[3]], "pseudo_field"),
    "pseudo_field: unknown": ([*GET, (b":status", b"200")], "pseudo_field"),
    "pseudo_field: twice": ([*GET, (b":path", b"/y")], "pseudo_field"),
    "upper case": ([*GET, (b"X-Upper", b"1")], "field_name"),
    "empty name": ([*GET, (b"", b"1")], "field_name"),
    "line feed": ([*GET, (b"x", b"a\nb")], None),
    "nul": ([*GET, (b"x", b"a\0b")], None),
    "connection": ([*GET, (b"connection", b"close")], "connection_field"),
    "transfer-encoding": ([*GET, (b"transfer-encoding", b"chunked")], "connection_field"),
    "te": ([*GET, (b"te", b"gzip")], "connection_field"),
    "content-length sign": ([*POST, (b"content-length", b"+5")], "content_length"),
    "content-length twice": ([*POST, (b"content-length", b"5"), (b"content-length", b"6")], "content_length"),
    "host differs": ([*GET, (b"host", b"b.example.com")], "authority"),
    "path": ([*GET[:3], (b":path", b"/a/../b")], "path"),
    "no body": ([*POST, (b"content-length", b"5")], "body_length"),
}


@pytest.mark.parametrize("case", MALFORMED_HEADS)
def test_a_malformed_head_resets_its_stream_and_no_other(case):
    fields, reason = MALFORMED_HEADS[case]
    raw = Raw()
    raw.send(raw.headers(1, POST, end=False))
    (event,) = raw.send(raw.headers(3, fields))
    assert (type(event), event.stream, event.status) == (Rejected, 3, 400)
    assert event.reason in {reason or event.reason, here("refused by the library")(reason)}
    assert raw.frames() == [("RstStream", 3, "PROTOCOL_ERROR")]
    assert raw.send(DataFrame(1, b"go on", flags=["END_STREAM"])) == [RequestBody(1, b"go on", 5), RequestEnd(1, [])]
    raw.alive(5)


MALFORMED_RESTS = {
    "body too long": (lambda raw: [DataFrame(3, b"123456")], "body_length"),
    "body too short": (lambda raw: [DataFrame(3, b"12", flags=["END_STREAM"])], "body_length"),
    "body too short before trailers": (lambda raw: [raw.headers(3, [(b"x", b"y")])], "body_length"),
    "trailers with pseudo-field": (lambda raw: [raw.headers(3, [(b":path", b"/")])], None),
    "trailers that route": (lambda raw: [DataFrame(3, b"12345"), raw.headers(3, [(b"host", b"b.example.com")])], "trailers"),
    "trailers without end": (lambda raw: [raw.headers(3, [(b"x", b"y")], end=False)], "trailers"),
    "trailers too large": (lambda raw: [raw.headers(3, [(b"x-%d" % n, b"y" * 20_000) for n in range(2)])], "header_too_large"),
}


@pytest.mark.parametrize("case", MALFORMED_RESTS)
def test_a_malformed_body_or_trailer_resets_its_stream_and_no_other(case):
    make, reason = MALFORMED_RESTS[case]
    raw = Raw()
    raw.send(raw.headers(1, POST, end=False), raw.headers(3, [*POST, (b"content-length", b"5")], end=False))
    frames = make(raw)
    if case == "trailers too large":
        block = frames[0].data
        first = HeadersFrame(3, block[:16000], flags=["END_STREAM"])
        frames = [first, ContinuationFrame(3, block[16000:32000]), ContinuationFrame(3, block[32000:], flags=["END_HEADERS"])]
    *_, rejected, reset = raw.send(*frames)
    assert (type(rejected), rejected.stream) == (Rejected, 3)
    assert rejected.reason in {reason or rejected.reason, here("refused by the library")(reason)}
    assert reset == StreamReset(3, rejected.reason)
    assert raw.frames() == [("RstStream", 3, "PROTOCOL_ERROR")]
    assert raw.engine.streams == 1
    raw.alive(5)


STREAM_FAULTS = {
    "data after the end": (lambda raw: [DataFrame(3, b"x")], "STREAM_CLOSED", "half-closed"),
    "headers after the end": (lambda raw: [raw.headers(3, [(b"x", b"y")])], "STREAM_CLOSED", "half-closed"),
    "window overflow": (lambda raw: [WindowUpdateFrame(3, window_increment=2**31 - 1)], "FLOW_CONTROL_ERROR", "stream window"),
    "window increment 0": (lambda raw: [b"\0\0\4\x08\0\0\0\0\3\0\0\0\0"], "PROTOCOL_ERROR", "half-closed"),
}


@pytest.mark.parametrize("case", STREAM_FAULTS)
def test_a_fault_on_a_stream_costs_the_stream(case):
    make, code, difference = STREAM_FAULTS[case]
    raw = Raw()
    raw.send(raw.headers(1, POST, end=False), raw.headers(3))
    events = raw.send(*make(raw), DataFrame(1, b"next"))
    if here(difference) == "connection":
        assert [type(event) for event in events] == [StreamReset, StreamReset, ConnectionClosed]
        assert raw.frames() == [("GoAway", 0, (3, code))]
        return
    assert [type(event) for event in events] == [StreamReset, RequestBody]
    assert events[0].stream == 3
    assert raw.frames() == [("RstStream", 3, code)]
    raw.alive(5)


def test_a_stream_may_not_depend_on_itself():
    raw = Raw()
    if not here("self-dependency"):
        assert raw.send(raw.headers(1), PriorityFrame(1, depends_on=1)) == [head(1)]
        assert raw.send(raw.headers(3, flags=["PRIORITY"], depends_on=3))[-1] == ConnectionClosed("protocol", ANY)
        return
    raw.send(raw.headers(9))
    assert raw.send(PriorityFrame(9, depends_on=9)) == [StreamReset(9, "stream depends on itself")]
    assert raw.frames() == [("RstStream", 9, "PROTOCOL_ERROR")]
    raw = Raw()
    assert raw.send(raw.headers(1, flags=["PRIORITY"], depends_on=1)) == [Rejected(1, 400, "protocol", "stream depends on itself")]
    assert raw.send(raw.headers(3, flags=["PRIORITY"], depends_on=1)) == [head(3)]


@pytest.mark.parametrize("end", [True, False])
def test_a_header_section_that_is_too_large_is_answered_with_431(end):
    peer = Peer()
    peer.client.send_headers(1, [*GET, *[(b"x-%d" % n, b"v" * 4000) for n in range(10)]], end_stream=end)
    peer.client.send_headers(3, [*GET, (b"x-9", b"v" * 4000)], end_stream=True)  # from the table that the large section left
    assert peer.up() == [Rejected(1, 431, "header_too_large", ANY), head(3, headers=[(b"x-9", b"v" * 4000)])]
    peer.pump()
    assert peer.answer(1) == (b"431", [(b"content-length", b"0")], b"", "end" if end else ("end", "NO_ERROR"))


def test_the_body_of_a_refused_request_is_credited():
    raw = Raw(EngineLimits(connection_window=65535, stream_window=65535))
    raw.send(SettingsFrame(0, flags=["ACK"]))
    body = [DataFrame(1, b"x" * 16000) for _ in range(3)]
    (event,) = raw.send(raw.headers(1, [*POST, (b"expect", b"the unexpected")], end=False), *body)
    assert (type(event), event.status) == (Rejected, 417)
    frames = raw.frames()
    assert ("Headers", 1, True) in frames
    assert ("RstStream", 1, "NO_ERROR") in frames
    assert sum(what for name, stream, what in frames if (name, stream) == ("WindowUpdate", 0)) == 48000
    raw.alive(3)


def test_a_request_that_was_cut_in_the_same_piece_as_it_is_refused_costs_nobody_else():
    raw = Raw()
    (event,) = raw.send(raw.headers(1, [*GET, (b"expect", b"the unexpected")]), RstStreamFrame(1, error_code=8))
    assert (type(event), event.status) == (Rejected, 417)
    raw.alive(3)


def test_too_many_fields_are_answered_with_431():
    peer = Peer()
    peer.client.send_headers(1, [*GET, *[(b"a", b"b")] * 150], end_stream=True)
    (event,) = peer.up()
    assert (type(event), event.status, event.reason) == (Rejected, 431, "too_many_fields")
    peer.pump()
    assert peer.answer(1)[0] == b"431"


@pytest.mark.parametrize("extra", [[], [(b":protocol", b"websocket")]])
def test_connect_is_answered_with_501(extra):
    peer = Peer()
    fields = [(b":method", b"CONNECT"), *extra, *(GET[1:] if extra else [(b":authority", b"a:443")])]
    peer.client.send_headers(1, fields)
    (event,) = peer.up()
    if extra and here(":protocol") == 400:
        assert (type(event), event.status, event.reason) == (Rejected, 400, "protocol")
        return
    assert (type(event), event.status, event.reason) == (Rejected, 501, "not_implemented")
    peer.pump()
    assert peer.answer(1) == (b"501", [(b"content-length", b"0")], b"", ("end", "NO_ERROR"))


def test_streams_over_the_limit_are_refused_and_no_more():
    raw = Raw(EngineLimits(streams=2))
    refused = Rejected(5, 503, "too_many_streams", "more than 2 at once")
    assert raw.send(raw.headers(1), raw.headers(3), raw.headers(5)) == [head(1), head(3), refused]
    assert raw.frames() == [("RstStream", 5, "REFUSED_STREAM")]
    raw.engine.respond(1, 200, [], b"")
    raw.frames()
    raw.alive(7)


# What costs the connection.

FATAL = {
    "not HTTP/2": ([b"GET / HTTP/1.1\r\n\r\n"], "protocol"),
    "no SETTINGS first": ([PREFACE, PingFrame(0)], "protocol"),
    "SETTINGS ack first": ([PREFACE, SettingsFrame(0, flags=["ACK"])], "protocol"),
    "frame too long": ([PREFACE, SETTINGS, b"\0\x40\x01\0\0\0\0\0\1"], "frame_size"),
    "DATA on idle": ([PREFACE, SETTINGS, DataFrame(1, b"x")], "protocol"),
    "DATA on stream 0": ([PREFACE, SETTINGS, b"\0\0\1\0\0\0\0\0\0x"], "protocol"),
    "RST_STREAM on idle": ([PREFACE, SETTINGS, RstStreamFrame(1)], "protocol"),
    "WINDOW_UPDATE on idle": ([PREFACE, SETTINGS, WindowUpdateFrame(1, window_increment=1)], "protocol"),
    "WINDOW_UPDATE 0 on idle": ([PREFACE, SETTINGS, b"\0\0\4\x08\0\0\0\0\1\0\0\0\0"], "protocol"),
    "WINDOW_UPDATE 0": ([PREFACE, SETTINGS, b"\0\0\4\x08\0\0\0\0\0\0\0\0\0"], "protocol"),
    "window overflow": ([PREFACE, SETTINGS, WindowUpdateFrame(0, window_increment=2**31 - 1)], "flow_control"),
    "even stream": ([PREFACE, SETTINGS, HeadersFrame(2, b"\x82", flags=["END_HEADERS"])], "protocol"),
    "CONTINUATION alone": ([PREFACE, SETTINGS, ContinuationFrame(1, b"")], "protocol"),
    "interrupted block": ([PREFACE, SETTINGS, HeadersFrame(1, b"\x82"), PingFrame(0)], "protocol"),
    "PUSH_PROMISE": ([PREFACE, SETTINGS, PushPromiseFrame(1, promised_stream_id=2, flags=["END_HEADERS"])], "protocol"),
    "bad SETTINGS length": ([PREFACE, SETTINGS, b"\0\0\5\4\0\0\0\0\0abcde"], "frame_size"),
    "bad ENABLE_PUSH": ([PREFACE, SettingsFrame(0, settings={2: 2})], "protocol"),
    "bad window": ([PREFACE, SettingsFrame(0, settings={4: 2**31})], "flow_control"),
    "bad frame size": ([PREFACE, SettingsFrame(0, settings={5: 1})], "protocol"),
    "bad padding": ([PREFACE, SETTINGS, b"\0\0\2\1\x0d\0\0\0\1\x09\x82"], "protocol"),
    "HPACK index": ([PREFACE, SETTINGS, HeadersFrame(1, b"\xfe", flags=["END_HEADERS"])], "compression"),
    "HPACK index 0": ([PREFACE, SETTINGS, HeadersFrame(1, b"\x80", flags=["END_HEADERS"])], "compression"),
    "HPACK integer": ([PREFACE, SETTINGS, HeadersFrame(1, b"\xff" * 20, flags=["END_HEADERS"])], "compression"),
    "HPACK truncated": ([PREFACE, SETTINGS, HeadersFrame(1, b"\x40\x0aabc", flags=["END_HEADERS"])], "compression"),
    "HPACK table": ([PREFACE, SETTINGS, HeadersFrame(1, b"\x3f\xe2\x1f", flags=["END_HEADERS"])], "compression"),
    "HPACK Huffman": ([PREFACE, SETTINGS, HeadersFrame(1, b"\x40\x81\xff\x00", flags=["END_HEADERS"])], "compression"),
}


@pytest.mark.parametrize("case", FATAL)
def test_a_fault_of_the_connection_ends_it_with_one_goaway(case):
    frames, error = FATAL[case]
    raw = Raw(started=False)
    engine = raw.engine
    raw.frames()
    (event,) = raw.send(*frames)
    assert (type(event), event.error) == (ConnectionClosed, error)
    assert event.detail
    name, _, (last, code) = raw.frames()[-1]
    expected = {"protocol": "PROTOCOL", "flow_control": "FLOW_CONTROL", "frame_size": "FRAME_SIZE", "compression": "COMPRESSION"}[error]
    assert (name, code) == ("GoAway", expected + "_ERROR")
    assert last == 0 or case in {"even stream", "interrupted block"} or "HPACK" in case
    assert (engine.finished, engine.wants_input, engine.streams) == (True, False, 0)
    assert engine.receive(PREFACE, 0.0) == []
    assert engine.take_output(1 << 20) == b""


def test_the_reserved_bit_of_a_stream_s_number_means_nothing():
    raw = Raw()
    frame = bytearray(raw.headers(1).serialize())
    frame[5] |= 0x80
    assert raw.send(bytes(frame)) == [head(1)]
    raw.engine.close(Reset.NO_ERROR)
    assert raw.frames() == [("GoAway", 0, (1, "NO_ERROR"))]


def test_a_fault_resets_each_live_stream_first_and_keeps_what_came_before_it():
    raw = Raw()
    raw.send(raw.headers(1, POST, end=False))
    assert raw.send(raw.headers(3), DataFrame(9, b"x"), raw.headers(5)) == [
        head(3),
        StreamReset(1, "protocol"),
        StreamReset(3, "protocol"),
        ConnectionClosed("protocol", here("wording")("DATA on idle stream 9")),
    ]
    assert raw.frames() == [("GoAway", 0, (3, "PROTOCOL_ERROR"))]


def test_headers_on_a_closed_stream_become_no_request():
    raw = Raw()
    raw.alive(1)
    if here("closed stream") == "fault":
        assert raw.send(raw.headers(1)) == [ConnectionClosed("stream_closed", "HEADERS on closed stream 1")]
    else:
        assert raw.send(raw.headers(1)) == []
        raw.alive(3)


def test_data_on_a_closed_stream_is_credited_and_answered():
    raw = Raw()
    raw.alive(1)
    assert raw.send(DataFrame(1, b"x")) == []
    assert raw.frames() == ([("RstStream", 1, "STREAM_CLOSED")] if here("closed stream") == "fault" else [])
    raw.alive(3)


class Broken:
    """A library that fails on whatever comes."""

    def __init__(self, library):
        self.library = library

    def __getattr__(self, name):
        return getattr(self.library, name)

    def receive_data(self, data):
        raise RuntimeError("a defect")


def test_a_defect_of_a_library_costs_the_connection_and_nothing_more():
    raw = Raw()
    if Current.name == "h2":  # breaks our own invariant, as a bug would
        raw.engine.wire.remote_settings = None
    else:
        raw.engine.library = Broken(raw.engine.library)
    (event,) = raw.send(raw.headers(1))
    assert (type(event), event.error) == (ConnectionClosed, "internal")
    assert raw.engine.finished


# Abuse.


def calm(raw, *frames):
    """Send until the engine ends the connection; how many sends it took."""
    for count in range(1, 100_000):
        for event in raw.send(*(make() for make in frames)):
            if isinstance(event, ConnectionClosed):
                assert event.error == "enhance_your_calm"
                assert raw.frames()[-1][2][1] == "ENHANCE_YOUR_CALM"
                return count
        raw.frames()
    pytest.fail("never")


def test_rapid_reset_is_cut():
    raw = Raw()
    streams = iter(range(1, 10_000, 2))
    count = 0
    while not raw.engine.finished:
        stream = next(streams)
        raw.send(raw.headers(stream), RstStreamFrame(stream, error_code=8))
        count += 1
    assert count == h2_abuse.RESET_BURST + 1


def test_resets_at_the_pace_of_a_person_are_not():
    raw = Raw()
    for number in range(2000):
        stream = 2 * number + 1
        raw.now = number / 25
        assert raw.send(raw.headers(stream), RstStreamFrame(stream, error_code=8)) == [head(stream), StreamReset(stream, "client: cancel")]


def test_made_you_reset_is_cut_like_rapid_reset():
    raw = Raw()
    count = 0
    for stream in range(1, 10_000, 2):
        raw.send(raw.headers(stream), WindowUpdateFrame(stream, window_increment=2**31 - 1))
        count += 1
        if raw.engine.finished:
            break
    assert count == here("made reset")(h2_abuse.RESET_BURST + 1)


def test_made_you_reset_by_wrong_lengths_is_cut_too():
    raw = Raw()
    streams = iter(range(1, 10_000, 2))

    def short():
        stream = next(streams)
        request = raw.headers(stream, [*POST, (b"content-length", b"5")], end=False)
        return request.serialize() + DataFrame(stream, b"12", flags=["END_STREAM"]).serialize()

    assert calm(raw, short) == h2_abuse.RESET_BURST + 1


def test_malformed_requests_without_end_are_cut():
    raw = Raw()
    streams = iter(range(1, 10_000, 2))
    assert calm(raw, lambda: raw.headers(next(streams), GET[:2])) == h2_abuse.RESET_BURST + 1


FLOODS = {
    "PING": lambda raw: PingFrame(0, b"12345678"),
    "SETTINGS": lambda raw: SettingsFrame(0),
    "unknown SETTINGS": lambda raw: SettingsFrame(0, settings=dict.fromkeys(range(100, 200), 1)),
    "PRIORITY": lambda raw: PriorityFrame(1),
    "PRIORITY on idle": lambda raw: PriorityFrame(7),
    "WINDOW_UPDATE": lambda raw: WindowUpdateFrame(0, window_increment=1),
    "stream WINDOW_UPDATE": lambda raw: WindowUpdateFrame(1, window_increment=1),
    "empty DATA": lambda raw: DataFrame(1, b""),
    "padded empty DATA": lambda raw: DataFrame(1, b"", flags=["PADDED"], pad_length=3),
    "unknown type": lambda raw: b"\0\0\1\x42\0\0\0\0\0x",
    "PRIORITY_UPDATE": lambda raw: b"\0\0\7\x10\0\0\0\0\0\0\0\0\1u=0",
    "RST_STREAM on closed": lambda raw: RstStreamFrame(3),
    "GOAWAY": lambda raw: GoAwayFrame(0),
    "PING ack": lambda raw: PingFrame(0, b"12345678", flags=["ACK"]),
}


@pytest.mark.parametrize("case", FLOODS)
def test_a_flood_is_cut_and_the_same_frames_at_leisure_are_not(case):
    def start():
        raw = Raw()
        raw.send(raw.headers(1, POST, end=False))
        raw.alive(3)
        return raw

    raw = start()
    assert h2_abuse.CONTROL_BURST - 5 < calm(raw, lambda: FLOODS[case](raw)) < h2_abuse.CONTROL_BURST + 30
    raw = start()
    for number in range(3000):
        raw.now = number / (h2_abuse.CONTROL_RATE * 0.9)
        assert raw.send(FLOODS[case](raw)) == []
        raw.engine.take_output(1 << 20)
    raw.alive(5)


def test_window_updates_are_earned_by_data():
    raw = Raw()
    raw.send(SettingsFrame(0, settings={4: 2**31 - 1}), raw.headers(1))
    raw.engine.send_head(1, 200, [], end=False)
    for _ in range(3000):
        raw.engine.send_data(1, b"x" * 16384, end=False)
        raw.engine.take_output(1 << 20)
        assert raw.send(WindowUpdateFrame(0, window_increment=8192), WindowUpdateFrame(0, window_increment=8192)) == []


@pytest.mark.parametrize("size", [0, 100, 16384])
def test_a_flood_of_continuation_is_cut_early(size):
    raw = Raw()
    raw.send(HeadersFrame(1, b"\x82"))
    assert raw.engine.head_in_progress
    assert calm(raw, lambda: ContinuationFrame(1, b"\0" * size)) <= 17


def test_a_bomb_of_references_is_cut():
    raw = Raw()
    frame = raw.headers(1, [*GET, (b"x", b"v" * 3000)])
    raw.send(frame)
    bomb = HeadersFrame(3, b"\xbe" * 16000, flags=["END_HEADERS"])
    assert calm(raw, lambda: bomb) == 1


def test_a_record_full_of_small_bombs_is_not_held_at_once():
    """16 KB that refer to a field of 3,000 bytes 12,000 times."""
    raw = Raw()
    raw.send(raw.headers(1, [*GET, (b"x", b"v" * 3000)]))
    block = raw.encoder.encode(GET) + b"\xbe" * 30
    record = b"".join(HeadersFrame(stream, block, flags=["END_HEADERS", "END_STREAM"]).serialize() for stream in range(3, 800, 2))
    tracemalloc.start()
    raw.send(record)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20


def test_a_client_that_does_not_read_is_cut():
    raw = Raw()
    raw.now = 0.0
    sent = 0
    while not raw.engine.finished:
        raw.now += 1.0
        raw.send(*[PingFrame(0, b"12345678")] * 100)
        sent += 100
    assert sent * 17 < h2_core.CONTROL_BACKLOG + 100 * h2_core.HEAD_BACKLOG + 2000
    assert raw.frames() == [("GoAway", 0, (0, "ENHANCE_YOUR_CALM"))]


def test_a_client_that_does_not_read_its_refusals_is_cut():
    raw = Raw()
    fields = [*GET, (b"expect", b"the unexpected")]
    for stream in range(1, 2**18, 2):
        raw.now += 0.1
        raw.send(raw.headers(stream, fields))
        if raw.engine.finished:
            break
    assert raw.engine.finished
    assert len(raw.engine.take_output(1 << 30)) < h2_core.CONTROL_BACKLOG + 100 * h2_core.HEAD_BACKLOG + 2000


def test_the_client_can_not_make_our_table_grow():
    raw = Raw()
    raw.send(SettingsFrame(0, settings={1: 2**32 - 1}))
    fields = [(b"x-%d" % number, b"%d" % number * 10) for number in range(300)]
    sizes = []
    for stream in (1, 3):
        raw.send(raw.headers(stream))
        raw.engine.respond(stream, 200, fields, b"")
        sizes.append(len(raw.engine.take_output(1 << 20)))
    assert sizes[1] > sizes[0] * 0.6  # 4 KiB hold no more than a fifth of these fields


def test_closed_streams_leave_nothing_behind():
    raw = Raw()
    for stream in range(1, 2001, 2):
        raw.send(raw.headers(stream, POST, end=False))
        raw.engine.respond(stream, 200, [], b"")
        raw.frames()
    assert raw.engine.streams == 0
    if Current.name == "h2":
        assert len(raw.engine.dead) == h2_core.RESETS_REMEMBERED
        assert raw.engine.wire.streams == {}
        assert len(raw.engine.wire._closed_streams) == 0
    else:
        kept = (raw.engine.dying, raw.engine.early, raw.engine.high, raw.engine.unconsumed)
        assert not any(kept)


# The end.


def test_goaway_lets_present_requests_finish_and_refuses_later_ones():
    peer = Peer()
    peer.client.send_headers(1, GET, end_stream=True)
    peer.up()
    peer.engine.goaway()
    raw = peer.engine.take_output(1 << 20)
    assert raw == b"\0\0\x08\x07\0\0\0\0\0\x7f\xff\xff\xff\0\0\0\0" + b"\0\0\x08\x06\0\0\0\0\0qp-drain"
    late = HeadersFrame(3, peer.client.encoder.encode(GET), flags=["END_STREAM", "END_HEADERS"]).serialize()
    assert peer.engine.receive(late, 0.0) == [head(3)]  # sent before the client knew
    assert peer.engine.receive(PingFrame(0, b"qp-drain", flags=["ACK"]).serialize(), 0.0) == []
    assert peer.engine.take_output(1 << 20) == b"\0\0\x08\x07\0\0\0\0\0\0\0\0\3\0\0\0\0"
    later = HeadersFrame(5, peer.client.encoder.encode(GET), flags=["END_STREAM", "END_HEADERS"]).serialize()
    assert peer.engine.receive(later, 0.0) == []
    assert peer.engine.take_output(1 << 20) == here("refused after GOAWAY")
    assert not peer.engine.finished
    peer.engine.respond(1, 200, [], b"one")
    assert not peer.engine.finished
    peer.engine.respond(3, 200, [], b"x" * 20_000)
    assert not peer.engine.finished
    peer.engine.take_output(1 << 20)
    assert peer.engine.finished


def test_a_second_call_of_goaway_does_not_wait_for_the_client():
    raw = Raw()
    raw.alive(1)
    raw.engine.goaway()
    assert not raw.engine.finished
    assert raw.frames() == [("GoAway", 0, (2**31 - 1, "NO_ERROR")), ("Ping", 0, (b"qp-drain", False))]
    raw.engine.goaway()
    raw.engine.goaway()
    assert raw.engine.finished
    assert raw.frames() == [("GoAway", 0, (1, "NO_ERROR"))]


def test_a_client_that_ignores_the_first_goaway_gets_the_second_after_so_many_requests():
    raw = Raw(EngineLimits(streams=3))
    raw.engine.goaway()
    for stream in (1, 3, 5):
        raw.send(raw.headers(stream))
        raw.engine.respond(stream, 200, [], b"")
    assert ("GoAway", 0, (5, "NO_ERROR")) in raw.frames()
    assert raw.engine.finished


def test_a_goaway_from_the_client_lets_its_streams_finish():
    raw = Raw()
    raw.send(raw.headers(1), GoAwayFrame(0, last_stream_id=0))
    assert not raw.engine.finished
    raw.engine.respond(1, 200, [], b"still here")
    assert raw.frames() == [("Headers", 1, False), ("Data", 1, (b"still here", True))]
    assert raw.engine.finished


def test_close_says_why():
    raw = Raw()
    raw.send(raw.headers(1))
    raw.engine.close(Reset.EXCESSIVE_LOAD)
    assert raw.frames() == [("GoAway", 0, (1, "ENHANCE_YOUR_CALM"))]
    assert raw.engine.finished
    assert raw.engine.streams == 0


def test_a_silent_client_is_told_goodbye():
    raw = Raw()
    raw.alive(1)
    raw.send(raw.headers(3), raw.headers(5).serialize()[:9])
    raw.engine.time_out()
    raw.engine.time_out()
    assert raw.engine.take_events() == [StreamReset(3, "client: silent for too long")]
    assert raw.frames() == [("GoAway", 0, (3, "NO_ERROR"))]
    assert (raw.engine.finished, raw.engine.streams, raw.engine.head_in_progress) == (True, 0, False)


def test_the_end_of_input_resets_what_is_open():
    raw = Raw()
    raw.send(raw.headers(1), raw.headers(3, POST, end=False))
    reason = "client: closed the connection"
    assert raw.engine.receive_eof(1.0) == [StreamReset(1, reason), StreamReset(3, reason)]
    assert raw.engine.receive_eof(1.0) == []
    assert raw.engine.finished


def test_head_in_progress_follows_preface_and_blocks():
    engine = made(LIMITS)
    assert engine.head_in_progress
    engine.receive(PREFACE, 0.0)
    assert engine.head_in_progress
    engine.receive(SETTINGS, 0.0)
    assert not engine.head_in_progress
    block = HeadersFrame(1, h2.connection.Encoder().encode(GET), flags=["END_STREAM", "END_HEADERS"]).serialize()
    engine.receive(block[:5], 0.0)
    assert engine.head_in_progress
    assert engine.receive(block[5:], 0.0) == [head(1)]
    assert not engine.head_in_progress
    assert engine.wants_input
    assert engine.version == "HTTP/2"
