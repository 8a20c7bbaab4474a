"""Envelopes in and out: where an instance hears the others, and the tier in front (docs/explanation/how-datagrams-find-their-instance.md).

What comes for a connection here goes to the listener that it is for, as if it had come by that one's own socket; what that answers goes
back to the relay. What came to a listener and is of another instance goes there. Once a second each peer is asked who it is. Decides
nothing about connections, and knows no QUIC.
"""

import asyncio
import contextlib
import os
import socket
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from random import SystemRandom
from typing import Any, Protocol

from proxy.cluster.envelope import (
    ANSWER,
    DATAGRAM,
    HASHED,
    HELLO,
    MAX_PAYLOAD,
    MAX_SEGMENTS,
    OVERHEAD,
    Envelope,
    Opener,
    Sealer,
    packed,
    unpacked,
)
from proxy.cluster.hello import Hello, State, decode
from proxy.cluster.peers import ASK_EVERY, Peers
from proxy.cluster.relays import Relay, Relays
from proxy.engine.seam import Datagram, Foreign, Transmit
from proxy.listen.bind import allow_fragments
from proxy.listen.handover import Handover
from proxy.listen.totals import Totals
from proxy.listen.udp_socket import UdpSocket
from proxy.listen.ways import Ways
from proxy.message import Address
from proxy.services import Services

BATCH = 64
"""Envelopes read before others have their turn."""

MAX_UNSENT = 2048
"""Envelopes that wait for a full socket; what comes beyond is dropped, and loss detection deals with it."""

_BACK = 2
_RELAY = 18 + 18 + _BACK
"""Bytes that stand before a datagram which is handed over: who its relay is."""

_RANDOM = SystemRandom()


class Ends(Protocol):
    """A listener, as far as envelopes are for it (``udp.UdpListener``)."""

    @property
    def port(self) -> int:
        """Its UDP port."""

    def has(self, local: Address) -> bool:
        """Whether *local* is an address of its socket."""

    def take_relayed(self, datagrams: Sequence[Datagram], *, handed_over: bool) -> None:
        """Take datagrams that came through a relay, and perhaps to another worker first."""

    def pass_on(self, datagrams: Sequence[Transmit]) -> int:
        """Send what another instance answers to a client of ours; gives how many had no room."""


class Envelopes:
    """The port. *slot* is that of this worker, where there are several; *keys* those by epoch, of which *epoch* seals.

    *opened* counts what they open.
    """

    def __init__(  # noqa: PLR0913  # what a socket needs, and what makes it one of a cluster
        self,
        sock: socket.socket,
        address: Address,
        services: Services,
        peers: Peers,
        keys: Mapping[int, bytes],
        *,
        epoch: int,
        slot: int | None,
        opened: Counter[int] | None = None,
    ) -> None:
        self._services = services
        self.peers = peers
        self._address = address
        self._socket = UdpSocket(sock, address)
        allow_fragments(sock)
        self._opener = Opener(keys, opened)
        self._sealer = Sealer(epoch, keys[epoch], os.urandom)
        self._sealing = (epoch, keys[epoch])
        self._back = HASHED if slot is None else slot
        self._relays = Relays()
        self._ways = Ways(OVERHEAD)
        self._listeners: tuple[Ends, ...] = ()
        self._handover: Handover | None = None
        self._loop = asyncio.get_running_loop()
        self._flush_scheduled = self._waits_for_room = self._closed = False
        self._timer: asyncio.TimerHandle | None = None
        self._totals = Totals()
        meters = services.meters
        self._came = [meters.envelopes.cell("in", kind) for kind in ("datagram", "answer", "hello")]
        self._went = [meters.envelopes.cell("out", kind) for kind in ("datagram", "answer", "hello")]
        self._forwarded = meters.misrouted.cell("forwarded")
        self._passed_on = meters.misrouted.cell("passed_on")

    def start(self, listeners: Iterable[Ends]) -> None:
        """Hear and ask from now on; *listeners* are those of this instance, in the order of its configuration."""
        self._listeners = tuple(listeners)
        self._loop.add_reader(self._socket.fileno(), self._readable)
        self._ask()

    def use(self, keys: Mapping[int, bytes], epoch: int) -> None:
        """These are the keys from now on."""
        self._opener.use(keys)
        if self._sealing != (epoch, keys[epoch]):
            self._sealing = (epoch, keys[epoch])
            self._sealer.use(epoch, keys[epoch])

    def know(self, addresses: Iterable[Address]) -> None:
        """Where the other instances are, from now on."""
        peers = self.peers
        peers.replace(addresses)
        if peers.left_out:
            self._services.log.warning("more peers than can be asked", left_out=peers.left_out)

    # For the engines: ``seam.Others``

    def lives(self, server_id: bytes) -> bool:
        """Whether that instance is there."""
        return self.peers.seek(server_id)

    def is_gone(self, server_id: bytes) -> bool:
        """Whether it is known that nobody is."""
        return self.peers.is_gone(server_id)

    # In

    def _readable(self) -> None:
        try:
            self._take(self._socket.receive(BATCH))
        except Exception as error:  # the port outlives its own faults
            self._services.log.exception("envelopes failed", exc_info=error)

    def _take(self, batch: list[Datagram]) -> None:
        now = self._services.wall_clock()
        arrived: dict[Ends, list[Datagram]] = {}
        for datagram in batch:
            envelope = self._opener.open(datagram.data, now)
            if envelope is None:
                continue
            self._came[envelope.kind].value += 1
            if envelope.kind == DATAGRAM:
                self._arrive(envelope, datagram.peer, arrived)
            elif envelope.kind == ANSWER:
                self._pass_on(envelope)
            else:
                self._hear(envelope, datagram)
        for listener, datagrams in arrived.items():
            listener.take_relayed(datagrams, handed_over=False)

    def _arrive(self, envelope: Envelope, sender: Address, arrived: dict[Ends, list[Datagram]]) -> None:
        listener = self._listener(envelope.port)
        if listener is None:
            self._refuse("listener")
            return
        client = unpacked(envelope.client)
        local = self._relays.host_of(Relay(sender, envelope.local, envelope.back)), envelope.port
        arrived.setdefault(listener, []).extend([Datagram(data, client, local) for data in envelope.datagrams()])

    def _pass_on(self, envelope: Envelope) -> None:
        """What another instance says to a client that came to us."""
        local, client = unpacked(envelope.local), unpacked(envelope.client)
        for listener in self._listeners:
            if listener.has(local):
                datagrams = envelope.datagrams()
                dropped = listener.pass_on([Transmit(data, client, local) for data in datagrams])
                self._passed_on.value += len(datagrams) - dropped
                self._services.meters.misrouted.cell("dropped").value += dropped
                return
        self._refuse("listener")

    def _listener(self, port: int) -> Ends | None:
        return next((listener for listener in self._listeners if listener.port == port), None)

    def _refuse(self, reason: str) -> None:
        self._services.meters.envelopes_refused.cell(reason).value += 1

    # Who is there

    def _hear(self, envelope: Envelope, datagram: Datagram) -> None:
        hello = decode(envelope.payload)
        if hello is None:
            self._refuse("malformed")
            return
        services = self._services
        if not hello.answers:
            self._send(HELLO, self._hello(envelope.time), datagram.peer, datagram.local, steer=envelope.back)
            if self.peers.wanted:
                self.peers.notice(datagram.peer, hello.server_id)
            return
        before = self.peers.living(hello.server_id)
        peer = self.peers.heard(datagram.peer, hello, int(services.wall_clock() * 1e6))
        if peer is None:
            self._refuse("unasked")
        elif before is None and hello.server_id != self.peers.own:
            address, server_id = _shown(peer.address), hello.server_id.hex()
            services.log.info("another instance is there", address=address, server_id=server_id, state=hello.state)

    def _hello(self, answers: int) -> bytes:
        services = self._services
        state: State = "ready"
        if services.draining:
            state = "draining"
        elif services.shedding is not None and services.shedding.state == "overloaded":
            state = "overloaded"
        return Hello(self.peers.own, state, tuple(listener.port for listener in self._listeners), answers).encode()

    def _ask(self) -> None:
        if self._closed:
            return
        self._timer = self._loop.call_later(ASK_EVERY, self._ask)
        for peer in self.peers.begin_round():
            now = self._services.wall_clock()
            peer.ask(int(now * 1e6))
            self._send(HELLO, self._hello(0), peer.address, self._address, now=now, steer=_anybody(), back=self._back)

    # Out

    def forward(self, foreign: Iterable[Foreign], listener: Ends) -> None:
        """What came to *listener* and is of other instances, to those."""
        clock, meters = self._services.clock(), self._services.meters
        for server_id, slot, datagram in foreign:
            peer = self.peers.living(server_id)
            if peer is None or len(datagram.data) > MAX_PAYLOAD:
                meters.misrouted.cell("dropped").value += 1
                continue
            port = peer.port(listener.port, self._listeners.index(listener))
            if port is None:
                meters.misrouted.cell("no_listener").value += 1
                continue
            if not peer.spend(clock):
                meters.misrouted.cell("over_budget").value += 1
                continue
            self._forwarded.value += 1
            self._send(
                DATAGRAM,
                datagram.data,
                peer.address,
                self._address,
                steer=_anybody() if slot is None else slot,
                port=port,
                back=self._back,
                client=packed(datagram.peer),
                local=packed(datagram.local),
            )

    def answer(self, bursts: Iterable[tuple[bytes, int, Address, Address]]) -> None:
        """Datagrams for clients that came through relays: of so many bytes each but for the last; to whom; from which local address."""
        now = self._services.clock()
        for data, segment, peer, (host, port) in bursts:
            relay = self._relays.relay_of(host)
            if relay is None:
                self._refuse("forgotten")
                continue
            step = segment * max(1, min(MAX_SEGMENTS, self._ways.room(relay.address, now) // segment))
            client = packed(peer)
            for at in range(0, len(data), step):
                part = data[at : at + step]
                size = segment if len(part) > segment else 0
                self._send(
                    ANSWER, part, relay.address, self._address, steer=relay.back, port=port, client=client, local=relay.local, segment=size
                )

    def _send(self, kind: int, payload: bytes, to: Address, source: Address, /, now: float | None = None, **fields: Any) -> None:
        """Seal and queue an envelope from our address *source*; *fields* are those of ``Sealer.seal``."""
        if len(self._socket) >= MAX_UNSENT or self._closed:
            self._refuse("unsent")
            return
        self._went[kind].value += 1
        envelope = self._sealer.seal(kind, payload, self._services.wall_clock() if now is None else now, **fields)
        self._socket.queue([Transmit(envelope, to, source)])
        if not self._flush_scheduled and not self._waits_for_room:
            self._flush_scheduled = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_scheduled = False
        if self._closed:
            return
        done = self._socket.send()
        if done == self._waits_for_room:
            self._waits_for_room = not done
            if done:
                self._loop.remove_writer(self._socket.fileno())
            else:
                self._loop.add_writer(self._socket.fileno(), self._flush)

    # Other workers of the port

    def share(self, handover: Handover) -> None:
        """Hand over to other workers what is theirs, and take what they hand over. *handover* ends with this."""
        self._handover = handover
        self._loop.add_reader(handover.fileno(), self._handed_over)

    def hand_over(self, slot: int, datagram: Datagram) -> None:
        """To the worker of *slot*: a datagram that came through a relay, and its relay with it."""
        relay = self._relays.relay_of(datagram.local[0])
        if self._handover is None or relay is None:
            self._refuse("forgotten")
            return
        head = packed(relay.address) + relay.local + relay.back.to_bytes(_BACK)
        self._handover.send(slot, Datagram(head + datagram.data, datagram.peer, datagram.local))

    def _handed_over(self) -> None:
        assert self._handover is not None
        try:
            for datagram in self._handover.receive(BATCH):
                listener = self._listener(datagram.local[1])
                data = datagram.data
                if listener is None or len(data) <= _RELAY:
                    self._refuse("listener")
                    continue
                relay = Relay(unpacked(data[:18]), data[18:36], int.from_bytes(data[36:_RELAY]))
                local = self._relays.host_of(relay), datagram.local[1]
                listener.take_relayed([Datagram(data[_RELAY:], datagram.peer, local)], handed_over=True)
        except Exception as error:  # the port outlives its own faults
            self._services.log.exception("envelopes failed", exc_info=error)

    # Numbers, and the end

    def show(self) -> None:
        """A hook for ``Metrics.before_read``."""
        meters, tell = self._services.meters, self._totals.tell
        for reason, count in self._opener.refused.items():
            tell(meters.envelopes_refused.cell(reason), count)
        if (handover := self._handover) is not None:
            tell(meters.quic_strays.cell("sent"), handover.sent)
            tell(meters.quic_strays.cell("received"), handover.received)
            tell(meters.quic_strays.cell("dropped"), handover.dropped)
        meters.peers.cells.clear()
        meters.peer_round_trip.cells.clear()
        for peer in self.peers.others():
            state = peer.state if peer.lives else "dead" if peer.server_id else "unknown"
            meters.peers.cell(_shown(peer.address), peer.server_id.hex(), state).value = 1.0
            if peer.lives:
                meters.peer_round_trip.cell(_shown(peer.address)).value = peer.round_trip

    def close(self) -> None:
        """Let go of the socket."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        with contextlib.suppress(OSError):
            self._loop.remove_reader(self._socket.fileno())
            self._loop.remove_writer(self._socket.fileno())
        self._socket.close()
        if self._handover is not None:
            self._loop.remove_reader(self._handover.fileno())
            self._handover.close()


def _anybody() -> int:
    """A steer that names no worker, another one each time."""
    return _RANDOM.randrange(HASHED, 1 << 16)


def _shown(address: Address) -> str:
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
