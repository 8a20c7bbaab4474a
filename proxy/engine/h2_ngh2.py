"""HTTP/2, listener side (RFC 9113): ``seam.Connection`` on the ngh2 library, a binding of libnghttp2 without I/O.

Knows the verbs of the seam and when the library is to be heard. Knows no socket, no clock and no frame layout.

Who checks what. The library: framing, padding, HPACK, SETTINGS, windows, the states of streams, content-length against the body, and a
first look at header sections. ``validate``: every header section that passed it, by the rules of all versions. ``h2_ngh2_frames``: the
length of frames, and floods of what carries nothing (PING, SETTINGS, PRIORITY, PRIORITY_UPDATE, WINDOW_UPDATE, GOAWAY, unknown types,
empty DATA, HEADERS on streams that are gone). ``h2_ngh2_receive`` and ``h2_ngh2_core``: the limit of streams, resets by the client and
for its faults (rapid reset, MadeYouReset), requests refused, answers that a client does not read. ``h2_ngh2_setup``: what the library
is told of all this, and which of its own limits stand behind ours.

A frame that should have given an event and gave none was a fault. What the library makes of it, it tells only by what it sends: the end
of a stream or of the connection. So its output is then asked for at once. DATA goes out in the order of RFC 9218's priorities, which the
library keeps; a long body whose client did not ask for any is incremental, so that bodies share the connection in equal turns.
"""

from ngh2 import ConnectionProtocolError, DenialOfServiceError, Priority, StreamClosed, StreamProtocolError

from proxy.engine.events import Drained, Event, StreamReset
from proxy.engine.h2_abuse import CONTROL_PER_WORK
from proxy.engine.h2_ngh2_core import BODYLESS, ENDING, HEAD_SENT, OPEN, Breach, Core
from proxy.engine.h2_ngh2_receive import DISPATCH
from proxy.engine.h2_ngh2_setup import STREAMS_SLACK
from proxy.engine.h2_terms import (
    DRAIN_PING,
    ENHANCE_YOUR_CALM,
    INTERNAL_ERROR,
    NO_BODY,
    NO_ERROR,
    PROTOCOL_ERROR,
    RESET_CODES,
    STATUS,
)
from proxy.engine.seam import HIGH_WATER, HOLD, LOW_WATER
from proxy.errors import Reset
from proxy.message import Headers

LIBRARIES = {"libnghttp2": "1.70.0"}
"""What the pinned wheel is built of, which it does not tell itself."""

ASKED_BYTES = 64 * 1024
"""Output that is asked for out of turn, to hear of a fault. No more is asked for while so much waits to be taken."""

DYING = STREAMS_SLACK // 2
"""Streams reset by us whose end may wait for somebody to take the output: the library counts them among the open ones."""

LONG_BODY = 16384
"""A body that takes more than one frame, and so its turns."""

_FRAME_SHIFT = 14  # a DATA frame of ours has up to 16,384 bytes
_DEFAULT_PRIORITY = Priority()
_FAIR = Priority(incremental=True)


class Ngh2Connection(Core):
    """One HTTP/2 connection with prior knowledge (ALPN h2 or the bare preface; no h2c upgrade)."""

    version = "HTTP/2"

    __slots__ = ()

    def receive(self, data: bytes, now: float) -> list[Event]:
        """Take bytes; a fault of the connection ends it with GOAWAY, StreamReset for each stream and ConnectionClosed."""
        if self.closed:
            return []
        self.now = now
        frames = self.frames
        if self.work:
            frames.control.earn(self.work * CONTROL_PER_WORK)
            self.work = 0
        try:
            whole = frames.whole(data, now)
            while whole:
                self._feed(whole)
                if not frames.more or self.closed:
                    break
                whole = frames.whole(b"", now)
            if frames.fault is not None and not self.closed:
                self.fail(*frames.fault)
        except Exception as error:  # noqa: BLE001 - whatever hostile bytes find in the library costs this connection only
            self._failed(error)
        return self.take_events()

    def _feed(self, whole: bytes | memoryview) -> None:
        """Give the library whole frames, and hear what it makes of them. Raises Breach and what the library raises."""
        library = self.library
        library.receive_data(whole)
        events = library.events()
        missing = self.frames.expected - len(events)
        for event in events:
            kind = event.__class__
            if kind is StreamClosed:
                missing += 1
            DISPATCH[kind](self, event)
        if missing or self.frames.suspect or len(self.dying) > DYING:
            self._ask(missing)

    def _ask(self, missing: int) -> None:
        """Have the library say what it made of *missing* frames without events. Raises Breach and what the library raises."""
        if self.closed:
            return
        if len(self.output) < ASKED_BYTES:
            self.output += self._sent(ASKED_BYTES)
        else:
            self.count_answers(missing)  # it may have answered each of them

    def _failed(self, error: Exception) -> None:
        """End the connection for an exception of ours or of the library."""
        if self.closed:
            return
        if isinstance(error, Breach):
            self.fail(error.code, str(error))
        elif isinstance(error, DenialOfServiceError):
            self.fail(ENHANCE_YOUR_CALM, str(error))
        elif isinstance(error, ConnectionProtocolError):
            self.fail(PROTOCOL_ERROR, str(error))
        else:
            self.fail(INTERNAL_ERROR, repr(error)[:200])

    def receive_eof(self, now: float) -> list[Event]:
        """The client closed the connection: nothing on it can be completed."""
        self.now = now
        if not self.closed:
            self.events.extend([StreamReset(identity, "client: closed the connection") for identity in self.table])
            self.finish(NO_ERROR)
        return self.take_events()

    # Verbs. A stream that the library has given up raises StreamProtocolError: its end is on the way to us as an event.

    def respond(self, stream: int, status: int, headers: Headers, body: bytes) -> None:
        """A whole answer; adds content-length where the status allows one."""
        state = self.table.get(stream)
        if state is None or state & HEAD_SENT:
            return
        fields = [STATUS[status], *headers]
        if status not in NO_BODY:
            for name, _ in headers:
                if name == b"content-length":
                    break
            else:
                fields.append((b"content-length", b"%d" % len(body)))
        self.table[stream] = state | HEAD_SENT | ENDING
        library = self.library
        try:
            if not body or state & BODYLESS or status in NO_BODY:
                library.send_response(stream, fields, end_stream=True)
            else:
                library.send_response(stream, fields)
                library.send_data(stream, body, end_stream=True)
                if len(body) > LONG_BODY:
                    self._take_turns(stream)
        except StreamProtocolError:
            return
        if state & OPEN:
            self.early[stream] = False

    def send_head(self, stream: int, status: int, headers: Headers, end: bool) -> None:
        """A final head. Where no body may follow (HEAD, 204, 304) it ends the stream, whatever *end* says."""
        state = self.table.get(stream)
        if state is None or state & HEAD_SENT:
            return
        end = end or bool(state & BODYLESS) or status in NO_BODY
        self.table[stream] = state | HEAD_SENT | ENDING if end else state | HEAD_SENT
        try:
            self.library.send_response(stream, [STATUS[status], *headers], end_stream=end)
            if not end:
                self._take_turns(stream)
        except StreamProtocolError:
            return
        if end and state & OPEN:
            self.early[stream] = False

    def send_data(self, stream: int, data: bytes, end: bool) -> int:
        """Queue body bytes; returns the bytes now queued for the stream, or ``HOLD`` and more."""
        state = self.table.get(stream)
        if state is None or state & ENDING:
            return 0
        assert state & HEAD_SENT
        library = self.library
        try:
            library.send_data(stream, data, end_stream=end)
        except StreamProtocolError:
            return 0
        self.work += 1
        queued = library.queued_body_size(stream)
        if end:
            self.table[stream] = state | ENDING
            self.high.discard(stream)
            if state & OPEN:
                self.early[stream] = not queued
        elif queued > LOW_WATER:
            if library.queued_body_size() > self.bound:
                self.high.add(stream)
                return queued + HOLD
            if queued > HIGH_WATER:
                self.high.add(stream)
        return queued

    def send_trailers(self, stream: int, headers: Headers) -> None:
        """End the body with trailers."""
        if not headers:
            self.send_data(stream, b"", end=True)
            return
        state = self.table.get(stream)
        if state is None or state & ENDING:
            return
        assert state & HEAD_SENT
        self.table[stream] = state | ENDING
        self.high.discard(stream)
        try:
            self.library.send_trailers(stream, headers)
        except StreamProtocolError:
            return
        if state & OPEN:
            self.early[stream] = not self.library.queued_body_size(stream)

    def inform(self, stream: int, status: int, headers: Headers) -> None:
        """A 1xx response, unless the final one has begun."""
        state = self.table.get(stream)
        if state is not None and not state & HEAD_SENT:
            try:
                self.library.send_informational_response(stream, [STATUS[status], *headers])
            except StreamProtocolError:
                return

    def consumed(self, stream: int, credit: int) -> None:
        """Return credit for *credit* body bytes to the stream and the connection."""
        left = self.unconsumed.get(stream)
        if left is None:
            return  # credited when the stream ended
        if credit < left:
            self.unconsumed[stream] = left - credit
        else:
            credit = left
            del self.unconsumed[stream]
        self.library.acknowledge_received_data(credit, stream)

    def reset(self, stream: int, reason: Reset) -> None:
        """RST_STREAM; what the stream had queued is dropped."""
        if self.table.pop(stream, None) is not None:
            self.dying.add(stream)
            self.library.reset_stream(stream, RESET_CODES[reason])
            self.release(stream)

    def close(self, reason: Reset) -> None:
        """GOAWAY with the code of *reason*; streams end without events."""
        if not self.closed:
            self.finish(RESET_CODES[reason])

    def time_out(self) -> None:
        """GOAWAY without an error; StreamReset (from ``take_events``) for what was still open."""
        if not self.closed:
            self.events.extend([StreamReset(identity, "client: silent for too long") for identity in self.table])
            self.finish(NO_ERROR)

    def _take_turns(self, stream: int) -> None:
        """Serve a long body in turns with others, unless its client asked for a priority (RFC 9218, section 10)."""
        if self.library.get_stream_priority(stream) == _DEFAULT_PRIORITY:
            self.library.set_stream_priority(stream, _FAIR)

    # Output.

    def take_output(self, limit: int) -> bytes:
        """Control frames, then DATA by priority and in turns, *limit* bytes of it at most."""
        if not self.closed:
            try:
                if self.output:
                    self.output += self._sent(limit)
                else:
                    sent = self._sent(limit)
                    if not self.output:
                        return sent
                    self.output = sent + self.output
            except Exception as error:  # noqa: BLE001 - as in receive
                self._failed(error)
        output = self.output
        self.output = b""
        return output

    def _sent(self, limit: int) -> bytes:
        """What the library has to send, and what it tells with that. Raises Breach and what the library raises."""
        library = self.library
        if not library.want_write and not self.ping_due:
            return b""
        bounded = library.queued_body_size() > limit
        sent = library.data_to_send(limit) if bounded else library.data_to_send()
        self.cut = bounded and len(sent) >= limit
        self.work += len(sent) >> _FRAME_SHIFT
        for event in library.events():
            DISPATCH[event.__class__](self, event)
        if self.closed:
            return sent
        if self.high:
            for stream in [stream for stream in self.high if library.queued_body_size(stream) < LOW_WATER]:
                self.high.remove(stream)
                self.events.append(Drained(stream))
        if not self.cut:
            self.unread = 0
            if self.early or self.ping_due:
                return sent + self._sequel()
        return sent

    def _sequel(self) -> bytes:
        """What had to wait until something else was sent: RST_STREAM behind an early end, PING behind GOAWAY."""
        library = self.library
        if self.ping_due:
            self.ping_due = False
            library.ping(DRAIN_PING)
        for stream, alone in list(self.early.items()):
            if library.queued_body_size(stream):
                continue
            if alone and not (library.remote_window_size > 0 and library.stream_remote_window_size(stream) > 0):
                continue
            del self.early[stream]
            library.reset_stream(stream, NO_ERROR)  # the client may stop (RFC 9113, section 8.1)
        sent = library.data_to_send(ASKED_BYTES)
        self.cut = len(sent) == ASKED_BYTES
        for event in library.events():
            DISPATCH[event.__class__](self, event)
        return sent

    def bound_output(self, most: int) -> None:
        """Hold each stream at the low-water mark while more than *most* waits for all."""
        self.bound = most

    @property
    def output_bytes(self) -> int:
        """Bodies, and what was taken from the library out of turn. Frames without a body that it has not made yet are not counted."""
        return len(self.output) + (0 if self.closed else self.library.queued_body_size())

    @property
    def quiet(self) -> bool:
        """True when nothing waits to be sent or told, and neither a head nor the connection is at its end."""
        if self.output or self.events or self.closed or self.ping_due or self.library.want_write:
            return False
        return not self.frames.held and (self.last is None and not self.peer_leaving)

    @property
    def head_in_progress(self) -> bool:
        """True while the preface, the first SETTINGS or part of a header section was received and not yet all of it."""
        return not self.closed and self.frames.head_in_progress
