"""Datagrams that came here and are of a connection elsewhere: kept until they are handed over. One piece for all engines.

Of another worker: the kernel steers by the slot in a connection ID (``listen/steering.py``), but for a whole batch by its first datagram
where GRO has merged those of one address, and by the rule of before for what came before a change. Of another instance: who spreads
datagrams over instances may know only addresses and ports, and a client that changes its own comes to another one. Knows connection IDs
and no sockets.
"""

from collections.abc import Iterable, Sequence

from proxy.engine.events import Event
from proxy.engine.quic.ids import Minter
from proxy.engine.quic.packets import MAX_CID, is_handshake
from proxy.engine.quic.resets import Resets
from proxy.engine.seam import Datagram, Foreign, Handle, Others
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
        self._foreign: list[Foreign] = []
        self._bytes = 0
        self.siblings: frozenset[int] = frozenset()
        """Slots of the other workers that are alive."""
        self.others: Others | None = None
        """The other instances; None: nobody is asked."""
        self.watching = False
        """Whether anything may be a stray."""
        self.handed_over = False
        """What comes now came from another worker: it goes no further."""
        self.relayed = False
        """What comes now came through a relay: it goes to no other instance."""
        self.dropped = 0
        self.looped = 0

    def watch(self, slots: Iterable[int], others: Others | None) -> None:
        """Who the others are, from now on; our own slot does not matter."""
        self.siblings = frozenset(slots) - {self._slot}
        self.others = others
        self.watching = bool(self.siblings) or others is not None

    def keep(self, data: bytes, peer: Address, local: Address) -> bool:
        """Whether a datagram that no connection here has is another's. Then there is nothing more to do about it.

        *data* has a destination connection ID, by ``packets.destination_of``.
        """
        long = bool(data[0] & 0x80)
        cid = data[6 : 6 + data[5]] if long else data[1 : 1 + MAX_CID]
        slot = self._mint.slot_of(cid, whole=long)
        if slot is not None and slot in self.siblings:
            if self.handed_over or self._full(data):
                self.dropped += 1
            else:
                self._kept.append((slot, Datagram(data, peer, local)))
            return True
        return self.others is not None and self._keep_foreign(data, cid, Datagram(data, peer, local), self.others)

    def _keep_foreign(self, data: bytes, cid: bytes, datagram: Datagram, others: Others) -> bool:
        """Never what a client's own choice of ID may have led here: a first packet, and 0-RTT packets, which carry the same one."""
        long = bool(data[0] & 0x80)
        if long and not is_handshake(data):
            return False
        named = self._mint.named_by(cid, whole=long)
        if named is None or named.server_id == self._mint.server_id:
            return False
        if not others.lives(named.server_id):
            return False
        if self.relayed:
            self.looped += 1
            return True
        if self._full(data):
            self.dropped += 1
        else:
            self._foreign.append(Foreign(named.server_id, named.slot, datagram))
        return True

    def _full(self, data: bytes) -> bool:
        """Whether there is no room for another; else it is counted."""
        if len(self._kept) + len(self._foreign) >= MAX_DATAGRAMS or self._bytes + len(data) > MAX_BYTES:
            return True
        self._bytes += len(data)
        return False

    def take(self) -> list[tuple[int, Datagram]]:
        """Those of other workers, with the slots that they are for."""
        if not self._kept:
            return self._kept
        taken, self._kept = self._kept, []
        self._bytes -= sum(len(datagram.data) for _, datagram in taken)
        return taken

    def take_foreign(self) -> list[Foreign]:
        """Those of other instances."""
        if not self._foreign:
            return self._foreign
        taken, self._foreign = self._foreign, []
        self._bytes -= sum(len(foreign.datagram.data) for foreign in taken)
        return taken


class StrayVerbs:
    """What ``seam.Endpoint`` says of strays, for an endpoint with ``_strays``. To be the last of its bases: ``receive`` is its own."""

    _strays: Strays
    _resets: Resets

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

    def receive_relayed(self, datagrams: Sequence[Datagram], now: float) -> list[tuple[Handle, Event]]:
        """What came through a relay."""
        self._strays.relayed = True
        try:
            return self.receive(datagrams, now)
        finally:
            self._strays.relayed = False

    def take_foreign(self) -> list[Foreign]:
        """Those of other instances."""
        return self._strays.take_foreign()

    @property
    def others(self) -> Others | None:
        """The other instances."""
        return self._strays.others

    @others.setter
    def others(self, others: Others | None) -> None:
        self._strays.watch(self._strays.siblings, others)
        self._resets.others = others
        self._watch()

    @property
    def siblings(self) -> frozenset[int]:
        """The other workers."""
        return self._strays.siblings

    @siblings.setter
    def siblings(self, slots: frozenset[int]) -> None:
        self._strays.watch(slots, self._strays.others)
        self._watch()

    @property
    def strays_dropped(self) -> int:
        """Of other workers."""
        return self._strays.dropped

    @property
    def looped(self) -> int:
        """Of other instances, through a relay."""
        return self._strays.looped
