"""HTTP/2 by hand: every frame as the test wants it, on a socket of its own."""

import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import hpack

from harness.authority import Authority
from harness.wire import Wire, wire

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, ACK, END_HEADERS, PADDED, PRIORITIZED = 0x1, 0x1, 0x4, 0x8, 0x20

NO_ERROR, PROTOCOL_ERROR, INTERNAL_ERROR, FLOW_CONTROL_ERROR, SETTINGS_TIMEOUT, STREAM_CLOSED, FRAME_SIZE_ERROR = range(7)
REFUSED_STREAM, CANCEL, COMPRESSION_ERROR, CONNECT_ERROR, ENHANCE_YOUR_CALM = range(7, 12)

Fields = Iterable[tuple[bytes, bytes]]


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"", *, length: int | None = None) -> bytes:
    """A frame; *length* for one that lies about it."""
    return (len(payload) if length is None else length).to_bytes(3, "big") + struct.pack("!BBI", kind, flags, stream) + payload


def settings(*pairs: tuple[int, int]) -> bytes:
    return frame(SETTINGS, payload=b"".join(struct.pack("!HI", *pair) for pair in pairs))


def literal(name: bytes, value: bytes) -> bytes:
    """A field without Huffman code and without indexing, whatever its bytes."""
    return b"\x00" + _string(name) + _string(value)


def block(fields: Fields) -> bytes:
    """A header block that leaves no state behind."""
    return b"".join(literal(name, value) for name, value in fields)


def _string(text: bytes) -> bytes:
    if len(text) < 127:
        return bytes((len(text),)) + text
    size, octets = len(text) - 127, b"\x7f"
    while size >= 128:
        octets += bytes((size & 0x7F | 0x80,))
        size >>= 7
    return octets + bytes((size,)) + text


@dataclass
class Frame:
    kind: int
    flags: int
    stream: int
    payload: bytes


@dataclass
class Answered:
    """What came on one stream: an answer, or the code of a reset, or both."""

    status: int = 0
    headers: tuple[tuple[bytes, bytes], ...] = ()
    body: bytes = b""
    trailers: tuple[tuple[bytes, bytes], ...] = ()
    informational: tuple[int, ...] = ()
    reset: int | None = None
    ended: bool = False


class Framed:
    """One HTTP/2 connection."""

    def __init__(self, connection: Wire) -> None:
        self.wire = connection
        self.decoder = hpack.Decoder()
        self.answers: dict[int, Answered] = {}
        self.goaway: int | None = None
        """The code of the last GOAWAY."""
        self.pongs: list[bytes] = []
        self.settled = False
        """Our SETTINGS were acknowledged."""
        self.opened: dict[int, int] = {}
        """Sums of WINDOW_UPDATE by stream."""

    def send(self, *frames: bytes) -> None:
        self.wire.send(b"".join(frames))

    def open(self, *pairs: tuple[int, int]) -> None:
        self.send(PREFACE, settings(*pairs))

    def read(self) -> Frame | None:
        """The next frame; None at the end of the connection."""
        while len(self.wire.data) < 9 or len(self.wire.data) < 9 + int.from_bytes(self.wire.data[:3], "big"):
            if not self.wire._more():
                return None
        length = int.from_bytes(self.wire.data[:3], "big")
        kind, flags, stream = struct.unpack("!BBI", self.wire.take(9)[3:])
        found = Frame(kind, flags, stream, self.wire.take(length))
        self._note(found)
        return found

    def _note(self, found: Frame) -> None:
        answer = self.answers.setdefault(found.stream, Answered())
        if found.kind == GOAWAY:
            self.goaway = int.from_bytes(found.payload[4:8], "big")
        elif found.kind == SETTINGS:
            if found.flags & ACK:
                self.settled = True
            else:
                self.send(frame(SETTINGS, ACK))
        elif found.kind == PING and found.flags & ACK:
            self.pongs.append(found.payload)
        elif found.kind == WINDOW_UPDATE:
            self.opened[found.stream] = self.opened.get(found.stream, 0) + int.from_bytes(found.payload, "big")
        elif found.kind == RST_STREAM:
            answer.reset = int.from_bytes(found.payload, "big")
            answer.ended = True
        elif found.kind == HEADERS:
            assert found.flags & END_HEADERS
            fields = tuple(self.decoder.decode(found.payload, raw=True))
            status = int(dict(fields).get(b":status", 0))
            if 100 <= status < 200:
                answer.informational += (status,)
            elif status:
                answer.status, answer.headers = status, fields[1:]
            else:
                answer.trailers = fields
        elif found.kind == DATA:
            answer.body += found.payload
        if found.kind in (HEADERS, DATA) and found.flags & END_STREAM:
            answer.ended = True

    def request(self, stream: int, fields: Fields, *, end: bool = True) -> None:
        self.send(frame(HEADERS, END_HEADERS | (END_STREAM if end else 0), stream, block(fields)))

    def answer(self, stream: int) -> Answered:
        """What comes on *stream* until it ends."""
        while not self.answers.setdefault(stream, Answered()).ended:
            assert self.read() is not None, f"the connection ended (GOAWAY {self.goaway}) before stream {stream} did"
        return self.answers[stream]

    def ask(self, stream: int, fields: Fields) -> Answered:
        self.request(stream, fields)
        return self.answer(stream)

    def ping(self, payload: bytes = b"are you?") -> None:
        """Wait until everything that was sent before has been read."""
        self.send(frame(PING, payload=payload))
        while payload not in self.pongs:
            assert self.read() is not None, f"the connection ended (GOAWAY {self.goaway})"

    def end(self) -> int | None:
        """Read until the connection ends; the code of the last GOAWAY."""
        while self.read() is not None:
            pass
        return self.goaway


def request(path: bytes = b"/hello", *more: tuple[bytes, bytes], method: bytes = b"GET", authority: bytes = b"a.example.com") -> Fields:
    """The fields of a request."""
    return [(b":method", method), (b":scheme", b"https"), (b":authority", authority), (b":path", path), *more]


@contextmanager
def framed(authority: Authority, port: int, *pairs: tuple[int, int], open_it: bool = True, sni: str = "a.example.com") -> Iterator[Framed]:
    """An HTTP/2 connection whose preface (with the SETTINGS in *pairs*) has been sent unless *open_it* is false."""
    with wire(authority, port, sni=sni, alpn="h2") as connection:
        client = Framed(connection)
        if open_it:
            client.open(*pairs)
        yield client
