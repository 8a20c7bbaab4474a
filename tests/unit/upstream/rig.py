"""A real backend on loopback that follows a script, and a pool of it, with a consumer that writes down what it is told."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from balancer.pool import Member, PoolSettings
from balancer.pool import Pool as BalancerPool
from proxy.engine.events import Informational, ResponseHead, UpstreamRequest
from proxy.errors import ProxyError
from proxy.message import Headers, get
from proxy.meters import ProxyMetrics
from proxy.observe import Metrics, NullLog
from proxy.policy.key import KeySource
from proxy.snapshot import Endpoint, Pool, UpstreamConnections, UpstreamTls
from proxy.tasks import Tasks
from proxy.upstream.h1 import UpstreamConnection
from proxy.upstream.pool import Attempt, EndpointConnections, Upstreams
from tests.unit.upstream.book import Book

Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def until(condition: Callable[[], object], seconds: float = 5) -> None:
    """Wait for a condition, with a deadline."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.001)


async def read_head(reader: asyncio.StreamReader) -> bytes:
    return await reader.readuntil(b"\r\n\r\n")


class Backend:
    def __init__(self, script: Script) -> None:
        self._script = script
        self.connections = 0
        self.port = 0
        self.failure: BaseException | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.get_running_loop().create_task(self._run(reader, writer))
        self._tasks.add(task)

    async def _run(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
                await self._script(reader, writer)
        except Exception as error:  # noqa: BLE001  # raised again when the backend stops
            self.failure = error
        finally:
            with contextlib.suppress(ConnectionError, ssl.SSLError):
                writer.close()
                async with asyncio.timeout(1):
                    await writer.wait_closed()

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self.failure is not None:
            raise self.failure


@contextlib.asynccontextmanager
async def serve(
    script: Script, *, context: ssl.SSLContext | None = None, path: Path | None = None, host: str = "127.0.0.1", port: int = 0
) -> AsyncIterator[Backend]:
    backend = Backend(script)
    if path is not None:
        server = await asyncio.start_unix_server(backend.accept, path)
    else:
        server = await asyncio.start_server(backend.accept, host, port, ssl=context)
        backend.port = server.sockets[0].getsockname()[1]
    try:
        yield backend
    finally:
        server.close()
        await backend.stop()


class Taker:
    """A consumer and a waiter that writes down what it is told."""

    def __init__(self) -> None:
        self.said: list[Any] = []
        self.body = bytearray()
        self.connection: UpstreamConnection | None = None
        self.credits = True
        self.poison = ""
        self.drained = 0

    def _say(self, *what: Any) -> None:
        self.said.append(what)
        if self.poison == what[0]:
            raise RuntimeError(self.poison)

    def on_connected(self, connection: UpstreamConnection) -> None:
        self.connection = connection
        self._say("connected")

    def on_connect_failed(self, error: ProxyError) -> None:
        self._say("failed", error.kind.name, error.retry)

    def on_informational(self, event: Informational) -> None:
        self._say("inform", event.status)

    def on_response_head(self, event: ResponseHead, now: float) -> None:
        whole = bool(event.body)
        self._say("head", event.status, event.end and not whole)
        if whole:
            self.body += event.body
            if self.poison == "body":
                raise RuntimeError(self.poison)
            self._say("end", [])

    def on_response_body(self, data: bytes, now: float) -> None:
        self.body += data
        if self.credits:
            assert self.connection is not None
            self.connection.credit(len(data))
        if self.poison == "body":
            raise RuntimeError(self.poison)

    def on_response_end(self, trailers: Headers, now: float) -> None:
        self._say("end", trailers)

    def on_upstream_error(self, error: ProxyError, *, stale: bool) -> None:
        self._say("error", error.kind.name, stale)

    def on_upstream_drained(self) -> None:
        self.drained += 1
        if self.poison == "drained":
            raise RuntimeError(self.poison)

    def on_internal_error(self, error: Exception) -> None:
        self.said.append(("internal", str(error)))
        if self.connection is not None:
            self.connection.abort()

    @property
    def over(self) -> bool:
        last = self.said[-1] if self.said else ("",)
        return last[0] in {"end", "error", "failed", "internal"} or (last[0] == "head" and last[2] is True)


class Rig:
    """One pool with one endpoint, and a clock that is set by hand."""

    def __init__(self, url: str, *, tls: UpstreamTls | None = None, settings: UpstreamConnections | None = None) -> None:
        self.now = 1000.0
        self.meters = ProxyMetrics(Metrics())
        self.tasks = Tasks(NullLog())
        self.book = Book()
        self.upstreams = Upstreams(self.meters, self.tasks, lambda: self.now, self.book)
        self.settings = settings or UpstreamConnections(8, 60, 600)
        self.identity = url
        self.pool = self.make_pool(tls)

    def make_pool(self, tls: UpstreamTls | None = None, url: str | None = None) -> Pool:
        url = url or self.identity
        return Pool(
            "web",
            BalancerPool("web", [Member(url)], PoolSettings(), b"s" * 32, 7),
            {url: endpoint(url)},
            KeySource("connection"),
            True,
            tls,
            self.settings,
            None,
        )

    @property
    def connections(self) -> EndpointConnections:
        return self.upstreams.of(self.pool, self.identity)

    def open(self, taker: Taker, seconds: float = 5) -> Attempt:
        return self.connections.open(taker, seconds)

    async def connect(self, taker: Taker | None = None) -> Taker:
        taker = taker or Taker()
        self.open(taker)
        await until(lambda: taker.said)
        assert taker.said == [("connected",)]
        taker.said.clear()
        return taker

    def take(self, taker: Taker) -> UpstreamConnection:
        found = self.connections.take()
        assert found is not None
        taker.connection = found
        return found

    def ask(self, taker: Taker, method: bytes = b"GET", target: bytes = b"/", headers: Headers | None = None, *, end: bool = True) -> None:
        assert taker.connection is not None
        length = get(headers or [], b"content-length")
        taker.connection.begin(
            taker, UpstreamRequest(method, target, b"x", headers or [], int(length) if length is not None else None, end)
        )

    async def get(self, taker: Taker | None = None) -> Taker:
        """One whole request, on an idle connection where there is one."""
        taker = taker or Taker()
        found = self.connections.take()
        if found is None:
            await self.connect(taker)
        else:
            taker.connection = found
        self.ask(taker)
        await until(lambda: taker.over)
        return taker

    @property
    def idle(self) -> list[UpstreamConnection]:
        return [connection for connection in self.connections._idle if not connection.closed]

    @property
    def open_now(self) -> float:
        return self.meters.upstream_open.cell("web").value

    @property
    def reused(self) -> float:
        return self.meters.upstream_reused.cell("web").value

    def connects(self, result: str) -> float:
        return self.meters.upstream_connects.cell("web", result).value

    async def close(self) -> None:
        """Everything ends, and nothing is left open."""
        self.upstreams.close()
        await self.tasks.close()
        await until(lambda: self.open_now == 0)


def endpoint(url: str) -> Endpoint:
    if url.startswith("unix:"):
        return Endpoint(url, False, "localhost", 0, url.removeprefix("unix:"))
    scheme, _, rest = url.partition("://")
    host, _, port = rest.rpartition(":")
    return Endpoint(url, scheme == "https", host.strip("[]"), int(port), None)


@contextlib.asynccontextmanager
async def rig(script: Script, **settings: Any) -> AsyncIterator[tuple[Rig, Backend]]:
    """A backend with that script, and a pool of it."""
    async with serve(script) as backend:
        made = Rig(f"http://127.0.0.1:{backend.port}", **settings)
        try:
            yield made, backend
        finally:
            await made.close()


def answer(body: bytes = b"ok", *fields: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n%b\r\n%b" % (len(body), b"".join(field + b"\r\n" for field in fields), body)


async def polite(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers requests without bodies, one after the other."""
    while True:
        await read_head(reader)
        writer.write(answer())
