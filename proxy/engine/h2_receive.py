"""What each frame from the client means (RFC 9113, section 6): one function a type, on the connection's Core.

Knows the rules for received frames in each state of a stream. What a fault then costs is ``h2_core``'s; sending is ``h2_output``'s.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

from h2.errors import ErrorCodes
from h2.exceptions import FlowControlError
from h2.windows import WindowManager
from hyperframe.frame import (
    AltSvcFrame,
    ContinuationFrame,
    DataFrame,
    ExtensionFrame,
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

from proxy.engine.events import Rejected, RequestBody, RequestEnd, RequestHead, StreamReset
from proxy.engine.h2_abuse import CONTROL_PER_WORK
from proxy.engine.h2_core import Core
from proxy.engine.h2_fault import Fault
from proxy.engine.h2_output import Stream
from proxy.engine.h2_terms import DRAIN_PING, LARGEST_WINDOW, client_reset
from proxy.engine.validate import Malformed, pseudo_request, trailers
from proxy.message import Headers

_SETTINGS_ACK = b"\0\0\0\4\1\0\0\0\0"


def on_first(core: Core, frame: SettingsFrame) -> None:
    """The client's preface ends with SETTINGS (RFC 9113, section 3.4)."""
    if "ACK" in frame.flags:
        raise Fault(ErrorCodes.PROTOCOL_ERROR, "SETTINGS acknowledged before any was sent")
    core.settled = True
    on_settings(core, frame)


def on_settings(core: Core, frame: SettingsFrame) -> None:
    """Section 6.5: apply and acknowledge; a larger initial window may let streams go on."""
    core.spend_control()
    core.wire.settings(frame)
    if "ACK" in frame.flags:
        return
    output = core.output
    output.control += _SETTINGS_ACK
    output.max_frame = core.wire.max_outbound_frame_size
    for stream in core.table.values():
        output.wake(stream)


def on_headers(core: Core, frame: HeadersFrame) -> None:
    """Section 6.2: a request or trailers."""
    identity = frame.stream_id
    fields = core.wire.decoder.decode(frame.data)  # even for a dead stream: the tables are the connection's
    ended = "END_STREAM" in frame.flags
    streams = core.table
    stream = streams.get(identity)
    if stream is not None:
        _on_trailers(core, stream, fields, ended=ended)
        return
    if identity <= core.highest:
        if identity not in core.dead:
            raise Fault(ErrorCodes.STREAM_CLOSED, f"HEADERS on closed stream {identity}")
        core.spend_control()
        if ended:
            del core.dead[identity]
        return
    if not identity & 1:
        raise Fault(ErrorCodes.PROTOCOL_ERROR, f"HEADERS on stream {identity}")
    core.highest = identity
    if core.last is not None or len(streams) >= core.limits.streams:
        if core.last is None:
            core.events.append(Rejected(identity, 503, "too_many_streams", f"more than {core.limits.streams} at once"))
        core.cut(identity, ErrorCodes.REFUSED_STREAM, ended=ended)
        core.spend_control()
        return
    if "PRIORITY" in frame.flags and frame.depends_on == identity:
        core.reject(identity, Malformed("protocol", "stream depends on itself"), ended=ended)
        return
    try:
        head = _head(core, identity, fields, ended=ended)
    except Malformed as error:
        core.reject(identity, error, ended=ended)
        return
    streams[identity] = Stream(
        identity,
        core.wire.remote_settings.initial_window_size,
        remote_ended=ended,
        bodyless=head.method == b"HEAD",
        expected=head.content_length,
    )
    core.control.earn(CONTROL_PER_WORK)
    core.events.append(head)
    if core.leaving:
        core.grace -= 1
        if core.grace <= 0:
            core.goaway()


def _on_trailers(core: Core, stream: Stream, fields: Headers | None, *, ended: bool) -> None:
    if stream.remote_ended:
        core.stream_error(stream, ErrorCodes.STREAM_CLOSED, "HEADERS after the end")
        return
    try:
        headers = _trailers(core, stream, fields, ended=ended)
    except Malformed as error:
        core.malformed_rest(stream, error)
        return
    stream.remote_ended = True
    core.events.append(RequestEnd(stream.identity, headers))


def _head(core: Core, identity: int, fields: Headers | None, *, ended: bool) -> RequestHead:
    """A valid request head. Raises Malformed."""
    if fields is None:
        raise Malformed("header_too_large", f"more than {core.limits.header_bytes} bytes", 431)
    head = pseudo_request(identity, fields, core.limits, end=ended)
    if ended and head.content_length:
        raise Malformed("body_length", f"content-length {head.content_length} without a body")
    return head


def _trailers(core: Core, stream: Stream, fields: Headers | None, *, ended: bool) -> Headers:
    """Valid trailers behind a body of the right length. Raises Malformed."""
    if fields is None:
        raise Malformed("header_too_large", f"trailers of more than {core.limits.header_bytes} bytes", 431)
    if not ended:
        raise Malformed("trailers", "trailers without END_STREAM")
    headers = trailers(fields, core.limits)
    if stream.expected is not None and stream.received != stream.expected:
        raise Malformed("body_length", f"{stream.received} bytes, content-length {stream.expected}")
    return headers


def on_data(core: Core, frame: DataFrame) -> None:
    """Section 6.1: body bytes, within both windows and the content-length."""
    data = frame.data
    size = len(data)
    total = frame.flow_controlled_length
    wire = core.wire
    wire.window.window_consumed(total)
    stream = core.table.get(frame.stream_id)
    ended = "END_STREAM" in frame.flags
    if stream is None:
        _on_stray_data(core, frame.stream_id, total, ended=ended)
        return
    if stream.remote_ended:
        core.credit(total)
        core.stream_error(stream, ErrorCodes.STREAM_CLOSED, "DATA after the end")
        return
    inbound = stream.inbound
    if inbound is None:
        inbound = stream.inbound = WindowManager(wire.stream_window)
    try:
        inbound.window_consumed(total)
    except FlowControlError:
        core.credit(total)
        core.stream_error(stream, ErrorCodes.FLOW_CONTROL_ERROR, "more DATA than the stream's window")
        return
    stream.received += size
    if stream.expected is not None and (stream.received != stream.expected if ended else stream.received > stream.expected):
        core.credit(total)
        core.malformed_rest(stream, Malformed("body_length", f"{stream.received} bytes, content-length {stream.expected}"))
        return
    if size:
        stream.unconsumed += size
        core.events.append(RequestBody(frame.stream_id, data, size))
    if total != size:
        core.credit(total - size)
        if not ended:
            core.credit_stream(stream, total - size)
    if ended:
        stream.remote_ended = True
        core.events.append(RequestEnd(frame.stream_id, []))
    elif not size:
        core.spend_control()


def _on_stray_data(core: Core, identity: int, total: int, *, ended: bool) -> None:
    """DATA on a stream that is not there: in flight when we cut it, or a fault."""
    left = core.dead.get(identity)
    if left is None:
        if identity > core.highest or not identity & 1:
            raise Fault(ErrorCodes.PROTOCOL_ERROR, f"DATA on idle stream {identity}")
        core.credit(total)
        core.output.reset(identity, ErrorCodes.STREAM_CLOSED)
        core.spend_reset()
        return
    if left < total:
        raise Fault(ErrorCodes.FLOW_CONTROL_ERROR, f"DATA beyond the window of stream {identity}, which was reset")
    core.credit(total)
    if ended:
        del core.dead[identity]
    else:
        core.dead[identity] = left - total
        if not total:
            core.spend_control()


def on_reset(core: Core, frame: RstStreamFrame) -> None:
    """Section 6.4: the client cuts a stream."""
    identity = frame.stream_id
    stream = core.table.get(identity)
    if stream is not None:
        core.drop(stream)
        core.events.append(StreamReset(identity, client_reset(frame.error_code)))
        core.spend_reset()
        return
    if identity > core.highest or not identity & 1:
        raise Fault(ErrorCodes.PROTOCOL_ERROR, f"RST_STREAM on idle stream {identity}")
    core.dead.pop(identity, None)
    core.spend_control()


def on_window_update(core: Core, frame: WindowUpdateFrame) -> None:
    """Section 6.9: the client lets us send more."""
    core.spend_control()
    identity = frame.stream_id
    output = core.output
    if not identity:
        output.window += frame.window_increment
        if output.window > LARGEST_WINDOW:
            raise Fault(ErrorCodes.FLOW_CONTROL_ERROR, "connection window beyond 2^31-1")
        return
    stream = core.table.get(identity)
    if stream is None:
        if identity > core.highest or not identity & 1:
            raise Fault(ErrorCodes.PROTOCOL_ERROR, f"WINDOW_UPDATE on idle stream {identity}")
        return
    stream.outbound_flow_control_window += frame.window_increment
    if stream.outbound_flow_control_window > LARGEST_WINDOW:
        core.stream_error(stream, ErrorCodes.FLOW_CONTROL_ERROR, "stream window beyond 2^31-1")
    else:
        output.wake(stream)


def on_ping(core: Core, frame: PingFrame) -> None:
    """Section 6.7: answer; an answer to ours goes on with the drain."""
    core.spend_control()
    if "ACK" not in frame.flags:
        core.output.ping(frame.opaque_data, ack=True)
    elif core.leaving and frame.opaque_data == DRAIN_PING:
        core.goaway()


def on_priority(core: Core, frame: PriorityFrame) -> None:
    """Deprecated and without effect (RFC 9113, section 5.3.2); a stream that depends on itself is a fault as it was before."""
    core.spend_control()
    stream = core.table.get(frame.stream_id)
    if stream is not None and frame.depends_on == frame.stream_id:
        core.stream_error(stream, ErrorCodes.PROTOCOL_ERROR, "stream depends on itself")


def on_goaway(core: Core, _frame: GoAwayFrame) -> None:
    """Section 6.8: the client opens no more streams; the present ones are finished."""
    core.spend_control()
    core.peer_leaving = True


def on_ignored(core: Core, _frame: Frame) -> None:
    """Unknown types are to be ignored (RFC 9113, section 5.5), ALTSVC by servers (RFC 7838, section 4)."""
    core.spend_control()


def on_unexpected(_core: Core, frame: Frame) -> None:
    """PUSH_PROMISE, CONTINUATION without its HEADERS, and anything but SETTINGS at first."""
    raise Fault(ErrorCodes.PROTOCOL_ERROR, f"unexpected {type(frame).__name__}")


Handler: TypeAlias = Callable[[Core, Any], None]

DISPATCH: dict[type[Frame], Handler] = {
    HeadersFrame: on_headers,
    DataFrame: on_data,
    WindowUpdateFrame: on_window_update,
    SettingsFrame: on_settings,
    RstStreamFrame: on_reset,
    PingFrame: on_ping,
    PriorityFrame: on_priority,
    GoAwayFrame: on_goaway,
    ExtensionFrame: on_ignored,
    AltSvcFrame: on_ignored,
    PushPromiseFrame: on_unexpected,
    ContinuationFrame: on_unexpected,
}
"""The handler of each type that hyperframe knows; it makes ExtensionFrame of the others."""

FIRST: dict[type[Frame], Handler] = {SettingsFrame: on_first}
"""The same before the client's first SETTINGS."""
