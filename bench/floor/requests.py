"""From an engine's events to the backend and back, the same for every version."""

from abc import ABC, abstractmethod

from bench.floor.upstream import Pool, Upstream
from proxy.engine.events import Drained, Event, RequestBody, RequestEnd, RequestHead, StreamReset
from proxy.message import Headers


class Requests(ABC):
    """The requests of one connection; what extends it has the seam's verbs for the answers."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.running: dict[int, Upstream] = {}
        """What asks the backend, by stream. ``Upstream`` takes itself out."""

    def deliver(self, event: Event) -> None:
        """Take one event of the engine."""
        kind = type(event)
        if kind is RequestHead:
            self.running[event.stream] = self.pool.begin(self, event)
            return
        upstream = self.running.get(getattr(event, "stream", 0))
        if upstream is None:
            return
        if kind is RequestBody:
            upstream.send(event.data, event.credit)
        elif kind is RequestEnd:
            upstream.end()
        elif kind is Drained:
            upstream.drained()
        elif kind is StreamReset:
            upstream.abort()

    def lose(self) -> None:
        """The client is gone."""
        for upstream in list(self.running.values()):
            upstream.abort()

    @abstractmethod
    def respond(self, stream: int, status: int, headers: Headers, body: bytes) -> None: ...

    @abstractmethod
    def send_head(self, stream: int, status: int, headers: Headers, end: bool) -> None: ...

    @abstractmethod
    def send_data(self, stream: int, data: bytes, end: bool) -> int: ...

    @abstractmethod
    def consumed(self, stream: int, credit: int) -> None: ...
