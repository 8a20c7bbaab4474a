"""What is measured: workloads and how much of each, for minutes (``QUICK``) or an hour (``FULL``). Pure."""

from dataclasses import dataclass

KIB, MIB = 1024, 1024 * 1024


@dataclass(frozen=True)
class Workload:
    """Requests of one kind by so many at once."""

    name: str
    title: str
    path: str
    size: int
    """Bytes of each answer's body."""
    connections: int = 32
    streams: int = 10
    """On each connection of HTTP/2 and HTTP/3."""
    upload: int = 0
    """Bytes of each request's body."""
    warm_up: int = 1
    """Seconds before the measurement, for all connections to be made."""

    @property
    def per_request(self) -> int:
        """Bytes of body that one request moves."""
        return self.size if not self.upload else self.upload

    @property
    def large(self) -> bool:
        """Whether bytes a second tell more than requests a second."""
        return self.per_request >= 100 * KIB


GET_1K = Workload("get-1k", "GET of 1 KiB", "/1k", KIB)
GET_1M = Workload("get-1m", "GET of 1 MiB", "/1m", MIB, connections=8, streams=2)
WORKLOADS = (
    GET_1K,
    GET_1M,
    Workload("get-100k", "GET of 100 KiB", "/100k", 100 * KIB, connections=16, streams=4),
    Workload("post-1m", "POST of 1 MiB", "/upload", 8, connections=8, streams=2, upload=MIB),
)
CONNECTIONS = tuple(
    Workload(f"connections-{number}", f"GET of 1 KiB on {number} connections", "/1k", KIB, connections=number, warm_up=1 + number // 200)
    for number in (1, 10, 100, 1000)
)
STREAMS = tuple(
    Workload(f"streams-{number}", f"GET of 1 KiB, {number} streams on each of 32 connections", "/1k", KIB, streams=number)
    for number in (1, 10, 100)
)
LATENCY = Workload("latency", "Latency at half of each server's best rate", "/1k", KIB, streams=100)
"""Open loop. The streams are a bound on what is under way, not what is kept under way."""
PEER = "caddy"
LATENCY_BESIDE = Workload("latency-beside", "Latency at half of Caddy's best rate", "/1k", KIB, streams=100)
"""The same with one rate for both: half of what ``PEER`` can. At half of their own best rates, the faster one is asked for more."""


@dataclass(frozen=True)
class Plan:
    """How much of what."""

    workloads: tuple[Workload, ...]
    rounds: int
    seconds: int
    """Of each measurement, after its warm-up."""
    latency_seconds: int
    idle: int
    """Idle connections; 0: not measured."""
    new: int = 0
    """New connections, full and resumed."""
    sweeps: tuple[Workload, ...] = ()
    """Workloads of one round that show a curve."""
    sites: tuple[int, ...] = ()
    """Numbers of sites."""
    access_log: bool = False
    """Off beside on."""
    idle_targets: tuple[str, ...] = ()
    """Those whose idle connections are looked at; empty: all."""
    latency_targets: tuple[str, ...] = ()
    """Those whose latency is looked at, in each round; empty: all."""


PEERS = ("nginx", "haproxy", "caddy", "envoy")
PRODUCTS = ("qproxy", "before", "qproxy-portable", *PEERS)
QUICK = Plan(
    (GET_1K, GET_1M),
    rounds=3,
    seconds=3,
    latency_seconds=3,
    idle=300,
    idle_targets=("qproxy", "qproxy-portable", "nginx", "caddy"),
    latency_targets=("qproxy", *PEERS),
)
FULL = Plan(WORKLOADS, 4, 4, 10, idle=1000, new=300, sweeps=(*CONNECTIONS, *STREAMS), sites=(10, 10_000), access_log=True)
