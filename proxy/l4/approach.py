"""A client's way to an instance: one after the other is tried, until one takes the connection and the first bytes.

An instance that is named by its address is connected to without a task. Where DNS has to say, its addresses are raced, by a task.
"""

import asyncio
import socket
from typing import TYPE_CHECKING

from balancer.affinity import address_key
from balancer.backend import Backend
from balancer.pool import Outcome
from proxy.counters import Cell
from proxy.errors import OUT_OF_DESCRIPTORS, ProxyError
from proxy.l4.poller import WRITE
from proxy.l4.side import Shared, Side
from proxy.snapshot import Endpoint, Instances
from proxy.upstream.race import begin, race
from proxy.upstream.resolve import is_address

if TYPE_CHECKING:
    from proxy.l4.tcp import ClientSide, TcpTier

ATTEMPTS = 3
"""Instances that are tried for one connection."""


class Approach:
    """Of one client. It ends with ``joined`` or ``turned_away`` of that, or by ``end``."""

    __slots__ = ("_client", "_greeting", "_instances", "_key", "_relieved", "_side", "_task", "_tier", "_tried")

    def __init__(self, tier: "TcpTier", client: "ClientSide", instances: Instances, greeting: bytes) -> None:
        """*greeting*: what the instance is to have first."""
        self._tier = tier
        self._client = client
        self._instances = instances
        self._greeting = greeting
        self._key = address_key(tier.means.keys.ring_key, client.address[0])
        self._tried: list[Backend] = []
        self._relieved = False
        self._side: InstanceSide | None = None
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Try the first one."""
        self._try(self._instances.pool.balancer.choose(self._key, self._tier.shared.clock()))

    def on_deadline(self) -> None:
        """The time for one connect is over."""
        self._failed(OSError("timed out"))

    def end(self) -> None:
        """Drop what is under way."""
        task, self._task = self._task, None
        side, self._side = self._side, None
        if task is not None:
            task.cancel()
        if side is not None:
            side.close()

    def writable(self, side: "InstanceSide") -> None:
        """The connect is over, well or not: the first bytes tell."""
        try:
            sent = side.sock.send(self._greeting)
        except BlockingIOError:
            return
        except OSError as error:
            self._failed(error)
            return
        if sent < len(self._greeting):
            side.waiting = self._greeting[sent:]
        self._side = None
        side.begin()
        self._client.joined(side)

    def _try(self, choice: Backend | None) -> None:
        tier = self._tier
        if choice is None or len(self._tried) == ATTEMPTS:
            self._client.turned_away("connect_failed" if self._tried else "no_instance")
            return
        self._tried.append(choice)
        self._client.wait(tier.listener.connect_timeout)
        endpoint = self._instances.pool.endpoint(choice.identity)
        if not is_address(endpoint.host):
            self._task = tier.tasks.start("connect to an instance", self._race(choice, endpoint))
            return
        try:
            sock, _ = begin(endpoint.host, endpoint.port)
        except OSError as error:
            self._failed(error)
            return
        self._connecting(sock, choice)

    def _connecting(self, sock: socket.socket, choice: Backend) -> None:
        tier = self._tier
        side = self._side = InstanceSide(tier.shared, sock, tier.meters.bytes_out)
        side.approach, side.backend = self, choice
        side.watch(WRITE)

    async def _race(self, choice: Backend, endpoint: Endpoint) -> None:
        try:
            sock = await race(await self._tier.means.addresses.of(endpoint.host), endpoint.port, fast_open=False)
        except (OSError, ValueError, ProxyError) as error:  # ValueError: a name that can't be one
            self._task = None
            self._failed(error)
            return
        self._task = None
        self._connecting(sock, choice)

    def _failed(self, error: Exception) -> None:
        tier, choice = self._tier, self._tried[-1]
        self.end()
        tier.meters.connect_failures.value += 1
        tier.means.log.debug("no connection to an instance", instance=choice.identity, reason=str(error))
        if isinstance(error, OSError) and error.errno in OUT_OF_DESCRIPTORS:
            # No instance's fault: there is one in reserve, which has to do.
            tier.means.relieve()
            if not self._relieved:
                self._relieved = True
                self._tried.pop()
                self._try(choice)
            else:
                self._client.turned_away("connect_failed")
            return
        balancer, now = self._instances.pool.balancer, tier.shared.clock()
        balancer.report(choice, Outcome.CONNECT_FAILED, now)
        self._try(next((backend for backend in balancer.candidates(self._key, now) if backend not in self._tried), None))


class InstanceSide(Side):
    """An instance's end."""

    __slots__ = ("approach", "backend")

    def __init__(self, shared: Shared, sock: socket.socket, moved: Cell) -> None:
        super().__init__(shared, sock, moved)
        self.approach: Approach | None = None
        self.backend: Backend | None = None

    def ready(self, events: int) -> None:
        """Connected, or not; later as for every side."""
        if self.approach is not None:
            self.approach.writable(self)
        else:
            super().ready(events)

    def begin(self) -> None:
        """A client is there for it."""
        self.approach = None
        assert self.backend is not None
        self.backend.inflight += 1

    def _gone(self) -> None:
        if self.approach is None and self.backend is not None:
            self.backend.inflight -= 1
