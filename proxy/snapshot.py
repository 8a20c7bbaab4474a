"""The frozen world that a request sees: listeners, certificates, sites, routes, policies, pools.

``config/compile.py`` makes a Snapshot; a worker publishes it by swapping one reference. An exchange keeps the one it began with.
Nothing here changes after it was made, but for what is state by nature: counters and the balancer's pools, which outlive a reload.
"""

import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from balancer.backend import Backend
from balancer.pool import Member
from balancer.pool import Pool as BalancerPool
from proxy.counters import Cell, Histogram
from proxy.engine.seam import EngineLimits
from proxy.message import Address
from proxy.policy.access import Access, Networks
from proxy.policy.answer import Redirect, Respond
from proxy.policy.forwarded import Forwarding
from proxy.policy.headers import HeaderEdit
from proxy.policy.key import KeySource
from proxy.policy.rewrite import PathRewrite
from proxy.route.match import Match
from proxy.route.table import RouteTable
from proxy.sni import ClientCertificateRule, SniTable

TCP_PROTOCOLS = ("h2", "http/1.1")
"""Those that a listener speaks over TCP, in the order of our preference; ``h3`` is over UDP."""


@dataclass(frozen=True, slots=True)
class Listener:
    """One address with its protocols: TCP for ``http/1.1`` and ``h2``, UDP for ``h3``."""

    address: Address
    protocols: frozenset[str]
    public_port: int
    proxy_protocol_from: Networks | None
    """Peers that must begin each TCP connection with a PROXY protocol header; None: nobody."""
    alt_svc: bytes | None
    """The Alt-Svc value for TCP answers, when this listener speaks h3."""
    migration: bool = True
    """Whether clients of h3 may change their address."""

    @property
    def name(self) -> str:
        """``host:port``, for logs and metric labels."""
        host, port = self.address
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    @property
    def tcp(self) -> bool:
        """Whether it has a TCP socket."""
        return not self.protocols.isdisjoint(TCP_PROTOCOLS)

    @property
    def udp(self) -> bool:
        """Whether it has a UDP socket."""
        return "h3" in self.protocols


@dataclass(frozen=True, slots=True)
class L4Listener:
    """One address of the L4 tier: TCP for ``tcp``, UDP for ``quic``. It terminates nothing."""

    address: Address
    protocols: frozenset[str]
    initial_key: Literal["dcid", "client_address"]
    """What new QUIC connections are hashed by."""
    instances: "Instances"
    sni: Mapping[str, "Instances"]
    """Other instances for some names, over TCP; a wildcard by the part behind ``*``."""
    table_size: int
    table_lifetime: float
    connect_timeout: float
    idle_timeout: float

    @property
    def name(self) -> str:
        """``host:port``, for logs and metric labels."""
        host, port = self.address
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    @property
    def tcp(self) -> bool:
        """Whether it has a TCP socket."""
        return "tcp" in self.protocols

    @property
    def udp(self) -> bool:
        """Whether it has a UDP socket."""
        return "quic" in self.protocols

    def select(self, sni: str | None) -> "Instances":
        """The instances for a lower-case SNI: exact, then wildcard (one label), then all others'."""
        if sni is None or not self.sni:
            return self.instances
        return self.sni.get(sni) or self.sni.get("." + sni.partition(".")[2]) or self.instances


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on what clients may take. 0 means off, where that is allowed."""

    connections: int
    connections_per_client: int
    connection_rate: float
    """New connections a second, of all clients; bursts of one second's worth."""
    body_bytes: int
    engine: EngineLimits
    output: int = 256 * 1024 * 1024
    """Bytes of answers that wait in the process; ``engine.output`` of them for one connection."""


LOW, NORMAL, HIGH = 0, 1, 2
CLASSES = ("low", "normal", "high")
"""Classes of requests, by what is turned away first when a worker has too much to do."""


@dataclass(frozen=True, slots=True)
class Overload:
    """How much a worker may have to do before it turns requests away. 0 means off."""

    lag: float = 0.0
    """Seconds that its loop may be behind."""
    memory: int | None = 0
    """Bytes of resident memory; None: what the control group lets it have."""
    exchanges: int = 0
    """Requests in progress."""
    header: bytes | None = None
    """The field in which a request may name its class, in lower case."""


@dataclass(frozen=True, slots=True)
class ServerTimeouts:
    """Listener-side timeouts, in seconds."""

    handshake: float
    header: float
    """From a request's first byte to the end of its head."""
    idle: float
    """Between requests."""
    drain: float
    """From the end of accepting to the end of what is still running."""
    drain_delay: float = 0.0
    """From SIGTERM to the end of accepting: /health says 503 meanwhile."""
    connection_age: float = 0.0
    """From the handshake to GOAWAY, about; 0 means off."""


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Timeouts of one exchange, in seconds; ``total`` 0 means off."""

    connect: float
    response: float
    """From the request's end to the response head."""
    body_idle: float
    """Without a byte moving, either way."""
    total: float
    first: float = field(init=False, compare=False, repr=False)
    """The shortest of those that may end a request once it was taken on."""

    def __post_init__(self) -> None:
        """Work out what follows from the others."""
        object.__setattr__(self, "first", min(self.response, self.body_idle, self.total or self.response))


@dataclass(frozen=True, slots=True)
class Retry:
    """How a request may be tried again."""

    attempts: int
    """Tries in all, the first included."""
    body_bytes: int
    """Request body kept for another try, at most."""


@dataclass(slots=True, eq=False)
class UpstreamTls:
    """How to speak TLS to the endpoints of a pool."""

    context: ssl.SSLContext
    server_name: str | None
    """SNI and name to verify; None: the endpoint's own host."""
    fingerprint: tuple[object, ...]
    """What the context was made from: equal fingerprints mean that connections can be kept over a reload."""


@dataclass(frozen=True, slots=True)
class UpstreamConnections:
    """Keep-alive of connections to one endpoint."""

    max_idle: int
    idle_timeout: float
    lifetime: float


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a backend listens."""

    url: str
    """As configured, normalised: the backend's identity."""
    secure: bool
    host: str
    """Name or IP address (no brackets); for a unix socket ``localhost``."""
    port: int
    unix_path: str | None
    tls_name: str | None = None
    """The name to verify; None: the host. Another one where DNS told of the host: whoever forges that is not to choose the name too."""

    @property
    def authority(self) -> bytes:
        """What stands in Host for it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        default = 443 if self.secure else 80
        return (host if self.unix_path or self.port == default else f"{host}:{self.port}").encode()


@dataclass(slots=True, eq=False)
class Pool:
    """A pool as the data path sees it: the balancer's part and how to reach its endpoints. Both are replaced when DNS has others."""

    name: str
    balancer: BalancerPool
    endpoints: Mapping[str, "Endpoint"]
    """By backend identity (the endpoint's URL)."""
    key: KeySource
    pins: bool
    """The choice holds for a connection: consistent_hash on a key that is fixed for it."""
    tls: UpstreamTls | None
    """Set when at least one endpoint is https."""
    connections: UpstreamConnections
    health: "HealthCheck | None"
    written: tuple[Member, ...] = ()
    """The endpoints as configured; one of them may stand for several (``srv+http://NAME``)."""
    departed: Mapping[str, "Endpoint"] | None = None
    """Endpoints that DNS no longer has, for exchanges that had chosen them; None: there were none."""

    def endpoint(self, identity: str) -> "Endpoint":
        """That of a backend which is in the pool, or was when it was chosen."""
        found = self.endpoints.get(identity)
        if found is None:
            assert self.departed is not None
            found = self.departed[identity]
        return found


@dataclass(frozen=True, slots=True, eq=False)
class Instances:
    """A pool of instances behind the L4 tier, with what a pool of backends has not."""

    pool: Pool
    envelope_port: int
    """0: they get no datagrams."""
    envelope_ports: Mapping[str, int]
    """By identity, of those that have another."""
    server_ids: Mapping[bytes, str]
    """Server IDs of the configuration, to the identities of their instances."""
    nonce: int
    """Bytes of the nonce in their connection IDs."""


@dataclass(frozen=True, slots=True)
class HealthCheck:
    """Active probing of a pool's endpoints."""

    path: str
    host: str | None
    interval: float
    jitter: float
    """Share of the interval by which each probe is moved at random, 0 to 1."""
    timeout: float
    statuses: tuple[tuple[int, int], ...]
    """Inclusive ranges that count as healthy."""
    body: str | None
    """Text that must occur in the first 64 KiB of the body."""
    port: int | None = None
    """Where it is asked for; None: the endpoint's own port."""
    draining: tuple[int, ...] = ()
    """Statuses that say: nothing new, please, but what is there goes on."""
    proxy_protocol: bool = False
    """Whether a PROXY protocol header stands before the request, as before all connections there."""


@dataclass(slots=True, eq=False)
class RouteCounters:
    """Plain counters of one route."""

    statuses: tuple[Cell, Cell, Cell, Cell, Cell, Cell]
    """By status // 100; [0]: ended without an answer."""
    bytes_in: Cell
    bytes_out: Cell
    seconds: Histogram


@dataclass(frozen=True, slots=True)
class Forward:
    """Send the request to a pool."""

    pool: Pool
    rewrite: PathRewrite | None
    host: bytes | None
    """The Host sent upstream: None keeps the client's; ``b""`` takes the endpoint's own."""


@dataclass(frozen=True, slots=True, eq=False)
class Route:
    """One route, everything resolved."""

    name: str
    """``site/index``, the metric's label; ``describe`` has more."""
    match: Match
    action: Forward | Redirect | Respond
    access: Access | None
    request_headers: HeaderEdit | None
    response_headers: HeaderEdit | None
    timeouts: Timeouts
    retry: Retry
    body_bytes: int
    counters: RouteCounters
    priority: int = NORMAL
    """The class of its requests."""


@dataclass(frozen=True, slots=True, eq=False)
class Site:
    """One site: its hosts share routes and rules."""

    name: str
    hosts: tuple[str, ...]
    routes: "RouteTable[Route]"
    health_path: bytes | None
    """None: switched off here."""
    client_rule: ClientCertificateRule | None
    early_data: bool = False
    """Whether its requests may go to a backend before the end of the handshake."""


@dataclass(frozen=True, slots=True, eq=False)
class Host:
    """One configured host name: its site and its request counters."""

    pattern: str
    site: Site
    requests: Mapping[str, Cell]
    """By version: ``HTTP/1.1``, ``HTTP/2``, ``HTTP/3``."""


@dataclass(frozen=True, slots=True)
class Required:
    """What has to be up for the health answer to be 200."""

    pools: float = 0.0
    """Share of the pools, 0 to 1; 0: it does not depend on them."""
    backends: float = 0.0
    """Share of its backends that a pool needs to count as up, and one at least."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The whole configuration, compiled."""

    generation: int
    listeners: tuple[Listener, ...]
    admin: Address | None
    limits: Limits
    timeouts: ServerTimeouts
    trusted_proxies: Networks
    forwarding: Forwarding
    health_path: bytes | None
    """For authorities of no site."""
    sni: SniTable
    exact_hosts: Mapping[bytes, Host]
    wildcard_hosts: Mapping[bytes, Host]
    """Key: the part behind ``*.``."""
    pools: Mapping[str, Pool]
    """Keyed by name; a pool of a site is ``site/pool``."""
    overload: Overload = field(default_factory=Overload)
    required: Required = field(default_factory=Required)
    l4: tuple[L4Listener, ...] = ()
    """Listeners of the L4 tier; their pools are among ``pools``."""

    @property
    def sockets(self) -> tuple[Listener | L4Listener, ...]:
        """Everything that has sockets of its own, in the order in which they are bound and handed over."""
        return (*self.listeners, *self.l4)

    def find_backend(self, pool: str, identity: str) -> tuple[BalancerPool, Backend] | None:
        """What other processes name by name: the pool's balancer and its backend; None where there is none such any more."""
        found = self.pools.get(pool)
        backend = found.balancer.find(identity) if found is not None else None
        return None if found is None or backend is None else (found.balancer, backend)

    def find_host(self, host: bytes) -> Host | None:
        """The configured host for a lower-case host name: exact, then wildcard (one label)."""
        return self.exact_hosts.get(host) or self.wildcard_hosts.get(host.partition(b".")[2])

    def answers_health(self, host: Host | None, path: bytes) -> bool:
        """Whether *path* (with its query) is for the health answer: of *host*'s site, or of the server where no site has the authority."""
        wanted = host.site.health_path if host is not None else self.health_path
        return wanted is not None and path.startswith(wanted) and (len(path) == len(wanted) or path[len(wanted)] == 0x3F)
