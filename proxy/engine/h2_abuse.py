"""How much of what costs us more than it costs the client one HTTP/2 connection may do.

Knows buckets and time. Knows no frames: the engine says what is spent on what. HTTP/2 attacks of the cheap kind have one shape: frames
that are allowed one by one, sent without end. Each bucket holds what a busy honest client does in a burst, refills at the rate at
which it may go on for ever, and is earned back by real work.
"""

RESET_BURST = 200
"""Streams that end in a reset by the client, or by us for its fault, in one burst: a browser that leaves two pages in a row cancels at
most all of its streams (100 by default) twice. CVE-2023-44487 (rapid reset) took thousands a second; CVE-2025-8671 (MadeYouReset) made
the server do the resetting, so that both count alike."""

RESET_RATE = 33.0
"""Resets a second without end: nghttp2's rate for the same limit."""

CONTROL_BURST = 1000
"""Frames that ask for work without carrying any: PING and SETTINGS (CVE-2019-9512, 9515), PRIORITY (9513), empty DATA (9518), unknown
types, WINDOW_UPDATE, frames on dead streams, requests over the stream limit. Some clients open with several for each of 100 streams."""

CONTROL_RATE = 100.0
"""The same a second, without end. Far above keep-alive and path probes, far under what costs a noticeable part of a core."""

CONTROL_PER_WORK = 10
"""Earned by each request taken and each DATA frame sent: Envoy's allowance of WINDOW_UPDATE frames for each DATA frame."""


class Bucket:
    """A token bucket on the caller's clock."""

    __slots__ = ("_burst", "_rate", "_then", "level")

    def __init__(self, burst: int, rate: float) -> None:
        """*burst* tokens at most, *rate* tokens a second."""
        self._burst = burst
        self._rate = rate
        self._then: float | None = None
        self.level = float(burst)

    def spend(self, now: float) -> bool:
        """Take one token; False when there was none, which is the abuse."""
        if self._then is None:
            self._then = now
        elif now > self._then:
            self.level = min(self._burst, self.level + (now - self._then) * self._rate)
            self._then = now
        self.level -= 1
        return self.level >= 0

    def earn(self, tokens: int) -> None:
        """Give back up to the burst."""
        self.level = min(self._burst, self.level + tokens)
