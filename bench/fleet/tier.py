"""The L4 tier's own code, as it routes in ``proxy/l4``: told of all that happens as health checks and the cluster's greetings tell it."""

from balancer.backend import Backend
from balancer.pool import Member, Outcome, Pool, PoolSettings
from balancer.quic_lb import Codec, Layout
from bench.fleet.plan import Plan
from proxy.l4.routing import InitialKey, Router, RoutingSettings
from proxy.message import Address

SERVER_ID_BYTES, NONCE_BYTES = 4, 8
SPOKEN_OF = {
    "dcid": "qproxy's L4 tier; new connections are dealt by the connection ID that the client made up",
    "client_address": "the same with `initial_key: client_address`; new connections are dealt by the client's address",
}


def layouts() -> list[Layout]:
    """Of the connection IDs before and after the rotation."""
    return [Layout(config, SERVER_ID_BYTES, NONCE_BYTES, slot=True, key=bytes([config + 1]) * 16) for config in range(2)]


class TheTier:
    """A router of the tier with its pool of instances."""

    ours = True

    def __init__(self, plan: Plan, initial_key: InitialKey) -> None:
        self.name = f"L4 tier, {initial_key}"
        self.spoken_of = SPOKEN_OF[initial_key]
        self._settings = RoutingSettings(initial_key)
        self._instances = list(range(plan.instances))
        self._pool = Pool("fleet", [_member(instance) for instance in self._instances], PoolSettings(probed=True), b"fleet", 1)
        self._begin()

    def _begin(self) -> None:
        self._router = Router(self._pool, self._settings, b"fleet")
        self._router.decode_with([Codec(layout) for layout in layouts()])
        self._name()

    def _name(self) -> None:
        self._router.name_instances({instance.to_bytes(SERVER_ID_BYTES): _member(instance).identity for instance in self._instances})

    def join(self, instance: int, now: float) -> None:
        """See ``Balancer``, as for all of these."""
        if instance not in self._instances:
            self._change([*self._instances, instance], now)

    def drain(self, instance: int, now: float) -> None:
        """Its /health says 503."""
        self._pool.drain(self._backend(instance), now)

    def die(self, instance: int, now: float) -> None:
        """Probes find it gone, and then its name no longer stands for it."""
        for _ in range(self._pool.settings.fall):
            self._pool.report(self._backend(instance), Outcome.PROBE_FAILED, now)
        self._change([other for other in self._instances if other != instance], now)

    def rotate(self, now: float) -> None:
        """It has had both keys from the start, as the design asks."""

    def forget(self, now: float) -> None:
        """Another process begins, with empty tables."""
        del now
        self._begin()

    def route(self, data: bytes, client: Address, now: float) -> int | None:
        """Its own decision."""
        found = self._router.route(data, f"{client[0]} {client[1]}".encode(), client[0], now)
        return None if found is None else int(found.identity.rpartition("-")[2])

    def _change(self, instances: list[int], now: float) -> None:
        self._instances = instances
        self._pool = self._pool.with_members([_member(instance) for instance in instances], now)
        self._router.replace(self._pool, self._settings, now)
        self._name()

    def _backend(self, instance: int) -> Backend:
        found = self._pool.find(_member(instance).identity)
        assert found is not None
        return found


def _member(instance: int) -> Member:
    return Member(f"instance-{instance}")
