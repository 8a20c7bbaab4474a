"""A transport that only records, for HTTP/3 without QUIC."""

from aioquic.quic import events as quic

from proxy.engine.h3 import H3Connection
from proxy.engine.h3_frames import FieldSections, pack_frame, unpack_int
from proxy.engine.seam import EngineLimits

SECTIONS = FieldSections()
GET = [(b":method", b"GET"), (b":scheme", b"https"), (b":authority", b"a.example"), (b":path", b"/")]
POST = [(b":method", b"POST"), *GET[1:]]


class Wire:
    """Implements ``h3.Transport``."""

    def __init__(self, *, budget: int = 1000) -> None:
        self.sent: dict[int, bytearray] = {}
        self.ended: list[int] = []
        self.cuts: list[tuple[int, int]] = []
        self.abandoned: list[tuple[int, int | None]] = []
        self.credits: dict[int, int] = {}
        self.closed: tuple[int, str] | None = None
        self.budget = budget
        self.resets = 0
        self.stuck: dict[int, int] = {}
        self.window = 0

    def send(self, stream_id, data, *, end=False):
        assert stream_id not in self.ended
        self.sent.setdefault(stream_id, bytearray()).extend(data)
        self.stuck[stream_id] = self.stuck.get(stream_id, 0) + len(data)
        if end:
            self.ended.append(stream_id)
        return True

    def open_stream(self, data):
        self.sent[3] = bytearray(data)
        return 3

    def unsent(self, stream_id):
        return self.stuck.get(stream_id, 0)

    @property
    def unsent_bytes(self):
        return sum(self.stuck.values())

    def room(self):
        return self.window

    def cut(self, stream_id, code):
        self.cuts.append((stream_id, code))

    def abandon(self, stream_id, code=None):
        self.abandoned.append((stream_id, code))

    def credit(self, stream_id, count):
        self.credits[stream_id] = self.credits.get(stream_id, 0) + count

    def spend_control(self):
        self.budget -= 1
        if self.budget < 0 and self.closed is None:
            self.closed = (0x107, "budget")
        return self.budget >= 0

    def spend_reset(self):
        self.resets += 1
        return True

    def close(self, error_code, frame_type=None, reason_phrase=""):
        self.closed = self.closed or (error_code, reason_phrase)


class Dialogue:
    """Bytes in, events out."""

    def __init__(self, limits: EngineLimits | None = None, **options) -> None:
        self.wire = Wire(**options)
        self.h3 = H3Connection(self.wire, limits or EngineLimits(), SECTIONS)

    def data(self, stream: int, data: bytes, *, end: bool = False) -> list:
        if any(stream == abandoned for abandoned, _ in self.wire.abandoned):
            return []  # the transport drops it
        return self.event(quic.StreamDataReceived(data=data, end_stream=end, stream_id=stream))

    def event(self, event) -> list:
        if self.wire.closed is None:
            self.h3.handle(event)
        told = list(self.h3.events)
        self.h3.events.clear()
        return told

    def reset(self, stream: int, code: int = 0x10C) -> list:
        return self.event(quic.StreamReset(error_code=code, stream_id=stream))

    def stop(self, stream: int, code: int = 0x10C) -> list:
        return self.event(quic.StopSendingReceived(error_code=code, stream_id=stream))

    def frames(self, stream: int) -> list[tuple[int, object]]:
        """What was sent on a stream: HEADERS as fields, others as bytes."""
        return parse(bytes(self.wire.sent.get(stream, b"")))


def parse(data: bytes) -> list[tuple[int, object]]:
    out, at = [], 0
    while at < len(data):
        kind, at = unpack_int(data, at, len(data))
        length, at = unpack_int(data, at, len(data))
        payload = data[at : at + length]
        assert len(payload) == length
        at += length
        out.append((kind, SECTIONS.decode(payload, 1000) if kind == 1 else payload))
    return out


def head(fields=GET) -> bytes:
    return SECTIONS.encode(list(fields))


def data(payload: bytes) -> bytes:
    return pack_frame(0, payload)
