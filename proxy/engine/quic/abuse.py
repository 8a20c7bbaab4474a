"""How much of what costs us but brings nothing a client may send: budgets that refill.

Knows no frames: ``connection`` and ``engine/h3.py`` say what each thing costs.
"""

CONTROL_BURST = 1000
"""Control frames in a burst: PING, ACK, MAX_*, *_BLOCKED, NEW_ and RETIRE_CONNECTION_ID, PATH_*, empty STREAM and CRYPTO, and in HTTP/3
frames and stream types that we don't know, empty DATA, PRIORITY_UPDATE, CANCEL_PUSH, MAX_PUSH_ID, QPACK's stream cancellations."""

CONTROL_RATE = 200.0
"""Control frames a second, on average; on top of it what our own packets ask for (``EARNED_BY_PACKET``)."""

EARNED_BY_PACKET = 4
"""Control frames that the client earns with each packet that we sent: its acknowledgement, MAX_DATA and MAX_STREAM_DATA for what it
brought, and one more. Each receive limit that we announce earns one, too: a client that sends up to it says so (RFC 9000, section 4.1:
*_BLOCKED)."""

RESET_BURST = 400
"""RESET_STREAM, STOP_SENDING and requests that we reset as malformed, in a burst: a browser that leaves a page with four times the
usual 100 streams."""

RESET_RATE = 50.0
"""The same a second, on average (the rapid reset attack of CVE-2023-44487 does thousands)."""


class Budget:
    """A token bucket that looks at the clock only when it is empty, so that a spend is one subtraction."""

    __slots__ = ("_burst", "_filled_at", "_rate", "_seen", "_tokens")

    def __init__(self, burst: int, rate: float) -> None:
        self._burst = burst
        self._rate = rate
        self._tokens = float(burst)
        self._filled_at: float | None = None
        self._seen = 0

    def spend(self, now: float, earned: int = 0) -> bool:
        """Take one; False when there is none left. *earned* counts from the connection's start and adds one token each."""
        self._tokens -= 1
        if self._tokens >= 0:
            if self._filled_at is None:
                self._filled_at = now
            return True
        refill = (now - (now if self._filled_at is None else self._filled_at)) * self._rate + (earned - self._seen)
        self._filled_at = now
        self._seen = earned
        self._tokens = min(float(self._burst), refill) - 1
        return self._tokens >= 0
