"""A client's connection as its exchanges see it, whatever the version: the part that TCP and QUIC share.

Keeps the exchanges of the connection by stream and hands them the engine's events. A fault of our own in one exchange is contained here.
"""

from abc import ABC, abstractmethod

from balancer.backend import Backend
from proxy.admission import Admitted
from proxy.counters import Cell
from proxy.engine.events import ConnectionClosed, Drained, Event, Rejected, RequestBody, RequestEnd, RequestHead, StreamReset
from proxy.errors import Reset
from proxy.exchange import Exchange
from proxy.message import Address, Headers
from proxy.services import Services
from proxy.snapshot import Listener
from proxy.sni import TlsProfile

LIMITS = {"header_too_large": "header_size", "too_many_fields": "header_count", "too_many_streams": "streams_per_connection"}
"""Reasons for which an engine refuses requests that are limits of the configuration, by their names there."""


class ClientStreams(ABC):
    """State of one client connection and its exchanges; a ``stream.ClientConnection`` once a subclass brings the verbs."""

    version: str
    _stream_count: Cell
    _stream_gauge: Cell

    def __init__(self, services: Services, listener: Listener, peer: Address) -> None:
        self.services = services
        self.listener = listener
        self.peer = peer
        self.tls: TlsProfile | None = None
        self.sni: str | None = None
        self.affinity_key = b""
        self.pins: dict[str, Backend] = {}
        self.admitted: Admitted | None = None
        self.exchanges: dict[int, Exchange] = {}

    def speaks(self, version: str) -> None:
        """The version is known: requests can come."""
        self.version = version
        self._stream_count = self.services.meters.streams.cell(version)
        self._stream_gauge = self.services.meters.streams_open.cell(version)

    def deliver(self, event: Event) -> None:
        """Hand one event of a stream to its exchange."""
        if type(event) is RequestHead:
            self._stream_count.value += 1
            self._stream_gauge.value += 1
            exchange = self.exchanges[event.stream] = Exchange(self.services, self, event)
            try:
                exchange.on_request()
            except Exception as error:  # noqa: BLE001  # one exchange's fault is not its neighbours'
                exchange.on_internal_error(error)
        elif isinstance(event, Rejected):
            self.services.meters.rejected.cell(self.version, event.reason).value += 1
            if (limit := LIMITS.get(event.reason)) is not None:
                self.services.meters.limits_hit.cell(limit).value += 1
            self.services.log.info("request refused", version=self.version, reason=event.reason, detail=event.detail, client=self.peer[0])
            refused = self.exchanges.get(event.stream)
            if refused is not None:  # its head was accepted, the rest is malformed
                refused.on_rejected(event.status, event.detail)
        elif isinstance(event, RequestBody | RequestEnd | StreamReset | Drained):
            present = self.exchanges.get(event.stream)
            if present is not None:
                try:
                    self._continue(present, event)
                except Exception as error:  # noqa: BLE001  # the same
                    present.on_internal_error(error)
            elif isinstance(event, RequestBody):
                self.consumed(event.stream, event.credit)
        elif isinstance(event, ConnectionClosed) and event.error:
            self.services.meters.connection_errors.cell(self.version, event.error).value += 1
            self.services.log.info(
                "a connection ended with an error", version=self.version, error=event.error, detail=event.detail, client=self.peer[0]
            )

    def _continue(self, exchange: Exchange, event: RequestBody | RequestEnd | StreamReset | Drained) -> None:
        if isinstance(event, RequestBody):
            exchange.on_request_body(event)
        elif isinstance(event, RequestEnd):
            exchange.on_request_end(event.trailers)
        elif isinstance(event, Drained):
            exchange.on_drained()
        else:
            self.services.meters.stream_errors.cell(self.version, "reset_by_client").value += 1
            exchange.on_client_reset(event.reason)

    def exchange_done(self, stream: int) -> None:
        """The exchange of this stream is over."""
        if self.exchanges.pop(stream, None) is not None:
            self._stream_gauge.value -= 1

    def await_handshake(self, stream: int) -> bool:  # noqa: ARG002  # of those connections that take early data
        """See ``stream.ClientConnection``."""
        return False

    def lose_exchanges(self, reason: str) -> None:
        """The connection is gone: every exchange hears of it."""
        for exchange in list(self.exchanges.values()):
            try:
                exchange.on_client_reset(reason)
            except Exception as error:  # noqa: BLE001  # the others are to hear of it too
                exchange.on_internal_error(error)

    # The verbs of ``stream.ClientConnection``

    @abstractmethod
    def respond(self, stream: int, status: int, headers: Headers, body: bytes) -> None:
        """See ``engine/seam.py``, as for all of these."""

    @abstractmethod
    def send_head(self, stream: int, status: int, headers: Headers, end: bool) -> None: ...

    @abstractmethod
    def send_data(self, stream: int, data: bytes, end: bool) -> int: ...

    @abstractmethod
    def send_trailers(self, stream: int, headers: Headers) -> None: ...

    @abstractmethod
    def inform(self, stream: int, status: int, headers: Headers) -> None: ...

    @abstractmethod
    def consumed(self, stream: int, credit: int) -> None: ...

    @abstractmethod
    def reset(self, stream: int, reason: Reset) -> None: ...
