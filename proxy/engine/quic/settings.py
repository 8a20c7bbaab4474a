"""What an operator may change about QUIC, and the bounds that stand."""

from dataclasses import dataclass

from balancer.quic_lb import SLOTS
from proxy.engine.quic.ids import Routable

MIN_DATAGRAM = 1200
"""Smallest datagram with a client's Initial, and what every path carries (RFC 9000, section 14)."""

CONGESTION_CONTROLS = ("auto", "bbr", "cubic", "reno")

CERTIFICATE_COMPRESSIONS = ("brotli", "zlib")
"""Best first (RFC 8879)."""

RETRY = ("auto", "always", "never")

RETRY_SHARE = 4
"""With ``retry: auto``, addresses that nobody has checked take one part in so many of the handshakes in progress, and clients that have
proven theirs the rest."""


@dataclass(frozen=True, slots=True)
class QuicSettings:
    """Settings of one endpoint. Times in seconds, sizes in bytes."""

    idle_timeout: float = 30.0
    """Without a packet from the client; the client may ask for less (RFC 9000, section 10.1)."""
    handshake_timeout: float = 10.0
    """From the first datagram to a completed handshake."""
    keep_alive: float = 0.0
    """Without a packet from a client with a request in progress before it is sent a PING; 0 means never. The first PING that it does
    not answer leaves it ``idle_timeout`` (RFC 9000, section 10.1)."""
    keep_alive_idle: bool = False
    """Whether clients without a request are sent PINGs too."""
    handshakes: int = 1000
    """Handshakes in progress at any time; what comes beyond is dropped, and the client's retransmission tries again."""
    handshakes_per_network: int = 250
    """The same for one network of clients: an IPv4 /24 or an IPv6 /48 (``gate.network_of``)."""
    retry: str = "auto"
    """Whether clients have to prove their address first (RFC 9000, section 8.1.2), by a round trip more: ``always``, ``never``, or
    ``auto``: while handshakes are in progress or failed of late beyond ``retry_from``, or are in progress with the client's network
    beyond ``retry_from_network``."""
    connections: int = 100_000
    """Connections alive at any time, handshakes included; what comes beyond is refused."""
    max_datagram_size: int | None = None
    """UDP payload sent, at most. 1200 passes every path. An engine that looks for what the path carries goes up to this, or as far as the
    link goes where it is None; for another one, more needs a network that is known, and None is 1200."""
    congestion_control: str = "auto"
    """``bbr`` (draft-ietf-ccwg-bbr), ``cubic`` (RFC 9438), ``reno`` (RFC 9002), or ``auto``: the engine's best. No engine need have all."""

    certificate_compression: tuple[str, ...] | None = None
    """Algorithms by which certificates go compressed to clients that take one of them, best first; None: all that the engine has."""

    max_stream_window: int = 0
    """What ``EngineLimits.stream_window`` may grow to, where a client uses it up within a round trip or so; less means that it does not."""
    max_connection_window: int = 0
    """The same for ``EngineLimits.connection_window``."""

    key_packets: int = 1 << 22
    """Packets that are sent to a client with the same keys: half of what AES-GCM allows (RFC 9001, section 6.6)."""

    migration: bool = True
    """Whether clients may change their IP address; their port may change always (RFC 9000, section 9)."""

    routable: Routable | None = None
    """The form of our connection IDs, where a balancer in front routes by them."""

    known: tuple[Routable, ...] = ()
    """Forms of other keys, whose IDs are ours too: they were given before a rotation, or will be after the next."""

    slot: int | None = None
    """Of this worker among those that share its port, 0 to 255: it stands in every connection ID, and the kernel steers by it
    (``listen/steering.py``). None: there is no other worker."""

    @property
    def retry_from(self) -> int:
        """Handshakes in progress from which on ``auto`` has everybody prove their address; ``gate.Pressure`` says until when."""
        return -(-self.handshakes // RETRY_SHARE)

    @property
    def retry_from_network(self) -> int:
        """The same for the handshakes, and the clients, of one network."""
        return -(-self.handshakes_per_network // RETRY_SHARE)

    def __post_init__(self) -> None:
        """Raise ValueError for what can't be."""
        if self.max_datagram_size is not None and not MIN_DATAGRAM <= self.max_datagram_size <= 65527:
            msg = f"max_datagram_size must be {MIN_DATAGRAM} to 65527, not {self.max_datagram_size}"
            raise ValueError(msg)
        if self.congestion_control not in CONGESTION_CONTROLS:
            msg = f"congestion_control must be one of {', '.join(CONGESTION_CONTROLS)}, not {self.congestion_control}"
            raise ValueError(msg)
        if self.retry not in RETRY:
            msg = f"retry must be one of {', '.join(RETRY)}, not {self.retry}"
            raise ValueError(msg)
        handshakes = (self.handshake_timeout, self.handshakes, self.handshakes_per_network)
        if min(self.idle_timeout, self.connections, self.key_packets, *handshakes) <= 0:
            msg = "idle_timeout, handshake_timeout, handshakes, handshakes_per_network, connections and key_packets must be more than 0"
            raise ValueError(msg)
        if self.slot is not None and not 0 <= self.slot < SLOTS:
            msg = f"slot must be 0 to {SLOTS - 1}, not {self.slot}"
            raise ValueError(msg)
        if not 0 <= self.keep_alive < self.idle_timeout:
            msg = f"keep_alive must be less than idle_timeout ({self.idle_timeout:g}), not {self.keep_alive:g}"
            raise ValueError(msg)
