"""Datagrams out of one UDP socket: many of one size with one call, and a bounded queue while the socket is full.

Datagrams of one size for one address go to the kernel as one (UDP_SEGMENT, "GSO", Linux 4.18), which cuts them apart, or the network card
does. Where that does not work, they go one by one. Knows no QUIC and no envelopes.
"""

import asyncio
import errno
import socket
import struct
from collections import deque
from collections.abc import Sequence

from proxy.listen.bind import SOL_UDP, UDP_SEGMENT
from proxy.message import Address

MAX_SEGMENTS = 64
"""Datagrams of one call: the kernel's UDP_MAX_SEGMENTS of old; newer ones take 128."""

MAX_SEGMENTED_BYTES = 65000
"""Bytes of one call: less than the largest IP packet with its headers."""

QUEUE = 1024
"""Calls that wait for a full socket; what comes beyond is dropped, as the kernel would."""

Control = list[tuple[int, int, bytes]]

_NO_GSO = frozenset({errno.EIO, errno.EOPNOTSUPP, errno.ENOPROTOOPT})
_SIZES = tuple((SOL_UDP, UDP_SEGMENT, struct.pack("=H", size)) for size in range(2048))


def segmented(size: int) -> tuple[int, int, bytes]:
    """The control message by which a call has datagrams of *size* bytes, 1 to 65535, of which the last may be shorter."""
    return _SIZES[size] if size < len(_SIZES) else (SOL_UDP, UDP_SEGMENT, struct.pack("=H", size))


class Outbox:
    """What one socket sends. The socket is not its own."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._sendmsg = sock.sendmsg
        self._segments = hasattr(socket, "AF_PACKET")  # Linux, until the kernel says no
        self._waiting: deque[tuple[Sequence[bytes], Control, Address]] = deque()
        self._loop = asyncio.get_running_loop()
        self.dropped = 0
        """Datagrams that found the queue full, or that the kernel would not take."""

    def __len__(self) -> int:
        """Calls that wait."""
        return len(self._waiting)

    def send(self, datagrams: Sequence[bytes], address: Address, control: Control) -> None:
        """Send *datagrams*: ``MAX_SEGMENTS`` and ``MAX_SEGMENTED_BYTES`` at most, all of one size but for the last, which may have less."""
        if self._waiting:
            self._wait(datagrams, control, address)
            return
        if len(datagrams) > 1:
            if not self._segments:
                for datagram in datagrams:
                    self.send((datagram,), address, control)
                return
            ancillary = [segmented(len(datagrams[0])), *control]
        else:
            ancillary = control
        try:
            self._sendmsg(datagrams, ancillary, 0, address)
        except (BlockingIOError, InterruptedError):
            self._wait(datagrams, control, address)
        except OSError as error:
            self._refused(error, datagrams, address, control)

    def close(self) -> None:
        """Forget what waits."""
        if self._waiting:
            self._loop.remove_writer(self._sock.fileno())
            self._waiting.clear()

    def _refused(self, error: OSError, datagrams: Sequence[bytes], address: Address, control: Control) -> None:
        """One by one where it may be for the segments: also a datagram that is too large for the way makes them fail, and only them."""
        if len(datagrams) == 1:
            self.dropped += 1
            return
        if error.errno in _NO_GSO:
            self._segments = False
        for datagram in datagrams:
            self.send((datagram,), address, control)

    def _wait(self, datagrams: Sequence[bytes], control: Control, address: Address) -> None:
        if len(self._waiting) >= QUEUE:
            self.dropped += len(datagrams)
            return
        if not self._waiting:
            self._loop.add_writer(self._sock.fileno(), self._writable)
        self._waiting.append((datagrams, control, address))

    def _writable(self) -> None:
        waiting, self._waiting = self._waiting, deque()
        self._loop.remove_writer(self._sock.fileno())
        for datagrams, control, address in waiting:
            self.send(datagrams, address, control)
