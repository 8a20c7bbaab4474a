"""Receive windows: a client may have sent what was consumed, plus a window, and no more (RFC 9000, section 4).

aioquic doubles its limits on the highest offset *seen*: 288 bytes with far offsets make it allocate 128 MiB. Here credit comes only
from ``Transport.credit``. Knows aioquic's streams; knows no packets.
"""

from aioquic.quic.packet import QuicStreamFrame
from aioquic.quic.stream import QuicStream, QuicStreamReceiver

CREDIT_SHARE = 4
"""A new limit is announced once it is a window / 4 above the old one: few frames, and a sender that never waits."""


def number(stream: QuicStream) -> int:
    """The number of a stream that has one (the library's CRYPTO streams have none)."""
    stream_id = stream.stream_id
    assert stream_id is not None
    return stream_id


class DiscardingReceiver(QuicStreamReceiver):
    """The receiving part of a stream that nobody reads: keeps the final size honest (section 4.5) and no bytes at all.

    Put in place of the stream's own receiver. It is finished once the final size is known, by FIN or RESET_STREAM: then the client's
    use of the connection's window is fully accounted for.
    """

    def handle_frame(self, frame: QuicStreamFrame) -> None:
        """Account for a frame and drop it."""
        self.is_finished = True  # so that the base class checks the final size and buffers nothing
        try:
            super().handle_frame(frame)
        finally:
            self.is_finished = self._final_size is not None

    @staticmethod
    def take_over(stream: QuicStream) -> None:
        """Drop what *stream* has buffered, and all that still comes."""
        receiver = stream.receiver
        if receiver.is_finished:
            return
        receiver._buffer.clear()  # noqa: SLF001  # the one place that empties a receiver
        while len(receiver._ranges):  # noqa: SLF001
            receiver._ranges.shift()  # noqa: SLF001
        receiver.__class__ = DiscardingReceiver
        receiver.is_finished = receiver._final_size is not None  # noqa: SLF001


class Window:
    """One receive window. It grows where the client uses it up in no time: then it, and not the path, is what the client waits for.

    As quiche has it: two announcements within ``CREDIT_SHARE`` of a window's worth of a round trip double it.
    """

    __slots__ = ("_most", "_told_at", "size")

    def __init__(self, size: int, most: int) -> None:
        self.size = size
        self._most = most
        self._told_at: float | None = None

    def announce(self, now: float, round_trip: float) -> int:
        """The size that counts from now on, as a new limit is announced. Times in seconds."""
        if self.size < self._most and self._told_at is not None and now - self._told_at < round_trip:
            self.size = min(2 * self.size, self._most)
        self._told_at = now
        return self.size


class ReceiveWindows:
    """What was credited, per stream and for the connection."""

    __slots__ = ("_by_stream", "_connection_window", "_most", "_stream_window", "_stream_windows", "connection")

    def __init__(self, stream_window: int, connection_window: int) -> None:
        self._stream_window = stream_window
        self._connection_window = Window(connection_window, connection_window)
        self._most = stream_window
        self.connection = 0
        """Bytes credited to the connection so far."""
        self._by_stream: dict[int, int] = {}
        self._stream_windows: dict[int, Window] = {}

    def let_grow(self, stream: int, connection: int) -> None:
        """To so many bytes, where it is more than they have."""
        self._most = stream
        self._connection_window = Window(self._connection_window.size, connection)

    def credit(self, stream: QuicStream, count: int) -> bool:
        """Credit *count* bytes that were received on *stream*, never more than were; True if its limit is worth announcing anew."""
        receiver = stream.receiver
        stream_id = number(stream)
        before = self._by_stream.get(stream_id, 0)
        after = min(before + count, receiver.highest_offset)
        if after <= before:
            return False
        self._by_stream[stream_id] = after
        self.connection += after - before
        if receiver._final_size is not None:  # noqa: SLF001  # no more can come
            return False
        window = self._stream_windows.get(stream_id)
        size = self._stream_window if window is None else window.size
        return after + size - stream.max_stream_data_local >= size // CREDIT_SHARE

    def stream_limit(self, stream: QuicStream, now: float, round_trip: float) -> int:
        """The limit to announce for a stream. Times in seconds."""
        stream_id = number(stream)
        credited = self._by_stream.get(stream_id, 0)
        if self._most <= self._stream_window:
            return credited + self._stream_window
        window = self._stream_windows.get(stream_id)
        if window is None:
            window = self._stream_windows[stream_id] = Window(self._stream_window, self._most)
        return credited + window.announce(now, round_trip)

    def connection_limit(self, present: int, now: float, round_trip: float) -> int:
        """The limit to announce for the connection: *present* itself while a new one is not worth a frame. Times in seconds."""
        window = self._connection_window
        if self.connection + window.size - present < window.size // CREDIT_SHARE:
            return present
        return self.connection + window.announce(now, round_trip)

    def forget(self, stream: QuicStream) -> None:
        """The stream is finished: whatever of it was not credited yet is."""
        self.connection += stream.receiver.highest_offset - self._by_stream.pop(number(stream), 0)
        self._stream_windows.pop(number(stream), None)

    @property
    def tracked(self) -> int:
        """Streams with credit on record."""
        return len(self._by_stream)
