"""Whether new connections come in, for all listeners of a worker: shut while something says that they must wait.

Knows reasons, and nothing of what is behind them. What waits, waits in the kernel's queue of each listening socket.
"""

from collections.abc import Callable

from proxy.counters import Cell


class Gate:
    """Open while no reason shuts it."""

    def __init__(self, shown: Cell) -> None:
        """*shown* is a gauge: 1 while it is open, else 0."""
        self._shown = shown
        shown.value = 1.0
        self._reasons: set[str] = set()
        self._moved: list[Callable[[], None]] = []

    @property
    def is_open(self) -> bool:
        """Whether new connections come in."""
        return not self._reasons

    def tell(self, moved: Callable[[], None]) -> None:
        """Call *moved* each time that it opened or shut."""
        self._moved.append(moved)

    def shut(self, reason: str) -> None:
        """Keep new connections waiting until the same reason is taken back."""
        was_open = self.is_open
        self._reasons.add(reason)
        if was_open:
            self._move()

    def take_back(self, reason: str) -> None:
        """The reason is no more."""
        was_open = self.is_open
        self._reasons.discard(reason)
        if self.is_open and not was_open:
            self._move()

    def _move(self) -> None:
        self._shown.value = float(self.is_open)
        for moved in self._moved:
            moved()
