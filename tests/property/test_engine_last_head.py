"""What a connection keeps of its last head is only speed: every head is judged as if it were the first."""

from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from proxy.engine.events import Event, Rejected, RequestHead
from proxy.engine.h1 import H1Connection
from proxy.engine.last_head import LastFields
from proxy.engine.seam import EngineLimits
from proxy.engine.validate import Malformed, pseudo_request

LIMITS = EngineLimits(header_bytes=400, header_count=6)

TARGETS = [b"/", b"/a?b", b"/a/../b", b"/\xff", b"/%2e%2e/", b"*", b"http://a/x", b"https://a/x", b"/a b", b"/a\nb", b"", b"/" + b"x" * 300]
LINES = st.builds(
    b"%b %b %b".__mod__,
    st.tuples(
        st.sampled_from([b"GET", b"HEAD", b"OPTIONS", b"CONNECT", b"FOO", b"G\nET", b""]),
        st.sampled_from(TARGETS),
        st.sampled_from([b"HTTP/1.1", b"HTTP/1.1", b"HTTP/1.0", b"HTTP/2.0", b"HTTP/1.1 "]),
    ),
)
FIELDS = st.lists(
    st.sampled_from(
        [
            b"Host: a",
            b"host: b",
            b"Cookie: a=b",
            b"X: \xe9",
            b"Connection: close",
            b"Connection: keep-alive",
            b"Expect: 100-continue",
            b"TE: trailers",
            b"Content-Length: 0",
            b"Via: 1.1 x",
            b"Y: " + b"y" * 60,
            b" Z: 1",
        ]
    ),
    max_size=4,
)


def asked(engine: H1Connection, head: bytes) -> tuple[list[Event], bool]:
    """What comes of one request, and whether the connection goes on behind its answer."""
    events = engine.receive(head, 0.0)
    for event in events:
        if isinstance(event, RequestHead):
            engine.respond(event.stream, 204, [], b"")
    while engine.take_output(1 << 20):
        pass
    told = [replace(event, stream=0) for event in events if isinstance(event, RequestHead | Rejected)]
    return told, engine.finished


@given(st.lists(LINES, min_size=2, max_size=6), st.lists(FIELDS, min_size=1, max_size=2), st.data())
def test_heads_of_http_1_are_judged_alike_on_a_used_connection_and_on_a_new_one(lines, sections, data) -> None:
    used = H1Connection(LIMITS)
    for line in lines:
        fields = [b"Host: a", *data.draw(st.sampled_from(sections))]
        head = b"\r\n".join([line, *fields, b"", b""])
        new = H1Connection(LIMITS)
        assert asked(used, head) == asked(new, head)
        if used.finished:
            used = H1Connection(LIMITS)


PATHS = [b"/", b"/a?b", b"/a/../b", b" /", b"/ ", b"/\n", b"*", b"", b"/" + b"x" * 250]
MORE = st.lists(
    st.sampled_from(
        [
            (b"cookie", b"a=b"),
            (b"cookie", b"c=d"),
            (b"te", b"trailers"),
            (b"via", b"1.1 x"),
            (b"content-length", b"0"),
            (b"expect", b"100-continue"),
            (b"x", b"y "),
        ]
    ),
    max_size=3,
)


def judged(fields: tuple[tuple[bytes, bytes], ...]) -> Any:
    """The head, or why it is refused."""
    try:
        return pseudo_request(1, fields, LIMITS, end=True)
    except Malformed as error:
        return error.reason


@given(st.lists(st.sampled_from(PATHS), min_size=2, max_size=6), st.lists(MORE, min_size=1, max_size=2), st.booleans(), st.data())
def test_heads_of_http_2_are_judged_alike_on_a_used_connection_and_on_a_new_one(paths, sections, last, data) -> None:
    used = LastFields()
    for path in paths:
        method = data.draw(st.sampled_from([b"GET", b"HEAD", b"OPTIONS"]))
        named = [(b":method", method), (b":scheme", b"https"), (b":authority", b"a")]
        named.insert(3 if last else 1, (b":path", path))
        fields = (*named, *data.draw(st.sampled_from(sections)))
        expected = judged(fields)
        found = used.again(1, fields)
        assert found is None or (found, found.plain) == (expected, expected.plain)
        if isinstance(expected, RequestHead) and expected.content_length is None and not expected.expect_continue:
            used.keep(fields, expected, LIMITS)
            assert used.again(1, fields) == (expected if path[:1] == b"/" else None)
            expected.headers.append((b"x-mine", b"1"))  # what became of the event is nothing to the next
            assert used.again(1, fields) != expected
