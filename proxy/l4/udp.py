"""One UDP address of the tier: datagrams of clients in, to the instance that ``routing`` says; answers of instances out.

Batches in (GRO joins datagrams of one client), batches out (GSO). Datagrams of one client to one instance that come one after the other
travel in one envelope as far as the link takes it.
"""

import asyncio
import ipaddress
import socket
import struct
import sys
import time
from dataclasses import dataclass

from balancer.backend import Backend
from proxy.cluster.envelope import MAX_PAYLOAD, Envelope, packed, unpacked
from proxy.l4.outbox import MAX_SEGMENTED_BYTES, Control, Outbox
from proxy.l4.relay import ECN, READS, Relay, Run
from proxy.l4.routing import Router
from proxy.listen.bind import IP_PKTINFO, SOL_UDP, UDP_GRO
from proxy.message import Address, mapped, unmapped

IP_RECVTOS, IP_TOS = 13, 1
IPV6_RECVTCLASS, IPV6_TCLASS = 66, 67
"""Linux's numbers (linux/in.h, linux/in6.h)."""

LOCAL_ADDRESSES = 4096
"""Addresses of our own, and of clients, that are remembered in the form that the other side needs."""


LONGEST = 6 + 255 + 1 + 255
"""Bytes of a long header's connection IDs, with what stands before them (RFC 8999, section 5.1)."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where an instance is."""

    envelopes: Address
    port: int
    """Of its QUIC listener."""


class UdpTier:
    """One bound UDP socket, in one worker. ``targets`` has the instances of the router's pool, by identity."""

    def __init__(self, sock: socket.socket, address: Address, router: Router, relay: Relay, targets: dict[str, Target]) -> None:
        self._sock = sock
        self._router = router
        self._relay = relay
        self._any = address[0] in {"0.0.0.0", "::"}  # noqa: S104  # compared with, not bound to
        self._port = address[1]
        self._local = packed(address)
        self.answers_for = self._local[16:] if self._any else self._local
        """See ``relay.Relay.takers``."""
        self._mapped = sock.family == socket.AF_INET6
        self._buffer = memoryview(bytearray(65536))
        self._run = Run()
        self._run_to: Target | None = None
        self._answers = Run()
        self._answers_to: tuple[Address, Control] = (("", 0), [])
        self._locals: dict[bytes, bytes] = {}
        self._loop = asyncio.get_running_loop()
        self._outbox = Outbox(sock)
        self.targets = targets
        self.sources: dict[Address, Backend] = {}
        """Instances by where their envelopes come from."""
        self.received = self.answered = 0
        """Datagrams of clients, and to them."""

    @property
    def dropped(self) -> int:
        """Answers that could not be sent."""
        return self._outbox.dropped

    def start(self) -> None:
        """Receive from now on."""
        sock = self._sock
        if hasattr(socket, "AF_PACKET"):  # Linux
            sock.setsockopt(SOL_UDP, UDP_GRO, 1)
            sock.setsockopt(socket.IPPROTO_IP, IP_RECVTOS, 1)
            if self._mapped:
                sock.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVTCLASS, 1)
            if not self._any:  # then nobody has to tell where a datagram was sent to
                sock.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 0)
                if self._mapped:
                    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 0)
        self._loop.add_reader(sock.fileno(), self._readable)

    def close(self) -> None:
        """Let go of the socket."""
        self._loop.remove_reader(self._sock.fileno())
        self._outbox.close()
        self._sock.close()

    # From clients

    def _readable(self) -> None:
        sock, buffer, now = self._sock, self._buffer, time.monotonic()
        for _ in range(READS):
            try:
                size, control, _, source = sock.recvmsg_into([buffer], 128)
            except (BlockingIOError, InterruptedError):
                break
            except OSError:
                continue  # an ICMP error of an answer: its connection's loss detection deals with it
            if not size:
                continue
            host = unmapped(source[0])
            client = packed((host, source[1]))
            segment, ecn, local = 0, 0, self._local
            for level, kind, data in control:
                if level == SOL_UDP:
                    segment = int.from_bytes(data[:4], sys.byteorder)
                elif kind in _TOS:
                    ecn = int.from_bytes(data, sys.byteorder) & ECN
                else:
                    local = self._local_of(level, data)
            if not segment or segment >= size:
                self.received += 1
                if size <= MAX_PAYLOAD:
                    self._take(bytes(buffer[:size]), host, client, local, ecn, now)
                else:
                    self._router.dropped["oversized"] += 1
                continue
            self.received += -(-size // segment)
            for at in range(0, size, segment):
                self._take(bytes(buffer[at : min(at + segment, size)]), host, client, local, ecn, now)
        self._end_run()
        self._relay.flush()

    def _take(self, datagram: bytes, host: str, client: bytes, local: bytes, ecn: int, now: float) -> None:  # noqa: PLR0913, PLR0917  # for each datagram
        backend = self._router.route(datagram, client, host, now)
        target = self.targets.get(backend.identity) if backend is not None else None
        if target is None:
            return
        run, size = self._run, len(datagram)
        key = (client, ecn, local, target)
        if not run.takes(key, size, self._relay.room(target.envelopes, now)):
            self._end_run()
            run.begin(key, size)
            self._run_to = target
        run.datagrams.append(datagram)

    def _end_run(self) -> None:
        run, target = self._run, self._run_to
        key, datagrams = run.key, run.datagrams
        run.begin(None, 0)
        if target is not None and datagrams:
            client, ecn, local, _ = key  # type: ignore[misc]  # as ``_take`` makes it
            self._relay.put(target.envelopes, datagrams, client=client, local=local, port=target.port, ecn=ecn)  # type: ignore[has-type]

    def _local_of(self, level: int, data: bytes) -> bytes:
        """The address that a datagram was sent to, from what the kernel tells of it."""
        ip = data[8:12] if level == socket.IPPROTO_IP else data[:16]
        found = self._locals.get(ip)
        if found is None:
            if len(self._locals) >= LOCAL_ADDRESSES:
                self._locals.clear()
            found = self._locals[ip] = packed((str(ipaddress.ip_address(ip)), self._port))
        return found

    # From instances

    def answer(self, envelope: Envelope, source: Address) -> None:
        """See ``relay.Answered``."""
        backend = self.sources.get(source)
        payload, segment = envelope.payload, envelope.segment
        if backend is not None:
            self._router.answered(payload[:LONGEST], backend, time.monotonic())
        run = self._answers
        key = (envelope.client, envelope.local, envelope.ecn)
        pieces = envelope.datagrams() if segment else (payload,)
        self.answered += len(pieces)
        for piece in pieces:
            size = len(piece)
            if not run.takes(key, size, MAX_SEGMENTED_BYTES):
                self.flush()
                run.begin(key, size)
                self._answers_to = self._way(envelope)
            run.datagrams.append(piece)

    def flush(self) -> None:
        """See ``relay.Answered``."""
        run = self._answers
        if run.datagrams:
            address, control = self._answers_to
            self._outbox.send(run.datagrams, address, control)
            run.begin(None, 0)

    def _way(self, envelope: Envelope) -> tuple[Address, Control]:
        """The client, and the control messages that have the answer leave from the address that it knows, with ECN as the instance says."""
        address = unpacked(envelope.client)
        if self._mapped:
            address = (mapped(address[0]), address[1])
        control: Control = []
        ipv4 = envelope.client.startswith(_MAPPED)
        if envelope.ecn:
            kind = (socket.IPPROTO_IP, IP_TOS) if ipv4 else (socket.IPPROTO_IPV6, IPV6_TCLASS)
            control.append((*kind, struct.pack("=i", envelope.ecn & ECN)))
        if self._any:
            ip = envelope.local[:16]
            if self._mapped:
                control.append((socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, ip + struct.pack("=I", 0)))
            else:
                control.append((socket.IPPROTO_IP, IP_PKTINFO, struct.pack("=I4s4s", 0, ip[12:], b"\0" * 4)))
        return address, control


_TOS = frozenset({IP_TOS, IPV6_TCLASS})
_MAPPED = b"\0" * 10 + b"\xff\xff"
