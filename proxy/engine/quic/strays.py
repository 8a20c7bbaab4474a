"""Datagrams that came to this worker and are of a connection of another: kept until they are handed over. One piece for all engines.

The kernel steers by the slot in a connection ID (``listen/steering.py``), but for a whole batch by its first datagram where GRO has merged
those of one address, and by the rule of before for what came before a change. Knows connection IDs and no sockets.
"""

from collections.abc import Iterable, Sequence

from proxy.engine.events import Event
from proxy.engine.quic.ids import Minter
from proxy.engine.quic.packets import MAX_CID
from proxy.engine.seam import Datagram, Handle
from proxy.message import Address

MAX_DATAGRAMS = 1024
"""Kept at once: more than one call of ``receive_fd`` has that are no tiny ones."""

MAX_BYTES = 1024 * 1024
"""Of them."""


class Strays:
    """Keeps them, so many at most, for who is to hand them over. *slot* is our own."""

    def __init__(self, mint: Minter, slot: int | None) -> None:
        self._mint = mint
        self._slot = slot
        self._kept: list[tuple[int, Datagram]] = []
        self._bytes = 0
        self.siblings: frozenset[int] = frozenset()
        """Slots of the other workers that are alive."""
        self.handed_over = False
        """What comes now came from another worker: it goes no further."""
        self.dropped = 0

    def replace(self, slots: Iterable[int]) -> None:
        """Who the others are, from now on; our own slot does not matter."""
        self.siblings = frozenset(slots) - {self._slot}

    def keep(self, data: bytes, peer: Address, local: Address) -> bool:
        """Whether a datagram that no connection here has is another worker's. Then there is nothing more to do about it.

        *data* has a destination connection ID, by ``packets.destination_of``.
        """
        if data[0] & 0x80:
            slot = self._mint.slot_of(data[6 : 6 + data[5]], whole=True)
        else:
            slot = self._mint.slot_of(data[1 : 1 + MAX_CID], whole=False)
        if slot is None or slot not in self.siblings:
            return False
        if self.handed_over or len(self._kept) == MAX_DATAGRAMS or self._bytes + len(data) > MAX_BYTES:
            self.dropped += 1
        else:
            self._kept.append((slot, Datagram(data, peer, local)))
            self._bytes += len(data)
        return True

    def take(self) -> list[tuple[int, Datagram]]:
        """Those that were kept, with the slots that they are for."""
        if not self._kept:
            return self._kept
        taken, self._kept, self._bytes = self._kept, [], 0
        return taken


class StrayVerbs:
    """What ``seam.Endpoint`` says of strays, for an endpoint with ``_strays``. To be the last of its bases: ``receive`` is its own."""

    _strays: Strays

    def receive(self, datagrams: Sequence[Datagram], now: float) -> list[tuple[Handle, Event]]:
        """See ``seam.Endpoint``, as for all of these."""
        raise NotImplementedError

    def _watch(self) -> None:
        """The siblings, or the forms of connection IDs, are others now."""

    def receive_strays(self, datagrams: Sequence[Datagram], now: float) -> list[tuple[Handle, Event]]:
        """See ``seam.Endpoint``, as for all of these."""
        self._strays.handed_over = True
        try:
            return self.receive(datagrams, now)
        finally:
            self._strays.handed_over = False

    def take_strays(self) -> list[tuple[int, Datagram]]:
        """Those of other workers."""
        return self._strays.take()

    @property
    def siblings(self) -> frozenset[int]:
        """The other workers."""
        return self._strays.siblings

    @siblings.setter
    def siblings(self, slots: frozenset[int]) -> None:
        self._strays.replace(slots)
        self._watch()

    @property
    def strays_dropped(self) -> int:
        """Of other workers."""
        return self._strays.dropped
