"""One TCP address of the tier: reads the ClientHello for its name, connects to an instance, and moves bytes both ways as they were.

The instance is told who the client is by a PROXY protocol header (version 2) before the first byte. Nothing is decrypted; plain HTTP goes
the same way.
"""

import contextlib
import socket

from proxy.l4.approach import Approach, InstanceSide
from proxy.l4.means import Means
from proxy.l4.meters import ListenerMeters
from proxy.l4.poller import READ, make_poller
from proxy.l4.side import Shared, Side
from proxy.listen.accept import Acceptor
from proxy.listen.peek import ClientHello, Peek, PlainHttp
from proxy.listen.proxy_protocol import header
from proxy.listen.tls import DECODE_ERROR_ALERT
from proxy.message import Address, unmapped
from proxy.snapshot import L4Listener
from proxy.tasks import Tasks

FIRST_READ = 16 * 1024
"""Bytes of one read while the first ones are looked at: a ClientHello is seldom larger than 2 KiB."""


class TcpTier:
    """One listening socket in one worker, and the connections that came by it."""

    def __init__(self, listener: L4Listener, means: Means, meters: ListenerMeters) -> None:
        self.listener = listener
        self.means = means
        self.limits = means.limits
        self.meters = meters
        self.connections: set[ClientSide] = set()
        self.tasks = Tasks(means.log)
        self.shared = Shared(make_poller(means.log), means.deadlines, means.clock)
        self._acceptor = self._make_acceptor()
        self._lent: dict[int, Acceptor] = {}

    def _make_acceptor(self) -> Acceptor:
        return Acceptor(self.limits.gate, self._take, self.means.relieve)

    def _take(self, accepted: socket.socket, address: Address) -> None:
        ClientSide(self, accepted, (unmapped(address[0]), address[1])).begin()

    @property
    def busy(self) -> bool:
        """Whether there are connections."""
        return bool(self.connections)

    def start(self, sock: socket.socket) -> None:
        """Accept on *sock*, which is bound, from now on."""
        _accept_on(self._acceptor, sock)

    def lend(self, position: int, sock: socket.socket) -> None:
        """Accept for another worker's position too."""
        self._lent[position] = self._make_acceptor()
        _accept_on(self._lent[position], sock)

    def give_back(self, position: int) -> None:
        """No longer."""
        acceptor = self._lent.pop(position, None)
        if acceptor is not None:
            acceptor.stop()

    def stop_accepting(self) -> None:
        """Take no new connections; those that are there go on."""
        for acceptor in (self._acceptor, *self._lent.values()):
            acceptor.stop()

    def abort(self) -> None:
        """Cut what is left."""
        for connection in list(self.connections):
            connection.cut()

    async def close(self) -> None:
        """Have nothing more under way."""
        self.abort()
        await self.tasks.close()
        self.shared.poller.close()


def _accept_on(acceptor: Acceptor, sock: socket.socket) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # what is accepted has it too
    acceptor.start(sock)


class ClientSide(Side):
    """A client's end: judged by its first bytes, then joined to an instance's."""

    __slots__ = ("_admitted", "_approach", "_peek", "_tier", "address")

    def __init__(self, tier: TcpTier, sock: socket.socket, address: Address) -> None:
        super().__init__(tier.shared, sock, tier.meters.bytes_in)
        self.address = address
        self._tier = tier
        self._peek: Peek | None = Peek()
        self._approach: Approach | None = None
        self._admitted = False

    def begin(self) -> None:
        """Accepted."""
        tier = self._tier
        tier.connections.add(self)
        tier.meters.open.value += 1
        if tier.limits.admit(self.address[0], tier.shared.clock()) is not None:
            self.turned_away("limit")
            return
        self._admitted = True
        self.wait(tier.means.handshake_timeout())
        self.watch(READ)

    def ready(self, events: int) -> None:
        """First bytes, or more for the instance."""
        if self._peek is not None:
            self._look(self._peek)
        elif self._approach is None:
            super().ready(events)
        elif events & ~READ:
            self.turned_away("lost")
        else:
            self.watch(0)  # that waits until there is an instance

    def _look(self, peek: Peek) -> None:
        try:
            data = self.sock.recv(FIRST_READ)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.turned_away("lost")
            return
        found = peek.feed(data)
        if found is None:
            return
        tier = self._tier
        self._peek = None
        if isinstance(found, ClientHello):
            instances = tier.listener.select(found.sni)
        elif isinstance(found, PlainHttp):
            instances = tier.listener.instances
        else:
            if found.reason == "decode_error":
                with contextlib.suppress(OSError):
                    self.sock.send(DECODE_ERROR_ALERT)
            self.turned_away("malformed")
            return
        self.moved.value += len(peek.data)
        host, port = self.sock.getsockname()[:2]
        greeting = header(self.address, (unmapped(host), port)) + peek.data
        self._approach = Approach(tier, self, instances, greeting)
        self._approach.begin()

    def wait(self, seconds: float) -> None:
        """For what comes next, at most so long."""
        self.shared.deadlines.set(self, self.shared.clock() + seconds)

    def joined(self, side: InstanceSide) -> None:
        """The instance has the first bytes, or the beginning of them."""
        tier = self._tier
        self._approach = None
        tier.meters.connections["passed"].value += 1
        self.other, side.other = side, self
        self.active_at = self.shared.clock()
        self.wait(tier.listener.idle_timeout)
        side.settle()
        self.settle()

    def turned_away(self, result: str) -> None:
        """It does not come to an instance."""
        self._tier.meters.connections[result].value += 1
        self.close()

    def on_deadline(self, now: float) -> float | None:
        """What was waited for did not come; or nothing has moved for too long."""
        if self._peek is not None:
            self.turned_away("timeout")
        elif self._approach is not None:
            self._approach.on_deadline()
        elif self.other is None:
            return super().on_deadline(now)
        else:
            due = max(self.active_at, self.other.active_at) + self._tier.listener.idle_timeout
            if now < due:
                return due
            self._tier.meters.idle_cut.value += 1
            self.cut()
        return None

    def _gone(self) -> None:
        tier = self._tier
        tier.connections.discard(self)
        tier.meters.open.value -= 1
        if self._admitted:
            tier.limits.release(self.address[0])
        if self._approach is not None:
            self._approach.end()
            self._approach = None
