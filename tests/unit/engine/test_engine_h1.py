"""HTTP/1.1 to clients as a dialogue: bytes in, events and bytes out."""

import pytest

from proxy.engine.events import Drained, Rejected, RequestBody, RequestEnd, RequestHead, StreamReset
from proxy.engine.h1 import HELD_BYTES, H1Connection
from proxy.engine.h1_wire import CHUNK_LINE_BYTES, CHUNK_WASTE_BYTES, encode_fields
from proxy.engine.seam import HIGH_WATER, LOW_WATER, Connection, EngineLimits
from proxy.errors import Reset
from proxy.message import get
from tests.unit.engine.quiet import keeps_quiet

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: a\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
ALL = 1 << 30


def head(stream=1, method=b"GET", path=b"/", headers=(), end=True, **more):
    return RequestHead(stream, method, b"https", b"a", path, list(headers), end, **more)


class Dialogue:
    """An engine and what was said to it and by it."""

    def __init__(self, limits=None):
        self.engine: Connection = H1Connection(limits or EngineLimits())

    def says(self, data):
        events = self.engine.receive(data, 0.0)
        keeps_quiet(self.engine)
        return events

    def eof(self):
        events = self.engine.receive_eof(0.0)
        assert not keeps_quiet(self.engine)
        return events

    def hears(self, limit=ALL):
        output = b""
        while piece := self.engine.take_output(limit):
            output += piece
            keeps_quiet(self.engine)
        return output

    def state(self):
        engine = self.engine
        return {"wants": engine.wants_input, "finished": engine.finished, "streams": engine.streams, "head": engine.head_in_progress}


IDLE = {"wants": True, "finished": False, "streams": 0, "head": False}
SERVING = {"wants": True, "finished": False, "streams": 1, "head": False}
FINISHED = {"wants": False, "finished": True, "streams": 0, "head": False}


@pytest.fixture
def talk():
    return Dialogue()


def split_answer(data):
    """Status line, fields and body of one answer."""
    top, _, body = data.partition(b"\r\n\r\n")
    line, *fields = top.split(b"\r\n")
    return line, [tuple(field.split(b": ", 1)) for field in fields], body


# Requests that are served


def test_an_engine_is_quiet_when_it_waits_for_others(talk):
    assert keeps_quiet(talk.engine)
    assert talk.says(GET[:20]) == []
    assert not talk.engine.quiet
    assert talk.says(GET[20:]) == [head()]
    assert keeps_quiet(talk.engine)
    talk.engine.respond(1, 200, [], b"hello")
    assert not talk.engine.quiet
    talk.hears()
    assert keeps_quiet(talk.engine)


def test_requests_one_after_the_other(talk):
    assert talk.state() == IDLE
    assert talk.says(GET) == [head()]
    assert talk.state() == SERVING
    talk.engine.respond(1, 200, [(b"x-a", b"1")], b"hello")
    assert talk.hears() == b"HTTP/1.1 200 OK\r\nx-a: 1\r\ncontent-length: 5\r\n\r\nhello"
    assert talk.state() == IDLE
    request = b"PUT /b?c HTTP/1.1\r\nHOST: a\r\nContent-Length:  3\t\r\nX-Y:  z \r\n\r\nabc"
    assert talk.says(request) == [
        head(2, b"PUT", b"/b?c", [(b"content-length", b"3"), (b"x-y", b"z")], end=False, content_length=3),
        RequestBody(2, b"abc", 3),
        RequestEnd(2, []),
    ]
    talk.engine.respond(2, 404, [], b"")
    assert talk.hears() == b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n"
    assert talk.state() == IDLE


def test_a_head_in_pieces_is_in_progress(talk):
    assert talk.says(GET[:20]) == []
    assert talk.state() == {**IDLE, "head": True}
    assert talk.says(GET[20:]) == [head()]


def test_content_length_zero_is_no_body(talk):
    headers = [(b"content-length", b"0")]
    assert talk.says(POST + b"Content-Length: 0\r\nExpect: 100-continue\r\n\r\n") == [
        head(method=b"POST", headers=headers, content_length=0, expect_continue=False)
    ]


def test_chunked_body_with_extensions_and_trailers(talk):
    data = CHUNKED + b'5;a="b"\r\nhello\r\n06\r\n world\r\n0;x\r\nX-Sum: 1 \r\nSet-Cookie: a=1\r\n\r\n'
    assert talk.says(data) == [
        head(method=b"POST", end=False),
        RequestBody(1, b"hello world", 11),
        RequestEnd(1, [(b"x-sum", b"1")]),
    ]
    assert talk.state() == {**SERVING}


def test_one_empty_line_before_a_request_is_passed_over(talk):
    assert talk.says(b"\r\n" + GET) == [head()]
    talk.engine.respond(1, 200, [], b"")
    assert talk.says(b"\r\n") == []
    assert talk.state() == IDLE
    assert talk.says(GET) == [head(2)]


def test_pipelined_requests_wait_for_their_turn(talk):
    assert talk.says(GET + POST + b"Content-Length: 2\r\n\r\nhiGET /3 HT") == [head()]
    assert talk.state() == {**SERVING, "wants": False}
    talk.engine.respond(1, 200, [], b"one")
    assert talk.engine.take_events() == [
        head(2, b"POST", headers=[(b"content-length", b"2")], end=False, content_length=2),
        RequestBody(2, b"hi", 2),
        RequestEnd(2, []),
    ]
    assert talk.engine.take_events() == []
    talk.engine.send_head(2, 200, [(b"content-length", b"3")], end=False)
    talk.engine.send_data(2, b"two", end=True)
    assert talk.state() == {**IDLE, "head": True}
    assert talk.says(b"TP/1.1\r\nHost: a\r\n\r\n") == [head(3, path=b"/3")]
    assert talk.hears() == b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\noneHTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\ntwo"


def test_events_of_a_turn_come_before_those_of_new_bytes(talk):
    talk.says(GET + POST + b"Content-Length: 4\r\n\r\nab")
    talk.engine.respond(1, 200, [], b"")
    second = head(2, b"POST", headers=[(b"content-length", b"4")], end=False, content_length=4)
    assert talk.says(b"cd") == [second, RequestBody(2, b"ab", 2), RequestBody(2, b"cd", 2), RequestEnd(2, [])]


def test_pipelining_stops_while_answers_are_not_taken(talk):
    talk.says(GET * 3)
    talk.engine.respond(1, 200, [], b"x" * (LOW_WATER + 1))
    assert talk.engine.take_events() == []
    assert talk.state() == {**IDLE, "wants": False}
    while talk.engine.take_output(16384) and not (events := talk.engine.take_events()):
        pass
    assert events == [head(2)]


def test_an_unheeding_listener_does_not_grow_the_held_bytes(talk):
    talk.says(GET)
    for _ in range(3):
        assert talk.says(GET * (HELD_BYTES // len(GET) // 2)) == []
    talk.engine.respond(1, 200, [], b"")
    assert split_answer(talk.hears())[1] == [(b"content-length", b"0"), (b"connection", b"close")]
    assert talk.state() == FINISHED


def test_held_bytes_beyond_the_bound_between_requests_end_the_connection(talk):
    talk.says(GET)
    talk.engine.respond(1, 200, [], b"x" * (LOW_WATER + 1))
    assert talk.says(b"G" * (HELD_BYTES + 1)) == []
    assert talk.engine.finished
    assert len(talk.hears()) > LOW_WATER


# Answers


def test_head_204_and_304_have_no_body(talk):
    engine = talk.engine
    for number, (status, headers, expected) in enumerate(
        [
            (200, [], b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n"),
            (200, [(b"content-length", b"9")], b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n"),
            (204, [(b"content-length", b"9")], b"HTTP/1.1 204 No Content\r\n\r\n"),
            (304, [(b"content-length", b"9")], b"HTTP/1.1 304 Not Modified\r\ncontent-length: 9\r\n\r\n"),
        ],
        1,
    ):
        talk.says(GET.replace(b"GET", b"HEAD"))
        engine.respond(number, status, headers, b"hello")
        assert talk.hears() == expected
    for number, status in ((5, 204), (6, 304)):
        talk.says(GET)
        engine.respond(number, status, [], b"hello")
        engine.send_data(number, b"late", end=True)
        assert b"content-length" not in talk.hears()
    talk.says(GET.replace(b"GET", b"HEAD"))
    engine.send_head(7, 200, [], end=False)
    assert engine.send_data(7, b"hello", end=True) == len(b"HTTP/1.1 200 OK\r\n\r\n")
    assert talk.hears() == b"HTTP/1.1 200 OK\r\n\r\n"
    talk.says(GET)
    engine.send_head(8, 304, [(b"content-length", b"7")], end=True)
    assert talk.hears() == b"HTTP/1.1 304 Not Modified\r\ncontent-length: 7\r\n\r\n"
    assert talk.state() == IDLE


def test_respond_says_the_length_that_the_body_has(talk):
    talk.says(GET)
    talk.engine.respond(1, 200, [(b"content-length", b"9"), (b"x", b"1")], b"hello")
    assert talk.hears() == b"HTTP/1.1 200 OK\r\nx: 1\r\ncontent-length: 5\r\n\r\nhello"


def test_streamed_answer_is_chunked_without_a_length(talk):
    talk.says(GET)
    talk.engine.send_head(1, 200, [], end=False)
    talk.engine.send_data(1, b"hello", end=False)
    talk.engine.send_data(1, b"", end=False)
    talk.engine.send_data(1, b"x" * 16, end=True)
    expected = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n10\r\n" + b"x" * 16 + b"\r\n0\r\n\r\n"
    assert talk.hears() == expected
    assert talk.state() == IDLE


def test_a_head_that_ends_has_length_zero(talk):
    talk.says(GET)
    talk.engine.send_head(1, 200, [], end=True)
    assert talk.hears() == b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"
    assert talk.state() == IDLE


@pytest.mark.parametrize(("te", "sent"), [(b"TE: trailers\r\n", b"x-sum: 1\r\n"), (b"", b"")])
def test_trailers_go_to_clients_that_take_them(talk, te, sent):
    talk.says(GET[:-2] + te + b"\r\n")
    talk.engine.send_head(1, 200, [], end=False)
    talk.engine.send_data(1, b"a", end=False)
    talk.engine.send_trailers(1, [(b"x-sum", b"1")])
    assert split_answer(talk.hears())[2] == b"1\r\na\r\n0\r\n" + sent + b"\r\n"
    assert talk.state() == IDLE


def test_trailers_are_left_out_beside_a_length(talk):
    talk.says(GET[:-2] + b"TE: trailers\r\n\r\n")
    talk.engine.send_head(1, 200, [(b"content-length", b"1")], end=False)
    talk.engine.send_data(1, b"a", end=False)
    talk.engine.send_trailers(1, [(b"x-sum", b"1")])
    assert talk.hears() == b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\na"
    assert talk.state() == IDLE


@pytest.mark.parametrize(
    ("pieces", "sent"),
    [((b"abc",), b"abc"), ((b"abcde", b"f"), b"abcde"), ((b"abcdefg",), b"abcde"), ((), b"")],
)
def test_a_body_of_another_length_ends_the_connection(talk, pieces, sent):
    talk.says(GET)
    talk.engine.send_head(1, 200, [(b"content-length", b"5")], end=False)
    for piece in pieces:
        talk.engine.send_data(1, piece, end=False)
    talk.engine.send_data(1, b"", end=True)
    assert talk.hears() == b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n" + sent
    assert talk.state() == FINISHED
    assert talk.engine.aborted


def test_a_head_that_promises_a_body_and_ends_is_cut(talk):
    talk.says(GET)
    talk.engine.send_head(1, 200, [(b"content-length", b"5")], end=True)
    assert talk.hears() == b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n"
    assert (talk.state(), talk.engine.aborted) == (FINISHED, True)


def test_informational_answers(talk):
    talk.says(GET)
    talk.engine.inform(1, 103, [(b"link", b"</a>; rel=preload")])
    talk.engine.inform(1, 101, [])
    talk.engine.respond(1, 200, [], b"")
    talk.engine.inform(1, 103, [])
    assert talk.hears() == (b"HTTP/1.1 103 Early Hints\r\nlink: </a>; rel=preload\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")


def test_framing_fields_of_the_caller_are_not_repeated(talk):
    talk.says(GET)
    fields = [(b"transfer-encoding", b"gzip"), (b"keep-alive", b"x"), (b"connection", b"x-y"), (b"content-length", b"9" * 5000)]
    talk.engine.send_head(1, 200, [*fields, (b"a", b"b")], end=False)
    assert talk.hears() == b"HTTP/1.1 200 OK\r\na: b\r\ntransfer-encoding: chunked\r\n\r\n"


def test_connection_close_of_the_caller_is_done(talk):
    talk.says(GET)
    talk.engine.respond(1, 200, [(b"connection", b"Close")], b"")
    assert talk.hears() == b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
    assert talk.state() == FINISHED


def test_no_field_splits_a_message():
    fields = [(b"a", b"1"), (b"b", b"1\r\nx: 2"), (b"c\n", b"1"), (b"d", b"\0"), (b"e", b"2")]
    assert encode_fields(fields) == b"a: 1\r\ne: 2\r\n"


def test_an_unknown_status_has_no_phrase(talk):
    talk.says(GET)
    talk.engine.respond(1, 299, [], b"")
    assert talk.hears() == b"HTTP/1.1 299 \r\ncontent-length: 0\r\n\r\n"


def test_verbs_for_a_stream_that_is_gone_do_nothing(talk):
    talk.says(GET)
    talk.engine.respond(1, 200, [], b"")
    talk.hears()
    for stream in (0, 1, 2):
        talk.engine.respond(stream, 200, [], b"x")
        talk.engine.send_head(stream, 200, [], end=False)
        assert talk.engine.send_data(stream, b"x", end=True) == 0
        talk.engine.send_trailers(stream, [])
        talk.engine.inform(stream, 100, [])
        talk.engine.consumed(stream, 5)
        talk.engine.reset(stream, Reset.INTERNAL)
    assert (talk.hears(), talk.state()) == (b"", IDLE)


# Persistence


def test_connection_close_of_the_client(talk):
    assert talk.says(GET[:-2] + b"Connection: x-y, Close\r\n\r\n" + GET) == [head(headers=[(b"connection", b"x-y, Close")])]
    assert talk.state() == SERVING
    assert talk.says(GET) == []
    assert (talk.state(), talk.engine._data) == (SERVING, b"")
    talk.engine.respond(1, 200, [], b"")
    assert talk.hears() == b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
    assert talk.state() == FINISHED
    assert talk.says(GET) == []


def test_an_idle_connection_keeps_no_input(talk):
    talk.says(GET)
    talk.engine.respond(1, 200, [], b"")
    assert (talk.state(), talk.engine._data) == (IDLE, b"")


def test_http_1_0_closes_by_default_and_gets_no_chunks(talk):
    request = RequestHead(1, b"GET", b"https", b"", b"/health", [], True)
    assert talk.says(b"GET /health HTTP/1.0\r\n\r\n") == [request]
    talk.engine.inform(1, 103, [])
    talk.engine.send_head(1, 200, [], end=False)
    talk.engine.send_data(1, b"OK", end=False)
    talk.engine.send_trailers(1, [(b"a", b"b")])
    assert talk.hears() == b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nOK"
    assert talk.state() == FINISHED


def test_http_1_0_keep_alive_where_the_length_is_known(talk):
    request = b"GET / HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n"
    talk.says(request)
    talk.engine.respond(1, 200, [], b"OK")
    assert talk.hears() == b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: keep-alive\r\n\r\nOK"
    assert talk.state() == IDLE
    talk.says(request)
    talk.engine.send_head(2, 200, [], end=False)
    assert talk.hears() == b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n"


def test_an_answer_before_the_end_of_the_request_is_the_last(talk):
    talk.says(POST + b"Content-Length: 10\r\n\r\nabc")
    talk.engine.respond(1, 413, [], b"too large")
    assert split_answer(talk.hears())[1] == [(b"content-length", b"9"), (b"connection", b"close")]
    assert talk.state() == FINISHED
    assert talk.says(b"defghij" + GET) == []


def test_a_streamed_answer_that_ends_before_the_request_ends_the_connection(talk):
    talk.says(CHUNKED + b"1\r\na\r\n")
    talk.engine.send_head(1, 200, [(b"content-length", b"1")], end=False)
    assert talk.hears() == b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n"
    talk.engine.send_data(1, b"a", end=True)
    assert (talk.hears(), talk.state(), talk.engine.aborted) == (b"a", FINISHED, False)


def test_an_answer_may_begin_before_the_request_ends(talk):
    talk.says(CHUNKED + b"1\r\na\r\n")
    talk.engine.send_head(1, 200, [(b"content-length", b"2")], end=False)
    talk.engine.send_data(1, b"a", end=False)
    assert talk.says(b"1\r\nb\r\n0\r\n\r\n") == [RequestBody(1, b"b", 1), RequestEnd(1, [])]
    talk.engine.send_data(1, b"b", end=True)
    assert (split_answer(talk.hears())[2], talk.state()) == (b"ab", IDLE)


def test_expect_continue_and_its_two_ends(talk):
    request = POST + b"Content-Length: 2\r\nExpect: 100-continue\r\n\r\n"
    headers = [(b"content-length", b"2")]
    assert talk.says(request) == [head(1, b"POST", headers=headers, end=False, content_length=2, expect_continue=True)]
    talk.engine.inform(1, 100, [])
    assert talk.hears() == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert talk.says(b"ok") == [RequestBody(1, b"ok", 2), RequestEnd(1, [])]
    talk.engine.respond(1, 200, [], b"")
    assert talk.hears() == b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"
    talk.says(request)
    talk.engine.send_head(2, 403, [(b"content-length", b"1")], end=False)
    assert split_answer(talk.hears())[1] == [(b"content-length", b"1"), (b"connection", b"close")]
    talk.engine.send_data(2, b"x", end=True)
    assert talk.state() == FINISHED


def test_goaway_takes_one_more_request_and_at_the_second_call_none(talk):
    talk.engine.goaway()
    assert not talk.engine.finished
    talk.engine.goaway()
    assert talk.state() == FINISHED
    late = Dialogue()
    late.engine.goaway()
    assert late.says(GET) == [head()]
    late.engine.goaway()
    late.engine.respond(1, 200, [], b"")
    assert late.hears() == b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
    assert late.state() == FINISHED


def test_goaway_finishes_what_runs():
    serving = Dialogue()
    serving.says(GET + GET)
    serving.engine.goaway()
    assert not serving.engine.finished
    serving.engine.respond(1, 200, [], b"")
    assert serving.hears() == b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
    assert serving.state() == FINISHED
    begun = Dialogue()
    begun.says(GET[:5])
    begun.engine.goaway()
    assert begun.says(GET[5:]) == [head()]
    sending = Dialogue()
    sending.says(GET)
    sending.engine.send_head(1, 200, [], end=False)
    sending.engine.goaway()
    assert not sending.engine.finished
    sending.engine.send_data(1, b"", end=True)
    assert sending.engine.finished


def test_reset(talk):
    talk.says(GET)
    talk.engine.reset(1, Reset.REFUSED)
    line, fields, _ = split_answer(talk.hears())
    assert (line, get(fields, b"connection"), talk.state()) == (b"HTTP/1.1 503 Service Unavailable", b"close", FINISHED)
    silent = Dialogue()
    silent.says(GET)
    silent.engine.reset(1, Reset.CANCEL)
    assert (silent.hears(), silent.state()) == (b"", FINISHED)
    begun = Dialogue()
    begun.says(GET)
    begun.engine.send_head(1, 200, [], end=False)
    begun.engine.reset(1, Reset.INTERNAL)
    assert begun.hears() == b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    assert (begun.state(), begun.engine.aborted) == (FINISHED, True)


def test_close_drops_what_is_queued(talk):
    talk.says(GET)
    talk.engine.send_head(1, 200, [], end=False)
    talk.engine.close(Reset.CANCEL)
    assert (talk.hears(), talk.state(), talk.engine.aborted) == (b"", FINISHED, True)


def test_time_out(talk):
    talk.engine.time_out()
    assert (talk.hears(), talk.state()) == (b"", FINISHED)
    begun = Dialogue()
    begun.says(GET[:9])
    begun.engine.time_out()
    assert split_answer(begun.hears())[0] == b"HTTP/1.1 408 Request Timeout"
    assert begun.state() == FINISHED


# The client's end of file


def test_eof_between_requests(talk):
    assert talk.eof() == []
    assert talk.state() == FINISHED
    begun = Dialogue()
    begun.says(GET[:9])
    assert (begun.eof(), begun.hears(), begun.state()) == ([], b"", FINISHED)
    assert begun.eof() == []


@pytest.mark.parametrize("rest", [b"Content-Length: 3\r\n\r\nab", b"Transfer-Encoding: chunked\r\n\r\n3\r\nab"])
def test_eof_within_a_request_resets_it(talk, rest):
    assert talk.says(POST + rest)[1:] == [RequestBody(1, b"ab", 2)]
    assert talk.eof() == [StreamReset(1, "closed before the request was complete")]
    assert talk.state() == FINISHED


def test_a_half_closed_client_gets_the_answers_to_what_it_asked(talk):
    talk.says(GET + GET + POST + b"Content-Length: 2\r\n\r\na")
    assert talk.eof() == []
    assert talk.state() == {**SERVING, "wants": False}
    talk.engine.send_head(1, 200, [], end=False)
    talk.engine.send_data(1, b"one", end=True)
    assert talk.engine.take_events() == [head(2)]
    talk.engine.respond(2, 200, [], b"two")
    *_, body, reset = talk.engine.take_events()
    assert (body, reset) == (RequestBody(3, b"a", 1), StreamReset(3, "closed before the request was complete"))
    assert b"one" in (heard := talk.hears())
    assert heard.endswith(b"two")
    assert talk.state() == FINISHED


def test_a_half_closed_client_with_one_request(talk):
    talk.says(GET)
    assert talk.eof() == []
    talk.engine.respond(1, 200, [], b"OK")
    assert (talk.hears()[-2:], talk.state()) == (b"OK", FINISHED)


# Back-pressure


def test_request_body_back_pressure():
    talk = Dialogue(EngineLimits(stream_window=4))
    talk.says(POST + b"Content-Length: 10\r\n\r\nabc")
    assert talk.engine.wants_input
    assert talk.says(b"defgh") == [RequestBody(1, b"defgh", 5)]
    assert not talk.engine.wants_input
    talk.engine.consumed(1, 5)
    assert talk.engine.wants_input
    talk.says(b"ij")
    assert not talk.engine.wants_input
    talk.engine.consumed(1, 5)
    assert talk.engine.wants_input
    talk.engine.respond(1, 200, [], b"")
    assert talk.state() == IDLE


def test_a_body_that_nobody_takes_does_not_stop_the_next_request():
    talk = Dialogue(EngineLimits(stream_window=4))
    talk.says(POST + b"Content-Length: 5\r\n\r\nabcde")
    talk.engine.respond(1, 200, [], b"")
    assert talk.state() == IDLE


def test_drained_after_high_water(talk):
    talk.says(GET)
    size = 2 * HIGH_WATER
    talk.engine.send_head(1, 200, [(b"content-length", b"%d" % size)], end=False)
    top = talk.hears()
    assert talk.engine.send_data(1, b"x" * HIGH_WATER, end=False) == HIGH_WATER
    assert talk.engine.send_data(1, b"x", end=False) == HIGH_WATER + 1
    taken = len(talk.engine.take_output(HIGH_WATER - LOW_WATER))
    assert (taken, talk.engine.take_events()) == (HIGH_WATER - LOW_WATER, [])
    assert len(talk.engine.take_output(1)) == 1
    assert talk.engine.take_events() == [Drained(1)]
    talk.engine.send_data(1, b"x" * (HIGH_WATER - 1), end=True)
    assert len(talk.hears(1000)) == HIGH_WATER + LOW_WATER - 1
    assert talk.engine.take_events() == []
    assert top.startswith(b"HTTP/1.1 200 OK")


def test_no_drained_for_an_answer_that_is_complete(talk):
    talk.says(GET)
    talk.engine.send_head(1, 200, [], end=False)
    talk.engine.send_data(1, b"x" * (HIGH_WATER + 1), end=False)
    talk.engine.send_data(1, b"", end=True)
    talk.hears()
    assert talk.engine.take_events() == []


# Refusals

LIMIT = EngineLimits().header_bytes

REFUSED = {
    "white space before the colon": (POST + b"Content-Length : 5\r\n\r\nhello", 400, "field_name"),
    "folded line": (GET[:-2] + b"X: a\r\n b: c\r\n\r\n", 400, "field_name"),
    "folded line without colon": (GET[:-2] + b"X: a\r\n b\r\n\r\n", 400, "syntax"),
    "folded first line": (b"GET / HTTP/1.1\r\n Host: a\r\n\r\n", 400, "field_name"),
    "no colon": (GET[:-2] + b"Foo\r\n\r\n", 400, "syntax"),
    "no name": (GET[:-2] + b": foo\r\n\r\n", 400, "field_name"),
    "LF for line ends": (GET.replace(b"\r", b""), 400, "syntax"),
    "LF after the request line": (b"GET / HTTP/1.1\nHost: a\r\n\r\n", 400, "syntax"),
    "LF after a field": (GET[:-2] + b"X: a\nY: b\r\n\r\n", 400, "syntax"),
    "LF before the request": (b"\n" + GET, 400, "syntax"),
    "LF ends the head": (b"GET / HTTP/1.1\r\nHost: a\r\n\nGET / HTTP/1.1\r\n\r\n", 400, "syntax"),
    "CR in a value": (GET[:-2] + b"X: a\rContent-Length: 5\r\n\r\n", 400, "field_value"),
    "CR after CR": (GET[:-2] + b"X: a\r\r\n\r\n", 400, "field_value"),
    "CR in the request line": (b"GET /\rHTTP/1.1\r\nHost: a\r\n\r\n", 400, "syntax"),
    "CR in the target": (b"GET /\r HTTP/1.1\r\nHost: a\r\n\r\n", 400, "path"),
    "NUL in a value": (GET[:-2] + b"X: a\0b\r\n\r\n", 400, "field_value"),
    "NUL in a name": (GET[:-2] + b"X\0: b\r\n\r\n", 400, "field_name"),
    "two empty lines": (b"\r\n\r\n" + GET, 400, "syntax"),
    "two spaces": (b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n", 400, "syntax"),
    "space before the method": (b" GET / HTTP/1.1\r\nHost: a\r\n\r\n", 400, "syntax"),
    "space after the version": (b"GET / HTTP/1.1 \r\nHost: a\r\n\r\n", 400, "syntax"),
    "tab for a space": (b"GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n", 400, "syntax"),
    "HTTP/0.9": (b"GET /\r\n\r\n", 400, "syntax"),
    "HTTP/1.2": (b"GET / HTTP/1.2\r\nHost: a\r\n\r\n", 505, "version"),
    "preface of HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, "version"),
    "lower-case version": (b"GET / http/1.1\r\nHost: a\r\n\r\n", 400, "syntax"),
    "long version": (b"GET / HTTP/1.10\r\nHost: a\r\n\r\n", 400, "syntax"),
    "RTSP": (b"OPTIONS / RTSP/1.0\r\nHost: a\r\n\r\n", 400, "syntax"),
    "plus in a length": (POST + b"Content-Length: +5\r\n\r\nhello", 400, "content_length"),
    "list of lengths": (POST + b"Content-Length: 5, 5\r\n\r\nhello", 400, "content_length"),
    "two lengths": (POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello", 400, "content_length"),
    "length and chunked": (POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, "transfer_encoding"),
    "chunked and length": (POST + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n", 400, "transfer_encoding"),
    "chunked not last": (POST + b"Transfer-Encoding: chunked, x\r\n\r\n0\r\n\r\n", 400, "transfer_encoding"),
    "chunked twice": (POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n", 400, "transfer_encoding"),
    "not quite chunked": (POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 400, "transfer_encoding"),
    "vertical tab before chunked": (POST + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n", 400, "field_value"),
    "another coding": (POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501, "transfer_encoding"),
    "chunked on HTTP/1.0": (b"POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", 400, "transfer_encoding"),
    "no host": (b"GET / HTTP/1.1\r\n\r\n", 400, "authority"),
    "two hosts": (GET[:-2] + b"Host: b\r\n\r\n", 400, "authority"),
    "absolute-form against Host": (b"GET https://b/ HTTP/1.1\r\nHost: a\r\n\r\n", 400, "authority"),
    "CONNECT": (b"CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n", 501, "not_implemented"),
    "an upgrade": (GET[:-2] + b"Connection: upgrade\r\nUpgrade: websocket\r\n\r\n", 501, "not_implemented"),
    "an unknown expectation": (POST + b"Content-Length: 1\r\nExpect: tea\r\n\r\n", 417, "expect"),
    "fragment": (b"GET /#a HTTP/1.1\r\nHost: a\r\n\r\n", 400, "path"),
    "dot segments": (b"GET /a/%2e./b HTTP/1.1\r\nHost: a\r\n\r\n", 400, "path"),
    "long request line": (b"GET /" + b"a" * LIMIT + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414, "header_too_large"),
    "endless request line": (b"GET /" + b"a" * LIMIT, 414, "header_too_large"),
    "large head": (GET[:-2] + b"X: " + b"a" * LIMIT + b"\r\n\r\n", 431, "header_too_large"),
    "endless head": (GET[:-2] + b"X: a\r\n" * LIMIT, 431, "header_too_large"),
    "many fields": (GET[:-2] + b"X: a\r\n" * 101 + b"\r\n", 431, "too_many_fields"),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400, "syntax"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_and_answered(talk, name):
    data, status, reason = REFUSED[name]
    (event,) = talk.says(data)
    assert isinstance(event, Rejected)
    assert (event.stream, event.status, event.reason) == (1, status, reason)
    line, fields, body = split_answer(talk.hears())
    assert line.startswith(b"HTTP/1.1 %d " % status)
    assert fields == [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(body)), (b"connection", b"close")]
    assert talk.state() == FINISHED
    assert (talk.says(GET), talk.eof(), talk.hears()) == ([], [], b"")


def test_a_refused_request_waits_for_the_answer_before_it(talk):
    assert talk.says(GET + b"BAD\r\n\r\n") == [head()]
    talk.engine.respond(1, 200, [], b"first")
    (event,) = talk.engine.take_events()
    assert event == Rejected(2, 400, "syntax", "'BAD'")
    answers = talk.hears()
    assert (answers.index(b"first") < answers.index(b"400 Bad Request"), talk.state()) == (True, FINISHED)


def test_heads_of_exactly_the_limit_pass():
    data = GET[:-2] + b"X: " + b"a" * 100 + b"\r\n\r\n"
    fields = len(b"GET") + len(b"/") + len(b"Host a") + 32 + len(b"X ") + 100 + 32
    assert len(Dialogue(EngineLimits(header_bytes=fields)).says(data)) == 1
    (event,) = Dialogue(EngineLimits(header_bytes=fields - 1)).says(data)
    assert isinstance(event, Rejected)


def test_bytes_of_a_head_are_counted_while_they_arrive(talk):
    answers = [talk.says(b"X") for _ in range(LIMIT + 4)]
    assert not any(answers[:-1])
    assert [event.status for event in answers[-1]] == [414]


@pytest.mark.parametrize("distance", range(-3, 9))
@pytest.mark.parametrize("ending", [b"\r\n\r\n", b"a\nbcd", b"\r\nX: "])
def test_at_the_limit_of_a_head_the_split_makes_no_difference(ending, distance):
    limits = EngineLimits(header_bytes=200)
    data = GET[:-2] + b"X: "
    data += b"a" * (200 + distance - len(data) - len(ending)) + ending + b"tail" * 2
    whole, bytewise = Dialogue(limits), Dialogue(limits)
    events = whole.says(data)
    assert [event for at in range(len(data)) for event in bytewise.says(data[at : at + 1])] == events
    assert isinstance(events[0], Rejected)


@pytest.mark.parametrize("extra", [0, 1])
def test_chunk_lines_of_exactly_the_limit_pass(extra):
    data = CHUNKED + b"5;" + b"a" * (CHUNK_LINE_BYTES - 2 + extra) + b"\r\nhello\r\n"
    whole, bytewise = Dialogue(), Dialogue()
    events = whole.says(data)
    assert any(isinstance(event, Rejected) for event in events) is bool(extra)
    assert b"".join(event.data for event in events if isinstance(event, RequestBody)) == (b"" if extra else b"hello")
    split = [event for at in range(len(data)) for event in bytewise.says(data[at : at + 1])]
    assert [event for event in split if not isinstance(event, RequestBody)] == [e for e in events if not isinstance(e, RequestBody)]


def test_a_bare_line_feed_is_refused_as_it_comes(talk):
    assert talk.says(b"GET / HTTP/1.1") == []
    assert talk.says(b"\n") == [Rejected(1, 400, "syntax", "LF without CR")]
    later = Dialogue()
    assert [later.says(piece) for piece in (b"GET / HTTP/1.1\r", b"\n", b"Host: a\r\n", b"X: b")] == [[]] * 4
    assert later.says(b"\n") == [Rejected(1, 400, "syntax", "LF without CR")]


BAD_CHUNKS = {
    "plus": (b"+5\r\nhello\r\n", "chunk"),
    "minus": (b"-5\r\nhello\r\n", "chunk"),
    "0x": (b"0x5\r\nhello\r\n", "chunk"),
    "underscore": (b"1_0\r\nhello\r\n", "chunk"),
    "space before": (b" 5\r\nhello\r\n", "chunk"),
    "space after": (b"5 \r\nhello\r\n", "chunk"),
    "tab after": (b"5\t;a\r\nhello\r\n", "chunk"),
    "no size": (b"\r\nhello\r\n", "chunk"),
    "only an extension": (b";a=b\r\nhello\r\n", "chunk"),
    "not hex": (b"g\r\nhello\r\n", "chunk"),
    "too many digits": (b"0000000000000005\r\nhello\r\n", "chunk"),
    "too large": (b"ffffffffffffffff\r\nhello\r\n", "chunk"),
    "LF": (b"5\nhello\r\n0\r\n\r\n", "chunk"),
    "LF in an extension": (b"5;a\nb\r\nhello\r\n", "chunk"),
    "CR in an extension": (b"5;a\rb\r\nhello\r\n", "chunk"),
    "NUL in an extension": (b"5;\0\r\nhello\r\n", "chunk"),
    "long line": (b"5;" + b"a" * CHUNK_LINE_BYTES + b"\r\nhello\r\n", "chunk"),
    "endless line": (b"5;" + b"a" * 2 * CHUNK_LINE_BYTES, "chunk"),
    "trailer that frames": (b"0\r\nContent-Length: 5\r\n\r\n", "trailers"),
    "trailer with LF": (b"0\r\nX: a\nY: b\r\n\r\n", "syntax"),
    "trailer without colon": (b"0\r\nX\r\n\r\n", "syntax"),
    "folded trailer": (b"0\r\nX: a\r\n b: c\r\n\r\n", "field_name"),
    "many trailers": (b"0\r\n" + b"X: a\r\n" * 101 + b"\r\n", "too_many_fields"),
    "endless trailers": (b"0\r\nX: " + b"a" * (LIMIT + 4), "header_too_large"),
}


@pytest.mark.parametrize("name", BAD_CHUNKS)
def test_malformed_chunks_reset_the_request(talk, name):
    data, reason = BAD_CHUNKS[name]
    first, rejected, reset = talk.says(CHUNKED + data)
    assert first == head(method=b"POST", end=False)
    assert isinstance(rejected, Rejected)
    assert isinstance(reset, StreamReset)
    assert (rejected.stream, rejected.reason, reset.stream) == (1, reason, 1)
    assert b"\r\nconnection: close\r\n" in talk.hears()
    talk.engine.respond(1, 200, [], b"late")
    assert (talk.hears(), talk.state()) == (b"", FINISHED)


@pytest.mark.parametrize("data", [b"5\r\nhelloX0\r\n\r\n", b"5\r\nhello\n0\r\n\r\n", b"5\r\nhello\r0\r\n\r\n", b"5\r\nhello0\r\n\r\n"])
def test_data_before_a_malformed_chunk_is_delivered(talk, data):
    _, body, rejected, reset = talk.says(CHUNKED + data)
    assert body == RequestBody(1, b"hello", 5)
    assert (type(rejected), type(reset)) == (Rejected, StreamReset)


def test_a_malformed_body_under_an_answer_cuts_it(talk):
    talk.says(CHUNKED)
    talk.engine.send_head(1, 200, [], end=False)
    talk.says(b"x\r\n")
    assert talk.hears() == b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    assert (talk.state(), talk.engine.aborted) == (FINISHED, True)


def test_extensions_beyond_what_the_data_pays_for(talk):
    chunk = b"1;" + b"a" * 500 + b"\r\nx\r\n"
    assert isinstance(talk.says(CHUNKED)[0], RequestHead)
    refused = [any(isinstance(event, Rejected) for event in talk.says(chunk)) for _ in range(CHUNK_WASTE_BYTES)]
    assert refused.index(True) == CHUNK_WASTE_BYTES // (502 - 18)
    signed = Dialogue()
    signed.says(CHUNKED)
    for _ in range(1000):
        signed.says(b"400;chunk-signature=" + b"f" * 64 + b"\r\n" + b"x" * 1024 + b"\r\n")
    assert not signed.engine.finished
