"""The request body on its way to a backend: kept while another try may need it, credited to the client as the backend takes it.

Knows the client by one call (``credit``) and the backend by ``send_data`` and ``send_end``. Whether there is another try is the
exchange's decision.
"""

from collections.abc import Callable
from typing import Protocol

from proxy.message import Headers
from proxy.pipe import Pipe


class Sink(Protocol):
    """What takes the body: a connection to a backend."""

    def send_data(self, data: bytes) -> int:
        """Send body bytes; more than HIGH_WATER is returned while the backend does not take them."""

    def send_end(self, trailers: Headers) -> None:
        """The body is complete."""


class Upload:
    """One request's body.

    Until a backend is connected, nothing is credited, so that the client's window bounds what can come. At most *keep* bytes (and what
    came before the first connection) are kept for another try.
    """

    __slots__ = ("_credit", "_keep", "_kept", "_kept_bytes", "_owed", "_pipe", "_sink", "_trailers", "complete", "received", "replayable")

    def __init__(self, credit: Callable[[int], None], keep: int) -> None:
        self._credit = credit
        self._keep = keep
        self._kept: list[bytes] = []
        self._kept_bytes = 0
        self._owed = 0
        self._pipe: Pipe | None = None
        self._sink: Sink | None = None
        self._trailers: Headers = []
        self.complete = False
        """The client has sent all of it."""
        self.received = 0
        """Bytes that came from the client."""
        self.replayable = True
        """All of what came is at hand, so that the request may be sent again."""

    @property
    def stalled(self) -> bool:
        """True while the backend does not take what the client could send."""
        return self._pipe is not None and self._pipe.stalled

    def push(self, data: bytes, credit: int) -> None:
        """Bytes came from the client; *credit* is what they cost it."""
        self.received += len(data)
        if self.replayable:
            self._kept.append(data)
            self._kept_bytes += len(data)
        if self._pipe is None:
            self._owed += credit
        else:
            self._pipe.push(data, credit)
            self._bound()

    def end(self, trailers: Headers) -> None:
        """The client has sent everything."""
        self.complete = True
        self._trailers = trailers
        if self._sink is not None:
            self._sink.send_end(trailers)

    def flow_to(self, sink: Sink) -> None:
        """A backend is there: send it what came so far, and from now on what comes."""
        self._sink = sink
        pipe = self._pipe = Pipe(sink.send_data, self._credit)
        for data in self._kept:
            pipe.push(data, 0)
        owed, self._owed = self._owed, 0
        if owed:
            pipe.push(b"", owed)
        self._bound()
        if self.complete:
            sink.send_end(self._trailers)

    def interrupt(self) -> None:
        """The backend is gone: what it did not take is owed to the client still."""
        if self._pipe is not None:
            self._owed += self._pipe.owed
        self._pipe = self._sink = None

    def drained(self) -> None:
        """The backend takes more."""
        if self._pipe is not None:
            self._pipe.drained()

    def commit(self) -> None:
        """There will be no other try: nothing need be kept."""
        self.replayable = False
        self._kept = []

    def _bound(self) -> None:
        if self._kept_bytes > self._keep and self.replayable:
            self.commit()
