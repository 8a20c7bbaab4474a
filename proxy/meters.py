"""Every metric that the listeners, the exchange and the upstream side keep, and the record of a finished exchange.

Knows names, labels and help texts; nothing of how they are shown. Owners fetch their cells once and count on them.
"""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Protocol

from proxy.counters import BYTES, Cell, Histogram
from proxy.observe import Family, Metrics


class ProxyMetrics:
    """The metric families, declared once for a process. Those without labels are read with ``cell()``."""

    __slots__ = (
        "_by_pool",
        "backend_inflight",
        "backend_up",
        "config_generation",
        "connection_errors",
        "connections",
        "connections_aged",
        "connections_open",
        "datagrams",
        "early_requests",
        "envelopes",
        "envelopes_refused",
        "exchange_errors",
        "handshake_failures",
        "handshake_seconds",
        "http3_connections",
        "limits_hit",
        "load",
        "load_state",
        "misrouted",
        "output",
        "output_bound",
        "peer_round_trip",
        "peers",
        "pool_backends",
        "quic_black_holes",
        "quic_bytes_lost",
        "quic_certificates_compressed",
        "quic_congestion_window",
        "quic_connections_to_renew",
        "quic_dropped",
        "quic_handshakes",
        "quic_ids_renewed",
        "quic_kernel_drops",
        "quic_moves_refused",
        "quic_output",
        "quic_packets_lost",
        "quic_packets_sent",
        "quic_path_changes",
        "quic_resets_sent",
        "quic_resumed",
        "quic_retries",
        "quic_retry",
        "quic_round_trip",
        "quic_strays",
        "quic_tokens",
        "rejected",
        "reloads",
        "server_up",
        "shed",
        "sni_resolutions",
        "stream_errors",
        "streams",
        "streams_open",
        "tls_resumed",
        "upstream_connects",
        "upstream_open",
        "upstream_retries",
        "upstream_reused",
        "upstream_seconds",
    )

    def __init__(self, metrics: Metrics) -> None:
        counter, gauge, histogram = metrics.counter, metrics.gauge, metrics.histogram
        self.server_up = gauge("server_up", "1 while serving, 0 while draining")
        self.config_generation = gauge("qproxy_config_generation", "Number of the configuration in use, counted from 1 at start")
        self.reloads = counter("qproxy_reloads_total", "Reloads of the configuration, by result (ok, failed)", ("result",))
        self.load = gauge("qproxy_load", "What the busiest worker has to do, as a share of its limit: lag, memory, exchanges", ("part",))
        self.load_state = gauge("qproxy_load_state", "Workers by how loaded they are: normal, busy, overloaded", ("state",))
        self.shed = counter("qproxy_shed_total", "Requests turned away as the worker has too much to do, by class", ("class",))
        # listener side
        self.sni_resolutions = counter("sni_resolutions_total", "TLS handshakes by the configured host that their SNI matched", ("domain",))
        self.http3_connections = counter("http3_connections_total", "HTTP/3 connections accepted")
        self.connections = counter("qproxy_connections_total", "Client connections that came as far as HTTP", ("listener", "version"))
        self.connections_open = gauge("qproxy_connections_open", "Client connections now", ("version",))
        self.connections_aged = counter(
            "qproxy_connections_aged_total", "Client connections that were told to end, by timeouts.connection_age", ("version",)
        )
        self.connection_errors = counter(
            "qproxy_connection_errors_total", "Client connections that ended with an error after the handshake", ("version", "error")
        )
        self.handshake_seconds = histogram(
            "qproxy_handshake_seconds", "Time from the first byte to the end of the handshake, by transport (tcp, quic)", ("transport",)
        )
        self.handshake_failures = counter("qproxy_handshake_failures_total", "Connections lost before HTTP began", ("transport", "reason"))
        self.streams = counter("qproxy_streams_total", "Requests begun", ("version",))
        self.streams_open = gauge("qproxy_streams_open", "Requests now in progress", ("version",))
        self.early_requests = counter(
            "qproxy_early_requests_total",
            "Requests before the end of the handshake, by what became of them (sent, waited, declined; repeated after a 425)",
            ("outcome",),
        )
        self.stream_errors = counter("qproxy_stream_errors_total", "Requests cut before their answer was complete", ("version", "reason"))
        self.rejected = counter("qproxy_rejected_total", "Requests refused as malformed or too large", ("version", "reason"))
        self.limits_hit = counter("qproxy_limits_hit_total", "What a limit of the configuration turned away", ("limit",))
        self.output = gauge("qproxy_output_bytes", "Bytes of answers that wait for clients of any version to take them")
        self.output_bound = gauge(
            "qproxy_output_bound_bytes", "Bytes of answers that one connection may have waiting: less while limits.output is exceeded"
        )
        self.datagrams = counter("qproxy_datagrams_total", "UDP datagrams, by direction (in, out)", ("direction",))
        self.quic_dropped = counter("qproxy_quic_datagrams_dropped_total", "UDP datagrams that belonged nowhere, or came beyond a bound")
        self.quic_kernel_drops = counter(
            "qproxy_quic_kernel_drops_total",
            "UDP datagrams that the kernel dropped, mostly as the receive buffer was full",
            ("listener",),
        )
        self.quic_resets_sent = counter("qproxy_quic_stateless_resets_total", "Packets of connections that are gone, answered with a reset")
        self.quic_resumed = counter("qproxy_quic_resumed_total", "QUIC connections that resumed a session by its ticket")
        self.tls_resumed = counter("qproxy_tls_resumed_total", "TLS connections over TCP that resumed a session by its ticket")
        self.quic_certificates_compressed = counter(
            "qproxy_quic_certificates_compressed_total", "QUIC handshakes in which the certificate went compressed", ("algorithm",)
        )
        self.quic_handshakes = gauge("qproxy_quic_handshakes", "QUIC handshakes now in progress", ("listener",))
        self.quic_retries = counter("qproxy_quic_retries_total", "Clients asked to prove their address (Retry packets sent)")
        self.quic_retry = gauge("qproxy_quic_retry", "1 while every new QUIC client is asked to prove its address, else 0", ("listener",))
        self.quic_tokens = counter(
            "qproxy_quic_retry_tokens_total", "Tokens that QUIC clients brought, by what was found (valid, or why not)", ("result",)
        )
        self.quic_path_changes = counter(
            "qproxy_quic_path_changes_total",
            "Changes of a QUIC client's address, by kind (rebinding: another port of the same address; migration: another address)",
            ("kind",),
        )
        self.quic_moves_refused = counter(
            "qproxy_quic_moves_refused_total", "UDP datagrams from another address than their client's, where migration is off"
        )
        self.quic_strays = counter(
            "qproxy_quic_strays_total",
            "UDP datagrams that came to another worker than their connection's, by what became of them (sent, received, dropped)",
            ("result",),
        )
        self.envelopes = counter(
            "qproxy_envelopes_total",
            "Envelopes of other instances and the tier that were opened (in), and sealed (out), by kind (datagram, answer, hello)",
            ("direction", "kind"),
        )
        self.envelopes_refused = counter(
            "qproxy_envelopes_refused_total",
            "Envelopes that came to nothing: cut off (short), of another version or epoch, forged, malformed, stale, replayed, of one "
            "sender too many (full), for no listener, an answer to nothing (unasked), for a relay that is forgotten, "
            "beyond what waits (unsent)",
            ("reason",),
        )
        self.misrouted = counter(
            "qproxy_misrouted_datagrams_total",
            "UDP datagrams of other instances' connections, by what became of them: forwarded to theirs; passed_on, its answers; "
            "over_budget, no_listener there, dropped; looped, through a relay to the wrong instance",
            ("result",),
        )
        self.peers = gauge(
            "qproxy_peers",
            "Workers that know another instance so (ready, draining, overloaded, dead, unknown)",
            ("peer", "server_id", "state"),
        )
        self.peer_round_trip = gauge(
            "qproxy_peer_round_trip_seconds", "To another instance and back; the longest of all workers'", ("peer",)
        )
        self.quic_output = gauge("qproxy_quic_output_bytes", "Bytes of answers that wait for QUIC clients to take them", ("listener",))
        self.quic_ids_renewed = counter(
            "qproxy_quic_connection_ids_renewed_total",
            "QUIC connections whose client has retired all connection IDs of an earlier configuration",
        )
        self.quic_connections_to_renew = gauge(
            "qproxy_quic_connections_with_old_ids", "QUIC connections with connection IDs of an earlier configuration", ("listener",)
        )
        # of QUIC connections that ended, where the engine tells (the native one does)
        self.quic_round_trip = histogram("qproxy_quic_round_trip_seconds", "Smoothed round-trip time of a QUIC connection at its end")
        self.quic_congestion_window = histogram(
            "qproxy_quic_congestion_window_bytes", "Congestion window of a QUIC connection at its end", bounds=BYTES
        )
        self.quic_packets_sent = counter("qproxy_quic_packets_sent_total", "QUIC packets sent, on connections that ended")
        self.quic_packets_lost = counter("qproxy_quic_packets_lost_total", "QUIC packets declared lost, on connections that ended")
        self.quic_black_holes = counter(
            "qproxy_quic_path_black_holes_total", "Paths that began to drop datagrams of the size found before, on connections that ended"
        )
        self.quic_bytes_lost = counter("qproxy_quic_bytes_lost_total", "Bytes of the QUIC packets that were declared lost")
        # the exchange and the upstream side
        self.exchange_errors = counter("qproxy_exchange_errors_total", "Requests answered with an error of the proxy's own", ("kind",))
        self.upstream_seconds = histogram("qproxy_upstream_seconds", "Time from sending a request to its response head", ("pool",))
        self.upstream_connects = counter("qproxy_upstream_connects_total", "Connections opened to backends", ("pool", "result"))
        self.upstream_retries = counter("qproxy_upstream_retries_total", "Requests tried again on another backend", ("pool",))
        self.upstream_open = gauge("qproxy_upstream_open", "Connections to backends now", ("pool",))
        self.upstream_reused = counter("qproxy_upstream_reused_total", "Requests sent on a connection that was kept alive", ("pool",))
        self.pool_backends = gauge("qproxy_pool_backends", "Backends by state (up, down, draining)", ("pool", "state"))
        self.backend_up = gauge("qproxy_backend_up", "1 for a backend that gets requests, else 0", ("pool", "backend"))
        self.backend_inflight = gauge("qproxy_backend_inflight", "Requests now in progress at a backend", ("pool", "backend"))
        self._by_pool: tuple[Family[Cell] | Family[Histogram], ...] = (
            self.upstream_seconds,
            self.upstream_connects,
            self.upstream_retries,
            self.upstream_open,
            self.upstream_reused,
        )
        for family in (self.server_up, self.http3_connections, self.config_generation, self.quic_resumed, self.tls_resumed):
            family.cell()
        for kind in ("rebinding", "migration"):
            self.quic_path_changes.cell(kind)

    def show_pools(self, pools: Callable[[], Iterable["PoolState"]]) -> Callable[[], None]:
        """A hook for ``Metrics.before_read``: sets the gauges of pools and backends, and forgets pools that a reload took away."""

        def refresh() -> None:
            present = list(pools())
            self.forget_pools({pool.name for pool in present})
            for family in (self.pool_backends, self.backend_up, self.backend_inflight):
                family.cells.clear()
            for pool in present:
                for state in ("up", "down", "draining"):
                    self.pool_backends.cell(pool.name, state)
                for backend in pool.backends:
                    self.pool_backends.cell(pool.name, backend.state).value += 1
                    self.backend_up.cell(pool.name, backend.identity).value = int(backend.state == "up")
                    self.backend_inflight.cell(pool.name, backend.identity).value = backend.inflight

        return refresh

    def show_inflight(self, pools: Callable[[], Iterable["PoolState"]]) -> Callable[[], None]:
        """The same for a worker, whose controller shows the rest."""

        def refresh() -> None:
            present = list(pools())
            self.forget_pools({pool.name for pool in present})
            self.backend_inflight.cells.clear()
            for pool in present:
                for backend in pool.backends:
                    self.backend_inflight.cell(pool.name, backend.identity).value = backend.inflight

        return refresh

    def forget_pools(self, present: Collection[str]) -> None:
        """Drop the counts of pools that are no more, so that label values don't pile up over reloads."""
        for family in self._by_pool:
            for labels in [labels for labels in family.cells if labels[0] not in present]:
                del family.cells[labels]


class BackendState(Protocol):
    """What the gauges and the admin pages show of a backend (``balancer.backend.Backend`` is one)."""

    @property
    def identity(self) -> str:
        """Its URL."""

    @property
    def state(self) -> str:
        """``up``, ``down`` or ``draining``."""

    @property
    def reason(self) -> str:
        """Why it is in its state; empty while it is up."""

    @property
    def weight(self) -> int:
        """Its share of the pool's requests."""

    @property
    def backup(self) -> int:
        """0: a primary; else it only stands in for those with a lower number."""

    @property
    def inflight(self) -> int:
        """Requests in progress."""


class PoolState(Protocol):
    """What the gauges and the admin pages show of a pool (``balancer.pool.Pool`` is one)."""

    @property
    def name(self) -> str:
        """The label."""

    @property
    def backends(self) -> Iterable[BackendState]:
        """All of them."""


@dataclass(slots=True)
class AccessRecord:
    """One finished exchange, for the access log. Text from the client is raw here: the log escapes and shortens it."""

    request_id: bytes
    time: float
    """When it ended: seconds since the epoch."""
    listener: str
    version: str
    """``HTTP/1.1``, ``HTTP/2`` or ``HTTP/3``."""
    method: bytes
    host: bytes
    path: bytes
    """With its query."""
    status: int
    """0: it ended without an answer."""
    site: str
    route: str
    backend: str
    """The backend asked last; empty when none was."""
    key: bytes
    """The key of the balancing; empty when none was needed."""
    client_address: str
    bytes_in: int
    """Body bytes from the client."""
    bytes_out: int
    """Body bytes to the client."""
    seconds: float
    """From the request head to the end."""
    seconds_connect: float
    """From the request head to a connection with the backend; 0: there was none."""
    seconds_first_byte: float
    """From the request head to the backend's response head; 0: there was none."""
    attempts: int
    ended: str
    """Why it ended: ``complete``, ``answered``, or the token of what went wrong."""
    error: str
    """More about that, for people; empty when all was well."""


class AccessSink(Protocol):
    """Where finished exchanges go."""

    def append(self, record: AccessRecord) -> None:
        """Take a record; never blocks, never raises."""
