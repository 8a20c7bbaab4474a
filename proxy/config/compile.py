"""From the checked configuration to the Snapshot that requests see. Pure: what is random, secret or of the clock is an argument.

Everything is resolved here, once: pools, policies, templates, counters. A bad value can't get here; the loader has refused it.
"""

from collections.abc import Callable
from dataclasses import replace

from proxy.config import model_pool, model_server, model_site
from proxy.config.collector import collector_paused
from proxy.config.compile_l4 import compile_l4, pools_of
from proxy.config.compile_pool import Services, compile_pool
from proxy.config.compile_site import Defaults, SiteMeters, compile_site
from proxy.config.load import Configuration
from proxy.engine.seam import EngineLimits
from proxy.observe import Metrics
from proxy.policy.access import Networks
from proxy.policy.forwarded import Forwarding
from proxy.snapshot import Host, Limits, Listener, Overload, Pool, Required, ServerTimeouts, Snapshot
from proxy.sni import Certificate, SniTable, TlsProfile, in_order
from proxy.upstream.names import Service

__all__ = ["adopt", "compile_snapshot", "with_port"]

ALT_SVC_SECONDS = 86400
"""How long a client may remember that there is HTTP/3 (RFC 7838, section 3.1)."""


def _unknown(name: str) -> tuple[Service, ...]:
    del name
    return ()


@collector_paused()
def compile_snapshot(  # noqa: PLR0913  # each is one impure thing that this pure step is given
    configuration: Configuration,
    *,
    metrics: Metrics,
    secret: bytes,
    seed: int,
    generation: int,
    make_request_id: Callable[[], bytes],
    default_certificate: Certificate,
    previous: Snapshot | None = None,
    services: Services = _unknown,
    now: float | None = 0.0,
) -> Snapshot:
    """The snapshot. *default_certificate* serves where ``server.tls`` has none.

    *previous* hands on what outlives a reload: the backends' state (*now*, monotonic, is when), contexts towards backends that are the
    same, and the TLS profiles that listeners know by identity. *now* None leaves the backends' state to a call of ``adopt``, for
    snapshots that may never be used. *services* tells the SRV records of names.
    """
    server = configuration.server
    trusted = Networks(server.trusted_proxies)
    pools = {
        name: compile_pool(
            name,
            pool,
            tls=configuration.upstream_tls.get(name),
            secret=secret,
            seed=seed,
            previous=previous.pools.get(name) if previous is not None else None,
            services=services,
        )
        for name, pool in _all_pools(configuration)
    }
    l4 = tuple([compile_l4(model, secret=secret, seed=seed, services=services) for model in configuration.l4])
    for tier in l4:
        pools.update(pools_of(tier))
    sni = _SniBuilder(previous)
    exact: dict[bytes, Host] = {}
    wildcard: dict[bytes, Host] = {}
    health_path = _health(server.health)
    meters = SiteMeters(metrics)
    defaults = Defaults(health_path=health_path, body_bytes=server.limits.body_size)
    for model, material in zip(configuration.sites, configuration.materials, strict=True):
        site = compile_site(model, pools, material.client_rule, defaults, meters)
        certificate, *others = in_order(material.certificates)
        alternatives = tuple(others)
        for pattern in site.hosts:
            host = Host(pattern, site, meters.host(pattern))
            if pattern.startswith("*."):
                wildcard[pattern[2:].encode()] = host
            else:
                exact[pattern.encode()] = host
            sni.add(TlsProfile(certificate, material.client_rule, pattern, early_data=site.early_data, alternatives=alternatives))
    certificate = configuration.default_certificate or default_certificate
    snapshot = Snapshot(
        generation=generation,
        listeners=tuple(_listener(listener) for listener in server.listeners),
        admin=server.admin.address if isinstance(server.admin, model_server.Admin) else None,
        limits=_limits(server.limits),
        timeouts=ServerTimeouts(**server.timeouts.model_dump()),
        trusted_proxies=trusted,
        forwarding=Forwarding(trusted, make_request_id),
        health_path=health_path,
        sni=sni.table(TlsProfile(certificate, None, "default", is_default=True), refuse_unknown=server.tls.unknown_sni == "refuse"),
        exact_hosts=exact,
        wildcard_hosts=wildcard,
        pools=pools,
        overload=_overload(server.overload),
        required=_required(server.health),
        l4=l4,
    )
    if previous is not None and now is not None:
        adopt(snapshot, previous, now)
    return snapshot


def with_port(listener: Listener, port: int) -> Listener:
    """The listener after it was bound: for a configured port 0, the port that the system chose."""
    if listener.address[1]:
        return listener
    public = listener.public_port or port
    return replace(listener, address=(listener.address[0], port), public_port=public, alt_svc=_alt_svc(listener.protocols, public))


class _SniBuilder:
    """Collects profiles, and takes the previous snapshot's object for one that is equal: listeners keep contexts, and clients tickets."""

    def __init__(self, previous: Snapshot | None) -> None:
        self._previous = previous.sni if previous is not None else None
        self._exact: dict[str, TlsProfile] = {}
        self._wildcard: dict[str, TlsProfile] = {}

    def add(self, profile: TlsProfile) -> None:
        wild = profile.domain.startswith("*.")
        name = profile.domain.removeprefix("*.")
        old = None
        if self._previous is not None:
            old = (self._previous.wildcard if wild else self._previous.exact).get(name)
        (self._wildcard if wild else self._exact)[name] = _same(profile, old)

    def table(self, default: TlsProfile, *, refuse_unknown: bool) -> SniTable:
        old = self._previous.default if self._previous is not None else None
        return SniTable(self._exact, self._wildcard, _same(default, old), refuse_unknown)


def _same(new: TlsProfile, old: TlsProfile | None) -> TlsProfile:
    if old is None:
        return new
    same = (old.certificates, old.client_rule, old.early_data) == (new.certificates, new.client_rule, new.early_data)
    return old if same else new


def _all_pools(configuration: Configuration) -> list[tuple[str, model_pool.Pool]]:
    """Every pool with its full name: ``site/pool``, or the name alone for a shared one."""
    own = [(f"{site.hosts[0]}/{name}", pool) for site in configuration.sites for name, pool in site.pools.items()]
    return [*configuration.pools.items(), *own]


def adopt(new: Snapshot, old: Snapshot, now: float) -> None:
    """Take over the backends' state. The last step, since it changes what the old snapshot shares: nothing can fail after it."""
    for name, pool in new.pools.items():
        before: Pool | None = old.pools.get(name)
        if before is not None:
            pool.balancer.adopt(before.balancer, now)


def _listener(model: model_server.Listener) -> Listener:
    protocols = frozenset(model.protocols)
    public = model.public_port or model.address[1]
    return Listener(
        address=model.address,
        protocols=protocols,
        public_port=public,
        proxy_protocol_from=Networks(model.proxy_protocol.from_) if model.proxy_protocol is not None else None,
        alt_svc=_alt_svc(protocols, public),
        migration=model.migration,
    )


def _alt_svc(protocols: frozenset[str], port: int) -> bytes | None:
    return b'h3=":%d"; ma=%d' % (port, ALT_SVC_SECONDS) if "h3" in protocols and port else None


def _limits(model: model_server.Limits) -> Limits:
    return Limits(
        connections=model.connections,
        connections_per_client=model.connections_per_client,
        connection_rate=model.connection_rate,
        body_bytes=model.body_size,
        engine=EngineLimits(
            streams=model.streams_per_connection,
            header_count=model.header_count,
            header_bytes=model.header_size,
            output=model.output_per_connection,
        ),
        output=model.output,
    )


def _overload(model: model_server.Overload) -> Overload:
    header = model.header.lower().encode() if model.header is not None else None
    return Overload(lag=model.lag, memory=model.memory, exchanges=model.exchanges, header=header)


def _required(model: model_server.ServerHealth | str) -> Required:
    return Required(model.pools_up, model.backends_up) if isinstance(model, model_server.ServerHealth) else Required()


def _health(model: model_site.Health | str) -> bytes | None:
    return model.path.encode() if isinstance(model, model_site.Health) else None
