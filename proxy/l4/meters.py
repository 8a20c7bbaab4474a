"""The metrics of the L4 tier."""

from dataclasses import dataclass

from proxy.counters import Cell
from proxy.l4.routing import DROPS, RULES
from proxy.observe import Metrics

TABLES = ("handshake", "destination", "client")
"""Tables of flows, by the rule that each serves."""

RESULTS = ("passed", "limit", "malformed", "timeout", "lost", "no_instance", "connect_failed")
"""What becomes of connections over TCP: they came to an instance; or a limit was hit, the first bytes were neither TLS nor HTTP, came too
late or not at all, no instance takes connections, or none could be connected to."""


@dataclass(frozen=True, slots=True)
class ListenerMeters:
    """Of one listener, over TCP."""

    connections: dict[str, Cell]
    """By ``RESULTS``."""
    open: Cell
    bytes_in: Cell
    bytes_out: Cell
    connect_failures: Cell
    idle_cut: Cell


class TierMeters:
    """The families, declared once for a process."""

    def __init__(self, metrics: Metrics) -> None:
        counter, gauge = metrics.counter, metrics.gauge
        self.routed = counter(
            "qproxy_l4_datagrams_routed_total", "UDP datagrams of clients, by the rule that chose their instance", ("listener", "rule")
        )
        self.dropped = counter("qproxy_l4_datagrams_dropped_total", "UDP datagrams that went nowhere, by reason", ("listener", "reason"))
        self.answered = counter("qproxy_l4_datagrams_answered_total", "UDP datagrams of instances that went to clients", ("listener",))
        self.entries = gauge("qproxy_l4_table_entries", "Entries in the tables of QUIC flows", ("listener", "table"))
        self.full = counter("qproxy_l4_table_full_total", "Entries for which a table of QUIC flows had no room", ("listener", "table"))
        self.envelopes = counter("qproxy_l4_envelopes_total", "Envelopes to and from instances, by direction (out, in)", ("direction",))
        self.refused = counter("qproxy_l4_envelopes_refused_total", "Envelopes that were not opened, by reason", ("reason",))
        self.server_ids = gauge("qproxy_l4_server_ids", "Instances whose server ID is known", ("listener",))
        self._connections = counter(
            "qproxy_l4_connections_total", "Client connections over TCP, by what became of them", ("listener", "result")
        )
        self._open = gauge("qproxy_l4_connections_open", "Client connections over TCP now", ("listener",))
        self._bytes = counter("qproxy_l4_bytes_total", "Bytes over TCP, by direction (in: from clients)", ("listener", "direction"))
        self._failures = counter("qproxy_l4_connect_failures_total", "Connections to instances that could not be made", ("listener",))
        self._idle = counter("qproxy_l4_connections_idle_total", "Connections over TCP that were cut as nothing moved", ("listener",))

    def of_listener(self, name: str) -> ListenerMeters:
        """Those over TCP."""
        return ListenerMeters(
            connections={result: self._connections.cell(name, result) for result in RESULTS},
            open=self._open.cell(name),
            bytes_in=self._bytes.cell(name, "in"),
            bytes_out=self._bytes.cell(name, "out"),
            connect_failures=self._failures.cell(name),
            idle_cut=self._idle.cell(name),
        )

    def prepare(self, name: str) -> None:
        """Have every cell of a QUIC listener there from the start."""
        for rule in RULES:
            self.routed.cell(name, rule)
        for reason in DROPS:
            self.dropped.cell(name, reason)
        for table in TABLES:
            self.entries.cell(name, table)
            self.full.cell(name, table)
