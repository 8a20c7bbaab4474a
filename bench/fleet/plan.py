"""What happens to a fleet: instances that come and go, clients that connect and move, keys that change, tables that are lost. Pure.

Everything is drawn beforehand from one seed, so that each balancer sees the same: the same connections, datagrams and changes.
"""

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from random import Random

from proxy.message import Address

NEVER = float("inf")


@dataclass(frozen=True, slots=True)
class Plan:
    """A run. Times in seconds."""

    instances: int = 100
    connections: int = 100_000
    duration: float = 600.0
    lifetime: float = 120.0
    """Mean of a connection's, drawn from an exponential distribution."""
    gap: float = 10.0
    """Mean time between two datagrams of a connection."""
    movers: float = 0.1
    """Share of clients whose address changes now and then: phones, and those behind a NAT that forgets."""
    stay: float = 60.0
    """Mean time for which those keep an address."""
    churn: float = 20.0
    """Every so often one instance is drained or dies, by turns, and another joins."""
    drain: float = 60.0
    """An instance that is drained ends so much later."""
    rotation: float = 200.0
    """When instances begin to give connection IDs of the next key."""
    renewal: float = 10.0
    """Within so long after that, a connection's client has an ID of the next key."""
    loss: float = 400.0
    """When the tier is restarted and has lost its tables."""
    seed: int = 1


class Kind(Enum):
    """What happens."""

    JOIN = "joins"
    DRAIN = "is drained"
    DIE = "dies"
    ROTATE = "the next key begins"
    FORGET = "the tier loses its tables"
    INITIAL = "a client's first packet"
    HANDSHAKE = "its second, to the connection ID that it was given"
    PACKET = "one of its later packets"


@dataclass(order=True, frozen=True, slots=True)
class Happening:
    """One, at a time; *of* an instance or a connection."""

    at: float
    number: int
    """Their order at one time."""
    kind: Kind = field(compare=False)
    of: int = field(compare=False, default=-1)


@dataclass(slots=True)
class Client:
    """One connection, as its client has it."""

    number: int
    address: Address
    original: bytes
    """The destination connection ID of its first packet."""
    moves_at: float
    renewed_at: float
    ends_at: float
    home: int = -1
    """The instance that it began with; -1 before."""
    cid: bytes = b""
    """What the instance had it use."""
    epoch: int = -1
    """The key under which that was made."""


class World:
    """All that happens, in its order, and the clients that it happens to."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._random = Random(plan.seed)
        self.clients: list[Client] = []
        self._queue: list[Happening] = []
        self._count = 0

    def happenings(self) -> Iterator[Happening]:
        """In the order of time."""
        plan, random = self.plan, self._random
        for number in range(plan.instances):
            self._put(0.0, Kind.JOIN, number)
        self._churn()
        self._put(plan.rotation, Kind.ROTATE)
        self._put(plan.loss, Kind.FORGET)
        for at in sorted(random.uniform(1.0, plan.duration) for _ in range(plan.connections)):
            self._put(at, Kind.INITIAL, len(self.clients))
            moves_at = at + random.expovariate(1 / plan.stay) if random.random() < plan.movers else NEVER
            renewed_at = plan.rotation + random.uniform(0.0, plan.renewal)
            ends_at = at + random.expovariate(1 / plan.lifetime)
            self.clients.append(Client(len(self.clients), self._address(), random.randbytes(8), moves_at, renewed_at, ends_at))
        while self._queue:
            happening = heapq.heappop(self._queue)
            if happening.kind in (Kind.INITIAL, Kind.HANDSHAKE, Kind.PACKET):
                self._prepare(happening)
            yield happening

    def _churn(self) -> None:
        plan = self.plan
        at, leaving, joining = plan.churn, 0, plan.instances
        while at < plan.duration:
            if leaving % 2:
                self._put(at, Kind.DIE, leaving)
            else:
                self._put(at, Kind.DRAIN, leaving)
                self._put(at + plan.drain, Kind.DIE, leaving)
            self._put(at, Kind.JOIN, joining)
            at, leaving, joining = at + plan.churn, leaving + 1, joining + 1

    def _prepare(self, happening: Happening) -> None:
        """The client where it is by now, and when it sends again."""
        plan, random, client = self.plan, self._random, self.clients[happening.of]
        if happening.at >= client.moves_at:
            client.address = self._address()
            client.moves_at = happening.at + random.expovariate(1 / plan.stay)
        if happening.kind is Kind.INITIAL:
            self._put(happening.at + 0.05, Kind.HANDSHAKE, client.number)
        else:
            then = happening.at + random.expovariate(1 / plan.gap)
            if then < min(client.ends_at, plan.duration):
                self._put(then, Kind.PACKET, client.number)

    def _put(self, at: float, kind: Kind, of: int = -1) -> None:
        self._count += 1
        heapq.heappush(self._queue, Happening(at, self._count, kind, of))

    def _address(self) -> Address:
        random = self._random
        return f"{random.randint(1, 223)}.{random.randrange(256)}.{random.randrange(256)}.{random.randrange(1, 255)}", random.randint(
            1024, 65535
        )
