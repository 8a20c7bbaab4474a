"""What breaks HTTP/3's rules (RFC 9114, section 8.1): what ends the connection, and what costs a stream."""

from collections.abc import Callable, Sequence

from harness import raw3 as r
from harness.conformance.case import H3, Case
from harness.conformance.transport import CANCELLED, OURS, STOP_SENDING, v
from harness.raw3 import Raw3, frame, head, varint

MAX_PUSH_ID, GOAWAY, SETTINGS = r.MAX_PUSH_ID, r.GOAWAY, frame(r.SETTINGS)
PRIORITY_UPDATE = 0xF0700
GREASE = 0x21 + 31 * 7


def request(path: bytes = b"/hello", *more: tuple[bytes, bytes], method: bytes = b"GET", authority: bytes = b"a.example.com"):
    return [(b":method", method), (b":scheme", b"https"), (b":authority", authority), (b":path", path), *more]


NEVER = request(b"/never")
UPLOAD = head(request(b"/upload", method=b"POST"))
TRAILERS = head([(b"x-a", b"1")])


def control(data: bytes) -> Callable[[Raw3], int]:
    """Bytes of a control stream."""
    return lambda client: client.control(data)


def streams(*beginnings: bytes, end: bool = False) -> Callable[[Raw3], None]:
    """Unidirectional streams that begin so."""

    def act(client: Raw3) -> None:
        for data in beginnings:
            client.unidirectional(data, end=end)

    return act


def asks(data: bytes, *, end: bool = True) -> Callable[[Raw3], int]:
    """Bytes of a request stream."""
    return lambda client: client.stream(data, end=end)


def close_control(client: Raw3) -> None:
    client.send(client.control(), b"", end=True)


async def reset_control(client: Raw3) -> None:
    """Once it is known for one: a reset may overtake what was sent before it."""
    stream = client.control()
    await client.ping()
    client.quic.reset_stream(stream, CANCELLED)
    client.transmit()


async def stop_ours(client: Raw3) -> None:
    """Ask the server to stop its control stream, which it must not."""
    await client.ping()  # it is open
    client.packet(v(STOP_SENDING, OURS, CANCELLED))


def on_control(name: str, section: str, data: bytes, code: H3) -> Case:
    return Case(name, f"RFC 9114, {section}", control(data), code, control=False)


def on_request(name: str, section: str, data: bytes, code: H3) -> Case:
    return Case(name, f"RFC 9114, {section}", asks(data), code)


def malformed(name: str, section: str, data: bytes, reason: str) -> Case:
    return Case(name, f"RFC 9114, {section}", asks(data), H3.H3_MESSAGE_ERROR, stream=True, rejected=reason)


UNEXPECTED = H3.H3_FRAME_UNEXPECTED

CONTROL: Sequence[Case] = (
    on_control("a frame before SETTINGS", "6.2.1", frame(GOAWAY, varint(0)), H3.H3_MISSING_SETTINGS),
    on_control("an unknown frame before SETTINGS", "6.2.1", frame(GREASE, b"x"), H3.H3_MISSING_SETTINGS),
    on_control("SETTINGS twice", "7.2.4", SETTINGS * 2, UNEXPECTED),
    on_control("a setting twice", "7.2.4", frame(r.SETTINGS, b"\x06\x01\x06\x01"), H3.H3_SETTINGS_ERROR),
    on_control("a setting of HTTP/2", "7.2.4.1", frame(r.SETTINGS, b"\x02\x01"), H3.H3_SETTINGS_ERROR),
    on_control("SETTINGS that are cut off", "7.1", frame(r.SETTINGS, b"\x06"), H3.H3_FRAME_ERROR),
    on_control("SETTINGS of a megabyte", "10.5", frame(r.SETTINGS, b"", length=1 << 20), H3.H3_EXCESSIVE_LOAD),
    on_control("DATA on the control stream", "7.2.1", SETTINGS + frame(r.DATA, b"x"), UNEXPECTED),
    on_control("HEADERS on the control stream", "7.2.2", SETTINGS + head(NEVER), UNEXPECTED),
    on_control("PUSH_PROMISE on the control stream", "7.2.5", SETTINGS + frame(r.PUSH_PROMISE, b"\0"), UNEXPECTED),
    on_control("PING of HTTP/2", "7.2.8", SETTINGS + frame(0x6, bytes(8)), UNEXPECTED),
    on_control("WINDOW_UPDATE of HTTP/2", "7.2.8", SETTINGS + frame(0x8, bytes(4)), UNEXPECTED),
    on_control("CONTINUATION of HTTP/2", "7.2.8", SETTINGS + frame(0x9), UNEXPECTED),
    on_control("GOAWAY with too many bytes", "7.1", SETTINGS + frame(GOAWAY, b"\0\0"), H3.H3_FRAME_ERROR),
    on_control("GOAWAY with too few bytes", "7.1", SETTINGS + frame(GOAWAY, b"\x40"), H3.H3_FRAME_ERROR),
    on_control("MAX_PUSH_ID without a number", "7.1", SETTINGS + frame(MAX_PUSH_ID), H3.H3_FRAME_ERROR),
    on_control("GOAWAY that goes up", "5.2", SETTINGS + frame(GOAWAY, b"\0") + frame(GOAWAY, b"\4"), H3.H3_ID_ERROR),
    on_control("MAX_PUSH_ID that goes down", "7.2.7", SETTINGS + frame(MAX_PUSH_ID, b"\4") + frame(MAX_PUSH_ID, b"\0"), H3.H3_ID_ERROR),
    on_control("CANCEL_PUSH of nothing", "7.2.3", SETTINGS + frame(r.CANCEL_PUSH, b"\0"), H3.H3_ID_ERROR),
    Case("the control stream is closed", "RFC 9114, 6.2.1", close_control, H3.H3_CLOSED_CRITICAL_STREAM, control=False),
    Case("the control stream is reset", "RFC 9114, 6.2.1", reset_control, H3.H3_CLOSED_CRITICAL_STREAM, control=False),
    Case(
        "the server is to stop its control stream",
        "RFC 9114, 6.2.1",
        stop_ours,
        H3.H3_CLOSED_CRITICAL_STREAM,
    ),
    Case("a second control stream", "RFC 9114, 6.2.1", streams(b"\0" + SETTINGS), H3.H3_STREAM_CREATION_ERROR),
    Case("a push stream", "RFC 9114, 6.2.2", streams(b"\1\0"), H3.H3_STREAM_CREATION_ERROR),
)

REQUESTS: Sequence[Case] = (
    on_request("DATA before HEADERS", "4.1", frame(r.DATA, b"abc"), UNEXPECTED),
    on_request("HEADERS after trailers", "4.1", UPLOAD + TRAILERS + TRAILERS, UNEXPECTED),
    on_request("DATA after trailers", "4.1", UPLOAD + TRAILERS + frame(r.DATA, b"x"), UNEXPECTED),
    on_request("SETTINGS on a request stream", "7.2.4", SETTINGS, UNEXPECTED),
    on_request("GOAWAY on a request stream", "7.2.6", frame(GOAWAY, b"\0"), UNEXPECTED),
    on_request("MAX_PUSH_ID on a request stream", "7.2.7", frame(MAX_PUSH_ID, b"\0"), UNEXPECTED),
    on_request("CANCEL_PUSH on a request stream", "7.2.3", frame(r.CANCEL_PUSH, b"\0"), UNEXPECTED),
    on_request("PUSH_PROMISE on a request stream", "7.2.5", frame(r.PUSH_PROMISE, b"\0"), UNEXPECTED),
    on_request("PRIORITY of HTTP/2", "7.2.8", frame(0x2, bytes(5)), UNEXPECTED),
    on_request("a stream that ends within a frame", "7.1", frame(r.HEADERS, b"\0\0", length=10), H3.H3_FRAME_ERROR),
    on_request("a stream that ends within DATA", "7.1", UPLOAD + frame(r.DATA, b"abc", length=10), H3.H3_FRAME_ERROR),
    on_request("a stream that ends within the head of a frame", "7.1", UPLOAD + b"\x40", H3.H3_FRAME_ERROR),
    Case("a stream without a request", "RFC 9114, 4.1", asks(b""), H3.H3_REQUEST_INCOMPLETE, stream=True),
    malformed("a field name in upper case", "4.2", head(request(b"/never", (b"X-Field", b"1"))), "field_name"),
    malformed("connection", "4.2", head(request(b"/never", (b"connection", b"close"))), "connection_field"),
    malformed("no method", "4.3.1", head(NEVER[1:]), "pseudo_field"),
    malformed(
        "more DATA than content-length", "4.1.2", head(request(b"/hello", (b"content-length", b"1"))) + frame(r.DATA, b"ab"), "body_length"
    ),
    malformed("trailers with a pseudo-field", "4.3", UPLOAD + head([(b":path", b"/never")]), "trailers"),
)

HTTP3 = (*CONTROL, *REQUESTS)
