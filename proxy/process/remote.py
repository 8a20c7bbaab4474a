"""A team of workers in processes of their own, as their controller sees it.

Changes of the configuration go to all in two steps: each prepares, and when all can, all commit. What probes and live requests find out of
backends is judged here, and told to all; workers act on their own findings at once and go on without a controller. Numbers that a worker
has counted stay when it ends.
"""

import asyncio
import itertools
import os
import pickle
import secrets
import socket
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from balancer.backend import Backend
from balancer.health import Status
from balancer.pool import Outcome
from proxy.config.compile import adopt, compile_snapshot, with_port
from proxy.config.compile_pool import Services
from proxy.config.connection_ids import keys_of
from proxy.config.diff import in_use
from proxy.config.load import Configuration
from proxy.config.transfer import pack
from proxy.control.certificates import with_certificates
from proxy.control.merge import Counted, merged
from proxy.control.metrics import Reading, read
from proxy.listen.tls import TlsContexts
from proxy.observe import Log, Metrics
from proxy.process.link import Link
from proxy.process.team import Refused
from proxy.process.worker import Shared
from proxy.snapshot import Snapshot
from proxy.sni import Certificate

PREPARE_LIMIT = 60.0
"""Seconds that a worker may take to prepare a configuration."""

READ_LIMIT = 1.0
"""Seconds that a worker may take to tell its numbers; then its last ones stand."""

INFLIGHT = "qproxy_backend_inflight"
ACCEPTING = "qproxy_accepting"


@dataclass(frozen=True, slots=True)
class Kept:
    """What a controller leaves to its successor."""

    configuration: bytes
    """As ``transfer.pack`` makes it."""
    shared: Shared
    """With the generation in use."""


class Member:
    """One worker."""

    def __init__(self, slot: int, pid: int) -> None:
        self.slot = slot
        self.pid = pid
        self.link: Link
        self.serving = False
        self.leaving = False
        """Of the crew before an upgrade: it changes no more, and is only read."""
        self.counted = Counted()
        self.waiting: dict[int, asyncio.Future[Any]] = {}
        """What it has to answer, by number."""


class RemoteTeam:
    """A ``team.Team``. Its own snapshot is never served: its pools are what is probed, judged and shown."""

    def __init__(  # what is served, and what a process has
        self, configuration: Configuration, shared: Shared, metrics: Metrics, log: Log, services: Services
    ) -> None:
        self._services = services
        self._shared = shared
        self._metrics = metrics
        self._log = log
        self._members: dict[int, Member] = {}
        self._numbers = itertools.count(1)
        self._ended = Counted()
        self._contexts = TlsContexts()
        self._certificates: dict[str, Collection[Certificate]] = {}
        self._news: dict[tuple[str, str], None] = {}
        self._telling = False
        self._served = asyncio.Event()
        self._left = False
        self._wanted = 0
        self._changed = asyncio.Event()
        self._workers = metrics.gauge("qproxy_workers", "Worker processes that serve").cell()
        self._restarts = metrics.counter("qproxy_worker_deaths_total", "Worker processes that ended without having been told to").cell()
        words = "Worker processes that were replaced because their memory stayed at its limit"
        self._replaced = metrics.counter("qproxy_workers_replaced_total", words).cell()
        self.about_to_serve: Callable[[Configuration], None] = _ignore
        """Told before the workers commit a configuration."""
        self.counts_changed: Callable[[], None] = _nothing
        """Told when a worker has ended: what it counted is only here now."""
        self.draining = False
        """Whether all is coming to its end."""
        self.most_workers = 0
        """See ``team.Team``; known once the supervisor has told it."""
        self.configuration = configuration
        """The one in use."""
        self._snapshot = self._compile(configuration, None, shared.generation)
        self._contexts.build(self._snapshot)
        self._packed = pack(configuration)
        self._watch()

    @property
    def is_here(self) -> bool:
        """See ``team.Team``."""
        return False

    @property
    def snapshot(self) -> Snapshot:
        """See ``team.Team``."""
        return self._snapshot

    @property
    def workers(self) -> int:
        """See ``team.Team``."""
        return sum(member.serving for member in self._members.values())

    @property
    def accepting(self) -> bool:
        """See ``team.Team``. Each worker tells once a second; one that has not yet, accepts."""
        return any(member.serving and member.counted.gauge(ACCEPTING) != 0 for member in self._members.values())

    # Workers come and go

    def add(self, slot: int, pid: int, sock: socket.socket, *, leaving: bool = False) -> None:
        """A worker that was started, or that served a controller before this one; *leaving*: it serves what it has to its end."""
        old = self._members.get(slot)
        if old is not None:
            self._gone(old)
        member = Member(slot, pid)
        member.leaving = leaving
        member.link = Link(sock, partial(self._hear, member), partial(self._gone, member))
        self._members[slot] = member
        if leaving:
            return
        member.link.send(("start", self._packed, replace(self._shared, generation=self._snapshot.generation)))
        if self._certificates:
            member.link.send(("certificates", self._certificates))
        statuses = [
            (name, backend.identity, pool.balancer.health.status(backend))
            for name, pool in self._snapshot.pools.items()
            for backend in pool.balancer.backends
            if backend.proven or backend.state != "up" or backend.failures
        ]
        member.link.send(("status", statuses))

    def compiled(self, configuration: Configuration) -> Snapshot:
        """See ``team.Team``."""
        return self._compile(configuration, None, 0)

    def bound(self, ports: list[list[int]], workers: int, most_workers: int) -> None:
        """The ports that listeners were given, for TCP and UDP; how many workers there are to be, and how many there is room for."""
        self.most_workers = most_workers
        self.configuration = in_use(self.configuration, self.configuration, workers)
        self._packed = pack(self.configuration)
        numbers = [tcp or udp for tcp, udp in ports]
        listeners = tuple(with_port(listener, port) for listener, port in zip(self._snapshot.listeners, numbers, strict=False))
        tiers = zip(self._snapshot.l4, numbers[len(listeners) :], strict=True)
        l4 = tuple(replace(listener, address=(listener.address[0], port)) for listener, port in tiers)
        self._snapshot = replace(self._snapshot, listeners=listeners, l4=l4)

    def retire(self, slots: Collection[int], *, replaced: bool) -> None:
        """The workers of these slots finish what they have: there are to be fewer, or they are *replaced* for their memory."""
        if replaced:
            self._replaced.value += len(slots)
        for slot in slots:
            if slot in self._members:
                self._members[slot].leaving = True
                self._members[slot].serving = False
        self._look()

    async def all_serve(self, count: int) -> None:
        """Until so many workers serve."""
        self._wanted = count
        self._look()
        await self._served.wait()

    async def ended(self) -> None:
        """Until all workers are gone."""
        self._wanted = 0
        self._served.clear()
        while self._members:
            await self._changed.wait()
            self._changed.clear()

    def _look(self) -> None:
        serving = sum(member.serving for member in self._members.values())
        self._workers.value = serving
        self._changed.set()
        if self._wanted and serving >= self._wanted:
            self._served.set()

    def _gone(self, member: Member) -> None:
        member.link.close()
        if self._members.get(member.slot) is member:
            del self._members[member.slot]
        if not self._left:
            self._ended.keep_counts(member.counted)
        for future in member.waiting.values():
            if not future.done():
                future.set_result(None)
        if not self.draining and not member.leaving:
            self._restarts.value += 1
            self.counts_changed()
        self._look()

    def _hear(self, member: Member, message: tuple[Any, ...], descriptors: list[int]) -> None:
        for descriptor in descriptors:
            os.close(descriptor)
        kind = message[0]
        if kind == "readings":
            member.counted.take(message[2])
            self._answered(member, message[1], result=True)
        elif kind == "serving":
            member.serving = True
            self._look()
        elif kind == "answer":
            self._answered(member, message[1], result=message[2])
        elif kind == "outcomes":
            for outcome in message[1]:
                self._judge(*outcome)

    @staticmethod
    def _answered(member: Member, number: int, *, result: object) -> None:
        future = member.waiting.pop(number, None)
        if future is not None and not future.done():
            future.set_result(result)

    def _ask(self, member: Member, kind: str, *what: object) -> "asyncio.Future[Any]":
        """The answer of one that ends meanwhile is None."""
        number = next(self._numbers)
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        member.waiting[number] = future
        member.link.send((kind, number, *what))
        return future

    # Configuration

    async def change(self, configuration: Configuration, generation: int) -> Snapshot:
        """See ``team.Team``."""
        configured = self._compile(configuration, self._snapshot, generation)
        self._contexts.build(configured)
        packed = pack(configuration)
        members = [member for member in self._members.values() if not member.leaving]
        asked = [self._ask(member, "prepare", generation, packed) for member in members]
        if asked:
            await asyncio.wait(asked, timeout=PREPARE_LIMIT)
        problems = [f"worker {member.slot}: {future.result()}" for member, future in zip(members, asked, strict=True) if _refused(future)]
        problems += [f"worker {member.slot} did not answer" for member, future in zip(members, asked, strict=True) if not future.done()]
        if problems:
            for member in members:
                member.link.send(("abandon", generation))
            self._contexts.build(self._snapshot)
            raise Refused("; ".join(dict.fromkeys(problems)))
        self.about_to_serve(configuration)
        for member in self._members.values():
            if member not in members and not member.leaving:  # it came meanwhile
                self._ask(member, "prepare", generation, packed)
            if not member.leaving:
                member.link.send(("commit", generation))
        adopt(configured, self._snapshot, time.monotonic())
        l4 = tuple(replace(new, address=old.address) for new, old in zip(configured.l4, self._snapshot.l4, strict=True))
        self._snapshot = replace(configured, listeners=self._snapshot.listeners, admin=self._snapshot.admin, l4=l4)
        self._packed = packed
        self.configuration = configuration
        self._certificates.clear()
        self._watch()
        return configured

    def publish_certificates(self, certificates: Mapping[str, Collection[Certificate]]) -> Collection[str]:
        """See ``team.Team``."""
        snapshot, changed = with_certificates(self._snapshot, certificates)
        if changed:
            self._contexts.build(snapshot)
            self._snapshot = snapshot
            self._certificates.update(certificates)
            for member in self._members.values():
                if not member.leaving:
                    member.link.send(("certificates", dict(certificates)))
        return changed

    def kept(self) -> Kept:
        """What a controller after this one has to know."""
        return Kept(self._packed, replace(self._shared, generation=self._snapshot.generation))

    def _compile(self, configuration: Configuration, previous: Snapshot | None, generation: int) -> Snapshot:
        return compile_snapshot(
            configuration,
            metrics=Metrics(),  # requests are counted elsewhere
            secret=keys_of(configuration, self._shared.secret).ring_key,
            seed=secrets.randbits(64),
            generation=generation,
            make_request_id=bytes,
            default_certificate=self._shared.default_certificate,
            previous=previous,
            services=self._services,
            now=None,
        )

    # Backends

    def _watch(self) -> None:
        for name, pool in self._snapshot.pools.items():
            pool.balancer.health.watch = partial(self._found, name)

    def _found(self, pool: str, backend: Backend, outcome: Outcome | None, changed: bool) -> None:
        """News of a backend: for all workers, together with what else there is in this turn of the loop."""
        del outcome, changed
        self._news[pool, backend.identity] = None
        if not self._telling:
            self._telling = True
            asyncio.get_running_loop().call_soon(self._tell)

    def _tell(self) -> None:
        self._telling = False
        statuses: list[tuple[str, str, Status]] = []
        for name, identity in self._news:
            if (found := self._snapshot.find_backend(name, identity)) is not None:
                balancer, backend = found
                statuses.append((name, identity, balancer.health.status(backend)))
        self._news.clear()
        for member in self._members.values():
            member.link.send(("status", statuses))

    def _judge(self, name: str, identity: str, outcome: Outcome, changed: bool) -> None:
        """What live requests at a worker have found."""
        if (found := self._snapshot.find_backend(name, identity)) is None:
            return
        balancer, backend = found
        if outcome is Outcome.SUCCESS and changed:
            backend.trial = True  # the worker's, which has succeeded
        before = backend.state
        if balancer.report(backend, outcome, time.monotonic()) and backend.state != before:
            say = self._log.info if backend.state == "up" else self._log.warning
            say(
                f"backend {identity} of pool {name} is {backend.state}",
                pool=name,
                backend=identity,
                state=backend.state,
                reason=backend.reason,
            )

    # Numbers

    async def readings(self) -> list[Reading]:
        """See ``team.Team``."""
        asked = [self._ask(member, "read") for member in self._members.values()]
        if asked:
            await asyncio.wait(asked, timeout=READ_LIMIT)
        self.show_inflight()
        own = read(self._metrics)
        others = [[reading for reading in counted.readings() if reading.name != INFLIGHT] for counted in self._all_counted()]
        return merged([*others, own])

    def show_inflight(self) -> None:
        """Let the balancers here show what is in progress at the workers'."""
        sums: dict[tuple[str, ...], float] = {}
        for member in self._members.values():
            for labels, value in member.counted.families.get(INFLIGHT, (None, {}))[1].items():
                assert not isinstance(value, tuple)
                sums[labels] = sums.get(labels, 0.0) + value
        for name, pool in self._snapshot.pools.items():
            for backend in pool.balancer.backends:
                backend.inflight = int(sums.get((name, backend.identity), 0))

    def _all_counted(self) -> list[Counted]:
        return [self._ended, *(member.counted for member in self._members.values())]

    def pack_counts(self) -> bytes:
        """What was counted by workers that are gone, and by the controller itself: for its successor."""
        counts = Counted()
        counts.keep_counts(self._ended)
        own = Counted()
        own.take([(reading, []) for reading in read(self._metrics)])
        counts.keep_counts(own)
        return pickle.dumps(counts)

    def leave(self) -> bytes:
        """The workers are another controller's from now on; gives what it can't learn from them."""
        self.draining = self._left = True
        return self.pack_counts()

    def inherit_counts(self, data: bytes) -> None:
        """Go on from what ``pack_counts`` gave."""
        counts = pickle.loads(data)  # noqa: S301  # from our own process
        assert isinstance(counts, Counted)
        self._ended.keep_counts(counts)


def _nothing() -> None:
    """Nobody wants to know."""


def _ignore(configuration: Configuration) -> None:
    """Nobody wants to know."""


def _refused(future: "asyncio.Future[Any]") -> bool:
    """Whether a worker has answered with what is wrong; an empty word, or its end, is no refusal."""
    return future.done() and bool(future.result())
