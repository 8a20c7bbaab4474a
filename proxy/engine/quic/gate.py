"""What becomes of a client's first packet: a handshake, a Retry, a refusal, or nothing. One piece for all engines.

Counts the handshakes in progress, in all and by network, and knows how many there may be. Keeps nothing for a client that it sends away,
so that a flood from addresses that are not the sender's own costs no memory. Knows no connections but by their handles.

Who brings a token of ours has proven its address. With ``auto``, who has not may take a quarter of either bound; from there on it is asked
to. So a flood of spoofed Initials, were it from everywhere or in the name of one network, leaves the rest to those who answer a Retry.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_address

from proxy.engine.quic import packets
from proxy.engine.quic.ids import Minter
from proxy.engine.quic.retry import Refusal, Tokens
from proxy.engine.quic.settings import QuicSettings
from proxy.engine.seam import FirstPackets, Handle
from proxy.keys import Keyring
from proxy.message import Address

HANDSHAKES = "handshakes"
HANDSHAKES_PER_NETWORK = "handshakes_per_network"
LIMITS = (HANDSHAKES, HANDSHAKES_PER_NETWORK)
"""What may be hit: labels of a metric, and names in the configuration."""

VALID = "valid"
RESULTS = (VALID, *Refusal)
"""What a token may be found to be: labels of a metric."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """A client that may begin its handshake."""

    original: bytes
    """The destination ID of its very first packet: the root of the connection's keys, and of its affinity."""
    retry_source: bytes | None
    """The source ID of the Retry packet that it answers: its address is proven. None where there was none."""


class Gate:
    """Judges first packets, and counts from ``enter`` to ``leave`` the handshakes in progress."""

    def __init__(
        self, settings: QuicSettings, keys: Keyring, mint: Minter, random_bytes: Callable[[int], bytes], wall: Callable[[], float]
    ) -> None:
        self._settings = settings
        self._mint = mint
        self._tokens = Tokens(keys, random_bytes)
        self._wall = wall
        self._pressure = Pressure(settings.retry_from, settings.handshake_timeout)
        self._networks: dict[bytes, int] = {}
        self._inside: dict[Handle, bytes] = {}
        self._retries = 0
        self._results: Counter[str] = Counter()
        self._limits_hit: Counter[str] = Counter()

    @property
    def handshakes(self) -> int:
        """Handshakes in progress."""
        return len(self._inside)

    def judge(self, header: packets.LongHeader, peer: Address, now: float, *, may_answer: bool) -> Arrival | bytes | None:
        """What to do with an Initial that belongs to no connection: let its client in, or send this answer, or drop it.

        *may_answer*: this batch of datagrams has an answer left.
        """
        token, destination = header.token, header.destination
        network = network_of(peer[0])
        if token:
            opened = self._tokens.open(token, peer, destination, self._wall())
            if not isinstance(opened, Refusal):
                self._results[VALID] += 1
                self._pressure.answered(opened)
                return None if self._hits_limit(network) else Arrival(opened, destination)
            self._results[opened] += 1
            if opened is not Refusal.UNKNOWN:
                # It answers a Retry and will not take another: it is told at once that this attempt is over (section 8.1.2).
                return packets.refusal(header, self._mint()[0], packets.INVALID_TOKEN) if may_answer else None
        if len(destination) < packets.MIN_CLIENT_DCID:
            return None
        if self._asks(network, now):
            self._pressure.asked(destination)
            return self._retry(header, peer) if may_answer else None
        return None if self._hits_limit(network) else Arrival(destination, None)

    def enter(self, handle: Handle, host: str) -> None:
        """A handshake began, with a client that was let in."""
        network = self._inside[handle] = network_of(host)
        self._networks[network] = self._networks.get(network, 0) + 1

    def leave(self, handle: Handle, *, complete: bool) -> None:
        """It is over; *complete* or not."""
        network = self._inside.pop(handle)
        if not complete:
            self._pressure.failed()
        left = self._networks[network] - 1
        if left:
            self._networks[network] = left
        else:
            del self._networks[network]

    def first_packets(self, now: float) -> FirstPackets:
        """See ``seam.Endpoint``."""
        asking = self._settings.retry == "always" or (self._settings.retry == "auto" and self._pressure.on(self.handshakes, now))
        tokens = {str(result): self._results[result] for result in RESULTS}
        return FirstPackets(self._retries, tokens, {limit: self._limits_hit[limit] for limit in LIMITS}, asking)

    def _asks(self, network: bytes, now: float) -> bool:
        """A client that brings no token has to prove its address."""
        settings = self._settings
        if settings.retry != "auto":
            return settings.retry == "always"
        return self._pressure.on(self.handshakes, now) or self._networks.get(network, 0) >= settings.retry_from_network

    def _retry(self, header: packets.LongHeader, peer: Address) -> bytes:
        self._retries += 1
        source = self._mint()[0]
        return packets.retry(header, source, self._tokens.seal(peer, header.destination, source, self._wall()))

    def _hits_limit(self, network: bytes) -> bool:
        if self.handshakes >= self._settings.handshakes:
            self._limits_hit[HANDSHAKES] += 1
        elif self._networks.get(network, 0) >= self._settings.handshakes_per_network:
            self._limits_hit[HANDSHAKES_PER_NETWORK] += 1
        else:
            return False
        return True


class Pressure:
    """Whether everybody has to prove their address: on from *high* handshakes that stand there or were for nothing.

    For nothing were, within a *window* of so many seconds, those that failed: a flood of packets that are not even authentic, or that TLS
    refuses, leaves none in progress and costs as much. And those that were not begun, since who was asked did not answer: while it is on, a
    flood of spoofed packets leaves nothing else to count. It goes off after a window in which all of these were less than half of *high*.
    So it stays on for a window at least, and however many clients that do answer never keep it on.
    """

    def __init__(self, high: int, window: float) -> None:
        self._high = high
        self._window = window
        self._on = False
        self._began = 0.0
        self._failed = 0
        self._asked: set[bytes] = set()  # by the destination ID of their first packets, of which one client may send several

    def on(self, handshakes: int, now: float) -> bool:
        """Whether it is on at *now*, in seconds, with so many *handshakes* in progress."""
        passed = now - self._began
        load = handshakes + self._failed + len(self._asked)
        if passed >= self._window:
            if self._on:
                self._on = 2 * (load if passed < 2 * self._window else handshakes) >= self._high  # in a window unseen, nobody came
            self._begin(now)
            load = handshakes
        if not self._on and load >= self._high:
            self._on = True
            self._begin(now)
        return self._on

    def failed(self) -> None:
        """A handshake ended before it was complete."""
        self._failed += 1

    def asked(self, original: bytes) -> None:
        """A client was asked to prove its address, or would have been had there been room for the answer."""
        if len(self._asked) < self._high:  # more of them change nothing
            self._asked.add(original)

    def answered(self, original: bytes) -> None:
        """It proved it."""
        self._asked.discard(original)

    def _begin(self, now: float) -> None:
        self._began = now
        self._failed = 0
        self._asked.clear()


def network_of(host: str) -> bytes:
    """The network that an address is counted with: an IPv4 /24 or an IPv6 /48, as 3 or 6 bytes.

    These are the longest prefixes that the Internet routes, so who commands addresses at will, commands no less; and an IPv6 site may
    have a /48 to itself (RFC 6177): finer networks would let one site count as thousands.
    """
    address = ip_address(host)
    packed = (getattr(address, "ipv4_mapped", None) or address).packed
    return bytes(packed[:3] if len(packed) == 4 else packed[:6])
