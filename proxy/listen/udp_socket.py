"""The UDP socket itself: datagrams in with the address they were sent to, datagrams out from there, many with one call.

An answer leaves from the address that its question came to, also on a host with several (IP_PKTINFO). Datagrams of one size for one client
go to the kernel as one (UDP_SEGMENT, "GSO", Linux 4.18): it cuts them apart, or the network card does. A full socket keeps what is left.
Knows no QUIC.
"""

import ipaddress
import socket
import struct
from collections import deque
from collections.abc import Iterable

from proxy.engine.seam import Datagram, Transmit
from proxy.listen.bind import IP_PKTINFO, SOL_UDP, UDP_SEGMENT
from proxy.message import Address, mapped, unmapped

DATAGRAM_BYTES = 65536
"""The largest datagram that UDP has: nothing is cut."""

SO_MEMINFO, MEMINFO_DROPS = 55, 8
"""Linux's numbers (linux/sock_diag.h): what a socket holds, of which the ninth figure counts what was dropped."""

MAX_SEGMENTS = 64
"""Datagrams of one call: the kernel's UDP_MAX_SEGMENTS of old; newer ones take 128."""

MAX_SEGMENTED_BYTES = 65000
"""Bytes of one call: less than the largest IP packet with its headers."""

LOCAL_ADDRESSES_REMEMBERED = 4096

Control = list[tuple[int, int, bytes]]


class UdpSocket:
    """A bound UDP socket of a listener."""

    def __init__(self, sock: socket.socket, address: Address) -> None:
        self._sock = sock
        self._family = sock.family
        self._address = address
        self._any = address[0] in {"0.0.0.0", "::"}  # noqa: S104  # compared with, not bound to
        self._segments = hasattr(socket, "AF_PACKET")  # Linux, until the kernel says no
        self._unsent: deque[Transmit] = deque()
        self._local: dict[bytes, str] = {}
        self.sent = 0
        """Datagrams given to the kernel so far."""
        self.failed = 0
        """Datagrams that the kernel would not take: no way there, or the like."""

    def __len__(self) -> int:
        """Datagrams that wait for a full socket."""
        return len(self._unsent)

    def fileno(self) -> int:
        """For the event loop."""
        return self._sock.fileno()

    def kernel_drops(self) -> int:
        """Datagrams so far that the kernel dropped before they were read; 0 where it does not tell."""
        try:
            figures = self._sock.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, 4 * (MEMINFO_DROPS + 1))
            return int(struct.unpack_from("=I", figures, 4 * MEMINFO_DROPS)[0])
        except (OSError, struct.error):
            return 0

    def close(self) -> None:
        """Let go of the socket and of what was not sent."""
        self._unsent.clear()
        self._sock.close()

    # In

    def receive(self, most: int) -> list[Datagram]:
        """What has come, at most *most* datagrams."""
        batch: list[Datagram] = []
        sock = self._sock
        port = self._address[1]
        for _ in range(most):
            try:
                data, ancillary, _, source = sock.recvmsg(DATAGRAM_BYTES, 64)
            except (BlockingIOError, InterruptedError):
                break
            except OSError:
                continue  # an ICMP error of an earlier send: it belongs to no connection of ours
            batch.append(Datagram(data, (unmapped(source[0]), source[1]), (self._destination(ancillary), port)))
        return batch

    def _destination(self, ancillary: Control) -> str:
        """The local address that a datagram was sent to, as text (memoised)."""
        for level, kind, data in ancillary:
            packed = b""
            if level == socket.IPPROTO_IP and kind == IP_PKTINFO:
                packed = data[8:12]
            elif level == socket.IPPROTO_IPV6 and kind == socket.IPV6_PKTINFO:
                packed = data[:16]
            if packed:
                text = self._local.get(packed)
                if text is None:
                    if len(self._local) >= LOCAL_ADDRESSES_REMEMBERED:
                        self._local.clear()
                    text = self._local[packed] = str(ipaddress.ip_address(packed))
                return text
        return self._address[0]

    # Out

    def queue(self, transmits: Iterable[Transmit]) -> None:
        """Datagrams to send, in order."""
        self._unsent.extend(transmits)

    def send(self) -> bool:
        """Send until nothing is left (True) or the socket is full (False)."""
        unsent = self._unsent
        while unsent:
            group = self._group() if self._segments else 1
            try:
                if group > 1:
                    self._send_group(group)
                else:
                    self._send_one(unsent[0])
            except (BlockingIOError, InterruptedError):
                return False
            except OSError:
                if group > 1:
                    self._segments = False  # no GSO here, or not on this way out: one by one from now on
                    continue
                self.failed += 1  # loss detection deals with it
            else:
                self.sent += group
            for _ in range(group):
                unsent.popleft()
        return True

    def _group(self) -> int:
        """How many datagrams at the head of the queue can go as one: same ways, same size, but for a shorter last one."""
        first = self._unsent[0]
        size = len(first.data)
        room = max(1, min(MAX_SEGMENTS, MAX_SEGMENTED_BYTES // size))  # one may be larger than what may be cut apart
        count = 0
        for transmit in self._unsent:
            length = len(transmit.data)
            if count == room or length > size or transmit.peer != first.peer or transmit.local != first.local:
                break
            count += 1
            if length < size:
                break
        return count

    def _send_group(self, count: int) -> None:
        unsent = self._unsent
        first = unsent[0]
        control = [(SOL_UDP, UDP_SEGMENT, struct.pack("=H", len(first.data))), *self._from(first.local[0])]
        self._sock.sendmsg([unsent[at].data for at in range(count)], control, 0, self._to(first.peer))

    def _send_one(self, transmit: Transmit) -> None:
        control = self._from(transmit.local[0])
        if control:
            self._sock.sendmsg([transmit.data], control, 0, self._to(transmit.peer))
        else:
            self._sock.sendto(transmit.data, self._to(transmit.peer))

    def _to(self, peer: Address) -> Address:
        return (mapped(peer[0]), peer[1]) if self._family == socket.AF_INET6 else peer

    def _from(self, local: str) -> Control:
        """The control message that makes *local* the source address; none where the socket has only one."""
        if not self._any or local == self._address[0]:
            return []
        packed = ipaddress.ip_address(local).packed
        if len(packed) == 4:
            if self._family != socket.AF_INET6:
                return [(socket.IPPROTO_IP, IP_PKTINFO, struct.pack("=I4s4s", 0, packed, b"\0" * 4))]
            packed = b"\0" * 10 + b"\xff\xff" + packed
        return [(socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, packed + struct.pack("=I", 0))]
