"""Datagrams of another worker's connection, on every QUIC engine: kept for it and not answered, a bounded number, and one hop far."""

import random
import socket

import pytest

from balancer.quic_lb import Layout
from proxy.engine.quic.ids import Minter, Routable
from proxy.engine.quic.settings import QuicSettings
from proxy.engine.quic.strays import MAX_BYTES, MAX_DATAGRAMS
from proxy.engine.seam import Datagram
from proxy.keys import Keyring
from tests.sim import engines
from tests.sim.simulator import SERVER, World

every_engine = pytest.mark.parametrize("engine", engines.parameters())

SECRET = b"s" * 16  # of the simulator's endpoints
PEER = ("203.0.113.9", 999)
AWS = Routable(Layout(0, 8, 10, slot=True), b"the west")
ENCRYPTED = Routable(Layout(2, 4, 6, slot=True, key=bytes(16)), b"west")
SAME_CONFIG = Routable(Layout(2, 4, 5, slot=True, key=bytes(16)), b"west")
every_form = pytest.mark.parametrize("form", [None, AWS, ENCRYPTED], ids=["opaque", "AWS", "encrypted"])


def worker(engine, slot: int, *siblings: int, form: Routable | None = None) -> World:
    world = World(engine=engine, settings=QuicSettings(slot=slot, routable=form), random_bytes=random.Random(slot).randbytes)
    world.endpoint.siblings = frozenset(siblings)
    return world


def minted(form: Routable | None, slot: int) -> bytes:
    return Minter(Keyring.alone(SECRET), random.Random(100 + slot).randbytes, form, slot)()[0]


def short(cid: bytes) -> bytes:
    return b"\x41" + cid + bytes(60)


def long(first: int, cid: bytes, size: int = 1200) -> bytes:
    return (bytes([first]) + b"\0\0\0\x01" + bytes([len(cid)]) + cid + b"\x04abcd" + bytes(size))[:size]


def told(world: World) -> tuple[int, int, int]:
    """Answers, resets and what was dropped."""
    return len(world.endpoint.take_datagrams(0.0)), world.endpoint.resets_sent, world.endpoint.dropped


@every_engine
@every_form
def test_what_names_a_sibling_is_kept_for_it_and_not_answered(engine, form) -> None:
    world = worker(engine, 1, 0, 2, 200, form=form)
    packets = [
        (slot, packet)
        for slot in (0, 2, 200)
        for cid in [minted(form, slot)]
        for packet in (short(cid), long(0xC0, cid), long(0xE0, cid, 80))
    ]
    for _, packet in packets:
        world.inject(packet)
    assert told(world) == (0, 0, 0)
    assert world.endpoint.connections == 0
    assert world.endpoint.take_strays() == [(slot, Datagram(packet, PEER, SERVER)) for slot, packet in packets]
    assert world.endpoint.take_strays() == []


@every_engine
@every_form
def test_what_names_us_or_nobody_alive_or_no_form_of_ours_is_no_stray(engine, form) -> None:
    world = worker(engine, 1, 0, 1, 2, form=form)  # our own slot among them changes nothing
    for slot in (1, 3):
        world.inject(short(minted(form, slot)))
    assert told(world) == (2, 2, 0)
    world.inject(b"\x41" + bytes([0x20]) + bytes(8) + b"\x02" * 60)
    world.inject(long(0xE0, minted(form, 2) + b"\x02", 80))  # another length
    world.inject(long(0xE0, minted(form, 2)[:-2] + b"\x02", 80))
    assert told(world) == (0, 2, 3)
    world.inject(b"")
    world.inject(b"\x41")
    world.inject(b"\xc0\0\0\0\x01")
    assert told(world) == (0, 2, 6)
    assert world.endpoint.take_strays() == []


@every_engine
def test_nobody_has_siblings_unless_it_is_said_and_they_change(engine) -> None:
    world = worker(engine, 1)
    assert world.endpoint.siblings == frozenset()
    world.inject(short(minted(None, 2)))
    assert told(world) == (1, 1, 0)
    world.endpoint.siblings = frozenset({1, 2})
    assert world.endpoint.siblings == {2}
    world.inject(short(minted(None, 2)))
    world.inject(short(minted(None, 3)))
    assert told(world) == (1, 2, 0)
    assert [slot for slot, _ in world.endpoint.take_strays()] == [2]
    world.endpoint.siblings = frozenset({3})
    world.inject(short(minted(None, 2)))
    assert told(world) == (1, 3, 0)


@every_engine
def test_ids_of_every_form_that_is_known_name_a_sibling(engine) -> None:
    """Two of one configuration ID too, of which the kernel knows one."""
    world = worker(engine, 1, 2, form=ENCRYPTED)
    forms = (ENCRYPTED, SAME_CONFIG, AWS, None)
    for form in forms[1:]:
        assert world.endpoint.change_connection_ids(form)
    for form in forms:
        world.inject(short(minted(form, 2)))
    assert told(world) == (0, 0, 0)
    assert [slot for slot, _ in world.endpoint.take_strays()] == [2] * 4


@every_engine
def test_those_of_our_connections_are_never_strays(engine) -> None:
    world = worker(engine, 1, *range(256))
    client = world.connect()
    world.serve = lambda handle, event: (
        type(event).__name__ == "RequestHead" and world.endpoint.respond(handle, event.stream, 200, [], bytes(50_000))
    )
    assert world.run(lambda: client.quic._handshake_confirmed)
    stream = client.request()
    assert world.run(lambda: client.answers[stream].ended)
    assert world.endpoint.take_strays() == []


@every_engine
def test_what_was_handed_over_is_received_and_goes_no_further(engine) -> None:
    """A client's connection, of which each datagram comes to another worker first."""
    right, wrong = worker(engine, 1, 2), worker(engine, 2, 1)
    client = right.connect()
    assert right.run(lambda: client.quic._handshake_confirmed)
    requests: list = []
    right.serve = lambda handle, event: type(event).__name__ == "RequestHead" and requests.append(event)
    client.request()
    for data, _ in client.quic.datagrams_to_send(right.now):
        wrong.inject(data)
    strays = wrong.endpoint.take_strays()
    assert strays
    assert {slot for slot, _ in strays} == {1}
    for handle, event in right.endpoint.receive_strays([datagram for _, datagram in strays], right.now):
        right.serve(handle, event)
    assert len(requests) == 1
    # and back from the one that does not have it: it would go round for ever
    dropped = wrong.endpoint.strays_dropped
    assert wrong.endpoint.receive_strays([datagram for _, datagram in strays], 0.0) == []
    assert told(wrong)[:2] == (0, 0)
    assert wrong.endpoint.take_strays() == []
    assert wrong.endpoint.strays_dropped == dropped + len(strays)
    # what was handed over to whom it names, and is gone there, is answered; and the next datagram of its own is a stray again
    right.endpoint.receive_strays([Datagram(short(minted(None, 1)), PEER, SERVER)], right.now)
    assert right.endpoint.resets_sent == 1
    right.inject(short(minted(None, 2)))
    assert [slot for slot, _ in right.endpoint.take_strays()] == [2]


@every_engine
def test_so_many_are_kept_and_the_rest_is_dropped(engine) -> None:
    world = worker(engine, 1, 2)
    packet = short(minted(None, 2))
    world.endpoint.receive([Datagram(packet, PEER, SERVER)] * (MAX_DATAGRAMS + 5), 0.0)
    assert world.endpoint.strays_dropped == 5
    assert len(world.endpoint.take_strays()) == MAX_DATAGRAMS
    large = packet + bytes(60_000)
    world.endpoint.receive([Datagram(large, PEER, SERVER)] * 30, 0.0)
    assert len(world.endpoint.take_strays()) == MAX_BYTES // len(large)
    assert world.endpoint.strays_dropped == 5 + 30 - MAX_BYTES // len(large)
    world.inject(packet)
    assert len(world.endpoint.take_strays()) == 1


@every_engine
def test_an_engine_that_reads_its_socket_by_itself_keeps_them_too(engine) -> None:
    world = worker(engine, 1, 2)
    if not hasattr(world.endpoint, "receive_fd"):
        pytest.skip("it reads no socket")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ours, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        ours.bind(("127.0.0.1", 0))
        client.connect(ours.getsockname())
        packets = [short(minted(None, slot)) for slot in (2, 3, 2)]
        for packet in packets:
            client.send(packet)
        world.endpoint.receive_fd(ours.fileno(), 0.0)
        at = (client.getsockname(), ours.getsockname())
        assert world.endpoint.take_strays() == [(2, Datagram(packets[0], *at)), (2, Datagram(packets[2], *at))]
        assert world.endpoint.resets_sent == 1
