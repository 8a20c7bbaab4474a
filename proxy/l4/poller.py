"""Tells sockets of the tier that they can be read or written, so that they need no transports.

The tier moves bytes and looks at few of them: what a transport does beside that (a task, turns of the loop, twice as many system calls)
would be most of the price of a short connection. So an epoll instance of its own hangs in the event loop: a socket that it watches costs
one call to begin with and none to end, where the loop's own watching takes four. Systems without epoll have that.
"""

import asyncio
import select
from functools import partial
from typing import Protocol

from proxy.observe import Log

READ, WRITE = 1, 4
"""Events, by the numbers that poll(2) and epoll have for them. Errors and hang-ups come with either."""

AT_ONCE = 256
"""Sockets that are told in one turn of the loop."""


class Watched(Protocol):
    """Who has a socket."""

    def ready(self, events: int) -> None:
        """The socket can be read or written, or so it seems: another one may have had its number a moment ago."""

    def cut(self) -> None:
        """``ready`` raised what it must not."""


class Poller(Protocol):
    """Of one listener in one worker."""

    def watch(self, descriptor: int, events: int, watched: Watched) -> None:
        """Tell *watched* of *events* from now on, for as long as they last; with 0, of nothing at all."""

    def forget(self, descriptor: int) -> None:
        """Its socket is about to be closed."""

    def close(self) -> None:
        """Tell nobody any more."""


class EpollPoller:
    """A ``Poller`` by epoll(7), level-triggered."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._loop = asyncio.get_running_loop()
        self._epoll = select.epoll()
        self._watched: dict[int, Watched] = {}
        self._loop.add_reader(self._epoll.fileno(), self._turn)

    def watch(self, descriptor: int, events: int, watched: Watched) -> None:
        """See ``Poller``."""
        if descriptor not in self._watched:
            if events:
                self._epoll.register(descriptor, events)
                self._watched[descriptor] = watched
        elif events:
            self._epoll.modify(descriptor, events)
        else:  # an empty set would still tell of hang-ups
            self._epoll.unregister(descriptor)
            del self._watched[descriptor]

    def forget(self, descriptor: int) -> None:
        """See ``Poller``. That it is closed takes it out of the kernel's set."""
        self._watched.pop(descriptor, None)

    def close(self) -> None:
        """See ``Poller``."""
        self._loop.remove_reader(self._epoll.fileno())
        self._epoll.close()

    def _turn(self) -> None:
        watched = self._watched
        for descriptor, events in self._epoll.poll(0, AT_ONCE):
            one = watched.get(descriptor)  # None: closed on behalf of one before it
            if one is not None:
                _tell(one, events, self._log)


class LoopPoller:
    """A ``Poller`` by what every event loop has."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._loop = asyncio.get_running_loop()
        self._events: dict[int, int] = {}

    def watch(self, descriptor: int, events: int, watched: Watched) -> None:
        """See ``Poller``."""
        before = self._events.get(descriptor, 0)
        for event, add, remove in (
            (READ, self._loop.add_reader, self._loop.remove_reader),
            (WRITE, self._loop.add_writer, self._loop.remove_writer),
        ):
            if events & ~before & event:
                add(descriptor, partial(_tell, watched, event, self._log))
            elif before & ~events & event:
                remove(descriptor)
        self._events[descriptor] = events

    def forget(self, descriptor: int) -> None:
        """See ``Poller``."""
        events = self._events.pop(descriptor, 0)
        if events & READ:
            self._loop.remove_reader(descriptor)
        if events & WRITE:
            self._loop.remove_writer(descriptor)

    def close(self) -> None:
        """See ``Poller``."""
        for descriptor in list(self._events):
            self.forget(descriptor)


def make_poller(log: Log) -> Poller:
    """The best that this system has."""
    return EpollPoller(log) if hasattr(select, "epoll") else LoopPoller(log)


def _tell(watched: Watched, events: int, log: Log) -> None:
    try:
        watched.ready(events)
    except Exception:  # one connection's fault is not its neighbours'
        log.exception("a connection failed")
        watched.cut()
