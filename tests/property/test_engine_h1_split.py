"""HTTP/1.1: any split of the bytes gives the same events, in both directions; what one side encodes the other reads back."""

from dataclasses import replace
from itertools import pairwise

import httptools
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.engine.events import (
    Rejected,
    RequestBody,
    RequestEnd,
    RequestHead,
    ResponseBody,
    ResponseEnd,
    ResponseHead,
    StreamReset,
    UpstreamRequest,
)
from proxy.engine.h1 import H1Connection
from proxy.engine.h1_client import H1Client, UpstreamProtocolError
from proxy.engine.seam import EngineLimits
from proxy.engine.validate import REASONS

LIMITS = EngineLimits(header_count=12, header_bytes=1024)

token = st.text("abcdefghijklmnopqrstuvwxyz-", min_size=1, max_size=8).map(str.encode)
values = st.text("abc ;=\t\u00e4", max_size=12).map(lambda text: text.encode("latin-1").strip(b" \t"))
fields = st.lists(st.tuples(token.map(lambda name: b"x-" + name), values), max_size=4)
bodies = st.lists(st.binary(min_size=1, max_size=40), max_size=4)
paths = st.text("abc/?=&", max_size=10).map(lambda text: b"/" + text.encode())


@st.composite
def requests(draw):
    """The bytes of a request, of any framing, well-formed."""
    method = draw(st.sampled_from([b"GET", b"POST", b"HEAD", b"REPORT"]))
    data = b"%b %b HTTP/1.1\r\nHost: a\r\n" % (method, draw(paths))
    data += b"".join(b"%b: %b\r\n" % field for field in draw(fields))
    pieces = draw(bodies)
    framing = draw(st.sampled_from(["none", "length", "chunked"]))
    if framing == "none":
        return data + b"\r\n"
    if framing == "length":
        return data + b"Content-Length: %d\r\n\r\n%b" % (sum(map(len, pieces)), b"".join(pieces))
    extension = draw(st.sampled_from([b"", b";a=b", b';a="b c"']))
    data += b"Transfer-Encoding: chunked\r\n\r\n"
    data += b"".join(b"%x%b\r\n%b\r\n" % (len(piece), extension, piece) for piece in pieces)
    return data + b"0\r\n" + b"".join(b"%b: %b\r\n" % field for field in draw(fields)) + b"\r\n"


@st.composite
def responses(draw):
    """The bytes of a response, of any framing that a reader can tell the end of."""
    data = b"HTTP/1.1 100 Continue\r\n\r\n" * draw(st.integers(0, 2)) + b"HTTP/1.1 200 OK\r\n"
    data += b"".join(b"%b: %b\r\n" % field for field in draw(fields))
    pieces = draw(bodies)
    if draw(st.booleans()):
        return data + b"Content-Length: %d\r\n\r\n%b" % (sum(map(len, pieces)), b"".join(pieces))
    chunks = b"".join(b"%X\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
    return data + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n" + b"".join(b"%b: %b\r\n" % f for f in draw(fields)) + b"\r\n"


@st.composite
def damaged(draw, messages):
    """Messages with some bytes put in, left out or replaced: mostly malformed, in every way."""
    data = bytearray(b"".join(draw(st.lists(messages, min_size=1, max_size=3))))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        junk = draw(
            st.sampled_from(
                [b"", b"\n", b"\r", b"\r\n", b" ", b"\t", b":", b"\0", b"0", b"+", b"\xff", b"a" * 700, b"Content-Length: 1\r\n"]
            )
        )
        data[at : at + draw(st.integers(0, 2))] = junk
    return bytes(data)


def pieces_of(data, cuts):
    edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[start:end] for start, end in pairwise(edges)]


cuts = st.lists(st.integers(0, 1 << 20), max_size=30)


def merged(events):
    """Adjacent body events as one."""
    result = []
    for event in events:
        last = result[-1] if result else None
        if isinstance(event, RequestBody) and isinstance(last, RequestBody) and last.stream == event.stream:
            result[-1] = RequestBody(event.stream, last.data + event.data, last.credit + event.credit)
        elif isinstance(event, ResponseBody) and isinstance(last, ResponseBody):
            result[-1] = ResponseBody(last.data + event.data)
        else:
            result.append(event)
    return result


def served(pieces):
    """Everything that happens on a connection whose requests are answered as soon as they are complete."""
    engine = H1Connection(LIMITS)
    seen = []
    output = b""
    for piece in pieces:
        events = engine.receive(piece, 0.0)
        while events:
            seen += events
            for event in events:
                if isinstance(event, RequestEnd) or (isinstance(event, RequestHead) and event.end):
                    engine.respond(event.stream, 200, [], b"answer")
                elif isinstance(event, RequestBody):
                    engine.consumed(event.stream, event.credit)
            events = engine.take_events()
        output += engine.take_output(1 << 20)
    return merged(seen), output, engine.finished, engine.head_in_progress


@settings(max_examples=150, deadline=None)
@given(st.lists(requests(), min_size=1, max_size=4), cuts)
def test_any_split_of_requests_gives_the_same_events(messages, cuts):
    data = b"".join(messages)
    whole = served([data])
    assert sum(isinstance(event, RequestHead) for event in whole[0]) == len(messages)
    assert served(pieces_of(data, cuts)) == whole
    assert served([data[at : at + 1] for at in range(len(data))]) == whole


@settings(max_examples=250, deadline=None)
@given(damaged(requests()), cuts)
def test_any_split_of_malformed_requests_gives_the_same_events(data, cuts):
    whole = served([data])
    assert served(pieces_of(data, cuts)) == whole
    for event in whole[0]:
        if isinstance(event, Rejected):
            assert event.reason in REASONS
            assert event.detail.isprintable()
            assert whole[2]


class Reference:
    """What llhttp makes of the same bytes."""

    def __init__(self, data):
        self.requests = []
        self.accepted = True
        self.parser = httptools.HttpRequestParser(self)
        try:
            self.parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self.accepted = False

    def on_message_begin(self):
        self.requests.append([b"", b"", [], b""])

    def on_url(self, url):
        self.requests[-1][1] += url

    def on_header(self, name, value):
        self.requests[-1][2].append((name.lower(), value.strip(b" \t")))

    def on_headers_complete(self):
        self.requests[-1][0] = self.parser.get_method()

    def on_body(self, body):
        self.requests[-1][3] += body


@settings(max_examples=250, deadline=None)
@given(damaged(requests()))
def test_what_passes_here_and_there_is_read_alike(data):
    events = served([data])[0]
    reference = Reference(data)
    if not reference.accepted or any(isinstance(event, Rejected | StreamReset) for event in events):
        return
    hidden = (b"host", b"transfer-encoding", b"expect", b"content-length")
    ours = []
    for event in events:
        if isinstance(event, RequestHead):
            ours.append([event.method, event.path, [field for field in event.headers if field[0] not in hidden], b""])
        elif isinstance(event, RequestBody):
            ours[-1][3] += event.data
    for mine, other in zip(ours, reference.requests, strict=False):
        without_trailers = [field for field in other[2] if field[0] not in hidden][: len(mine[2])]
        assert mine == [other[0], other[1], without_trailers, other[3]]


def in_parts(events):
    """Each answer that came in one piece as its head, its body and its end."""
    for event in events:
        if isinstance(event, ResponseHead) and event.body:
            assert event.end
            yield replace(event, end=False, body=b"")
            yield ResponseBody(event.body)
            yield ResponseEnd([])
        else:
            yield event


def received(pieces):
    """The events of an answer, or that it was a fault."""
    client = H1Client()
    client.start(UpstreamRequest(b"GET", b"/", b"a", [], None, end=True))
    events = []
    try:
        for piece in pieces:
            if client.idle:
                break
            events += in_parts(client.receive(piece))
    except UpstreamProtocolError:
        return "fault"
    return merged(events), client.idle


@settings(max_examples=150, deadline=None)
@given(responses(), cuts)
def test_any_split_of_a_response_gives_the_same_events(data, cuts):
    whole = received([data])
    assert whole[1]
    assert received(pieces_of(data, cuts)) == whole
    assert received([data[at : at + 1] for at in range(len(data))]) == whole


@settings(max_examples=200, deadline=None)
@given(damaged(responses()), cuts)
def test_any_split_of_a_malformed_response_is_the_same_fault(data, cuts):
    assert received(pieces_of(data, cuts)) == received([data])


@settings(max_examples=150, deadline=None)
@given(
    method=st.sampled_from([b"GET", b"POST", b"X-Y"]),
    path=paths,
    headers=fields,
    pieces=bodies,
    trailers=fields,
    sized=st.booleans(),
    cuts=cuts,
)
def test_requests_round_trip(*, method, path, headers, pieces, trailers, sized, cuts):
    client = H1Client()
    size = sum(map(len, pieces))
    framing = [(b"content-length", b"%d" % size)] if sized else []
    data = client.start(UpstreamRequest(method, path, b"a", headers + framing, size if sized else None, end=False))
    data += b"".join(map(client.encode_data, pieces)) + client.encode_end(trailers)
    events = served(pieces_of(data, cuts))[0]
    ended = sized and not size
    expected = [RequestHead(1, method, b"https", b"a", path, headers + framing, ended, size if sized else None)]
    if size:
        expected.append(RequestBody(1, b"".join(pieces), size))
    if not ended:
        expected.append(RequestEnd(1, [] if sized else trailers))
    assert events == expected


@settings(max_examples=150, deadline=None)
@given(
    status=st.sampled_from([200, 206, 404, 503]),
    headers=fields,
    pieces=bodies,
    trailers=fields,
    sized=st.booleans(),
    limit=st.integers(1, 50),
    cuts=cuts,
)
def test_responses_round_trip(*, status, headers, pieces, trailers, sized, limit, cuts):
    engine = H1Connection(LIMITS)
    engine.receive(b"GET / HTTP/1.1\r\nHost: a\r\nTE: trailers\r\n\r\n", 0.0)
    size = sum(map(len, pieces))
    framing = [(b"content-length", b"%d" % size)] if sized else []
    engine.send_head(1, status, headers + framing, end=False)
    for piece in pieces:
        engine.send_data(1, piece, end=False)
    engine.send_trailers(1, trailers)
    data = b""
    while piece := engine.take_output(limit):
        assert len(piece) <= limit
        data += piece
    assert not engine.finished
    ended = sized and not size
    expected = [ResponseHead(status, headers + framing, ended, size if sized else None)]
    if size:
        expected.append(ResponseBody(b"".join(pieces)))
    if not ended:
        expected.append(ResponseEnd([] if sized else trailers))
    assert received(pieces_of(data, cuts)) == (expected, True)
