"""The port of envelopes: two ends over loopback, with listeners that only note what they are given."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import pytest

from proxy.cluster import peers as peers_module
from proxy.cluster.envelope import ANSWER, DATAGRAM, HELLO, MAX_PAYLOAD, OVERHEAD, Opener, Sealer, packed
from proxy.cluster.hello import Hello, decode
from proxy.cluster.peers import Peers
from proxy.cluster.relays import is_relayed
from proxy.engine.seam import Datagram, Foreign, Transmit
from proxy.listen import envelopes as module
from proxy.listen.bind import bind_udp, pair_for_strays
from proxy.listen.envelopes import Envelopes
from proxy.listen.handover import Handover
from tests.unit.exchange_world import World

KEY, NEXT_KEY = b"k" * 32, b"n" * 32
CLIENT = ("198.51.100.7", 50123)


class Noting:
    """An ``envelopes.Ends``."""

    def __init__(self, port: int, host: str = "203.0.113.1") -> None:
        self.port, self._host = port, host
        self.taken: list[tuple[Datagram, bool]] = []
        self.passed: list[Transmit] = []
        self.room = True

    def has(self, local: tuple[str, int]) -> bool:
        return local == (self._host, self.port)

    def take_relayed(self, datagrams: Sequence[Datagram], *, handed_over: bool) -> None:
        self.taken += [(datagram, handed_over) for datagram in datagrams]

    def pass_on(self, datagrams: Sequence[Transmit]) -> int:
        if not self.room:
            return len(datagrams)
        self.passed += datagrams
        return 0


class End:
    def __init__(self, server_id: bytes, listeners: Sequence[Noting], *, rate: int = 100, slot: int | None = None) -> None:
        self.sock = bind_udp(("127.0.0.1", 0))
        self.address = self.sock.getsockname()
        self.services = World().services
        self.services.wall_clock = time.time
        self.services.clock = time.monotonic
        self.peers = Peers(server_id, rate)
        self.listeners = listeners
        self.envelopes = Envelopes(self.sock, self.address, self.services, self.peers, {1: KEY}, epoch=1, slot=slot)

    def count(self, family: str, *labels: str) -> float:
        self.envelopes.show()
        return getattr(self.services.meters, family).cell(*labels).value


@asynccontextmanager
async def ends(*made: End) -> AsyncIterator[None]:
    try:
        for end in made:
            end.envelopes.know([other.address for other in made])
            end.envelopes.start(end.listeners)
        yield
    finally:
        for end in made:
            end.envelopes.close()


async def until(condition: Callable[[], object]) -> None:
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.005)  # datagrams over loopback; bounded
    raise AssertionError


async def meet(*made: End) -> None:
    await until(lambda: all(end.peers.living(other.peers.own) for end in made for other in made if other is not end))


async def test_instances_learn_who_is_there_and_how() -> None:
    west, east = End(b"west", [Noting(443), Noting(8443)]), End(b"east", [Noting(443)])
    east.services.draining = True
    async with ends(west, east):
        await meet(west, east)
        peer = west.peers.living(b"east")
        assert (peer.address, peer.state, peer.ports) == (east.address, "draining", (443,))
        assert 0 < peer.round_trip < 5
        assert east.peers.living(b"west").ports == (443, 8443)
        assert west.count("peers", f"127.0.0.1:{east.address[1]}", "65617374", "draining") == 1
        assert [peer.address for peer in west.peers.others()] == [east.address], "its own address is among those it asks"
        assert west.envelopes.lives(b"east")
        assert not west.envelopes.lives(b"gone")
        assert not west.envelopes.is_gone(b"gone"), "others may be on their way"


async def test_a_datagram_goes_there_and_its_answer_back_with_the_client_s_address() -> None:
    ours, theirs = Noting(443), Noting(443, "203.0.113.2")
    west, east = End(b"west", [ours]), End(b"east", [theirs])
    async with ends(west, east):
        await meet(west, east)
        west.envelopes.forward([Foreign(b"east", None, Datagram(b"hello", CLIENT, ("203.0.113.1", 443)))], ours)
        await until(lambda: theirs.taken)
        [(datagram, handed_over)] = theirs.taken
        assert (datagram.data, datagram.peer, handed_over) == (b"hello", CLIENT, False)
        assert is_relayed(datagram.local)
        assert datagram.local[1] == 443
        east.envelopes.answer([(b"aaaabbbbcc", 4, CLIENT, datagram.local), (b"dd", 2, CLIENT, datagram.local)])
        await until(lambda: len(ours.passed) == 4)
        assert ours.passed == [Transmit(data, CLIENT, ("203.0.113.1", 443)) for data in (b"aaaa", b"bbbb", b"cc", b"dd")]
        assert west.count("misrouted", "forwarded") == 1
        assert west.count("misrouted", "passed_on") == 4
        assert east.count("envelopes", "out", "answer") == 2
        ours.room = False
        east.envelopes.answer([(b"eeeeffff", 4, CLIENT, datagram.local)])
        await until(lambda: west.count("misrouted", "dropped") == 2)


@pytest.mark.parametrize(("mtu", "envelopes"), [(1500, 4), (65536, 1), (2 * 1200 + OVERHEAD + 28, 2)])
async def test_what_goes_together_fits_the_path(monkeypatch: pytest.MonkeyPatch, mtu: int, envelopes: int) -> None:
    monkeypatch.setattr("proxy.listen.ways.mtu_to", lambda _: mtu)
    ours, theirs = Noting(443), Noting(443)
    west, east = End(b"west", [ours]), End(b"east", [theirs])
    async with ends(west, east):
        await meet(west, east)
        west.envelopes.forward([Foreign(b"east", None, Datagram(b"x", CLIENT, ("203.0.113.1", 443)))], ours)
        await until(lambda: theirs.taken)
        east.envelopes.answer([(bytes(4 * 1200), 1200, CLIENT, theirs.taken[0][0].local)])
        await until(lambda: len(ours.passed) == 4)
        assert east.count("envelopes", "out", "answer") == envelopes


async def test_so_much_goes_to_a_peer_and_nothing_to_who_is_not_there_or_has_no_such_listener(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, other = Noting(443), Noting(9443)
    west, east = End(b"west", [ours, other], rate=3), End(b"east", [Noting(443)])
    async with ends(west, east):
        await meet(west, east)
        now = time.monotonic()
        west.services.clock = lambda: now
        datagram = Datagram(b"x", CLIENT, ("203.0.113.1", 443))
        west.envelopes.forward([Foreign(b"gone", None, datagram)], ours)
        west.envelopes.forward([Foreign(b"east", None, datagram)], other)
        west.envelopes.forward([Foreign(b"east", None, datagram)] * 5, ours)
        counts = {result: west.count("misrouted", result) for result in ("forwarded", "over_budget", "no_listener", "dropped")}
        assert counts == {"forwarded": 3, "over_budget": 2, "no_listener": 1, "dropped": 1}


async def test_datagrams_of_any_size_go_there_or_are_counted() -> None:
    """UDP carries 65,507 bytes over IPv4, of which an envelope takes some itself."""
    ours, theirs = Noting(443), Noting(443)
    west, east = End(b"west", [ours]), End(b"east", [theirs])
    async with ends(west, east):
        await meet(west, east)
        for size in (64_950, MAX_PAYLOAD, MAX_PAYLOAD + 1, 65_507):
            west.envelopes.forward([Foreign(b"east", None, Datagram(bytes(size), CLIENT, ("203.0.113.1", 443)))], ours)
        await until(lambda: len(theirs.taken) == 2)
        assert [len(datagram.data) for datagram, _ in theirs.taken] == [64_950, MAX_PAYLOAD]
        assert west.count("misrouted", "dropped") == 2


@pytest.mark.parametrize("segment", [1200, 1252, 1280, 1452, 65_000])
async def test_long_answers_go_whole_over_a_way_that_has_room_for_them(segment: int) -> None:
    """Loopback's, for one: envelopes become larger than what one call may cut apart."""
    ours, theirs = Noting(443), Noting(443, "203.0.113.2")
    west, east = End(b"west", [ours]), End(b"east", [theirs])
    async with ends(west, east):
        await meet(west, east)
        west.envelopes.forward([Foreign(b"east", None, Datagram(b"hello", CLIENT, ("203.0.113.1", 443)))], ours)
        await until(lambda: theirs.taken)
        local, size = theirs.taken[0][0].local, segment * min(64, 65_000 // segment)
        east.envelopes.answer([(bytes(size), segment, CLIENT, local)])
        await until(lambda: sum(len(each.data) for each in ours.passed) == size)
        assert {len(each.data) for each in ours.passed} == {segment}


async def test_what_is_for_nobody_here_is_refused_and_counted() -> None:
    west = End(b"west", [Noting(443)])
    async with ends(west):
        sealer = Sealer(1, KEY, bytes)
        local = packed(("203.0.113.9", 443))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.connect(west.address)
            client.send(sealer.seal(DATAGRAM, b"x", time.time(), port=444))
            client.send(sealer.seal(ANSWER, b"x", time.time(), client=packed(CLIENT), local=local))
            client.send(sealer.seal(HELLO, Hello(b"east", "ready", (), answers=7).encode(), time.time()))
            client.send(sealer.seal(HELLO, b"x", time.time()))
            client.send(b"garbage")
            await until(lambda: west.count("envelopes_refused", "short"))
            counts = {reason: west.count("envelopes_refused", reason) for reason in ("listener", "unasked", "malformed", "short")}
            assert counts == {"listener": 2, "unasked": 1, "malformed": 1, "short": 1}
        west.envelopes.answer([(b"x", 1, CLIENT, ("100::9", 443))])
        assert west.count("envelopes_refused", "forgotten") == 1


async def test_who_asks_is_answered_from_where_it_asked_at_its_worker() -> None:
    west = End(b"west", [Noting(443)])
    async with ends(west):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as tier:
            tier.setblocking(False)
            tier.connect(west.address)
            asked = time.time()
            tier.send(Sealer(1, KEY, bytes).seal(HELLO, Hello(b"", "ready", ()).encode(), asked, back=5))
            data = await asyncio.get_running_loop().sock_recv(tier, 65536)
            assert data[2:4] == b"\0\5"
            answer = Opener({1: KEY}).open(data, time.time())
            assert decode(answer.payload) == Hello(b"west", "ready", (443,), int(asked * 1e6))


async def test_keys_change_while_it_runs() -> None:
    west, east = End(b"west", [Noting(443)]), End(b"east", [Noting(443)])
    async with ends(west, east):
        await meet(west, east)
        for end in (west, east):
            end.envelopes.use({1: KEY, 2: NEXT_KEY}, 1)
        west.envelopes.use({1: KEY, 2: NEXT_KEY}, 2)
        west.envelopes.forward([Foreign(b"east", None, Datagram(b"x", CLIENT, ("203.0.113.1", 443)))], west.listeners[0])
        await until(lambda: east.listeners[0].taken)
        assert east.count("envelopes_refused", "epoch") == 0
        west.envelopes.use({2: NEXT_KEY}, 2)
        east.envelopes.answer([(b"y", 1, CLIENT, east.listeners[0].taken[0][0].local)])
        await until(lambda: west.count("envelopes_refused", "epoch") == 1)


async def test_what_came_to_the_wrong_worker_is_handed_over_with_its_relay() -> None:
    relay, one, other = End(b"east", [Noting(443)]), End(b"west", [Noting(443)], slot=0), End(b"west", [Noting(443)], slot=1)
    to_one, to_other = pair_for_strays(), pair_for_strays()
    one.envelopes.share(Handover(to_one[0], {1: to_other[1]}))
    other.envelopes.share(Handover(to_other[0], {0: to_one[1]}))
    async with ends(relay, one), ends(other):
        await meet(relay, one)
        relay.envelopes.forward([Foreign(b"west", 0, Datagram(b"x", CLIENT, ("203.0.113.1", 443)))], relay.listeners[0])
        await until(lambda: one.listeners[0].taken)
        [(datagram, _)] = one.listeners[0].taken
        one.envelopes.hand_over(1, datagram)
        await until(lambda: other.listeners[0].taken)
        assert other.listeners[0].taken == [(datagram, True)]
        other.envelopes.answer([(b"y", 1, CLIENT, datagram.local)])
        await until(lambda: relay.listeners[0].passed)
        assert one.count("quic_strays", "sent") == 1
        assert other.count("quic_strays", "received") == 1


async def test_more_peers_than_can_be_asked_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers_module, "MAX_PEERS", 1)
    west = End(b"west", [])
    async with ends(west):
        west.envelopes.know([("192.0.2.1", 1), ("192.0.2.2", 1)])
        assert len(west.peers.to_ask()) == 1


async def test_what_waits_for_a_full_socket_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_UNSENT", 2)
    ours = Noting(443)
    west, east = End(b"west", [ours]), End(b"east", [Noting(443)])
    async with ends(west, east):
        await meet(west, east)
        west.envelopes.forward([Foreign(b"east", None, Datagram(b"x", CLIENT, ("203.0.113.1", 443)))] * 5, ours)
        assert west.count("envelopes_refused", "unsent") == 3
        await until(lambda: len(east.listeners[0].taken) == 2)
