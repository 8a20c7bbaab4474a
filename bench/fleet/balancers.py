"""Who deals datagrams to instances: plain balancers that know 4-tuples, for comparison."""

from collections import OrderedDict
from hashlib import blake2b
from typing import Protocol

from balancer.ring import Ring, shared_ring
from proxy.message import Address


class Balancer(Protocol):
    """Told of all that happens to the fleet, it says where a datagram goes."""

    name: str
    spoken_of: str
    """What it is, for people."""
    ours: bool

    def join(self, instance: int, now: float) -> None:
        """A new instance takes connections."""

    def drain(self, instance: int, now: float) -> None:
        """It takes no new ones."""

    def die(self, instance: int, now: float) -> None:
        """It is gone."""

    def rotate(self, now: float) -> None:
        """The next key begins."""

    def forget(self, now: float) -> None:
        """A restart: what was kept of flows is lost."""

    def route(self, data: bytes, client: Address, now: float) -> int | None:
        """The instance for a datagram; None: it is dropped."""


def hash_of(client: Address) -> bytes:
    """Of the 4-tuple, whose other half is the same for all."""
    return f"{client[0]} {client[1]}".encode()


class Stateless:
    """4-tuple modulo the number of instances, as equal-cost routes do it."""

    name = "4-tuple, modulo"
    spoken_of = "a hash of addresses and ports, modulo the number of instances: routers with equal-cost paths"
    ours = False

    def __init__(self) -> None:
        self._taking: list[int] = []

    def join(self, instance: int, now: float) -> None:
        """See ``Balancer``, as for all of these."""
        del now
        self._change([*self._taking, instance])

    def drain(self, instance: int, now: float) -> None:
        """No new ones; without a table it can't tell new from old."""
        del now
        self._change([other for other in self._taking if other != instance])

    def die(self, instance: int, now: float) -> None:
        """It is gone."""
        self.drain(instance, now)

    def rotate(self, now: float) -> None:
        """It knows no keys."""

    def forget(self, now: float) -> None:
        """It keeps nothing."""

    def _change(self, taking: list[int]) -> None:
        self._taking = taking

    def route(self, data: bytes, client: Address, now: float) -> int | None:
        """By the client's address and port alone."""
        del data, now
        return self._taking[int.from_bytes(blake2b(hash_of(client), digest_size=8).digest()) % len(self._taking)]


class Consistent(Stateless):
    """4-tuple on a ring, as Maglev and its kin do it."""

    name = "4-tuple, consistent"
    spoken_of = "a consistent hash of addresses and ports"

    def __init__(self) -> None:
        super().__init__()
        self._ring: Ring | None = None

    def _change(self, taking: list[int]) -> None:
        super()._change(taking)
        self._ring = None

    def route(self, data: bytes, client: Address, now: float) -> int | None:
        """By the client's address and port alone."""
        del data, now
        if self._ring is None:
            self._ring = shared_ring(tuple((str(instance), 1) for instance in self._taking), b"fleet")
        return self._taking[self._ring.owners[self._ring.position(hash_of(client))]]


class Tracking(Consistent):
    """4-tuple with a table of flows, as clouds' balancers and the kernel's do it."""

    name = "4-tuple, with a table"
    spoken_of = "a table of flows that are forgotten after two silent minutes, in front of a consistent hash: most clouds' UDP balancers"

    IDLE = 120.0

    def __init__(self) -> None:
        super().__init__()
        self._flows: OrderedDict[Address, tuple[int, float]] = OrderedDict()
        self._alive: set[int] = set()

    def join(self, instance: int, now: float) -> None:
        """See ``Balancer``."""
        super().join(instance, now)
        self._alive.add(instance)

    def die(self, instance: int, now: float) -> None:
        """Its flows are dealt anew."""
        super().die(instance, now)
        self._alive.discard(instance)

    def forget(self, now: float) -> None:
        """The table is lost."""
        del now
        self._flows.clear()

    def route(self, data: bytes, client: Address, now: float) -> int | None:
        """By the table, else by the hash."""
        while self._flows and next(iter(self._flows.values()))[1] < now - self.IDLE:
            self._flows.popitem(last=False)
        instance, _ = self._flows.pop(client, (None, 0.0))
        if instance is None or instance not in self._alive:
            instance = super().route(data, client, now)
        if instance is not None:
            self._flows[client] = (instance, now)
        return instance
