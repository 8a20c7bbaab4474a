"""HTTP/1.1 to clients (RFC 9112): a connection that serves one request after the other.

Knows the order of things on a connection: when a request may begin, how each message is framed, when the connection ends. The bytes
are ``h1_wire``'s, the meaning of fields is ``validate``'s. Pipelined requests wait unparsed until their turn. HTTP/1.0 is served too,
with keep-alive where the client asks for it.
"""

import re
from collections import deque
from http import HTTPStatus
from typing import cast

from proxy.engine.events import Drained, Event, Rejected, RequestBody, RequestEnd, RequestHead, StreamReset
from proxy.engine.grammar import CONTENT_LENGTH_DIGITS, Malformed, quote
from proxy.engine.h1_wire import (
    ChunkDecoder,
    encode_chunk,
    encode_last_chunk,
    encoded_lines,
    find_head,
    split_lines,
    status_line,
)
from proxy.engine.last_head import LastLines
from proxy.engine.seam import HIGH_WATER, HOLD, LOW_WATER, EngineLimits
from proxy.engine.validate import plain_request
from proxy.errors import Reset
from proxy.message import Headers

HELD_BYTES = 1024 * 1024
"""Bytes of pipelined requests kept back. A listener that heeds ``wants_input`` stays at one read; past this they are dropped, and the
connection closes after the response in progress."""

# What the input is at.
_HEAD, _LENGTH, _CHUNKED, _COMPLETE, _OVER = range(5)
# What the response is at: none asked for, its head not sent yet, or how its body is framed.
_NONE, _WAITING, _SIZED, _IN_CHUNKS, _UNTIL_CLOSE, _BODILESS = range(6)

_CR = 13
_VERSION = re.compile(rb"HTTP/[0-9]\.[0-9]")
_OWNED = frozenset((b"connection", b"content-length", b"keep-alive", b"transfer-encoding"))  # framing is decided here
_RESET_STATUS = {Reset.REFUSED: 503, Reset.EXCESSIVE_LOAD: 503, Reset.INTERNAL: 500, Reset.PROTOCOL: 400}


class H1Connection:
    """One connection of a client; a ``seam.Connection``. Streams are its requests, numbered from 1."""

    __slots__ = (
        "_accepts_trailers",
        "_asked_continue",
        "_at",
        "_blank",
        "_bound",
        "_chunks",
        "_data",
        "_draining",
        "_eof",
        "_events",
        "_head_only",
        "_high",
        "_http_1_0",
        "_input",
        "_keep",
        "_last",
        "_limits",
        "_out",
        "_queued",
        "_request_left",
        "_response",
        "_response_left",
        "_scanned",
        "_scheme",
        "_stream",
        "_unconsumed",
        "aborted",
        "version",
    )

    def __init__(self, limits: EngineLimits, *, scheme: bytes = b"https") -> None:
        self.version = "HTTP/1.1"
        self.aborted = False
        """The last response was cut short: where its end is the end of the connection, only a reset tells the client so."""
        self._limits = limits
        self._bound = limits.output
        self._scheme = scheme
        self._last = LastLines()
        self._data = b""
        self._at = 0  # input before it is used up
        self._scanned = 0  # input before it holds no end of a head
        self._input = _HEAD
        self._blank = False
        self._eof = False
        self._chunks: ChunkDecoder | None = None
        self._request_left = 0
        self._unconsumed = 0
        self._events: list[Event] = []
        self._out: deque[bytes] = deque()
        self._queued = 0
        self._high = False
        self._draining = False
        self._stream = 0
        self._response = _NONE
        self._response_left = 0
        self._keep = True
        self._http_1_0 = False
        self._head_only = False
        self._accepts_trailers = False
        self._asked_continue = False

    # Input

    def receive(self, data: bytes, now: float) -> list[Event]:  # noqa: ARG002 - HTTP/1.1 has no timers of its own
        """Take decrypted bytes: see ``seam.Connection``, as for every method here."""
        if self._input == _HEAD and not self._data and not self._events and self._queued <= LOW_WATER:
            end = len(data) - 4
            if 0 < end <= self._limits.header_bytes and data.find(b"\r\n\r\n") == end and data[0] != _CR:
                return self._read_whole(data[:end])  # the most common case, without the bookkeeping of the others
        events = self.take_events()
        if self._input == _OVER or (self._input == _COMPLETE and not self._keep):
            return events
        if self._at >= len(self._data):
            self._data = data
        else:
            self._data = self._data[self._at :] + data
        self._scanned = max(0, self._scanned - self._at)
        self._at = 0
        self._advance(events)
        if len(self._data) - self._at > HELD_BYTES:
            self._keep = False
            self._drop_input()
            if self._input == _HEAD:
                self._finish()
        return events

    def receive_eof(self, now: float) -> list[Event]:  # noqa: ARG002 - as above
        """A half-closed client still gets the answers to what it asked in full."""
        events = self.take_events()
        if self._input != _OVER:
            self._eof = True
            self._advance(events)
        return events

    def _advance(self, events: list[Event]) -> None:
        """Read as far as the input and the order of requests allow."""
        if self._input == _HEAD:
            if self._queued > LOW_WATER and self._at < len(self._data):
                return  # the client asks for more while it does not take what it asked for: take_output comes back here
            self._read_head(events)
        if self._input in (_LENGTH, _CHUNKED):
            if self._input == _LENGTH:
                self._read_sized(events)
            else:
                self._read_chunks(events)
            if self._eof and self._input in (_LENGTH, _CHUNKED):
                events.append(StreamReset(self._stream, "closed before the request was complete"))
                self._abort()
        if self._at >= len(self._data) or (self._input == _COMPLETE and not self._keep):
            self._drop_input()

    def _read_head(self, events: list[Event]) -> None:
        data, at = self._data, self._at
        if not self._blank and data.startswith(b"\r\n", at):
            # RFC 9112, section 2.2: an empty line before a request is passed over; one, not any number
            self._blank = True
            at = self._at = at + 2
        try:
            end = find_head(data, at, self._scanned, self._limits.header_bytes)
            if end >= 0:
                self._at = end + 4
                self._begin(data[at:end], events)
            elif self._eof:
                self._finish()
            else:
                self._scanned = len(data)
        except Malformed as fault:
            self._stream += 1
            self._refuse(fault, events)

    def _read_whole(self, head: bytes) -> list[Event]:
        """A head that came in one piece with nothing before or behind it."""
        line, _, lines = head.partition(b"\r\n")
        request = self._last.again(self._stream + 1, line, lines)
        if request is not None:
            self._stream += 1
            self._keep = True
            self._http_1_0 = self._accepts_trailers = self._asked_continue = False
            self._head_only = request.method == b"HEAD"
            self._response = _WAITING
            self._input = _COMPLETE
            return [request]
        events: list[Event] = []
        try:
            self._begin(head, events)
        except Malformed as fault:
            self._stream += 1
            self._refuse(fault, events)
            return events
        if self._input == _COMPLETE and self._keep and not self._http_1_0 and not self._accepts_trailers:
            request = cast("RequestHead", events[0])
            if request.content_length is None and line.find(b" /") == line.find(b" "):
                self._last.keep(lines, request, self._limits)
        return events

    def _begin(self, head: bytes, events: list[Event]) -> None:
        lines = split_lines(head, self._limits)
        line = lines.pop(0)
        words = line.split(b" ")
        if len(words) != 3:
            raise Malformed("syntax", quote(line))
        method, target, version = words
        http_1_0 = version == b"HTTP/1.0"
        if version != b"HTTP/1.1" and not http_1_0:
            if _VERSION.fullmatch(version):
                raise Malformed("version", quote(version), 505)
            raise Malformed("syntax", quote(line))
        request, framing = plain_request(self._stream + 1, method, target, lines, self._limits, scheme=self._scheme, http_1_0=http_1_0)
        options = [option.strip() for option in framing.connection.split(b",")] if framing.connection else ()
        self._stream += 1
        self._keep = b"close" not in options and (not http_1_0 or b"keep-alive" in options)
        self._http_1_0 = http_1_0
        self._head_only = method == b"HEAD"
        self._accepts_trailers = framing.accepts_trailers
        self._response = _WAITING
        if framing.transfer_encoding:
            self._input = _CHUNKED
            self._chunks = ChunkDecoder(self._limits)
            request.end = False
        elif request.content_length:
            self._input = _LENGTH
            self._request_left = request.content_length
            request.end = False
        else:
            self._input = _COMPLETE
            request.expect_continue = False
        self._asked_continue = request.expect_continue
        events.append(request)

    def _read_sized(self, events: list[Event]) -> None:
        piece = self._data[self._at : self._at + self._request_left]
        if not piece:
            return
        self._at += len(piece)
        self._request_left -= len(piece)
        self._unconsumed += len(piece)
        events.append(RequestBody(self._stream, piece, len(piece)))
        if not self._request_left:
            self._input = _COMPLETE
            events.append(RequestEnd(self._stream, []))

    def _read_chunks(self, events: list[Event]) -> None:
        chunks = self._chunks
        assert chunks is not None
        pieces: list[bytes] = []
        fault = None
        try:
            self._at = chunks.decode(self._data, self._at, pieces)
        except Malformed as malformed:
            fault = malformed
        if pieces:
            body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
            self._unconsumed += len(body)
            events.append(RequestBody(self._stream, body, len(body)))
        if fault is not None:
            self._refuse(fault, events)
            events.append(StreamReset(self._stream, f"malformed body: {fault.detail}"))
        elif chunks.trailers is not None:
            self._input = _COMPLETE
            self._chunks = None
            events.append(RequestEnd(self._stream, chunks.trailers))

    def _refuse(self, fault: Malformed, events: list[Event]) -> None:
        events.append(Rejected(self._stream, fault.status, fault.reason, fault.detail))
        if self._response in (_NONE, _WAITING):
            self._answer(fault.status, fault.reason)
            self._finish()
        else:
            self._abort()

    def consumed(self, stream: int, credit: int) -> None:
        """Credit for a request that is over is of no interest any more."""
        if stream == self._stream:
            self._unconsumed -= credit

    # Output

    def respond(self, stream: int, status: int, headers: Headers, body: bytes) -> None:
        """A whole answer in one piece."""
        if stream != self._stream or self._response != _WAITING:
            return
        fields, length = self._own(headers)
        if not self._head_only and status not in (204, 304):
            framing = b"content-length: %d\r\n" % len(body)
        else:
            if status == 204 or (length is None and (status == 304 or not body)):
                framing = b""  # RFC 9110, section 8.6
            else:
                framing = b"content-length: %d\r\n" % (len(body) if length is None else length)
            body = b""
        self._push(b"".join((status_line(status), fields, framing, self._persistence(complete=True), b"\r\n", body)))
        self._complete()

    def send_head(self, stream: int, status: int, headers: Headers, end: bool) -> None:
        """A final response head; what frames the body is decided here."""
        if stream != self._stream or self._response != _WAITING:
            return
        fields, length = self._own(headers)
        framing = b"" if length is None or status == 204 else b"content-length: %d\r\n" % length
        if self._head_only or status in (204, 304):
            self._response = _BODILESS
        elif length is not None or end:
            self._response = _SIZED
            self._response_left = length or 0
            framing = b"content-length: %d\r\n" % self._response_left
        elif self._http_1_0:
            self._response = _UNTIL_CLOSE
            self._keep = False
        else:
            self._response = _IN_CHUNKS
            framing = b"transfer-encoding: chunked\r\n"
        self._push(b"%b%b%b%b\r\n" % (status_line(status), fields, framing, self._persistence(complete=end)))
        if end:
            self._end()

    def send_data(self, stream: int, data: bytes, end: bool) -> int:
        """Body bytes, never more than the head promised: a body of another length ends the connection."""
        if stream != self._stream or self._response <= _WAITING:
            return 0
        response = self._response
        if data and response != _BODILESS:
            if response == _IN_CHUNKS:
                data = encode_chunk(data)
            elif response == _SIZED:
                if len(data) > self._response_left:
                    if self._response_left:
                        self._push(data[: self._response_left])
                    self._abort()
                    return 0
                self._response_left -= len(data)
            self._push(data)
        if end:
            if response == _IN_CHUNKS:
                self._push(b"0\r\n\r\n")
            self._end()
        elif self._queued > self._bound:
            self._high = True
            return self._queued + HOLD
        elif self._queued > HIGH_WATER:
            self._high = True
        return self._queued

    def send_trailers(self, stream: int, headers: Headers) -> None:
        """Trailers go out in a chunked body, to a client that said ``TE: trailers`` (RFC 9110, section 6.5.1)."""
        if stream != self._stream or self._response <= _WAITING:
            return
        if self._response == _IN_CHUNKS:
            self._push(encode_last_chunk(headers if self._accepts_trailers else []))
        self._end()

    def inform(self, stream: int, status: int, headers: Headers) -> None:
        """A 1xx response; never 101, since nothing here switches protocols."""
        if stream == self._stream and self._response == _WAITING and not self._http_1_0 and 100 <= status < 200 and status != 101:
            if status == 100:
                self._asked_continue = False
            self._push(b"%b%b\r\n" % (status_line(status), self._own(headers)[0]))

    def _own(self, headers: Headers) -> tuple[bytes, int | None]:
        """The lines of *headers* without what frames a message; note what that says."""
        lines: list[bytes] = []
        length = None
        known = encoded_lines
        for field in headers:
            name = field[0]
            if name not in _OWNED:
                lines.append(known[field])
            elif name == b"content-length" and field[1].isdigit() and len(field[1]) <= CONTENT_LENGTH_DIGITS:
                length = int(field[1])
            elif name == b"connection" and b"close" in field[1].lower():
                self._keep = False
        return b"".join(lines), length

    def _persistence(self, *, complete: bool) -> bytes:
        """The Connection field of a response head. *complete*: no body follows, so that an unfinished request can't be waited for."""
        if self._input != _COMPLETE and (complete or self._asked_continue):
            self._keep = False
        if self._draining:
            self._keep = False
        if not self._keep:
            return b"connection: close\r\n"
        return b"connection: keep-alive\r\n" if self._http_1_0 else b""

    def _push(self, data: bytes) -> None:
        self._out.append(data)
        self._queued += len(data)

    def _answer(self, status: int, why: str) -> None:
        """An answer of the engine's own, the last one of the connection."""
        body = f"{status} {HTTPStatus(status).phrase}: {why}\n".encode()
        self._push(
            b"%bcontent-type: text/plain\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%b" % (status_line(status), len(body), body)
        )

    # The end of a response, of the connection

    def _end(self) -> None:
        """The caller says that the response is complete."""
        if self._response == _SIZED and self._response_left:
            self._abort()
        else:
            self._complete()

    def _complete(self) -> None:
        """The response is complete: the turn of the next request, or the end."""
        self._response = _NONE
        self._high = False
        self._unconsumed = 0
        if self._input != _COMPLETE or not self._keep or self._draining:
            self._finish()
        else:
            self._input = _HEAD
            self._blank = False
            if self._eof or self._at < len(self._data):
                self._advance(self._events)

    def _drop_input(self) -> None:
        self._data = b""
        self._at = self._scanned = 0

    def _finish(self) -> None:
        """Nothing more is read or begun; what is queued still goes out."""
        self._input = _OVER
        self._response = _NONE
        self._chunks = None
        self._drop_input()

    def _abort(self) -> None:
        """End where the response is not complete, or may not be."""
        self.aborted = self._response > _WAITING
        self._finish()

    def reset(self, stream: int, reason: Reset) -> None:
        """Cut the connection; where nothing of a response was sent, the reason is told as an answer, if it has one."""
        if stream != self._stream or self._response == _NONE:
            return
        if self._response == _WAITING and reason in _RESET_STATUS:
            self._answer(_RESET_STATUS[reason], reason.value)
        self._abort()

    def goaway(self) -> None:
        """The next response is the last. The second call ends a connection without a request: at the first, one may be on its way."""
        if self._draining and self._response == _NONE and self._input == _HEAD and self._at >= len(self._data):
            self._finish()
        self._draining = True

    def close(self, reason: Reset) -> None:  # noqa: ARG002 - HTTP/1.1 has no way to tell it
        """End at once: what is queued is dropped."""
        self._out.clear()
        self._queued = 0
        self._abort()

    def time_out(self) -> None:
        """408 for a client that began a request head (RFC 9110, section 15.5.9); an idle one is closed without a word."""
        if self.head_in_progress:
            self._answer(408, "incomplete request head")
        self._abort()

    def take_output(self, limit: int) -> bytes:
        """Bytes to send now, at most *limit*."""
        out = self._out
        if not out:
            return b""
        if self._queued <= limit:
            data = out[0] if len(out) == 1 else b"".join(out)
            out.clear()
        else:
            data = self._take_some(limit)
        self._queued -= len(data)
        if self._queued <= LOW_WATER:
            if self._high:
                self._high = False
                self._events.append(Drained(self._stream))
            if self._input == _HEAD and self._at < len(self._data):
                self._advance(self._events)
        return data

    def bound_output(self, most: int) -> None:
        """Of one answer at a time: *most* is what it may have."""
        self._bound = most

    @property
    def output_bytes(self) -> int:
        """What waits here."""
        return self._queued

    def _take_some(self, limit: int) -> bytes:
        pieces = []
        room = limit
        while room > 0:
            piece = self._out.popleft()
            if len(piece) > room:
                self._out.appendleft(piece[room:])
                piece = piece[:room]
            pieces.append(piece)
            room -= len(piece)
        return b"".join(pieces)

    def take_events(self) -> list[Event]:
        """A pipelined request whose turn came, and Drained."""
        events = self._events
        if events:
            self._events = []
            return events
        return []

    # What the listener asks

    @property
    def quiet(self) -> bool:
        """True when nothing waits to be sent, told or read, and the connection goes on."""
        if self._out or self._data or self._events or self._eof or self._input == _OVER:
            return False
        return self._unconsumed < self._limits.stream_window

    @property
    def wants_input(self) -> bool:
        """False while a body is not consumed or a pipelined request waits for its turn."""
        if self._input == _OVER or self._eof or self._unconsumed >= self._limits.stream_window:
            return False
        if self._at >= len(self._data):
            return True
        return self._input != _COMPLETE and not (self._input == _HEAD and self._queued > LOW_WATER)

    @property
    def finished(self) -> bool:
        """True when the connection is to be closed as soon as its output has been sent."""
        return self._input == _OVER

    @property
    def streams(self) -> int:
        """1 while a request waits for its response or its end, else 0."""
        return int(self._response != _NONE)

    @property
    def head_in_progress(self) -> bool:
        """True while a part of a head has come, and it is not held back by our own doing."""
        return self._input == _HEAD and self._at < len(self._data) and self._queued <= LOW_WATER
