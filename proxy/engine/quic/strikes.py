"""Which first flights were seen: the strike register against replays of early data (RFC 8446, section 8.2).

Knows keys and time. Knows no TLS. Pure: time is an argument.
"""


class StrikeRegister:
    """Says of each key, once, that it is new. Remembers it for *window* seconds at least, and at most *capacity* of them in as many.

    Two tables take turns, so that nothing is ever searched for what is old: the older one goes when the younger one is as old as that.
    """

    def __init__(self, window: float, capacity: int) -> None:
        self._window = window
        self._capacity = capacity
        self._young: set[bytes] = set()
        self._old: set[bytes] = set()
        self._turned = 0.0

    def __len__(self) -> int:
        """Keys that are remembered."""
        return len(self._young) + len(self._old)

    def first(self, key: bytes, now: float) -> bool:
        """True: it was not seen before, and is remembered. False: it was, or there is no verdict.

        There is none when the register is full, and none while the clock is behind what it showed before: what was forgotten since might
        count again.
        """
        if now < self._turned:
            return False
        if now >= self._turned + self._window:
            self._old = self._young if now < self._turned + 2 * self._window else set()
            self._young = set()
            self._turned = now
        if key in self._young or key in self._old or len(self._young) >= self._capacity:
            return False
        self._young.add(key)
        return True
