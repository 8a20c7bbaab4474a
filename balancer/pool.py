"""A pool: where a request with this key goes, and what has become of those that went.

The balancer's front: joins tiers, policies, health and the retry budget. Knows no protocol, address or clock. State hangs on the
backends, and a reload hands them on by identity (``adopt``), so that an unchanged backend is the same object in the old pool and in
the new one.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from math import inf

from balancer.backend import Backend
from balancer.budget import Budget
from balancer.condition import Condition
from balancer.health import Health, Outcome
from balancer.policies import Policy, PolicyName, make_policy
from balancer.tier import Tier

__all__ = ["Member", "Outcome", "Pool", "PoolSettings", "Step"]


@dataclass(frozen=True, slots=True)
class Member:
    """A backend as configured."""

    identity: str
    """The endpoint's normalised URL; once in a pool."""
    weight: int = 1
    backup: int = 0
    """0: a primary. A backup takes requests only while no backend with a lower number is available."""


@dataclass(frozen=True, slots=True)
class PoolSettings:
    """How a pool chooses and judges."""

    policy: PolicyName = "consistent_hash"
    rise: int = 2
    """Probes in a row that bring a backend up."""
    fall: int = 3
    """Probes in a row that take it down."""
    panic: bool = False
    """With all down, go by the last known good instead of giving up."""
    retry_budget_ratio: float = 0.2
    """Retries for each request."""
    retry_budget_min: float = 10.0
    """Retries a second in any case."""
    passive_fall: int = 0
    """Live failures in a row that take a backend down; 0: off."""
    probed: bool = False
    """Probes bring a backend that is down up again. Without them a trial request does, after a back-off."""
    slow_start: float = 0.0
    """Seconds in which a backend that came up comes by its whole share, for those who ``choose``; 0: at once."""

    def __post_init__(self) -> None:
        """Raise ValueError for settings that can't work."""
        if self.rise < 1 or self.fall < 1 or self.passive_fall < 0:
            msg = "rise and fall are at least 1, passive_fall at least 0"
            raise ValueError(msg)
        if not 0 <= self.slow_start < inf:
            msg = "a slow start lasts 0 seconds or more"
            raise ValueError(msg)
        if not (0 <= self.retry_budget_ratio < inf and 0 <= self.retry_budget_min < inf):
            msg = "the retry budget's ratio and minimum are at least 0"
            raise ValueError(msg)


@dataclass(frozen=True, slots=True)
class Step:
    """One step of the candidate walk, for people."""

    backend: Backend
    state: str
    chosen: bool
    why: str


_UP = Condition.UP  # as in health: a member looked up on its class costs as much as all the rest
PANIC_FIRST = "all are down, and the pool panics: was healthy last"
PANIC_NEXT = "comes next"


class Pool:
    """Backends, the policy among them, and their health.

    *secret* (at most 64 bytes) keys the ring; *seed* starts the random policies. Raises ValueError for an identity that stands twice, a
    weight under 1, and a ring too large.
    """

    def __init__(self, name: str, members: Sequence[Member], settings: PoolSettings, secret: bytes, seed: int) -> None:
        if len({member.identity for member in members}) != len(members):
            msg = f"pool {name}: an endpoint stands twice"
            raise ValueError(msg)
        if any(member.weight < 1 for member in members):
            msg = f"pool {name}: weights are whole numbers of 1 and more"
            raise ValueError(msg)
        self.name = name
        self.settings = settings
        self._members = tuple(members)
        self._secret = secret
        self._seed = seed
        self.health = Health(rise=settings.rise, fall=settings.fall, passive_fall=settings.passive_fall, probed=settings.probed)
        self.budget = Budget(settings.retry_budget_ratio, settings.retry_budget_min)
        self._assemble(tuple([Backend(member.identity, member.weight, backup=member.backup) for member in members]))

    def candidates(self, key: bytes, now: float, pinned: Backend | None = None) -> Iterator[Backend]:
        """The backends to try, first choice first, each once at most, and none that is unavailable by the time it is reached.

        *pinned* comes first while it is available and in this pool; then the primaries, then the backups. Empty when all are down, but
        for ``panic``: then all that are not draining, the one that was healthy last first.
        """
        if self._seen != self._changes.count or now >= self._next_trial:
            self._catch_up(now)
        if self._plain and pinned is None:
            return self._policies[0].walk(key)
        return self._walk(key, now, pinned)

    def choose(self, key: bytes, now: float) -> Backend | None:
        """The backend for what is new and has this key, as ``slow_start`` allows; None when all are down.

        While a backend warms up, a part of its keys that grows with time goes to it, and the others to those behind it, which are up for
        longer. Where all warm up, it is the first candidate all the same.
        """
        walk = self.candidates(key, now)
        first = next(walk, None)
        if first is None or not self.settings.slow_start or self._warm(first, key, now):
            return first
        return next((backend for backend in walk if self._warm(backend, key, now)), first)

    def _warm(self, backend: Backend, key: bytes, now: float) -> bool:
        """Whether it takes this key already."""
        share = (now - backend.since) / self.settings.slow_start
        return share >= 1 or int.from_bytes(blake2b(key, digest_size=4, key=self._secret, person=b"qproxy-warm").digest()) < share * 2**32

    def stays(self, pinned: Backend) -> bool:
        """Whether a pinned backend is in this pool and up: then it is the first candidate, and the walk need not be begun for it."""
        return pinned.condition is _UP and self._by_identity.get(pinned.identity) is pinned

    def others(self, key: bytes, now: float, tried: Backend) -> Iterator[Backend]:
        """The candidates after *tried*, which ``stays`` had given the first try."""
        if self._seen != self._changes.count or now >= self._next_trial:
            self._catch_up(now)
        return self._rest(key, now, tried)

    def report(self, backend: Backend, outcome: Outcome, now: float) -> bool:
        """What happened at a backend, from probes and live requests alike. True when its state changed."""
        return self.health.report(backend, outcome, now)

    def drain(self, backend: Backend, now: float) -> bool:
        """Send nothing new to a backend. True when its state changed."""
        return self.health.drain(backend, now)

    def restore(self, backend: Backend, now: float) -> bool:
        """End the draining of a backend. True when its state changed."""
        return self.health.restore(backend, now)

    def acquire(self, backend: Backend) -> None:
        """A request goes to a backend."""
        backend.inflight += 1

    def release(self, backend: Backend, outcome: Outcome | None, now: float) -> bool:
        """A request that ``acquire`` counted is over; None: that says nothing of the backend. True when its state changed."""
        backend.inflight -= 1
        assert backend.inflight >= 0, "released more often than acquired"
        return outcome is not None and self.health.report(backend, outcome, now)

    def note_request(self, now: float) -> None:
        """Count a request, not its retries: the retry budget grows by it."""
        self.budget.note_request(now)

    def allow_retry(self, now: float) -> bool:
        """Whether the budget has room for a retry; spends it."""
        return self.budget.allow_retry(now)

    def with_members(self, members: Sequence[Member], now: float) -> "Pool":
        """The same pool with other *members*. Those that stay are the same backends; the others get no request from this pool either.

        Raises ValueError as the constructor does; then nothing has changed.
        """
        other = Pool(self.name, members, self.settings, self._secret, self._seed)
        other.adopt(self, now)
        for backend in self.backends:
            if other.find(backend.identity) is None:
                self.health.drain(backend, now)  # walks that have begun pass it over
        return other

    def adopt(self, previous: "Pool", now: float) -> None:
        """Take over what *previous* knows: its backends by identity (with state and what is in flight) and its retry budget.

        Both pools may be used afterwards. A backend that was down is judged by this pool's settings from now on, so call it when nothing
        can keep this pool from being used any more.
        """
        known = {backend.identity: backend for backend in previous.backends}
        self.health.changes = previous.health.changes
        self.health.watch = self.health.watch or previous.health.watch
        if self.budget.same_terms(previous.budget):
            self.budget = previous.budget
        backends = tuple(known.get(backend.identity, backend) for backend in self.backends)
        for backend in backends:
            if backend.identity not in known:
                backend.since = now
        for backend, member in zip(backends, self._members, strict=True):
            backend.weight = member.weight
            backend.backup = member.backup
            if self.settings.probed != previous.settings.probed:
                self.health.revisit(backend, now)
        self._assemble(backends)

    @property
    def members(self) -> tuple[Member, ...]:
        """The backends as configured for this pool, whatever a later pool that adopted them has made of their weights."""
        return self._members

    def find(self, identity: str) -> Backend | None:
        """The backend of that identity."""
        return self._by_identity.get(identity)

    def explain(self, key: bytes, now: float) -> list[Step]:
        """The walk for *key* as it would be at *now*, with those passed over and why. Takes no turn and no trial."""
        self._catch_up(now)
        steps: list[Step] = []
        chosen = False
        for tier, policy in zip(self._tiers, self._policies, strict=True):
            order = policy.preview(key)
            shown = set(order)
            order += [backend for backend in tier.backends if backend not in shown]
            for place, backend in enumerate(order):
                why = _why(backend, "comes next" if place else policy.why)
                steps.append(Step(backend, backend.state, backend.available and not chosen, why))
                chosen = chosen or backend.available
        if chosen or not self.settings.panic:
            return steps
        order = self._last_known_good()
        panic = [Step(backend, backend.state, not place, PANIC_NEXT if place else PANIC_FIRST) for place, backend in enumerate(order)]
        return panic + [step for step in steps if step.state == "draining"]

    def _assemble(self, backends: tuple[Backend, ...]) -> None:
        """Build what stands on the backend objects."""
        self.backends = backends
        """In the order of the configuration."""
        self._by_identity = {backend.identity: backend for backend in backends}
        self._changes = self.health.changes
        tiers = []
        for backup in sorted({member.backup for member in self._members}) or [0]:
            chosen = [(backend, member.weight) for backend, member in zip(backends, self._members, strict=True) if member.backup == backup]
            tiers.append(Tier([backend for backend, _ in chosen], [weight for _, weight in chosen], self._changes))
        self._tiers = tuple(tiers)
        policies = [make_policy(self.settings.policy, tier, self._secret, self._seed) for tier in tiers]
        self._policies: tuple[Policy, ...] = tuple(policies)
        self._refresh()

    def _refresh(self) -> None:
        """Derive anew what depends on the backends' states."""
        self._seen = self._changes.count
        self._next_trial = min((backend.trial_at for backend in self.backends if not backend.available), default=inf)
        trials = any(backend.available and backend.condition is Condition.DOWN for backend in self.backends)
        self._plain = len(self._tiers) == 1 and bool(self._tiers[0].active()) and not trials
        """The first tier's walk is the whole answer."""
        self._fallback: list[Backend] | None = None

    def _catch_up(self, now: float) -> None:
        """Take in what changed, and open the trials that are due."""
        for backend in self.backends:
            if not backend.available and backend.trial_at <= now:
                self.health.open_trial(backend)
        if self._seen != self._changes.count:
            self._refresh()

    def _walk(self, key: bytes, now: float, pinned: Backend | None) -> Iterator[Backend]:
        """``candidates`` in full."""
        first = pinned if pinned is not None and pinned.available and self._by_identity.get(pinned.identity) is pinned else None
        if first is not None:
            yield self._taken(first, now)
        yield from self._rest(key, now, first)

    def _rest(self, key: bytes, now: float, first: Backend | None) -> Iterator[Backend]:
        """The walk without its first step."""
        empty = first is None
        for tier, policy in zip(self._tiers, self._policies, strict=True):
            if not tier.active():
                continue
            for backend in policy.walk(key):
                if backend is not first:
                    empty = False
                    yield self._taken(backend, now)
        if empty and self.settings.panic:
            yield from self._last_known_good()

    def _taken(self, backend: Backend, now: float) -> Backend:
        if backend.condition is Condition.DOWN:
            self.health.take_trial(backend, now)
        return backend

    def _last_known_good(self) -> list[Backend]:
        if self._fallback is None:
            usable = [backend for backend in self.backends if backend.state != "draining"]
            self._fallback = sorted(usable, key=lambda backend: -backend.last_healthy)
        return self._fallback


def _why(backend: Backend, taken: str) -> str:
    """Why a backend is passed over, or *taken* when it is not."""
    if backend.state == "draining":
        words = "is draining and takes nothing new"
    elif backend.condition is not Condition.DOWN:
        words = taken
    else:
        words = f"is down ({backend.reason})" + (", but a trial request is due" if backend.available else "")
    return f"backup: {words}" if backend.backup else words
