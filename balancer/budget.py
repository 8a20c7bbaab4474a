"""The retry budget of a pool: retries may add only so much to what the clients ask for.

Without one, a pool in trouble gets its traffic multiplied by the attempts of each request just when it can bear least (the retry
storm of the SRE book, chapter 22). Knows no pool and no request; time is an argument.
"""

WINDOW = 10.0
"""Seconds after which credit from requests that was not spent begins to lapse: quiet hours buy no storm."""


class Budget:
    """Two token buckets: a share of the requests, and a number each second so that a quiet pool may retry too."""

    __slots__ = ("_carried", "_edge", "_minimum", "_ratio", "_requests", "_reserve", "_settled", "_spent")

    def __init__(self, ratio: float, minimum: float) -> None:
        self._ratio = ratio
        """Retries for each request."""
        self._minimum = minimum
        """Retries a second in any case."""
        self._requests = 0
        self._spent = 0
        """Retries out of the requests' credit: both since the window began."""
        self._carried = 0.0
        """Credit from the window before."""
        self._edge = 0.0
        self._reserve = self._reserve_limit
        self._settled = 0.0

    def same_terms(self, other: "Budget") -> bool:
        """Whether *other* has the same ratio and minimum."""
        return (self._ratio, self._minimum) == (other._ratio, other._minimum)  # noqa: SLF001  # of the same class

    @property
    def _reserve_limit(self) -> float:
        """One second's worth, and a whole retry at least if there is to be any."""
        return max(1.0, self._minimum) if self._minimum else 0.0

    def note_request(self, now: float) -> None:
        """Count a request (its first try only)."""
        if now >= self._edge:
            self._roll(now)
        self._requests += 1

    def allow_retry(self, now: float) -> bool:
        """Spend one retry, if there is one."""
        elapsed = max(0.0, now - self._settled)
        self._settled = max(now, self._settled)
        self._reserve = min(self._reserve_limit, self._reserve + elapsed * self._minimum)
        if self._reserve >= 1:
            self._reserve -= 1
            return True
        if now >= self._edge:
            self._roll(now)
        if self._carried + self._requests * self._ratio - self._spent >= 1:
            self._spent += 1
            return True
        return False

    def _roll(self, now: float) -> None:
        """Begin a window. What is carried over is at most what the window before it earned."""
        earned = self._requests * self._ratio
        left = self._carried + earned - self._spent
        # a fraction of a retry never lapses: else a pool with a request now and then would not earn one in all its life
        lapsed = now >= self._edge + WINDOW
        self._carried = min(left, 1.0 if lapsed else max(1.0, earned))
        self._requests = self._spent = 0
        self._edge = now + WINDOW
