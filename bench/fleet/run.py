"""One balancer through all that a plan brings: what became of the connections."""

from collections import Counter
from dataclasses import dataclass, field

from balancer.quic_lb import Codec, Layout
from bench.fleet.balancers import Balancer
from bench.fleet.plan import Client, Kind, Plan, World

BUCKET = 10.0
"""Seconds that one point of a curve stands for."""

VERSION = b"\0\0\0\1"
INITIAL, HANDSHAKE, SHORT = 0xC3, 0xE3, 0x43
PADDING = bytes(1200)


@dataclass
class Outcome:
    """What became of the connections of one run."""

    name: str
    spoken_of: str
    ours: bool = False
    began: int = 0
    """Connections that got to an instance."""
    ended_with_instance: int = 0
    """Those whose instance died: nobody could have kept them."""
    broken: int = 0
    """Those of which a datagram came to another instance than theirs, which lived."""
    forwarded: int = 0
    """Datagrams that came to another instance and were handed on."""
    datagrams: int = 0
    curve: list[int] = field(default_factory=list)
    """Connections broken by the end of each bucket of time."""
    spread: float = 0.0
    """New connections of the instance that got most over the mean, of those that were there all the time."""

    @property
    def kept(self) -> float:
        """Share of the connections that stayed with their instance, of those whose instance lived."""
        could = self.began - self.ended_with_instance
        return (could - self.broken) / could if could else 0.0


class Instances:
    """The instances' side: connection IDs that they give."""

    def __init__(self, layouts: list[Layout]) -> None:
        self._codecs = [Codec(layout) for layout in layouts]
        self.epoch = 0
        self.alive: set[int] = set()
        self._nonce = 0

    def mint(self, instance: int) -> bytes:
        """A connection ID of *instance* under the present key."""
        codec = self._codecs[self.epoch]
        self._nonce += 1
        layout = codec.layout
        return codec.encode(instance.to_bytes(layout.server_id_bytes), self._nonce.to_bytes(layout.nonce_bytes), slot=self._nonce % 4)

    def home_of(self, cid: bytes) -> int | None:
        """Which living instance *cid* names."""
        for codec in self._codecs:
            if cid and cid[0] >> 5 == codec.layout.config_id:
                instance = int.from_bytes(codec.decode(cid).server_id)
                return instance if instance in self.alive else None
        return None


def run(plan: Plan, balancer: Balancer, layouts: list[Layout], *, forwarding: bool = False) -> Outcome:
    """Play *plan* to *balancer*. *layouts*: of the connection IDs before and after the rotation. *forwarding*: instances forward what is
    not theirs, as ``cluster.peers`` has them do."""
    return _Run(plan, balancer, Instances(layouts), forwarding=forwarding).play()


class _Run:
    def __init__(self, plan: Plan, balancer: Balancer, instances: Instances, *, forwarding: bool) -> None:
        self._plan = plan
        self._balancer = balancer
        self._instances = instances
        self._forwarding = forwarding
        name, spoken_of = balancer.name, balancer.spoken_of
        if forwarding:
            name, spoken_of = f"{name}; instances forward", f"{spoken_of}; an instance forwards what is another's (`cluster.peers`)"
        self._outcome = Outcome(name, spoken_of, ours=balancer.ours or forwarding)
        self._began: Counter[int] = Counter()
        self._over: set[int] = set()

    def play(self) -> Outcome:
        plan, outcome = self._plan, self._outcome
        world = World(plan)
        for happening in world.happenings():
            now, kind, of = happening.at, happening.kind, happening.of
            while len(outcome.curve) < min(now, plan.duration) // BUCKET:
                outcome.curve.append(outcome.broken)
            if kind in (Kind.INITIAL, Kind.HANDSHAKE, Kind.PACKET):
                if of not in self._over and not self._deliver(world.clients[of], kind, now):
                    self._over.add(of)
            else:
                self._tell(kind, of, now)
        outcome.curve.append(outcome.broken)
        steady = [self._began[instance] for instance in self._instances.alive if instance < plan.instances]
        if any(steady):
            outcome.spread = max(steady) / (sum(steady) / len(steady))
        return outcome

    def _tell(self, kind: Kind, instance: int, now: float) -> None:
        balancer, instances = self._balancer, self._instances
        if kind is Kind.JOIN:
            instances.alive.add(instance)
            balancer.join(instance, now)
        elif kind is Kind.DRAIN:
            balancer.drain(instance, now)
        elif kind is Kind.DIE:
            instances.alive.discard(instance)
            balancer.die(instance, now)
        elif kind is Kind.ROTATE:
            instances.epoch = 1
            balancer.rotate(now)
        else:
            balancer.forget(now)

    def _deliver(self, client: Client, kind: Kind, now: float) -> bool:
        """One datagram on its way; False: its connection is over."""
        balancer, instances, outcome = self._balancer, self._instances, self._outcome
        outcome.datagrams += 1
        if kind is Kind.INITIAL:
            home = balancer.route(_long(INITIAL, client.original, client), client.address, now)
            if home is None or home not in instances.alive:
                return False
            client.home, client.cid, client.epoch = home, instances.mint(home), instances.epoch
            outcome.began += 1
            self._began[home] += 1
            return True
        if client.home not in instances.alive:
            outcome.ended_with_instance += 1
            return False
        if client.epoch < instances.epoch and now >= client.renewed_at:
            client.cid, client.epoch = instances.mint(client.home), instances.epoch
        data = _long(HANDSHAKE, client.cid, client) if kind is Kind.HANDSHAKE else b"%c%b%b" % (SHORT, client.cid, PADDING[:30])
        to = balancer.route(data, client.address, now)
        if self._forwarding and to != client.home and to in instances.alive:
            to = instances.home_of(client.cid)
            outcome.forwarded += 1
        if to != client.home:
            outcome.broken += 1
            return False
        return True


def _long(first: int, destination: bytes, client: Client) -> bytes:
    source = client.number.to_bytes(8)
    head = b"%c%b%c%b%c%b\0\x44\xd0" % (first, VERSION, len(destination), destination, len(source), source)
    return head + PADDING[len(head) :]
