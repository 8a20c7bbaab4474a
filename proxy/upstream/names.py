"""Names, each asked for again as its answer expires, beside the requests: whoever needs an answer finds it here.

Knows names, answers and time; who asks (``ares``), and what an answer is of (addresses, services), is given. A name that fails to be
answered keeps its last answer for a bounded time (RFC 8767): DNS that is down takes no backend with it. That a name is not there, or has
no such record, is a failure like any other, since a zone that is being reloaded says so too.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Generic, Literal, TypeAlias, TypeVar

from proxy.observe import Log, Metrics
from proxy.tasks import Tasks

TTL_FLOOR = 1.0
"""Seconds that an answer is good for at least: a TTL of 0 asks for no more than that."""

TTL_CEILING = 3600.0
"""Seconds after which a name is asked for again whatever its TTL, by default: a mistake in a zone is not to last for a day."""

RETRY_MIN = 1.0
"""Seconds from a failure to the next attempt; doubled with each one more in a row."""

RETRY_MAX = 5.0
"""Seconds between attempts at most."""

PARALLEL = 64
"""Lookups of one kind at the same time."""

RESULTS = ("ok", "no_name", "no_data", "timeout", "refused", "server_failure", "error")
"""What a lookup may end with: values of a metric's label."""

RecordT = TypeVar("RecordT")
State: TypeAlias = Literal["asked", "fresh", "stale", "none"]


class DnsError(Exception):
    """A lookup without an answer. *result* is one of RESULTS, but ``ok``; the text is for people."""

    def __init__(self, result: str, detail: str) -> None:
        super().__init__(detail)
        self.result = result


@dataclass(frozen=True, slots=True)
class Answer(Generic[RecordT]):
    """What a name was found to have: one record at least."""

    records: tuple[RecordT, ...]
    ttl: float
    """Seconds; the least of all records'."""


@dataclass(frozen=True, slots=True, order=True)
class Service:
    """An SRV record (RFC 2782)."""

    priority: int
    """The lowest is tried first."""
    target: str
    """A host name in lower case, without the dot at its end."""
    port: int
    weight: int

    def __str__(self) -> str:
        """As log lines have it."""
        return f"{self.target}:{self.port} priority {self.priority} weight {self.weight}"


Ask: TypeAlias = Callable[[str], Awaitable[Answer[RecordT]]]
"""Looks a name up once. Raises DnsError."""


class Known(Generic[RecordT]):
    """What is known of one name."""

    __slots__ = ("answered_at", "failures", "first", "name", "problem", "records", "state", "ttl")

    def __init__(self, name: str) -> None:
        self.name = name
        self.records: tuple[RecordT, ...] = ()
        """In use: of the last answer, while that may be used."""
        self.state: State = "asked"
        """``asked``: for the first time; ``fresh``; ``stale``: in use beyond its time, since DNS does not answer; ``none``."""
        self.problem = ""
        """Why the last lookup failed; empty when it did not."""
        self.answered_at = 0.0
        self.ttl = 0.0
        """Seconds that the answer is good for, within the floor and the ceiling."""
        self.failures = 0
        """In a row."""
        self.first = asyncio.Event()
        """Set when the first lookup is over, whatever it gave."""

    def words(self, now: float) -> str:
        """How it stands, for people."""
        if self.state == "asked":
            return "is being looked up"
        if self.state == "none":
            return f"unknown: {self.problem}"
        age = max(0.0, now - self.answered_at)
        if self.state == "stale":
            return f"stale, answered {age:.0f} s ago with TTL {self.ttl:g} s: {self.problem}"
        return f"fresh, answered {age:.0f} s ago with TTL {self.ttl:g} s"


@dataclass(frozen=True, slots=True)
class Means:
    """What keeping names fresh takes besides somebody to ask."""

    log: Log
    metrics: Metrics
    tasks: Tasks
    clock: Callable[[], float]
    """Monotonic seconds."""
    timeout: float
    """Seconds that one lookup may take."""
    stale: float
    """Seconds that an answer may be used beyond its TTL while lookups fail."""
    max_ttl: float = TTL_CEILING
    """Seconds that an answer is good for at most."""


class Names(Generic[RecordT]):
    """The names of one *kind* (a metric's label: ``address``).

    ``changed`` is called after each change of what a name has, its first answer included.
    """

    def __init__(self, kind: str, ask: Ask[RecordT], means: Means, changed: Callable[[Known[RecordT]], None] | None = None) -> None:
        self._kind = kind
        self._ask = ask
        self._means = means
        self._changed = changed
        self._known: dict[str, Known[RecordT]] = {}
        self._running: dict[str, asyncio.Task[None]] = {}
        self._parallel = asyncio.Semaphore(PARALLEL)
        metrics = means.metrics
        self._lookups = metrics.counter(
            "qproxy_dns_lookups_total", "DNS lookups, by kind (address, service, peer) and result", ("kind", "result")
        )
        self._changes = metrics.counter(
            "qproxy_dns_changes_total",
            "What became of names (changed: other records; stale: the last answer is kept; expired: it no longer is; failed: no first "
            "answer; recovered)",
            ("kind", "change"),
        )
        self._ages = metrics.gauge("qproxy_dns_answer_age_seconds", "Age of the answers in use", ("kind", "name"))
        self._states = metrics.gauge(
            "qproxy_dns_names", "Names by the state of their answers (asked, fresh, stale, none)", ("kind", "state")
        )

    def follow(self, names: Iterable[str]) -> None:
        """Keep *names* fresh from now on, and no others. What is known of those that stay is kept."""
        wanted = dict.fromkeys(names)
        for name in [name for name in self._known if name not in wanted]:
            self._known.pop(name).first.set()
            self._running.pop(name).cancel()
            self._ages.cells.pop((self._kind, name), None)
        for name in wanted:
            if name not in self._known:
                known = self._known[name] = Known(name)
                self._running[name] = self._means.tasks.start(f"look up {name}", self._keep(known))

    def known(self, name: str) -> Known[RecordT] | None:
        """What is known of a name that is followed."""
        return self._known.get(name)

    async def settled(self, name: str) -> Known[RecordT]:
        """What is known of *name* as soon as its first lookup is over. One that is not followed is looked up for this once."""
        known = self._known.get(name)
        if known is not None:
            await known.first.wait()
            if known.state != "asked":
                return known
        known = Known(name)  # a reload took the name away: who asks began before it
        try:
            answer = await self._look_up(name)
        except DnsError as failure:
            known.state, known.problem = "none", str(failure)
        else:
            known.state, known.records = "fresh", answer.records
        return known

    def show(self) -> None:
        """A hook for ``Metrics.before_read``: sets the gauges."""
        now = self._means.clock()
        for state in ("asked", "fresh", "stale", "none"):
            self._states.cell(self._kind, state).value = 0
        for name, known in self._known.items():
            self._states.cell(self._kind, known.state).value += 1
            if known.records:
                self._ages.cell(self._kind, name).value = now - known.answered_at
            else:
                self._ages.cells.pop((self._kind, name), None)

    async def _keep(self, known: Known[RecordT]) -> None:
        """One name's lookups, one after the other."""
        while True:
            try:
                answer = await self._look_up(known.name)
            except DnsError as failure:
                pause = self._failed(known, failure)
            else:
                pause = self._take(known, answer)
            known.first.set()
            await asyncio.sleep(pause)

    async def _look_up(self, name: str) -> Answer[RecordT]:
        """Look *name* up, and count it. Raises DnsError."""
        limit = self._means.timeout
        try:
            async with self._parallel, asyncio.timeout(limit):
                answer = await self._ask(name)
        except DnsError as failure:
            self._lookups.cell(self._kind, failure.result).value += 1
            raise
        except TimeoutError:
            self._lookups.cell(self._kind, "timeout").value += 1
            raise DnsError("timeout", f"no answer within {limit:g} s") from None
        except Exception as error:  # whatever a library raises, the name has to be asked for again
            self._lookups.cell(self._kind, "error").value += 1
            raise DnsError("error", f"{type(error).__name__}: {error}") from error
        self._lookups.cell(self._kind, "ok").value += 1
        return answer

    def _take(self, known: Known[RecordT], answer: Answer[RecordT]) -> float:
        """Use *answer*; gives the seconds until the next lookup."""
        before, state = known.records, known.state
        known.records = answer.records
        known.ttl = min(max(answer.ttl, TTL_FLOOR), self._means.max_ttl)
        known.answered_at = self._means.clock()
        known.state, known.problem, known.failures = "fresh", "", 0
        if state in {"stale", "none"}:
            self._changes.cell(self._kind, "recovered").value += 1
            self._say(known, "is answered again by DNS", records=_shown(answer.records))
        differs = set(before) != set(answer.records)
        if differs and before:
            self._changes.cell(self._kind, "changed").value += 1
            self._say(known, "has changed in DNS", before=_shown(before), records=_shown(answer.records))
        if differs and self._changed is not None:
            self._changed(known)
        return known.ttl

    def _failed(self, known: Known[RecordT], failure: DnsError) -> float:
        """Keep what there is as long as that may be; gives the seconds until the next lookup."""
        known.problem = str(failure)
        pause = min(RETRY_MAX, RETRY_MIN * (1 << known.failures))
        known.failures = min(known.failures + 1, 10)
        left = known.answered_at + known.ttl + self._means.stale - self._means.clock() if known.records else 0.0
        if left > 0:
            self._fall(known, "stale", "stale", "does not get an answer from DNS: the last one is kept")
            return min(pause, left)
        expired = bool(known.records)
        known.records = ()
        what = "has no answer from DNS any more: the last one is too old" if expired else "has no answer from DNS"
        self._fall(known, "none", "expired" if expired else "failed", what)
        if expired and self._changed is not None:
            self._changed(known)
        return pause

    def _fall(self, known: Known[RecordT], state: State, change: str, what: str) -> None:
        """Move to a worse state, said and counted once."""
        if known.state == state:
            return
        known.state = state
        self._changes.cell(self._kind, change).value += 1
        say = self._means.log.warning
        say(f"{known.name} {what}", name=known.name, reason=known.problem, records=_shown(known.records))

    def _say(self, known: Known[RecordT], what: str, **details: object) -> None:
        say = self._means.log.info
        say(f"{known.name} {what}", name=known.name, **details)


def _shown(records: Collection[object]) -> list[str]:
    return [str(record) for record in records]
