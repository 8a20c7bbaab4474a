"""One HTTP/1.1 connection to a backend: the transport around ``engine/h1_client``.

It serves one exchange at a time and gives it the answer event by event. Bytes that the exchange has not credited are counted, and above
high water the transport is not read, so that a slow client slows the backend and not the memory.
"""

import asyncio
from typing import TYPE_CHECKING, cast

from proxy.engine.events import ResponseBody, ResponseEnd, ResponseHead, UpstreamEvent, UpstreamRequest
from proxy.engine.h1_client import H1Client, UpstreamProtocolError
from proxy.engine.seam import HIGH_WATER, LOW_WATER
from proxy.errors import Kind, ProxyError
from proxy.message import Headers
from proxy.stream import Consumer

if TYPE_CHECKING:
    from proxy.upstream.pool import EndpointConnections


READ_BYTES = 64 * 1024
"""Bytes of one read: with HIGH_WATER, what one stream that its client does not read can hold."""

_BUFFER = memoryview(bytearray(READ_BYTES))


class UpstreamConnection:
    """A connection of one endpoint. Made by ``connect.py``, owned by ``pool.EndpointConnections``.

    An ``asyncio.BufferedProtocol`` by its methods, since a subclass of it could not be compiled. asyncio's own loop asks for the class, and
    so takes it for a plain protocol.
    """

    __slots__ = (
        "_consumer",
        "_engine",
        "_owner",
        "_read_paused",
        "_request_done",
        "_response_begun",
        "_transport",
        "_uncredited",
        "_write_paused",
        "idle_since",
        "opened",
        "uses",
    )

    def __init__(self, owner: "EndpointConnections", opened: float) -> None:
        self._owner = owner
        self._engine = H1Client()
        self._consumer: Consumer | None = None
        self._transport: asyncio.Transport | None = None
        self._uncredited = 0
        self._read_paused = False
        self._write_paused = False
        self._request_done = True
        self._response_begun = False
        self.opened = opened
        self.idle_since = opened
        self.uses = 0

    # The exchange's side

    @property
    def closed(self) -> bool:
        """True when nothing can be sent on it any more."""
        return self._transport is None or self._transport.is_closing()

    @property
    def peer(self) -> str:
        """The backend's IP address; empty for a unix socket, and when the connection is gone."""
        address = self._transport.get_extra_info("peername") if self._transport is not None else None
        return str(address[0]) if isinstance(address, tuple) else ""

    def begin(self, consumer: Consumer, request: UpstreamRequest) -> None:
        """Send a request head."""
        assert self._consumer is None
        assert self._transport is not None
        self._consumer = consumer
        self._request_done = request.end
        self._response_begun = False
        self.uses += 1
        self._transport.write(self._engine.start(request))

    def send_data(self, data: bytes) -> int:
        """Send body bytes; more than HIGH_WATER is returned while the backend does not take them."""
        encoded = self._engine.encode_data(data)
        if encoded:
            self._write(encoded)
        return HIGH_WATER + 1 if self._write_paused else 0

    def send_end(self, trailers: Headers) -> None:
        """The request body is complete."""
        self._request_done = True
        data = self._engine.encode_end(trailers)
        if data:
            self._write(data)

    def credit(self, taken: int) -> None:
        """The exchange's client took *taken* bytes of the answer."""
        self._uncredited -= taken
        if self._read_paused and self._uncredited <= LOW_WATER:
            self._read_paused = False
            if self._transport is not None:
                self._transport.resume_reading()

    def hold(self) -> None:
        """Read no more of the answer before there is credit for all that was delivered."""
        if not self._read_paused and self._consumer is not None and self._transport is not None:
            self._read_paused = True
            self._transport.pause_reading()

    def abort(self) -> None:
        """Drop the connection: its exchange has no more use for the answer. No more callbacks."""
        self._consumer = None
        if self._transport is not None:
            self._transport.abort()

    def close(self) -> None:
        """Close an idle connection."""
        if self._transport is not None:
            self._transport.close()

    # The transport's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Connected (with TLS where the endpoint has it)."""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=HIGH_WATER, low=LOW_WATER)
        self._owner.made()

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002  # the protocol's signature
        """One buffer serves all: every read is used up before the next."""
        return _BUFFER

    def buffer_updated(self, nbytes: int) -> None:
        """Bytes of an answer, in the buffer."""
        self.data_received(bytes(_BUFFER[:nbytes]))

    def data_received(self, data: bytes) -> None:
        """Bytes of an answer."""
        consumer = self._consumer
        try:
            events = self._engine.receive(data)
        except UpstreamProtocolError as error:
            self._fail(ProxyError(Kind.UPSTREAM_PROTOCOL, str(error)), stale=False)
            return
        if consumer is None:
            self.close()
            return
        self._response_begun = True
        self._give(consumer, events)

    def _give(self, consumer: Consumer, events: list[UpstreamEvent]) -> None:
        now = self._owner.clock()
        try:
            for event in events:
                if isinstance(event, ResponseHead):
                    if event.end:
                        self._release(now)
                    consumer.on_response_head(event, now)
                elif isinstance(event, ResponseBody):
                    self._uncredited += len(event.data)
                    consumer.on_response_body(event.data, now)
                elif isinstance(event, ResponseEnd):
                    self._release(now)
                    consumer.on_response_end(event.trailers, now)
                else:
                    consumer.on_informational(event)
                if self._consumer is not consumer:
                    return  # the answer is complete, or the exchange let go of it while taking an event
        except Exception as error:  # noqa: BLE001  # contained to this exchange: the worker lives
            consumer.on_internal_error(error)
            return
        if self._uncredited > HIGH_WATER and not self._read_paused and self._transport is not None:
            self._read_paused = True
            self._transport.pause_reading()

    def eof_received(self) -> bool:
        """The backend closed its side: the end of a close-delimited answer, else an error. Our side closes too."""
        consumer = self._consumer
        if consumer is not None:
            try:
                events = self._engine.receive_eof()
            except UpstreamProtocolError as error:
                self._closed(error.detail)
            else:
                self._give(consumer, events)
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        self._transport = None
        self._owner.lost(self)
        if self._consumer is not None:
            if isinstance(exc, ConnectionRefusedError):
                # TCP Fast Open reports here what connect() would have reported
                self._fail(ProxyError(Kind.CONNECT_REFUSED, str(exc), retry=True), stale=False)
            else:
                self._closed(str(exc or "closed before the answer was complete"))

    def pause_writing(self) -> None:
        """The backend does not read as fast as the client sends."""
        self._write_paused = True

    def resume_writing(self) -> None:
        """It caught up."""
        self._write_paused = False
        consumer = self._consumer
        if consumer is not None:
            try:
                consumer.on_upstream_drained()
            except Exception as error:  # noqa: BLE001  # as in _give
                consumer.on_internal_error(error)

    def _write(self, data: bytes) -> None:
        if not self.closed:  # else connection_lost is under way, and tells
            assert self._transport is not None
            self._transport.write(data)

    def _release(self, now: float) -> None:
        """The answer is complete: keep the connection for another exchange, or close it."""
        self._consumer = None
        self._uncredited = 0
        if self._read_paused:
            self._read_paused = False
            if self._transport is not None:
                self._transport.resume_reading()
        if self._request_done and self._engine.reusable:
            self._owner.give_back(self, now)
        elif self._transport is not None:
            self._transport.abort()

    def _closed(self, detail: str) -> None:
        """The backend closed the connection within an exchange; where no byte of an answer had come on a reused one, it had been idle."""
        self._fail(ProxyError(Kind.UPSTREAM_CLOSED, detail), stale=self.uses > 1 and not self._response_begun)

    def _fail(self, error: ProxyError, *, stale: bool) -> None:
        consumer, self._consumer = self._consumer, None
        if self._transport is not None:
            self._transport.abort()
        if consumer is not None:
            try:
                consumer.on_upstream_error(error, stale=stale)
            except Exception as fault:  # noqa: BLE001  # as in _give
                consumer.on_internal_error(fault)
