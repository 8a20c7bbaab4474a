"""The other instances: who is behind which address, and who lives, by what they answer to HELLO. Pure.

Time is counted in HELLOs of ours: while this process is stopped it asks nobody, and what nobody was asked is no sign of death. Knows
addresses, HELLO and server IDs. Knows no sockets, no clock, and not how addresses are found.
"""

from collections.abc import Iterable

from proxy.cluster.hello import Hello, State
from proxy.message import Address

ASK_EVERY = 1.0
"""Seconds between two HELLOs to a peer."""

UNANSWERED = 5
"""HELLOs in a row without an answer after which a peer is dead. Their answers are taken still."""

IN_VAIN = 2
"""Of these, those that have to follow a client's datagram for it before its clients are told: so the first of them had its second."""

MAX_PEERS = 1000
"""Addresses that are asked; and as many more of those that no list has."""


class Peer:
    """Another instance, or an address where one is to be."""

    __slots__ = (
        "_rate",
        "_second",
        "_sent",
        "address",
        "asked",
        "heard",
        "ports",
        "round_trip",
        "server_id",
        "sought",
        "state",
        "unlisted",
    )

    def __init__(self, address: Address, rate: int) -> None:
        self._rate = rate
        self._second = 0
        self._sent = 0
        self.address = address
        self.asked: tuple[int, ...] = ()
        """``Envelope.time`` of the last HELLOs to it that it did not answer."""
        self.heard = False
        """Whether it ever answered."""
        self.sought: int | None = None
        """HELLOs to it since a client's datagram found it silent; None: none did since it last answered."""
        self.unlisted = False
        """No list has it, or no longer: it has asked us, or it leaves. It is there for as long as it answers."""
        self.server_id = b""
        self.state: State = "ready"
        self.ports: tuple[int, ...] = ()
        self.round_trip = 0.0
        """Seconds; of its last answer."""

    @property
    def silent(self) -> bool:
        """Whether it leaves unanswered what it was asked."""
        return len(self.asked) >= UNANSWERED

    @property
    def lives(self) -> bool:
        """Whether it has answered, and is not silent now."""
        return self.heard and not self.silent

    def seek(self) -> None:
        """A client's datagram has come for it. Where it may be dead, that tells that it's not us who are cut off."""
        if self.sought is None and len(self.asked) >= UNANSWERED - IN_VAIN:
            self.sought = 0

    def spend(self, now: float) -> bool:
        """Count a datagram that is to be sent to it; False where it has had as many as it may in this second."""
        second = int(now)
        if second != self._second:
            self._second, self._sent = second, 0
        self._sent += 1
        return self._sent <= self._rate

    def ask(self, time: int) -> None:
        """A HELLO of this time (``Envelope.time``) goes to it."""
        self.asked = (*self.asked[1 - UNANSWERED :], time)
        if self.sought is not None:
            self.sought += 1

    def port(self, ours: int, index: int) -> int | None:
        """The port of its listener that stands for ours, which is the one with *index*: the same, or the one in the same place.

        None where it has none.
        """
        ports = self.ports
        if ours in ports:
            return ours
        return ports[index] if index < len(ports) else None


class Peers:
    """All of them. *own* is our server ID: an address where it answers is our own. *rate* is of datagrams a second to each."""

    def __init__(self, own: bytes, rate: int) -> None:
        self.rate = rate
        """Of those that come from now on."""
        self.own = own
        self._by_address: dict[Address, Peer] = {}
        self._by_server_id: dict[bytes, Peer] = {}
        self._rounds = 0
        self.wanted = False
        """Whether there are to be any, be their addresses known or not."""
        self.left_out = 0
        """Addresses beyond ``MAX_PEERS``."""

    def replace(self, addresses: Iterable[Address]) -> None:
        """These are the addresses from now on; what is known of those that stay is kept.

        One that goes and lives is asked for as long as it answers: who drains may have left the name of all, and its connections go on.
        """
        wanted = list(dict.fromkeys(addresses))
        self.left_out = max(0, len(wanted) - MAX_PEERS)
        before = self._by_address
        if not before.keys() >= set(wanted):
            self._rounds = 0
        self._by_address = {address: before.get(address) or Peer(address, self.rate) for address in wanted[:MAX_PEERS]}
        for peer in self._by_address.values():
            peer.unlisted = False
        left = [peer for address, peer in before.items() if address not in self._by_address and peer.server_id != self.own]
        for peer in [peer for peer in left if peer.lives or peer.unlisted][-MAX_PEERS:]:
            peer.unlisted = True
            self._by_address[peer.address] = peer
        self._reckon()

    def notice(self, address: Address, server_id: bytes) -> None:
        """Somebody with our keys has asked from *address*. An instance that no list of ours has is asked too, and is there once it answers.

        So whoever begins after another one has left the name of all hears of it, as that one asks those that the name has.
        """
        if address in self._by_address or server_id in {b"", self.own} or len(self._by_address) >= 2 * MAX_PEERS:
            return
        peer = self._by_address[address] = Peer(address, self.rate)
        peer.unlisted = True

    def begin_round(self) -> list[Peer]:
        """Who is to be sent a HELLO now, once in ``ASK_EVERY``: all, since another may have come where we were.

        Those that no list has, and that answer no more, are forgotten.
        """
        self._rounds = self._rounds + 1 if self._by_address else 0
        gone = [address for address, peer in self._by_address.items() if peer.unlisted and peer.silent]
        for address in gone:
            del self._by_address[address]
        if gone:
            self._reckon()
        return self.to_ask()

    def _reckon(self) -> None:
        self._by_server_id = {
            server_id: peer for server_id, peer in self._by_server_id.items() if self._by_address.get(peer.address) is peer
        }

    def others(self) -> list[Peer]:
        """All but for ourselves, whom our own list may well have, and for those that have only asked yet."""
        return [
            peer
            for peer in self._by_address.values()
            if (not self.own or peer.server_id != self.own) and (peer.server_id or not peer.unlisted)
        ]

    def to_ask(self) -> list[Peer]:
        """All that are asked who they are."""
        return list(self._by_address.values())

    def heard(self, address: Address, hello: Hello, at: int) -> Peer | None:
        """An answer came from *address*, at *at* by the clock that our HELLO told (µs). None: it answers nothing that was asked."""
        peer = self._by_address.get(address)
        if peer is None or hello.answers not in peer.asked:
            return None
        peer.asked = peer.asked[peer.asked.index(hello.answers) + 1 :]
        peer.heard, peer.sought = True, None
        peer.round_trip = max(0, at - hello.answers) / 1e6
        if peer.server_id != hello.server_id and self._by_server_id.get(peer.server_id) is peer:
            del self._by_server_id[peer.server_id]
        peer.server_id, peer.state, peer.ports = hello.server_id, hello.state, hello.ports
        if hello.server_id and hello.server_id != self.own:
            other = self._by_server_id.get(hello.server_id)
            if other is None or not other.lives or (other.unlisted and not peer.unlisted):
                self._by_server_id[hello.server_id] = peer
        return peer

    def living(self, server_id: bytes) -> Peer | None:
        """The peer of this server ID; None where there is none, or it is dead."""
        peer = self._by_server_id.get(server_id)
        return peer if peer is not None and peer.lives else None

    def seek(self, server_id: bytes) -> bool:
        """Whether it lives, for a client's datagram that has come for it."""
        peer = self._by_server_id.get(server_id)
        if peer is None:
            return False
        peer.seek()
        return peer.lives

    def is_gone(self, server_id: bytes) -> bool:
        """Whether nobody has this server ID: it is dead, and sought in vain; or it is unknown although all have had time to say theirs.

        Who was cut off takes all for dead when it is back, and it has to ask them before its word counts.
        """
        peer = self._by_server_id.get(server_id)
        if peer is not None:
            return peer.silent and peer.sought is not None and peer.sought >= IN_VAIN
        return self._rounds > UNANSWERED
