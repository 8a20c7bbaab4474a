"""What the verbs of the proxy and the events of the ngh2 library share: the state of one HTTP/2 connection, and what a fault costs.

Knows streams, their ends, credit and faults. Knows no verb and no event of the library: those are ``h2_ngh2`` and ``h2_ngh2_receive``.
"""

from struct import pack

from ngh2 import NGH2Error, StreamProtocolError

from proxy.engine.events import ConnectionClosed, Event, Rejected, StreamReset
from proxy.engine.h2_abuse import RESET_BURST, RESET_RATE, Bucket
from proxy.engine.h2_asked import Asked
from proxy.engine.h2_ngh2_frames import Frames
from proxy.engine.h2_ngh2_setup import connect
from proxy.engine.h2_terms import ENHANCE_YOUR_CALM, PROTOCOL_ERROR, STATUS, token
from proxy.engine.last_head import LastFields
from proxy.engine.seam import EngineLimits
from proxy.engine.validate import Malformed

OPEN, BODYLESS, HEAD_SENT, ENDING = 1, 2, 4, 8
"""All that most streams need: the client is still sending; the answer to HEAD; our head was given to the library; so was our end."""

UNREAD_ANSWERS = 2000
"""Resets and refusals that may wait for a client that does not read. The library keeps some 200 bytes of each."""


class Breach(Exception):  # noqa: N818 - every name here would end in Error
    """What costs the connection: a code of RFC 9113, section 7, and what to log."""

    def __init__(self, code: int, detail: str) -> None:
        super().__init__(detail)
        self.code = code


class Core(Asked):
    """The state of one connection."""

    __slots__ = (
        "bound",
        "closed",
        "cut",
        "dying",
        "early",
        "events",
        "frames",
        "grace",
        "high",
        "last",
        "last_fields",
        "leaving",
        "library",
        "limits",
        "now",
        "output",
        "peer_leaving",
        "ping_due",
        "resets",
        "table",
        "unconsumed",
        "unread",
        "work",
    )

    def __init__(self, limits: EngineLimits) -> None:
        self.limits = limits
        self.bound = limits.output
        """Bytes queued for all streams above which each is held at ``LOW_WATER``."""
        self.library, self.output = connect(limits)
        self.frames = Frames()
        self.events: list[Event] = []
        self.table: dict[int, int] = {}
        """Requests in progress: OPEN and the others, of each."""
        self.dying: set[int] = set()
        """Streams out of the table whose end the library has still to tell."""
        self.early: dict[int, bool] = {}
        """Streams that we end while the client is still sending; True where the end is a frame of its own, that needs a window."""
        self.high: set[int] = set()
        """Streams whose queue went over the high-water mark."""
        self.unconsumed: dict[int, int] = {}
        self.resets = Bucket(RESET_BURST, RESET_RATE)
        self.unread = 0
        """Resets and refusals since the output was last taken to its end."""
        self.work = 0
        """What we sent since the engine last looked: it earns the client control frames."""
        self.cut = False
        """The output taken last may end within a frame."""
        self.now = 0.0
        self.closed = False
        self.leaving = False
        self.ping_due = False
        self.grace = limits.streams  # requests taken between the two GOAWAYs
        self.last: int | None = None  # of the final GOAWAY
        self.peer_leaving = False
        self.last_fields = LastFields()

    @property
    def control(self) -> Bucket:
        """The budget for frames that carry nothing."""
        return self.frames.control

    # What a fault costs.

    def reject(self, identity: int, error: Malformed, *, ended: bool) -> None:
        """Refuse a request whose head is not accepted: by a real answer where the client may learn from one. Raises Breach."""
        self.events.append(Rejected(identity, error.status, error.reason, error.detail))
        self.count_answers(1)
        self.dying.add(identity)
        if error.status == 400:
            self.library.reset_stream(identity, PROTOCOL_ERROR)
            self.spend_reset()
            return
        try:
            self.library.send_response(identity, [STATUS[error.status], (b"content-length", b"0")], end_stream=True)
            if not ended:
                self.early[identity] = False
        except StreamProtocolError:
            pass  # the client has cut it meanwhile: an event that is still to come
        self.spend_control()

    def refuse(self, identity: int, code: int) -> None:
        """Refuse a request without looking at it. Raises Breach."""
        self.count_answers(1)
        self.dying.add(identity)
        self.library.reset_stream(identity, code)
        self.spend_control()

    def stream_error(self, identity: int, reason: str) -> None:
        """The client's fault cost it a stream, which is out of the table. Raises Breach."""
        self.count_answers(1)
        self.release(identity)
        self.events.append(StreamReset(identity, reason))
        self.spend_reset()

    def spend_control(self) -> None:
        """Count what asks for work without carrying any. Raises Breach."""
        if not self.frames.control.spend(self.now):
            raise Breach(ENHANCE_YOUR_CALM, "too many control frames")

    def spend_reset(self) -> None:
        """Count a stream that ended in a reset by the client or for its fault. Raises Breach."""
        if not self.resets.spend(self.now):
            raise Breach(ENHANCE_YOUR_CALM, "too many resets")

    def count_answers(self, answers: int) -> None:
        """Count resets and refusals that the client must read. Raises Breach."""
        self.unread += answers
        if self.unread > UNREAD_ANSWERS:
            raise Breach(ENHANCE_YOUR_CALM, "answers that are not read")

    def fail(self, code: int, detail: str) -> None:
        """End the connection by an error (RFC 9113, section 5.4.1)."""
        self.lose(code, detail)
        self.finish(code)

    def lose(self, code: int, detail: str) -> None:
        """The connection is lost by an error: every stream hears of it, then the proxy."""
        error = token(code)
        self.events.extend([StreamReset(identity, error) for identity in self.table])
        self.events.append(ConnectionClosed(error, detail))

    def finish(self, code: int) -> None:
        """End the connection: what the library had to say besides bodies goes out, GOAWAY last."""
        self.retire()
        try:
            self.library.terminate_connection(code, last_stream_id=self.frames.highest)
            self.output += self.library.data_to_send()
        except (NGH2Error, MemoryError):  # the library gave the connection up, and what it had to say is lost
            if not self.cut:
                self.output += pack(">BHBBLLL", 0, 8, 7, 0, 0, self.frames.highest, code)

    def retire(self) -> None:
        """Nothing is received or queued any more."""
        self.closed = True
        self.table.clear()
        self.dying.clear()
        self.early.clear()
        self.high.clear()
        self.unconsumed.clear()

    # The end of a stream.

    def release(self, identity: int) -> None:
        """The stream is over: return what the proxy has not consumed of it."""
        self.high.discard(identity)
        self.early.pop(identity, None)
        left = self.unconsumed.pop(identity, 0)
        if left:
            self.library.acknowledge_received_data(left, identity)

    def goaway(self) -> None:
        """The first call says that the end is near; the second, or the answer to DRAIN_PING, refuses what comes later."""
        if self.closed or self.last is not None:
            return
        if not self.leaving:
            self.leaving = True
            self.ping_due = True  # behind GOAWAY: the library would send PING first
            self.library.send_shutdown_notice()
            return
        self.last = self.frames.highest
        self.library.send_goaway(0, last_stream_id=self.last)
