"""Clients that change their address, on every QUIC engine (RFC 9000, section 9): what goes on, what begins anew, what is refused."""

import random
from collections.abc import Callable

import pytest
from aioquic.quic import connection as connection_module

from proxy.engine.events import ConnectionClosed, PathChanged, RequestHead
from proxy.engine.quic.settings import QuicSettings
from proxy.engine.seam import Transmit
from proxy.errors import Reset
from tests.sim import engines
from tests.sim.simulator import Client, Link, World

pytestmark = pytest.mark.parametrize("engine", engines.parameters())

HOME, NAT, ELSEWHERE = ("198.51.100.7", 4000), ("198.51.100.7", 5555), ("203.0.113.77", 4000)
INITIAL_WINDOW = 10 * 1472  # bytes at most, and at least 10 * 1200 (RFC 9002, section 7.2)


def downloading(world: World, size: int = 900_000) -> tuple[Client, bytes]:
    """A client with its download under way."""
    body = random.Random(11).randbytes(size)
    world.serve = lambda handle, event: isinstance(event, RequestHead) and world.endpoint.respond(handle, event.stream, 200, [], body)
    client = world.connect()
    client.on_ready = client.request
    assert world.run(lambda: bool(client.answers) and len(client.answers[0].body) > size // 4, seconds=20)
    return client, body


def on_datagrams_out(world: World, note: Callable[[Transmit], object]) -> None:
    """Have *note* see everything that leaves from now on."""
    take = world.endpoint.take_datagrams

    def taken(now: float) -> list[Transmit]:
        datagrams = take(now)
        for datagram in datagrams:
            note(datagram)
        return datagrams

    world.endpoint.take_datagrams = taken


def window(world: World, engine: engines.Engine) -> int:
    """The congestion window of the one connection, which is closed."""
    transport = None if engine.tells_stats else next(iter(world.endpoint._by_handle.values())).transport
    world.endpoint.close(world.events[0][0], Reset.NO_ERROR)
    world.run(lambda: bool(closed(world)), seconds=1)
    return world.of(ConnectionClosed)[0].stats.congestion_window if transport is None else transport._loss.congestion_window


def test_a_client_that_changes_network_and_connection_id_ends_with_the_right_bytes(engine) -> None:
    """It goes on under its new address, and we use another connection ID of its there: nobody can tell that both are one (section 9.5)."""
    world = World(engine=engine)
    seen: dict[tuple[str, int], set[bytes]] = {}
    on_datagrams_out(world, lambda out: out.data[0] & 0x80 or seen.setdefault(out.peer, set()).add(out.data[1:9]))
    client, body = downloading(world)
    client.quic.change_connection_id()
    client.address = ELSEWHERE
    assert world.run(lambda: client.answers[0].ended, seconds=20)
    assert bytes(client.answers[0].body) == body
    assert [event.peer for event in world.of(PathChanged)] == [ELSEWHERE]
    assert not seen[HOME] & seen[ELSEWHERE]
    assert closed(world) == []


def test_a_client_that_moves_often_always_has_connection_ids_left(engine) -> None:
    world = World(Link(latency=0.002), engine=engine)
    client = world.connect()
    assert world.run(lambda: client.quic._handshake_confirmed and bool(client.quic._peer_cid_available))
    for number in range(20):
        assert client.quic._peer_cid_available
        client.quic.change_connection_id()
        client.address = (f"203.0.113.{number}", 4000)
        client.quic.send_ping(number)
        assert world.run(lambda: len(world.of(PathChanged)) == number + 1, seconds=5)  # noqa: B023  # run within the turn
        world.run(seconds=0.05)
    assert closed(world) == []


@pytest.mark.parametrize("limit", [2, 3, 8])
def test_a_client_has_as_many_connection_ids_as_it_may_have_and_another_for_each_that_it_retires(engine, limit) -> None:
    world = World(Link(latency=0.002), engine=engine)
    client = Client()
    client.quic._local_active_connection_id_limit = limit
    world.connect(client)
    wanted = min(limit, engine.connection_ids)
    assert world.run(lambda: len(client.quic._peer_cid_available) == wanted - 1, seconds=5)
    used = set()
    for _ in range(10):
        used.add(client.quic._peer_cid.cid)
        client.quic.change_connection_id()
        assert world.run(lambda: len(client.quic._peer_cid_available) == wanted - 1, seconds=5)
    world.run(seconds=0.1)
    assert len(client.quic._peer_cid_available) == wanted - 1
    assert len(used) == 10
    assert closed(world) == []


@pytest.mark.parametrize("address", [NAT, ELSEWHERE], ids=["port", "address"])
def test_who_seems_to_have_moved_is_sent_little_before_it_answers(engine, address) -> None:
    """An address that may be forged: three times what came from there, and back to the old one (RFC 9000, sections 8.2 and 9.3.2)."""
    world = World(engine=engine)
    client, _ = downloading(world)
    sent: dict[tuple[str, int], int] = {}
    on_datagrams_out(world, lambda out: sent.update({out.peer: sent.get(out.peer, 0) + len(out.data)}))
    client.quic.send_ping(1)
    [(data, _)] = client.quic.datagrams_to_send(world.now)
    world.inject(data, address)
    world.clients.clear()
    world.run(seconds=5)
    assert 0 < sent[address] <= 3 * len(data)
    assert sent[HOME] > 0
    assert world.of(PathChanged) == []


@pytest.mark.parametrize("address", [NAT, ELSEWHERE], ids=["port", "address"])
def test_what_was_learnt_of_a_path_does_not_hold_for_another(engine, address) -> None:
    world = World(engine=engine)
    client, _ = downloading(world)
    assert world.run(lambda: client.answers[0].ended, seconds=20)
    world.run(seconds=0.1)
    client.address = address
    client.quic.send_ping(1)
    assert world.run(lambda: bool(world.of(PathChanged)), seconds=5)
    kept = address is NAT and engine.keeps_window_on_rebinding
    assert (window(world, engine) > 2 * INITIAL_WINDOW) is kept


def test_after_a_move_the_old_path_says_nothing_about_the_new_one(engine) -> None:
    """Packets in flight to the old address are lost or acknowledged late; the download goes on, and from there on as on any new path."""
    world = World(Link(latency=0.03), engine=engine)
    client, body = downloading(world)
    client.address = ELSEWHERE
    client.quic.send_ping(1)
    assert world.run(lambda: bool(world.of(PathChanged)), seconds=5)
    assert world.run(lambda: client.answers[0].ended, seconds=20)
    assert bytes(client.answers[0].body) == body
    assert closed(world) == []


def test_where_clients_may_not_move_their_port_may(engine, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(settings=QuicSettings(migration=False), engine=engine)
    told = []
    pull = connection_module.pull_quic_transport_parameters
    monkeypatch.setattr(connection_module, "pull_quic_transport_parameters", lambda buf: told.append(pull(buf)) or told[-1])
    client, body = downloading(world)
    assert [parameters.disable_active_migration for parameters in told if parameters.original_destination_connection_id] == [True]
    client.address = NAT
    assert world.run(lambda: bool(world.of(PathChanged)), seconds=5)
    client.address = ELSEWHERE
    client.quic.send_ping(1)
    got = len(client.answers[0].body)
    world.run(seconds=0.5)
    assert world.endpoint.moves_refused > 0
    assert len(client.answers[0].body) - got < 100_000  # what was on its way
    client.address = NAT
    client.quic.send_ping(2)
    assert world.run(lambda: client.answers[0].ended, seconds=20)
    assert bytes(client.answers[0].body) == body
    assert [event.peer for event in world.of(PathChanged)] == [NAT]
    assert world.endpoint.dropped == 0
    assert closed(world) == []


def test_clients_may_move_unless_it_is_said(engine, monkeypatch: pytest.MonkeyPatch) -> None:
    told = []
    pull = connection_module.pull_quic_transport_parameters
    monkeypatch.setattr(connection_module, "pull_quic_transport_parameters", lambda buf: told.append(pull(buf)) or told[-1])
    world = World(engine=engine)
    client = world.connect()
    assert world.run(lambda: client.ready)
    assert [parameters.disable_active_migration for parameters in told if parameters.original_destination_connection_id] == [False]
    assert world.endpoint.moves_refused == 0


def closed(world: World) -> list[str]:
    return [event.error for event in world.of(ConnectionClosed)]
