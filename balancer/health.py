"""Which backends are fit: outcomes of probes and of live requests in, changes of state out.

Knows backends and time as an argument; no pool, no policy and no probe. The rules:

- Probes move a backend by *rise* successes or *fall* failures in a row. One that has never answered anything goes down with its first
  failed probe: a new backend is taken to be up, and that trust is not to cost *fall* intervals of errors.
- Live failures, *passive_fall* in a row, take it down at once. Live successes count only against live failures: a page that works
  proves less than a health check that does not.
- Back up it comes through probes, or, where nothing probes, through a trial: after a back-off one request is let through; its success
  brings the backend up, its failure doubles the back-off.
"""

from collections.abc import Callable, Mapping
from enum import Enum
from math import inf
from typing import NamedTuple, TypeAlias

from balancer.backend import Backend
from balancer.condition import Condition

BACKOFF_MIN = 1.0
"""Seconds from going down to the first trial."""

BACKOFF_MAX = 60.0
"""Seconds between trials at most."""


class Outcome(Enum):
    """What happened at a backend."""

    PROBE_OK = "probe ok"
    PROBE_FAILED = "probe failed"
    SUCCESS = "success"
    """A live request got an answer: any status, for judging statuses is the site's affair."""
    CONNECT_FAILED = "connect failed"
    RESPONSE_FAILED = "response failed"
    """Connected, but no whole answer came of it."""


class Signal(Enum):
    """What moves the state."""

    ROSE = "rose"
    FELL = "fell"
    DRAIN = "drain"
    RESTORE = "restore"


TRANSITIONS: Mapping[tuple[Condition, Signal], Condition] = {
    (Condition.UP, Signal.FELL): Condition.DOWN,
    (Condition.UP, Signal.DRAIN): Condition.DRAINING,
    (Condition.DOWN, Signal.ROSE): Condition.UP,
    (Condition.DOWN, Signal.DRAIN): Condition.DRAINING_DOWN,
    (Condition.DRAINING, Signal.FELL): Condition.DRAINING_DOWN,
    (Condition.DRAINING, Signal.RESTORE): Condition.UP,
    (Condition.DRAINING_DOWN, Signal.ROSE): Condition.DRAINING,
    (Condition.DRAINING_DOWN, Signal.RESTORE): Condition.DOWN,
}
"""The state machine. A pair that is not here leaves the state as it is."""

_HEALTHY = frozenset({Condition.UP, Condition.DRAINING})
_SUCCESS = Outcome.SUCCESS  # a member looked up on its class costs as much as all the rest of the common path


class Status(NamedTuple):
    """What is known of a backend's health, to be handed to another process."""

    condition: Condition
    reason: str
    proven: bool
    streak: int
    failures: int


Watch: TypeAlias = Callable[[Backend, Outcome | None, bool], None]
"""Is told of each outcome that was news of a backend (None: it was drained, or restored), and whether its state changed."""


class Changes:
    """Counts the changes of a pool's backends, for those who keep something derived from them.

    Shared by a pool and the ones that adopt its backends, since each of them may report what happened to a backend that is in all.
    """

    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0


class Health:
    """The rules of one pool."""

    __slots__ = ("_fall", "_passive_fall", "_probed", "_rise", "changes", "watch")

    def __init__(self, *, rise: int, fall: int, passive_fall: int, probed: bool) -> None:
        self._rise = rise
        self._fall = fall
        self._passive_fall = passive_fall
        self._probed = probed
        self.changes = Changes()
        self.watch: Watch | None = None
        """Where news goes, so that others who balance over the same backends may know them too."""

    def report(self, backend: Backend, outcome: Outcome, now: float) -> bool:
        """Take in an outcome; True when the backend's state changed."""
        if outcome is _SUCCESS and backend.proven and not backend.failures and not backend.trial:
            return False
        known = outcome is Outcome.PROBE_OK and backend.proven and not backend.streak and backend.condition in _HEALTHY
        changed = self._take_in(backend, outcome, now)
        if self.watch is not None and not known:
            self.watch(backend, outcome, changed)
        return changed

    def _take_in(self, backend: Backend, outcome: Outcome, now: float) -> bool:
        if outcome is _SUCCESS:
            backend.proven = True
            backend.failures = 0
            return backend.trial and self._signal(backend, Signal.ROSE, now)
        healthy = backend.condition in _HEALTHY
        if outcome is Outcome.PROBE_OK:
            backend.proven = True
            backend.streak = 0 if healthy else backend.streak + 1
            return not healthy and backend.streak >= self._rise and self._signal(backend, Signal.ROSE, now)
        if outcome is Outcome.PROBE_FAILED:
            backend.streak = backend.streak + 1 if healthy else 0
            fallen = healthy and (backend.streak >= self._fall or not backend.proven)
            return fallen and self._signal(backend, Signal.FELL, now, "health probes fail")
        if not healthy:
            self._trial_failed(backend, now)
            return False
        backend.failures += 1
        fallen = 0 < self._passive_fall <= backend.failures
        return fallen and self._signal(backend, Signal.FELL, now, f"{backend.failures} live requests failed in a row ({outcome.value})")

    def drain(self, backend: Backend, now: float) -> bool:
        """Send it nothing new; its health is followed on. True when its state changed."""
        return self._told(backend, Signal.DRAIN, now)

    def restore(self, backend: Backend, now: float) -> bool:
        """Call the draining off: it is up or down, as its health is. True when its state changed."""
        return self._told(backend, Signal.RESTORE, now)

    def status(self, backend: Backend) -> Status:
        """What another process should know of it."""
        return Status(backend.condition, backend.reason, backend.proven, backend.streak, backend.failures)

    def impose(self, backend: Backend, status: Status, now: float) -> None:
        """Take over what another process knows. What nothing probes is tried from here as if it had gone down now."""
        if status.condition not in _HEALTHY and backend.condition in _HEALTHY and status.proven:
            backend.last_healthy = now
        moved = backend.condition is not status.condition
        backend.condition, backend.reason, backend.proven, backend.streak, backend.failures = status
        if moved:
            backend.state = status.condition.shown
            self._settle(backend, now)

    def revisit(self, backend: Backend, now: float) -> None:
        """Fit a backend that other rules (of the pool before a reload) left as it is into these: trials, or none."""
        if backend.condition is Condition.DOWN:
            self._settle(backend, now)

    def open_trial(self, backend: Backend) -> None:
        """Its back-off is over: let the next request that comes upon it through."""
        backend.available = True
        self.changes.count += 1

    def take_trial(self, backend: Backend, now: float) -> None:
        """A request goes there as a trial: no second one until its outcome, or until the same back-off has passed without one."""
        backend.available = False
        backend.trial = True
        backend.trial_at = now + backend.backoff
        self.changes.count += 1

    def _told(self, backend: Backend, signal: Signal, now: float) -> bool:
        changed = self._signal(backend, signal, now)
        if changed and self.watch is not None:
            self.watch(backend, None, changed)
        return changed

    def _trial_failed(self, backend: Backend, now: float) -> None:
        if backend.trial:
            backend.trial = False
            backend.backoff = min(BACKOFF_MAX, backend.backoff * 2)
            backend.trial_at = now + backend.backoff
            self.changes.count += 1

    def _signal(self, backend: Backend, signal: Signal, now: float, reason: str = "") -> bool:
        """Move the backend's state. True when what people see of it changed."""
        before = backend.condition
        after = TRANSITIONS.get((before, signal), before)
        if after is before:
            return False
        if signal is Signal.FELL:
            if backend.proven:
                backend.last_healthy = now
            backend.reason = reason
        elif signal is Signal.ROSE:
            backend.reason = ""
        if signal in {Signal.FELL, Signal.ROSE}:
            backend.streak = backend.failures = 0
        backend.condition = after
        backend.state = after.shown
        self._settle(backend, now)
        return before.shown != after.shown

    def _settle(self, backend: Backend, now: float) -> None:
        """Bring what hangs on the state in line with it."""
        backend.available = backend.condition.usable
        backend.trial = False
        if backend.available:
            backend.since = now
        if backend.condition is Condition.DOWN and not self._probed:
            backend.backoff = BACKOFF_MIN
            backend.trial_at = now + BACKOFF_MIN
        else:
            backend.trial_at = inf
        self.changes.count += 1
