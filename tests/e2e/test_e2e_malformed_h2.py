"""Malformed and abusive HTTP/2: a stream's fault costs the stream, the connection's the connection, nobody's the proxy."""

import struct

import pytest
from harness import frames as f
from harness.frames import block, frame, framed, literal, request, settings
from harness.guard import Guard, rejected, sample

pytestmark = pytest.mark.speaks("HTTP/2")
VERSION = "HTTP/2"
HELLO = b"Hello from a.example.com (HTTP/2)!\n"
NEVER = request(b"/never")


@pytest.fixture(scope="module")
def guard(authority, proxy, backends):
    return Guard(authority, proxy, backends)


def ended(error: str) -> str:
    return sample("qproxy_connection_errors_total", version=VERSION, error=error)


@pytest.fixture
def refused(differs):
    """The sample that counts a refusal, or the two of which one does."""

    def refused(reason: str) -> str | tuple[str, ...]:
        return (rejected(VERSION, reason), rejected(VERSION, "protocol")) if differs("refusals") else rejected(VERSION, reason)

    return refused


def head(stream: int, fields: f.Fields, *, end: bool = True) -> bytes:
    return frame(f.HEADERS, f.END_HEADERS | (f.END_STREAM if end else 0), stream, block(fields))


def served(client: f.Framed, stream: int) -> None:
    """A good request on the same connection."""
    answer = client.ask(stream, request())
    assert (answer.status, answer.body) == (200, HELLO)


# Messages that are malformed: RFC 9113, section 8.1.1. Each costs its stream.

HEADS = {
    "a field name in upper case": (request(b"/never", (b"X-Field", b"1")), "field_name"),
    "an empty field name": (request(b"/never", (b"", b"1")), "field_name"),
    "a space in a field name": (request(b"/never", (b"x field", b"1")), "field_name"),
    "a colon in a field name": (request(b"/never", (b"x:field", b"1")), "field_name"),
    "NUL in a field name": (request(b"/never", (b"x\0field", b"1")), "field_name"),
    "a line end in a field value": (request(b"/never", (b"x-field", b"1\r\nx-injected: 2")), "field_value"),
    "LF alone in a field value": (request(b"/never", (b"x-field", b"1\nx-injected: 2")), "field_value"),
    "NUL in a field value": (request(b"/never", (b"x-field", b"\0")), "field_value"),
    "a space before a value": (request(b"/never", (b"x-field", b" 1")), "field_value"),
    "a tab behind a value": (request(b"/never", (b"x-field", b"1\t")), "field_value"),
    "connection": (request(b"/never", (b"connection", b"close")), "connection_field"),
    "keep-alive": (request(b"/never", (b"keep-alive", b"timeout=1")), "connection_field"),
    "proxy-connection": (request(b"/never", (b"proxy-connection", b"close")), "connection_field"),
    "transfer-encoding": (request(b"/never", (b"transfer-encoding", b"chunked")), "connection_field"),
    "upgrade": (request(b"/never", (b"upgrade", b"h2c")), "connection_field"),
    "te that is not trailers": (request(b"/never", (b"te", b"gzip")), "connection_field"),
    "a pseudo-field behind a regular one": ([*request(b"/never")[:3], (b"x-field", b"1"), (b":path", b"/never")], "pseudo_field"),
    "a pseudo-field twice": (request(b"/never", (b":path", b"/never")), "pseudo_field"),
    "two authorities": ([*NEVER, (b":authority", b"b.example.com")], "pseudo_field"),
    "an unknown pseudo-field": ([*NEVER, (b":user", b"root")], "pseudo_field"),
    "a response's pseudo-field": ([*NEVER, (b":status", b"200")], "pseudo_field"),
    "no method": (NEVER[1:], "pseudo_field"),
    "no scheme": ([NEVER[0], *NEVER[2:]], "pseudo_field"),
    "no path": (NEVER[:3], "pseudo_field"),
    "no authority": ([*NEVER[:2], NEVER[3]], "authority"),
    "an empty path": (request(b""), "path"),
    "a path without a slash": (request(b"never"), "path"),
    "asterisk for GET": (request(b"*"), "path"),
    "dot segments": (request(b"/a/../never"), "path"),
    "dot segments, percent-encoded": (request(b"/a/%2e%2e/never"), "path"),
    "a fragment": (request(b"/never#x"), "path"),
    "a space in the path": (request(b"/never HTTP/1.1\r\nx: y"), "field_value"),
    "a whole request in the path": (request(b"/never\r\n\r\nGET /never HTTP/1.1"), "field_value"),
    "a space in the method": (request(b"/never", method=b"GET /"), "method"),
    "an empty method": (request(b"/never", method=b""), "method"),
    "an unknown scheme": ([NEVER[0], (b":scheme", b"ftp"), *NEVER[2:]], "scheme"),
    "host against authority": (request(b"/never", (b"host", b"b.example.com")), "authority"),
    "host twice": (request(b"/never", (b"host", b"a.example.com"), (b"host", b"a.example.com")), "authority"),
    "user information in the authority": (request(b"/never", authority=b"x@a.example.com"), "authority"),
    "content-length twice with other values": (request(b"/never", (b"content-length", b"0"), (b"content-length", b"1")), "content_length"),
    "content-length below 0": (request(b"/never", (b"content-length", b"-1")), "content_length"),
    "content-length without a body": (request(b"/never", (b"content-length", b"5")), "body_length"),
}


@pytest.mark.parametrize("name", HEADS)
def test_a_malformed_head_costs_its_stream(authority, proxy, guard, refused, name):
    """A neighbour that is in progress, and one that begins afterwards, are served on the same connection."""
    fields, reason = HEADS[name]
    with guard.case(refused(reason)), framed(authority, proxy.port) as client:
        client.request(1, request(b"/upload", method=b"POST"), end=False)
        answer = client.ask(3, fields)
        assert (answer.status, answer.reset) == (0, f.PROTOCOL_ERROR)
        client.send(frame(f.DATA, f.END_STREAM, 1, b"abc"))
        assert client.answer(1).status == 200
        served(client, 5)


ANSWERED = {
    "CONNECT": ([(b":method", b"CONNECT"), (b":authority", b"a.example.com:443")], 501, "not_implemented"),
    "extended CONNECT": ([*request(b"/never", method=b"CONNECT"), (b":protocol", b"websocket")], 501, "not_implemented"),
    "an unknown expectation": (request(b"/never", (b"expect", b"200-maybe")), 417, "expect"),
    "too many fields": (request(b"/never", *[(b"x", b"1")] * 200), 431, "too_many_fields"),
    "a section beyond 32 KiB": (request(b"/never", *[(b"x-field", b"a" * 120)] * 230), 431, None),
}


@pytest.mark.parametrize("name", ANSWERED)
def test_what_a_client_may_learn_from_gets_an_answer(authority, proxy, guard, differs, name):
    fields, status, reason = ANSWERED[name]
    if name == "extended CONNECT" and differs(name):
        status, reason = 0, "protocol"
    with guard.case(*([rejected(VERSION, reason)] if reason else [])), framed(authority, proxy.port) as client:
        whole = block(fields)
        pieces = [whole[at : at + 16000] for at in range(0, len(whole), 16000)]
        parts = [frame(f.CONTINUATION, 0, 1, piece) for piece in pieces]
        parts[0] = frame(f.HEADERS, f.END_STREAM, 1, pieces[0])
        last = bytearray(parts[-1])
        last[4] |= f.END_HEADERS
        client.send(*parts[:-1], bytes(last))
        answer = client.answer(1)
        assert (answer.status, answer.reset) == (status, None if status else f.PROTOCOL_ERROR)
        served(client, 3)


BODIES = {
    "more DATA than content-length": ([frame(f.DATA, 0, 1, b"abcdef")], "body_length"),
    "less DATA than content-length": ([frame(f.DATA, f.END_STREAM, 1, b"ab")], "body_length"),
    "less DATA, then trailers": ([frame(f.DATA, 0, 1, b"ab"), head(1, [(b"x-a", b"1")])], "body_length"),
    "trailers with a pseudo-field": ([frame(f.DATA, 0, 1, b"abc"), head(1, [(b":path", b"/never")])], "trailers"),
    "trailers without the end of the stream": ([frame(f.DATA, 0, 1, b"abc"), head(1, [(b"x-a", b"1")], end=False)], "trailers"),
    "content-length as a trailer": ([frame(f.DATA, 0, 1, b"abc"), head(1, [(b"content-length", b"3")])], "trailers"),
    "connection as a trailer": ([frame(f.DATA, 0, 1, b"abc"), head(1, [(b"connection", b"close")])], "trailers"),
    "a trailer in upper case": ([frame(f.DATA, 0, 1, b"abc"), head(1, [(b"X-A", b"1")])], "field_name"),
    "too many trailers": ([frame(f.DATA, 0, 1, b"abc"), head(1, [(b"x", b"1")] * 200)], "too_many_fields"),
}


@pytest.mark.parametrize("name", BODIES)
def test_a_malformed_rest_of_a_request_costs_its_stream(authority, proxy, guard, refused, name):
    """The head was accepted; /hello answers only a complete request, so that an answer would show."""
    rest, reason = BODIES[name]
    with guard.case(refused(reason)), framed(authority, proxy.port) as client:
        client.request(1, request(b"/hello", (b"content-length", b"3"), method=b"POST"), end=False)
        client.send(*rest)
        answer = client.answer(1)
        assert (answer.status, answer.reset) == (0, f.PROTOCOL_ERROR)
        served(client, 3)


STREAM_FAULTS = {
    "DATA behind the end of the stream": ([head(1, request(b"/slow?seconds=5")), frame(f.DATA, 0, 1, b"abc")], f.STREAM_CLOSED),
    "HEADERS behind the end of the stream": (
        [head(1, request(b"/slow?seconds=5")), head(1, [(b"x-a", b"1")])],
        f.STREAM_CLOSED,
    ),
    "a WINDOW_UPDATE of 0": ([head(1, request(b"/slow?seconds=5")), frame(f.WINDOW_UPDATE, 0, 1, bytes(4))], f.PROTOCOL_ERROR),
    "a window beyond 2^31-1": (
        [head(1, request(b"/slow?seconds=5")), frame(f.WINDOW_UPDATE, 0, 1, b"\x7f\xff\xff\xff")],
        f.FLOW_CONTROL_ERROR,
    ),
    "a stream that depends on itself": ([head(1, request(b"/slow?seconds=1")), frame(f.PRIORITY, 0, 1, b"\0\0\0\1\x10")], f.PROTOCOL_ERROR),
}


@pytest.mark.parametrize("name", STREAM_FAULTS)
def test_a_fault_of_a_stream_costs_the_stream(authority, proxy, guard, differs, name):
    sent, code = STREAM_FAULTS[name]
    with guard.case(), framed(authority, proxy.port) as client:
        client.send(*sent)
        if name == "a stream that depends on itself" and differs("self-dependency"):
            assert client.answer(1).status == 200
            return
        if name != "a stream that depends on itself" and differs("faults of streams"):
            assert client.end() == code
            return
        assert client.answer(1).reset == code
        served(client, 3)


def reset_of(client: f.Framed, stream: int) -> int | None:
    return client.answers[stream].reset if stream in client.answers else None


def test_more_data_than_the_streams_window_costs_the_stream_or_the_connection(authority, proxy, guard, backends):
    """The backend takes nothing, so that no credit comes: what is beyond the window is a flow control error."""
    with guard.case(), framed(authority, proxy.port) as client:
        client.request(1, request(b"/hold/window-%d" % proxy.port, method=b"POST"), end=False)
        client.ping()
        client.send(*[frame(f.DATA, 0, 1, bytes(16384)) for _ in range(200)])
        while client.read() is not None and f.FLOW_CONTROL_ERROR not in (reset_of(client, 1), client.goaway):
            pass
        assert f.FLOW_CONTROL_ERROR in (reset_of(client, 1), client.goaway)
    for backend in backends:
        backend.push(f"window-{proxy.port}", b"", end=True)


def test_streams_beyond_the_limit_are_refused_and_may_be_tried_again(authority, proxy, guard):
    with guard.case(), framed(authority, proxy.port) as client:
        for stream in range(1, 2 * 102, 2):
            client.request(stream, request(b"/upload", method=b"POST"), end=False)
        assert client.answer(201).reset == f.REFUSED_STREAM
        client.send(*[frame(f.DATA, f.END_STREAM, stream) for stream in range(1, 200, 2)])
        assert {client.answer(stream).status for stream in range(1, 200, 2)} == {200}
        served(client, 205)


# Faults of the connection: RFC 9113, section 5.4.1.

CONNECTION_FAULTS = {
    "a frame longer than allowed": (frame(f.DATA, 0, 1, length=16385), "frame_size", f.FRAME_SIZE_ERROR),
    "a frame of 16 megabytes": (frame(f.HEADERS, f.END_HEADERS, 1, length=0xFFFFFF), "frame_size", f.FRAME_SIZE_ERROR),
    "DATA on stream 0": (frame(f.DATA, 0, 0, b"x"), "protocol", f.PROTOCOL_ERROR),
    "HEADERS on stream 0": (head(0, NEVER), "protocol", f.PROTOCOL_ERROR),
    "HEADERS on an even stream": (head(2, NEVER), "protocol", f.PROTOCOL_ERROR),
    "DATA on an idle stream": (frame(f.DATA, 0, 5, b"x"), "protocol", f.PROTOCOL_ERROR),
    "RST_STREAM on an idle stream": (frame(f.RST_STREAM, 0, 5, bytes(4)), "protocol", f.PROTOCOL_ERROR),
    "RST_STREAM on stream 0": (frame(f.RST_STREAM, 0, 0, bytes(4)), "protocol", f.PROTOCOL_ERROR),
    "RST_STREAM of 3 bytes": (
        head(1, request(b"/upload"), end=False) + frame(f.RST_STREAM, 0, 1, bytes(3)),
        "frame_size",
        f.FRAME_SIZE_ERROR,
    ),
    "WINDOW_UPDATE on an idle stream": (frame(f.WINDOW_UPDATE, 0, 5, b"\0\0\0\1"), "protocol", f.PROTOCOL_ERROR),
    "WINDOW_UPDATE of 5 bytes": (frame(f.WINDOW_UPDATE, 0, 0, bytes(5)), "frame_size", f.FRAME_SIZE_ERROR),
    "WINDOW_UPDATE of 0 on the connection": (frame(f.WINDOW_UPDATE, 0, 0, bytes(4)), "protocol", f.PROTOCOL_ERROR),
    "a connection window beyond 2^31-1": (frame(f.WINDOW_UPDATE, 0, 0, b"\x7f\xff\xff\xff"), "flow_control", f.FLOW_CONTROL_ERROR),
    "SETTINGS on a stream": (frame(f.SETTINGS, 0, 1), "protocol", f.PROTOCOL_ERROR),
    "SETTINGS of 5 bytes": (frame(f.SETTINGS, payload=bytes(5)), "frame_size", f.FRAME_SIZE_ERROR),
    "a SETTINGS acknowledgement with a payload": (frame(f.SETTINGS, f.ACK, payload=bytes(6)), "frame_size", f.FRAME_SIZE_ERROR),
    "SETTINGS_ENABLE_PUSH of 2": (settings((2, 2)), "protocol", f.PROTOCOL_ERROR),
    "SETTINGS_INITIAL_WINDOW_SIZE of 2^31": (settings((4, 2**31)), "flow_control", f.FLOW_CONTROL_ERROR),
    "SETTINGS_MAX_FRAME_SIZE of 1": (settings((5, 1)), "protocol", f.PROTOCOL_ERROR),
    "SETTINGS_MAX_FRAME_SIZE of 2^24": (settings((5, 2**24)), "protocol", f.PROTOCOL_ERROR),
    "PING on a stream": (frame(f.PING, 0, 1, bytes(8)), "protocol", f.PROTOCOL_ERROR),
    "PING of 7 bytes": (frame(f.PING, payload=bytes(7)), "frame_size", f.FRAME_SIZE_ERROR),
    "PUSH_PROMISE": (frame(f.PUSH_PROMISE, f.END_HEADERS, 1, b"\0\0\0\2" + block(NEVER)), "protocol", f.PROTOCOL_ERROR),
    "GOAWAY on a stream": (frame(f.GOAWAY, 0, 1, bytes(8)), "protocol", f.PROTOCOL_ERROR),
    "CONTINUATION without HEADERS": (frame(f.CONTINUATION, f.END_HEADERS, 1, block(NEVER)), "protocol", f.PROTOCOL_ERROR),
    "another frame within a header block": (
        frame(f.HEADERS, 0, 1, block(NEVER)) + frame(f.PING, payload=bytes(8)),
        "protocol",
        f.PROTOCOL_ERROR,
    ),
    "CONTINUATION of another stream": (
        frame(f.HEADERS, 0, 1, block(NEVER)) + frame(f.CONTINUATION, f.END_HEADERS, 3, b""),
        "protocol",
        f.PROTOCOL_ERROR,
    ),
    "padding longer than its frame": (frame(f.DATA, f.PADDED, 0, b"\xff"), "protocol", f.PROTOCOL_ERROR),
    "an index of HPACK that is not there": (
        frame(f.HEADERS, f.END_HEADERS | f.END_STREAM, 1, b"\xff\xff\x7f"),
        "compression",
        f.COMPRESSION_ERROR,
    ),
    "index 0 of HPACK": (frame(f.HEADERS, f.END_HEADERS | f.END_STREAM, 1, b"\x80"), "compression", f.COMPRESSION_ERROR),
    "an integer of HPACK without end": (
        frame(f.HEADERS, f.END_HEADERS | f.END_STREAM, 1, b"\xff" * 40),
        "compression",
        f.COMPRESSION_ERROR,
    ),
    "a string of HPACK that ends early": (
        frame(f.HEADERS, f.END_HEADERS | f.END_STREAM, 1, b"\0\x7fabc"),
        "compression",
        f.COMPRESSION_ERROR,
    ),
    "Huffman code with a wrong end": (
        frame(f.HEADERS, f.END_HEADERS | f.END_STREAM, 1, b"\0\x81\0\x81\0"),
        "compression",
        f.COMPRESSION_ERROR,
    ),
    "a dynamic table larger than allowed": (
        frame(f.HEADERS, f.END_HEADERS | f.END_STREAM, 1, b"\x3f\xe1\xff\x07"),
        "compression",
        f.COMPRESSION_ERROR,
    ),
}


@pytest.mark.parametrize("name", CONNECTION_FAULTS)
def test_a_fault_of_the_connection_ends_it_and_says_why(authority, proxy, guard, name):
    data, error, code = CONNECTION_FAULTS[name]
    with guard.case(ended(error)), framed(authority, proxy.port) as client:
        client.send(data)
        assert client.end() == code


@pytest.mark.parametrize("streams", [(1, 1), (5, 3)], ids=["closed", "passed over"])
def test_headers_on_a_closed_stream_end_the_connection_or_are_ignored(authority, proxy, guard, differs, streams):
    """A stream that was passed over is closed (RFC 9113, section 5.1.1). A backend sees neither."""
    first, then = streams
    ignored = differs("closed streams")
    with guard.case(*([] if ignored else [ended("stream_closed")])), framed(authority, proxy.port) as client:
        served(client, first)
        client.send(head(then, NEVER))
        if ignored:
            served(client, first + 2)
        else:
            assert client.end() in (f.STREAM_CLOSED, f.PROTOCOL_ERROR)


PREFACES = {
    "HTTP/1.1": b"GET /never HTTP/1.1\r\nhost: a.example.com\r\n\r\n",
    "zeros": bytes(64),
    "a preface with one byte wrong": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\rx" + settings(),
    "no SETTINGS behind it": f.PREFACE + head(1, NEVER),
    "a PING before SETTINGS": f.PREFACE + frame(f.PING, payload=bytes(8)),
    "an acknowledgement before SETTINGS": f.PREFACE + frame(f.SETTINGS, f.ACK),
    "the preface twice": f.PREFACE + f.PREFACE,
}


@pytest.mark.parametrize("name", PREFACES)
def test_a_bad_preface_ends_the_connection(authority, proxy, guard, name):
    error = "frame_size" if name == "the preface twice" else "protocol"
    with guard.case(ended(error)), framed(authority, proxy.port, open_it=False) as client:
        client.send(PREFACES[name])
        assert client.end() in (f.PROTOCOL_ERROR, f.FRAME_SIZE_ERROR)


# Abuse: frames that are allowed one by one. Each flood ends its connection, and only that.

FLOODS = {
    "PING": [frame(f.PING, payload=bytes(8))] * 3000,
    "SETTINGS": [settings((3, 100))] * 3000,
    "PRIORITY": [frame(f.PRIORITY, 0, 1, b"\0\0\0\3\x10")] * 3000,
    "WINDOW_UPDATE": [frame(f.WINDOW_UPDATE, 0, 0, b"\0\0\0\1")] * 3000,
    "frames of an unknown type": [frame(0xFA, 0, 0, b"x")] * 3000,
    "empty DATA": [head(1, request(b"/upload", method=b"POST"), end=False), *[frame(f.DATA, 0, 1)] * 3000],
    "padding only": [head(1, request(b"/upload", method=b"POST"), end=False), *[frame(f.DATA, f.PADDED, 1, b"\0")] * 3000],
    "rapid reset": [
        part for stream in range(1, 2001, 2) for part in (head(stream, request(b"/upload")), frame(f.RST_STREAM, 0, stream, b"\0\0\0\x08"))
    ],
    "resets that we are made to send": [head(stream, request(b"/never", (b"X", b"1"))) for stream in range(1, 2001, 2)],
    "requests over the limit": [head(stream, request(b"/upload", method=b"POST"), end=False) for stream in range(1, 8001, 2)],
    "CONTINUATION": [frame(f.HEADERS, f.END_STREAM, 1, block(NEVER)), *[frame(f.CONTINUATION, 0, 1, b"")] * 1000],
    "CONTINUATION with data": [
        frame(f.HEADERS, f.END_STREAM, 1, block(NEVER)),
        *[frame(f.CONTINUATION, 0, 1, literal(b"x", b"a" * 120) * 100)] * 100,
    ],
}


@pytest.mark.parametrize("name", FLOODS)
def test_a_flood_ends_its_connection(authority, proxy, guard, name):
    with guard.case(ended("enhance_your_calm")), framed(authority, proxy.port) as client:
        client.send(*FLOODS[name])
        assert client.end() in (f.ENHANCE_YOUR_CALM, None)  # None: a reset on the way may have cost us the GOAWAY


@pytest.mark.parametrize("count", [300, 8000])
def test_a_bomb_of_header_fields_is_refused_before_it_grows(authority, proxy, guard, differs, count):
    """One long field in the dynamic table, then references of one byte each: 431 where the tables can be kept in step, else the end."""
    before = proxy.rss()
    with guard.case(), framed(authority, proxy.port) as client:
        stuffed = b"\x40" + literal(b"x-bomb", b"a" * 4000)[1:]
        client.send(frame(f.HEADERS, f.END_HEADERS | f.END_STREAM, 1, block(NEVER) + stuffed + b"\xbe" * count))
        if count == 300 and not differs("bombs"):
            assert client.answer(1).status == 431
            served(client, 3)
        else:
            assert client.end() == f.ENHANCE_YOUR_CALM
    assert proxy.rss() - before < 8 * 1024 * 1024


def test_a_client_that_asks_and_never_reads_is_bounded(authority, proxy, guard):
    """Windows of 0 and 99 answers of 8 MB: the proxy holds what its high water allows for each, and serves others."""
    before = proxy.rss()
    with guard.case(), framed(authority, proxy.port, (4, 0)) as client:
        for stream in range(1, 199, 2):
            client.request(stream, request(b"/bytes/8000000"))
        client.ping()
        guard.check()
        assert proxy.rss() - before < 128 * 1024 * 1024


def test_settings_that_shrink_windows_in_flight_do_no_harm(authority, proxy, guard):
    """To 0 while an answer is in progress, and open again: the answer is whole."""
    with guard.case(), framed(authority, proxy.port, (4, 1000)) as client:
        client.request(1, request(b"/bytes/20000"))
        while len(client.answers.get(1, f.Answered()).body) < 1000:
            assert client.read() is not None
        client.send(settings((4, 0)))
        client.ping()
        assert len(client.answers[1].body) == 1000
        client.send(settings((4, 60000)), frame(f.WINDOW_UPDATE, 0, 1, struct.pack("!I", 1000)))
        assert len(client.answer(1).body) == 20000
        served(client, 3)


def test_frames_in_pieces_of_one_byte(authority, proxy, guard):
    """Preface, SETTINGS and a request, each byte in a TLS record of its own."""
    with guard.case(), framed(authority, proxy.port, open_it=False) as client:
        for byte in f.PREFACE + settings() + head(1, request()):
            client.send(bytes((byte,)))
        answer = client.answer(1)
        assert (answer.status, answer.body) == (200, HELLO)
