"""The two ways in which a QUIC endpoint meets its socket, behind one shape.

``Portable`` carries each datagram between ``UdpSocket`` and the engine as an object; ``Fast`` lets an engine that can (``FastEndpoint``)
read and write the descriptor by itself. Neither knows the event loop: the listener says when the socket is readable or writable.
"""

from collections.abc import Callable, Iterable
from typing import Protocol, TypeAlias, TypeGuard

from proxy.cluster.envelope import MAX_SEGMENTS
from proxy.cluster.relays import is_relayed
from proxy.engine.events import Event
from proxy.engine.seam import Endpoint, FastEndpoint, Handle, Transmit
from proxy.listen.udp_socket import UdpSocket
from proxy.message import Address
from proxy.observe import Log

Answer: TypeAlias = Callable[[list[tuple[bytes, int, Address, Address]]], None]
"""Takes what leaves by relays, as ``FastEndpoint.take_relayed`` gives it."""

BATCH = 64
"""Datagrams read before the engine works on them: enough to save calls, few enough to stay fair to TCP."""


class Datagrams(Protocol):
    """How datagrams get from the socket to the engine and back."""

    answer: Answer | None
    """Where relays are; None: there are none."""

    @property
    def received(self) -> int:
        """Datagrams read so far."""

    @property
    def sent(self) -> int:
        """Datagrams that the kernel took so far."""

    def receive(self, now: float) -> list[tuple[Handle, Event]]:
        """Read a batch and let the engine handle it."""

    def transmit(self, now: float) -> bool:
        """Send what the engine has for now. False when the socket is full and something waits for it."""


class Portable:
    """Python reads and sends each datagram."""

    def __init__(self, endpoint: Endpoint, sock: UdpSocket, log: Log) -> None:
        self._endpoint = endpoint
        self._socket = sock
        self._log = log
        self.received = 0
        self.answer: Answer | None = None

    @property
    def sent(self) -> int:
        """Datagrams that the kernel took so far."""
        return self._socket.sent

    def receive(self, now: float) -> list[tuple[Handle, Event]]:
        """At most ``BATCH`` of them."""
        batch = self._socket.receive(BATCH)
        self.received += len(batch)
        return self._endpoint.receive(batch, now) if batch else []

    def transmit(self, now: float) -> bool:
        """Until the engine has no more; it is not asked while the socket is full, so that no more than one answer of it waits here."""
        sock, endpoint = self._socket, self._endpoint
        failed = sock.failed
        done = sock.send()
        while done and (datagrams := endpoint.take_datagrams(now)):
            if self.answer is not None and any(is_relayed(datagram.local) for datagram in datagrams):
                self.answer(bursts_of(datagram for datagram in datagrams if is_relayed(datagram.local)))
                datagrams = [datagram for datagram in datagrams if not is_relayed(datagram.local)]
            sock.queue(datagrams)
            done = sock.send()
        if sock.failed != failed:
            self._log.debug("datagrams could not be sent", count=sock.failed - failed)
        return done


class Fast:
    """The engine uses the descriptor itself."""

    def __init__(self, endpoint: FastEndpoint, descriptor: int) -> None:
        self._endpoint = endpoint
        self._descriptor = descriptor
        self.answer: Answer | None = None

    @property
    def received(self) -> int:
        """Datagrams read so far."""
        return self._endpoint.datagrams_in

    @property
    def sent(self) -> int:
        """Datagrams that the kernel took so far."""
        return self._endpoint.datagrams_out

    def receive(self, now: float) -> list[tuple[Handle, Event]]:
        """As many as the engine takes at once."""
        return self._endpoint.receive_fd(self._descriptor, now)

    def transmit(self, now: float) -> bool:
        """As the engine does it."""
        done = self._endpoint.transmit_fd(self._descriptor, now)
        while self.answer is not None and (bursts := self._endpoint.take_relayed()):
            self.answer(bursts)
            done = self._endpoint.transmit_fd(self._descriptor, now)
        return done


def is_fast(endpoint: Endpoint) -> TypeGuard[FastEndpoint]:
    """Whether *endpoint* can do its own I/O."""
    return hasattr(endpoint, "receive_fd") and hasattr(endpoint, "transmit_fd")


def bursts_of(transmits: Iterable[Transmit]) -> list[tuple[bytes, int, Address, Address]]:
    """Neighbours of one size, from one address to one other, joined: as ``FastEndpoint.take_relayed`` gives them."""
    bursts: list[tuple[list[bytes], int, Address, Address]] = []
    for transmit in transmits:
        data = transmit.data
        if bursts:
            parts, size, peer, local = bursts[-1]
            if peer == transmit.peer and local == transmit.local and len(data) <= size == len(parts[-1]) and len(parts) < MAX_SEGMENTS:
                parts.append(data)
                continue
        bursts.append(([data], len(data), transmit.peer, transmit.local))
    return [(b"".join(parts), size, peer, local) for parts, size, peer, local in bursts]
