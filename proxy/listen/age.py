"""The limit of a connection's age (``server.timeouts.connection_age``): a client is told to go, and what is in progress is finished.

Long connections keep to the instance and the backend that they once chose: with a limit, load spreads again. Knows when a connection is to
be told, and nothing of how that is done.
"""

import random
from collections.abc import Callable

from proxy.counters import Cell
from proxy.deadlines import Expiring
from proxy.services import Services

SPREAD = 0.1
"""Share of the limit by which connections differ, either way: those that began together, after a restart, don't all go at once."""

STEP = 1.0
"""Seconds between the two words with which a connection is told: for the first to arrive, and for what was sent before it did."""


class Age:
    """The age of one connection, an ``Expiring``."""

    __slots__ = ("_count", "_go", "_words", "bucket")

    def __init__(self, go: Callable[[], None], words: int, count: Cell) -> None:
        self.bucket: dict[Expiring, None] | None = None
        self._go = go
        self._words = words
        self._count: Cell | None = count

    def on_deadline(self, now: float) -> float | None:
        """The wheel asks; gives the next time to ask."""
        if self._count is not None:
            self._count.value += 1
            self._count = None
        self._words -= 1
        self._go()
        return now + STEP if self._words else None


def begin_age(services: Services, version: str, go: Callable[[], None], words: int) -> Age | None:
    """The age of a connection that begins now; None where there is no limit.

    When the limit has come, *go* is called so many times as it takes *words* to tell the client. It must not raise: the wheel turns for
    everybody.
    """
    limit = services.snapshot.timeouts.connection_age
    if not limit:
        return None
    age = Age(go, words, services.meters.connections_aged.cell(version))
    spread = random.uniform(-SPREAD, SPREAD)  # noqa: S311  # nobody gains by guessing it
    services.deadlines.set(age, services.clock() + limit * (1 + spread))
    return age
