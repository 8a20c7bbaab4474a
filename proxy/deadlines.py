"""Coarse deadlines for many things at once: a hashed wheel that one tick of the worker turns.

A timer of the event loop for each request would cost more than the rest of its bookkeeping (docs/design); here adding and cancelling are
one dict operation each, and what is over leaves nothing behind. Knows no clock: time is an argument.
"""

from typing import Protocol

TICK = 0.1
"""Seconds between turns: no deadline fires more than this late."""


class Expiring(Protocol):
    """Something with a deadline. ``slot`` belongs to the wheel: -1 while it is on none."""

    slot: int

    def on_deadline(self, now: float) -> float | None:
        """The time asked for has come: act, and give the next deadline, or None when there is none."""


class Deadlines:
    """All deadlines of one worker."""

    def __init__(self, now: float) -> None:
        self._slots: dict[int, dict[Expiring, None]] = {}
        self._turned = int(now / TICK)

    def __len__(self) -> int:
        return sum(map(len, self._slots.values()))

    def set(self, item: Expiring, due: float) -> None:
        """Ask for ``item.on_deadline`` at *due*, in place of what was asked before."""
        if item.slot >= 0:
            self._slots[item.slot].pop(item, None)
        slot = int(due / TICK) + 1
        if slot <= self._turned:
            slot = self._turned + 1
        item.slot = slot
        bucket = self._slots.get(slot)
        if bucket is None:
            bucket = self._slots[slot] = {}
        bucket[item] = None

    def cancel(self, item: Expiring) -> None:
        """Forget *item*; nothing happens when it is not known."""
        if item.slot >= 0:
            bucket = self._slots.get(item.slot)
            if bucket is not None:
                bucket.pop(item, None)
            item.slot = -1

    def turn(self, now: float) -> None:
        """Fire everything that is due at *now*."""
        upto = int(now / TICK)
        while self._turned < upto:
            self._turned += 1
            bucket = self._slots.get(self._turned)
            while bucket:  # still in its place: an item that fires may cancel another one of the same slot
                item, _ = bucket.popitem()
                item.slot = -1
                due = item.on_deadline(now)
                if due is not None:
                    self.set(item, due)
            self._slots.pop(self._turned, None)
