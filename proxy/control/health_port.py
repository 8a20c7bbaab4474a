"""The plain port for health checks: HTTP/1.1 without TLS, GET and HEAD of one path, and nothing else.

It is beside the listeners and has none of their limits, so that whoever checks is answered when these are full. It waits behind no request:
where there are several workers, it is the controller's, and in an only process it has a thread (``health_thread.py``). Knows the HTTP/1.1
engine and a callback; what it says is decided elsewhere.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from proxy.answers import HEALTH_HEADERS, HEALTH_METHODS, NOT_ALLOWED
from proxy.control.port import Port
from proxy.engine.events import Event, RequestHead
from proxy.engine.h1 import H1Connection
from proxy.engine.seam import EngineLimits
from proxy.message import Address, Headers
from proxy.observe import Log
from proxy.policy.answer import Respond

MAX_CONNECTIONS = 256
"""Open at a time. For one more, the one that has been silent longest is closed: no number of silent ones keeps a check away."""

IDLE_SECONDS = 75.0
"""Without a request, before a connection is closed: longer than the intervals of usual checks, for those that keep theirs."""

_LIMITS = EngineLimits(header_bytes=8 * 1024)
_READ = 64 * 1024


@dataclass(frozen=True, slots=True)
class Page:
    """What there is to see."""

    path: Callable[[], bytes | None]
    """Where the answer is; None: nowhere."""
    answer: Callable[[], Respond]


class HealthPort:
    """The server. ``address`` is the bound one after ``start``."""

    def __init__(self, address: Address, page: Page, log: Log) -> None:
        self.address = address
        self._page = page
        self._open: dict[_Connection, None] = {}
        self._port = Port(address, self._accept, log)

    async def start(self) -> None:
        """Bind and serve; OSError when the address can't be had."""
        self._port.open()
        self.address = self._port.address

    async def stop(self) -> None:
        """Stop listening, and close what is open."""
        await self._port.close()
        for connection in list(self._open):
            connection.close()

    def _accept(self) -> asyncio.Protocol:
        if len(self._open) >= MAX_CONNECTIONS:
            next(iter(self._open)).close()
        return _Connection(self._page, self._open)


class _Connection(asyncio.Protocol):
    """One client. In *others*, the one of which nothing came for the longest time is the first."""

    def __init__(self, page: Page, others: "dict[_Connection, None]") -> None:
        self._page = page
        self._others = others
        self._engine = H1Connection(_LIMITS, scheme=b"http")
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._others[self] = None
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self._others.pop(self, None)
        if self._timer is not None:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        now = time.monotonic()
        self._take(self._engine.receive(data, now))

    def eof_received(self) -> bool:
        self._take(self._engine.receive_eof(time.monotonic()))
        return False

    def pause_writing(self) -> None:
        """It asks and does not read: nothing that it may keep waiting."""
        self.close()

    def close(self) -> None:
        """At once."""
        if self._transport is not None:
            self._transport.abort()
        self._others.pop(self, None)

    def _take(self, events: list[Event]) -> None:
        asked = False
        while events:
            for event in events:
                if isinstance(event, RequestHead):
                    asked = True
                    answer = self._answer(event)
                    self._engine.respond(event.stream, answer.status, cast("Headers", list(answer.headers)), answer.body)
            events = self._engine.take_events()
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        if asked:
            self._others[self] = self._others.pop(self, None)  # to the end of the line
            self._wait()
        while output := self._engine.take_output(_READ):
            transport.write(output)
        if self._engine.finished:
            transport.close()

    def _answer(self, head: RequestHead) -> Respond:
        path = self._page.path()
        if path is None or head.path.partition(b"?")[0] != path:
            return Respond(404, HEALTH_HEADERS, b"there is only the health answer here\n")
        if head.method not in HEALTH_METHODS:
            return NOT_ALLOWED
        return self._page.answer()

    def _wait(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(IDLE_SECONDS, self.close)
