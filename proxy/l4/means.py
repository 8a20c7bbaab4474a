"""What a worker gives to its tier."""

from collections.abc import Callable
from dataclasses import dataclass

from proxy.cluster.envelope import HASHED
from proxy.deadlines import Deadlines
from proxy.keys import Keyring
from proxy.listen.bind import Buffers
from proxy.listen.limits import AcceptLimits
from proxy.observe import Log, Metrics
from proxy.upstream.resolve import Addresses


@dataclass(frozen=True, slots=True)
class Means:
    """Everything that a tier needs of the process that it is in."""

    keys: Keyring
    """Its ring's key is that of the hashes, the same in all tiers in front of the same instances."""
    log: Log
    metrics: Metrics
    limits: AcceptLimits
    addresses: Addresses
    relieve: Callable[[], None]
    handshake_timeout: Callable[[], float]
    """Seconds for the first bytes of a connection over TCP."""
    buffers: Buffers
    deadlines: Deadlines
    clock: Callable[[], float]
    wall: Callable[[], float]
    random_bytes: Callable[[int], bytes]
    slot: int = HASHED
    """Of the worker: the steer of answers to it."""
