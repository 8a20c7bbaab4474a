"""Running totals of something that counts by itself, told to counters that it shares with others of its kind."""

from proxy.counters import Cell


class Totals:
    """Remembers what each counter was told already."""

    def __init__(self) -> None:
        self._told: dict[Cell, float] = {}

    def tell(self, counter: Cell, total: float) -> None:
        """Add to *counter* by what *total* has grown since the last time."""
        counter.value += total - self._told.get(counter, 0)
        self._told[counter] = total
