"""An HTTP/2 client on h2 with a hand on its streams: many at once, a reader that stops, a body in pieces, a stream cut."""

import asyncio
import hashlib
import ssl
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

from h2.config import H2Configuration
from h2.connection import ConnectionInputs, ConnectionState, H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    InformationalResponseReceived,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
)
from h2.settings import SettingCodes, Settings

from harness.authority import Authority
from harness.clients import trusting
from harness.content import MIB
from harness.http3 import Answer
from harness.spoken import note


def patient(connection: H2Connection) -> H2Connection:
    """h2 ends its state machine at GOAWAY, though RFC 9113 lets present streams finish (section 6.8): not here."""
    machine = connection.state_machine
    still = (None, ConnectionState.CLIENT_OPEN)
    machine._transitions = machine._transitions | {(ConnectionState.CLIENT_OPEN, ConnectionInputs.RECV_GOAWAY): still}
    return connection


STREAM_WINDOW = 256 * 1024
CONNECTION_WINDOW = 16 * MIB


class _Stream:
    def __init__(self, *, keep: bool) -> None:
        self.answer = Answer()
        self.hash = hashlib.sha256()
        self.keep = keep
        self.paused = False
        self.owed = 0
        self.pieces: list[bytes] = []
        self.done: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()


class Http2(asyncio.Protocol):
    """An HTTP/2 connection."""

    def __init__(self, stream_window: int = STREAM_WINDOW) -> None:
        self.h2 = patient(H2Connection(H2Configuration(client_side=True, header_encoding="latin-1", validate_inbound_headers=False)))
        self.streams: dict[int, _Stream] = {}
        self.lost = asyncio.get_running_loop().create_future()
        self.terminated: int | None = None
        self._window = stream_window
        self._writable = asyncio.Event()
        self._writable.set()
        self._window_opened = asyncio.Event()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        told = {SettingCodes.INITIAL_WINDOW_SIZE: self._window, SettingCodes.ENABLE_PUSH: 0}
        self.h2.local_settings = Settings(client=True, initial_values=told)
        self.h2.initiate_connection()
        self.h2.increment_flow_control_window(max(CONNECTION_WINDOW, self._window) - 65535)
        self._flush()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def connection_lost(self, error: Exception | None) -> None:
        self._writable.set()
        self._window_opened.set()
        if not self.lost.done():
            self.lost.set_result(error)
        for stream in self.streams.values():
            if not stream.done.done():
                stream.done.set_exception(ConnectionError(f"the connection ended: {error}, {self.terminated}"))
                stream.done.exception()  # whoever waits gets it; nobody has to

    def _flush(self) -> None:
        data = self.h2.data_to_send()
        if data:
            self.transport.write(data)

    def data_received(self, data: bytes) -> None:
        for event in self.h2.receive_data(data):
            if isinstance(event, ConnectionTerminated):
                self.terminated = event.error_code
                continue
            if isinstance(event, DataReceived):
                # The connection's credit is given at once: only the stream may stand still.
                self.h2.increment_flow_control_window(max(event.flow_controlled_length, 1))
            stream = self.streams.get(getattr(event, "stream_id", None) or 0)
            if stream is not None:
                self._take(stream, event)
        self._window_opened.set()
        self._flush()

    def _take(self, stream: _Stream, event: Any) -> None:
        answer = stream.answer
        if isinstance(event, DataReceived):
            stream.hash.update(event.data)
            answer.size += len(event.data)
            if stream.keep:
                stream.pieces.append(event.data)
            stream.owed += event.flow_controlled_length
            self._credit(event.stream_id, stream)
        elif isinstance(event, ResponseReceived):
            fields = dict(event.headers)
            answer.status, answer.headers = int(fields.pop(":status")), fields
        elif isinstance(event, InformationalResponseReceived):
            answer.informational.append(int(dict(event.headers)[":status"]))
        elif isinstance(event, TrailersReceived):
            answer.trailers = dict(event.headers)
        elif isinstance(event, StreamEnded | StreamReset):
            if isinstance(event, StreamReset):
                answer.reset = int(event.error_code)
            answer.body, answer.sha256 = b"".join(stream.pieces), stream.hash.hexdigest()
            if not stream.done.done():
                stream.done.set_result(answer)

    def _credit(self, number: int, stream: _Stream) -> None:
        if not stream.paused and stream.owed >= self._window // 4:
            self._open_window(number, stream)

    def _open_window(self, number: int, stream: _Stream) -> None:
        owed, stream.owed = stream.owed, 0
        if owed and number in self.h2.streams and not self.h2.streams[number].closed:
            self.h2.increment_flow_control_window(owed, number)

    # For tests

    def open(
        self,
        path: str,
        *,
        method: str = "GET",
        host: str,
        headers: Iterable[tuple[str, str]] = (),
        end: bool = True,
        keep: bool = True,
    ) -> int:
        """Send a request head; returns the stream. ``keep=False``: the body is hashed and dropped."""
        number = self.h2.get_next_available_stream_id()
        self.streams[number] = _Stream(keep=keep)
        fields = [(":method", method), (":scheme", "https"), (":authority", host), (":path", path), *headers]
        self.h2.send_headers(number, fields, end_stream=end)
        self._flush()
        return number

    async def size(self, number: int) -> int:
        """Bytes of the answer so far."""
        return self.streams[number].answer.size

    async def pause(self, number: int) -> None:
        """Give the stream no more credit: the reader stops."""
        self.streams[number].paused = True

    async def resume(self, number: int) -> None:
        stream = self.streams[number]
        stream.paused = False
        self._open_window(number, stream)
        self._flush()

    async def fall_silent(self) -> None:
        """Read and say nothing any more."""
        self.transport.pause_reading()

    async def cancel(self, number: int) -> None:
        """Cut the stream."""
        self.h2.reset_stream(number, ErrorCodes.CANCEL)
        del self.streams[number]
        self._flush()

    async def send(self, number: int, pieces: Iterable[bytes]) -> None:
        """Send a body as the server's windows allow, and end it."""
        for piece in pieces:
            rest = memoryview(piece)
            while rest:
                await self._writable.wait()
                if self.lost.done():
                    return
                room = min(self.h2.local_flow_control_window(number), self.h2.max_outbound_frame_size)
                if room <= 0:
                    self._window_opened.clear()
                    await self._window_opened.wait()
                    continue
                self.h2.send_data(number, bytes(rest[:room]))
                rest = rest[room:]
                self._flush()
        self.h2.end_stream(number)
        self._flush()

    async def answer(self, number: int, limit: float = 60) -> Answer:
        """The complete answer. Raises ConnectionError when the connection ends first."""
        answer = await asyncio.wait_for(asyncio.shield(self.streams[number].done), limit)
        del self.streams[number]
        return answer

    async def get(self, path: str, *, host: str, limit: float = 60, **more: Any) -> Answer:
        return await self.answer(self.open(path, host=host, **more), limit)


@asynccontextmanager
async def http2(authority: Authority, port: int, *, sni: str = "a.example.com", **settings: Any) -> AsyncIterator[Http2]:
    """Connect to 127.0.0.1:*port* by HTTP/2."""
    client = await http2_connect(trusting(authority), port, sni=sni, **settings)
    try:
        yield client
    finally:
        client.transport.abort()
        await client.lost


async def http2_connect(context: ssl.SSLContext, port: int, *, sni: str = "a.example.com", **settings: Any) -> Http2:
    """The same for many: *context* is shared, and the caller closes ``transport``."""
    note("HTTP/2")
    context.set_alpn_protocols(["h2"])
    loop = asyncio.get_running_loop()
    _, client = await loop.create_connection(lambda: Http2(**settings), "127.0.0.1", port, ssl=context, server_hostname=sni)
    assert client.transport.get_extra_info("ssl_object").selected_alpn_protocol() == "h2"
    return client
