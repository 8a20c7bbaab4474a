"""The floor's way to the backend: keep-alive connections on the product's own HTTP/1.1 client engine, one request on each at a time.

Head, body and back-pressure go straight from the one engine to the other. No retry, no timeout, no choice, no counter.
"""

import asyncio
from typing import TYPE_CHECKING, cast

from proxy.engine.events import RequestHead, ResponseBody, ResponseEnd, ResponseHead, UpstreamEvent, UpstreamRequest
from proxy.engine.h1_client import H1Client
from proxy.engine.seam import HIGH_WATER
from proxy.message import Headers

if TYPE_CHECKING:
    from bench.floor.requests import Requests

HOP_BY_HOP = frozenset((b"connection", b"keep-alive"))
BUFFER = memoryview(bytearray(64 * 1024))


class Upstream(asyncio.BufferedProtocol):
    """One connection to the backend."""

    def __init__(self, pool: "Pool") -> None:
        self.pool = pool
        self.engine = H1Client()
        self.transport: asyncio.Transport | None = None
        self.unsent: list[bytes] = []
        self.client: Requests | None = None
        self.stream = 0
        self.credit = 0
        self.write_paused = self.read_paused = False

    def begin(self, client: "Requests", request: RequestHead) -> None:
        self.client, self.stream = client, request.stream
        headers = _end_to_end(request.headers)
        asked = UpstreamRequest(request.method, request.path, request.authority, headers, request.content_length, request.end)
        self.write(self.engine.start(asked))

    def send(self, data: bytes, credit: int) -> None:
        self.write(self.engine.encode_data(data))
        self.credit += credit
        if not self.write_paused:
            self.give_credit()

    def end(self) -> None:
        self.write(self.engine.encode_end([]))

    def give_credit(self) -> None:
        if self.credit and self.client is not None:
            credit, self.credit = self.credit, 0
            self.client.consumed(self.stream, credit)

    def drained(self) -> None:
        if self.read_paused and self.transport is not None:
            self.read_paused = False
            self.transport.resume_reading()

    def abort(self) -> None:
        self.let_go()
        if self.transport is not None:
            self.transport.abort()

    def write(self, data: bytes) -> None:
        if self.transport is None:
            self.unsent.append(data)
        elif data:
            self.transport.write(data)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.transport.set_write_buffer_limits(high=HIGH_WATER)
        self.transport.writelines(self.unsent)
        self.unsent.clear()

    def pause_writing(self) -> None:
        self.write_paused = True

    def resume_writing(self) -> None:
        self.write_paused = False
        self.give_credit()

    def get_buffer(self, hint: int) -> memoryview:
        del hint
        return BUFFER

    def buffer_updated(self, size: int) -> None:
        events = self.engine.receive(bytes(BUFFER[:size]))
        client = self.client
        if client is None:
            self.abort()
            return
        for event in events:
            self.deliver(client, event)

    def deliver(self, client: "Requests", event: UpstreamEvent) -> None:
        if isinstance(event, ResponseBody):
            if client.send_data(self.stream, event.data, False) > HIGH_WATER and not self.read_paused and self.transport is not None:
                self.read_paused = True
                self.transport.pause_reading()
        elif isinstance(event, ResponseHead):
            stream, headers = self.stream, _end_to_end(event.headers)
            if event.end:
                self.release()
            if event.body:
                client.respond(stream, event.status, headers, event.body)
            else:
                client.send_head(stream, event.status, headers, event.end)
        elif isinstance(event, ResponseEnd):
            self.release()
            client.send_data(self.stream, b"", True)

    def let_go(self) -> None:
        if self.client is not None:
            del self.client.running[self.stream]
            self.client = None

    def release(self) -> None:
        self.let_go()
        self.credit = 0
        self.drained()
        if self.engine.reusable:
            self.pool.idle.append(self)
        else:
            self.abort()

    def connection_lost(self, error: Exception | None) -> None:
        del error
        self.transport = None
        self.let_go()
        if self in self.pool.idle:
            self.pool.idle.remove(self)


class Pool:
    """Connections to one backend, the last used first."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.idle: list[Upstream] = []
        self.connecting: set[asyncio.Task[object]] = set()

    def begin(self, client: "Requests", request: RequestHead) -> Upstream:
        """Send *request*; what comes back goes to *client*."""
        if self.idle:
            upstream = self.idle.pop()
        else:
            upstream = Upstream(self)
            loop = asyncio.get_running_loop()
            task = loop.create_task(loop.create_connection(lambda: upstream, "127.0.0.1", self.port))
            self.connecting.add(task)
            task.add_done_callback(self.connecting.discard)
        upstream.begin(client, request)
        return upstream


def _end_to_end(headers: Headers) -> Headers:
    return [field for field in headers if field[0] not in HOP_BY_HOP]
