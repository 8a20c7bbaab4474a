"""HTTP/3 over a transport that only records: requests, responses, and every way to get them wrong."""

import pytest

from proxy.engine import h3_frames as f
from proxy.engine.events import Drained, Rejected, RequestBody, RequestEnd, RequestHead, StreamReset
from proxy.engine.grammar import REASONS
from proxy.engine.seam import HIGH_WATER, LOW_WATER, EngineLimits
from proxy.errors import Reset
from tests.sim.wire import GET, POST, Dialogue, data, head

SETTINGS = b"\0" + f.pack_settings([(0x1, 4096), (0x7, 16)])


def begin(d: Dialogue, fields=GET, *, end: bool = True, stream: int = 0) -> RequestHead:
    events = d.data(stream, head(fields), end=end)
    assert isinstance(events[0], RequestHead)
    return events[0]


def test_a_request_and_its_answer() -> None:
    d = Dialogue()
    assert d.data(0, head([*GET, (b"x-a", b"1")]), end=True) == [
        RequestHead(0, b"GET", b"https", b"a.example", b"/", [(b"x-a", b"1")], end=True)
    ]
    d.h3.respond(0, 200, [(b"x-b", b"2")], b"hello")
    assert d.frames(0) == [(1, [(b":status", b"200"), (b"x-b", b"2"), (b"content-length", b"5")]), (0, b"hello")]
    assert d.wire.ended == [0]
    assert d.h3.streams == 0
    assert d.wire.cuts == d.wire.abandoned == []


def test_settings_are_the_first_thing_sent() -> None:
    d = Dialogue(EngineLimits(header_bytes=5000))
    assert bytes(d.wire.sent[3]) == b"\0" + f.pack_settings([(6, 5000)])


def test_bodies_and_trailers_both_ways() -> None:
    d = Dialogue()
    begin(d, [*POST, (b"content-length", b"6")], end=False)
    assert d.data(0, data(b"abc") + data(b"def")) == [RequestBody(0, b"abc", 3), RequestBody(0, b"def", 3)]
    assert d.data(0, head([(b"x-sum", b"1")])) == []
    assert d.data(0, b"", end=True) == [RequestEnd(0, [(b"x-sum", b"1")])]
    d.h3.send_head(0, 200, [], end=False)
    assert d.h3.send_data(0, b"xyz", end=False) > 0
    d.h3.send_trailers(0, [(b"x-end", b"2")])
    assert d.frames(0) == [(1, [(b":status", b"200")]), (0, b"xyz"), (1, [(b"x-end", b"2")])]
    assert d.wire.ended == [0]
    assert d.h3.streams == 0


def test_credit_is_given_for_heads_at_once_and_for_bodies_when_consumed() -> None:
    d = Dialogue()
    start = head(POST)
    d.data(0, start + data(b"abc"))
    assert d.wire.credits == {0: len(start) + 2}
    d.h3.consumed(0, 3)
    assert d.wire.credits == {0: len(start) + 5}


def test_interim_responses() -> None:
    d = Dialogue()
    request = begin(d, [*POST, (b"expect", b"100-continue")], end=False)
    assert request.expect_continue
    d.h3.inform(0, 100, [])
    d.h3.inform(0, 103, [(b"link", b"</a>")])
    d.h3.send_head(0, 204, [], end=True)
    d.h3.inform(0, 103, [])
    assert [fields[0][1] for _, fields in d.frames(0)] == [b"100", b"103", b"204"]


@pytest.mark.parametrize(("method", "status"), [(b"HEAD", 200), (b"GET", 204), (b"GET", 304)])
def test_answers_that_have_no_body_get_no_data(method: bytes, status: int) -> None:
    for way in ("respond", "send"):
        d = Dialogue()
        begin(d, [(b":method", method), *GET[1:]])
        if way == "respond":
            d.h3.respond(0, status, [], b"body")
        else:
            d.h3.send_head(0, status, [], end=False)
            assert d.h3.send_data(0, b"body", end=False) <= 20
            d.h3.send_trailers(0, [(b"a", b"b")])
        assert [kind for kind, _ in d.frames(0)] == [1]
        assert d.wire.ended == [0]
        length = dict(d.frames(0)[0][1]).get(b"content-length")
        assert length == (b"4" if way == "respond" and method == b"HEAD" else None)


MALFORMED = {
    "no path": [GET[0], GET[1], GET[2]],
    "upper case": [*GET, (b"X-A", b"1")],
    "transfer-encoding": [*GET, (b"transfer-encoding", b"chunked")],
    "connection": [*GET, (b"connection", b"close")],
    "host against authority": [*GET, (b"host", b"evil")],
    "content-length +5": [*POST, (b"content-length", b"+5")],
    "content-length twice": [*POST, (b"content-length", b"5"), (b"content-length", b"6")],
    "control in path": [*GET[:3], (b":path", b"/a\x01")],
    "name that is no token": [*GET, (b"a(b)", b"1")],
    "pseudo after regular": [(b"a", b"b"), *GET],
    "status in a request": [*GET, (b":status", b"200")],
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_request_costs_its_stream_and_no_other(name: str) -> None:
    d = Dialogue()
    begin(d, POST, end=False, stream=0)
    events = d.data(4, head(MALFORMED[name]), end=False)
    assert [(type(event), event.stream, event.status) for event in events] == [(Rejected, 4, 400)]
    assert events[0].reason in REASONS
    assert d.wire.cuts == [(4, f.MESSAGE_ERROR)]
    assert d.wire.abandoned == [(4, f.MESSAGE_ERROR)]
    assert d.wire.closed is None
    assert d.wire.resets == 1
    assert d.data(0, data(b"x")) == [RequestBody(0, b"x", 1)]
    assert d.h3.streams == 1
    assert d.h3.send_data(4, b"late", end=True) == 0


@pytest.mark.parametrize("way", ["bytes", "count", "announced"])
def test_an_oversize_head_gets_a_real_431(way: str) -> None:
    d = Dialogue(EngineLimits(header_bytes=2000, header_count=20))
    match way:
        case "bytes":
            block = head([*GET, *[(b"x-%d" % n, b"&" * 100) for n in range(15)]])
        case "count":
            block = head([*GET, *[(b"x", b"y")] * 21])
        case _:
            block = b"\x01" + f.pack_int(2001)
    events = d.data(0, block)
    assert [(type(event), event.status) for event in events] == [(Rejected, 431)]
    assert d.frames(0) == [(1, [(b":status", b"431"), (b"content-length", b"0")])]
    assert d.wire.ended == [0]
    assert d.wire.abandoned == [(0, f.NO_ERROR)]
    assert d.wire.cuts == []
    assert d.h3.streams == 0


def test_a_qpack_bomb_is_not_decoded() -> None:
    """20 KB of references to one long static entry would be 1.5 MB of fields: they are counted first, and refused."""
    limits = EngineLimits()
    block = b"\0\0" + b"\xff\x16" * 10_000  # static index 85: content-security-policy
    assert f.count_fields(block, limits.header_count) == limits.header_count + 1
    d = Dialogue(limits)
    events = d.data(0, b"\x01" + f.pack_int(len(block)) + block)
    assert [(type(event), event.status) for event in events] == [(Rejected, 431)]


@pytest.mark.parametrize(
    "block", [b"\x02\0\x80", b"\0\0\xff", b"\0\0\x10", b"", b"\0"], ids=["dynamic", "cut", "post-base", "empty", "half"]
)
def test_sections_that_can_t_be_decoded_or_use_a_dynamic_table_end_the_connection(block: bytes) -> None:
    d = Dialogue()
    assert d.data(0, f.pack_frame(1, block), end=True) == []
    assert d.wire.closed[0] == f.QPACK_DECOMPRESSION_FAILED
    assert begin(Dialogue())  # the shared decoder is as good as new


def test_count_agrees_with_the_decoder() -> None:
    fields = [*GET, (b"user-agent", b"x" * 300), (b"cookie", b"a=b"), (b"x-new", b"\xff" * 90), (b"accept", b"*/*"), (b"x" * 40, b"")] * 9
    block = head(fields)[3:]
    assert f.count_fields(block, 1000) == len(fields)
    assert f.count_fields(block, 10) == 11


@pytest.mark.parametrize(
    ("fields", "rest"),
    [
        ([*POST, (b"content-length", b"5")], data(b"abcdef")),
        ([*POST, (b"content-length", b"5")], data(b"abc")),
        (POST, head([(b":path", b"/x")])),
        (POST, head([(b"content-length", b"1")])),
    ],
    ids=["more", "less", "pseudo-field in trailers", "framing in trailers"],
)
def test_a_body_or_trailers_that_turn_out_malformed(fields, rest: bytes) -> None:
    d = Dialogue()
    begin(d, fields, end=False)
    events = [event for event in d.data(0, rest, end=True) if not isinstance(event, RequestBody)]
    assert [type(event) for event in events] == [Rejected, StreamReset]
    assert d.wire.cuts == [(0, f.MESSAGE_ERROR)]
    assert d.h3.streams == 0


def test_content_length_without_any_body() -> None:
    d = Dialogue()
    assert [type(event) for event in d.data(0, head([*POST, (b"content-length", b"5")]), end=True)] == [Rejected]


BAD_FRAMES = {
    "DATA first": (data(b"x"), f.FRAME_UNEXPECTED),
    "SETTINGS": (f.pack_settings([]), f.FRAME_UNEXPECTED),
    "PUSH_PROMISE": (f.pack_frame(5, b"\0"), f.FRAME_UNEXPECTED),
    "GOAWAY": (f.pack_frame(7, b"\0"), f.FRAME_UNEXPECTED),
    "of HTTP/2": (f.pack_frame(8, b"\0"), f.FRAME_UNEXPECTED),
    "DATA after trailers": (head(POST) + data(b"x") + head([(b"a", b"b")]) + data(b"x"), f.FRAME_UNEXPECTED),
    "HEADERS after trailers": (head(POST) + head([(b"a", b"b")]) * 2, f.FRAME_UNEXPECTED),
}


@pytest.mark.parametrize("name", BAD_FRAMES)
def test_frames_out_of_place_end_the_connection(name: str) -> None:
    d = Dialogue()
    frames, code = BAD_FRAMES[name]
    d.data(0, frames)
    assert d.wire.closed[0] == code


@pytest.mark.parametrize("frames", [head(GET)[:-1], head(POST) + b"\0\x05abc", b"\x01"])
def test_a_stream_that_ends_within_a_frame_ends_the_connection(frames: bytes) -> None:
    d = Dialogue()
    d.data(0, frames, end=True)
    assert d.wire.closed[0] == f.FRAME_ERROR


def test_unknown_frames_are_skipped_and_counted() -> None:
    d = Dialogue(budget=5)
    grease = f.pack_int(0x21) + f.pack_int(3) + b"abc"
    events = d.data(0, grease + head(POST) + grease + data(b"x") + grease, end=True)
    assert [type(event) for event in events] == [RequestHead, RequestBody, RequestEnd]
    d.data(4, grease * 10)
    assert d.wire.closed == (0x107, "budget")


def test_empty_data_frames_are_counted() -> None:
    d = Dialogue(budget=5)
    d.data(0, head(POST) + b"\0\0" * 10)
    assert d.wire.closed == (0x107, "budget")


def test_a_request_that_ends_before_its_head_is_reset() -> None:
    d = Dialogue()
    assert d.data(0, b"", end=True) == []
    assert d.wire.cuts == [(0, f.REQUEST_INCOMPLETE)]
    assert d.reset(4) == []
    assert d.wire.cuts[1:] == [(4, f.REQUEST_CANCELLED)]
    assert d.h3.streams == 0


def test_the_client_cancels() -> None:
    d = Dialogue()
    begin(d, POST, end=False)
    assert [type(event) for event in d.reset(0)] == [StreamReset]
    assert d.wire.cuts == [(0, f.REQUEST_CANCELLED)]
    begin(d, POST, end=False, stream=4)
    assert d.stop(4) == [StreamReset(4, "stopped by the client (request_cancelled)")]
    assert d.wire.abandoned == [(4, f.REQUEST_CANCELLED)]
    begin(d, stream=8)
    assert d.reset(8) == []  # its request was complete: the answer still goes out
    d.h3.respond(8, 200, [], b"x")
    assert d.wire.ended == [8]
    assert d.h3.streams == 0


def test_an_answer_before_the_request_ended_asks_for_no_more() -> None:
    d = Dialogue()
    begin(d, POST, end=False)
    d.h3.respond(0, 200, [], b"enough")
    assert d.wire.ended == [0]
    assert d.wire.abandoned == [(0, f.NO_ERROR)]
    assert d.h3.streams == 0


@pytest.mark.parametrize("reason", list(Reset))
def test_resets_have_their_codes(reason: Reset) -> None:
    codes = {"no_error": 0x100, "cancel": 0x10C, "refused": 0x10B, "internal": 0x102, "protocol": 0x10E, "excessive_load": 0x107}
    d = Dialogue()
    begin(d, POST, end=False)
    d.h3.reset(0, reason)
    assert d.wire.cuts == [(0, codes[reason.value])]
    assert d.wire.abandoned == [(0, codes[reason.value])]
    d.h3.close(reason)
    assert d.wire.closed[0] == codes[reason.value]


def test_goaway_names_the_first_request_that_is_refused() -> None:
    d = Dialogue()
    d.h3.goaway()
    assert bytes(d.wire.sent[3]).endswith(f.pack_frame(7, bytes.fromhex("fffffffffffffffc")))
    begin(d, POST, end=False, stream=4)  # what is on its way is taken
    assert not d.h3.draining
    d.h3.goaway()
    d.h3.goaway()
    assert bytes(d.wire.sent[3]).endswith(f.pack_frame(7, b"\x08"))
    assert bytes(d.wire.sent[3]).count(b"\x07\x01\x08") == 1
    assert d.data(8, head(), end=True) == []
    assert d.wire.cuts == [(8, f.REQUEST_REJECTED)]
    begin(d, stream=0)  # it was on its way when GOAWAY left
    assert d.h3.draining


def test_back_pressure() -> None:
    d = Dialogue()
    begin(d)
    d.h3.send_head(0, 200, [], end=False)
    queued = 0
    while queued <= HIGH_WATER:
        queued = d.h3.send_data(0, bytes(50_000), end=False)
    assert d.wire.unsent(0) < 64 * 1024 + 50_010  # the rest waits above the transport
    assert not d.h3.feed()
    assert d.h3.events == []
    d.wire.stuck[0] = 0
    while d.h3.feed():
        assert d.h3.events == []
        d.wire.stuck[0] = 0
    assert d.h3.events == [Drained(0)]
    assert d.h3.send_data(0, b"x", end=True) < LOW_WATER
    assert d.wire.ended == [0]
    body = b"".join(payload for kind, payload in d.frames(0) if kind == 0)
    assert len(body) == queued // 50_000 * 50_000 + 1


def test_an_end_behind_waiting_bytes_comes_last() -> None:
    d = Dialogue()
    begin(d)
    d.h3.respond(0, 200, [], bytes(300_000))
    assert d.wire.ended == []
    assert d.h3.streams == 1
    while not d.wire.ended:
        d.wire.stuck[0] = 0
        d.h3.feed()
    assert d.h3.streams == 0
    assert sum(len(payload) for kind, payload in d.frames(0) if kind == 0) == 300_000
    assert d.h3.events == []


CRITICAL = {
    "control closed": (lambda d: d.data(2, SETTINGS, end=True), f.CLOSED_CRITICAL_STREAM),
    "control reset": (lambda d: (d.data(2, SETTINGS), d.reset(2)), f.CLOSED_CRITICAL_STREAM),
    "our control stopped": (lambda d: d.stop(3), f.CLOSED_CRITICAL_STREAM),
    "encoder closed": (lambda d: d.data(2, b"\x02", end=True), f.CLOSED_CRITICAL_STREAM),
    "second control": (lambda d: (d.data(2, SETTINGS), d.data(6, SETTINGS)), f.STREAM_CREATION_ERROR),
    "push": (lambda d: d.data(2, b"\x01"), f.STREAM_CREATION_ERROR),
    "no settings": (lambda d: d.data(2, b"\0" + f.pack_frame(7, b"\0")), f.MISSING_SETTINGS),
    "settings twice": (lambda d: d.data(2, SETTINGS + f.pack_settings([])), f.FRAME_UNEXPECTED),
    "setting twice": (lambda d: d.data(2, b"\0" + f.pack_settings([(1, 1), (1, 1)])), f.SETTINGS_ERROR),
    "setting of HTTP/2": (lambda d: d.data(2, b"\0" + f.pack_settings([(2, 1)])), f.SETTINGS_ERROR),
    "settings cut": (lambda d: d.data(2, b"\0" + f.pack_frame(4, b"\x01")), f.FRAME_ERROR),
    "huge settings": (lambda d: d.data(2, b"\0\x04" + f.pack_int(1 << 30)), f.EXCESSIVE_LOAD),
    "DATA on control": (lambda d: d.data(2, SETTINGS + data(b"x")), f.FRAME_UNEXPECTED),
    "cancel push": (lambda d: d.data(2, SETTINGS + f.pack_frame(3, b"\0")), f.ID_ERROR),
    "push id down": (lambda d: d.data(2, SETTINGS + f.pack_frame(13, b"\5") + f.pack_frame(13, b"\4")), f.ID_ERROR),
    "goaway up": (lambda d: d.data(2, SETTINGS + f.pack_frame(7, b"\4") + f.pack_frame(7, b"\5")), f.ID_ERROR),
    "goaway malformed": (lambda d: d.data(2, SETTINGS + f.pack_frame(7, b"\4\4")), f.FRAME_ERROR),
    "qpack insert": (lambda d: d.data(2, b"\x02\xc0\x01x"), f.QPACK_ENCODER_STREAM_ERROR),
    "qpack capacity": (lambda d: d.data(2, b"\x02\x3f\xe1\x1f"), f.QPACK_ENCODER_STREAM_ERROR),
    "qpack acknowledgement": (lambda d: d.data(2, b"\x03\x80"), f.QPACK_DECODER_STREAM_ERROR),
    "qpack long integer": (lambda d: d.data(2, b"\x03\x7f" + b"\xff" * 20), f.QPACK_DECODER_STREAM_ERROR),
}


@pytest.mark.parametrize("name", CRITICAL)
def test_faults_on_unidirectional_streams(name: str) -> None:
    act, code = CRITICAL[name]
    d = Dialogue()
    act(d)
    assert d.wire.closed is not None
    assert d.wire.closed[0] == code


def test_good_unidirectional_streams() -> None:
    d = Dialogue()
    for octet in SETTINGS + f.pack_frame(13, b"\4") + f.pack_int(0xF0700) + f.pack_frame(2, b"\0u=1")[1:] + f.pack_frame(7, b"\4"):
        d.data(2, bytes([octet]))
    d.data(6, b"\x02\x20")
    d.data(10, b"\x03\x44\x7f\x80\x01")
    d.data(14, b"\x40\x54anything", end=True)
    assert d.wire.closed is None
    assert d.wire.abandoned == [(14, f.STREAM_CREATION_ERROR)]
    assert set(d.wire.credits) == {2, 6, 10, 14}


@pytest.mark.parametrize("stream", [b"\x03" + b"\x44" * 100, b"\0" + f.pack_settings([]) + (b"\x21\x01x") * 100])
def test_floods_on_unidirectional_streams_are_cut(stream: bytes) -> None:
    d = Dialogue(budget=20)
    d.data(2, stream)
    assert d.wire.closed == (0x107, "budget")


def test_unknown_stream_types_are_counted() -> None:
    d = Dialogue(budget=20)
    for number in range(2, 200, 4):
        d.data(number, b"\x21")
    assert d.wire.closed == (0x107, "budget")


@pytest.mark.parametrize("value", [0, 63, 64, 16383, 16384, 2**30 - 1, 2**30, 2**62 - 1])
def test_integers(value: int) -> None:
    packed = f.pack_int(value)
    assert f.unpack_int(packed + b"x", 0, len(packed)) == (value, len(packed))
    assert f.unpack_int(packed, 0, len(packed) - 1)[0] == -1


def test_codes_have_names() -> None:
    assert f.CODE_NAMES[0x107] == "excessive_load"
    assert len(f.CODE_NAMES) == 18


def test_an_empty_field_name_costs_its_stream_though_the_library_can_t_read_it() -> None:
    d = Dialogue()
    events = d.data(0, f.pack_frame(f.HEADERS, b"\0\0\xd1\xd7\xc1\x20\x011"), end=True)
    assert events == [Rejected(0, 400, "field_name", "empty")]
    assert d.wire.cuts == [(0, f.MESSAGE_ERROR)]
    begin(d, stream=4)
