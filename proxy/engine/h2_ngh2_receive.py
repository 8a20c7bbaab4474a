"""What each event of the ngh2 library means: one function a type, on the connection's Core.

Knows the library's events and the rules that it leaves to us. What a fault then costs is ``h2_ngh2_core``'s.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import ngh2

from proxy.engine.events import Rejected, RequestBody, RequestEnd, StreamReset
from proxy.engine.h2_ngh2_core import BODYLESS, ENDING, OPEN, Core
from proxy.engine.h2_terms import (
    CODE_NAMES,
    DRAIN_PING,
    NO_ERROR,
    PROTOCOL_ERROR,
    REFUSED_STREAM,
    client_reset,
)
from proxy.engine.validate import Malformed, pseudo_request, trailers


def on_request(core: Core, event: ngh2.RequestReceived) -> None:
    """Section 8.3: a request head that passed the library's first look."""
    identity = event.stream_id
    ended = event.end_stream
    table = core.table
    limits = core.limits
    if len(table) >= limits.streams:
        core.events.append(Rejected(identity, 503, "too_many_streams", f"more than {limits.streams} at once"))
        core.refuse(identity, REFUSED_STREAM)
        return
    fields = event.headers
    head = core.last_fields.again(identity, fields) if ended else None
    if head is None:
        try:
            head = pseudo_request(identity, fields, limits, end=ended)
        except Malformed as error:
            core.reject(identity, error, ended=ended)
            return
        if ended and head.content_length is None and not head.expect_continue:
            core.last_fields.keep(fields, head, limits)
    table[identity] = (0 if ended else OPEN) | (BODYLESS if head.method == b"HEAD" else 0)
    core.work += 1
    core.events.append(head)
    if core.leaving:
        core.grace -= 1
        if core.grace <= 0:
            core.goaway()


def on_trailers(core: Core, event: ngh2.TrailersReceived) -> None:
    """Section 8.1: the end of a request whose body had the right length."""
    identity = event.stream_id
    state = core.table.get(identity)
    if state is None:
        return
    try:
        headers = trailers(event.headers, core.limits)
    except Malformed as error:
        del core.table[identity]
        core.dying.add(identity)
        core.library.reset_stream(identity, PROTOCOL_ERROR)
        core.events.append(Rejected(identity, error.status, error.reason, error.detail))
        core.stream_error(identity, error.reason)
        return
    core.table[identity] = state & ~OPEN
    core.early.pop(identity, None)
    core.events.append(RequestEnd(identity, headers))


def on_data(core: Core, event: ngh2.DataReceived) -> None:
    """Section 6.1: body bytes, within both windows and the content-length. The library has credited the padding."""
    identity = event.stream_id
    data = event.data
    state = core.table.get(identity)
    if state is None:
        if data:
            core.library.acknowledge_received_data(len(data), identity)
        return
    if data:
        size = len(data)
        core.unconsumed[identity] = core.unconsumed.get(identity, 0) + size
        core.events.append(RequestBody(identity, data, size))
    if event.end_stream:
        core.table[identity] = state & ~OPEN
        core.early.pop(identity, None)
        core.events.append(RequestEnd(identity, []))


def on_reset(core: Core, event: ngh2.StreamReset) -> None:
    """Section 6.4: the client cuts a stream."""
    identity = event.stream_id
    if core.table.pop(identity, None) is None:
        core.spend_control()
        return
    core.dying.add(identity)
    core.release(identity)
    core.events.append(StreamReset(identity, client_reset(event.error_code)))
    core.spend_reset()


def on_closed(core: Core, event: ngh2.StreamClosed) -> None:
    """A stream is over for the library: as it should be, by our reset or the client's, or for a fault that it alone has seen."""
    identity = event.stream_id
    state = core.table.pop(identity, None)
    if state is None:
        if identity in core.dying:
            core.dying.remove(identity)
            core.early.pop(identity, None)
        else:
            core.events.append(Rejected(identity, 400, "protocol", "a header section that libnghttp2 refuses"))
            core.count_answers(1)
            core.spend_reset()
    elif event.error_code == NO_ERROR and state & ENDING:
        if core.unconsumed or core.high or core.early:
            core.release(identity)
    else:
        reason = "protocol"
        if event.error_code == PROTOCOL_ERROR and state & OPEN:
            core.events.append(Rejected(identity, 400, reason, "a body or trailers that libnghttp2 refuses"))
        elif event.error_code < len(CODE_NAMES):
            reason = CODE_NAMES[event.error_code]
        core.stream_error(identity, reason)


def on_ping_answer(core: Core, event: ngh2.PingAcknowledged) -> None:
    """Section 6.7: an answer to ours goes on with the drain."""
    if core.leaving and event.opaque_data == DRAIN_PING:
        core.goaway()


def on_goaway(core: Core, _event: ngh2.GoAwayReceived) -> None:
    """Section 6.8: the client opens no more streams; the present ones are finished."""
    core.peer_leaving = True


def on_connection_closed(core: Core, event: ngh2.ConnectionClosed) -> None:
    """The library has ended the connection and said so: for a fault, or since both sides had nothing left to say."""
    if core.table or not (core.peer_leaving or core.last is not None):
        core.lose(event.error_code, event.debug_data.decode("ascii", "replace") or "refused by libnghttp2")
    core.retire()


def on_other(_core: Core, _event: ngh2.Event) -> None:
    """What the library has dealt with, and ``h2_ngh2_frames`` has metered."""


Handler: TypeAlias = Callable[[Core, Any], None]

DISPATCH: dict[type[ngh2.Event], Handler] = {
    ngh2.RequestReceived: on_request,
    ngh2.StreamClosed: on_closed,
    ngh2.DataReceived: on_data,
    ngh2.TrailersReceived: on_trailers,
    ngh2.StreamReset: on_reset,
    ngh2.PingAcknowledged: on_ping_answer,
    ngh2.GoAwayReceived: on_goaway,
    ngh2.ConnectionClosed: on_connection_closed,
    ngh2.WindowUpdated: on_other,
    ngh2.SettingsReceived: on_other,
    ngh2.SettingsAcknowledged: on_other,
    ngh2.PingReceived: on_other,
    ngh2.PriorityUpdateReceived: on_other,
}
"""The handler of each type that a server's connection gives."""
