"""Moves body bytes from a source to a sink with back-pressure: the same in both directions and for all versions.

The source counts what it delivered and stops by itself when too much of it is not credited; the sink accepts everything and says how
much it holds. The pipe stands between: above high water it keeps the credit back, and gives it once the sink has drained. Knows neither
requests nor sockets.
"""

from collections.abc import Callable

from proxy.engine.seam import HIGH_WATER, HOLD


class Pipe:
    """One direction of one exchange.

    ``write(data)`` queues bytes in the sink and returns what is queued there; ``credit(n)`` tells the source that *n* of the bytes it
    delivered are taken; ``hold()`` stops it until then, whatever it was going to deliver.
    """

    __slots__ = ("_credit", "_hold", "_write", "moved", "owed")

    def __init__(self, write: Callable[[bytes], int], credit: Callable[[int], None], hold: Callable[[], None] | None = None) -> None:
        self._write = write
        self._credit = credit
        self._hold = hold
        self.moved = 0
        """Bytes moved so far."""
        self.owed = 0
        """Credit that the source has not got yet, because the sink is not taking more."""

    @property
    def stalled(self) -> bool:
        """True while the sink is not taking what the source could give."""
        return self.owed > 0

    def push(self, data: bytes, credit: int) -> None:
        """Move bytes that the source delivered; *credit* is what they cost it (padding included)."""
        self.moved += len(data)
        queued = self._write(data)
        if queued > HIGH_WATER:
            self.owed += credit
            if queued >= HOLD and self._hold is not None:
                self._hold()
        elif credit:
            self._credit(credit)

    def drained(self) -> None:
        """The sink has room again."""
        owed, self.owed = self.owed, 0
        if owed:
            self._credit(owed)
