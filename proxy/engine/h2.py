"""HTTP/2, listener side (RFC 9113): ``seam.Connection`` on the h2 library.

Knows the verbs of the seam and the loop over received frames. Knows no socket and no clock. ``h2_receive`` says what each frame means,
``h2_core`` what a fault costs, ``h2_output`` what is sent and when, ``h2_abuse`` how much is too much, ``h2_wire`` and ``h2_hpack``
carry framing and header compression, and ``validate`` says what a valid request is.
"""

from h2.errors import ErrorCodes
from h2.exceptions import ProtocolError
from hyperframe.exceptions import HyperframeError

from proxy.engine.events import Event, StreamReset
from proxy.engine.h2_abuse import CONTROL_PER_WORK
from proxy.engine.h2_core import Core
from proxy.engine.h2_receive import DISPATCH, FIRST, on_unexpected
from proxy.engine.h2_terms import NO_BODY, RESET_CODES, STATUS
from proxy.errors import Reset
from proxy.message import Headers

SMALL_BACKLOG = 64 * 1024
"""While fewer control bytes than this wait, a small answer is framed at once, without waiting for its turn."""


class H2Connection(Core):
    """One HTTP/2 connection with prior knowledge (ALPN h2 or the bare preface; no h2c upgrade)."""

    version = "HTTP/2"

    __slots__ = ()

    def receive(self, data: bytes, now: float) -> list[Event]:
        """Take bytes; a fault of the connection ends it with GOAWAY, StreamReset for each stream and ConnectionClosed."""
        if self.closed:
            return []
        self.now = now
        output = self.output
        if output.data_frames:
            self.control.earn(output.data_frames * CONTROL_PER_WORK)
            output.data_frames = 0
        try:
            self.frames.add_data(data)
            while self._read():
                pass
        except ProtocolError as error:
            self.fail(error.error_code, str(error))
        except HyperframeError as error:
            self.fail(ErrorCodes.PROTOCOL_ERROR, str(error) or type(error).__name__)
        except Exception as error:  # noqa: BLE001 - whatever hostile bytes find in the libraries costs this connection only
            self.fail(ErrorCodes.INTERNAL_ERROR, repr(error)[:200])
        return self.take_events()

    def _read(self) -> bool:
        """Handle all whole frames; True when one was taken away for being a fault of one stream, and there may be more."""
        output = self.output
        handlers = DISPATCH if self.settled else FIRST
        try:
            for frame in self.frames:
                handlers.get(frame.__class__, on_unexpected)(self, frame)
                if len(output.control) > self.backlog:
                    self.fail(ErrorCodes.ENHANCE_YOUR_CALM, "control frames that are not read")
                    break
                handlers = DISPATCH
        except ProtocolError as error:
            identity = self.frames.skip_zero_increment(error)
            if not identity:
                raise
            self.spend_control()
            stream = self.table.get(identity)
            if stream is not None:
                self.stream_error(stream, ErrorCodes.PROTOCOL_ERROR, "WINDOW_UPDATE of 0")
            elif identity > self.highest:
                raise
            return True
        return False

    def receive_eof(self, now: float) -> list[Event]:
        """The client closed the connection: nothing on it can be completed."""
        self.now = now
        if not self.closed:
            self.events.extend([StreamReset(identity, "client: closed the connection") for identity in self.table])
            self.finish(ErrorCodes.NO_ERROR)
        return self.take_events()

    def respond(self, stream: int, status: int, headers: Headers, body: bytes) -> None:
        """A whole answer; a small one that the windows allow is framed at once."""
        record = self.table.get(stream)
        if record is None or record.head_sent:
            return
        record.head_sent = True
        fields = [STATUS[status], *headers]
        if status not in NO_BODY:
            for name, _ in headers:
                if name == b"content-length":
                    break
            else:
                fields.append((b"content-length", b"%d" % len(body)))
        output = self.output
        if not body or record.bodyless or status in NO_BODY:
            output.header_block(stream, fields, end=True)
            self.on_sent(record)
            return
        output.header_block(stream, fields, end=False)
        if len(output.control) < SMALL_BACKLOG and output.whole(record, body):
            self.on_sent(record)
        else:
            output.queue(record, body, end=True)

    def send_head(self, stream: int, status: int, headers: Headers, end: bool) -> None:
        """A final head. Where no body may follow (HEAD, 204, 304) it ends the stream, whatever *end* says."""
        record = self.table.get(stream)
        if record is None or record.head_sent:
            return
        record.head_sent = True
        end = end or record.bodyless or status in NO_BODY
        self.output.header_block(stream, [STATUS[status], *headers], end=end)
        if end:
            self.on_sent(record)

    def send_data(self, stream: int, data: bytes, end: bool) -> int:
        """Queue body bytes; returns the bytes now queued for the stream."""
        record = self.table.get(stream)
        if record is None or record.ending:
            return 0
        assert record.head_sent
        return self.output.queue(record, data, end=end)

    def send_trailers(self, stream: int, headers: Headers) -> None:
        """End the body with trailers."""
        record = self.table.get(stream)
        if record is None or record.ending:
            return
        assert record.head_sent
        record.trailers = headers or None
        self.output.queue(record, b"", end=True)

    def inform(self, stream: int, status: int, headers: Headers) -> None:
        """A 1xx response, unless the final one has begun."""
        record = self.table.get(stream)
        if record is not None and not record.head_sent:
            self.output.header_block(stream, [STATUS[status], *headers], end=False)

    def consumed(self, stream: int, credit: int) -> None:
        """Return credit for *credit* body bytes to the stream and the connection."""
        record = self.table.get(stream)
        if record is None:
            return  # credited when the stream ended
        credit = min(credit, record.unconsumed)
        if credit:
            record.unconsumed -= credit
            self.credit(credit)
            if not record.remote_ended:
                self.credit_stream(record, credit)

    def reset(self, stream: int, reason: Reset) -> None:
        """RST_STREAM; what the stream had queued is dropped."""
        record = self.table.get(stream)
        if record is not None:
            self.output.reset(stream, RESET_CODES[reason])
            self.bury(record)

    def close(self, reason: Reset) -> None:
        """GOAWAY with the code of *reason*; streams end without events."""
        if not self.closed:
            self.finish(RESET_CODES[reason])

    def time_out(self) -> None:
        """GOAWAY without an error; StreamReset (from ``take_events``) for what was still open."""
        if not self.closed:
            self.events.extend([StreamReset(identity, "client: silent for too long") for identity in self.table])
            self.finish(ErrorCodes.NO_ERROR)

    def take_output(self, limit: int) -> bytes:
        """All control frames, then about *limit* bytes of DATA in turns of one frame a stream."""
        return self.output.take(limit)

    def bound_output(self, most: int) -> None:
        """Hold each stream at the low-water mark while more than *most* waits for all."""
        self.output.bound = most

    @property
    def output_bytes(self) -> int:
        """Control frames and bodies."""
        return len(self.output.control) + self.output.queued

    @property
    def quiet(self) -> bool:
        """True when nothing waits to be sent or told, and neither a head nor the connection is at its end."""
        if self.output.waiting or self.events or self.head_in_progress:
            return False
        return not self.finished

    @property
    def head_in_progress(self) -> bool:
        """True while the preface, the first SETTINGS or part of a header section was received and not yet all of it."""
        return not self.closed and (not self.settled or self.frames.head_in_progress)
