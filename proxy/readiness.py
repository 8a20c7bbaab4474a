"""Whether enough of the backends are up for this proxy to be sent requests: what ``server.health`` asks for beyond serving at all.

Knows snapshots, and time as an argument. Both who answers for health ask it: exchanges, and the plain port (``control/health_port.py``).
"""

from proxy.snapshot import Pool, Snapshot

LOOK_EVERY = 0.2
"""Seconds for which a finding holds: whoever asks for the health answer can't make the proxy count ten thousand pools each time."""


class Readiness:
    """The last finding."""

    __slots__ = ("_enough", "_looked_at", "_snapshot")

    def __init__(self) -> None:
        self._enough = True
        self._snapshot: Snapshot | None = None
        self._looked_at = 0.0

    def enough(self, snapshot: Snapshot, now: float) -> bool:
        """Whether as large a share of the pools is up as ``pools_up`` says. *now* in monotonic seconds."""
        required = snapshot.required
        if not required.pools:
            return True
        if self._snapshot is not snapshot or now >= self._looked_at + LOOK_EVERY:
            self._snapshot, self._looked_at = snapshot, now
            up = sum(_is_up(pool, required.backends) for pool in snapshot.pools.values())
            self._enough = up >= required.pools * len(snapshot.pools)
        return self._enough


def _is_up(pool: Pool, share: float) -> bool:
    """At least one backend is up, and at least *share* of them."""
    backends = pool.balancer.backends
    up = sum(backend.state == "up" for backend in backends)
    return up > 0 and up >= share * len(backends)
