"""Datagrams that came to the wrong worker, on their way to the right one over sockets within the host.

Each worker has a Unix datagram socket at which it receives, and one for each other worker to send to (``bind.pair_for_strays``). What is
handed over is one datagram with where it came from and went to; a full socket drops it, as a full UDP socket would. Knows no QUIC.
"""

import contextlib
import socket
import struct
from collections.abc import Mapping
from ipaddress import IPv6Address, ip_address

from proxy.engine.seam import Datagram
from proxy.message import Address

VERSION = 1
"""Of the head: workers before and after an upgrade need not be of one mind."""

_HEAD = struct.Struct("!BHH16s16s")  # version, the ports of both ends, their addresses as IPv6

_LARGEST = _HEAD.size + 65536


class Handover:
    """One worker's ends. *receiving* is its own; *sending* has those of others, by slot. Both are closed with it."""

    def __init__(self, receiving: socket.socket, sending: Mapping[int, socket.socket]) -> None:
        self._receiving = receiving
        self._sending = sending
        for sock in (receiving, *sending.values()):
            sock.setblocking(False)
        self.sent = 0
        """Datagrams handed over so far."""
        self.received = 0
        """Datagrams so far that others handed over."""
        self.dropped = 0
        """Datagrams so far that found a full socket, or nobody; and what came and was none."""

    def fileno(self) -> int:
        """Of the receiving end, for the event loop."""
        return self._receiving.fileno()

    def send(self, slot: int, datagram: Datagram) -> None:
        """Hand a datagram over to the worker of *slot*, or drop it."""
        (peer, peer_port), (local, local_port) = datagram.peer, datagram.local
        head = _HEAD.pack(VERSION, peer_port, local_port, _packed(peer), _packed(local))
        try:
            self._sending[slot].send(head + datagram.data)
        except (OSError, KeyError):
            self.dropped += 1
        else:
            self.sent += 1

    def receive(self, most: int) -> list[Datagram]:
        """What others have handed over, at most *most* datagrams."""
        batch = []
        for _ in range(most):
            try:
                data = self._receiving.recv(_LARGEST)
            except (BlockingIOError, InterruptedError):
                break
            if len(data) <= _HEAD.size or data[0] != VERSION:
                self.dropped += 1
                continue
            _, peer_port, local_port, peer, local = _HEAD.unpack_from(data)
            batch.append(Datagram(data[_HEAD.size :], _address(peer, peer_port), _address(local, local_port)))
        self.received += len(batch)
        return batch

    def close(self) -> None:
        """Let go of all ends."""
        for sock in (self._receiving, *self._sending.values()):
            with contextlib.suppress(OSError):
                sock.close()


def _packed(host: str) -> bytes:
    packed = ip_address(host).packed
    return packed if len(packed) == 16 else bytes(10) + b"\xff\xff" + packed


def _address(packed: bytes, port: int) -> Address:
    address = IPv6Address(packed)
    return str(address.ipv4_mapped or address), port
