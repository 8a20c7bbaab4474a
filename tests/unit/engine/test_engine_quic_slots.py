"""Connection IDs of one of several workers: its slot stands in each, on every QUIC engine, and no two workers give the same."""

import random

import pytest

from balancer.quic_lb import Codec, Layout, is_unroutable
from proxy.engine.events import ConnectionClosed, ConnectionIdsRenewed, ConnectionReady
from proxy.engine.quic.ids import Minter, Routable
from proxy.engine.quic.settings import QuicSettings
from proxy.engine.seam import Datagram
from proxy.keys import Keyring
from tests.sim import engines
from tests.sim.simulator import SERVER, Client, World

every_engine = pytest.mark.parametrize("engine", engines.parameters())

SECRET = b"s" * 16  # of the simulator's endpoints
AWS = Routable(Layout(0, 8, 10, slot=True), b"the west")
ENCRYPTED = Routable(Layout(2, 4, 6, slot=True, key=bytes(16), length_in_first=False), b"west")
SHORTEST = Routable(Layout(3, 1, 4, slot=True), b"w")
every_form = pytest.mark.parametrize("form", [None, AWS, ENCRYPTED], ids=["opaque", "AWS", "encrypted"])


def ids(client: Client) -> set[bytes]:
    return {entry.cid for entry in (client.quic._peer_cid, *client.quic._peer_cid_available)}


@every_engine
@every_form
@pytest.mark.parametrize("retry", ["never", "always"])
def test_the_slot_stands_in_every_connection_id_that_a_client_sees(engine, form, retry) -> None:
    world = World(engine=engine, settings=QuicSettings(routable=form, slot=5, retry=retry))
    client = world.connect()
    assert world.run(lambda: client.quic._handshake_confirmed and len(client.quic._peer_cid_available) >= 3)
    seen = ids(client)
    if retry == "always":
        seen.add(client.quic._retry_source_connection_id)
    for _ in range(5):
        client.quic.change_connection_id()
        assert world.run(lambda: len(client.quic._peer_cid_available) >= 3, seconds=5)
        seen |= ids(client)
    assert len(seen) >= 9
    assert {cid[-1] for cid in seen} == {5}
    if form is None:
        assert {(len(cid), cid[0]) for cid in seen} == {(10, 0b111_01001)}
        assert len({cid[1:9] for cid in seen}) == len(seen)
    else:
        assert {Codec(form.layout).decode(cid).server_id for cid in seen} == {form.server_id}
    assert not world.of(ConnectionClosed)


@every_engine
def test_a_change_of_form_keeps_the_slot(engine) -> None:
    world = World(engine=engine, settings=QuicSettings(slot=200))
    client = world.connect()
    assert world.run(lambda: client.quic._handshake_confirmed and len(client.quic._peer_cid_available) >= 3)
    for number, form in enumerate((AWS, ENCRYPTED, None), 1):
        assert world.endpoint.change_connection_ids(form)
        while world.endpoint.renew_connection_ids(8):
            pass
        assert world.run(lambda: len(world.of(ConnectionIdsRenewed)) == number and len(ids(client)) >= 3, seconds=10)  # noqa: B023  # run within the turn
        length = form.layout.cid_bytes if form else 10
        assert {(len(cid), cid[-1]) for cid in ids(client)} == {(length, 200)}


@every_engine
@every_form
def test_a_form_without_a_slot_is_refused_where_there_is_one(engine, form) -> None:
    without = Routable(Layout(1, 4, 6), b"west")
    with pytest.raises(ValueError, match="need a slot at their end"):
        World(engine=engine, settings=QuicSettings(routable=without, slot=0))
    world = World(engine=engine, settings=QuicSettings(routable=form, slot=0))
    with pytest.raises(ValueError, match="need a slot at their end"):
        world.endpoint.change_connection_ids(without)
    client = world.connect()  # and nothing has changed
    assert world.run(lambda: client.quic._handshake_confirmed and len(ids(client)) >= 3)
    assert {len(cid) for cid in ids(client)} == {form.layout.cid_bytes if form else 10}
    assert len(world.of(ConnectionReady)) == 1


@every_engine
@every_form
def test_any_worker_resets_what_was_another_s(engine, form) -> None:
    world = World(engine=engine, settings=QuicSettings(routable=form, slot=1))
    mint = Minter(Keyring.alone(SECRET), random.Random(3).randbytes, form, 77)
    cid, token = mint()
    world.endpoint.receive([Datagram(b"\x40" + cid + bytes(60), ("203.0.113.9", 999), SERVER)], 0.0)
    [answer] = world.endpoint.take_datagrams(0.0)
    assert answer.data[-16:] == token
    assert world.endpoint.resets_sent == 1


@every_form
def test_no_two_workers_give_the_same(form) -> None:
    minters = [Minter(Keyring.alone(SECRET), bytes, form, slot) for slot in (0, 1, 5, 255)]  # and none is random
    made = [mint() for mint in minters for _ in range(300)]
    cids = [cid for cid, _ in made]
    assert len(set(cids)) == len(cids)
    assert len({cid[1:-1] for cid in cids}) == len(cids)
    for mint in minters:
        assert all(mint.token(cid + b"rest") == token for cid, token in made)
        assert [mint.slot_of(cid + b"rest", whole=False) for cid in cids[::300]] == [0, 1, 5, 255]
        assert [mint.slot_of(cid, whole=True) for cid in cids[::300]] == [0, 1, 5, 255]
        assert mint.slot_of(cids[0] + b"x", whole=True) is None


def test_ids_that_no_nonce_is_left_for_have_a_slot_too() -> None:
    mint = Minter(Keyring.alone(SECRET), random.Random(3).randbytes, SHORTEST, 9)
    minter = next(iter(mint._forms.values())).mint
    minter._used = minter._all - 1
    last, beyond = mint()[0], mint()[0]
    assert (last[0] >> 5, last[-1]) == (3, 9)
    assert is_unroutable(beyond)
    assert (len(beyond), beyond[-1]) == (7, 9)
    other = Minter(Keyring.alone(SECRET), bytes, SHORTEST, 1)
    assert other.token(beyond + b"rest") is None  # it may be another server's
    assert other.slot_of(beyond + b"rest", whole=False) == 9


def test_the_forms_that_name_a_slot() -> None:
    mint = Minter(Keyring.alone(SECRET), bytes, None, 9)
    assert mint.slotted == []
    mint.change(AWS)
    mint.change(SHORTEST)
    assert mint.slotted == [(0, 20), (3, 7)]
    assert Minter(Keyring.alone(SECRET), bytes, Routable(Layout(0, 4, 4), b"west")).slotted == []
    assert Minter(Keyring.alone(SECRET), bytes).slot_of(bytes(20), whole=False) is None


@pytest.mark.parametrize("slot", [-1, 256])
def test_slots_that_no_byte_holds(slot) -> None:
    with pytest.raises(ValueError, match=f"slot must be 0 to 255, not {slot}"):
        QuicSettings(slot=slot)
