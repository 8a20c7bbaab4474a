"""What the frames received and the verbs of the proxy share: the state of one HTTP/2 connection, and what a fault costs.

Knows streams, their ends, credit and faults: the stream where the RFC lets it, the connection where it must (RFC 9113, section 5.4).
Knows no frame and no verb: those are ``h2_receive`` and ``h2``.
"""

from h2.errors import ErrorCodes

from proxy.engine.events import ConnectionClosed, Event, Rejected, StreamReset
from proxy.engine.h2_abuse import CONTROL_BURST, CONTROL_RATE, RESET_BURST, RESET_RATE, Bucket
from proxy.engine.h2_asked import Asked
from proxy.engine.h2_fault import Fault
from proxy.engine.h2_output import Output, Stream
from proxy.engine.h2_terms import DRAIN_PING, LARGEST_WINDOW, STATUS, token
from proxy.engine.h2_wire import Wire
from proxy.engine.seam import EngineLimits
from proxy.engine.validate import Malformed

RESETS_REMEMBERED = 256
"""Streams that we cut while the client was still sending: what was under way then is dropped in silence. With the default of 100
streams no client has more of them in flight within one round trip."""

CONTROL_BACKLOG = 256 * 1024
"""Bytes of control frames and response heads that may wait for a client that does not read, to which comes HEAD_BACKLOG for each
stream of the limit (CVE-2019-9512 and its family made servers queue answers without end)."""

HEAD_BACKLOG = 4 * 1024


class Core(Asked):
    """The state of one connection."""

    __slots__ = (
        "backlog",
        "closed",
        "control",
        "dead",
        "events",
        "frames",
        "grace",
        "highest",
        "last",
        "leaving",
        "limits",
        "now",
        "output",
        "peer_leaving",
        "resets",
        "settled",
        "table",
        "wire",
    )

    def __init__(self, limits: EngineLimits) -> None:
        wire = Wire(limits)
        self.limits = limits
        self.wire = wire
        self.frames = wire.frames
        self.table: dict[int, Stream] = wire.streams  # type: ignore[assignment]  # ours stand in for h2's: see Stream
        self.events: list[Event] = []
        self.output = Output(wire.encoder, self.events, self.on_sent, limits.output)
        self.output.control += wire.data_to_send()
        if wire.window_raise:
            self.output.window_update(0, wire.window_raise)
        self.backlog = CONTROL_BACKLOG + HEAD_BACKLOG * limits.streams
        self.control = Bucket(CONTROL_BURST, CONTROL_RATE)
        self.resets = Bucket(RESET_BURST, RESET_RATE)
        self.dead: dict[int, int] = {}  # streams that we cut: the bytes that the client may still send on each
        self.settled = False  # the client's first SETTINGS have come
        self.highest = 0
        self.now = 0.0
        self.closed = False
        self.leaving = False
        self.grace = limits.streams  # requests taken between the two GOAWAYs
        self.last: int | None = None  # of the final GOAWAY
        self.peer_leaving = False

    # What a fault costs.

    def reject(self, identity: int, error: Malformed, *, ended: bool) -> None:
        """Refuse a request whose head is not accepted: by a real answer where the client may learn from one."""
        self.events.append(Rejected(identity, error.status, error.reason, error.detail))
        if error.status == 400:
            self.cut(identity, ErrorCodes.PROTOCOL_ERROR, ended=ended)
            self.spend_reset()
            return
        self.output.header_block(identity, [STATUS[error.status], (b"content-length", b"0")], end=True)
        if not ended:
            self.cut(identity, ErrorCodes.NO_ERROR, ended=False)
        self.spend_control()

    def malformed_rest(self, stream: Stream, error: Malformed) -> None:
        """Body or trailers of an accepted request turned out malformed."""
        self.events.append(Rejected(stream.identity, error.status, error.reason, error.detail))
        self.stream_error(stream, ErrorCodes.PROTOCOL_ERROR, error.reason)

    def stream_error(self, stream: Stream, code: ErrorCodes, reason: str) -> None:
        """The client's fault costs it the stream (RFC 9113, section 5.4.2)."""
        self.output.reset(stream.identity, code)
        self.bury(stream)
        self.events.append(StreamReset(stream.identity, reason))
        self.spend_reset()

    def fail(self, code: int, detail: str) -> None:
        """End the connection by an error (RFC 9113, section 5.4.1)."""
        error = token(code)
        self.events.extend([StreamReset(identity, error) for identity in self.table])
        self.events.append(ConnectionClosed(error, detail))
        self.finish(code)

    def finish(self, code: int) -> None:
        """End the connection: nothing is received or queued any more."""
        self.closed = True
        self.table.clear()
        self.dead.clear()
        self.output.clear()
        if len(self.output.control) > self.backlog:
            self.output.control.clear()  # whole frames only ever stand there
        self.output.goaway(self.highest, code)

    def spend_control(self) -> None:
        """Count a frame that asks for work without carrying any. Raises Fault."""
        if not self.control.spend(self.now):
            raise Fault(ErrorCodes.ENHANCE_YOUR_CALM, "too many control frames")

    def spend_reset(self) -> None:
        """Count a stream that ended in a reset by the client or for its fault. Raises Fault."""
        if not self.resets.spend(self.now):
            raise Fault(ErrorCodes.ENHANCE_YOUR_CALM, "too many resets")

    # The end of a stream.

    def cut(self, identity: int, code: int, *, ended: bool) -> None:
        """Reset a stream that never came into the table."""
        self.output.reset(identity, code)
        if not ended:
            self._remember(identity, self.wire.stream_window)

    def bury(self, stream: Stream) -> None:
        """The stream is over by our doing."""
        if not stream.remote_ended:
            inbound = stream.inbound
            self._remember(stream.identity, self.wire.stream_window if inbound is None else inbound.current_window_size)
        self.drop(stream)

    def _remember(self, identity: int, window: int) -> None:
        """The client was still sending: so much may be under way."""
        dead = self.dead
        dead[identity] = window
        if len(dead) > RESETS_REMEMBERED:
            del dead[next(iter(dead))]

    def drop(self, stream: Stream) -> None:
        """The stream is over: forget it, and return what the proxy has not consumed of it."""
        del self.table[stream.identity]
        self.output.forget(stream)
        if stream.unconsumed:
            self.credit(stream.unconsumed)

    def on_sent(self, stream: Stream) -> None:
        """Our END_STREAM is framed. Where the client is still sending, it may stop (RFC 9113, section 8.1)."""
        if not stream.remote_ended:
            self.output.reset(stream.identity, ErrorCodes.NO_ERROR)
        self.bury(stream)

    def credit(self, size: int) -> None:
        """Give the connection's window back *size* bytes."""
        increment = self.wire.window.process_bytes(size)
        if increment:
            self.output.window_update(0, increment)

    def credit_stream(self, stream: Stream, size: int) -> None:
        """Give the stream's window back *size* bytes."""
        assert stream.inbound is not None
        increment = stream.inbound.process_bytes(size)
        if increment:
            self.output.window_update(stream.identity, increment)

    def goaway(self) -> None:
        """The first call says that the end is near; the second, or the answer to DRAIN_PING, refuses what comes later."""
        if self.closed or self.last is not None:
            return
        if not self.leaving:
            self.leaving = True
            self.output.goaway(LARGEST_WINDOW, ErrorCodes.NO_ERROR)
            self.output.ping(DRAIN_PING, ack=False)
            return
        self.last = self.highest
        self.output.goaway(self.last, ErrorCodes.NO_ERROR)
