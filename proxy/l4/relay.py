"""The envelopes of one worker of the tier: datagrams of clients to instances, and answers back to whoever has the client.

One socket for each family of addresses, with a port that the system chooses: an instance answers to where a datagram came from, so answers
come to the worker that has sent it. Any worker could take them, as all have a socket with the address that the client knows; so one that
is started in the place of a dead one has that one's sockets, and what came meanwhile.
"""

import asyncio
import socket
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from proxy.cluster.envelope import ANSWER, DATAGRAM, HASHED, HELLO, OVERHEAD, Envelope, Opener, Sealer
from proxy.l4.outbox import MAX_SEGMENTED_BYTES, MAX_SEGMENTS, Control, Outbox
from proxy.listen.bind import SOL_UDP, UDP_GRO, Buffers, bind_relay
from proxy.listen.ways import Ways
from proxy.message import Address

READS = 32
"""Reads of a socket in one turn of the loop, each of as many datagrams as the kernel has joined."""

ECN = 0b11
"""The bits of ECN in what was the type of service (RFC 3168)."""


class Answered(Protocol):
    """Who has the clients: takes what instances send to them."""

    def answer(self, envelope: Envelope, source: Address) -> None:
        """Send what is in *envelope* to its client; it came from *source*."""

    def flush(self) -> None:
        """That was all for now."""


class Run:
    """Datagrams one after the other that may go together: one way, one size but for the last, within what one call may carry."""

    __slots__ = ("datagrams", "key", "size", "total")

    def __init__(self) -> None:
        self.key: object = None
        self.datagrams: list[bytes] = []
        self.size = 0
        """Of each; 0 where no more may follow."""
        self.total = 0

    def takes(self, key: object, size: int, most: int) -> bool:
        """Whether one of *size* bytes may follow, within *most* bytes in all. One that is shorter is the last."""
        if key != self.key or not 0 < size <= self.size or self.total + size > most or len(self.datagrams) >= MAX_SEGMENTS:
            return False
        self.total += size
        if size < self.size:
            self.size = 0
        return True

    def begin(self, key: object, size: int) -> None:
        """A new run, with a first one of *size* bytes."""
        self.key, self.size, self.total, self.datagrams = key, size, size, []


class Relay:
    """Seals, sends, receives and opens. *wall* is the time of day in seconds since 1970; *back* the steer of answers.

    *sockets* are those that it has already (``bind_relay``), and closes in the end; others it binds when it needs them, with *buffers*.
    """

    def __init__(  # noqa: PLR0913  # its parts
        self,
        sealer: Sealer,
        opener: Opener,
        wall: Callable[[], float],
        buffers: Buffers,
        *,
        sockets: Iterable[socket.socket] = (),
        back: int = HASHED,
    ) -> None:
        self.sealer, self.opener = sealer, opener
        self._wall = wall
        self._buffers = buffers
        self._back = back
        self._sockets: dict[int, tuple[socket.socket, Outbox]] = {}
        self.room = Ways(OVERHEAD).room
        """Bytes of datagrams that an envelope to an address has room for, by it and the time (monotonic)."""
        self._waiting: dict[Address, list[bytes]] = {}
        self._buffer = memoryview(bytearray(65536))
        self._loop = asyncio.get_running_loop()
        self.heard: Callable[[Envelope, Address], None] | None = None
        """Told of each HELLO, and where it came from."""
        self.takers: Mapping[bytes, Answered] = {}
        """Who takes answers, by the address that clients send to, ``packed``; or by its port alone (two bytes), for all addresses."""
        self.sent = self.received = self.nobodys = 0
        """Envelopes; and answers for a port that nobody here has."""
        for sock in sockets:
            self._add(sock)

    @property
    def dropped(self) -> int:
        """Envelopes that could not be sent."""
        return sum(outbox.dropped for _, outbox in self._sockets.values())

    def close(self) -> None:
        """Let go of the sockets."""
        for sock, outbox in self._sockets.values():
            outbox.close()
            self._loop.remove_reader(sock.fileno())
            sock.close()
        self._sockets.clear()

    # To instances

    def put(self, to: Address, datagrams: list[bytes], *, client: bytes, local: bytes, port: int, ecn: int) -> None:  # noqa: PLR0913  # of an envelope
        """Seal *datagrams* of one client for the instance at *to*, whose listener has *port*; ``flush`` sends it.

        All have one size, but for the last, which may have less. Addresses are ``packed``.
        """
        if len(datagrams) == 1:
            payload, segment = datagrams[0], 0
        else:
            payload, segment = b"".join(datagrams), len(datagrams[0])
        sealed = self.sealer.seal(
            DATAGRAM, payload, self._wall(), port=port, back=self._back, client=client, local=local, segment=segment, ecn=ecn
        )
        self.put_sealed(to, sealed)

    def put_sealed(self, to: Address, sealed: bytes) -> None:
        """An envelope for *to*; ``flush`` sends it."""
        waiting = self._waiting.get(to)
        if waiting is None:
            self._waiting[to] = [sealed]
        else:
            waiting.append(sealed)

    def flush(self) -> None:
        """Send what was sealed: to each instance with as few calls as go."""
        for to, envelopes in self._waiting.items():
            outbox = self._outbox(to)
            self.sent += len(envelopes)
            if len(envelopes) == 1:
                outbox.send(envelopes, to, _NOTHING)
                continue
            whole = self.room(to, self._loop.time()) + OVERHEAD  # what is larger is cut by the kernel, which takes it one by one only
            run = Run()
            for envelope in envelopes:
                size = len(envelope)
                if not run.takes(whole >= size, size, MAX_SEGMENTED_BYTES):
                    if run.datagrams:
                        outbox.send(run.datagrams, to, _NOTHING)
                    run.begin(whole >= size, size if whole >= size else 0)
                run.datagrams.append(envelope)
            outbox.send(run.datagrams, to, _NOTHING)
        self._waiting.clear()

    def _outbox(self, to: Address) -> Outbox:
        family = socket.AF_INET6 if ":" in to[0] else socket.AF_INET
        found = self._sockets.get(family)
        return found[1] if found is not None else self._add(bind_relay(family, self._buffers))

    def _add(self, sock: socket.socket) -> Outbox:
        outbox = Outbox(sock)
        self._sockets[sock.family] = sock, outbox
        self._loop.add_reader(sock.fileno(), self._readable, sock)
        return outbox

    # From instances

    def _readable(self, sock: socket.socket) -> None:
        buffer, wall, opened = self._buffer, self._wall(), self.opener.open
        touched = set[Answered]()
        for _ in range(READS):
            try:
                size, control, _, source = sock.recvmsg_into([buffer], 64)
            except (BlockingIOError, InterruptedError):
                break
            except OSError:
                continue  # an ICMP error of an earlier envelope: probes see to instances that are gone
            segment = segment_of(control) or size or 1
            for at in range(0, size, segment):
                envelope = opened(bytes(buffer[at : min(at + segment, size)]), wall)
                if envelope is None:
                    continue
                if envelope.kind != ANSWER:
                    if envelope.kind == HELLO and self.heard is not None:
                        self.heard(envelope, source[:2])
                    continue
                self.received += 1
                taker = self.takers.get(envelope.local) or self.takers.get(envelope.local[16:])
                if taker is None:
                    self.nobodys += 1
                    continue
                taker.answer(envelope, source[:2])
                touched.add(taker)
        for taker in touched:
            taker.flush()


def segment_of(control: Control) -> int:
    """Bytes of each datagram that the kernel has joined; 0 where it has joined none."""
    for level, kind, data in control:
        if level == SOL_UDP and kind == UDP_GRO:
            return int.from_bytes(data[:4], sys.byteorder)
    return 0


_NOTHING: Control = []
