"""A world for exchanges without sockets: a client and backends that write down what they are told, and a clock that is set by hand."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any

from balancer.pool import Member, PoolSettings
from balancer.pool import Pool as BalancerPool
from proxy.counters import Cell, Histogram
from proxy.deadlines import Deadlines
from proxy.engine.events import RequestHead, UpstreamRequest
from proxy.engine.seam import HIGH_WATER, EngineLimits
from proxy.errors import ProxyError, Reset
from proxy.exchange import Exchange
from proxy.message import Headers
from proxy.meters import AccessRecord, ProxyMetrics
from proxy.observe import Metrics, NullLog
from proxy.policy.access import Networks
from proxy.policy.forwarded import Forwarding
from proxy.policy.key import KeySource
from proxy.route.match import Match
from proxy.route.table import RouteTable
from proxy.services import Services
from proxy.snapshot import (
    Endpoint,
    Forward,
    Host,
    Limits,
    Listener,
    Pool,
    Retry,
    Route,
    RouteCounters,
    ServerTimeouts,
    Site,
    Snapshot,
    Timeouts,
    UpstreamConnections,
)
from proxy.sni import Certificate, SniTable, TlsProfile

CERTIFICATE = Certificate(("a.example.com", "*.a.example.com"), b"", b"", 4e9, "test")
OTHER_CERTIFICATE = Certificate(("localhost",), b"", b"", 4e9, "test")
PROFILE = TlsProfile(CERTIFICATE, None, "a.example.com")
DEFAULT_PROFILE = TlsProfile(OTHER_CERTIFICATE, None, "default", is_default=True)
LISTENER = Listener(("127.0.0.1", 8443), frozenset({"h2", "h3"}), 8443, None, b'h3=":8443"; ma=86400')


@dataclass
class FakeClient:
    version: str = "HTTP/2"
    peer: tuple[str, int] = ("192.0.2.7", 5555)
    listener: Listener = LISTENER
    tls: TlsProfile | None = PROFILE
    sni: str | None = "a.example.com"
    affinity_key: bytes = b"k" * 16
    pins: dict[str, Any] = field(default_factory=dict)
    admitted: Any = None
    said: list[tuple[Any, ...]] = field(default_factory=list)
    queued: int = 0
    done: list[int] = field(default_factory=list)
    awaiting: list[int] | None = None
    """Streams that wait for the end of the handshake; None: it is over."""

    def await_handshake(self, stream: int) -> bool:
        if self.awaiting is None:
            return False
        self.awaiting.append(stream)
        return True

    def respond(self, stream: int, status: int, headers: Headers, body: bytes) -> None:
        self.said.append(("respond", stream, status, headers, body))

    def send_head(self, stream: int, status: int, headers: Headers, end: bool) -> None:
        self.said.append(("head", stream, status, headers, end))

    def send_data(self, stream: int, data: bytes, end: bool) -> int:
        self.said.append(("data", stream, data, end))
        return self.queued

    def send_trailers(self, stream: int, headers: Headers) -> None:
        self.said.append(("trailers", stream, headers))

    def inform(self, stream: int, status: int, headers: Headers) -> None:
        self.said.append(("inform", stream, status, headers))

    def consumed(self, stream: int, credit: int) -> None:
        self.said.append(("consumed", stream, credit))

    def reset(self, stream: int, reason: Reset) -> None:
        self.said.append(("reset", stream, reason))

    def exchange_done(self, stream: int) -> None:
        self.done.append(stream)

    @property
    def status(self) -> int:
        return next(said[2] for said in self.said if said[0] in ("respond", "head"))


class FakeConnection:
    """An upstream connection that writes down what it is told."""

    def __init__(self, identity: str) -> None:
        self.identity = identity
        self.said: list[tuple[Any, ...]] = []
        self.full = False
        self.consumer: Exchange | None = None

    def begin(self, consumer: Exchange, request: UpstreamRequest) -> None:
        self.consumer = consumer
        headers = [(b"host", request.host), *request.headers, *_fields(request.lines)]
        self.said.append(("begin", request.method, request.target, headers, request.end))

    def send_data(self, data: bytes) -> int:
        self.said.append(("data", data))
        return HIGH_WATER + 1 if self.full else 0

    def send_end(self, trailers: Headers) -> None:
        self.said.append(("end", trailers))

    def credit(self, taken: int) -> None:
        self.said.append(("credit", taken))

    def hold(self) -> None:
        self.said.append(("hold",))

    def abort(self) -> None:
        self.said.append(("abort",))


def _fields(lines: bytes) -> Headers:
    """Field lines, made beforehand, as fields again."""
    return [(name, value) for name, _, value in (line.partition(b": ") for line in lines.split(b"\r\n")[:-1])]


class FakeAttempt:
    def __init__(self, waiter: Exchange) -> None:
        self.waiter: Exchange | None = waiter

    def abandon(self) -> None:
        self.waiter = None


class FakeEndpoint:
    """Idle connections at hand while ``idle`` is above zero, else a connect that the test completes."""

    def __init__(self, identity: str, idle: int, seconds: Histogram) -> None:
        self.identity = identity
        self.idle = idle
        self.seconds = seconds
        self.made: list[FakeConnection] = []
        self.attempts: list[FakeAttempt] = []

    def take(self) -> FakeConnection | None:
        if not self.idle:
            return None
        self.idle -= 1
        return self._make()

    def open(self, waiter: Exchange, timeout: float, *, fast_open: bool) -> FakeAttempt:
        self.fast_open = fast_open
        self.attempts.append(FakeAttempt(waiter))
        return self.attempts[-1]

    def connect(self) -> FakeConnection:
        waiter = self.attempts[-1].waiter
        assert waiter is not None
        connection = self._make()
        waiter.on_connected(connection)  # type: ignore[arg-type]
        return connection

    def refuse(self, error: ProxyError) -> None:
        waiter = self.attempts[-1].waiter
        assert waiter is not None
        waiter.on_connect_failed(error)

    def _make(self) -> FakeConnection:
        self.made.append(FakeConnection(self.identity))
        return self.made[-1]


class FakeUpstreams:
    def __init__(self, idle: int, meters: ProxyMetrics) -> None:
        self.idle = idle
        self.meters = meters
        self.endpoints: dict[str, FakeEndpoint] = {}

    def of(self, pool: Pool, identity: str) -> FakeEndpoint:
        return self.endpoints.setdefault(identity, FakeEndpoint(identity, self.idle, self.meters.upstream_seconds.cell(pool.name)))


class World:
    """Three backends, one site, one route, unless told otherwise."""

    def __init__(self, *, idle: int = 9, backends: int = 3, early_data: bool = False, **route: Any) -> None:
        self.now = 1000.0
        self.records: list[AccessRecord] = []
        metrics = Metrics()
        self.meters = ProxyMetrics(metrics)
        self.upstreams = FakeUpstreams(idle, self.meters)
        identities = [f"http://127.0.0.1:{9001 + i}" for i in range(backends)]
        self.balancer = BalancerPool(
            "web",
            [Member(identity) for identity in identities],
            PoolSettings(
                policy="consistent_hash",
                rise=2,
                fall=3,
                panic=False,
                retry_budget_ratio=0.2,
                retry_budget_min=10.0,
                passive_fall=3,
            ),
            b"s" * 32,
            7,
        )
        endpoints = {identity: Endpoint(identity, False, "127.0.0.1", int(identity[-4:]), None) for identity in identities}
        self.pool = Pool("web", self.balancer, endpoints, KeySource("connection"), True, None, UpstreamConnections(8, 60, 600), None)
        values: dict[str, Any] = {
            "name": "a/0",
            "match": Match(prefix=b"/"),
            "action": Forward(self.pool, None, None),
            "access": None,
            "request_headers": None,
            "response_headers": None,
            "timeouts": Timeouts(connect=5, response=30, body_idle=60, total=0),
            "retry": Retry(attempts=2, body_bytes=64 * 1024),
            "body_bytes": 0,
            "counters": RouteCounters((Cell(), Cell(), Cell(), Cell(), Cell(), Cell()), Cell(), Cell(), Histogram()),
        }
        if "forward" in route:
            values["action"] = Forward(self.pool, *route.pop("forward"))
        self.route = Route(**{**values, **route})
        site = Site("a", ("a.example.com",), RouteTable([self.route]), b"/health", None, early_data=early_data)
        self.host = Host("a.example.com", site, {version: Cell() for version in ("HTTP/1.1", "HTTP/2", "HTTP/3")})
        self.ids = itertools.count(1)
        make_id = lambda: b"id-%d" % next(self.ids)
        snapshot = Snapshot(
            generation=1,
            listeners=(LISTENER,),
            admin=None,
            limits=Limits(0, 0, 0, 0, EngineLimits()),
            timeouts=ServerTimeouts(10, 10, 60, 30),
            trusted_proxies=Networks([]),
            forwarding=Forwarding(Networks([]), make_id),
            health_path=b"/health",
            sni=SniTable({"a.example.com": PROFILE}, {}, DEFAULT_PROFILE, False),
            exact_hosts={b"a.example.com": self.host},
            wildcard_hosts={},
            pools={"web": self.pool},
        )
        self.deadlines = Deadlines(self.now)
        self.services = Services(
            snapshot=snapshot,
            upstreams=self.upstreams,  # type: ignore[arg-type]
            deadlines=self.deadlines,
            meters=self.meters,
            access_log=self,
            log=NullLog(),
            clock=lambda: self.now,
            wall_clock=lambda: 1_700_000_000.0,
            make_request_id=make_id,
            secret=b"s" * 32,
        )

    def append(self, record: AccessRecord) -> None:
        self.records.append(record)

    def request(self, client: FakeClient, method: bytes = b"GET", path: bytes = b"/", **values: Any) -> Exchange:
        head = RequestHead(
            stream=values.pop("stream", 1),
            method=method,
            scheme=b"https",
            authority=values.pop("authority", b"a.example.com"),
            path=path,
            headers=values.pop("headers", []),
            end=values.pop("end", True),
            **values,
        )
        exchange = Exchange(self.services, client, head)
        exchange.on_request()
        return exchange

    @property
    def connections(self) -> list[FakeConnection]:
        """All made, in no particular order between endpoints."""
        return [connection for endpoint in self.upstreams.endpoints.values() for connection in endpoint.made]

    @property
    def attempts(self) -> list[FakeEndpoint]:
        return [endpoint for endpoint in self.upstreams.endpoints.values() if endpoint.attempts]

    def pass_time(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end:
            self.now += 0.1
            self.deadlines.turn(self.now)

    @property
    def inflight(self) -> int:
        return sum(backend.inflight for backend in self.balancer.backends)
