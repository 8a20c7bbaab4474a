"""Holds the sockets and the other processes of a proxy: starts them, starts them again, and lets an upgrade happen (``upgrade``).

Standard library only. It opens no connection and parses nothing from outside: its children speak JSON to it over socket pairs that it made.

It has a crew of them that serves, at times one that comes, and some that leave: their connections end in their own time. After an upgrade
the new code makes a new crew beside the old one; should that not come to serve, the old one goes on.

Sockets are in ``ports``: two banks of UDP slots, of which crews take turns.
"""

import contextlib
import json
import os
import selectors
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from proxy.listen.bind import Buffers, inherited
from proxy.process.channel import Channel, ChannelClosed
from proxy.process.crew import NOT_FOR_CHILDREN, Child, Crew
from proxy.process.notify import READY, STOPPING, WATCHDOG, notify, reloading, watchdog_interval
from proxy.process.pid_file import PidFile
from proxy.process.ports import Ports
from proxy.process.privileges import PrivilegeError, drop
from proxy.process.upgrade import Upgrade, ending, python
from proxy.process.upgrade import inherited as inherited_state

EXIT_OK, EXIT_FAILURE = 0, 1

STEADY = 2.0
"""Seconds of life after which a process that dies is started again at once: what can't start ends sooner."""

BACKOFF, MAX_BACKOFF = 0.5, 60.0
"""Seconds before the second of quick restarts, doubled with each more, and at most."""

START_LIMIT = 120.0
"""Seconds that a crew may take to serve, before it is given up."""

GRACE = 15.0
"""Seconds beyond what the configuration grants, until what does not end is killed."""

HURRY_GRACE = 5.0
"""Seconds until what was told to end now, and does not, is killed."""

REPLACEMENT_PAUSE, MAX_REPLACEMENT_PAUSE = 60.0, 3600.0
"""Seconds that the successor of a worker which was replaced for its memory lives at least, before it is replaced too: doubled with each
more in a row, and at most. Who has lived for longer than that begins anew."""

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCHLD)
"""What the supervisor hears."""


class Supervisor:
    """One proxy, over all of its processes."""

    def __init__(self, config: str) -> None:
        self._config = config
        self._pid_file = PidFile.inherited()
        self._pid_file.tell(supervisor=True)
        self._selector = selectors.DefaultSelector()
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._timer_count = 0
        self._current: Crew | None = None
        self._coming: Crew | None = None
        self._leaving: list[Crew] = []
        self._ports = Ports(inherited(os.environ))
        self._positions = 0
        """At which workers have ever accepted connections: the kernel gives each of them some for good."""
        self._live: set[int] = set()
        """Slots of workers that serve, as the kernel knows them."""
        self._form = "json"
        self._stopping = False
        self._code: int | None = None
        self._exit = EXIT_OK
        self._upgrade = Upgrade(config, self._pid_file, self._say)

    # The loop

    def run(self) -> int:
        """Until everything has ended; gives the exit code."""
        self._watch_signals()
        if (known := inherited_state()) is not None:
            self._take_over(known)
        self._begin(Crew(0 if self._current is None else 1 - self._current.bank))
        self._watchdog()
        while self._code is None:
            now = time.monotonic()
            due = min((when for when, _, _ in self._timers), default=now + 60)
            for key, _ in self._selector.select(max(0.0, due - now)):
                self._act(key.data)
            now = time.monotonic()
            ready = [timer for timer in self._timers if timer[0] <= now]
            self._timers = [timer for timer in self._timers if timer[0] > now]
            for _, _, act in sorted(ready, key=lambda timer: timer[:2]):
                self._act(act)
        self._ports.close()
        return self._code

    def _act(self, act: Callable[[], None]) -> None:
        """A fault of ours is told, and is not the end of all that serves."""
        try:
            act()
        except Exception:  # noqa: BLE001
            self._say("error", "the supervisor failed", exception=traceback.format_exc())

    def _later(self, seconds: float, act: Callable[[], None]) -> None:
        self._timer_count += 1
        self._timers.append((time.monotonic() + seconds, self._timer_count, act))

    def _watch_signals(self) -> None:
        reader, writer = socket.socketpair()
        for end in (reader, writer):
            end.setblocking(False)
        self._wakeup = (reader, writer)
        signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        for number in _SIGNALS:
            signal.signal(number, lambda *_: None)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)  # blocked by an upgrade: those that came meanwhile come now
        self._selector.register(reader, selectors.EVENT_READ, self._signalled)

    def _signalled(self) -> None:
        with contextlib.suppress(BlockingIOError):
            numbers = self._wakeup[0].recv(4096)
            for number in dict.fromkeys(numbers):
                if number in {signal.SIGTERM, signal.SIGINT}:
                    for _ in range(numbers.count(number)):
                        self._stop()
                elif number == signal.SIGHUP:
                    self._reload()
                elif number == signal.SIGUSR2:
                    self._want_upgrade()
                elif number == signal.SIGUSR1:
                    self._force_upgrade()
        self._reap()

    # Children

    def _spawn(self, role: str, module: str) -> Child:
        ours, theirs = socket.socketpair()
        theirs.set_inheritable(True)
        try:
            pid = os.posix_spawn(
                sys.executable,
                python(module, str(theirs.fileno()), self._config),
                os.environ,
                setsid=True,  # Ctrl-C is for us, and we decide the order of the end
                setsigdef=_SIGNALS,
                setsigmask=NOT_FOR_CHILDREN,  # until it ignores them (``leave_signals``)
            )
        finally:
            theirs.close()
        return self._adopt(Child(role, pid, Channel(ours)))

    def _adopt(self, child: Child) -> Child:
        self._selector.register(child.channel.fileno(), selectors.EVENT_READ, lambda: self._hear(child))
        return child

    def _hear(self, child: Child) -> None:
        if child.channel.fileno() < 0:
            return  # it was found dead in this very turn
        if child.channel.pending:
            child.channel.flush()
        try:
            messages = child.channel.receive()
        except ChannelClosed:
            self._selector.unregister(child.channel.fileno())
            child.channel.close()
            return  # its death is what counts, and comes by a signal
        for message, descriptors in messages:
            taken = self._take(child, json.loads(message), descriptors)
            for descriptor in descriptors:
                if descriptor not in taken:
                    os.close(descriptor)
        self._flush_later(child)

    def _flush_later(self, child: Child) -> None:
        """What a child does not take at once is sent again soon: rare, and never so much that it matters."""
        if child.alive and child.channel.pending:
            child.channel.flush()
            if child.channel.pending:
                self._later(0.02, lambda: self._flush_later(child))

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            code = os.waitstatus_to_exitcode(status)
            if pid == self._upgrade.trial:
                self._tried(code)
                continue
            for crew in self._crews():
                for child in crew.children():
                    if child.pid == pid:
                        with contextlib.suppress(KeyError, ValueError):
                            self._hear(child)  # its last words
                        child.alive = False
                        with contextlib.suppress(KeyError, ValueError):
                            self._selector.unregister(child.channel.fileno())
                        child.channel.close()
                        self._died(crew, child, code)

    def _crews(self) -> list[Crew]:
        return [crew for crew in (self._current, self._coming, *self._leaving) if crew is not None]

    def _died(self, crew: Crew, child: Child, code: int) -> None:
        life = time.monotonic() - child.began
        if crew in self._leaving or self._stopping:
            if code and not self._stopping:
                self._say("error", f"{child.role} ended while it drained", pid=child.pid, **ending(code))
            self._left()
            return
        self._lend()
        if crew is self._coming:
            self._say("error", f"{child.role} did not start", pid=child.pid, **ending(code))
            self._give_up(crew, code if code > 0 else EXIT_FAILURE)
            return
        quickly = child.died_quickly + 1 if life < STEADY else 0
        wait = min(MAX_BACKOFF, BACKOFF * 2 ** (quickly - 1)) if quickly else 0.0
        self._say(
            "error",
            f"{child.role} ended; it is started again",
            pid=child.pid,
            lived_seconds=round(life, 1),
            wait_seconds=wait,
            **ending(code),
        )
        if child is crew.controller:
            self._later(wait, lambda: self._restart_controller(crew, quickly))
            return
        position = next(at for at, worker in crew.workers.items() if worker is child)
        self._steer()
        self._later(wait, lambda: self._restart_worker(crew, position, quickly))

    def _restart_worker(self, crew: Crew, position: int, quickly: int) -> None:
        worker = crew.workers.get(position)
        if self._stopping or crew is not self._current or position >= crew.size or (worker is not None and worker.alive):
            return
        self._start_worker(crew, position)
        crew.workers[position].died_quickly = quickly

    def _restart_controller(self, crew: Crew, quickly: int) -> None:
        if self._stopping or crew is not self._current:
            return
        self._start_controller(crew)
        assert crew.controller is not None
        crew.controller.died_quickly = quickly

    # A crew's life

    def _begin(self, crew: Crew) -> None:
        self._coming = crew
        self._start_controller(crew)
        self._later(START_LIMIT, lambda: self._too_late(crew))

    def _too_late(self, crew: Crew) -> None:
        if crew is self._coming:
            self._say("error", f"not ready within {START_LIMIT:.0f} seconds")
            self._give_up(crew, EXIT_FAILURE)

    def _start_controller(self, crew: Crew) -> None:
        """A first one loads the configuration; one after a death gets what its predecessor wanted it to know."""
        crew.controller = self._spawn("the controller", "proxy.process.controller_main")
        kept = crew.keep or (self._current.keep if self._current is not None else {})
        names = sorted(kept)
        crew.controller.tell("begin", [kept[name] for name in names], kept=names, upgrade=not crew.keep and bool(kept))

    def _take(self, child: Child, message: dict[str, Any], descriptors: list[int]) -> Sequence[int]:
        """Act on what a child says; gives the descriptors that are kept."""
        crew = next((crew for crew in self._crews() if child in crew.children()), None)
        op = message.get("op")
        if crew is None:
            return ()
        if op == "keep" and len(descriptors) == 1:
            name = str(message["name"])
            if (old := crew.keep.get(name)) is not None:
                os.close(old)
            crew.keep[name] = descriptors[0]
            if message.get("last"):
                self._hand_over(crew)
            return descriptors
        if op == "listen":
            self._listen(crew, message)
        elif op == "ready":
            self._pid_file.tell(ready=True, admin=message["admin"])
            self._ready(crew)
        elif op == "reloading":
            notify(reloading())
        elif op == "reloaded":
            notify(READY)
        elif op == "steer":
            self._ports.know_lengths({int(config): int(length) for config, length in message["lengths"].items()})
            self._steer()
        elif op == "serving":
            child.serving = True
            self._steer()
            self._lend()
        elif op == "resize":
            self._resize(crew, int(message["workers"]))
        elif op == "replace":
            self._replace(crew, child)
        return ()

    def _listen(self, crew: Crew, message: dict[str, Any]) -> None:
        self._form = str(message["log"])
        crew.drain = float(message["drain"])
        controller = crew.controller
        assert controller is not None
        if not crew.size:
            crew.size = crew.wanted = int(message["workers"])
            crew.listeners = list(message["listeners"])
            try:
                self._ports.open(
                    crew.listeners, max(crew.size, int(message["slots"])), int(message["connections"]), Buffers(*message["buffers"])
                )
                if self._current is None:
                    self._ports.steer({0}, {0})  # a kernel that can't is known before anybody serves
                if message["user"] and self._current is None:
                    drop(str(message["user"]))
            except (OSError, PrivilegeError) as error:
                sys.stderr.write(f"qproxy: {getattr(error, 'strerror', None) or error}\n")
                self._give_up(crew, EXIT_FAILURE)
                return
            if crew.size > self._ports.bank_size:
                self._say("warning", "more workers need a restart", workers=crew.size, most=self._ports.bank_size)
                crew.size = crew.wanted = self._ports.bank_size
            if unused := self._ports.unused():
                self._say("warning", "sockets from systemd that no listener names", sockets=unused)
        controller.tell("bound", ports=self._ports.numbers(crew.listeners), workers=crew.size, most=self._ports.bank_size)
        if not crew.workers:
            for position in range(crew.size):
                self._start_worker(crew, position)
        else:
            for position, worker in crew.workers.items():
                if worker.alive:
                    self._introduce(crew, position)

    def _start_worker(self, crew: Crew, position: int) -> None:
        slot = self._slot(crew, position)
        self._positions = max(self._positions, position + 1)
        child = crew.workers[position] = self._spawn(f"worker {slot}", "proxy.process.worker_main")
        has, descriptors = [], [self._ports.counts_for(slot)]
        for listener in crew.listeners:
            given = self._ports.of_worker(listener, position, slot)
            has.append([descriptor is not None for descriptor in given])
            descriptors += [descriptor for descriptor in given if descriptor is not None]
            if listener["udp"] and not listener.get("l4"):
                ends, others = self._ports.strays_of(listener, slot)
                child.tell("strays", ends, slots=others)
        if any(listener["udp"] and listener.get("l4") for listener in crew.listeners):
            child.tell("relays", self._ports.relays_of(slot))
        envelopes = any(listener.get("envelopes") for listener in crew.listeners)  # its own port comes last
        child.tell("place", descriptors, slot=slot, position=position, listeners=has, envelopes=envelopes)
        self._introduce(crew, position)

    def _introduce(self, crew: Crew, position: int, controller: Child | None = None, *, leaving: bool = False) -> None:
        """Give a controller (the crew's own) and a worker the two ends of a channel."""
        controller, worker = controller or crew.controller, crew.workers[position]
        if controller is None or not controller.alive or not worker.alive:
            return
        one, other = socket.socketpair()
        with one, other:
            controller.tell("worker", [one.fileno()], slot=self._slot(crew, position), pid=worker.pid, leaving=leaving)
            worker.tell("controller", [other.fileno()])

    def _ready(self, crew: Crew) -> None:
        if crew is not self._coming:
            return
        old, self._current, self._coming = self._current, crew, None
        if old is not None:
            self._leaving.append(old)  # before the kernel is told: what is old's stays old's
        self._steer()
        self._lend()
        notify(f"{READY}\nMAINPID={os.getpid()}")
        if old is not None:
            self._say("info", "upgraded", pid=os.getpid())
            self._pid_file.tell_upgrade("done")
            self._leave(old)

    def _leave(self, crew: Crew) -> None:
        """Its connections end in their own time."""
        for child in crew.children():
            child.tell("leave")
        if crew.controller is None or not crew.controller.alive:
            self._hand_over(crew)
        self._kill_later(crew, crew.drain + GRACE)

    def _hand_over(self, crew: Crew) -> None:
        """The controller that serves goes on with what the one before it had counted, and reads the workers that it left."""
        controller = self._current.controller if self._current is not None else None
        if controller is None or not controller.alive:
            return
        if "counts" in crew.keep:
            controller.tell("inherit", [crew.keep["counts"]])
        for position in crew.workers:
            self._introduce(crew, position, controller, leaving=True)

    def _left(self) -> None:
        """One of those that leave has gone."""
        for crew in [crew for crew in self._leaving if not crew.children()]:
            self._leaving.remove(crew)
            for descriptor in crew.keep.values():
                os.close(descriptor)
            if self._current is not None:
                self._fit(self._current)
                self._fill(self._current)
        self._steer()
        if self._stopping and not any(crew.children() for crew in self._crews()):
            self._code = self._exit
        elif self._upgrade.waits and not self._leaving:
            self._upgrade.begin()

    def _give_up(self, crew: Crew, code: int) -> None:
        """A crew that came does not serve: without another one, that is the end."""
        self._coming = None
        self._leaving.append(crew)
        self._kill(crew)
        if self._current is None:
            self._stopping, self._exit = True, code
        else:
            self._upgrade.fail("the new processes did not come to serve")
        self._left()

    def _kill_later(self, crew: Crew, seconds: float) -> None:
        crew.until = min(crew.until, time.monotonic() + seconds)
        self._later(seconds, lambda: self._kill(crew))

    def _kill(self, crew: Crew) -> None:
        for child in crew.children():
            with contextlib.suppress(ProcessLookupError):
                os.kill(child.pid, signal.SIGKILL)

    def _stop(self) -> None:
        """The first time: drain. The second: now."""
        word = "hurry" if self._stopping else "drain"
        if not self._stopping:
            self._stopping = True
            notify(STOPPING)
            self._pid_file.close()
            for crew in self._crews():
                self._kill_later(crew, crew.drain + GRACE)
        for crew in self._crews():
            for child in crew.children():
                child.tell(word)
        if not any(crew.children() for crew in self._crews()):
            self._code = self._exit

    def _reload(self) -> None:
        crew = self._current
        if crew is not None and crew.controller is not None and crew.controller.alive and not self._stopping:
            crew.controller.tell("reload")

    # How many workers

    def _resize(self, crew: Crew, workers: int) -> None:
        crew.wanted = min(workers, self._ports.bank_size)
        self._fit(crew)

    def _fit(self, crew: Crew) -> None:
        """Start and retire workers until there are as many as are wanted; one whose slot is still in use is started when it is free."""
        if crew is not self._current or self._stopping or crew.size == crew.wanted:
            return
        self._say("info", "another number of workers", workers=crew.wanted, before=crew.size)
        retired = Crew(crew.bank)
        retired.drain = crew.drain
        for position in range(crew.wanted, crew.size):
            worker = crew.workers.pop(position, None)
            if worker is not None and worker.alive:
                retired.workers[position] = worker
        crew.size = min(crew.size, crew.wanted)
        self._retire(crew, retired)
        busy = self._busy(crew)
        while crew.size < crew.wanted and crew.size not in busy:
            crew.size += 1
            self._start_worker(crew, crew.size - 1)

    def _retire(self, crew: Crew, retired: Crew, *, replaced: bool = False) -> None:
        """Have workers that are no longer of *crew* finish what they have; the others accept for them."""
        if retired.workers:
            self._leaving.append(retired)
        self._steer()
        self._lend()
        if retired.workers:
            if crew.controller is not None and crew.controller.alive:
                crew.controller.tell("retire", slots=[self._slot(crew, position) for position in retired.workers], replaced=replaced)
            for worker in retired.workers.values():
                worker.tell("leave")
            self._kill_later(retired, retired.drain + GRACE)

    def _busy(self, crew: Crew) -> set[int]:
        """Positions of *crew* whose slots are still in use by workers that leave."""
        leaving = (other for other in self._leaving if other.bank == crew.bank)
        return {position for other in leaving for position, worker in other.workers.items() if worker.alive}

    # Memory that stays

    def _replace(self, crew: Crew, worker: Child) -> None:
        """A worker whose memory does not go down finishes what it has, and another one takes its place.

        One after the other, since both together would need still more. It asks again and again, so what is not done now is done later.
        """
        if crew is not self._current or worker is crew.controller or self._stopping or self._coming is not None or self._leaving:
            return
        if any(not other.alive or not other.serving for other in crew.workers.values()):
            return  # one at a time: the others have to do its work
        lived = time.monotonic() - worker.began
        if lived < (least := replacement_pause(worker.replaced)):
            if not worker.wants_successor:
                worker.wants_successor = True
                words = f"{worker.role} stays at its limit of memory, as the one before it did; it is replaced later"
                self._say("warning", words, pid=worker.pid, wait_seconds=round(least - lived, 1))
            return
        position = next(at for at, other in crew.workers.items() if other is worker)
        self._say("warning", f"{worker.role} stays at its limit of memory; it is replaced", pid=worker.pid, lived_seconds=round(lived, 1))
        crew.replaced[position] = 1 if lived > MAX_REPLACEMENT_PAUSE else worker.replaced + 1
        retired = Crew(crew.bank)
        retired.drain = crew.drain
        retired.workers[position] = crew.workers.pop(position)
        self._retire(crew, retired, replaced=True)

    def _fill(self, crew: Crew) -> None:
        """Start successors of those that were replaced, once they have ended."""
        if crew is not self._current or self._stopping:
            return
        busy = self._busy(crew)
        for position in [position for position in crew.replaced if position not in busy]:
            replaced = crew.replaced.pop(position)
            if position < crew.size and position not in crew.workers:
                self._start_worker(crew, position)
                crew.workers[position].replaced = replaced

    def _lend(self) -> None:
        """Have those who serve accept at the positions of those who do not: no listening socket is ever without somebody who accepts."""
        crew = self._current or self._coming
        if crew is None:
            return
        serving = [position for position in sorted(crew.workers) if crew.workers[position].alive and crew.workers[position].serving]
        for position in serving:
            alone = [other for other in range(self._positions) if other not in serving]
            lent = [other for other in alone if serving[other % len(serving)] == position]
            worker = crew.workers[position]
            if lent != worker.lent:
                worker.lent = lent
                given = [self._ports.of_worker(listener, other, 0)[0] for other in lent for listener in crew.listeners if listener["tcp"]]
                worker.tell("lend", [descriptor for descriptor in given if descriptor is not None], positions=lent)

    # Sockets

    def _slot(self, crew: Crew, position: int) -> int:
        return crew.bank * self._ports.bank_size + position

    def _steer(self) -> None:
        """Tell the kernel which worker gets which datagram: those that name a living one go to it, new ones to the crew that serves."""
        serving = self._current or self._coming
        if serving is None:
            return
        live = {
            self._slot(crew, position)
            for crew in self._crews()
            for position, worker in crew.workers.items()
            if worker.alive and worker.serving
        }
        accepting = live & {self._slot(serving, position) for position in serving.workers}
        if not accepting:
            return  # those who are there wait for the next one in the kernel's buffer
        self._introduce_siblings(self._live | live)  # who has connections is known to the others before it has, and longer than it has
        self._ports.steer(live, accepting)
        if self._live - live:
            self._introduce_siblings(live)
        self._live = live

    def _introduce_siblings(self, live: set[int]) -> None:
        for crew in self._crews():
            for position, worker in crew.workers.items():
                if worker.alive:
                    worker.tell("siblings", slots=sorted(live - {self._slot(crew, position)}))

    # Upgrade

    def _want_upgrade(self) -> None:
        """Try the new code, as soon as the slots of the crew before this one are free."""
        if self._stopping or self._current is None:
            self._upgrade.fail("not now: the proxy is starting or stopping")
        elif self._coming is not None or self._upgrade.trial is not None:
            self._say("info", "an upgrade is in progress already")
        elif self._leaving:
            self._wait_to_upgrade()
        else:
            self._upgrade.begin()

    def _wait_to_upgrade(self) -> None:
        workers, connections = self._left_behind()
        seconds = max(crew.until for crew in self._leaving) - time.monotonic()
        latest = time.strftime("%H:%M:%S", time.gmtime(time.time() + seconds))
        words = f"for {_count(workers, 'old worker')} with {_count(connections, 'connection')}, until {latest} UTC at the latest"
        self._upgrade.wait(words, most_seconds=round(seconds, 1))

    def _left_behind(self) -> tuple[int, int]:
        """Workers that leave, and connections that they have."""
        slots = [self._slot(crew, position) for crew in self._leaving for position, worker in crew.workers.items() if worker.alive]
        return len(slots), sum(map(self._ports.connections_of, slots))

    def _force_upgrade(self) -> None:
        """Do not wait for connections of old workers any longer."""
        if not self._upgrade.waits or self._stopping:
            self._say("info", "no upgrade waits that could be forced")
            return
        workers, connections = self._left_behind()
        self._say("warning", "the upgrade is forced: old workers end, with their connections", workers=workers, connections=connections)
        for crew in self._leaving:
            for child in crew.children():
                child.tell("hurry")
            self._kill_later(crew, HURRY_GRACE)

    def _tried(self, code: int) -> None:
        if not self._upgrade.tried(code) or self._stopping or self._current is None:
            return
        if self._leaving:
            self._wait_to_upgrade()  # a reload has made workers superfluous meanwhile
            return
        crew = self._current
        known = {"form": self._form, "positions": self._positions, "ports": self._ports.known(), "crew": crew.known()}
        self._upgrade.become(known, [*crew.descriptors(), *self._ports.descriptors()], _SIGNALS, self._wakeup[0])

    def _take_over(self, known: dict[str, Any]) -> None:
        """Go on where the code before this one was."""
        self._form, self._positions = known["form"], known["positions"]
        self._ports.take_over(known["ports"])
        self._current = crew = Crew.taken_over(known["crew"], self._adopt)
        for descriptor in crew.keep.values():
            os.set_inheritable(descriptor, False)
        self._reap()
        for child in crew.children():
            self._flush_later(child)
        # Those who were waiting to be started again are not forgotten, whatever becomes of the upgrade.
        if crew.controller is None:
            self._later(BACKOFF, lambda: self._restart_controller(crew, 0))
        for position in range(crew.size):
            if position not in crew.workers:
                self._later(BACKOFF, lambda position=position: self._restart_worker(crew, position, 0))  # type: ignore[misc]

    # What it says

    def _watchdog(self) -> None:
        """Tell systemd that we are alive, where it wants to know."""
        if every := watchdog_interval():
            notify(WATCHDOG)
            self._later(every, self._watchdog)

    def _say(self, level: str, event: str, **details: object) -> None:
        """An event, in the form of the others' (``control/log.py``)."""
        at = time.time()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(at)) + f".{int(at % 1 * 1e6):06d}Z"
        if self._form == "json":
            line = json.dumps({"time": stamp, "level": level, "event": event, **details}, separators=(",", ":"))
        else:
            line = " ".join([stamp, f"[{level}]", event, *(f"{name}={value}" for name, value in details.items())])
        with contextlib.suppress(OSError):
            os.write(2, line.encode() + b"\n")


def replacement_pause(replaced: int) -> float:
    """Seconds that a worker lives at least before it is replaced for its memory, where so many in a row were before it."""
    return min(MAX_REPLACEMENT_PAUSE, REPLACEMENT_PAUSE * 2.0 ** (replaced - 1)) if replaced else 0.0


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def main() -> None:
    """``python -m proxy.process.supervisor DIR``."""
    sys.exit(Supervisor(sys.argv[1]).run())


if __name__ == "__main__":
    main()
