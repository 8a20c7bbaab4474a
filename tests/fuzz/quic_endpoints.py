"""Hostile datagrams against both QUIC engines, for a given time: ``python -m tests.fuzz.quic_endpoints --seconds 60``.

Each case is a number (``runner.py``): strangers with bent first flights, then connections that send what they like in packets with the
right keys, to an endpoint that answers by a plan of the case's. What is asked of it:

- nothing raises; events come in a possible order: ready once and first, the end of a connection once and last, nothing of a stream behind
  its end;
- a stranger gets at most three times what it sent (RFC 9000, section 8.1), and no more connections are kept than datagrams came;
- the answers of a connection are within the windows that its client gave, and are what the plan says;
- somebody else is served by the same endpoint afterwards, and an endpoint all of whose connections have ended keeps none;
- a request that both engines take is the same request.
"""

from itertools import pairwise
from random import Random

from aioquic import tls
from aioquic.buffer import Buffer, BufferReadError
from aioquic.quic.crypto import CryptoError
from aioquic.quic.packet import QuicPacketType

from proxy.engine import choice
from proxy.engine.events import (
    ConnectionClosed,
    ConnectionReady,
    Drained,
    HandshakeCompleted,
    PathChanged,
    Rejected,
    RequestBody,
    RequestHead,
    StreamReset,
)
from proxy.engine.quic.settings import QuicSettings
from proxy.engine.seam import Datagram, EngineLimits
from proxy.errors import Reset
from tests.fuzz.quic_dialogues import Script
from tests.fuzz.runner import main
from tests.fuzz.streams import follow
from tests.sim import engines
from tests.sim.hostile import v, write_packet
from tests.sim.packets import JUNK, crypto, initial
from tests.sim.simulator import SERVER, Client, Link, World

LIMITS = (
    EngineLimits(streams=3, stream_window=70_000, connection_window=90_000, header_bytes=9000, header_count=40),
    EngineLimits(),
    EngineLimits(streams=10, stream_window=16_384, connection_window=65_536),
)
ENGINES = tuple(engine for engine in (engines.AIOQUIC, engines.NATIVE) if choice.find("quic", engine.name).why_missing() is None)
AMPLIFICATION = 3
ROUND = 8
"""Packets after which the endpoint may send, and its client acknowledges."""


class Judge:
    """Takes the events of an endpoint, answers the requests, and knows what can't be."""

    def __init__(self, world: World, case: int) -> None:
        self.world = world
        self.endpoint = world.endpoint
        self.case = case
        self.ready: dict[int, ConnectionReady] = {}
        self.complete: set[int] = set()
        self.closed: dict[int, ConnectionClosed] = {}
        self.streams: dict[tuple[int, int], list] = {}
        world.serve = self.take

    def take(self, handle, event) -> None:
        assert handle not in self.closed, f"{event} after {self.closed[handle]}"
        if isinstance(event, ConnectionReady):
            assert handle not in self.ready
            assert not event.early
            self.ready[handle] = event
        elif isinstance(event, ConnectionClosed):
            assert event.error != "internal", event
            self.closed[handle] = event
        else:
            assert handle in self.ready, f"{event} before the connection was ready"
            if isinstance(event, HandshakeCompleted | PathChanged):
                return
            if isinstance(event, RequestHead):
                assert event.stream % 4 == 0
            follow(self.streams.setdefault((handle, event.stream), []), event)
            self.answer(handle, event)

    def answer(self, handle, event) -> None:
        endpoint, stream = self.endpoint, event.stream
        if isinstance(event, RequestBody):
            endpoint.consumed(handle, stream, event.credit)
            return
        if isinstance(event, Drained):
            endpoint.send_data(handle, stream, b"end", end=True)
            return
        random = Random(self.case * 1_000_003 + stream)
        plan = random.randrange(9)
        if isinstance(event, RequestHead) == (random.random() < 0.3) or isinstance(event, Rejected | StreamReset):
            return
        if plan < 3:
            endpoint.respond(
                handle, stream, random.choice((200, 200, 404, 204)), [(b"server", b"q")], b"abc"[:plan] * random.choice((1, 40_000))
            )
        elif plan < 6:
            endpoint.inform(handle, stream, 103, [(b"link", b"</a>")])
            endpoint.send_head(handle, stream, 200, [(b"x-a", b"b")], end=False)
            for _ in range(random.choice((0, 1, 7))):
                endpoint.send_data(handle, stream, b"z" * 30_000, end=False)
            if plan == 3:
                endpoint.send_trailers(handle, stream, [(b"t", b"v")])
            elif plan == 4:
                endpoint.send_data(handle, stream, b"", end=True)
        elif plan == 6:
            endpoint.reset(handle, stream, random.choice(list(Reset)))
        elif plan == 7 and random.random() < 0.05:
            random.choice((lambda: endpoint.goaway(handle), lambda: endpoint.close(handle, Reset.EXCESSIVE_LOAD)))()

    def requests(self) -> dict[tuple, RequestHead]:
        """The heads, by client and stream."""
        heads = {key: seen[0] for key, seen in self.streams.items() if isinstance(seen[0], RequestHead)}
        return {(self.ready[handle].peer, stream): head for (handle, stream), head in heads.items()}


class Run:
    """One engine through one case."""

    def __init__(self, engine: engines.Engine, case: int) -> None:
        self.random = random = Random(case)
        self.case = case
        settings = QuicSettings(retry=random.choice(("never", "never", "always")), migration=random.random() < 0.8, connections=50)
        self.world = World(Link(latency=0.0), random.choice(LIMITS), settings, engine)
        self.judge = Judge(self.world, case)
        self.came: dict[tuple, int] = {}
        self.went: dict[tuple, int] = {}
        self.clients: list[Client] = []
        self.read: dict[tuple, int] = {}
        self.contradicts = False
        if random.random() < 0.3:
            self.strangers()
        for number in range(random.choice((1, 1, 1, 3))):
            self.attack(number)
        if random.random() < 0.3:
            self.neighbour()

    def receive(self, data: bytes, peer) -> None:
        self.came[peer] = self.came.get(peer, 0) + len(data)
        told = self.world.endpoint.receive([Datagram(data, peer, SERVER)], self.world.now)
        self.world._events(told)

    def send(self) -> None:
        """What the endpoint has to send, each datagram counted, and read by the client that it is for."""
        for _ in range(1000):
            datagrams = self.world.endpoint.take_datagrams(self.world.now)
            told = self.world.endpoint.take_events()
            self.world._events(told)
            for transmit in datagrams:
                self.went[transmit.peer] = self.went.get(transmit.peer, 0) + len(transmit.data)
                self.decrypt(transmit)
            if not datagrams and not told:
                return
        raise AssertionError("output without end")

    def decrypt(self, transmit) -> None:
        """Note the number of a packet, so that it can be acknowledged."""
        for client in self.clients:
            if client.address[0] == transmit.peer[0] and not transmit.data[0] & 0x80:
                keys = client.quic._cryptos[tls.Epoch.ONE_RTT]
                expected = self.read.get(client.address, -1) + 1
                try:
                    _, payload, number = keys.decrypt_packet(transmit.data, 1 + len(client.quic.host_cid), expected)
                except CryptoError:
                    continue  # a stateless reset, or for an ID that the script made up
                self.read[client.address] = max(number, expected - 1)
                assert self.well_formed(payload)

    def well_formed(self, payload: bytes) -> bool:
        """Whether the first frame is of a type that a server may send."""
        buffer = Buffer(data=payload)
        try:
            return buffer.pull_uint_var() < 0x20
        except BufferReadError:
            return False

    def strangers(self) -> None:
        """Datagrams of nobody: junk, and first flights that are bent, in any order."""
        random = self.random
        flights = []
        for number in range(random.choice((1, 3))):
            client = Client(address=("203.0.113.5", 5000 + number), http=False)
            client.quic.connect(SERVER, now=0.0)
            flights += [(data, client.address) for data, _ in client.quic.datagrams_to_send(0.0)]
        for _ in range(random.choice((1, 5, 20))):
            data, peer = random.choice(flights)
            kind = random.randrange(5)
            if kind == 0:
                data = random.choice(list(JUNK.values()))
            elif kind == 1:
                data = initial(
                    random.randbytes(random.choice((8, 20))),
                    crypto(random.choice((0, 1, 5000)), random.randbytes(300)),
                    token=random.randbytes(9),
                )
            elif kind == 2:
                bent = bytearray(data)
                for _ in range(random.choice((1, 5))):
                    bent[random.randrange(random.choice((8, 60, len(bent))))] = random.randrange(256)
                data = bytes(bent)
            elif kind == 3:
                data = data[: random.choice((20, 1199, 1200))]
            self.receive(data, peer)
            self.send()
        for peer, sent in self.went.items():
            assert sent <= AMPLIFICATION * self.came[peer], f"{sent} bytes for {self.came[peer]} of {peer}"
        assert self.world.endpoint.connections <= sum(1 for _ in self.came) * 20

    def attack(self, number: int) -> None:
        """A connection of which a script writes the packets."""
        random, world = self.random, self.world
        client = world.connect(Client(address=(f"198.51.100.{number + 1}", 4000), http=False))
        if not world.run(lambda: client.ready and len(self.judge.ready) > number, seconds=5):
            raise AssertionError(f"no handshake: {client.closed}")
        world.clients.remove(client)
        self.clients.append(client)
        address = client.address
        script = Script(self.case * 31 + number)
        for at, payload in enumerate(script.payloads()):
            epoch = QuicPacketType.ONE_RTT
            for datagram in write_packet(client.quic, payload, epoch):
                if random.random() < 0.01:
                    address = (random.choice((address[0], "198.51.100.77")), random.randrange(1024, 65536))
                for _ in range(2 if random.random() < 0.05 else 1):
                    self.receive(datagram, address)
            if at % ROUND == ROUND - 1:
                self.send()
                if (read := self.read.get(client.address)) is not None and random.random() < 0.8:
                    for datagram in write_packet(client.quic, v(0x02, read, 0, 0, read)):
                        self.receive(datagram, address)
            if random.random() < 0.02:
                world._timers()
        self.send()
        self.contradicts |= script.contradicts

    def neighbour(self) -> None:
        """Somebody else, who does everything right."""
        world = self.world
        before = max(self.judge.ready)
        world.serve = lambda handle, event: (
            world.endpoint.respond(handle, event.stream, 200, [], b"yes") if handle > before and isinstance(event, RequestHead) else None
        )
        good = world.connect(Client(address=("192.0.2.200", 4000)))
        assert world.run(lambda: good.ready, seconds=5), "nobody else is served"
        stream = good.request()
        assert world.run(lambda: good.answers[stream].ended, seconds=5), "nobody else is answered"
        assert good.answers[stream].body == b"yes"


def check(case: int) -> int:
    """Run one case; how many connections it took."""
    runs = [Run(engine, case) for engine in ENGINES]
    for one, other in pairwise(runs):
        ours, theirs = one.judge.requests(), other.judge.requests()
        for stream in () if one.contradicts else ours.keys() & theirs.keys():
            assert ours[stream] == theirs[stream], (stream, ours[stream], theirs[stream])
    return sum(len(run.clients) for run in runs)


if __name__ == "__main__":
    main("tests.fuzz.quic_endpoints", check, __doc__)
