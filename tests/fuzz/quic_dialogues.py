"""Hostile clients of QUIC and HTTP/3, each from a number: payloads of packets that could be right, some of them bent."""

from itertools import pairwise
from random import Random

from hpack.hpack import encode_integer

from tests.sim.hostile import stream_frame, v
from tests.sim.wire import SECTIONS

NUMBERS = (0, 1, 2, 3, 63, 64, 100, 16383, 16384, 65535, 65536, 2**20, 2**30 - 1, 2**30, 2**60, 2**62 - 1)
METHODS = (b"GET", b"GET", b"POST", b"POST", b"HEAD", b"PUT", b"OPTIONS", b"CONNECT", b"", b"G T")
PATHS = (b"/", b"/x?y=z", b"*", b"", b"x", b"/a/../b", b"/%2e%2e/", b"/\xff", b"/a b", b"/" + b"p" * 5000)
NAMES = (b"accept", b"cookie", b"x-a", b"x-b", b"priority", b"user-agent")
ODD_NAMES = (
    b"te",
    b"expect",
    b"host",
    b"content-length",
    b"connection",
    b"X-Upper",
    b"",
    b"x y",
    b"x\0",
    b":path",
    b":status",
    b":protocol",
    b"transfer-encoding",
    b"upgrade",
    b"x\n",
    b"\xff",
)
VALUES = (b"1", b"trailers", b"u=0, i", b"u=7", b"a=b", b"100-continue", b"a.example", b"3", b"0", b"5", b"", b"gzip")
ODD_VALUES = (b" padded ", b"a\0b", b"a\r\nb", b"+5", b"9" * 30, b"\x80\xff", b"v" * 9000, b"\t")
FRAME_TYPES = (*range(0x20), 0x24, 0x30, 0x31, 0x40, 0xAF, 2**30)
HTTP_TYPES = (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 0x21, 0xF0700, 0xF0701)
UNI_TYPES = (0, 1, 2, 3, 4, 0x21, 0x41)


def literal(name: bytes, value: bytes) -> bytes:
    """A field line with a literal name (RFC 9204, section 4.5.6), such as the library's encoder has none for an empty name."""
    head = encode_integer(len(name), 3)
    head[0] |= 0x20
    return bytes(head) + name + bytes(encode_integer(len(value), 7)) + value


class Script:
    """Writes what one connection sends once its handshake is complete."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.hostile = self.random.choice((0.0, 0.01, 0.05, 0.3))
        """Share of the frames, and of the parts of HTTP/3, that need make no sense."""
        self.contradicts = False
        """The same bytes of a stream are given twice, and differ: an engine may take those or these."""

    def number(self) -> int:
        random = self.random
        return random.choice(NUMBERS) if random.random() < 0.5 else random.getrandbits(random.choice((3, 8, 14, 30, 62)))

    def payloads(self) -> list[bytes]:
        """What is in its packets, in order."""
        random = self.random
        frames = self.streams()
        for _ in range(random.choice((0, 2, 10))):
            frames.insert(random.randint(0, len(frames)), self.frame())
        if random.random() < 0.05:
            flood = self.frame()
            frames += [flood] * min(random.choice((100, 3000)), 200_000 // (1 + len(flood)))
        payloads, payload = [], b""
        for made in frames:
            if payload and (len(payload) + len(made) > 1150 or random.random() < 0.1):
                payloads.append(payload)
                payload = b""
            payload += made
        payloads.append(payload)
        if random.random() < self.hostile * 2:
            at = random.randrange(len(payloads))
            payloads[at] = self.bent(payloads[at])
        return [payload[:1200] or b"\0" for payload in payloads]

    # QUIC

    def frame(self) -> bytes:
        """A frame other than STREAM. What it says makes sense at times."""
        random, number = self.random, self.number
        if random.random() < self.hostile:
            return self.odd_frame()
        stream = random.choice((0, 0, 4, 8, 2, 6, 10))
        makers = (
            lambda: b"\1",
            lambda: bytes(random.choice((1, 100))),
            lambda: v(0x02, random.randrange(6), random.choice((0, 10, 2**20)), 0, 0),
            lambda: v(0x10, random.choice((2**20, 2**30))),
            lambda: v(0x11, random.choice((0, 4, 8)), random.choice((2**18, 2**25))),
            lambda: v(random.choice((0x12, 0x13)), random.choice((100, 1000))),
            lambda: v(0x14, number() & 0xFFFFF),
            lambda: v(0x15, stream, number() & 0xFFFFF),
            lambda: v(random.choice((0x16, 0x17)), random.choice((1, 100))),
            lambda: v(0x04, stream, 0x10C, random.choice((0, 10, 5000))),
            lambda: v(0x05, random.choice((0, 4, 8)), 0x10C),
            lambda: b"\x1a" + random.randbytes(8),
            lambda: b"\x1b" + random.randbytes(8),
            self.connection_id,
            lambda: v(0x19, random.randrange(4)),
        )
        return random.choice(makers)()

    def connection_id(self, *, odd: bool = False) -> bytes:
        random = self.random
        sequence = self.number() if odd else random.randrange(1, 10)
        retire = self.number() if odd else random.choice((0, 0, 0, sequence))
        size = random.choice((0, 21, 20, 255)) if odd else 8
        return v(0x18, sequence, retire) + bytes((size,)) + random.randbytes(min(size, 20)) + random.randbytes(16)

    def odd_frame(self) -> bytes:
        """Any frame with any numbers."""
        random, number = self.random, self.number
        kind = random.choice(FRAME_TYPES)
        if kind in {2, 3}:
            ranges = random.choice((0, 1, 5, 400))
            shown = ranges if random.random() < 0.8 else number()
            return v(kind, number(), number(), shown, number() & 63, *(random.randrange(64) for _ in range(2 * ranges)))
        if kind == 6:
            data = random.randbytes(random.choice((0, 1, 4, 200, 1000)))
            return v(kind, random.choice((0, 1, 300, number())), len(data)) + data
        if kind == 7:
            return v(kind, random.choice((0, 5))) + b"token"
        if kind == 0x18:
            return self.connection_id(odd=True)
        if 8 <= kind < 16:
            return v(kind, number(), number(), number()) + random.randbytes(random.choice((0, 5)))
        if kind in {0x1C, 0x1D}:
            return v(kind, number(), 0, 3) + b"bye"
        return v(kind, *(number() for _ in range(random.choice((0, 1, 2, 3))))) + random.randbytes(random.choice((0, 8)))

    def streams(self) -> list[bytes]:
        """The STREAM frames of a connection of HTTP/3, mostly in order."""
        random = self.random
        contents = {2: (b"\0" + self.control(), False), 6: (b"\2" + self.encoder(), False), 10: (b"\3" + self.decoder(), False)}
        for number in range(random.choice((1, 3, 10))):
            contents[4 * number] = self.exchange(), random.random() < 0.9
        if random.random() < 0.2:
            contents[14] = v(random.choice(UNI_TYPES)) + random.randbytes(random.choice((0, 10, 1000))), random.random() < 0.5
        if random.random() < self.hostile:
            stream = random.choice((1, 3, 400, 402, 4 * self.number() & (2**62 - 1)))
            contents[stream] = self.exchange(), True
        if random.random() < self.hostile:
            stream = random.choice(list(contents))
            contents[stream] = self.bent(contents[stream][0]), contents[stream][1]
        made = {stream: self.cut(stream, *content) for stream, content in contents.items()}
        frames = []
        while made:
            stream = random.choice(list(made))
            frames.append(made[stream].pop(0))
            if not made[stream]:
                del made[stream]
        for _ in range(random.choice((0, 0, 0, 3, 20))):
            one, other = random.randrange(len(frames)), random.randrange(len(frames))
            frames[one], frames[other] = frames[other], frames[one]
        for _ in range(random.choice((0, 0, 0, 1, 10))):
            frames.insert(random.randint(0, len(frames)), random.choice(frames))
        return frames

    def cut(self, stream: int, data: bytes, end: bool) -> list[bytes]:
        """Frames with these bytes, some of them more than once, none of them longer than a packet."""
        random = self.random
        inner = {random.randint(0, len(data)) for _ in range(random.choice((0, 0, 1, 5, 40)))} | set(range(1000, len(data), 1000))
        cuts = [0, *sorted(inner), len(data)]
        frames = []
        for start, stop in pairwise(cuts):
            overlap = random.randint(0, min(start, 1100 - (stop - start))) if random.random() < 0.1 else 0
            piece = data[start - overlap : stop]
            if overlap and random.random() < self.hostile:
                piece = random.randbytes(overlap) + piece[overlap:]
                self.contradicts = True
            frames.append(stream_frame(stream, start - overlap, piece, fin=end and stop == len(data)))
        return frames

    # HTTP/3

    def control(self) -> bytes:
        random = self.random
        settings = [(1, random.choice((0, 4096))), (6, random.choice((0, 65536))), (7, random.choice((0, 16))), (0x4D, 5)]
        if random.random() < self.hostile:
            settings += [(self.number(), self.number()), (random.choice((1, 2, 3, 4, 5, 0x33)), 1)]
        out = self.pack(4, b"".join(v(*pair) for pair in random.sample(settings, random.randrange(len(settings)))))
        last = 40
        for _ in range(random.choice((0, 0, 2, 30))):
            last -= random.choice((0, 0, 1))
            kind, payload = random.choice(
                (
                    (7, v(last)),
                    (13, v(100 - last)),
                    (0xF0700, v(4 * random.randrange(9)) + random.choice((b"u=0", b"u=7, i", b"u=9", b"\xff", b"u=1" * 99))),
                    (0x21, random.randbytes(random.choice((0, 5, 2000)))),
                )
            )
            if random.random() < self.hostile:
                kind, payload = random.choice(HTTP_TYPES), v(self.number()) + random.randbytes(random.choice((0, 5)))
            out += self.pack(kind, payload)
        return out

    def encoder(self) -> bytes:
        """QPACK's encoder stream (RFC 9204, section 4.3). We allow no dynamic table: a capacity of 0 is all that makes sense."""
        random = self.random
        if random.random() >= self.hostile:
            return b"\x20" * random.choice((0, 0, 1, 9))
        return random.choice(
            (b"\x3f" + b"\xff" * 12, b"\x44name\5value", b"\xc1\5value", b"\0", b"\x40" + b"\xff" * 9, random.randbytes(50))
        )

    def decoder(self) -> bytes:
        """QPACK's decoder stream: cancellations make sense, and nothing else."""
        random = self.random
        if random.random() >= self.hostile:
            return b"".join(bytes((0x40 | random.randrange(60),)) for _ in range(random.choice((0, 0, 3, 50))))
        return random.choice((b"\x80", b"\x01", b"\0", b"\xff" * 12, random.randbytes(50)))

    def exchange(self) -> bytes:
        """A request, or what may be taken for one."""
        random = self.random
        out = self.pack(1, self.section(self.request_fields()))
        for _ in range(random.choice((0, 0, 1, 3, 30))):
            size = random.choice((0, 1, 3, 5, 100, 5000))
            out += self.pack(0, bytes((random.randrange(256),)) * size)
            if random.random() < 0.1:
                out += self.pack(0x21, random.randbytes(random.choice((0, 3, 3000))))
        if random.random() < 0.2:
            out += self.pack(1, self.section([(random.choice(NAMES + ODD_NAMES * (random.random() < 0.2)), random.choice(VALUES))]))
        if random.random() < self.hostile:
            out += self.pack(random.choice(HTTP_TYPES), v(self.number()) + random.randbytes(random.choice((0, 9))))
        return out

    def request_fields(self) -> list[tuple[bytes, bytes]]:
        random = self.random
        right = random.random() >= self.hostile
        fields = [
            (b":method", random.choice(METHODS[:6] if right else METHODS)),
            (b":scheme", b"https" if right else random.choice((b"https", b"ftp", b""))),
            (b":authority", b"a.example" if right else random.choice((b"", b"A.example", b"u@a", b"a..b", b"\xe9"))),
            (b":path", random.choice(PATHS[:2] if right else PATHS)),
        ]
        for _ in range(random.choice((0, 1, 2, 5))):
            odd = not right and random.random() < 0.3
            fields.append((random.choice(ODD_NAMES if odd else NAMES), random.choice(ODD_VALUES if odd else VALUES)))
        if random.random() < 0.03:
            fields += [(b"x-%d" % number, b"v" * random.choice((1, 400, 4000))) for number in range(random.choice((90, 120, 300)))]
        if not right and random.random() < 0.3:
            random.shuffle(fields)
        if not right and random.random() < 0.3:
            fields.pop(random.randrange(len(fields)))
        return fields

    def section(self, fields: list[tuple[bytes, bytes]]) -> bytes:
        """A field section (RFC 9204, section 4.5)."""
        if all(name for name, _ in fields):
            framed = SECTIONS.encode(fields)
            block = framed[1 + (1, 2, 4, 8)[framed[1] >> 6] :]
        else:
            block = b"\0\0" + b"".join(literal(name, value) for name, value in fields)
        return self.bent(block) if self.random.random() < self.hostile else block

    def pack(self, kind: int, payload: bytes) -> bytes:
        size = len(payload)
        if self.random.random() < self.hostile / 4:
            size = self.number()
        return v(kind, size) + payload

    def bent(self, data: bytes) -> bytes:
        """With some of its bytes changed, cut off or added."""
        random = self.random
        changed = bytearray(data)
        for _ in range(random.choice((1, 1, 3, 10))):
            at = random.randint(0, len(changed))
            kind = random.randrange(4)
            if kind == 0:
                del changed[at : at + random.choice((1, 5, 1000))]
            elif kind == 1:
                changed[at:at] = random.randbytes(random.randint(1, 8))
            elif at < len(changed):
                changed[at] = random.choice((0, 0xFF, 0x3F, changed[at] ^ 1 << random.randrange(8), random.randrange(256)))
        return bytes(changed)
