"""Malformed HTTP/1.1 on real connections: each is refused with the right status and counted, no backend sees it, the rest goes on."""

import pytest
from harness.guard import Guard, rejected
from harness.wire import wire

HOST = b"host: a.example.com\r\n"
GOOD = b"GET /hello HTTP/1.1\r\n" + HOST + b"\r\n"
HELLO = b"Hello from a.example.com (HTTP/1.1)!\n"
VERSION = "HTTP/1.1"


def get(target: bytes = b"/never", *fields: bytes, method: bytes = b"GET", version: bytes = b"HTTP/1.1", host: bytes = HOST) -> bytes:
    return method + b" " + target + b" " + version + b"\r\n" + host + b"".join(field + b"\r\n" for field in fields) + b"\r\n"


def post(*fields: bytes, body: bytes = b"", host: bytes = HOST) -> bytes:
    return get(b"/never", *fields, method=b"POST", host=host) + body


@pytest.fixture(scope="module")
def guard(authority, proxy, backends):
    return Guard(authority, proxy, backends)


SMUGGLED = b"GET /never-smuggled HTTP/1.1\r\nhost: a.example.com\r\n\r\n"
CHUNKED = b"transfer-encoding: chunked"

SMUGGLING = {
    "content-length and then transfer-encoding": (post(b"content-length: 6", CHUNKED, body=b"0\r\n\r\nG"), 400, "transfer_encoding"),
    "transfer-encoding and then content-length": (
        post(CHUNKED, b"content-length: 4", body=b"33\r\n" + SMUGGLED + b"\r\n0\r\n\r\n"),
        400,
        "transfer_encoding",
    ),
    "transfer-encoding and content-length 0": (post(CHUNKED, b"content-length: 0", body=b"0\r\n\r\n"), 400, "transfer_encoding"),
    "two codings, the second unknown": (post(CHUNKED, b"transfer-encoding: cow", body=SMUGGLED), 400, "transfer_encoding"),
    "two codings, the second identity": (post(CHUNKED, b"transfer-encoding: identity"), 400, "transfer_encoding"),
    "chunked twice": (post(b"transfer-encoding: chunked, chunked"), 400, "transfer_encoding"),
    "xchunked": (post(b"transfer-encoding: xchunked"), 400, "transfer_encoding"),
    "chunked in quotes": (post(b'transfer-encoding: "chunked"'), 400, "transfer_encoding"),
    "chunked with a parameter": (post(b"transfer-encoding: chunked;q=1"), 400, "transfer_encoding"),
    "identity alone": (post(b"transfer-encoding: identity"), 400, "transfer_encoding"),
    "an empty transfer-encoding": (post(b"transfer-encoding:", body=SMUGGLED), 400, "transfer_encoding"),
    "gzip before chunked": (post(b"transfer-encoding: gzip, chunked"), 501, "transfer_encoding"),
    "vertical tab before chunked": (post(b"transfer-encoding: \x0bchunked"), 400, "field_value"),
    "transfer-encoding with a space before the colon": (post(b"transfer-encoding : chunked", body=SMUGGLED), 400, "field_name"),
    "transfer-encoding in a folded line": (post(b"x-folded: a", b" transfer-encoding: chunked", body=SMUGGLED), 400, "field_name"),
    "a folded value": (post(b"transfer-encoding:", b" chunked", body=SMUGGLED), 400, "syntax"),
    "transfer-encoding on HTTP/1.0": (get(b"/never", CHUNKED, method=b"POST", version=b"HTTP/1.0"), 400, "transfer_encoding"),
    "an underscore does not make it a framing field": (post(b"content-length: +3", b"transfer_encoding: chunked"), 400, "content_length"),
    "content-length twice with other values": (post(b"content-length: 3", b"content-length: 4", body=b"abcd"), 400, "content_length"),
    "content-length as a list": (post(b"content-length: 3, 3", body=b"abc"), 400, "content_length"),
    "content-length with a plus": (post(b"content-length: +3", body=b"abc"), 400, "content_length"),
    "content-length below 0": (post(b"content-length: -1"), 400, "content_length"),
    "content-length in hex": (post(b"content-length: 0x3", body=b"abc"), 400, "content_length"),
    "content-length with a space inside": (post(b"content-length: 3 0", body=b"abc"), 400, "content_length"),
    "content-length beyond 63 bits": (post(b"content-length: 99999999999999999999"), 400, "content_length"),
    "content-length empty": (post(b"content-length:", body=SMUGGLED), 400, "content_length"),
    "content-length in Arabic digits": (post("content-length: \u0663".encode()), 400, "content_length"),
    "Connection names content-length": (post(b"content-length: 3", b"connection: content-length", body=b"abc"), 400, "connection_field"),
    "Connection names host": (post(b"connection: close, host"), 400, "connection_field"),
}

LINES = {
    "space before the colon": (get(b"/never", b"x-field : 1"), 400, "field_name"),
    "tab before the colon": (get(b"/never", b"x-field\t: 1"), 400, "field_name"),
    "white space before the first field": (b"GET /never HTTP/1.1\r\n host: a.example.com\r\n\r\n", 400, "field_name"),
    "a field without a colon": (get(b"/never", b"x-field"), 400, "syntax"),
    "a field without a name": (get(b"/never", b": 1"), 400, "field_name"),
    "a separator in a name": (get(b"/never", b"x(field): 1"), 400, "field_name"),
    "a letter beyond ASCII in a name": (get(b"/never", "x-f\u00efeld: 1".encode()), 400, "field_name"),
    "NUL in a name": (get(b"/never", b"x-\0field: 1"), 400, "field_name"),
    "NUL in a value": (get(b"/never", b"x-field: a\0b"), 400, "field_value"),
    "a bell in a value": (get(b"/never", b"x-field: a\x07b"), 400, "field_value"),
    "DEL in a value": (get(b"/never", b"x-field: a\x7fb"), 400, "field_value"),
    "CR alone in a value": (get(b"/never", b"x-field: a\rb"), 400, "field_value"),
    "CR alone in place of a line end": (b"GET /never HTTP/1.1\rhost: a.example.com\r\r\n\r\n", 400, "syntax"),
    "LF alone between the lines": (b"GET /never HTTP/1.1\nhost: a.example.com\n\n", 400, "syntax"),
    "LF alone behind one field": (get(b"/never", b"x-field: a\nx-other: b"), 400, "syntax"),
    "LF alone before a request": (b"\n" + get(), 400, "syntax"),
    "two CRs": (b"GET /never HTTP/1.1\r\r\n" + HOST + b"\r\n", 400, "syntax"),
    "spaces between the words of the line": (b"GET  /never HTTP/1.1\r\n" + HOST + b"\r\n", 400, "syntax"),
    "a tab between the words of the line": (b"GET\t/never HTTP/1.1\r\n" + HOST + b"\r\n", 400, "syntax"),
    "a space behind the line": (b"GET /never HTTP/1.1 \r\n" + HOST + b"\r\n", 400, "syntax"),
    "a space in the target": (get(b"/never more"), 400, "syntax"),
    "HTTP/0.9": (b"GET /never\r\n\r\n", 400, "syntax"),
    "empty lines without end": (b"\r\n" * 50 + get(), 400, "syntax"),
    "bytes of TLS inside TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 32 + b"\r\n\r\n", 400, "syntax"),
    "the preface of HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, "version"),
    "HTTP/1.2": (get(version=b"HTTP/1.2"), 505, "version"),
    "HTTP/2.0": (get(version=b"HTTP/2.0"), 505, "version"),
    "HTTP/0.9 as a number": (get(version=b"HTTP/0.9"), 505, "version"),
    "HTTP/1.10": (get(version=b"HTTP/1.10"), 400, "syntax"),
    "HTTP/1": (get(version=b"HTTP/1"), 400, "syntax"),
    "http/1.1": (get(version=b"http/1.1"), 400, "syntax"),
    "RTSP": (get(version=b"RTSP/1.0"), 400, "syntax"),
    "no method": (b" /never HTTP/1.1\r\n" + HOST + b"\r\n", 400, "method"),
    "a bracket in the method": (get(method=b"GE(T"), 400, "method"),
    "NUL in the method": (get(method=b"G\0T"), 400, "method"),
    "CONNECT": (get(b"a.example.com:443", method=b"CONNECT"), 501, "not_implemented"),
    "an upgrade to websocket": (get(b"/never", b"connection: upgrade", b"upgrade: websocket"), 501, "not_implemented"),
    "an unknown expectation": (post(b"expect: 200-maybe", b"content-length: 3", body=b"abc"), 417, "expect"),
    "a head beyond 32 KiB": (get(b"/never", b"x-field: " + b"a" * 33000), 431, "header_too_large"),
    "a line beyond 32 KiB": (get(b"/never" + b"a" * 33000), 414, "header_too_large"),
    "a line without end": (b"GET /never" + b"a" * 33000, 414, "header_too_large"),
    "fields of 32 bytes each beyond 32 KiB": (get(b"/never", *[b"x: " + b"a" * 300] * 99), 431, "header_too_large"),
    "a hundred fields too many": (get(b"/never", *[b"x: 1"] * 200), 431, "too_many_fields"),
}

TARGETS = {
    "no host": (get(host=b""), 400, "authority"),
    "an empty host": (get(host=b"host:\r\n"), 400, "authority"),
    "host twice": (get(host=HOST + HOST), 400, "authority"),
    "another host behind it": (get(host=HOST + b"host: b.example.com\r\n"), 400, "authority"),
    "two hosts in one field": (get(host=b"host: a.example.com, b.example.com\r\n"), 400, "authority"),
    "user information in the host": (get(host=b"host: admin@a.example.com\r\n"), 400, "authority"),
    "a path in the host": (get(host=b"host: a.example.com/admin\r\n"), 400, "authority"),
    "a space in the host": (get(host=b"host: a.example.com b\r\n"), 400, "authority"),
    "port 0": (get(host=b"host: a.example.com:0\r\n"), 400, "authority"),
    "port 65536": (get(host=b"host: a.example.com:65536\r\n"), 400, "authority"),
    "an empty port": (get(host=b"host: a.example.com:\r\n"), 400, "authority"),
    "a broken IPv6 address": (get(host=b"host: [::1\r\n"), 400, "authority"),
    "absolute-form against host": (get(b"https://b.example.com/never"), 400, "authority"),
    "absolute-form with another scheme": (get(b"http://a.example.com/never"), 400, "scheme"),
    "absolute-form with a scheme that is none of HTTP's": (get(b"ftp://a.example.com/never"), 400, "scheme"),
    "absolute-form without a host": (get(b"https:///never"), 400, "authority"),
    "absolute-form with user information": (get(b"https://x@a.example.com/never"), 400, "authority"),
    "authority-form": (get(b"a.example.com:443"), 400, "path"),
    "asterisk-form for GET": (get(b"*"), 400, "path"),
    "no slash": (get(b"never"), 400, "path"),
    "a fragment": (get(b"/never#fragment"), 400, "path"),
    "dot segments": (get(b"/a/../never"), 400, "path"),
    "one dot": (get(b"/./never"), 400, "path"),
    "a dot segment at the end": (get(b"/never/.."), 400, "path"),
    "dot segments, percent-encoded": (get(b"/a/%2e%2E/never"), 400, "path"),
    "dot segments behind an encoded slash": (get(b"/a%2f..%2fnever"), 400, "path"),
    "dot segments with parameters": (get(b"/a/..;x=1/never"), 400, "path"),
    "a backslash": (get(b"/a\\..\\never"), 400, "path"),
    "NUL, percent-encoded": (get(b"/never%00.png"), 400, "path"),
    "CR and LF, percent-encoded": (get(b"/never%0d%0ax-injected:1"), 400, "path"),
    "a percent sign without digits": (get(b"/never%zz"), 400, "path"),
    "NUL in the path": (get(b"/never\0"), 400, "path"),
    "bytes beyond ASCII in the path": (get("/never/\u00e9".encode()), 400, "path"),
}

CASES = SMUGGLING | LINES | TARGETS


@pytest.mark.parametrize("name", CASES)
def test_a_malformed_head_is_refused_and_ends_the_connection(authority, proxy, guard, name):
    """What follows it on the connection is never read as a request, wherever the malformed one was thought to end."""
    data, status, reason = CASES[name]
    with guard.case(rejected(VERSION, reason)), wire(authority, proxy.port) as connection:
        connection.send(data + SMUGGLED)
        answer = connection.reply()
        assert answer.status == status
        assert answer.get("connection") == "close"
        assert connection.rest() == b""


BODIES = {
    "a size that is no number": (b"xyz\r\nabc\r\n0\r\n\r\n", "chunk"),
    "a size below 0": (b"-3\r\nabc\r\n0\r\n\r\n", "chunk"),
    "a size with 0x": (b"0x3\r\nabc\r\n0\r\n\r\n", "chunk"),
    "a size with a plus": (b"+3\r\nabc\r\n0\r\n\r\n", "chunk"),
    "white space before a size": (b" 3\r\nabc\r\n0\r\n\r\n", "chunk"),
    "white space behind a size": (b"3 \r\nabc\r\n0\r\n\r\n", "chunk"),
    "an empty size": (b"\r\nabc\r\n0\r\n\r\n", "chunk"),
    "a size beyond 60 bits": (b"fffffffffffffffff\r\nabc", "chunk"),
    "a size with an underscore": (b"1_0\r\n" + b"a" * 16 + b"\r\n0\r\n\r\n", "chunk"),
    "LF alone behind a size": (b"3\nabc\r\n0\r\n\r\n", "chunk"),
    "CR alone within a size line": (b"3;a\rb\r\nabc\r\n0\r\n\r\n", "chunk"),
    "LF alone within an extension": (b"3;a\nb\r\nabc\r\n0\r\n\r\n", "chunk"),
    "NUL within an extension": (b"3;a\0b\r\nabc\r\n0\r\n\r\n", "chunk"),
    "data longer than its size": (b"3\r\nabcd\r\n0\r\n\r\n", "chunk"),
    "data shorter than its size": (b"5\r\nabc\r\n0\r\n\r\n" + b"x" * 8, "chunk"),
    "no line end behind the data": (b"3\r\nabc0\r\n\r\n", "chunk"),
    "a size line without end": (b"3;" + b"a" * 2000, "chunk"),
    "extensions without data": (b"".join(b"1;" + b"e" * 400 + b"\r\na\r\n" for _ in range(100)) + b"0\r\n\r\n", "chunk"),
    "a folded trailer": (b"0\r\nx-a: 1\r\n b\r\n\r\n", "syntax"),
    "content-length as a trailer": (b"0\r\ncontent-length: 3\r\n\r\n", "trailers"),
    "transfer-encoding as a trailer": (b"0\r\ntransfer-encoding: chunked\r\n\r\n", "trailers"),
    "host as a trailer": (b"0\r\nhost: b.example.com\r\n\r\n", "trailers"),
    "NUL in a trailer": (b"0\r\nx-a: \0\r\n\r\n", "field_value"),
    "trailers without end": (b"0\r\n" + b"x-a: " + b"a" * 33000 + b"\r\n\r\n", "header_too_large"),
    "too many trailers": (b"0\r\n" + b"x: 1\r\n" * 200 + b"\r\n", "too_many_fields"),
}


@pytest.mark.parametrize("name", BODIES)
def test_a_malformed_body_is_refused_and_is_never_complete_at_the_backend(authority, proxy, guard, name):
    """The head may be at the backend by then; /hello answers only a complete request, so that an answer would show."""
    body, reason = BODIES[name]
    with guard.case(rejected(VERSION, reason)), wire(authority, proxy.port) as connection:
        connection.send(get(b"/hello", CHUNKED, method=b"POST") + body + SMUGGLED)
        answer = connection.reply()
        assert answer.status in (400, 431)
        assert answer.get("connection") == "close"
        assert connection.rest() == b""


def test_a_malformed_request_amid_pipelined_ones_is_answered_in_its_turn(authority, proxy, guard):
    """The good one before it gets its answer first; the good one behind it is never read."""
    with guard.case(rejected(VERSION, "path")), wire(authority, proxy.port) as connection:
        connection.send(GOOD + GOOD.replace(b"/hello", b"/bytes/70000") + get(b"/../never") + GOOD)
        first, second, third = connection.reply(), connection.reply(), connection.reply()
        assert (first.status, first.body) == (200, HELLO)
        assert (second.status, len(second.body)) == (200, 70000)
        assert (third.status, third.get("connection")) == (400, "close")
        assert connection.rest() == b""


def test_bytes_behind_a_body_are_no_part_of_it(authority, proxy, guard):
    """A body longer than its content-length: the request is answered, and the rest is judged as the beginning of the next."""
    with guard.case(rejected(VERSION, "syntax")), wire(authority, proxy.port) as connection:
        connection.send(get(b"/upload", b"content-length: 3", method=b"POST") + b"abcdefgh\r\n\r\n")
        first, second = connection.reply(), connection.reply()
        assert (first.status, b'"size": 3' in first.body) == (200, True)
        assert second.status == 400
        assert connection.rest() == b""


def test_one_byte_at_a_time_changes_nothing(authority, proxy, guard):
    """The good request and the malformed one behind it, each byte in a TLS record of its own."""
    with guard.case(rejected(VERSION, "content_length")), wire(authority, proxy.port) as connection:
        for byte in GOOD + post(b"content-length: 1x"):
            connection.send(bytes((byte,)))
        assert connection.reply().body == HELLO
        assert connection.reply().status == 400
        assert connection.rest() == b""


def test_a_flood_of_bytes_behind_a_refusal_is_not_held(authority, proxy, guard):
    """Sixteen megabytes behind a malformed head don't grow the process."""
    before = proxy.rss()
    with guard.case(rejected(VERSION, "method")), wire(authority, proxy.port) as connection:
        connection.send(get(method=b"{}"))
        for _ in range(256):
            connection.send(b"x" * 65536)
        connection.rest()
    assert proxy.rss() - before < 8 * 1024 * 1024


WELL_FORMED = {
    "an empty line before a request": b"\r\n" + GOOD,
    "a name in upper case": b"GET /hello HTTP/1.1\r\nHOST: a.example.com\r\n\r\n",
    "tabs around a value": b"GET /hello HTTP/1.1\r\nhost:\ta.example.com\t\r\n\r\n",
    "the same content-length twice": get(b"/hello", b"content-length: 3", b"content-length: 3", method=b"POST") + b"abc",
    "absolute-form": b"GET https://a.example.com/hello HTTP/1.1\r\n" + HOST + b"\r\n",
    "absolute-form with the default port": b"GET https://a.example.com:443/hello HTTP/1.1\r\n" + HOST + b"\r\n",
    "chunked in upper case": get(b"/hello", b"Transfer-Encoding: CHUNKED", method=b"POST") + b"3;ext=1\r\nabc\r\n0\r\n\r\n",
    "an offer of h2c, which may be ignored": get(b"/hello", b"connection: upgrade, http2-settings", b"upgrade: h2c", b"http2-settings: AA"),
    "bytes beyond ASCII in a value": get(b"/hello", "x-field: \u00e9".encode()),
    "dots that are no segment": get(b"/hello", b"x-field: 1").replace(b"/hello", b"/hello?a=/../b"),
}


@pytest.mark.parametrize("name", WELL_FORMED)
def test_what_looks_odd_and_is_well_formed_is_served(authority, proxy, guard, name):
    """Strict is not narrow: each of these is answered, and the connection goes on."""
    with wire(authority, proxy.port) as connection:
        answer = connection.ask(WELL_FORMED[name])
        assert (answer.status, answer.body) == (200, HELLO)
        assert connection.ask(GOOD).body == HELLO
    guard.check()
