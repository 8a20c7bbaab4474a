"""aioquic's own client, for what needs a hand on its streams: many at once, a reader that stops, a body in pieces."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aioquic.asyncio import QuicConnectionProtocol, connect
from aioquic.h3.connection import H3_ALPN, ErrorCode, H3Connection
from aioquic.h3.events import DataReceived, HeadersReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import ConnectionTerminated, QuicEvent, StreamReset
from aioquic.tls import SessionTicket

from harness.authority import Authority
from harness.spoken import note

H3_REQUEST_CANCELLED = 0x10C
QUEUE = 1024 * 1024  # bytes of upload handed to aioquic ahead of the network

SILENCE = 0.2
"""Seconds in which nothing came, after which a client that waits for answers asks whether anybody is there, as browsers do. aioquic does
not do so by itself, and a client that only downloads and has acknowledged all that came says nothing more: when a NAT gives it another
address then, the server goes on sending to the old one, and nobody can tell either of them (RFC 9000, section 10.1.2)."""


@dataclass
class Answer:
    """One response as far as it came."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    trailers: dict[str, str] = field(default_factory=dict)
    informational: list[int] = field(default_factory=list)
    body: bytes = b""
    size: int = 0
    sha256: str = ""
    reset: int | None = None
    """Error code, where the server cut the stream."""


class _Stream:
    def __init__(self, *, keep: bool) -> None:
        self.answer = Answer()
        self.hash = hashlib.sha256()
        self.keep = keep
        self.pieces: list[bytes] = []
        self.changed = asyncio.Event()
        self.done = asyncio.get_running_loop().create_future()


class Http3(QuicConnectionProtocol):
    """An HTTP/3 connection."""

    http_class = H3Connection

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.http = self.http_class(self._quic)
        self.streams: dict[int, _Stream] = {}
        self.terminated: ConnectionTerminated | None = None
        self._paused: set[int] = set()
        self._silent = False
        self._heard = 0
        self._write_limits = self._quic._write_stream_limits
        self._quic._write_stream_limits = self._limit  # type: ignore[method-assign]  # the library itself reads everything at once

    def _limit(self, *, stream: Any, **more: Any) -> None:
        if stream.stream_id not in self._paused:
            self._write_limits(stream=stream, **more)

    def quic_event_received(self, event: QuicEvent) -> None:
        if isinstance(event, ConnectionTerminated):
            self.terminated = event
            for stream in self.streams.values():
                if not stream.done.done():
                    stream.done.set_exception(ConnectionError(f"{event.error_code:#x} {event.reason_phrase}"))
                    stream.done.exception()  # whoever waits gets it; nobody has to
                    stream.changed.set()
        elif isinstance(event, StreamReset) and event.stream_id in self.streams:
            self.streams[event.stream_id].answer.reset = event.error_code
            self._finish(self.streams[event.stream_id])
        for http_event in self.http.handle_event(event):
            if isinstance(http_event, HeadersReceived | DataReceived) and http_event.stream_id in self.streams:
                self._take(self.streams[http_event.stream_id], http_event)

    def _take(self, stream: _Stream, event: HeadersReceived | DataReceived) -> None:
        answer = stream.answer
        if isinstance(event, DataReceived):
            stream.hash.update(event.data)
            answer.size += len(event.data)
            if stream.keep:
                stream.pieces.append(event.data)
        else:
            fields = {name.decode(): value.decode("latin-1") for name, value in event.headers}
            status = int(fields.pop(":status", "0"))
            if 100 <= status < 200:
                answer.informational.append(status)
            elif status:
                answer.status, answer.headers = status, fields
            else:
                answer.trailers = fields
        stream.changed.set()
        if event.stream_ended:
            self._finish(stream)

    def _finish(self, stream: _Stream) -> None:
        stream.answer.body = b"".join(stream.pieces)
        stream.answer.sha256 = stream.hash.hexdigest()
        stream.changed.set()
        if not stream.done.done():
            stream.done.set_result(stream.answer)

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
        number = self._quic.get_next_available_stream_id()
        self.streams[number] = _Stream(keep=keep)
        fields = [(b":method", method.encode()), (b":scheme", b"https"), (b":authority", host.encode()), (b":path", path.encode())]
        self.http.send_headers(number, [*fields, *((name.encode(), value.encode()) for name, value in headers)], end_stream=end)
        self.transmit()
        return number

    async def size(self, number: int) -> int:
        """Bytes of the answer so far."""
        return self.streams[number].answer.size

    async def pause(self, number: int) -> None:
        """Give the stream no more credit: the reader stops."""
        self._paused.add(number)

    async def resume(self, number: int) -> None:
        self._paused.discard(number)
        self._quic._ping_pending.append(0)  # a packet for the limit to ride on
        self.transmit()

    async def fall_silent(self) -> None:
        """Read and say nothing any more."""
        self._silent = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def say_goodbye(self) -> None:
        """Close the connection, also after a silence, and wait for nothing."""
        self._silent = False
        self._quic.close(error_code=ErrorCode.H3_NO_ERROR)
        self.transmit()
        await self.fall_silent()

    def datagram_received(self, data: bytes | str, addr: Any) -> None:
        if not self._silent:
            self._heard += 1
            super().datagram_received(data, addr)

    def transmit(self) -> None:
        if not self._silent:
            super().transmit()

    def close(self, *args: Any, **more: Any) -> None:
        if self._silent:
            self._closed.set()
        else:
            super().close(*args, **more)

    async def ask_where_it_is_silent(self) -> None:
        """Until cancelled: send a PING whenever answers are awaited and nothing came for ``SILENCE``."""
        while True:
            heard = self._heard
            await asyncio.sleep(SILENCE)
            if self.streams and heard == self._heard and self.terminated is None:
                self._quic.send_ping(0)
                self.transmit()

    async def cancel(self, number: int) -> None:
        """Want no more of the stream, in either direction."""
        self._quic.stop_stream(number, H3_REQUEST_CANCELLED)
        if not self._quic._streams[number].sender.is_finished:
            self._quic.reset_stream(number, H3_REQUEST_CANCELLED)
        del self.streams[number]
        self.transmit()

    async def send(self, number: int, pieces: Iterable[bytes]) -> None:
        """Send a body, no further ahead of the network than QUEUE bytes, and end it."""
        sender = self._quic._streams[number].sender
        for piece in pieces:
            while sender.highest_offset < sender._buffer_stop - QUEUE:
                await asyncio.sleep(0.002)  # aioquic tells nobody when its buffer shrinks
            self.http.send_data(number, piece, end_stream=False)
            self.transmit()
        self.http.send_data(number, b"", end_stream=True)
        self.transmit()

    async def answer(self, number: int, limit: float = 60) -> Answer:
        """The complete answer. Raises ConnectionError when the connection ends first."""
        stream = self.streams[number]
        answer: Answer = await asyncio.wait_for(asyncio.shield(stream.done), limit)
        del self.streams[number]
        return answer

    async def get(self, path: str, *, host: str, limit: float = 60, **more: Any) -> Answer:
        return await self.answer(self.open(path, host=host, **more), limit)

    async def upload(self, path: str, pieces: Iterable[bytes], *, host: str, limit: float = 120, **more: Any) -> Answer:
        number = self.open(path, method="POST", host=host, end=False, **more)
        sending = asyncio.ensure_future(self.send(number, pieces))
        try:
            return await self.answer(number, limit)
        finally:
            sending.cancel()


class EarlyHttp3(Http3):
    """One whose first flight has the first request in it, by a session ticket. ``flight`` keeps the datagrams of that flight."""

    http_class = staticmethod(lambda _: None)  # type: ignore[assignment]  # no stream can be opened before ``connect``

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.flight: list[bytes] = []
        self.held = False
        """Nothing leaves; what would have is in ``flight`` until ``let_go``."""
        self._made: list[Any] = []
        self._make = self._quic.datagrams_to_send
        self._quic.datagrams_to_send = self._send  # type: ignore[method-assign]

    def _send(self, now: float) -> list[Any]:
        out = self._make(now=now)
        if not self._heard:
            self.flight += [data for data, _ in out]
        self._made += out
        if self.held:
            return []
        out, self._made = self._made, []
        return out

    def connect(self, addr: Any, transmit: bool = True) -> None:  # the library's
        super().connect(addr, transmit=False)
        self.http = H3Connection(self._quic)

    def let_go(self) -> None:
        """Send what was held."""
        self.held = False
        self.transmit()


@asynccontextmanager
async def http3(
    authority: Authority,
    port: int,
    *,
    sni: str = "a.example.com",
    protocol: type[Http3] = Http3,
    early: bool = False,
    asks: bool = False,
    tickets: list[SessionTicket] | None = None,
    **settings: Any,
) -> AsyncIterator[Http3]:
    """Connect to 127.0.0.1:*port*; *settings* are aioquic's QuicConfiguration's. ``asks``: it does so ``where_it_is_silent``.

    *tickets* collects the session tickets that it is given; ``session_ticket`` of the settings is one to show. ``early``: nothing is
    sent until the first request (``EarlyHttp3``).
    """
    note("HTTP/3")
    configuration = QuicConfiguration(is_client=True, alpn_protocols=H3_ALPN, server_name=sni, **settings)
    configuration.load_verify_locations(cafile=str(authority.file))
    keep = tickets.append if tickets is not None else None
    protocol = EarlyHttp3 if early else protocol
    made = connect(
        "127.0.0.1",
        port,
        configuration=configuration,
        create_protocol=protocol,
        session_ticket_handler=keep,
        wait_connected=not early,
    )
    async with made as client:
        assert isinstance(client, Http3)
        asking = asyncio.ensure_future(client.ask_where_it_is_silent()) if asks else None
        try:
            yield client
        finally:
            if asking is not None:
                asking.cancel()
