"""A worker as a process of its own: ``python -m proxy.process.worker_main DESCRIPTOR DIR``, as the supervisor starts it."""

import asyncio
import contextlib
import gc
import os
import signal
import socket
import sys
import time
from functools import partial
from typing import Any

from balancer.backend import Backend
from balancer.health import Status
from balancer.pool import Outcome
from proxy.config.load import Configuration
from proxy.config.transfer import unpack
from proxy.control.log import Logs, LogSettings
from proxy.control.merge import Changes
from proxy.control.metrics import read
from proxy.listen.handover import Handover
from proxy.listen.shared_counts import SharedCounts
from proxy.listen.tls import ContextError
from proxy.observe import Metrics
from proxy.process.crew import leave_signals
from proxy.process.link import Link
from proxy.process.setup import EXIT_FAILURE, EXIT_OK, complain, loop_factory, raise_descriptor_limit, settle_memory
from proxy.process.worker import Place, Shared, Sockets, StartError, Worker
from proxy.snapshot import Snapshot
from proxy.tasks import Tasks

TELL_EVERY = 1.0
"""Seconds between numbers that nobody asked for: what a worker that is killed has not told is lost."""

MAX_UNTOLD = 1 << 20
"""Bytes that a controller has not taken, beyond which it is told no more: it hangs, and will ask when it comes back."""


class _Main:
    def __init__(self, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        self._placed: asyncio.Future[tuple[Place, list[Sockets], socket.socket | None]] = loop.create_future()
        self._started: asyncio.Future[tuple[Configuration, Shared]] = loop.create_future()
        self._worker: Worker | None = None
        self._metrics = Metrics()
        self._changes = Changes()
        self._prepared: dict[int, tuple[Configuration, Snapshot]] = {}
        self._unwanted = 0
        self._tasks: Tasks
        self._lending = asyncio.Lock()
        self._later: list[tuple[Any, ...]] = []
        self._outcomes: list[tuple[str, str, Outcome, bool]] = []
        self._controller: Link | None = None
        self._handovers: list[Handover] = []
        self._relays: list[socket.socket] = []
        self._siblings: frozenset[int] = frozenset()
        self._ending = asyncio.Event()
        self._hurry = False
        self._successor = False
        self._supervisor = Link(sock, self._hear_supervisor, self._ending.set, plain=True)

    async def run(self) -> int:
        """Until it has served to its end."""
        ending = asyncio.ensure_future(self._ending.wait())
        for needed in (self._placed, self._started):
            await asyncio.wait([ending, needed], return_when=asyncio.FIRST_COMPLETED)
            if not needed.done():
                return EXIT_OK
        (place, sockets, envelopes), (configuration, shared) = self._placed.result(), self._started.result()
        if configuration.server.pin_workers and hasattr(os, "sched_setaffinity"):
            cores = sorted(os.sched_getaffinity(0))
            os.sched_setaffinity(0, {cores[place.position % len(cores)]})
        log = configuration.log
        logs = Logs(LogSettings(form=log.format, level=log.level, access=log.access, worker=place.slot), self._metrics)
        logs.adopt_standard_logging()
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(logs.close)
            self._tasks = Tasks(logs.events)
            stack.push_async_callback(self._tasks.close)
            try:
                worker = self._worker = Worker(configuration, shared, self._metrics, logs, place)
                await worker.open(stack, sockets, envelopes, self._relays)
                worker.share(self._handovers, self._siblings)
            except (StartError, ContextError) as error:
                return complain(f"qproxy: {error}", EXIT_FAILURE)
            self._metrics.before_read.append(
                worker.meters.show_inflight(lambda: [pool.balancer for pool in worker.snapshot.pools.values()])
            )
            self._watch()
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self._ending.set)
            worker.keep_descriptors(raise_descriptor_limit(worker.snapshot.limits.connections, logs.events))
            settle_memory()
            for message in self._later:
                self._obey(message)
            self._later.clear()
            worker.replace_when_memory_stays(lambda: self._supervisor.send({"op": "replace"}))
            self._supervisor.send({"op": "serving"})
            self._say_serving()
            self._tasks.start("tell numbers", self._tell_numbers())
            await self._ending.wait()
            worker.succeeded = self._successor
            if self._hurry:
                worker.hurry.set()
            await worker.drain()
            self._send_numbers(0)
        return EXIT_OK

    # The supervisor's word

    def _hear_supervisor(self, message: dict[str, Any], descriptors: list[int]) -> None:
        op = message["op"]
        if op == "place":
            counts, *others = descriptors
            given = iter(others)
            sockets = [Sockets(*(socket.socket(fileno=next(given)) if has else None for has in kinds)) for kinds in message["listeners"]]
            for each in sockets:
                for sock in (each.tcp, each.udp):
                    if sock is not None:
                        sock.setblocking(False)
            envelopes = sockets.pop().udp if message["envelopes"] else None
            place = Place(message["slot"], message["position"], SharedCounts.attach(counts, message["slot"]))
            self._placed.set_result((place, sockets, envelopes))
        elif op == "strays":
            receiving, *sending = (socket.socket(fileno=descriptor) for descriptor in descriptors)
            self._handovers.append(Handover(receiving, dict(zip(message["slots"], sending, strict=True))))
        elif op == "relays":
            self._relays = [socket.socket(fileno=descriptor) for descriptor in descriptors]
            for sock in self._relays:
                sock.setblocking(False)
        elif op == "lend":
            self._lend(message["positions"], descriptors)
        elif op == "siblings":
            self._siblings = frozenset(message["slots"])
            if self._worker is not None:
                self._worker.know(self._siblings)
        elif op == "controller":
            if self._controller is not None:
                self._controller.close()
            self._changes = Changes()  # whoever it is knows nothing yet
            self._controller = Link(socket.socket(fileno=descriptors[0]), self._hear_controller, self._controller_gone)
        elif op in {"drain", "leave"}:
            self._successor = op == "leave"
            self._ending.set()
        elif op == "hurry":
            self._hurry = True
            if self._worker is not None:
                self._worker.hurry.set()
            self._ending.set()

    def _lend(self, positions: list[int], descriptors: list[int]) -> None:
        each = len(descriptors) // len(positions) if positions else 0
        given = [socket.socket(fileno=descriptor) for descriptor in descriptors]
        lent = {position: given[at * each : (at + 1) * each] for at, position in enumerate(positions)}
        self._tasks.start("lend", self._lend_in_turn(lent))

    async def _lend_in_turn(self, lent: dict[int, list[socket.socket]]) -> None:
        assert self._worker is not None
        async with self._lending:
            await self._worker.lend(lent)

    # The controller's word

    def _controller_gone(self) -> None:
        self._controller = None  # there will be another one; meanwhile all goes on

    def _hear_controller(self, message: tuple[Any, ...], descriptors: list[int]) -> None:
        for descriptor in descriptors:
            os.close(descriptor)
        if message[0] == "start" and not self._started.done():
            self._started.set_result((unpack(message[1]), message[2]))
        elif self._worker is None:
            self._later.append(message)
        else:
            self._obey(message)

    def _obey(self, message: tuple[Any, ...]) -> None:
        worker, controller = self._worker, self._controller
        assert worker is not None
        kind = message[0]
        if kind == "status":
            self._impose(message[1])
        elif kind == "read":
            self._send_numbers(message[1])
        elif kind == "prepare" and controller is not None:
            _, number, generation, packed = message
            self._tasks.start("prepare", self._answer(controller, number, generation, packed))
        elif kind == "commit":
            self._commit(message[1])
        elif kind == "abandon":
            self._unwanted = message[1]
            self._prepared.pop(message[1], None)
            worker.abandon()
        elif kind == "certificates":
            worker.publish_certificates(message[1])
        elif kind == "start":  # a new controller in the place of one that died: what it has is in use here, as a rule
            self._tasks.start("follow a new controller", self._follow(*message[1:]))

    async def _answer(self, controller: Link, number: int, generation: int, packed: bytes) -> None:
        controller.send(("answer", number, await self._prepare(generation, packed)))

    async def _follow(self, packed: bytes, shared: Shared) -> None:
        assert self._worker is not None
        if shared.generation != self._worker.snapshot.generation and not await self._prepare(shared.generation, packed):
            self._commit(shared.generation)
        self._say_serving()

    async def _prepare(self, generation: int, packed: bytes) -> str:
        """Empty, or what is wrong."""
        assert self._worker is not None
        try:
            configuration = unpack(packed)
            await self._worker.naming.look_ahead(configuration)
            if generation == self._unwanted:
                self._worker.abandon()
                return "it was given up meanwhile"
            self._prepared[generation] = (configuration, self._worker.prepare(configuration, generation))
        except Exception as error:  # noqa: BLE001  # whatever it is, the configuration in use stays
            return str(error) or type(error).__name__
        return ""

    def _commit(self, generation: int) -> None:
        found = self._prepared.pop(generation, None)
        self._prepared.clear()
        if found is not None and self._worker is not None:
            self._worker.commit(*found)
            self._watch()

    def _say_serving(self) -> None:
        if self._controller is not None:
            self._controller.send(("serving",))

    # Backends

    def _impose(self, statuses: list[tuple[str, str, Status]]) -> None:
        assert self._worker is not None
        now = time.monotonic()
        for name, identity, status in statuses:
            if (found := self._worker.snapshot.find_backend(name, identity)) is not None:
                balancer, backend = found
                balancer.health.impose(backend, status, now)

    def _watch(self) -> None:
        assert self._worker is not None
        for name, pool in self._worker.snapshot.pools.items():
            pool.balancer.health.watch = partial(self._found, name)

    def _found(self, pool: str, backend: Backend, outcome: Outcome | None, changed: bool) -> None:
        if outcome is None or self._controller is None or self._controller.pending > MAX_UNTOLD:
            return
        if not self._outcomes:
            asyncio.get_running_loop().call_soon(self._tell_outcomes)
        self._outcomes.append((pool, backend.identity, outcome, changed))

    def _tell_outcomes(self) -> None:
        outcomes, self._outcomes = self._outcomes, []
        if self._controller is not None:
            self._controller.send(("outcomes", outcomes))

    # Numbers

    async def _tell_numbers(self) -> None:
        while True:
            await asyncio.sleep(TELL_EVERY)
            if self._controller is not None and not self._controller.pending:
                self._send_numbers(0)

    def _send_numbers(self, number: int) -> None:
        if self._controller is not None:
            self._controller.send(("readings", number, self._changes.of(read(self._metrics))))


def main() -> None:
    """Start as the supervisor has it."""
    gc.collect()
    gc.disable()  # ``settle_memory`` lets it begin
    leave_signals()

    async def run() -> int:
        return await _Main(socket.socket(fileno=int(sys.argv[1]))).run()

    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        sys.exit(runner.run(run()))


if __name__ == "__main__":
    main()
