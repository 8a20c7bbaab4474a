"""One backend as the balancer sees it: a name, a weight, a state and what is in flight.

Knows no address, no protocol and no rule: ``health`` moves the state, ``pool`` counts what is in flight, everybody may read.
"""

from math import inf

from balancer.condition import Condition


class Backend:
    """A backend of one pool. Compared by identity of the object: after a reload an unchanged backend is the very same object."""

    __slots__ = (
        "available",
        "backoff",
        "backup",
        "condition",
        "failures",
        "identity",
        "inflight",
        "last_healthy",
        "proven",
        "reason",
        "since",
        "state",
        "streak",
        "trial",
        "trial_at",
        "weight",
    )

    def __init__(self, identity: str, weight: int = 1, *, backup: int = 0) -> None:
        self.identity = identity
        """The endpoint's normalised URL: what state is kept by."""
        self.weight = weight
        self.backup = backup
        """0: a primary. A backup takes requests only while no backend with a lower number is available."""
        self.available = True
        """Whether requests may go there: up and not draining, or down with a trial due."""
        self.state = "up"
        """``up``, ``down`` or ``draining``. New backends start up: the first probe decides."""
        self.inflight = 0
        """Requests in progress."""
        self.condition = Condition.UP
        self.proven = False
        """It has answered a probe or a request at least once."""
        self.streak = 0
        """Probes in a row against the present health: failures while healthy, successes while not."""
        self.failures = 0
        """Live failures in a row."""
        self.last_healthy = -inf
        """When it was last known to be healthy: set as it goes down, for the order of ``panic``."""
        self.since = -inf
        """When it came up, or came to a pool that was in use: where the pool has a slow start, it takes its share by and by."""
        self.reason = ""
        """Why it is in its state, for people: empty while it is up."""
        self.backoff = 0.0
        """Seconds until the next trial, should the next one fail."""
        self.trial_at = inf
        """When one request may try a backend that is down and that nothing probes; never, while it is up or probed."""
        self.trial = False
        """A trial request may be under way: its success brings the backend up."""

    def __repr__(self) -> str:
        return f"Backend({self.identity!r}, {self.state}, weight={self.weight}, inflight={self.inflight})"
