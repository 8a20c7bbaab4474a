"""HTTP/1.1 to backends as a dialogue: what is sent for a request, and the events of what comes back."""

import pytest

from proxy.engine.events import Informational, ResponseBody, ResponseEnd, ResponseHead, UpstreamRequest
from proxy.engine.h1_client import INFORMATIONAL_RESPONSES, H1Client, UpstreamProtocolError
from proxy.engine.validate import RESPONSE_LIMITS


def asked(method=b"GET", headers=(), *, end=True):
    client = H1Client()
    start(client, method, b"/", headers, end=end)
    return client


def start(client, method, target, headers=(), *, end):
    """A request whose content-length, if it has one, is known."""
    length = dict(headers).get(b"content-length")
    return client.start(UpstreamRequest(method, target, b"a", list(headers), None if length is None else int(length), end))


def answered(data, method=b"GET"):
    client = asked(method)
    return client, client.receive(data)


def fault(call, *args):
    with pytest.raises(UpstreamProtocolError) as caught:
        call(*args)
    assert str(caught.value) == caught.value.detail
    return caught.value.detail


# Requests


def test_a_request_without_a_body():
    client = H1Client()
    assert (client.idle, client.reusable) == (True, True)
    assert start(client, b"GET", b"/a?b", [(b"accept", b"*/*")], end=True) == b"GET /a?b HTTP/1.1\r\nhost: a\r\naccept: */*\r\n\r\n"
    assert (client.idle, client.reusable) == (False, False)


@pytest.mark.parametrize("method", [b"POST", b"PUT", b"PATCH"])
def test_methods_that_expect_content_say_that_there_is_none(method):
    assert start(H1Client(), method, b"/", end=True) == method + b" / HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n"


def test_a_body_with_its_length():
    client = H1Client()
    sent = start(client, b"POST", b"/", [(b"content-length", b"5")], end=False)
    assert sent == b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\n"
    assert (client.encode_data(b"hel"), client.encode_data(b"lo"), client.encode_end([(b"x", b"y")])) == (b"hel", b"lo", b"")


def test_a_body_in_chunks_with_trailers():
    client = H1Client()
    sent = start(client, b"POST", b"/", end=False)
    assert sent == b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n"
    assert client.encode_data(b"") == b""
    assert client.encode_data(b"x" * 17) == b"11\r\n" + b"x" * 17 + b"\r\n"
    assert client.encode_end([(b"x-sum", b"1")]) == b"0\r\nx-sum: 1\r\n\r\n"


def test_a_body_of_another_length_is_never_sent():
    client = asked(b"POST", [(b"content-length", b"5")], end=False)
    client.encode_data(b"hel")
    assert fault(client.encode_data, b"lo!") == "the request body is longer than its content-length"
    assert fault(client.encode_end, []) == "the request body is shorter than its content-length"
    with pytest.raises(UpstreamProtocolError):
        asked(b"POST", [(b"content-length", b"5")], end=True)


def test_one_request_at_a_time():
    client = asked()
    with pytest.raises(UpstreamProtocolError):
        start(client, b"GET", b"/", end=True)


# Responses


def test_answers_one_after_the_other():
    client = asked()
    assert client.receive(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-Y:  z \r\n\r\nhello") == [
        ResponseHead(200, [(b"content-length", b"5"), (b"x-y", b"z")], True, 5, b"hello"),
    ]
    assert (client.idle, client.reusable) == (True, True)
    start(client, b"GET", b"/", end=True)
    assert client.receive(b"HTTP/1.1 404 \r\ncontent-length: 0\r\n\r\n") == [ResponseHead(404, [(b"content-length", b"0")], True, 0)]
    assert client.reusable


def test_an_answer_in_pieces():
    client = asked()
    assert client.receive(b"HTTP/1.1 200 O") == []
    assert client.receive(b"K\r\nContent-Length: 5\r\n\r") == []
    assert client.receive(b"\nhe") == [ResponseHead(200, [(b"content-length", b"5")], False, 5), ResponseBody(b"he")]
    assert client.receive(b"") == []
    assert (client.receive(b"ll"), client.idle) == ([ResponseBody(b"ll")], False)
    assert client.receive(b"o") == [ResponseBody(b"o"), ResponseEnd([])]
    assert client.reusable


def test_a_long_head_in_pieces_leaves_no_trace():
    client = asked()
    assert client.receive(b"HTTP/1.1 200 OK\r\nX: " + b"a" * 500) == []
    assert len(client.receive(b"\r\nContent-Length: 0\r\n\r\n")) == 1
    start(client, b"GET", b"/", end=True)
    assert client.receive(b"HTTP/1.1 204\r\n\r\n") == [ResponseHead(204, [], True)]


def test_chunks_of_one_read_are_one_piece():
    client, events = answered(b"HTTP/1.1 200\r\nTransfer-Encoding: Chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nX-Sum: 1\r\n\r\n")
    assert events == [ResponseHead(200, [], False), ResponseBody(b"abcde"), ResponseEnd([(b"x-sum", b"1")])]
    assert client.reusable


def test_a_chunk_is_delivered_as_it_arrives():
    client, events = answered(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\nabc")
    assert events == [ResponseHead(200, [], False), ResponseBody(b"abc")]
    assert (client.receive(b"d" * 252 + b"\r"), client.receive(b"\n0\r"), client.receive(b"\n\r\n")) == (
        [ResponseBody(b"d" * 252)],
        [],
        [ResponseEnd([])],
    )


def test_a_body_up_to_the_end_of_the_connection():
    client, events = answered(b"HTTP/1.1 200 OK\r\n\r\nabc")
    assert events == [ResponseHead(200, [], False), ResponseBody(b"abc")]
    assert (client.receive(b"d"), client.receive_eof()) == ([ResponseBody(b"d")], [ResponseEnd([])])
    assert (client.idle, client.reusable) == (True, False)


@pytest.mark.parametrize(
    ("method", "status", "fields"),
    [
        (b"HEAD", 200, b"Content-Length: 5\r\n"),
        (b"HEAD", 200, b"Transfer-Encoding: chunked\r\n"),
        (b"HEAD", 200, b""),
        (b"GET", 204, b""),
        (b"GET", 304, b"Content-Length: 5\r\n"),
    ],
)
def test_answers_without_a_body(method, status, fields):
    client, events = answered(b"HTTP/1.1 %d X\r\n%b\r\n" % (status, fields), method)
    length = 5 if b"5" in fields else None
    assert events == [ResponseHead(status, [(b"content-length", b"5")] if length else [], True, length)]
    assert client.reusable


def test_informational_answers_come_before():
    data = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
    client, events = answered(data)
    expected = [Informational(100, []), Informational(103, [(b"link", b"x")]), ResponseHead(200, [(b"content-length", b"0")], True, 0)]
    assert events == expected
    assert client.reusable


@pytest.mark.parametrize(
    ("data", "reusable"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: x, Close\r\n\r\n", False),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: keep-alive\r\n\r\n", True),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\nConnection: keep-alive\r\n\r\n", False),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n", False),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\nx", False),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nxHTTP/1.1 200 OK\r\n\r\n", False),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n0", False),
    ],
)
def test_what_ends_the_connection(data, reusable):
    client, events = answered(data)
    assert (events[0].status, client.idle, client.reusable) == (200, True, reusable)


def test_hop_by_hop_fields_stay_for_the_policy():
    _, events = answered(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: X-Y\r\nX-Y: 1\r\nKeep-Alive: timeout=5\r\n\r\n")
    assert events[0].headers == [(b"content-length", b"0"), (b"connection", b"X-Y"), (b"x-y", b"1"), (b"keep-alive", b"timeout=5")]


def test_an_answer_before_the_end_of_the_request():
    client = asked(b"POST", end=False)
    assert len(client.receive(b"HTTP/1.1 413 X\r\nContent-Length: 0\r\n\r\n")) == 1
    assert (client.idle, client.reusable) == (False, False)
    assert client.encode_data(b"x") == b"1\r\nx\r\n"
    assert client.encode_end([]) == b"0\r\n\r\n"
    assert (client.idle, client.reusable) == (True, True)


# Faults

FAULTS = {
    "not HTTP": b"SSH-2.0-x\r\n\r\n",
    "HTTP/2": b"HTTP/2.0 200 OK\r\n\r\n",
    "HTTP/1.2": b"HTTP/1.2 200 OK\r\n\r\n",
    "no status": b"HTTP/1.1 \r\n\r\n",
    "short status": b"HTTP/1.1 20\r\n\r\n",
    "long status": b"HTTP/1.1 2000 OK\r\n\r\n",
    "signed status": b"HTTP/1.1 +20 OK\r\n\r\n",
    "status 600": b"HTTP/1.1 600 OK\r\n\r\n",
    "status 099": b"HTTP/1.1 099 OK\r\n\r\n",
    "switching protocols": b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
    "LF line ends": b"HTTP/1.1 200 OK\nContent-Length: 0\n\n",
    "LF in a value": b"HTTP/1.1 200 OK\r\nX: a\nY: b\r\n\r\n",
    "CR in a value": b"HTTP/1.1 200 OK\r\nX: a\rb\r\n\r\n",
    "NUL in a value": b"HTTP/1.1 200 OK\r\nX: a\0b\r\n\r\n",
    "no colon": b"HTTP/1.1 200 OK\r\nX\r\n\r\n",
    "white space before the colon": b"HTTP/1.1 200 OK\r\nContent-Length : 5\r\n\r\n",
    "folded": b"HTTP/1.1 200 OK\r\nX: a\r\n b: c\r\n\r\n",
    "length and chunked": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
    "signed length": b"HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\n",
    "list of lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 5, 5\r\n\r\n",
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
    "another coding": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
    "empty coding": b"HTTP/1.1 200 OK\r\nTransfer-Encoding:\r\n\r\n",
    "chunked on HTTP/1.0": b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
    "chunk size": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0x5\r\nhello\r\n",
    "chunk end": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhelloX\r\n",
    "many fields": b"HTTP/1.1 200 OK\r\n" + b"X: a\r\n" * (RESPONSE_LIMITS.header_count + 1) + b"\r\n",
    "endless head": b"HTTP/1.1 200 OK\r\nX: " + b"a" * (RESPONSE_LIMITS.header_bytes + 4),
    "endless informational": b"HTTP/1.1 100 Continue\r\n\r\n" * (INFORMATIONAL_RESPONSES + 1),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_end_the_connection(name):
    client = asked()
    assert fault(client.receive, FAULTS[name]).isprintable()
    assert (client.idle, client.reusable) == (False, False)
    fault(client.receive, b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    fault(client.receive_eof)


def test_bytes_while_idle():
    client = H1Client()
    assert fault(client.receive, b"HTTP/1.1 408 Request Timeout\r\n\r\n") == "bytes without a request"
    assert (client.idle, client.reusable) == (False, False)


@pytest.mark.parametrize(
    ("data", "detail"),
    [
        (b"", "closed before a response"),
        (b"HTTP/1.1 2", "closed before the response was complete"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhell", "closed before the response was complete"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhell\r\n", "closed before the response was complete"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhell\r\n0\r\n", "closed before the response was complete"),
    ],
)
def test_eof_within_an_answer(data, detail):
    client, _ = answered(data)
    assert fault(client.receive_eof) == detail


def test_eof_while_idle():
    client, _ = answered(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    assert (client.receive_eof(), client.idle, client.reusable) == ([], True, False)
