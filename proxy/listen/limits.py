"""Limits at accept: connections in all, connections of one client, and new connections a second.

Knows addresses and the time it is given; nothing of sockets, of what is done with a refusal, or of HTTP. One object serves all
listeners of the process, TCP and QUIC alike, so that a client can't take twice.
"""

import socket

from proxy.observe import Metrics
from proxy.policy.access import Networks
from proxy.snapshot import Limits

LIMITS = ("connections", "connections_per_client", "connection_rate")
"""What may be hit: the label of the metric."""

_MAPPED = bytes(10) + b"\xff\xff"


class AcceptLimits:
    """Counts the connections that are open. Every ``admit`` that gave None is followed by one ``release`` of the same address.

    Clients are counted by IPv4 address, or by the /64 of an IPv6 one, whatever limits are on, so that a reload may turn one on at any
    time; the table holds no more clients than there are connections.
    """

    def __init__(self, limits: Limits, trusted: Networks, metrics: Metrics) -> None:
        hits = metrics.counter("qproxy_limits_hit_total", "Connections refused at accept, by the limit that was hit.", ("limit",))
        self._hits = {limit: hits.cell(limit) for limit in LIMITS}
        self.connections = 0
        """Connections that are open."""
        self._clients: dict[str | bytes, int] = {}
        self._tokens = float("inf")
        """New connections that may come at once: full at start, at most one second's worth."""
        self._filled = float("-inf")
        self._limits = limits
        self._trusted = trusted

    def replace(self, limits: Limits, trusted: Networks) -> None:
        """Take the limits of a new configuration. Connections above a lowered limit stay; no new one comes until they are fewer."""
        self._limits = limits
        self._trusted = trusted

    def admit(self, address: str, now: float) -> str | None:
        """Count a new connection; or count nothing and name the limit that it hits. *now* in seconds, monotonic.

        *address* is the client's, as the PROXY protocol tells it where that is spoken. Trusted proxies speak for many clients, so the
        limit of one client does not hold for them.
        """
        limits = self._limits
        if limits.connections and self.connections >= limits.connections:
            return self._hit("connections")
        key = _client(address)
        held = self._clients.get(key, 0)
        if limits.connections_per_client and held >= limits.connections_per_client and address not in self._trusted:
            return self._hit("connections_per_client")
        if limits.connection_rate and not self._take_token(limits.connection_rate, now):
            return self._hit("connection_rate")
        self.connections += 1
        self._clients[key] = held + 1
        return None

    def release(self, address: str) -> None:
        """Count a connection as gone: the *address* with which it was admitted, though it may have moved since (QUIC)."""
        key = _client(address)
        held = self._clients.get(key, 0)
        assert held > 0
        self.connections -= 1
        if held == 1:
            del self._clients[key]
        else:
            self._clients[key] = held - 1

    def _take_token(self, rate: float, now: float) -> bool:
        """A token bucket of one second's worth, at least one token; refilled by the time since it was last looked at."""
        capacity = max(rate, 1.0)
        elapsed = max(now - self._filled, 0.0)
        self._filled = now
        self._tokens = min(capacity, self._tokens + elapsed * rate)
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True

    def _hit(self, limit: str) -> str:
        self._hits[limit].value += 1
        return limit


def _client(address: str) -> str | bytes:
    """What counts as one client: IPv4 as text, IPv6 by /64, since a client has at least that many addresses to itself."""
    if ":" not in address:
        return address
    try:
        packed = socket.inet_pton(socket.AF_INET6, address.partition("%")[0])
    except OSError:
        return address
    if packed.startswith(_MAPPED):
        return socket.inet_ntop(socket.AF_INET, packed[12:])
    return packed[:8]
