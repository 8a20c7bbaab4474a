"""The processes that a supervisor has started, and what goes over an upgrade of them. Standard library only.

A ``Crew`` is a controller and its workers, from one start or upgrade.
"""

import json
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from proxy.process.channel import Channel

NOT_FOR_CHILDREN = (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""What the supervisor is told by; to its children it says nothing, should it be sent to all of the processes."""


def leave_signals() -> None:
    """In a child: ignore what is for the supervisor, which starts it with these signals blocked."""
    for number in NOT_FOR_CHILDREN:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, NOT_FOR_CHILDREN)


class Child:
    """A process with a channel to it."""

    def __init__(self, role: str, pid: int, channel: Channel) -> None:
        self.role = role
        self.pid = pid
        self.channel = channel
        self.began = time.monotonic()
        self.alive = True
        self.serving = False
        """A worker that serves."""
        self.lent: list[int] = []
        """Positions of others at which it accepts."""
        self.died_quickly = 0
        """How often in a row its like has died soon after it was started."""
        self.replaced = 0
        """How many in a row at its position were replaced for their memory, before it."""
        self.wants_successor = False
        """It has asked to be replaced."""

    def tell(self, op: str, descriptors: Sequence[int] = (), **details: Any) -> None:
        """Send it a message."""
        self.channel.send(json.dumps({"op": op, **details}).encode(), descriptors)

    def known(self) -> dict[str, Any]:
        """What the code after an upgrade needs to know of it, besides its descriptors."""
        return {
            "role": self.role,
            "pid": self.pid,
            "began": self.began,
            "serving": self.serving,
            "lent": self.lent,
            "died_quickly": self.died_quickly,
            "replaced": self.replaced,
            "channel": self.channel.known(),
        }

    @classmethod
    def taken_over(cls, known: dict[str, Any]) -> "Child":
        """What ``known`` told before the upgrade."""
        child = cls(known["role"], known["pid"], Channel.taken_over(known["channel"]))
        child.began, child.serving, child.lent = known["began"], known["serving"], known["lent"]
        child.died_quickly, child.replaced = known["died_quickly"], known["replaced"]
        return child


class Crew:
    """A controller and its workers; slot number ``bank * bank_size + position`` is the worker's for good."""

    def __init__(self, bank: int) -> None:
        self.bank = bank
        self.controller: Child | None = None
        self.workers: dict[int, Child] = {}
        """By position."""
        self.size = self.wanted = 0
        """Workers that there are to be; and that there will be, when their slots are free."""
        self.listeners: list[dict[str, Any]] = []
        self.keep: dict[str, int] = {}
        """Descriptors of what a controller wants its successor to know."""
        self.drain = 60.0
        """Seconds that its end may take."""
        self.replaced: dict[int, int] = {}
        """By position, how many in a row were replaced for their memory: for the one that is to be started there."""
        self.until = float("inf")
        """When what is left of one that leaves is killed (``time.monotonic``)."""

    def children(self) -> list[Child]:
        """All that live."""
        everyone = [*self.workers.values(), *([self.controller] if self.controller is not None else [])]
        return [child for child in everyone if child.alive]

    def _in_touch(self) -> list[Child]:
        """Those who live, but for one whose channel is closed already: it ends, and the code after an upgrade starts another one."""
        return [child for child in self.children() if child.channel.fileno() >= 0]

    def descriptors(self) -> Iterator[int]:
        """All that the code after an upgrade needs."""
        for child in self._in_touch():
            yield from child.channel.descriptors()
        yield from self.keep.values()

    def known(self) -> dict[str, Any]:
        """What that code needs to know."""
        controller, children = self.controller, self._in_touch()
        return {
            "bank": self.bank,
            "size": self.size,
            "drain": self.drain,
            "listeners": self.listeners,
            "keep": self.keep,
            "controller": controller.known() if controller is not None and controller in children else None,
            "workers": [[position, worker.known()] for position, worker in self.workers.items() if worker in children],
        }

    @classmethod
    def taken_over(cls, known: dict[str, Any], adopt: Callable[[Child], Child]) -> "Crew":
        """What ``known`` told before the upgrade; *adopt* takes each child."""
        crew = cls(known["bank"])
        crew.drain, crew.listeners, crew.keep = known["drain"], known["listeners"], known["keep"]
        crew.size = crew.wanted = known["size"]
        if known["controller"] is not None:
            crew.controller = adopt(Child.taken_over(known["controller"]))
        crew.workers = {position: adopt(Child.taken_over(worker)) for position, worker in known["workers"]}
        return crew
