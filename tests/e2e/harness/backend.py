"""A backend process for tests: HTTP/1.1 on loopback, with an endpoint for each way to behave and to misbehave.

``python -m harness.backend NAME PORT [HOST]`` prints the port that it got. Endpoints:

/hello                what the demo backend says          /headers        the request as JSON (head, trailers), once it is complete
/health               OK, or what /control set            /control?health=STATUS   sets the status of /health
/bytes/N              N known bytes (?seed= ?chunked=1)   /upload         {"sha256", "size"} of the request body, as JSON
/status/N             that status, a short body           /slow?seconds=  answers after a while
/early-hints          103, then 200                       /trailers       a chunked body with trailers
/close /reset /half   ends the connection: without an answer, by RST, in the middle of the body
/garbage              an answer that is no HTTP           /count          requests so far by path, as JSON
/stream/NAME          a body whose pieces are what POST /push/NAME brings (?head=late: the head waits for the first one, ?end=1 ends it)
/gone/NAME            answers when the client of /stream/NAME, of /hold/NAME or of any request with ?name=NAME has gone away
/too-early            425 to a request with Early-Data, else 200
/hold/NAME            does not read its request body before POST /push/NAME; then as /upload
"""

import asyncio
import hashlib
import json
import signal
import socket
import struct
import sys
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable
from http import HTTPStatus
from urllib.parse import parse_qsl, urlsplit

import httptools
import uvloop

from harness.content import content, digest
from proxy.demo.backend import answer

HIGH = 1024 * 1024  # bytes of request body that wait for their handler, before reading pauses
LIMIT = 60.0  # seconds that anything waits for a command
HELD = 256 * 1024  # bytes that the kernel keeps for a connection that does not read: left alone, new ones take up to 32 MiB


class Request:
    def __init__(self, method: str, target: str, version: str, headers: list[tuple[bytes, bytes]]) -> None:
        url = urlsplit(target)
        self.method, self.target, self.version, self.headers = method, target, version, headers
        self.path = url.path
        self.query = dict(parse_qsl(url.query, keep_blank_values=True))
        self.trailers: list[tuple[bytes, bytes]] = []
        self.complete = False


class Channel:
    """What /push/NAME says to whoever waits under NAME."""

    def __init__(self) -> None:
        self.pieces: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.gone = asyncio.Event()


class World:
    def __init__(self, name: str) -> None:
        self.name = name
        self.health = 200
        self.counts: Counter[str] = Counter()
        self.channels: dict[str, Channel] = {}

    def channel(self, name: str) -> Channel:
        return self.channels.setdefault(name, Channel())


class Connection(asyncio.Protocol):
    def __init__(self, world: World) -> None:
        self.world = world
        self.parser = httptools.HttpRequestParser(self)
        self.task: asyncio.Task[None] | None = None
        self.writable = asyncio.Event()
        self.writable.set()
        self.arrived = asyncio.Event()
        self.lost = asyncio.Event()
        self.pieces: deque[bytes] = deque()
        self.waiting = 0
        self.held = False

    def connection_made(self, transport: asyncio.Transport) -> None:
        self.transport = transport
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def connection_lost(self, error: Exception | None) -> None:
        self.lost.set()
        self.writable.set()
        self.arrived.set()

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    def data_received(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self.transport.write(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
            self.transport.close()

    def on_message_begin(self) -> None:
        self.fields: list[tuple[bytes, bytes]] = []
        self.target = b""
        self.request: Request | None = None

    def on_url(self, url: bytes) -> None:
        self.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        (self.fields if self.request is None else self.request.trailers).append((name.lower(), value))

    def on_headers_complete(self) -> None:
        parser = self.parser
        self.request = Request(parser.get_method().decode(), self.target.decode(), parser.get_http_version(), self.fields)
        self.keep = parser.should_keep_alive()
        self.task = asyncio.ensure_future(self.handle(self.request, self.task))

    def on_body(self, body: bytes) -> None:
        self.pieces.append(body)
        self.waiting += len(body)
        self.arrived.set()
        if self.waiting > HIGH and not self.held:
            self.transport.pause_reading()
            self.held = True

    def on_message_complete(self) -> None:
        assert self.request is not None
        self.request.complete = True
        self.arrived.set()

    async def body(self, request: Request) -> AsyncIterator[bytes]:
        while True:
            while self.pieces:
                piece = self.pieces.popleft()
                self.waiting -= len(piece)
                if self.held and self.waiting <= HIGH // 2:
                    self.held = False
                    self.transport.resume_reading()
                yield piece
            if request.complete:
                return
            if self.lost.is_set():
                raise ConnectionResetError
            self.arrived.clear()
            await self.arrived.wait()

    async def write(self, data: bytes) -> None:
        if not self.writable.is_set():
            await self.writable.wait()
        if self.lost.is_set() or self.transport.is_closing():  # it fills no more then, so that a long body would be written at one go
            raise ConnectionResetError
        self.transport.write(data)

    async def head(self, status: int, *headers: tuple[str, str], interim: bool = False, body: bytes = b"") -> None:
        try:
            phrase = HTTPStatus(status).phrase
        except ValueError:
            phrase = "Unknown"
        more = "" if interim else f"x-backend: {self.world.name}\r\n"
        fields = "".join(f"{name}: {value}\r\n" for name, value in headers)
        await self.write(f"HTTP/1.1 {status} {phrase}\r\n{more}{fields}\r\n".encode("latin-1") + body)

    async def reply(self, request: Request, status: int, body: bytes, *headers: tuple[str, str]) -> None:
        async for _ in self.body(request):  # an unread body would be taken for the next request
            pass
        if status in (204, 304):
            await self.head(status, *headers)
            return
        length = ("content-length", str(len(body)))
        # in one piece, as real servers do: a kill leaves no half of it
        await self.head(status, *headers, length, body=body if request.method != "HEAD" else b"")

    async def handle(self, request: Request, before: "asyncio.Task[None] | None") -> None:
        if before is not None:
            await before
        self.world.counts[request.path] += 1
        handler, _, argument = request.path[1:].partition("/")
        try:
            await HANDLERS.get(handler, missing)(self, request, argument)
        except ConnectionResetError:
            if "name" in request.query:
                self.world.channel(request.query["name"]).gone.set()
            return
        if not self.keep:
            self.transport.close()


async def missing(connection: Connection, request: Request, argument: str) -> None:
    await connection.reply(request, 404, b"no such endpoint\n")


async def hello(connection: Connection, request: Request, argument: str) -> None:
    fields = {name: value.decode("latin-1") for name, value in request.headers}
    headers, body = answer(connection.world.name, request.version, b"/hello", fields)
    await connection.reply(request, 200, body, *(field for field in headers if field[0] != "x-backend"))


async def health(connection: Connection, request: Request, argument: str) -> None:
    await connection.reply(request, connection.world.health, b"OK" if connection.world.health == 200 else b"not well")


async def control(connection: Connection, request: Request, argument: str) -> None:
    connection.world.health = int(request.query["health"])
    await connection.reply(request, 200, b"")


async def headers(connection: Connection, request: Request, argument: str) -> None:
    size = 0
    async for piece in connection.body(request):
        size += len(piece)
    seen = {
        "backend": connection.world.name,
        "method": request.method,
        "target": request.target,
        "version": request.version,
        "headers": [[name.decode("latin-1"), value.decode("latin-1")] for name, value in request.headers],
        "trailers": [[name.decode("latin-1"), value.decode("latin-1")] for name, value in request.trailers],
        "body": size,
    }
    await connection.reply(request, 200, json.dumps(seen).encode(), ("content-type", "application/json"))


async def known_bytes(connection: Connection, request: Request, argument: str) -> None:
    size, seed, chunked = int(argument), int(request.query.get("seed", 0)), "chunked" in request.query
    framing = ("transfer-encoding", "chunked") if chunked else ("content-length", str(size))
    hashed = [("x-sha256", digest(size, seed))] if size <= 16 * 1024 * 1024 else []
    await connection.head(200, framing, *hashed)
    if request.method == "HEAD":
        return
    for piece in content(size, seed):
        await connection.write(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
    if chunked:
        await connection.write(b"0\r\n\r\n")


async def upload(connection: Connection, request: Request, argument: str) -> None:
    found, size = hashlib.sha256(), 0
    if any(name == b"expect" for name, _ in request.headers):
        await connection.head(100, interim=True)
    async for piece in connection.body(request):
        found.update(piece)
        size += len(piece)
    told = json.dumps({"sha256": found.hexdigest(), "size": size}).encode()
    await connection.reply(request, 200, told, ("content-type", "application/json"))


async def status(connection: Connection, request: Request, argument: str) -> None:
    await connection.reply(request, int(argument), f"status {argument}\n".encode())


async def slow(connection: Connection, request: Request, argument: str) -> None:
    await asyncio.sleep(float(request.query["seconds"]))
    await connection.reply(request, 200, b"at last\n")


async def early_hints(connection: Connection, request: Request, argument: str) -> None:
    await connection.head(103, ("link", "</style.css>; rel=preload"), interim=True)
    await connection.reply(request, 200, b"after the hints\n")


async def trailers(connection: Connection, request: Request, argument: str) -> None:
    async for _ in connection.body(request):
        pass
    await connection.head(200, ("transfer-encoding", "chunked"), ("trailer", "x-checksum"))
    await connection.write(b"5\r\nhello\r\n0\r\nx-checksum: 2cf24dba\r\n\r\n")


async def close(connection: Connection, request: Request, argument: str) -> None:
    connection.transport.close()


async def reset(connection: Connection, request: Request, argument: str) -> None:
    linger = struct.pack("ii", 1, 0)
    connection.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    connection.transport.abort()


async def half(connection: Connection, request: Request, argument: str) -> None:
    await connection.head(200, ("content-length", "1000"))
    await connection.write(b"x" * 500)
    connection.transport.close()


async def garbage(connection: Connection, request: Request, argument: str) -> None:
    await connection.write(b"\x00\x01 this is no HTTP\r\n\r\n")
    connection.transport.close()


async def count(connection: Connection, request: Request, argument: str) -> None:
    await connection.reply(request, 200, json.dumps(connection.world.counts).encode(), ("content-type", "application/json"))


async def stream(connection: Connection, request: Request, argument: str) -> None:
    channel = connection.world.channel(argument)
    lost = asyncio.ensure_future(connection.lost.wait())
    late = request.query.get("head") == "late"
    try:
        if not late:
            await connection.head(200, ("transfer-encoding", "chunked"))
        while True:
            coming = asyncio.ensure_future(channel.pieces.get())
            await asyncio.wait([coming, lost], return_when=asyncio.FIRST_COMPLETED)
            if lost.done():
                coming.cancel()
                return
            if late:
                late = False
                await connection.head(200, ("transfer-encoding", "chunked"))
            piece = coming.result()
            await connection.write(b"0\r\n\r\n" if piece is None else b"%x\r\n%b\r\n" % (len(piece), piece))
            if piece is None:
                return
    finally:
        if lost.done():
            channel.gone.set()
        lost.cancel()


async def push(connection: Connection, request: Request, argument: str) -> None:
    channel = connection.world.channel(argument)
    piece = b"".join([piece async for piece in connection.body(request)])
    if piece:
        channel.pieces.put_nowait(piece)
    if "end" in request.query or not piece:
        channel.pieces.put_nowait(None)
    await connection.reply(request, 200, b"")


async def gone(connection: Connection, request: Request, argument: str) -> None:
    try:
        await asyncio.wait_for(connection.world.channel(argument).gone.wait(), LIMIT)
        await connection.reply(request, 200, b"gone\n")
    except TimeoutError:
        await connection.reply(request, 504, b"still there\n")


async def hold(connection: Connection, request: Request, argument: str) -> None:
    channel = connection.world.channel(argument)
    connection.transport.pause_reading()
    connection.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, HELD)
    connection.held = True
    await asyncio.wait_for(channel.pieces.get(), LIMIT)
    connection.held = False
    connection.transport.resume_reading()
    try:
        await upload(connection, request, argument)
    except ConnectionResetError:
        channel.gone.set()
        raise


async def too_early(connection: Connection, request: Request, argument: str) -> None:
    early = any(name == b"early-data" for name, _ in request.headers)
    await connection.reply(request, 425 if early else 200, b"too early\n" if early else b"in time\n")


Handler = Callable[[Connection, Request, str], Awaitable[None]]
HANDLERS: dict[str, Handler] = {
    "": hello,
    "hello": hello,
    "health": health,
    "control": control,
    "headers": headers,
    "bytes": known_bytes,
    "upload": upload,
    "status": status,
    "slow": slow,
    "early-hints": early_hints,
    "trailers": trailers,
    "close": close,
    "reset": reset,
    "half": half,
    "garbage": garbage,
    "count": count,
    "stream": stream,
    "push": push,
    "gone": gone,
    "hold": hold,
    "too-early": too_early,
}


async def main(name: str, port: int, host: str) -> None:
    loop = asyncio.get_running_loop()
    world = World(name)
    server = await loop.create_server(lambda: Connection(world), host, port, backlog=2048)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    stop = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    await stop.wait()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(sys.argv[1], int(sys.argv[2]), (sys.argv[3:] or ["127.0.0.1"])[0]))
