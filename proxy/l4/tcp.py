"""One TCP address of the tier: reads the ClientHello for its name, connects to an instance, and moves bytes both ways as they were.

The instance is told who the client is by a PROXY protocol header (version 2) before the first byte. Nothing is decrypted; plain HTTP goes
the same way. What one side does not take has the other one wait: at most ``HIGH_WATER`` and one read are held in each direction.
"""

import asyncio
import socket
import time
from collections.abc import Callable
from typing import cast

from balancer.affinity import address_key
from balancer.backend import Backend
from balancer.pool import Outcome
from proxy.counters import Cell
from proxy.errors import ProxyError
from proxy.l4.means import Means
from proxy.l4.meters import ListenerMeters
from proxy.listen.accept import Acceptor
from proxy.listen.peek import ClientHello, Peek, PlainHttp
from proxy.listen.proxy_protocol import header
from proxy.listen.tls import DECODE_ERROR_ALERT
from proxy.message import Address
from proxy.snapshot import Instances, L4Listener
from proxy.tasks import Tasks
from proxy.upstream.connect import connect

HIGH_WATER = 256 * 1024
"""Bytes that wait for one side before the other one is no longer read."""

FLUSH = 30.0
"""Seconds in which one side may take what is left for it when the other one is gone."""

ATTEMPTS = 3
"""Instances that are tried for one connection."""

LOOKS = 4
"""Looks at whether a connection is idle in the time after which it is cut."""


class TcpTier:
    """One listening socket in one worker, and the connections that came by it."""

    def __init__(self, listener: L4Listener, means: Means, meters: ListenerMeters) -> None:
        self.listener = listener
        self.means = means
        self.limits = means.limits
        self.meters = meters
        self.connections: set[ClientSide] = set()
        self.tasks = Tasks(means.log)
        self.loop = asyncio.get_running_loop()
        self._acceptor = self._make_acceptor()
        self._lent: dict[int, Acceptor] = {}

    def _make_acceptor(self) -> Acceptor:
        return Acceptor(self.limits.gate, lambda: ClientSide(self), self.means.relieve, self.means.log)

    @property
    def busy(self) -> bool:
        """Whether there are connections."""
        return bool(self.connections) or any(len(acceptor) > 0 for acceptor in (self._acceptor, *self._lent.values()))

    def start(self, sock: socket.socket) -> None:
        """Accept on *sock*, which is bound, from now on."""
        self._acceptor.start(sock)

    def lend(self, position: int, sock: socket.socket) -> None:
        """Accept for another worker's position too."""
        self._lent[position] = self._make_acceptor()
        self._lent[position].start(sock)

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


class Side(asyncio.Protocol):
    """One end of a connection through the tier; ``other`` is the other end, once there is one."""

    transport: asyncio.Transport
    other: "Side | None" = None
    ended = False
    """Whether it has sent all that it will (FIN)."""
    active_at = 0.0
    _now: Callable[[], float] = staticmethod(time.monotonic)
    _moved: Cell

    def data_received(self, data: bytes) -> None:
        """Bytes for the other end."""
        self.active_at = self._now()
        self._moved.value += len(data)
        assert self.other is not None
        self.other.transport.write(data)

    def eof_received(self) -> bool:
        """Half of the connection is over: the other half goes on, until that is over as well."""
        self.ended = True
        other = self.other
        if other is None:
            return False
        if other.ended:
            other.finish()
            return False
        if not other.transport.is_closing():
            other.transport.write_eof()
        return True

    def pause_writing(self) -> None:
        """It takes no more for now."""
        if self.other is not None and not self.other.transport.is_closing():
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        """It takes more again."""
        if self.other is not None and not self.other.transport.is_closing():
            self.other.transport.resume_reading()

    def connection_lost(self, error: Exception | None) -> None:
        """It is gone, and what it had sent is with the other end, which ends too."""
        other, self.other = self.other, None
        if other is not None:
            other.other = None
            if error is None or self.ended:
                other.finish()
            else:
                other.transport.abort()

    def finish(self) -> None:
        """Send what waits, and close; but not for ever."""
        waits = self.transport.get_write_buffer_size() > 0
        self.transport.close()
        if waits:
            asyncio.get_running_loop().call_later(FLUSH, self.transport.abort)


class ClientSide(Side):
    """A client's end: judged by its first bytes, then joined to an instance's."""

    def __init__(self, tier: TcpTier) -> None:
        self._tier = tier
        self._moved = tier.meters.bytes_in
        self._peek: Peek | None = Peek()
        self._client: Address = ("", 0)
        self._admitted = False
        self._timer: asyncio.TimerHandle | None = None
        self._connecting: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Accepted."""
        tier = self._tier
        self.transport = cast("asyncio.Transport", transport)
        tier.connections.add(self)
        tier.meters.open.value += 1
        host, port = (self.transport.get_extra_info("peername") or ("", 0))[:2]
        self._client = (host[7:] if host.startswith("::ffff:") and "." in host else host, port)
        if not host or tier.limits.admit(self._client[0], self._now()) is not None:
            self._end("limit")
            return
        self._admitted = True
        self.transport.set_write_buffer_limits(high=HIGH_WATER)
        self._timer = tier.loop.call_later(tier.means.handshake_timeout(), self._end, "timeout")

    def data_received(self, data: bytes) -> None:
        """First bytes, or more for the instance."""
        if self._peek is None:
            super().data_received(data)
            return
        found = self._peek.feed(data)
        if found is None:
            return
        first, self._peek = self._peek.data, None
        self._stop_timer()
        tier = self._tier
        if isinstance(found, ClientHello):
            instances = tier.listener.select(found.sni)
        elif isinstance(found, PlainHttp):
            instances = tier.listener.instances
        else:
            if found.reason == "decode_error":
                self.transport.write(DECODE_ERROR_ALERT)
            self._end("malformed", abort=False)
            return
        self.transport.pause_reading()
        self._connecting = tier.tasks.start("connect to an instance", self._join(instances, first))

    def eof_received(self) -> bool:
        """A client that ends its half before it has an instance has the instance hear of it."""
        self.ended = True
        if self._peek is not None:
            return False
        return super().eof_received() if self.other is not None else True

    def connection_lost(self, error: Exception | None) -> None:
        """The client is gone."""
        self._stop_timer()
        if self._connecting is not None:
            self._connecting.cancel()
        tier = self._tier
        tier.connections.discard(self)
        tier.meters.open.value -= 1
        if self._admitted:
            self._admitted = False
            tier.limits.release(self._client[0])
        if self._peek is not None:
            tier.meters.connections["lost"].value += 1
        super().connection_lost(error)

    def cut(self) -> None:
        """End it at once, on both sides."""
        if self.other is not None:
            self.other.transport.abort()
        self.transport.abort()

    async def _join(self, instances: Instances, first: bytes) -> None:
        """Connect to an instance, and let the bytes go."""
        tier = self._tier
        balancer, now = instances.pool.balancer, time.monotonic()
        key = address_key(tier.means.secret, self._client[0])
        tried: list[Backend] = []
        choice = balancer.choose(key, now)
        while choice is not None and len(tried) < ATTEMPTS:
            tried.append(choice)
            side = InstanceSide(tier.meters.bytes_out, choice)
            endpoint = instances.pool.endpoint(choice.identity)
            try:
                await connect(
                    lambda side=side: side,  # type: ignore[misc]  # it is called in this round
                    endpoint,
                    None,
                    tier.listener.connect_timeout,
                    addresses=tier.means.addresses,
                    fast_open=False,
                )
            except ProxyError as error:
                tier.meters.connect_failures.value += 1
                tier.means.log.debug("no connection to an instance", instance=choice.identity, reason=str(error))
                balancer.report(choice, Outcome.CONNECT_FAILED, time.monotonic())
                choice = next((backend for backend in balancer.candidates(key, time.monotonic()) if backend not in tried), None)
                continue
            self._joined(side, first)
            return
        self._end("connect_failed" if tried else "no_instance")

    def _joined(self, side: "InstanceSide", first: bytes) -> None:
        tier = self._tier
        if self.transport.is_closing():
            side.transport.abort()
            return
        tier.meters.connections["passed"].value += 1
        local = self.transport.get_extra_info("sockname")[:2]
        side.transport.set_write_buffer_limits(high=HIGH_WATER)
        self._moved.value += len(first)
        self.other, side.other = side, self
        side.begin()
        side.transport.write(header(self._client, local) + first)
        self.active_at = self._now()
        self.transport.resume_reading()
        if self.ended:
            side.transport.write_eof()
        self._timer = tier.loop.call_later(tier.listener.idle_timeout / LOOKS, self._look)

    def _look(self) -> None:
        """Whether nothing has moved for too long."""
        tier = self._tier
        if self.other is None:
            return  # ``finish`` sees to the end
        limit = tier.listener.idle_timeout
        if self._now() - max(self.active_at, self.other.active_at) >= limit:
            tier.meters.idle_cut.value += 1
            self.cut()
            return
        self._timer = tier.loop.call_later(limit / LOOKS, self._look)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _end(self, result: str, *, abort: bool = True) -> None:
        """It does not come to an instance."""
        self._stop_timer()
        self._peek = None
        self._tier.meters.connections[result].value += 1
        if abort:
            self.transport.abort()
        else:
            self.transport.close()


class InstanceSide(Side):
    """An instance's end."""

    def __init__(self, moved: Cell, backend: Backend) -> None:
        self._moved = moved
        self._backend = backend
        self._begun = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Connected."""
        self.transport = cast("asyncio.Transport", transport)

    def begin(self) -> None:
        """A client is there for it."""
        self._begun = True
        self._backend.inflight += 1

    def data_received(self, data: bytes) -> None:
        """For the client. An instance that speaks before it has heard anything has nobody to speak to."""
        if self.other is None:
            self.transport.abort()
            return
        super().data_received(data)

    def connection_lost(self, error: Exception | None) -> None:
        """The instance is gone, or has ended the connection."""
        if self._begun:
            self._begun = False
            self._backend.inflight -= 1
        super().connection_lost(error)
