"""An event loop in virtual time: whenever nothing is left to do, the next timer is due at once."""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class _Selector(selectors.DefaultSelector):
    """Passes the time instead of waiting."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        found = super().select(0)
        if not found and timeout is None:
            msg = "nothing will ever happen again"
            raise RuntimeError(msg)
        if not found and timeout is not None:
            self.now += timeout
        return found


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run *work*, which touches no socket, to its end; ``loop.time()`` begins at 0."""
    selector = _Selector()
    loop = asyncio.SelectorEventLoop(selector)
    loop.time = lambda: selector.now
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        return runner.run(work)
