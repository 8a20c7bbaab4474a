"""The sending half of an HTTP/2 connection: what each stream still has to say, and whose turn it is.

Knows flow-control windows, frame sizes and turns. Knows nothing of requests, of what is received, or why a stream ends. DATA is framed
only when the transport asks for it, in turns of one frame a stream, so that a queue is never longer than its source was allowed to
fill it, and a stream that was reset costs no bandwidth any more.
"""

from collections import deque
from collections.abc import Callable
from struct import Struct

from h2.windows import WindowManager

from proxy.engine.events import Drained, Event
from proxy.engine.h2_hpack import Encoder
from proxy.engine.seam import HIGH_WATER, HOLD, LOW_WATER
from proxy.message import Headers

FRAME_BYTES = 64 * 1024
"""Largest DATA frame that we send, whatever the client allows: one frame is one turn, and others wait meanwhile."""

DATA, HEADERS, RST_STREAM, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 6, 7, 8, 9
END_STREAM, END_HEADERS = 1, 4

_HEAD = Struct(">BHBBL")
_WORD = Struct(">L")
_TWO_WORDS = Struct(">LL")


class Stream:
    """One request and its response: the engine's record of it, kept in h2's table of streams.

    The two public names that are not ours and ``_inbound_flow_control_change_from_settings`` are what h2 itself sets and calls on
    every stream when the client changes its SETTINGS or acknowledges ours.
    """

    __slots__ = (
        "bodyless",
        "chunks",
        "ending",
        "expected",
        "head_sent",
        "high",
        "identity",
        "inbound",
        "max_outbound_frame_size",
        "offset",
        "outbound_flow_control_window",
        "queued",
        "received",
        "remote_ended",
        "trailers",
        "turning",
        "unconsumed",
    )

    def __init__(self, identity: int, window: int, *, remote_ended: bool, bodyless: bool, expected: int | None) -> None:
        self.identity = identity
        self.outbound_flow_control_window = window
        self.max_outbound_frame_size: int | None = None
        self.bodyless = bodyless  # the answer to HEAD
        # Receiving.
        self.remote_ended = remote_ended
        self.expected = expected  # the request's content-length
        self.received = 0
        self.unconsumed = 0
        self.inbound: WindowManager | None = None  # made with the first DATA: most requests have none
        # Sending.
        self.head_sent = False
        self.ending = False
        self.trailers: Headers | None = None
        self.chunks: deque[bytes] | None = None
        self.offset = 0  # of the first chunk, bytes already sent
        self.queued = 0
        self.high = False
        self.turning = False

    def _inbound_flow_control_change_from_settings(self, delta: int) -> None:
        inbound = self.inbound
        if inbound is not None:
            largest = inbound.max_window_size + delta
            inbound.window_opened(delta)
            inbound.max_window_size = largest


class Output:
    """Control frames in order, then DATA in turns."""

    __slots__ = ("_ended", "_events", "_turns", "bound", "control", "data_frames", "encoder", "max_frame", "queued", "window")

    def __init__(self, encoder: Encoder, events: list[Event], ended: Callable[[Stream], None], bound: int) -> None:
        """*ended* is called when the END_STREAM of a stream has been framed; *events* takes Drained."""
        self.bound = bound
        """Bytes queued for all streams above which each is held at ``LOW_WATER``."""
        self.queued = 0
        """Bytes queued for all streams."""
        self.control = bytearray()
        self.encoder = encoder
        self.window = 65535
        """Bytes that the connection's window allows (RFC 9113, section 6.9.2)."""
        self.max_frame = 16384
        self.data_frames = 0
        """DATA frames sent since the engine last looked: work done for the client, that earns it control frames."""
        self._events = events
        self._ended = ended
        self._turns: deque[Stream] = deque()

    def header_block(self, identity: int, fields: Headers, *, end: bool) -> None:
        """Write a header section at once: HPACK wants the order of encoding to be the order on the wire."""
        block = self.encoder.encode(fields)
        control = self.control
        size = len(block)
        limit = self.max_frame
        flags = END_STREAM if end else 0
        if size <= limit:
            control += _HEAD.pack(size >> 16, size & 0xFFFF, HEADERS, flags | END_HEADERS, identity)
            control += block
            return
        kind = HEADERS
        for at in range(0, size, limit):
            piece = block[at : at + limit]
            if at + limit >= size:
                flags |= END_HEADERS
            control += _HEAD.pack(len(piece) >> 16, len(piece) & 0xFFFF, kind, flags, identity)
            control += piece
            kind, flags = CONTINUATION, 0

    def reset(self, identity: int, code: int) -> None:
        """Write RST_STREAM."""
        self.control += _HEAD.pack(0, 4, RST_STREAM, 0, identity) + _WORD.pack(code)

    def window_update(self, identity: int, increment: int) -> None:
        """Write WINDOW_UPDATE."""
        self.control += _HEAD.pack(0, 4, WINDOW_UPDATE, 0, identity) + _WORD.pack(increment)

    def ping(self, data: bytes, *, ack: bool) -> None:
        """Write PING."""
        self.control += _HEAD.pack(0, 8, PING, 1 if ack else 0, 0) + data

    def goaway(self, last: int, code: int) -> None:
        """Write GOAWAY."""
        self.control += _HEAD.pack(0, 8, GOAWAY, 0, 0) + _TWO_WORDS.pack(last, code)

    def whole(self, stream: Stream, body: bytes) -> bool:
        """Write a small final body behind its head without queueing, when all of it may be sent now."""
        size = len(body)
        if size > self.window or size > stream.outbound_flow_control_window or size > self.max_frame:
            return False
        self.window -= size
        self.data_frames += 1
        control = self.control
        control += _HEAD.pack(size >> 16, size & 0xFFFF, DATA, END_STREAM, stream.identity)
        control += body
        return True

    def queue(self, stream: Stream, data: bytes, *, end: bool) -> int:
        """Take body bytes; returns how many are now queued for the stream, or ``HOLD`` and more."""
        queued = stream.queued
        if data:
            if stream.chunks is None:
                stream.chunks = deque()
            stream.chunks.append(data)
            queued += len(data)
            stream.queued = queued
            self.queued += len(data)
            if queued > LOW_WATER:
                if self.queued > self.bound:
                    stream.high = True
                    queued += HOLD
                elif queued > HIGH_WATER:
                    stream.high = True
        if end:
            stream.ending = True
        self.wake(stream)
        return queued

    def wake(self, stream: Stream) -> None:
        """Give the stream its turn again if it has something that it may send."""
        if not stream.turning and (stream.outbound_flow_control_window > 0 if stream.queued else stream.ending):
            stream.turning = True
            self._turns.append(stream)

    def forget(self, stream: Stream) -> None:
        """The stream is over: drop what it had queued."""
        stream.chunks = None
        self.queued -= stream.queued
        stream.queued = 0
        stream.ending = False
        if stream.turning:
            stream.turning = False
            self._turns.remove(stream)

    def clear(self) -> None:
        """Drop all that waits for its turn."""
        self._turns.clear()
        self.queued = 0

    @property
    def waiting(self) -> bool:
        """True while there is something to send, now or when a window opens."""
        return bool(self.control or self._turns)

    def take(self, limit: int) -> bytes:
        """All control frames, then about *limit* bytes of DATA in turns, within the windows."""
        turns = self._turns
        if not turns:
            if not self.control:
                return b""
            taken = bytes(self.control)
            self.control.clear()
            return taken
        out: list[bytes | memoryview] = []
        self._flush(out)
        blocked = 0  # turns in a row that could send nothing
        while turns and limit > 0 and blocked < len(turns):
            stream = turns.popleft()
            size = stream.queued
            if size:
                size = min(size, stream.outbound_flow_control_window, self.window, self.max_frame, FRAME_BYTES)
                if size <= 0:
                    if stream.outbound_flow_control_window > 0:  # the connection's window is shut: keep the turn
                        turns.append(stream)
                        blocked += 1
                    else:
                        stream.turning = False
                    continue
                self._frame(stream, size, out)
                limit -= size
            blocked = 0
            if stream.queued:
                if stream.outbound_flow_control_window > 0:
                    turns.append(stream)
                else:
                    stream.turning = False
                continue
            stream.turning = False
            if stream.ending:
                self._end(stream, out, framed=size > 0)
        return b"".join(out)

    def _frame(self, stream: Stream, size: int, out: list[bytes | memoryview]) -> None:
        """One DATA frame of *size* bytes from the stream's queue."""
        stream.queued -= size
        self.queued -= size
        stream.outbound_flow_control_window -= size
        self.window -= size
        self.data_frames += 1
        flags = END_STREAM if stream.ending and not stream.queued and stream.trailers is None else 0
        out.append(_HEAD.pack(size >> 16, size & 0xFFFF, DATA, flags, stream.identity))
        chunks = stream.chunks
        assert chunks is not None
        while size:
            chunk = chunks[0]
            rest = len(chunk) - stream.offset
            if rest <= size:
                out.append(memoryview(chunk)[stream.offset :] if stream.offset else chunk)
                chunks.popleft()
                stream.offset = 0
                size -= rest
            else:
                out.append(memoryview(chunk)[stream.offset : stream.offset + size])
                stream.offset += size
                size = 0
        if stream.high and stream.queued < LOW_WATER:
            stream.high = False
            if not stream.ending:
                self._events.append(Drained(stream.identity))

    def _end(self, stream: Stream, out: list[bytes | memoryview], *, framed: bool) -> None:
        """Say the end of a stream whose queue is empty; *framed*: its last DATA frame went out just now."""
        if stream.trailers is not None:
            self.header_block(stream.identity, stream.trailers, end=True)
        elif not framed:
            out.append(_HEAD.pack(0, 0, DATA, END_STREAM, stream.identity))
        self._ended(stream)
        self._flush(out)

    def _flush(self, out: list[bytes | memoryview]) -> None:
        if self.control:
            out.append(bytes(self.control))
            self.control.clear()
