"""The L4 tier: from its models to the listeners of the Snapshot, and the pools of their instances."""

from collections.abc import Mapping
from math import inf

from balancer.pool import Member, PoolSettings
from balancer.pool import Pool as BalancerPool
from proxy.config.compile_pool import Services, populate
from proxy.config.model_l4 import Instances as InstancesModel
from proxy.config.model_l4 import L4Listener as ListenerModel
from proxy.policy.key import KeySource
from proxy.snapshot import HealthCheck, Instances, L4Listener, Pool, UpstreamConnections

NAME = "l4 "
"""Begins the names of these pools, which no other pool's name can: it has a space."""

DRAINING = 503
"""The status by which an instance says that it takes nothing new."""


def compile_l4(model: ListenerModel, *, secret: bytes, seed: int, services: Services) -> L4Listener:
    """The listener. *secret* keys the ring; all tiers in front of the same instances are to have the same."""
    host, port = model.address
    name = f"{NAME}[{host}]:{port}" if ":" in host else f"{NAME}{host}:{port}"

    def instances(of: InstancesModel, suffix: str = "") -> Instances:
        return _instances(name + suffix, of, tcp="tcp" in model.protocols, secret=secret, seed=seed, services=services)

    by_name = {}
    for route in model.routes:
        made = instances(route.instances, f" {route.sni[0]}")
        by_name.update({sni.removeprefix("*"): made for sni in route.sni})
    return L4Listener(
        address=model.address,
        protocols=frozenset(model.protocols),
        initial_key=model.initial_key,
        instances=instances(model.instances),
        sni=by_name,
        table_size=model.tables.size,
        table_lifetime=model.tables.lifetime,
        connect_timeout=model.timeouts.connect,
        idle_timeout=model.timeouts.idle,
    )


def pools_of(listener: L4Listener) -> Mapping[str, Pool]:
    """All pools of a listener, by name."""
    return {instances.pool.name: instances.pool for instances in (listener.instances, *listener.sni.values())}


def addresses_of(model: ListenerModel) -> list[str]:
    """The addresses of all instances, as URLs."""
    return [endpoint.address for each in (model.instances, *(route.instances for route in model.routes)) for endpoint in each.endpoints]


def _instances(name: str, model: InstancesModel, *, tcp: bool, secret: bytes, seed: int, services: Services) -> Instances:  # noqa: PLR0913  # a pool and what it is made with
    health = model.health
    settings = PoolSettings(rise=health.rise, fall=health.fall, probed=True, slow_start=model.slow_start)
    written = tuple(Member(endpoint.address, endpoint.weight) for endpoint in model.endpoints)
    members, endpoints = populate(written, services)
    pool = Pool(
        name=name,
        balancer=BalancerPool(name, members, settings, secret, seed),
        endpoints=endpoints,
        key=KeySource("client_address"),
        pins=False,
        tls=None,
        connections=UpstreamConnections(max_idle=0, idle_timeout=inf, lifetime=inf),
        health=HealthCheck(
            path=health.path,
            host=health.host,
            interval=health.interval,
            jitter=health.jitter,
            timeout=health.timeout,
            statuses=((200, 299),),
            body=None,
            port=health.port,
            draining=(DRAINING,),
            proxy_protocol=tcp and health.port is None,
        ),
        written=written,
    )
    return Instances(
        pool=pool,
        envelope_port=model.envelope_port or 0,
        envelope_ports={endpoint.address: endpoint.envelope_port for endpoint in model.endpoints if endpoint.envelope_port is not None},
        server_ids={endpoint.server_id: endpoint.address for endpoint in model.endpoints if endpoint.server_id is not None},
        nonce=model.nonce,
    )
