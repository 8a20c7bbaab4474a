"""HTTP/3 on one QUIC connection (RFC 9114): requests in, responses out, no I/O and no clock.

Knows frames, requests and the transport's few verbs; ``h3_control`` has the client's other streams. Knows no packets, no sites and no
backends.

The framing is our own, over the stream events of the QUIC library, and not aioquic's ``H3Connection`` with overrides: that one ends the
connection for one malformed message, validates what a proxy must refuse differently, keeps dynamic QPACK tables in both directions,
needs an override for every bound, and leaks the streams that an application resets. What remains, once those are replaced, is this
file; it is also the faster one.

A stream is forgotten here as soon as both of its halves are handed over, whatever is still to be acknowledged below. Bodies wait here,
beyond the sender of the transport, which is fed as it drains.
"""

from collections import deque

from aioquic.quic import events as quic

from proxy.engine import h3_frames as f
from proxy.engine.events import Drained, Event, Rejected, RequestBody, RequestEnd, StreamReset
from proxy.engine.h3_control import PeerStreams, Transport
from proxy.engine.seam import HIGH_WATER, HOLD, LOW_WATER, EngineLimits
from proxy.engine.validate import Malformed, pseudo_request, trailers
from proxy.errors import Reset
from proxy.message import Headers, get

LAST_REQUEST = 2**62 - 4
"""The highest stream of a client: GOAWAY with it refuses nothing yet."""

FEED = 64 * 1024
"""Bytes of one stream in the transport's sender that were not sent yet, at least while more is waiting."""

RESET_CODES = {
    Reset.NO_ERROR: f.NO_ERROR,
    Reset.CANCEL: f.REQUEST_CANCELLED,
    Reset.REFUSED: f.REQUEST_REJECTED,
    Reset.INTERNAL: f.INTERNAL_ERROR,
    Reset.PROTOCOL: f.MESSAGE_ERROR,
    Reset.EXCESSIVE_LOAD: f.EXCESSIVE_LOAD,
}

_HEAD, _BODY, _TRAILED = 0, 1, 2  # what was received of a request
_SILENT, _OPEN, _ENDED = 0, 1, 2  # what was sent of its response
_BODILESS = frozenset((204, 304))


class _Request:
    """One request stream."""

    __slots__ = (
        "backlog", "backlog_bytes", "bodiless", "buffer", "expected", "got", "kind", "left", "paused", "phase", "received", "sent",
        "trailers",
    )  # fmt: skip

    def __init__(self) -> None:
        self.buffer: bytearray | None = None  # an incomplete frame head or HEADERS frame
        self.kind = 0
        self.left = 0  # bytes to come of a DATA frame, or of one that is skipped
        self.phase = _HEAD
        self.received = False
        self.expected: int | None = None
        self.got = 0
        self.trailers: Headers = []
        self.sent = _SILENT
        self.bodiless = False
        self.backlog: deque[bytes | memoryview] | None = None
        self.backlog_bytes = 0
        self.paused = False


class H3Connection:
    """HTTP/3 of one connection. ``events`` collects what is to be told, in order; the endpoint takes it."""

    __slots__ = (
        "_control",
        "_feeding",
        "_leaving",
        "_limits",
        "_next",
        "_peer_streams",
        "_requests",
        "_sections",
        "_stop_at",
        "_transport",
        "_waiting",
        "events",
        "holds",
        "output_bound",
    )

    def __init__(self, transport: Transport, limits: EngineLimits, sections: f.FieldSections) -> None:
        self._transport = transport
        self.output_bound = limits.output
        """Bytes of answers that wait, above which each stream is held at ``LOW_WATER``."""
        self._waiting = 0  # the sum of all backlogs
        self.holds = 0
        self._limits = limits
        self._sections = sections
        self.events: list[Event] = []
        self._peer_streams = PeerStreams(transport)
        self._requests: dict[int, _Request] = {}
        self._feeding: dict[int, _Request] = {}
        self._next = 0  # the lowest request stream that was not seen yet
        self._leaving = False
        self._stop_at: int | None = None
        # SETTINGS, and the control stream's type before it; our QPACK streams would stay empty and are not opened (RFC 9204, section 4.2)
        self._control = transport.open_stream(b"\0" + f.pack_settings([(f.SETTING_MAX_FIELD_SECTION_SIZE, limits.header_bytes)]))

    @property
    def streams(self) -> int:
        """Requests in progress."""
        return len(self._requests)

    @property
    def draining(self) -> bool:
        """The final GOAWAY was sent."""
        return self._stop_at is not None

    @property
    def output_bytes(self) -> int:
        """Bytes of answers that were never sent, here and in the transport."""
        return self._waiting + self._transport.unsent_bytes

    # In

    def handle(self, event: quic.QuicEvent) -> None:
        """Take one event of the transport."""
        try:
            if isinstance(event, quic.StreamDataReceived):
                stream_id = event.stream_id
                if not stream_id & 3:
                    self._on_request(stream_id, event.data, event.end_stream)
                elif stream_id & 3 == 2:
                    self._peer_streams.receive(stream_id, event.data, event.end_stream)
            elif isinstance(event, quic.StreamReset):
                self._on_reset(event.stream_id, event.error_code)
            elif isinstance(event, quic.StopSendingReceived):
                self._on_stop(event.stream_id, event.error_code)
        except f.Fault as fault:
            self._transport.close(error_code=fault.code, reason_phrase=fault.detail)

    def _on_request(self, stream_id: int, data: bytes, end: bool) -> None:
        request = self._requests.get(stream_id)
        if request is None:
            if stream_id >= self._next:
                self._next = stream_id + 4
            if self._stop_at is not None and stream_id >= self._stop_at:
                self._transport.abandon(stream_id, f.REQUEST_REJECTED)
                self._transport.cut(stream_id, f.REQUEST_REJECTED)
                return
            request = self._requests[stream_id] = _Request()
        buffer = request.buffer
        if buffer is None:
            at, body = self._read_frames(stream_id, request, data, end)
            if at < len(data):
                request.buffer = bytearray(data[at:])
        else:
            buffer += data
            at, body = self._read_frames(stream_id, request, buffer, end)
            if at == len(buffer):
                request.buffer = None
            elif at:
                del buffer[:at]
        if self._requests.get(stream_id) is not request:
            return  # it was refused, and with it all of its bytes were credited
        if at > body:  # what is no body is consumed: frame heads, field sections, frames that are skipped
            self._transport.credit(stream_id, at - body)
        if end:
            self._on_end(stream_id, request)

    def _read_frames(self, stream_id: int, request: _Request, data: bytes | bytearray, end: bool) -> tuple[int, int]:
        """Read what is complete; how far that is, and how many bytes of it are body."""
        at, size, body = 0, len(data), 0
        while at < size:
            if request.left:
                take = min(request.left, size - at)
                request.left -= take
                if request.kind == f.DATA:
                    piece = bytes(data if take == size else data[at : at + take])
                    body += take
                    request.got += take
                    if request.expected is not None and request.got > request.expected:
                        self._refuse(stream_id, request, Malformed("body_length", "more body than content-length says"))
                        break
                    self.events.append(RequestBody(stream_id, piece, take))
                at += take
                continue
            kind, after = f.unpack_int(data, at, size)
            length, after = f.unpack_int(data, after, size)
            if kind < 0 or length < 0:
                break
            if kind == f.HEADERS:
                if request.phase == _TRAILED:
                    raise f.Fault(f.FRAME_UNEXPECTED, "HEADERS after trailers")
                if length > self._limits.header_bytes:
                    self._refuse(stream_id, request, Malformed("header_too_large", f"field section of {length} bytes", 431))
                    break
                if size - after < length:
                    break
                at = after + length
                if not self._on_section(stream_id, request, bytes(data[after:at]), last=end and at == size):
                    break
                continue
            if kind == f.DATA:
                if request.phase != _BODY:
                    raise f.Fault(f.FRAME_UNEXPECTED, "DATA outside a body")
                if not length and not self._transport.spend_control():
                    break
            elif kind in f.CONTROL_ONLY or kind in f.HTTP2_FRAMES or kind == f.PUSH_PROMISE:
                raise f.Fault(f.FRAME_UNEXPECTED, f"frame {kind:#x} on a request stream")
            elif not self._transport.spend_control():  # one that we don't know is skipped (section 9)
                break
            request.kind = kind
            request.left = length
            at = after
        return at, body

    def _on_section(self, stream_id: int, request: _Request, block: bytes, *, last: bool) -> bool:
        """A whole field section: the head or the trailers. False where the request was refused."""
        limits = self._limits
        try:
            fields = self._sections.decode(block, limits.header_count)
            if request.phase == _BODY:
                request.trailers = trailers(fields, limits)
                request.phase = _TRAILED
                return True
            head = pseudo_request(stream_id, fields, limits, end=last)
        except f.TooManyFields:
            self._refuse(stream_id, request, Malformed("too_many_fields", f"more than {limits.header_count} fields", 431))
            return False
        except Malformed as error:
            self._refuse(stream_id, request, error)
            return False
        length = head.content_length
        if last and length:
            self._refuse(stream_id, request, Malformed("body_length", "no body where content-length says there is one"))
            return False
        request.phase = _BODY
        request.expected = length
        request.bodiless = head.method == b"HEAD"
        if last:
            request.received = True
        self.events.append(head)
        return True

    def _on_end(self, stream_id: int, request: _Request) -> None:
        if request.received:
            return
        if request.buffer or request.left:
            raise f.Fault(f.FRAME_ERROR, "the stream ends within a frame")
        if request.phase == _HEAD:  # section 4.1
            del self._requests[stream_id]
            self._transport.cut(stream_id, f.REQUEST_INCOMPLETE)
            return
        if request.expected is not None and request.got != request.expected:
            self._refuse(stream_id, request, Malformed("body_length", "less body than content-length says"))
            return
        request.received = True
        self.events.append(RequestEnd(stream_id, request.trailers))
        self._done(stream_id, request)

    def _refuse(self, stream_id: int, request: _Request, error: Malformed) -> None:
        """A malformed or oversize message costs its own stream and no other (section 4.1.2)."""
        transport = self._transport
        begun = request.phase != _HEAD
        self.events.append(Rejected(stream_id, error.status, error.reason, error.detail))
        if begun:
            self.events.append(StreamReset(stream_id, error.detail))
        self._forget(stream_id)
        if error.status != 400 and not begun:
            fields = [(b":status", b"%d" % error.status), (b"content-length", b"0")]
            transport.send(stream_id, self._sections.encode(fields), end=True)
            transport.abandon(stream_id, f.NO_ERROR)
        else:
            transport.spend_reset()
            transport.abandon(stream_id, f.MESSAGE_ERROR)
            transport.cut(stream_id, f.MESSAGE_ERROR)

    def _on_reset(self, stream_id: int, code: int) -> None:
        if stream_id & 2:
            self._peer_streams.reset(stream_id)
            return
        self._next = max(self._next, stream_id + 4)
        # nobody would answer any more; harmless where the response is complete (section 4.1.1)
        request = self._requests.get(stream_id)
        if request is not None and not request.received:
            self._forget(stream_id)
            if request.phase != _HEAD:
                self.events.append(StreamReset(stream_id, f"reset by the client ({_name(code)})"))
            self._transport.cut(stream_id, f.REQUEST_CANCELLED)
        elif request is None:
            self._transport.cut(stream_id, f.REQUEST_CANCELLED)

    def _on_stop(self, stream_id: int, code: int) -> None:
        if stream_id == self._control:
            raise f.Fault(f.CLOSED_CRITICAL_STREAM, "a critical stream was stopped")
        request = self._requests.get(stream_id)
        if request is None:
            if not stream_id & 3:
                self._transport.abandon(stream_id)
            return
        self._forget(stream_id)
        self._transport.abandon(stream_id, None if request.received else f.REQUEST_CANCELLED)
        if request.phase != _HEAD:
            self.events.append(StreamReset(stream_id, f"stopped by the client ({_name(code)})"))

    # Out

    def respond(self, stream: int, status: int, headers: Headers, body: bytes) -> None:
        """See ``engine/seam.py``, as for all of these."""
        request = self._requests.get(stream)
        if request is None or request.sent != _SILENT:
            return
        fields = [(b":status", b"%d" % status), *headers]
        if status not in _BODILESS and get(headers, b"content-length") is None:
            fields.append((b"content-length", b"%d" % len(body)))
        head = self._sections.encode(fields)
        if not body or request.bodiless or status in _BODILESS:
            self._transport.send(stream, head, end=True)
        elif len(body) <= FEED:
            self._transport.send(stream, b"%b\0%b%b" % (head, f.pack_int(len(body)), body), end=True)
        else:
            self._transport.send(stream, head)
            request.sent = _OPEN
            self.send_data(stream, body, end=True)
            return
        request.sent = _ENDED
        self._done(stream, request)

    def send_head(self, stream: int, status: int, headers: Headers, end: bool) -> None:
        """A final response head."""
        request = self._requests.get(stream)
        if request is None or request.sent != _SILENT:
            return
        request.bodiless = request.bodiless or status in _BODILESS
        self._transport.send(stream, self._sections.encode([(b":status", b"%d" % status), *headers]), end=end)
        request.sent = _OPEN
        if end:
            request.sent = _ENDED
            self._done(stream, request)

    def inform(self, stream: int, status: int, headers: Headers) -> None:
        """A 1xx response."""
        request = self._requests.get(stream)
        if request is not None and request.sent == _SILENT:
            self._transport.send(stream, self._sections.encode([(b":status", b"%d" % status), *headers]))

    def send_data(self, stream: int, data: bytes, end: bool) -> int:
        """Queue body bytes; returns what is queued for the stream, or ``HOLD`` and more."""
        request = self._requests.get(stream)
        if request is None or request.sent != _OPEN:
            return 0
        if data and not request.bodiless:
            self._queue(stream, request, b"\0" + f.pack_int(len(data)))
            self._queue(stream, request, data)
        if end:
            request.sent = _ENDED
            if request.backlog is None:
                self._transport.send(stream, b"", end=True)
                self._done(stream, request)
                return 0
        queued = request.backlog_bytes + self._transport.unsent(stream)
        if queued > LOW_WATER and self._waiting + self._transport.unsent_bytes > self.output_bound:
            self.holds += 1
            queued += HOLD
        if queued > HIGH_WATER:
            request.paused = True
            self._feeding[stream] = request
        return queued

    def send_trailers(self, stream: int, headers: Headers) -> None:
        """End the body with trailers."""
        request = self._requests.get(stream)
        if request is None or request.sent != _OPEN:
            return
        if headers and not request.bodiless:
            self._queue(stream, request, self._sections.encode(headers))
        self.send_data(stream, b"", end=True)

    def _queue(self, stream: int, request: _Request, data: bytes) -> None:
        size = len(data)
        if request.backlog is None:
            if size <= FEED and self._transport.unsent(stream) < FEED:
                self._transport.send(stream, data)
                return
            request.backlog = deque()
            self._feeding[stream] = request
        if size <= FEED:
            request.backlog.append(data)
        else:
            view = memoryview(data)
            request.backlog.extend([view[at : at + FEED] for at in range(0, size, FEED)])
        request.backlog_bytes += size
        self._waiting += size

    def feed(self) -> bool:
        """Move waiting bytes into the transport as its senders drain, and tell who may go on. True where something was moved."""
        moved = False
        transport = self._transport
        for stream, request in list(self._feeding.items()):
            waiting = transport.unsent(stream)
            backlog = request.backlog
            if backlog is not None:
                room = max(FEED, transport.room())
                while backlog and waiting < room:
                    data = backlog.popleft()
                    request.backlog_bytes -= len(data)
                    self._waiting -= len(data)
                    waiting += len(data)
                    moved = True
                    transport.send(stream, data)
                if not backlog:
                    request.backlog = None
                    if request.sent == _ENDED:
                        transport.send(stream, b"", end=True)
                        self._done(stream, request)
                        continue
            if request.paused and request.backlog_bytes + waiting < LOW_WATER:
                request.paused = False
                if request.sent == _OPEN:
                    self.events.append(Drained(stream))
            if request.backlog is None and not request.paused:
                del self._feeding[stream]
        return moved

    def consumed(self, stream: int, credit: int) -> None:
        """The other side took *credit* bytes of the request body."""
        self._transport.credit(stream, credit)

    def reset(self, stream: int, reason: Reset) -> None:
        """Cut one stream."""
        request = self._requests.get(stream)
        if request is None:
            return
        self._forget(stream)
        code = RESET_CODES[reason]
        self._transport.abandon(stream, code)
        self._transport.cut(stream, code)

    def goaway(self) -> None:
        """The first call says that the end is near; the second refuses requests that were not seen yet (section 5.2)."""
        if not self._leaving:
            self._leaving = True
            self._transport.send(self._control, f.pack_frame(f.GOAWAY, f.pack_int(LAST_REQUEST)))
        elif self._stop_at is None:
            self._stop_at = self._next
            self._transport.send(self._control, f.pack_frame(f.GOAWAY, f.pack_int(self._next)))

    def close(self, reason: Reset) -> None:
        """Close the connection."""
        self._transport.close(error_code=RESET_CODES[reason], reason_phrase=reason.value)

    def _done(self, stream: int, request: _Request) -> None:
        """Forget a stream whose response was handed over, asking for the rest of its request no more (section 4.1)."""
        if request.sent != _ENDED or request.backlog is not None:
            return
        self._forget(stream)
        if not request.received:
            self._transport.abandon(stream, f.NO_ERROR)

    def _forget(self, stream: int) -> None:
        request = self._requests.pop(stream, None)
        if request is not None:
            self._waiting -= request.backlog_bytes
        self._feeding.pop(stream, None)


def _name(code: int) -> str:
    return f.CODE_NAMES.get(code, f"{code:#x}")
