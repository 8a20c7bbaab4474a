"""Connections of other instances, and clients that come through a relay, on every QUIC engine."""

import random

import pytest

from balancer.quic_lb import Layout
from proxy.engine.events import ConnectionClosed, PathChanged, RequestHead
from proxy.engine.quic.ids import Minter, Routable
from proxy.engine.quic.settings import QuicSettings
from proxy.engine.seam import Datagram, Foreign
from proxy.keys import Keyring
from tests.sim import engines
from tests.sim.simulator import SERVER, Link, World

every_engine = pytest.mark.parametrize("engine", engines.parameters())

KEYS = Keyring.alone(b"s" * 16)  # of the simulator's endpoints
PEER = ("203.0.113.9", 999)
LAYOUT = Layout(2, 4, 6, slot=True, key=bytes(16))
OLDER = Layout(1, 4, 8, slot=True, key=bytes(16))
RELAY, OTHER_RELAY = ("100::1", SERVER[1]), ("100::2", SERVER[1])


class Others:
    """Two that live, and one of which it is known that it does not."""

    def lives(self, server_id: bytes) -> bool:
        return server_id in {b"east", b"nort"}

    def is_gone(self, server_id: bytes) -> bool:
        return server_id == b"gone"


def instance(engine, *siblings: int, server_id: bytes = b"west") -> World:
    settings = QuicSettings(slot=3, routable=Routable(LAYOUT, server_id, 0))
    world = World(engine=engine, settings=settings, random_bytes=random.Random(1).randbytes)
    world.endpoint.siblings = frozenset(siblings)
    world.endpoint.others = Others()
    return world


def minted(server_id: bytes, slot: int = 5, layout: Layout = LAYOUT) -> bytes:
    return Minter(KEYS, random.Random(slot).randbytes, Routable(layout, server_id, 0), slot)()[0]


def short(cid: bytes, size: int = 60) -> bytes:
    return b"\x41" + cid + bytes(size)


def long(first: int, cid: bytes, size: int = 1200) -> bytes:
    return (bytes([first]) + b"\0\0\0\x01" + bytes([len(cid)]) + cid + b"\x04abcd" + bytes(size))[:size]


def told(world: World) -> tuple[int, int, int]:
    """Answers, resets and what was dropped."""
    return len(world.endpoint.take_datagrams(0.0)), world.endpoint.resets_sent, world.endpoint.dropped


@every_engine
def test_what_names_another_instance_is_kept_for_it_and_not_answered(engine) -> None:
    world = instance(engine, 5)
    packets = [short(minted(b"east")), long(0xE0, minted(b"east"), 80), short(minted(b"nort"))]
    for packet in packets:
        world.inject(packet)
    assert told(world) == (0, 0, 0)
    servers = [b"east", b"east", b"nort"]
    expected = [Foreign(server_id, 5, Datagram(packet, PEER, SERVER)) for server_id, packet in zip(servers, packets, strict=True)]
    assert world.endpoint.take_foreign() == expected
    assert world.endpoint.take_foreign() == []
    assert world.endpoint.take_strays() == []


@every_engine
def test_first_packets_and_early_data_are_never_another_instances(engine) -> None:
    """Their connection ID is the client's own choice, and may look like anybody's."""
    world = instance(engine)
    for first in (0xC0, 0xD0):
        world.inject(long(first, minted(b"east")))
    world.inject(b"\xe0abcd" + long(0xE0, minted(b"east"))[5:])  # of a version that nobody speaks
    assert world.endpoint.take_foreign() == []


@every_engine
def test_of_one_that_is_gone_there_is_a_reset_and_of_one_that_nobody_knows_there_is_not(engine) -> None:
    world = instance(engine)
    cid, token = Minter(KEYS, random.Random(1).randbytes, Routable(LAYOUT, b"gone", 0), 5)()
    world.inject(short(cid))
    [answer] = world.endpoint.take_datagrams(0.0)
    assert answer.data[-16:] == token
    assert (answer.peer, answer.local) == (PEER, SERVER)
    world.inject(short(minted(b"unkn")))
    assert told(world) == (0, 1, 1)
    assert world.endpoint.take_foreign() == []


@every_engine
def test_of_one_that_is_gone_whose_keys_nobody_shares_there_is_no_reset(engine) -> None:
    settings = QuicSettings(slot=3, routable=Routable(LAYOUT, b"west"))
    world = World(engine=engine, settings=settings, random_bytes=random.Random(1).randbytes)
    world.endpoint.others = Others()
    world.inject(short(minted(b"gone")))
    assert told(world) == (0, 0, 1)


@every_engine
def test_every_form_that_was_in_use_names_others(engine) -> None:
    settings = QuicSettings(slot=3, routable=Routable(OLDER, b"west"))
    world = World(engine=engine, settings=settings, random_bytes=random.Random(1).randbytes)
    world.endpoint.others = Others()
    assert world.endpoint.change_connection_ids(Routable(LAYOUT, b"west"))
    for layout in (OLDER, LAYOUT):
        world.inject(short(minted(b"east", layout=layout)))
    assert [foreign.server_id for foreign in world.endpoint.take_foreign()] == [b"east", b"east"]


@every_engine
def test_nobody_is_asked_unless_there_are_others(engine) -> None:
    world = instance(engine)
    world.endpoint.others = None
    world.inject(short(minted(b"east")))
    world.inject(short(minted(b"gone")))
    assert told(world) == (0, 0, 2)
    assert world.endpoint.take_foreign() == []


@every_engine
def test_what_came_through_a_relay_goes_no_further(engine) -> None:
    world = instance(engine)
    relayed = [Datagram(data, PEER, RELAY) for data in (short(minted(b"east")), long(0xE0, minted(b"east"), 80))]
    assert world.endpoint.receive_relayed(relayed, 0.0) == []
    assert world.endpoint.take_foreign() == []
    assert told(world) == (0, 0, 0)
    assert world.endpoint.looped == 2
    world.inject(short(minted(b"east")))
    assert len(world.endpoint.take_foreign()) == 1


@every_engine
def test_a_client_of_an_instance_that_is_gone_hears_so_through_the_relay(engine) -> None:
    """A tier sends what names a dead instance to a living one: that is no loop, and the client is to begin anew at once."""
    world = instance(engine)
    cid, token = Minter(KEYS, random.Random(1).randbytes, Routable(LAYOUT, b"gone", 0), 5)()
    world.endpoint.receive_relayed([Datagram(short(cid), PEER, RELAY)], 0.0)
    [answer] = world.endpoint.take_datagrams(0.0)
    assert (answer.data[-16:], answer.peer, answer.local) == (token, PEER, RELAY)
    assert world.endpoint.looped == 0


@every_engine
def test_a_reset_goes_back_through_the_relay(engine) -> None:
    world = instance(engine)
    world.endpoint.receive_relayed([Datagram(short(minted(b"west")), PEER, RELAY)], 0.0)
    [answer] = world.endpoint.take_datagrams(0.0)
    assert (answer.peer, answer.local) == (PEER, RELAY)


@every_engine
@pytest.mark.parametrize("address", [("198.51.100.7", 4000), ("198.51.100.7", 4001), ("192.0.2.77", 4000)], ids=["stays", "NAT", "moves"])
def test_a_client_that_comes_through_a_relay_in_mid_download_ends_with_the_right_bytes(engine, address) -> None:
    """Only our side of the path changes, or the client's too: it is validated, and answers go by the relay."""
    world = World(Link(latency=0.005), engine=engine)
    body = random.Random(9).randbytes(3_000_000)
    world.serve = lambda handle, event: isinstance(event, RequestHead) and world.endpoint.respond(handle, event.stream, 200, [], body)
    client = world.connect()
    client.on_ready = client.request
    assert world.run(lambda: bool(client.answers) and len(client.answers[0].body) > 100_000, seconds=20)
    before = client.address
    for relay in (RELAY, OTHER_RELAY):
        client.address, client.comes_to = address, relay
        assert world.run(lambda relay=relay: world.sent_from[relay] > 50, seconds=20)
        world.sent_from.clear()
        assert world.run(lambda: world.sent_from.total() > 100, seconds=20)
        assert set(world.sent_from) == {relay}
    assert world.run(lambda: client.answers[0].ended, seconds=20)
    assert bytes(client.answers[0].body) == body
    assert [event.peer for event in world.of(PathChanged)] == ([] if address == before else [address])
    assert world.of(ConnectionClosed) == []
    assert len({handle for handle, _ in world.events}) == 1
