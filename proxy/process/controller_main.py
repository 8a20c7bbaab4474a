"""The controller as a process of its own: ``python -m proxy.process.controller_main DESCRIPTOR DIR``, as the supervisor starts it."""

import asyncio
import contextlib
import gc
import os
import pickle
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from proxy import __version__
from proxy.config.connection_ids import connection_id_forms, keys_of
from proxy.config.load import ConfigError, Configuration, load
from proxy.config.material import self_signed
from proxy.config.transfer import unpack
from proxy.control.log import Logs, LogSettings
from proxy.control.state import StateError, load_secret
from proxy.engine.choice import choose
from proxy.engine.quic.ids import FORMS, Routable, steered_lengths
from proxy.keys import Keyring
from proxy.listen.bind import Buffers
from proxy.listen.tls import ContextError
from proxy.observe import Metrics
from proxy.process.controller import Controller
from proxy.process.crew import leave_signals
from proxy.process.link import Link
from proxy.process.naming import make_naming
from proxy.process.privileges import PrivilegeError, drop, hand_over
from proxy.process.remote import Kept, RemoteTeam
from proxy.process.setup import (
    EXIT_CONFIGURATION,
    EXIT_FAILURE,
    EXIT_OK,
    complain,
    listed,
    loop_factory,
    most_workers,
    settle_memory,
    shown,
    workers_of,
)
from proxy.process.worker import Shared, StartError, udp_buffers
from proxy.snapshot import L4Listener
from proxy.tasks import Tasks

KEEP_EVERY = 5.0
"""Seconds after which counts that a successor would need are handed to the supervisor, where they have changed."""


class _Main:
    def __init__(self, sock: socket.socket, config: Path) -> None:
        self._config = config
        self._begun: asyncio.Future[tuple[dict[str, Any], dict[str, bytes]]] = asyncio.get_running_loop().create_future()
        self._bound: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._team: RemoteTeam | None = None
        self._controller: Controller | None = None
        self._early: list[tuple[dict[str, Any], int]] = []
        self._ending = asyncio.Event()
        self._leaving = False
        self._kept_counts = b""
        self._kept_generation = 0
        self._workers = 0
        self._forms: list[Routable | None] = []
        self._supervisor = Link(sock, self._hear, self._ending.set, plain=True)

    async def run(self) -> int:
        """Until the supervisor says that it is enough."""
        begin, kept = await self._begun
        try:
            configuration, shared = self._configuration(kept, fresh=bool(begin["upgrade"]) or not kept)
        except ConfigError as error:
            return complain(str(error), EXIT_CONFIGURATION)
        except StateError as error:
            return complain(f"qproxy: {error}", EXIT_FAILURE)
        metrics = Metrics()
        log = configuration.log
        logs = Logs(LogSettings(form=log.format, level=log.level, access=False), metrics)
        logs.adopt_standard_logging()
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(logs.close)
            tasks = Tasks(logs.events)
            naming = make_naming(configuration.server.dns, logs.events, metrics, tasks)
            stack.push_async_callback(naming.close)
            stack.push_async_callback(tasks.close)
            try:
                team = RemoteTeam(configuration, shared, metrics, logs.events, naming.discovery.services)
            except ContextError as error:
                return complain(f"qproxy: {error}", EXIT_FAILURE)
            self._steer(configuration)
            self._supervisor.send(_listen_message(configuration, team))
            bound = await self._unless_ending(self._bound)
            if bound is None:
                return EXIT_OK
            if configuration.server.user is not None:
                try:
                    hand_over(configuration.state, configuration.server.user)
                    drop(configuration.server.user)
                except PrivilegeError as error:
                    return complain(f"qproxy: {error}", EXIT_FAILURE)
            self._team = team
            team.bound(bound["ports"][: len(team.snapshot.sockets)], bound["workers"], bound["most"])
            controller = self._controller = Controller(self._config, team.configuration, team, metrics, logs.events, naming)
            controller.reload_begins = lambda: self._supervisor.send({"op": "reloading"})
            controller.reload_ended = self._reload_ended
            self._workers = bound["workers"]
            team.counts_changed = self._keep_counts
            team.about_to_serve = self._steer
            for message, descriptor in self._early:
                self._meet(message, descriptor)
            if not begin["upgrade"] and "counts" in kept:
                team.inherit_counts(kept["counts"])
            await self._unless_ending(asyncio.ensure_future(team.all_serve(bound["workers"])))
            if not self._ending.is_set():
                self._keep_configuration()
                try:
                    await controller.start(stack, wait_for_admin=bool(kept))
                except StartError as error:
                    return complain(f"qproxy: {error}", EXIT_FAILURE)
                settle_memory()
                again = bool(kept) and not begin["upgrade"]
                self._say_ready(bound, configuration, logs, again=again)
                if not again:
                    controller.say_warnings()
                await self._serve()
            controller.stop_reloading()
            if not self._leaving:
                team.draining = True
                await team.ended()
        return EXIT_OK

    def _configuration(self, kept: dict[str, bytes], *, fresh: bool) -> tuple[Configuration, Shared]:
        """From the files; or, in the place of a controller that died, what is in use."""
        before: Kept | None = pickle.loads(kept["configuration"]) if "configuration" in kept else None  # noqa: S301  # our own
        if before is not None and not fresh:
            return unpack(before.configuration), before.shared
        configuration = load(self._config, os.environ)
        certificate = before.shared.default_certificate if before is not None else self_signed(("localhost",))
        generation = before.shared.generation + 1 if before is not None else 1
        return configuration, Shared(load_secret(configuration.state), certificate, generation)

    async def _serve(self) -> None:
        assert self._team is not None
        while not self._ending.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(KEEP_EVERY):
                    await self._ending.wait()
            self._keep_counts()

    async def _unless_ending(self, what: "asyncio.Future[Any]") -> Any:
        """Its result, or None when the end comes first."""
        ending = asyncio.ensure_future(self._ending.wait())
        await asyncio.wait([what, ending], return_when=asyncio.FIRST_COMPLETED)
        ending.cancel()
        if what.done():
            return what.result()
        what.cancel()
        return None

    def _say_ready(self, bound: dict[str, Any], configuration: Configuration, logs: Logs, *, again: bool) -> None:
        assert self._team is not None
        snapshot = self._team.snapshot
        self._supervisor.send({"op": "ready", "admin": snapshot.admin})
        if again:
            logs.events.info("the controller is back", workers=bound["workers"])
            return
        logs.events.info(
            "ready",
            version=__version__,
            loop=type(asyncio.get_running_loop()).__module__.partition(".")[0],
            h2=str(choose("h2", configuration.server.engines.h2)),
            quic=str(choose("quic", configuration.server.engines.quic)),
            listeners=listed(snapshot),
            admin=shown(snapshot.admin),
            sites=len(configuration.sites),
            workers=bound["workers"],
        )

    def _steer(self, configuration: Configuration) -> None:
        """The forms of connection IDs by which the kernel finds a worker: the new one, and those before it while clients have them."""
        keys = Keyring(keys_of(configuration, b""), b"")
        forms = connection_id_forms(configuration, keys, time.time()).routable or (None,)
        if set(self._forms[-len(forms) :]) != set(forms):
            self._forms = [*(form for form in self._forms if form not in forms), *forms][-FORMS:]
            self._supervisor.send({"op": "steer", "lengths": steered_lengths(self._forms)})

    def _reload_ended(self) -> None:
        assert self._team is not None
        workers = workers_of(self._team.configuration)
        if workers != self._workers:
            self._workers = workers
            self._supervisor.send({"op": "resize", "workers": workers})
        self._keep_configuration()
        self._supervisor.send({"op": "reloaded"})

    def _keep_configuration(self) -> None:
        """The one in use, where the supervisor has not got it: a reload that failed has changed nothing."""
        assert self._team is not None
        generation = self._team.snapshot.generation
        if generation != self._kept_generation:
            self._kept_generation = generation
            self._keep("configuration", pickle.dumps(self._team.kept()))

    def _keep_counts(self) -> None:
        assert self._team is not None
        counts = self._team.pack_counts()
        if counts != self._kept_counts:
            self._kept_counts = counts
            self._keep("counts", counts)

    def _keep(self, name: str, data: bytes, *, last: bool = False) -> None:
        """Leave *data* with the supervisor, which does not look at it; *last*: it goes to the controller that serves after this one."""
        descriptor = os.memfd_create(f"qproxy-{name}")
        try:
            with os.fdopen(os.dup(descriptor), "wb") as file:
                file.write(data)
            self._supervisor.send({"op": "keep", "name": name, "last": last}, [descriptor])
        finally:
            os.close(descriptor)

    # The supervisor's word

    def _hear(self, message: dict[str, Any], descriptors: list[int]) -> None:
        op = message["op"]
        if op == "begin":
            kept = {name: _whole(descriptor) for name, descriptor in zip(message["kept"], descriptors, strict=True)}
            self._begun.set_result((message, kept))
        elif op == "bound":
            self._bound.set_result(message)
        elif op == "worker":
            if self._team is None:
                self._early.append((message, descriptors[0]))
            else:
                self._meet(message, descriptors[0])
        elif op == "retire":
            if self._team is not None:
                self._team.retire(message["slots"], replaced=message["replaced"])
        elif op == "inherit":
            if self._team is not None:
                self._team.inherit_counts(_whole(descriptors[0]))
        elif op == "reload":
            if self._controller is not None:
                self._controller.want_reload()
        elif op in {"drain", "leave"}:
            self._leaving = op == "leave"
            if self._leaving and self._team is not None:
                self._keep("counts", self._team.leave(), last=True)
            self._ending.set()

    def _meet(self, message: dict[str, Any], descriptor: int) -> None:
        assert self._team is not None
        self._team.add(message["slot"], message["pid"], socket.socket(fileno=descriptor), leaving=bool(message.get("leaving")))


def _listen_message(configuration: Configuration, team: RemoteTeam) -> dict[str, Any]:
    buffers: Buffers = udp_buffers(configuration)
    timeouts = configuration.server.timeouts
    envelopes = configuration.server.cluster.address if configuration.server.cluster is not None else None
    return {
        "op": "listen",
        "listeners": [
            {
                "host": listener.address[0],
                "port": listener.address[1],
                "tcp": listener.tcp,
                "udp": listener.udp,
                "l4": isinstance(listener, L4Listener),
            }
            for listener in team.snapshot.sockets
        ]
        + ([{"host": envelopes[0], "port": envelopes[1], "tcp": False, "udp": True, "envelopes": True}] if envelopes else []),
        "workers": workers_of(configuration),
        "slots": most_workers(),
        "connections": configuration.server.limits.connections,
        "user": configuration.server.user,
        "buffers": [buffers.receive, buffers.send],
        "drain": timeouts.drain + timeouts.drain_delay,
        "log": "json" if configuration.log.format == "json" or not os.isatty(2) else "text",
    }


def _whole(descriptor: int) -> bytes:
    with os.fdopen(descriptor, "rb") as file:
        file.seek(0)
        return file.read()


def main() -> None:
    """Start as the supervisor has it."""
    gc.collect()
    gc.disable()  # ``settle_memory`` lets it begin
    leave_signals()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the supervisor says when it is over

    async def run() -> int:
        return await _Main(socket.socket(fileno=int(sys.argv[1])), Path(sys.argv[2])).run()

    factory: Callable[[], asyncio.AbstractEventLoop] | None = loop_factory()
    with asyncio.Runner(loop_factory=factory) as runner:
        sys.exit(runner.run(run()))


if __name__ == "__main__":
    main()
