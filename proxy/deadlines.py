"""Coarse deadlines for many things at once: a hashed wheel that one tick of the worker turns.

A timer of the event loop for each request would cost more than the rest of its bookkeeping (docs/design); here adding and cancelling are
one dict operation each, and what is over leaves nothing behind. Knows no clock: time is an argument.
"""

from typing import Protocol

TICK = 0.1
"""Seconds between turns: no deadline fires more than this late."""


class Expiring(Protocol):
    """Something with a deadline. ``bucket`` belongs to the wheel: None while it is on none."""

    bucket: "dict[Expiring, None] | None"

    def on_deadline(self, now: float) -> float | None:
        """The time asked for has come: act, and give the next deadline, or None when there is none."""


class Deadlines:
    """All deadlines of one worker."""

    def __init__(self, now: float) -> None:
        self._slots: dict[int, dict[Expiring, None]] = {}
        self._turned = int(now / TICK)
        self._recent: dict[float, dict[Expiring, None]] = {}
        """Buckets by the seconds that ``begin`` was asked for since the last turn."""

    def __len__(self) -> int:
        return sum(map(len, self._slots.values()))

    def begin(self, item: Expiring, seconds: float, now: float) -> None:
        """Ask for ``on_deadline`` of an item without a deadline, *seconds* from *now*, or earlier by the time since the last turn.

        For the many that ask for the same: they share a bucket until the wheel turns, and nothing is worked out for each.
        """
        bucket = self._recent.get(seconds)
        if bucket is None:
            bucket = self._recent[seconds] = self._bucket(now + seconds)
        bucket[item] = None
        item.bucket = bucket

    def set(self, item: Expiring, due: float) -> None:
        """Ask for ``item.on_deadline`` at *due*, in place of what was asked before."""
        self.cancel(item)
        bucket = item.bucket = self._bucket(due)
        bucket[item] = None

    def cancel(self, item: Expiring) -> None:
        """Forget *item*; nothing happens when it is not known."""
        bucket = item.bucket
        if bucket is not None:
            del bucket[item]
            item.bucket = None

    def turn(self, now: float) -> None:
        """Fire everything that is due at *now*."""
        upto = int(now / TICK)
        while self._turned < upto:
            self._turned += 1
            self._recent.clear()
            bucket = self._slots.pop(self._turned, None)
            while bucket:  # an item that fires may cancel another one of the same bucket
                item, _ = bucket.popitem()
                item.bucket = None
                due = item.on_deadline(now)
                if due is not None:
                    self.set(item, due)

    def _bucket(self, due: float) -> "dict[Expiring, None]":
        slot = int(due / TICK) + 1
        if slot <= self._turned:
            slot = self._turned + 1
        return self._slots.setdefault(slot, {})
