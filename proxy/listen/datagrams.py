"""The two ways in which a QUIC endpoint meets its socket, behind one shape.

``Portable`` carries each datagram between ``UdpSocket`` and the engine as an object; ``Fast`` lets an engine that can (``FastEndpoint``)
read and write the descriptor by itself. Neither knows the event loop: the listener says when the socket is readable or writable.
"""

from typing import Protocol, TypeGuard

from proxy.engine.events import Event
from proxy.engine.seam import Endpoint, FastEndpoint, Handle
from proxy.listen.udp_socket import UdpSocket
from proxy.observe import Log

BATCH = 64
"""Datagrams read before the engine works on them: enough to save calls, few enough to stay fair to TCP."""


class Datagrams(Protocol):
    """How datagrams get from the socket to the engine and back."""

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
        return self._endpoint.transmit_fd(self._descriptor, now)


def is_fast(endpoint: Endpoint) -> TypeGuard[FastEndpoint]:
    """Whether *endpoint* can do its own I/O."""
    return hasattr(endpoint, "receive_fd") and hasattr(endpoint, "transmit_fd")
