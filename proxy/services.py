"""What one worker's exchanges share: the current snapshot, connections to backends, deadlines, counters, logs.

``process/worker.py`` makes it. Of what is in it only references change: of ``snapshot`` with a reload, of ``shedding`` under overload.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from proxy.deadlines import Deadlines
from proxy.meters import AccessSink, ProxyMetrics
from proxy.observe import Log
from proxy.output import OutputBudget
from proxy.overload import Load
from proxy.readiness import Readiness
from proxy.snapshot import Snapshot
from proxy.stream import Backends


@dataclass(slots=True)
class Services:
    """Everything an exchange may use besides its own connection."""

    snapshot: Snapshot
    upstreams: Backends
    deadlines: Deadlines
    meters: ProxyMetrics
    access_log: AccessSink | None
    log: Log
    clock: Callable[[], float]
    """Monotonic seconds."""
    wall_clock: Callable[[], float]
    """Seconds since the epoch, for log lines and Date."""
    make_request_id: Callable[[], bytes]
    secret: bytes
    """Keys the hashes of clients' addresses (``balancer/affinity.py``): another one as soon as another key of the cluster seals."""
    readiness: Readiness = field(default_factory=Readiness)
    """Whether enough backends are up."""
    shedding: Load | None = None
    """Set while requests are to be turned away: it tells which."""
    draining: bool = False
    """No new clients: those that are there are to finish."""
    succeeded: bool = False
    """Other processes serve new clients: what drains here is none of the health answer's business."""
    relieve: Callable[[], None] = lambda: None
    """To be called where a file descriptor is wanted and none is left: then some may be (``listen/descriptors.py``)."""
    output: OutputBudget = field(init=False)
    """What the answers that wait may take of memory."""

    def __post_init__(self) -> None:
        """Make what follows from the others."""
        self.output = OutputBudget(self.snapshot.limits, self.meters, self.log)
