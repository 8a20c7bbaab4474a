"""Hostile clients of HTTP/2, each from a number: frames that could be right, put together and then mutated by structure or by bytes."""

from random import Random
from struct import pack

from hpack import Encoder

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
STREAMS = (1, 1, 1, 3, 3, 5, 7, 9, 11, 13, 2, 0, 2**31 - 1)
METHODS = (b"GET", b"GET", b"POST", b"POST", b"HEAD", b"PUT", b"OPTIONS", b"CONNECT", b"", b"G T", b"PRI")
PATHS = (b"/", b"/x?y=z", b"*", b"", b"x", b"/a/../b", b"/%2e%2e/", b"/\xff", b"/a b", b"/" + b"p" * 5000)
AUTHORITIES = (b"a.example.com", b"a.example.com:443", b"", b"A.example.com", b"u@a", b"a..b", b"[::1]", b"a:99999", b"\xe9")
NAMES = (b"accept", b"cookie", b"x-a", b"te", b"priority", b"user-agent", b"expect", b"host", b"content-length", b"connection")
ODD_NAMES = (b"X-Upper", b"", b"x y", b"x\0", b":path", b":status", b":protocol", b"transfer-encoding", b"upgrade", b"x\n", b"\xff")
VALUES = (b"1", b"trailers", b"u=0, i", b"u=7", b"a=b", b"100-continue", b"a.example.com", b"3", b"0", b"5", b"", b"gzip")
ODD_VALUES = (b" padded ", b"a\0b", b"a\r\nb", b"+5", b"9" * 30, b"\x80\xff", b"v" * 9000, b"\t")
NUMBERS = (0, 1, 2, 100, 16383, 16384, 16385, 65535, 65536, 70000, 2**24, 2**31 - 1, 2**31, 2**32 - 1)


def frame(kind, flags, stream, payload, size=None):
    """One frame; *size* lies about its length."""
    size = len(payload) if size is None else size
    return pack(">BHBBL", size >> 16 & 0xFF, size & 0xFFFF, kind & 0xFF, flags & 0xFF, stream & 0xFFFFFFFF) + payload


class Client:
    """Writes one dialogue."""

    def __init__(self, seed):
        self.random = Random(seed)
        self.encoder = Encoder()
        self.next = 1

    def dialogue(self):
        """The frames of a connection, preface and all, as a list of bytes."""
        random = self.random
        frames = [PREFACE, self.settings()] if random.random() < 0.97 else [random.randbytes(random.randint(0, 60))]
        makers = random.choices(
            (
                self.request,
                self.body,
                self.window,
                self.reset,
                self.settings,
                self.ping,
                self.trailers,
                self.priority,
                self.odd,
                self.goaway,
            ),
            weights=(12, 10, 4, 3, 2, 2, 2, 2, 1, 0.5),
            k=random.choice((3, 8, 20, 60)),
        )
        for make in makers:
            made = make()
            frames.append(made)
            if random.random() < 0.02:
                frames += [made] * min(random.choice((2, 40, 300)), 1 + 200_000 // (1 + len(made)))
        return self.mutated(frames) if random.random() < 0.6 else frames

    def stream(self):
        random = self.random
        if self.next > 1 and random.random() < 0.85:
            return random.randrange(1, self.next + 2, 2)
        return random.choice(STREAMS)

    def fields(self):
        """A header section, mostly right."""
        random = self.random
        right = random.random() < 0.8
        fields = [
            (b":method", random.choice(METHODS[:6] if right else METHODS)),
            (b":scheme", random.choice((b"https", b"http")) if right else random.choice((b"https", b"ftp", b""))),
            (b":authority", AUTHORITIES[0] if right else random.choice(AUTHORITIES)),
            (b":path", random.choice(PATHS[:2] if right else PATHS)),
        ]
        for _ in range(random.choice((0, 1, 2, 5))):
            names = NAMES if right or random.random() < 0.7 else ODD_NAMES
            values = VALUES if right or random.random() < 0.7 else ODD_VALUES
            fields.append((random.choice(names), random.choice(values)))
        if random.random() < 0.03:
            fields += [(b"x-%d" % number, b"v" * random.choice((1, 400, 4000))) for number in range(random.choice((90, 120, 500)))]
        if not right and random.random() < 0.3:
            random.shuffle(fields)
        if not right and random.random() < 0.3:
            fields.pop(random.randrange(len(fields)))
        return fields

    def request(self):
        if self.random.random() < 0.93:
            stream, self.next = self.next, self.next + 2
        else:
            stream = self.stream()
        return self.headers(stream, self.fields(), end=self.random.random() < 0.5)

    def trailers(self):
        random = self.random
        return self.headers(self.stream(), [(random.choice(NAMES + ODD_NAMES), random.choice(VALUES))], end=random.random() < 0.9)

    def headers(self, stream, fields, *, end):
        random = self.random
        block = self.encoder.encode(fields, huffman=random.random() < 0.5)
        flags = int(end)
        if random.random() < 0.1:
            block = pack(">LB", random.choice((0, stream, 1, 2**31 | 3)), random.randrange(256)) + block
            flags |= 0x20
        if random.random() < 0.1:
            padding = random.randrange(256)
            block = bytes((padding,)) + block + b"\0" * (padding if random.random() < 0.9 else 0)
            flags |= 8
        cuts = sorted(random.randint(0, len(block)) for _ in range(random.choice((0, 0, 0, 0, 1, 3, 20))))
        cuts = sorted({*cuts, *range(16384, len(block), 16384)})
        pieces = [block[a:b] for a, b in zip([0, *cuts], [*cuts, len(block)], strict=True)]
        made = b""
        for number, piece in enumerate(pieces):
            last = 4 if number == len(pieces) - 1 and random.random() < 0.99 else 0
            made += frame(9 if number else 1, last | (0 if number else flags), stream, piece)
        return made

    def body(self):
        random = self.random
        size = random.choice((0, 0, 1, 3, 3, 5, 100, 5000, 16384))
        payload = bytes((random.randrange(256),)) * size
        flags = int(random.random() < 0.3)
        if random.random() < 0.1:
            padding = random.randrange(256)
            payload = (bytes((padding,)) + payload + b"\0" * (padding if random.random() < 0.9 else 0))[:16384]
            flags |= 8
        return frame(0, flags, self.stream(), payload)

    def window(self):
        return frame(8, 0, self.random.choice((0, self.stream())), pack(">L", self.random.choice(NUMBERS) & 0xFFFFFFFF))

    def reset(self):
        return frame(3, 0, self.stream(), pack(">L", self.random.randrange(16)))

    def settings(self):
        random = self.random
        if random.random() < 0.3:
            return frame(4, 1, 0, b"")
        entries = b""
        for _ in range(random.choice((0, 0, 1, 3))):
            number = random.choice((1, 2, 3, 4, 4, 5, 6, 8, 9, 77))
            value = random.choice((0, 1, 16384, 65535, 100_000)) if random.random() < 0.9 else random.choice(NUMBERS)
            entries += pack(">HL", number, value)
        return frame(4, 0, 0, entries)

    def ping(self):
        return frame(6, self.random.random() < 0.3, 0, self.random.choice((b"qp-drain", b"12345678", b"1234567")))

    def priority(self):
        random = self.random
        if random.random() < 0.5:
            return frame(2, 0, self.stream(), pack(">LB", random.choice((0, 1, 3, self.stream())), random.randrange(256)))
        value = random.choice((b"u=0", b"u=7, i", b"u=9", b"i", b"\xff", b"", b"u=1" * 9))
        return frame(16, 0, random.choice((0, 0, 0, 1)), pack(">L", self.stream() & 0xFFFFFFFF) + value)

    def goaway(self):
        return frame(7, 0, 0, pack(">LL", self.stream(), self.random.randrange(16)) + self.random.randbytes(self.random.choice((0, 9))))

    def odd(self):
        random = self.random
        payload = random.randbytes(random.choice((0, 1, 4, 5, 8, 9, 30, 300)))
        size = random.choice((None, None, None, 0, len(payload) + 1, 16385, 2**24 - 1))
        return frame(random.choice((*range(18), 255)), random.randrange(256), self.stream(), payload, size)

    def mutated(self, frames):
        random = self.random
        frames = list(frames)
        for _ in range(random.choice((1, 1, 2, 5))):
            at = random.randrange(1, len(frames)) if len(frames) > 1 else 0
            kind = random.randrange(8)
            if kind == 0:
                del frames[at]
            elif kind == 1:
                frames.insert(at, random.choice(frames))
            elif kind == 2:
                other = random.randrange(len(frames))
                frames[at], frames[other] = frames[other], frames[at]
            elif kind == 3:
                frames[at] = frames[at][: random.randint(0, len(frames[at]))]
            elif kind == 4:
                frames[at] += random.randbytes(random.randint(1, 12))
            else:
                changed = bytearray(frames[at])
                for _ in range(random.choice((1, 1, 2, 8))):
                    if changed:
                        where = random.randrange(min(len(changed), random.choice((9, 20, 100_000))))
                        changed[where] = random.choice((0, 1, 0xFF, 0x80, changed[where] ^ 1 << random.randrange(8), random.randrange(256)))
                frames[at] = bytes(changed)
            if not frames:
                frames = [PREFACE]
        return frames
