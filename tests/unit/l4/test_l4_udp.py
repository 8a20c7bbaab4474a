"""Datagrams through the tier and back, over real sockets: in envelopes, in batches, from the address that the client knows."""

import asyncio
import contextlib
import os
import socket
import struct
import time

import pytest

from balancer.pool import Member, Pool, PoolSettings
from balancer.quic_lb import Codec, Layout
from proxy.cluster.envelope import ANSWER, DATAGRAM, MAX_PAYLOAD, Opener, Sealer, packed, unpacked
from proxy.l4.relay import Relay
from proxy.l4.routing import Router, RoutingSettings
from proxy.l4.udp import Target, UdpTier
from proxy.listen.bind import SOL_UDP, UDP_SEGMENT, Buffers, bind_udp

KEY = b"k" * 32
CODEC = Codec(Layout(0, 1, 8, key=b"q" * 16))


def short(server_id: bytes, size: int = 100, nonce: int = 0) -> bytes:
    return (b"\x43" + CODEC.encode(server_id, nonce.to_bytes(8))).ljust(size, b".")


def long(source: bytes = b"client") -> bytes:
    return b"\xc3\0\0\0\1\x08original%c%b" % (len(source), source) + bytes(1180)


class Instance:
    """Opens envelopes, and answers from the address that they came to."""

    def __init__(self, host: str) -> None:
        self.sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.bind((host, 0))
        self.sock.setblocking(False)
        self.address = self.sock.getsockname()[:2]
        self.opener, self.sealer = Opener({3: KEY}), Sealer(3, KEY, os.urandom)

    async def next(self):
        """The next envelope, and who sent it."""
        data, source = await within(asyncio.get_running_loop().sock_recvfrom(self.sock, 65536))
        envelope = self.opener.open(data, time.time())
        assert envelope is not None, self.opener.refused
        assert envelope.kind == DATAGRAM
        return envelope, source[:2]

    def answer(self, envelope, to, payload: bytes, *, segment: int = 0, ecn: int = 0, client: bytes | None = None) -> None:
        sealed = self.sealer.seal(
            ANSWER, payload, time.time(), client=client or envelope.client, local=envelope.local, segment=segment, ecn=ecn
        )
        self.sock.sendto(sealed, to)

    def silent(self) -> bool:
        with pytest.raises(BlockingIOError):
            self.sock.recv(1)
        return True


async def within(awaitable):
    async with asyncio.timeout(5):
        return await awaitable


class Place:
    """A tier on *host*, with instances that have the server IDs 1 and so on."""

    def __init__(self, stack: contextlib.ExitStack, host: str = "127.0.0.1", *, at: str | None = None, instances: int = 2) -> None:
        family = "::1" if ":" in host else "127.0.0.1"
        self.instances = [Instance(family) for _ in range(instances)]
        names = [f"instance {number}" for number in range(1, instances + 1)]
        pool = Pool("l4", [Member(name) for name in names], PoolSettings(probed=True), KEY, 1)
        self.router = Router(pool, RoutingSettings(), KEY)
        self.router.decode_with([CODEC])
        self.router.name_instances({bytes([number]): name for number, name in enumerate(names, 1)})
        self.relay = Relay(Sealer(3, KEY, os.urandom), Opener({3: KEY}), time.time, Buffers(), back=7)
        sock = bind_udp((host, 0))
        self.address = (at or host, sock.getsockname()[1])
        targets = {name: Target(instance.address, 8443) for name, instance in zip(names, self.instances, strict=True)}
        self.udp = UdpTier(sock, (host, self.address[1]), self.router, self.relay, targets)
        self.udp.sources = {target.envelopes: pool.find(name) for name, target in targets.items()}
        self.relay.takers = {self.udp.answers_for: self.udp}
        self.udp.start()
        stack.callback(self.relay.close)
        stack.callback(self.udp.close)
        self.client = socket.socket(socket.AF_INET6 if ":" in self.address[0] else socket.AF_INET, socket.SOCK_DGRAM)
        self.client.setblocking(False)
        self.client.bind((self.address[0] if ":" in host else "127.0.0.9", 0))
        stack.callback(self.client.close)
        for instance in self.instances:
            stack.callback(instance.sock.close)

    def send(self, *datagrams: bytes) -> None:
        """In one call."""
        control = [(SOL_UDP, UDP_SEGMENT, struct.pack("=H", len(datagrams[0])))] if len(datagrams) > 1 else []
        self.client.sendmsg(datagrams, control, 0, self.address)

    async def heard(self) -> tuple[bytes, tuple[str, int]]:
        data, source = await within(asyncio.get_running_loop().sock_recvfrom(self.client, 65536))
        return data, source[:2]


@pytest.fixture
def stack():
    with contextlib.ExitStack() as stack:
        yield stack


async def test_a_datagram_goes_to_its_instance_with_the_clients_address_and_the_answer_comes_back(stack):
    place = Place(stack)
    place.send(short(b"\2"))
    envelope, relay = await place.instances[1].next()
    assert envelope.payload == short(b"\2")
    assert (unpacked(envelope.client), unpacked(envelope.local)) == (place.client.getsockname(), place.address)
    assert (envelope.port, envelope.back, envelope.segment, envelope.ecn) == (8443, 7, 0, 0)
    assert place.instances[0].silent()
    place.instances[1].answer(envelope, relay, b"\x40 answer")
    assert await place.heard() == (b"\x40 answer", place.address)
    assert (place.udp.received, place.udp.answered, place.relay.sent, place.relay.received) == (1, 1, 1, 1)


async def test_what_is_larger_than_an_envelope_holds_is_dropped_and_harms_nobody_else(stack):
    place = Place(stack)
    for size in (MAX_PAYLOAD + 1, 65507, MAX_PAYLOAD, 100):
        place.send(short(b"\1") + bytes(size - len(short(b"\1"))))
    sizes = [len((await place.instances[0].next())[0].payload) for _ in range(2)]
    assert sizes == [MAX_PAYLOAD, 100]
    assert place.router.dropped["oversized"] == 2


@pytest.mark.parametrize(("host", "at"), [("0.0.0.0", "127.0.0.5"), ("::", "127.0.0.6"), ("::", "::1"), ("::1", "::1")])
async def test_the_answer_leaves_from_the_address_that_the_client_knows(stack, host, at):
    place = Place(stack, host, at=at)
    place.send(short(b"\1"))
    envelope, relay = await place.instances[0].next()
    assert unpacked(envelope.local) == place.address
    assert unpacked(envelope.client) == place.client.getsockname()[:2]
    place.instances[0].answer(envelope, relay, b"\x40 answer", ecn=2)
    assert await place.heard() == (b"\x40 answer", place.address)


async def test_listeners_that_share_a_port_answer_each_from_their_own_address(stack):
    place = Place(stack, "127.0.0.1")
    address = ("127.0.0.2", place.address[1])
    other = UdpTier(bind_udp(address), address, place.router, place.relay, place.udp.targets)
    place.relay.takers = {udp.answers_for: udp for udp in (place.udp, other)}
    other.start()
    stack.callback(other.close)
    for to in (place.address, address):
        place.client.sendto(short(b"\1"), to)
        envelope, relay = await place.instances[0].next()
        place.instances[0].answer(envelope, relay, b"\x40 answer")
        assert await place.heard() == (b"\x40 answer", to)


async def test_a_batch_of_one_client_travels_in_one_envelope_and_so_do_the_answers(stack):
    place = Place(stack)
    sent = [short(b"\1", 1200) for _ in range(20)] + [short(b"\1", 700)]
    place.send(*sent)
    envelope, relay = await place.instances[0].next()
    assert envelope.datagrams() == sent
    assert place.relay.sent == 1
    answers = [bytes([0x40 + number]) * 1200 for number in range(30)] + [b"\x40 last"]
    place.instances[0].answer(envelope, relay, b"".join(answers), segment=1200)
    assert [(await place.heard())[0] for _ in answers] == answers


async def test_a_batch_that_is_for_several_instances_is_dealt_to_them(stack):
    place = Place(stack)
    sent = [short(b"\1", 200, 1), short(b"\1", 200, 2), short(b"\2", 200), short(b"\1", 200, 3)]
    place.send(*sent)
    first, second = (await place.instances[0].next())[0], (await place.instances[0].next())[0]
    assert [first.datagrams(), second.datagrams()] == [sent[:2], sent[3:]]
    assert (await place.instances[1].next())[0].datagrams() == sent[2:3]


async def test_on_a_link_with_small_frames_an_envelope_holds_what_fits_there(stack, monkeypatch):
    monkeypatch.setattr("proxy.listen.ways.mtu_to", lambda _: 1500)
    place = Place(stack)
    sent = [short(b"\1", 600, number) for number in range(5)]
    place.send(*sent)
    got = [(await place.instances[0].next())[0].datagrams() for _ in range(3)]
    assert got == [sent[:2], sent[2:4], sent[4:]]
    large = [short(b"\1", 1452, number) for number in range(3)]
    place.send(*large)
    assert [(await place.instances[0].next())[0].datagrams() for _ in large] == [[each] for each in large]
    assert place.relay.dropped == 0


async def test_answers_to_several_clients_in_one_batch_are_told_apart(stack):
    place = Place(stack)
    other = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    stack.callback(other.close)
    other.setblocking(False)
    other.bind(("127.0.0.8", 0))
    place.send(short(b"\1"))
    envelope, relay = await place.instances[0].next()
    for number in range(6):
        place.instances[0].answer(envelope, relay, b"\x40%d" % number, client=packed(other.getsockname()) if number % 2 else None)
    assert [(await place.heard())[0] for _ in range(3)] == [b"\x400", b"\x402", b"\x404"]
    assert [await within(asyncio.get_running_loop().sock_recv(other, 100)) for _ in range(3)] == [b"\x401", b"\x403", b"\x405"]


async def test_ecn_is_carried_both_ways(stack):
    place = Place(stack)
    place.client.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, 2)
    place.client.setsockopt(socket.IPPROTO_IP, 13, 1)
    place.send(short(b"\1"))
    envelope, relay = await place.instances[0].next()
    assert envelope.ecn == 2
    place.instances[0].answer(envelope, relay, b"\x40 marked", ecn=3)
    await asyncio.sleep(0.05)
    data, control, _, _ = place.client.recvmsg(100, 100)
    assert (data, control) == (b"\x40 marked", [(socket.IPPROTO_IP, 1, b"\3")])


async def test_what_is_no_authentic_answer_does_nothing_but_count(stack):
    place = Place(stack)
    place.send(short(b"\1"))
    envelope, relay = await place.instances[0].next()
    instance = place.instances[0].sock
    instance.sendto(b"", relay)
    instance.sendto(b"too short", relay)
    instance.sendto(bytes(200), relay)
    instance.sendto(Sealer(3, b"x" * 32, os.urandom).seal(ANSWER, b"x", time.time(), client=envelope.client, local=envelope.local), relay)
    instance.sendto(Sealer(3, KEY, os.urandom).seal(DATAGRAM, b"x", time.time(), client=envelope.client, local=envelope.local), relay)
    once = Sealer(3, KEY, os.urandom).seal(ANSWER, b"\x40 once", time.time(), client=envelope.client, local=envelope.local)
    instance.sendto(once, relay)
    instance.sendto(once, relay)
    nobody = packed(("127.0.0.1", 9))
    instance.sendto(Sealer(3, KEY, os.urandom).seal(ANSWER, b"x", time.time(), client=envelope.client, local=nobody), relay)
    place.instances[0].answer(envelope, relay, b"\x40 last")
    assert [(await place.heard())[0] for _ in range(2)] == [b"\x40 once", b"\x40 last"]
    assert dict(place.relay.opener.refused) == {"short": 1, "version": 1, "forged": 1, "replayed": 1}
    assert place.relay.nobodys == 1


async def test_a_handshake_goes_on_with_its_instance_by_the_id_that_an_answer_gave(stack):
    place = Place(stack)
    place.send(long())
    taken = [instance for instance in place.instances if await _has(instance)]
    assert len(taken) == 1
    envelope, relay = await taken[0].next()
    taken[0].answer(envelope, relay, b"\xc3\0\0\0\1\x06client\x08ours:one" + bytes(100))
    await place.heard()
    place.client.close()
    place.client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    place.client.bind(("127.0.0.33", 0))
    stack.callback(place.client.close)
    place.send(b"\x40ours:one" + bytes(60))
    assert (await taken[0].next())[0].payload[:9] == b"\x40ours:one"
    assert place.router.routed == [0, 0, 1, 0, 1]


async def _has(instance) -> bool:
    await asyncio.sleep(0.05)
    try:
        return bool(instance.sock.recv(1, socket.MSG_PEEK))
    except BlockingIOError:
        return False


async def test_a_full_socket_has_datagrams_wait_and_drops_what_is_beyond_the_queue(stack, monkeypatch):
    monkeypatch.setattr("proxy.l4.outbox.QUEUE", 3)
    place = Place(stack)
    outbox = place.udp._outbox
    sendmsg, full = outbox._sendmsg, [True]

    def maybe(*what):
        if full[0]:
            raise BlockingIOError
        return sendmsg(*what)

    outbox._sendmsg = maybe
    place.send(short(b"\1"))
    envelope, relay = await place.instances[0].next()
    for number in range(5):
        place.instances[0].answer(envelope, relay, b"\x40%d" % number, ecn=number % 2)  # runs of one
    await asyncio.sleep(0.05)
    assert (len(outbox), outbox.dropped) == (3, 2)
    full[0] = False
    assert [(await place.heard())[0] for _ in range(3)] == [b"\x400", b"\x401", b"\x402"]
    assert len(outbox) == 0
