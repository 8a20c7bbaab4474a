"""The client's unidirectional HTTP/3 streams: control, QPACK, and those that we don't know (RFC 9114, section 6.2).

Knows frames and the transport's few verbs. Knows no requests. Everything that has no end is counted against the control budget, and
nothing is buffered but an incomplete frame of the control stream.
"""

from typing import Protocol

from proxy.engine import h3_frames as f

MAX_CONTROL_FRAME = 4096
"""Payload of SETTINGS, GOAWAY, MAX_PUSH_ID or CANCEL_PUSH: the last three are 8 bytes, and SETTINGS a few dozen."""


class Transport(Protocol):
    """What is needed of a QUIC connection: ``quic/connection.py`` has it."""

    unsent_bytes: int
    """Of all streams, as ``unsent``."""

    def send(self, stream_id: int, data: bytes | memoryview, *, end: bool = False) -> bool:
        """Queue bytes; False where the stream takes none any more."""

    def open_stream(self, data: bytes) -> int:
        """Open a unidirectional stream."""

    def unsent(self, stream_id: int) -> int:
        """Bytes of a stream that were queued and not sent once."""

    def room(self) -> int:
        """Bytes that congestion control would let go now."""

    def cut(self, stream_id: int, code: int) -> None:
        """RESET_STREAM."""

    def abandon(self, stream_id: int, code: int | None = None) -> None:
        """Drop what comes on a stream; with *code*, STOP_SENDING."""

    def credit(self, stream_id: int, count: int) -> None:
        """Bytes of a stream were consumed."""

    def spend_control(self) -> bool:
        """One from the budget of control frames; closes the connection when there is none left."""

    def spend_reset(self) -> bool:
        """One from the budget of resets; likewise."""

    def close(self, error_code: int, frame_type: int | None = None, reason_phrase: str = "") -> None:
        """Close the connection."""


class _Incoming:
    """One of the client's unidirectional streams."""

    __slots__ = ("buffer", "kind", "left", "settled")

    def __init__(self) -> None:
        self.buffer = b""
        self.kind: int | None = None
        self.left = 0
        self.settled = False  # SETTINGS were received


class PeerStreams:
    """The state of those streams of one connection."""

    __slots__ = ("_critical", "_goaway_seen", "_max_push_id", "_streams", "_transport")

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._streams: dict[int, _Incoming] = {}
        self._critical: dict[int, int] = {}  # kind to stream number
        self._max_push_id = -1
        self._goaway_seen: int | None = None

    def reset(self, stream_id: int) -> None:
        """The client reset one of them. Raises Fault for a critical one."""
        if stream_id in self._critical.values():
            raise f.Fault(f.CLOSED_CRITICAL_STREAM, "a critical stream was reset")
        self._streams.pop(stream_id, None)

    def receive(self, stream_id: int, data: bytes, end: bool) -> None:
        """Take bytes of one of them. Raises Fault."""
        stream = self._streams.get(stream_id)
        if stream is None:
            stream = self._streams[stream_id] = _Incoming()
        self._transport.credit(stream_id, len(data))
        data = stream.buffer + data
        at = 0
        if stream.kind is None:
            kind, at = f.unpack_int(data, 0, len(data))
            if kind >= 0:
                self._on_kind(stream_id, stream, kind)
        if stream.kind == f.CONTROL_STREAM:
            at = self._on_control(stream, data, at)
        elif stream.kind == f.ENCODER_STREAM:
            if data[at:].strip(b"\x20"):  # all that a table of size 0 allows is to set its size to 0 (RFC 9204, section 4.3.1)
                raise f.Fault(f.QPACK_ENCODER_STREAM_ERROR, "an instruction for a table of size 0")
            if len(data) > at:
                self._transport.spend_control()
            at = len(data)
        elif stream.kind == f.DECODER_STREAM:
            at = self._on_decoder(data, at)
        elif stream.kind is not None:
            at = len(data)
        stream.buffer = data[at:]
        if end:
            if stream.kind in self._critical:
                raise f.Fault(f.CLOSED_CRITICAL_STREAM, "a critical stream was closed")
            del self._streams[stream_id]

    def _on_kind(self, stream_id: int, stream: _Incoming, kind: int) -> None:
        stream.kind = kind
        if kind == f.PUSH_STREAM:
            raise f.Fault(f.STREAM_CREATION_ERROR, "clients don't push")
        if kind <= f.DECODER_STREAM:
            if kind in self._critical:
                raise f.Fault(f.STREAM_CREATION_ERROR, f"a second stream of type {kind}")
            self._critical[kind] = stream_id
        elif self._transport.spend_control():  # unknown: not read, and not an error (section 6.2)
            self._transport.abandon(stream_id, f.STREAM_CREATION_ERROR)

    def _on_control(self, stream: _Incoming, data: bytes, at: int) -> int:
        size = len(data)
        while at < size:
            if stream.left:
                take = min(stream.left, size - at)
                stream.left -= take
                at += take
                continue
            kind, after = f.unpack_int(data, at, size)
            length, after = f.unpack_int(data, after, size)
            if kind < 0 or length < 0:
                break
            if not stream.settled and kind != f.SETTINGS:
                raise f.Fault(f.MISSING_SETTINGS, f"frame {kind:#x} before SETTINGS")
            if kind in f.HTTP2_FRAMES or kind in (f.DATA, f.HEADERS, f.PUSH_PROMISE):
                raise f.Fault(f.FRAME_UNEXPECTED, f"frame {kind:#x} on the control stream")
            if kind not in f.CONTROL_ONLY:
                if not self._transport.spend_control():
                    return size
                stream.left = length
                at = after
                continue
            if length > MAX_CONTROL_FRAME:
                raise f.Fault(f.EXCESSIVE_LOAD, f"frame {kind:#x} of {length} bytes")
            if size - after < length:
                break
            at = after + length
            self._on_control_frame(stream, kind, data[after:at])
        return at

    def _on_control_frame(self, stream: _Incoming, kind: int, payload: bytes) -> None:
        if kind == f.SETTINGS:
            if stream.settled:
                raise f.Fault(f.FRAME_UNEXPECTED, "SETTINGS twice")
            f.check_settings(payload)
            stream.settled = True
            return
        self._transport.spend_control()
        number, end = f.unpack_int(payload, 0, len(payload))
        if number < 0 or end != len(payload):
            raise f.Fault(f.FRAME_ERROR, f"malformed frame {kind:#x}")
        if kind == f.CANCEL_PUSH:
            raise f.Fault(f.ID_ERROR, "a push was cancelled that was never promised")
        if kind == f.MAX_PUSH_ID:
            if number < self._max_push_id:
                raise f.Fault(f.ID_ERROR, "MAX_PUSH_ID went down")
            self._max_push_id = number
        else:
            if self._goaway_seen is not None and number > self._goaway_seen:
                raise f.Fault(f.ID_ERROR, "GOAWAY went up")
            self._goaway_seen = number

    def _on_decoder(self, data: bytes, at: int) -> int:
        """Only Stream Cancellation makes sense to an encoder without a table (RFC 9204, section 4.4)."""
        size = len(data)
        while at < size:
            if data[at] & 0xC0 != 0x40:
                raise f.Fault(f.QPACK_DECODER_STREAM_ERROR, "an acknowledgement of nothing")
            end = at + 1
            if data[at] & 0x3F == 0x3F:
                while end < size and data[end] & 0x80:
                    end += 1
                if end >= size:
                    if size - at > 10:
                        raise f.Fault(f.QPACK_DECODER_STREAM_ERROR, "an integer that is too long")
                    break
                end += 1
            at = end
            if not self._transport.spend_control():
                return size
        return at
