"""Limits at accept: connections in all, connections of one client, and new connections a second.

Knows addresses and the time it is given; nothing of sockets, of what is done with a refusal, or of HTTP. One object serves all
listeners of the process, TCP and QUIC alike, so that a client can't take twice; several processes count together (``shared_counts.py``).
"""

import socket
from typing import Protocol

from proxy.listen.gate import Gate
from proxy.observe import Metrics
from proxy.policy.access import Networks
from proxy.snapshot import Limits

LIMITS = ("connections", "connections_per_client", "connection_rate")
"""What may be hit: the label of the metric."""

_MAPPED = bytes(10) + b"\xff\xff"


class Counts(Protocol):
    """Who is connected: of this process (``OwnCounts``), or of several (``shared_counts.SharedCounts``)."""

    @property
    def connections(self) -> int:
        """Connections that are open."""

    def held(self, client: bytes) -> int:
        """Connections of one client."""

    def add(self, client: bytes) -> None:
        """One more is open."""

    def remove(self, client: bytes) -> None:
        """One of its connections is gone."""

    def take(self, rate: float, now: float) -> bool:
        """Count a new connection where fewer than *rate* a second came of late; else count nothing and give False."""


class OwnCounts:
    """An exact table of one process, no larger than there are connections."""

    def __init__(self) -> None:
        self.connections = 0
        self._clients: dict[bytes, int] = {}
        self._tokens = float("inf")
        """New connections that may come at once: full at start, at most one second's worth."""
        self._filled = float("-inf")

    def held(self, client: bytes) -> int:
        """See ``Counts``, as for all of these."""
        return self._clients.get(client, 0)

    def add(self, client: bytes) -> None:
        """One more is open."""
        self.connections += 1
        self._clients[client] = self._clients.get(client, 0) + 1

    def remove(self, client: bytes) -> None:
        """One is gone."""
        held = self._clients.get(client, 0)
        assert held > 0
        self.connections -= 1
        if held == 1:
            del self._clients[client]
        else:
            self._clients[client] = held - 1

    def take(self, rate: float, now: float) -> bool:
        """A token bucket of one second's worth, at least one token; refilled by the time since it was last looked at."""
        capacity = max(rate, 1.0)
        elapsed = max(now - self._filled, 0.0)
        self._filled = now
        self._tokens = min(capacity, self._tokens + elapsed * rate)
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True


class AcceptLimits:
    """Counts the connections that are open. Every ``admit`` that gave None is followed by one ``release`` of the same address.

    Clients are counted by IPv4 address, or by the /64 of an IPv6 one, whatever limits are on, so that a reload may turn one on at any
    time. *counts* that are shared hold the limits for all processes together; without, they hold for this one.
    """

    def __init__(self, limits: Limits, trusted: Networks, metrics: Metrics, counts: Counts | None = None) -> None:
        hits = metrics.counter("qproxy_limits_hit_total", "Connections refused at accept, by the limit that was hit.", ("limit",))
        self._hits = {limit: hits.cell(limit) for limit in LIMITS}
        self._refusing: set[str] = set()
        self._family = hits
        self.gate = Gate(metrics.gauge("qproxy_accepting", "1 while new connections come in, 0 while a worker has them wait").cell())
        """Shut while none may come, whatever the limits."""
        self._counts: Counts = OwnCounts() if counts is None else counts
        self._limits = limits
        self._trusted = trusted

    @property
    def connections(self) -> int:
        """Connections that are open."""
        return self._counts.connections

    def replace(self, limits: Limits, trusted: Networks) -> None:
        """Take the limits of a new configuration. Connections above a lowered limit stay; no new one comes until they are fewer."""
        self._limits = limits
        self._trusted = trusted

    def admit(self, address: str, now: float) -> str | None:
        """Count a new connection; or count nothing and name the limit that it hits. *now* in seconds, monotonic.

        *address* is the client's, as the PROXY protocol tells it where that is spoken. Trusted proxies speak for many clients, so the
        limit of one client does not hold for them.
        """
        limits, counts = self._limits, self._counts
        if self._refusing:
            return self._refuse(next(iter(self._refusing)))
        if limits.connections and counts.connections >= limits.connections:
            return self._hit("connections")
        client = _client(address)
        most = limits.connections_per_client
        if most and counts.held(client) >= most and address not in self._trusted:
            return self._hit("connections_per_client")
        if limits.connection_rate and not counts.take(limits.connection_rate, now):
            return self._hit("connection_rate")
        counts.add(client)
        return None

    def shut(self, reason: str) -> None:
        """Let nobody in until the same reason is taken back: over TCP they wait in the kernel's queue, over QUIC they are refused."""
        self._refusing.add(reason)
        self.gate.shut(reason)

    def open_again(self, reason: str) -> None:
        """The reason is no more."""
        self._refusing.discard(reason)
        self.gate.take_back(reason)

    def _refuse(self, reason: str) -> str:
        self._family.cell(reason).value += 1
        return reason

    def release(self, address: str) -> None:
        """Count a connection as gone: the *address* with which it was admitted, though it may have moved since (QUIC)."""
        self._counts.remove(_client(address))

    def _hit(self, limit: str) -> str:
        self._hits[limit].value += 1
        return limit


def _client(address: str) -> bytes:
    """What counts as one client: IPv4 as text, IPv6 by /64, since a client has at least that many addresses to itself."""
    if ":" not in address:
        return address.encode()
    try:
        packed = socket.inet_pton(socket.AF_INET6, address.partition("%")[0])
    except OSError:
        return address.encode()
    if packed.startswith(_MAPPED):
        return socket.inet_ntop(socket.AF_INET, packed[12:]).encode()
    return b":" + packed[:8]
