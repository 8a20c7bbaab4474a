"""Stateless resets (RFC 9000, section 10.3): what the client of a connection that is gone hears, so that it begins another one at once.

After a crash or a restart that is a round trip, where it would have been an idle timeout.
"""

from collections.abc import Callable

from proxy.engine.quic.abuse import Budget
from proxy.engine.quic.ids import Minter
from proxy.engine.seam import Others

MIN_BYTES = 21
"""Of a stateless reset: five that look random, and the token."""

MAX_BYTES = 42
"""A client's short packets are hardly shorter, so that a reset looks like one of them."""

BURST = 1000
"""Resets at once, of all connections of an endpoint."""

RATE = 500.0
"""Resets a second, on average."""

_TOKEN_BYTES = 16


class Resets:
    """Makes them, so many in a second and each smaller than what it answers: two servers can't keep each other busy (section 10.3.3)."""

    def __init__(self, mint: Minter, random_bytes: Callable[[int], bytes]) -> None:
        self._mint = mint
        self._random_bytes = random_bytes
        self._budget = Budget(BURST, RATE)
        self.others: Others | None = None
        """The other instances: for those that are gone, any of the rest answers."""
        self.sent = 0

    def answer(self, start: bytes, size: int, now: float) -> bytes | None:
        """The answer to a short-header packet of *size* bytes that no connection has; None where there is to be none.

        *start*: the packet from its connection ID on, as far as that may reach.
        """
        length = min(size - 1, MAX_BYTES)
        if length < MIN_BYTES or (token := self._mint.token(start, self._gone)) is None or not self._budget.spend(now):
            return None
        self.sent += 1
        noise = self._random_bytes(length - _TOKEN_BYTES)
        return b"%c%b%b" % (noise[0] & 0x3F | 0x40, noise[1:], token)

    def _gone(self, server_id: bytes) -> bool:
        return self.others is not None and self.others.is_gone(server_id)
