"""Connection IDs that change their form in the middle of connections, on every QUIC engine: config rotation of QUIC-LB."""

import random

import pytest
from aioquic.quic.connection import QuicConnection

from balancer.quic_lb import Codec, Layout
from proxy.engine.events import ConnectionClosed, ConnectionIdsRenewed, PathChanged, RequestHead
from proxy.engine.quic.ids import FORMS, Minter, Routable
from proxy.engine.quic.settings import QuicSettings
from proxy.keys import Keyring
from tests.sim import engines
from tests.sim.simulator import Client, Link, World

every_engine = pytest.mark.parametrize("engine", engines.parameters())

KEY = bytes.fromhex("8f95f09245765f80256934e50c66207f")
OLD = Routable(Layout(0, 4, 6), b"west")
SHORTER = Routable(Layout(1, 3, 4, key=KEY), b"sea")
SAME_LENGTH = Routable(Layout(1, 4, 6, key=KEY), b"west")
LONGER = Routable(Layout(2, 8, 10, slot=True), b"the west")
BODY = random.Random(5).randbytes(300_000)


def serving(engine: engines.Engine, form: Routable | None, link: Link | None = None) -> World:
    world = World(link or Link(latency=0.01), engine=engine, settings=QuicSettings(routable=form))
    world.serve = lambda handle, event: isinstance(event, RequestHead) and world.endpoint.respond(handle, event.stream, 200, [], BODY)
    return world


def confirmed(world: World, client: Client) -> bool:
    return world.run(lambda: client.quic._handshake_confirmed and len(client.quic._peer_cid_available) >= 3, seconds=20)


def change(world: World, form: Routable | None) -> None:
    assert world.endpoint.change_connection_ids(form)
    while world.endpoint.renew_connection_ids(2):
        pass


def ids(client: Client) -> set[bytes]:
    """Those that the client may use."""
    return {entry.cid for entry in (client.quic._peer_cid, *client.quic._peer_cid_available)}


def known(world: World, cid: bytes) -> bool:
    """Whether a packet for *cid* finds a connection: else it is answered by a reset, or dropped."""
    before = world.endpoint.resets_sent + world.endpoint.dropped
    world.inject(b"\x40" + cid + bytes(40))
    return world.endpoint.resets_sent + world.endpoint.dropped == before


def closed(world: World) -> list[str]:
    return [event.error for event in world.of(ConnectionClosed)]


@every_engine
@pytest.mark.parametrize("link", [Link(latency=0.01), Link(latency=0.01, jitter=0.01, loss=0.03, seed=4)], ids=["good", "lossy"])
@pytest.mark.parametrize(
    ("old", "new"),
    [(OLD, SAME_LENGTH), (OLD, SHORTER), (OLD, LONGER), (None, LONGER), (LONGER, None)],
    ids=["same length", "shorter", "longer", "opaque to routable", "routable to opaque"],
)
def test_a_download_goes_on_and_soon_nobody_has_ids_of_the_old_form(engine, old, new, link) -> None:
    world = serving(engine, old, link)
    client = world.connect()
    assert confirmed(world, client)
    stream = client.request()
    assert world.run(lambda: len(client.answers[stream].body) > len(BODY) // 4, seconds=20)
    before = ids(client)
    change(world, new)
    assert world.endpoint.connections_to_renew == 1
    assert all(known(world, cid) for cid in before)  # what is on its way still arrives
    dropped = world.endpoint.dropped
    assert world.run(lambda: client.answers[stream].ended, seconds=30)
    assert bytes(client.answers[stream].body) == BODY
    assert world.run(lambda: len(world.of(ConnectionIdsRenewed)) == 1 and len(ids(client)) >= 3, seconds=10)
    after = ids(client)
    assert not before & after
    assert all(known(world, cid) for cid in after)
    assert not any(known(world, cid) for cid in before)
    assert world.endpoint.connections_to_renew == 0
    length = new.layout.cid_bytes if new else 8
    assert {len(cid) for cid in after} == {length}
    if new:
        assert {Codec(new.layout).decode(cid).server_id for cid in after} == {new.server_id}
    again = client.request()
    assert world.run(lambda: client.answers[again].ended, seconds=30)
    assert dropped == 0
    assert closed(world) == []


@every_engine
def test_the_same_form_again_renews_nothing(engine) -> None:
    world = serving(engine, OLD)
    client = world.connect()
    assert confirmed(world, client)
    before = ids(client)
    assert not world.endpoint.change_connection_ids(OLD)
    world.run(seconds=0.2)
    assert ids(client) == before
    assert world.of(ConnectionIdsRenewed) == []


@every_engine
def test_a_handshake_that_began_before_ends_with_ids_of_the_new_form(engine) -> None:
    world = serving(engine, OLD)
    client = world.connect()
    assert world.run(lambda: world.endpoint.connections == 1)
    change(world, SHORTER)
    assert not client.ready
    assert world.run(lambda: len(world.of(ConnectionIdsRenewed)) == 1, seconds=10)
    assert world.run(lambda: len(ids(client)) >= 3, seconds=10)
    assert {Codec(SHORTER.layout).decode(cid).server_id for cid in ids(client)} == {SHORTER.server_id}
    assert closed(world) == []


@every_engine
def test_changes_that_follow_each_other_end_with_the_last(engine) -> None:
    """Nobody is asked to retire more than it was given at once."""
    world = serving(engine, OLD)
    client = world.connect()
    assert confirmed(world, client)
    for form in (SHORTER, LONGER, None, SAME_LENGTH):
        change(world, form)
    assert world.run(lambda: world.endpoint.connections_to_renew == 0 and len(ids(client)) >= 3, seconds=10)
    assert {Codec(SAME_LENGTH.layout).decode(cid).server_id for cid in ids(client)} == {SAME_LENGTH.server_id}
    assert len(world.of(ConnectionIdsRenewed)) == 2  # the first change, and all others at once
    stream = client.request()
    assert world.run(lambda: client.answers[stream].ended, seconds=30)
    assert closed(world) == []


@every_engine
def test_a_client_that_retires_nothing_makes_us_keep_no_more_than_two_forms(engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(QuicConnection, "_write_retire_connection_id_frame", lambda *_, **__: None)
    world = serving(engine, OLD)
    client = world.connect()
    assert confirmed(world, client)
    had = ids(client)
    given = []
    for form in (SHORTER, LONGER, None, SAME_LENGTH) * 3:
        change(world, form)
        world.run(seconds=0.1)
        given.append(frozenset(ids(client)))
    assert len(set(given)) == 1
    assert {len(cid) for cid in given[0]} == {SHORTER.layout.cid_bytes}
    assert all(known(world, cid) for cid in had)
    assert (world.endpoint.connections_to_renew, world.of(ConnectionIdsRenewed), closed(world)) == (1, [], [])


@every_engine
def test_many_connections_are_renewed_so_many_at_a_time(engine) -> None:
    world = serving(engine, OLD)
    clients = [world.connect(Client(address=("198.51.100.7", 4000 + number))) for number in range(25)]
    assert world.run(lambda: all(client.quic._handshake_confirmed for client in clients), seconds=30)
    assert world.endpoint.change_connection_ids(SHORTER)
    for renewed in (10, 20):
        assert world.endpoint.renew_connection_ids(10)
        assert world.run(lambda: len(world.of(ConnectionIdsRenewed)) == renewed, seconds=5)  # noqa: B023  # run within the turn
        assert world.endpoint.connections_to_renew == 25 - renewed
    assert not world.endpoint.renew_connection_ids(10)
    assert world.run(lambda: world.endpoint.connections_to_renew == 0, seconds=5)
    assert world.endpoint.connections == 25


@every_engine
def test_who_moves_while_ids_change_goes_on(engine) -> None:
    world = serving(engine, OLD)
    client = world.connect()
    assert confirmed(world, client)
    stream = client.request()
    for number, form in enumerate((SHORTER, LONGER, SAME_LENGTH), 1):
        assert world.run(lambda: len(client.answers[stream].body) > number * len(BODY) // 5, seconds=20)  # noqa: B023  # run within the turn
        change(world, form)
        client.quic.change_connection_id()
        client.address = (f"203.0.113.{number}", 4000)
        client.quic.send_ping(number)
        assert world.run(lambda: len(world.of(PathChanged)) == number, seconds=10)  # noqa: B023
    assert world.run(lambda: client.answers[stream].ended, seconds=30)
    assert bytes(client.answers[stream].body) == BODY
    assert world.run(lambda: world.endpoint.connections_to_renew == 0, seconds=10)
    assert closed(world) == []


def test_a_form_of_before_goes_on_where_it_was() -> None:
    """No nonce serves twice."""
    mint = Minter(Keyring.alone(b"s" * 16), bytes, OLD)
    first = [mint()[0] for _ in range(10)]
    for _ in range(3):
        mint.change(SHORTER)
        mint()
        mint.change(OLD)
        first += [mint()[0] for _ in range(10)]
    assert len(set(first)) == len(first)
    assert mint.generation == 6


def test_the_last_forms_are_known_for_ours_and_the_oldest_goes() -> None:
    mint = Minter(Keyring.alone(b"s" * 16), bytes, OLD)
    oldest, its_token = mint()
    assert mint.token(oldest + b"rest of it") == its_token
    for number in range(FORMS):
        assert mint.token(oldest) == its_token
        assert mint.change(Routable(Layout(1, 5, 4 + number, key=KEY), b"other"))
        cid, token = mint()
        assert mint.token(cid + b"rest of it") == token
    assert mint.token(oldest) is None
    assert mint.token(b"") is None
    assert mint.lengths == (17, 16, 15, 14, 13, 12, 11, 10)
