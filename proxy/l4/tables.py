"""Which instance a flow is at: tables that are bounded in size and forget what was not asked for of late. Pure.

An entry is kept for the lifetime after it was last used, and for twice that at most: there are two generations, and when the lifetime is
over the older one goes as a whole. So no entry has a timer, and none is looked for when time has passed.
"""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

KeyT = TypeVar("KeyT", bound=Hashable)
ValueT = TypeVar("ValueT")


@dataclass(frozen=True, slots=True)
class TableSettings:
    """Of each of a listener's tables, in each worker."""

    size: int = 65536
    """Entries at most. One takes about 200 bytes."""
    lifetime: float = 120.0
    """Seconds that an entry stays without being used, at least."""


class Table(Generic[KeyT, ValueT]):
    """One table. When it is full, new entries are refused and counted; those that are there stay."""

    __slots__ = ("_lifetime", "_old", "_size", "_turns_at", "_young", "full")

    def __init__(self, settings: TableSettings) -> None:
        self._size, self._lifetime = settings.size, settings.lifetime
        self._young: dict[KeyT, ValueT] = {}
        self._old: dict[KeyT, ValueT] = {}
        self._turns_at = float("-inf")
        self.full = 0
        """Entries that were refused so far."""

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    def get(self, key: KeyT, now: float) -> ValueT | None:
        """What is known of *key*, which is used by that."""
        if now >= self._turns_at:
            self._turn(now)
        found = self._young.get(key)
        if found is None and self._old:
            found = self._old.pop(key, None)
            if found is not None:
                self._young[key] = found
        return found

    def put(self, key: KeyT, value: ValueT, now: float) -> bool:
        """Remember *value*, in the place of what was known; False where there is no room."""
        if now >= self._turns_at:
            self._turn(now)
        if key not in self._young and self._old.pop(key, None) is None and len(self) >= self._size:
            self.full += 1
            return False
        self._young[key] = value
        return True

    def resize(self, settings: TableSettings) -> None:
        """Other bounds from now on. What is beyond a smaller size stays for its lifetime."""
        self._size = settings.size
        self._turns_at = min(self._turns_at, self._turns_at - self._lifetime + settings.lifetime)
        self._lifetime = settings.lifetime

    def _turn(self, now: float) -> None:
        """The older generation goes; both do, where nobody has asked for as long as two last."""
        self._old = self._young if now < self._turns_at + self._lifetime else {}
        self._young = {}
        self._turns_at = now + self._lifetime
