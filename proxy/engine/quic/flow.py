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


class ReceiveWindows:
    """What was credited, per stream and for the connection."""

    __slots__ = ("_by_stream", "connection", "connection_window", "stream_window")

    def __init__(self, stream_window: int, connection_window: int) -> None:
        self.stream_window = stream_window
        self.connection_window = connection_window
        self.connection = 0
        """Bytes credited to the connection so far."""
        self._by_stream: dict[int, int] = {}

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
        return after + self.stream_window - stream.max_stream_data_local >= self.stream_window // CREDIT_SHARE

    def stream_limit(self, stream: QuicStream) -> int:
        """The limit to announce for a stream."""
        return self._by_stream.get(number(stream), 0) + self.stream_window

    def connection_limit(self, present: int) -> int:
        """The limit to announce for the connection: *present* itself while a new one is not worth a frame."""
        wanted = self.connection + self.connection_window
        return wanted if wanted - present >= self.connection_window // CREDIT_SHARE else present

    def forget(self, stream: QuicStream) -> None:
        """The stream is finished: whatever of it was not credited yet is."""
        self.connection += stream.receiver.highest_offset - self._by_stream.pop(number(stream), 0)

    @property
    def tracked(self) -> int:
        """Streams with credit on record."""
        return len(self._by_stream)
