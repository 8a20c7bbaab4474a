"""The composition root: makes the parts and wires them, and their life from start to drain.

Order of a start: configuration, secret, snapshot, sockets, then everything that runs. Order of an end: health says 503, GOAWAY, no more
connections, what runs may finish until the deadline, then the rest is cut. Here one process has all the roles of ``process/``, as with
``workers: 1``; by default, each has a process of its own.
"""

import asyncio
import contextlib
import gc
import os
import signal
import socket
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from proxy import __version__
from proxy.config.collector import collector_paused
from proxy.config.load import ConfigError, Configuration, load
from proxy.config.material import self_signed
from proxy.control.log import Logs, LogSettings
from proxy.control.state import StateError, load_secret
from proxy.listen.bind import bind_tcp, bind_udp, inherited, prepare_tcp, prepare_udp
from proxy.listen.tls import ContextError
from proxy.message import Address
from proxy.observe import Log, Metrics
from proxy.process.controller import Controller
from proxy.process.notify import READY, STOPPING, WATCHDOG, notify, reloading, watchdog_interval
from proxy.process.pid_file import PidFile
from proxy.process.privileges import PrivilegeError, drop, hand_over
from proxy.process.setup import (
    EXIT_CONFIGURATION,
    EXIT_FAILURE,
    EXIT_OK,
    SetupError,
    complain,
    listed,
    loop_factory,
    raise_descriptor_limit,
    settle_memory,
    shown,
    supervised,
)
from proxy.process.team import LocalTeam
from proxy.process.upgrade import supervisor_command
from proxy.process.worker import Shared, Sockets, StartError, Worker, udp_buffers

UPGRADES = (signal.SIGUSR1, signal.SIGUSR2)
"""Signals about upgrades, which take a supervisor."""


def run(config: Path, *, in_process: bool = False) -> int:
    """Serve the configuration at *config* until SIGTERM or SIGINT; gives the exit code. Says on stderr what is wrong.

    Where workers are to be processes of their own, this one becomes their supervisor, unless *in_process* has everything stay here.
    """
    gc.collect()  # what the imports left; a start makes no garbage in cycles, so that what stands at its end can be frozen as it is
    with collector_paused():  # ``settle_memory`` lets it begin
        return _run(config, in_process=in_process)


def _run(config: Path, *, in_process: bool) -> int:
    for number in UPGRADES:
        signal.signal(number, signal.SIG_IGN)  # by default they are the end; from the start on there is somebody who answers them
    try:
        configuration = load(config, os.environ)
        several = not in_process and supervised(configuration)
        secret = load_secret(configuration.state)
    except ConfigError as error:
        return complain(str(error), EXIT_CONFIGURATION)
    except (SetupError, StateError) as error:
        return complain(f"qproxy: {error}", EXIT_FAILURE)
    pid_file = _take_pid_file(configuration.state, config)
    if several:
        os.environ.update(pid_file.hand_over())
        os.execv(sys.executable, supervisor_command(str(config)))  # noqa: S606
    try:
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            return runner.run(App(config, configuration, secret, pid_file).run())
    except (StartError, ContextError) as error:
        return complain(f"qproxy: {error}", EXIT_FAILURE)


class App:
    """One running proxy, in one process."""

    def __init__(self, config: Path, configuration: Configuration, secret: bytes, pid_file: PidFile) -> None:
        self._pid_file = pid_file
        self._configuration = configuration
        metrics = Metrics()
        log = configuration.log
        self._logs = Logs(LogSettings(form=log.format, level=log.level, access=log.access), metrics)
        self._logs.adopt_standard_logging()
        self._log: Log = self._logs.events
        self._worker = Worker(configuration, Shared(secret, self_signed(("localhost",))), metrics, self._logs)
        self._controller = Controller(config, configuration, LocalTeam(self._worker, metrics), metrics, self._log, self._worker.naming)
        self._stopping = asyncio.Event()

    async def run(self) -> int:
        """From start to drain."""
        worker, controller = self._worker, self._controller
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(self._logs.close)
            bound, envelopes = self._bind(stack)
            self._drop_privileges()
            await worker.open(stack, bound, envelopes)
            await controller.start(stack)
            worker.keep_descriptors(raise_descriptor_limit(worker.snapshot.limits.connections, self._log))
            loop = asyncio.get_running_loop()
            loop.add_signal_handler(signal.SIGTERM, self._stop)
            loop.add_signal_handler(signal.SIGINT, self._stop)
            loop.add_signal_handler(signal.SIGHUP, controller.want_reload)
            for number in UPGRADES:
                loop.add_signal_handler(number, self._refuse_upgrade)
            self._pid_file.tell(ready=True, admin=worker.snapshot.admin)
            settle_memory()
            self._log.info(
                "ready",
                version=__version__,
                loop=type(loop).__module__.partition(".")[0],
                h2=str(worker.h2),
                quic=str(worker.quic),
                listeners=listed(worker.snapshot),
                admin=shown(worker.snapshot.admin),
                sites=len(self._configuration.sites),
            )
            controller.say_warnings()
            controller.reload_begins = lambda: notify(reloading())
            controller.reload_ended = lambda: notify(READY)
            notify(f"{READY}\nMAINPID={os.getpid()}")
            watchdog = asyncio.ensure_future(_watchdog())
            stack.callback(watchdog.cancel)
            await self._stopping.wait()
            notify(STOPPING)
            loop.call_soon(controller.say_health)  # when the drain has begun
            await worker.drain()
        return EXIT_OK

    def _refuse_upgrade(self) -> None:
        self._log.warning("no upgrade: one process can't go over to new code, several workers can (server.workers); restart it")

    def _drop_privileges(self) -> None:
        user = self._configuration.server.user
        if user is not None:
            try:
                hand_over(self._configuration.state, user)
                drop(user)
            except PrivilegeError as error:
                raise StartError(str(error)) from None

    def _bind(self, stack: contextlib.AsyncExitStack) -> tuple[list[Sockets], socket.socket | None]:
        """A socket for each listener and transport, and for envelopes, all or none."""
        buffers, missed = udp_buffers(self._configuration), dict[str, None]()
        given = inherited(os.environ)

        def bound_udp(address: Address) -> socket.socket:
            udp = given.pop(("UDP", *address), None)
            if udp is None:
                udp = _bound(partial(bind_udp, buffers=buffers), address, "UDP")
            else:
                prepare_udp(udp, buffers)
            stack.callback(udp.close)
            missed.update(dict.fromkeys(buffers.missed(udp)))
            return udp

        bound = []
        for listener in self._worker.snapshot.sockets:
            tcp = udp = None
            if listener.tcp:
                tcp = given.pop(("TCP", *listener.address), None)
                if tcp is None:
                    tcp = _bound(bind_tcp, listener.address, "TCP")
                else:
                    prepare_tcp(tcp)
                stack.callback(tcp.close)
            if listener.udp:
                udp = bound_udp(listener.address)
            bound.append(Sockets(tcp, udp))
        cluster = self._configuration.server.cluster
        envelopes = bound_udp(cluster.address) if cluster is not None and cluster.address is not None else None
        if given:
            sockets = [f"{shown((host, port))} ({kind})" for kind, host, port in given]
            self._log.warning("sockets from systemd that no listener names", sockets=sockets)
        if missed:
            self._log.warning("; ".join(missed))
        return bound, envelopes

    def _stop(self) -> None:
        """The first signal drains; a second one means now."""
        if self._stopping.is_set():
            self._worker.hurry.set()
        self._pid_file.close()
        self._controller.stop_reloading()
        self._stopping.set()


async def _watchdog() -> None:
    """Tell systemd that the loop turns, where it wants to know."""
    while every := watchdog_interval():
        notify(WATCHDOG)
        await asyncio.sleep(every)


def _bound(bind: Callable[[Address], socket.socket], address: Address, kind: str) -> socket.socket:
    try:
        return bind(address)
    except OSError as error:
        msg = f"can't listen on {shown(address)} ({kind}): {error.strerror}"
        raise StartError(msg) from None


def _take_pid_file(folder: Path, config: Path) -> PidFile:
    try:
        return PidFile.take(folder, config)
    except OSError as error:
        sys.stderr.write(f"qproxy: {error.strerror}: qproxy reload will not find this one\n")
        return PidFile()
