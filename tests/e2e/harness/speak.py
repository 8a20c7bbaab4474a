"""One way to ask for all three versions of HTTP, with a hand on what each has: trailers, interim answers, cuts."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from harness import frames, raw3
from harness.authority import Authority
from harness.wire import Wire, wire

WINDOW = 1 << 30
"""Of HTTP/2, for bodies of any size that a test asks for."""

Pairs = Sequence[tuple[str, str]]


@dataclass
class Spoken:
    """What the client got."""

    status: int = 0
    headers: list[tuple[str, str]] = field(default_factory=list)
    body: bytes = b""
    trailers: list[tuple[str, str]] = field(default_factory=list)
    informational: list[int] = field(default_factory=list)
    cut: bool = False
    """The answer was not complete when the stream or the connection ended."""

    def get(self, name: str) -> str | None:
        found = self.all(name)
        assert len(found) <= 1, f"{name}: {found}"
        return found[0] if found else None

    def all(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key == name]


async def speak(
    authority: Authority,
    port: int,
    version: str,
    path: str,
    *,
    method: str = "GET",
    headers: Pairs = (),
    body: bytes | None = None,
    trailers: Pairs = (),
    finish: bool = True,
    host: str = "a.example.com",
    sni: str = "a.example.com",
) -> Spoken:
    """A request on a connection of its own. A body is sent without its length; ``finish=False`` leaves the request open."""
    fields = [(name.encode(), value.encode()) for name, value in headers]
    more = [(name.encode(), value.encode()) for name, value in trailers]
    first = [(b":method", method.encode()), (b":scheme", b"https"), (b":authority", host.encode()), (b":path", path.encode())]
    open_end = body is None and finish
    if version == "HTTP/1.1":
        with wire(authority, port, sni=sni) as connection:
            return _by_http1(connection, method, path, host, fields, body, more, finish=finish)
    if version == "HTTP/2":
        with frames.framed(authority, port, (4, WINDOW), sni=sni) as client:
            client.send(frames.frame(frames.WINDOW_UPDATE, 0, 0, WINDOW.to_bytes(4, "big")))
            client.request(1, [*first, *fields], end=open_end)
            if body:
                client.ping()  # from here on we know the windows
                client.send(*[frames.frame(frames.DATA, 0, 1, body[at : at + 16384]) for at in range(0, len(body), 16384)])
            if more:
                client.send(frames.frame(frames.HEADERS, frames.END_HEADERS | frames.END_STREAM, 1, frames.block(more)))
            elif not open_end and finish:
                client.send(frames.frame(frames.DATA, frames.END_STREAM, 1))
            found = client.answer(1)
            return Spoken(
                found.status,
                _text(found.headers),
                found.body,
                _text(found.trailers),
                list(found.informational),
                found.reset not in (None, frames.NO_ERROR),
            )
    async with raw3.raw3(authority, port, sni=sni) as client:
        stream = client.stream(raw3.head([*first, *fields]), end=open_end)
        if not open_end:
            data = raw3.frame(raw3.DATA, body) if body else b""
            client.send(stream, data + (raw3.head(more) if more else b""), end=finish)
        answer = await client.answer(stream)
        cut = answer.reset is not None
        return Spoken(answer.status, _text(answer.headers), answer.body, _text(answer.trailers), answer.informational, cut)


def _by_http1(  # noqa: PLR0917 - a request in its parts
    connection: Wire,
    method: str,
    path: str,
    host: str,
    fields: list[tuple[bytes, bytes]],
    body: bytes | None,
    trailers: list[tuple[bytes, bytes]],
    *,
    finish: bool,
) -> Spoken:
    chunked = body is not None or not finish
    framing = [(b"transfer-encoding", b"chunked")] if chunked and not any(name == b"content-length" for name, _ in fields) else []
    lines = b"".join(name + b": " + value + b"\r\n" for name, value in [(b"host", host.encode()), *fields, *framing])
    connection.send(f"{method} {path} HTTP/1.1\r\n".encode() + lines + b"\r\n")
    if body:
        connection.send(b"%x\r\n%b\r\n" % (len(body), body) if framing else body)
    if framing and finish:
        connection.send(b"0\r\n" + b"".join(name + b": " + value + b"\r\n" for name, value in trailers) + b"\r\n")
    spoken = Spoken()
    try:
        while True:
            answer = connection.reply(method)
            if answer.status >= 200:
                break
            spoken.informational.append(answer.status)
    except AssertionError:
        spoken.cut = True
        return spoken
    spoken.status, spoken.headers, spoken.body, spoken.trailers = answer.status, answer.headers, answer.body, answer.trailers
    return spoken


def _text(pairs: Sequence[tuple[bytes, bytes]]) -> list[tuple[str, str]]:
    return [(name.decode("latin-1"), value.decode("latin-1")) for name, value in pairs]
