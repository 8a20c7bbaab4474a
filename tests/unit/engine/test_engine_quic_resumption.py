"""Resumption by session tickets, on every QUIC engine: shorter handshakes, the same affinity key, and who gets neither."""

import random
import time

import pytest

from balancer.affinity import connection_key
from proxy.engine.events import ConnectionReady
from proxy.engine.quic.settings import QuicSettings
from proxy.engine.quic.tickets import LIFETIME, TICKETS, Tickets
from proxy.engine.seam import EngineLimits
from proxy.keys import Keyring
from tests.sim import engines
from tests.sim.material import material, profile
from tests.sim.simulator import Client, World

SECRET = b"s" * 16
LATER = 0.2
"""Seconds in which whatever is on its way arrives."""

pytestmark = pytest.mark.parametrize("engine", engines.parameters())


class Later:
    """A wall clock that can be put forward."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead


def world_of(engine, secret: bytes = SECRET, clock=time.time, **options) -> World:
    """Another process: nothing but the secret is shared."""
    return World(engine=engine, tickets=Tickets(Keyring.alone(secret), clock, random.Random(1).randbytes), **options)


def visit(world: World, ticket=None, **options) -> tuple[Client, ConnectionReady]:
    """A client that connects, and stays until it has what it gets."""
    before = len(world.of(ConnectionReady))
    client = world.connect(Client(address=("198.51.100.7", 4000 + len(world.clients)), session_ticket=ticket, **options))
    assert world.run(lambda: client.quic._handshake_confirmed, seconds=5)
    world.run(seconds=LATER)
    [ready] = world.of(ConnectionReady)[before:]
    assert ready.resumed == client.resumed
    return client, ready


def test_another_process_resumes_with_the_same_affinity_key_and_gives_new_tickets(engine) -> None:
    first, ready = visit(world_of(engine))
    assert (len(first.tickets), ready.resumed) == (TICKETS, False)
    assert ready.affinity == connection_key(SECRET, first.quic.original_destination_connection_id)
    assert first.tickets[0].ticket != first.tickets[1].ticket
    ticket = first.tickets[1]
    for _ in range(3):
        again, resumed = visit(world_of(engine), ticket)
        assert (resumed.resumed, resumed.affinity) == (True, ready.affinity)
        assert (resumed.sni, resumed.alpn, resumed.tls_profile.domain) == ("a.example", "h3", "a.example")
        assert len(again.tickets) == TICKETS
        ticket = again.tickets[0]


def test_tickets_offer_no_early_data(engine) -> None:
    client, _ = visit(world_of(engine))
    assert [ticket.max_early_data_size for ticket in client.tickets] == [None] * TICKETS


def test_a_resumed_handshake_sends_no_certificate(engine) -> None:
    world = world_of(engine)
    client, _ = visit(world)
    again, _ = visit(world, client.tickets[0])
    assert client.quic.tls._peer_certificate is not None
    assert again.quic.tls._peer_certificate is None


def test_without_tickets_none_are_given_and_none_are_taken(engine) -> None:
    ticket = visit(world_of(engine))[0].tickets[0]
    client, ready = visit(World(engine=engine), ticket)
    assert (client.tickets, ready.resumed) == ([], False)


def test_a_ticket_is_bound_to_its_secret_its_name_its_configuration_and_its_time(engine) -> None:
    clock = Later()
    ticket = visit(world_of(engine, clock=clock))[0].tickets[0]
    assert visit(world_of(engine, clock=clock), ticket)[1].resumed
    assert not visit(world_of(engine, b"o" * 16), ticket)[1].resumed
    assert not visit(world_of(engine, limits=EngineLimits(streams=7)), ticket)[1].resumed
    assert not visit(world_of(engine, settings=QuicSettings(idle_timeout=7.0)), ticket)[1].resumed
    other = world_of(engine)
    other.profiles["b.example"] = profile("b.example")
    ticket.server_name = "b.example"  # or the client would not offer it
    _, ready = visit(other, ticket, name="b.example")
    assert (ready.resumed, ready.sni) == (False, "b.example")
    ticket.server_name = "a.example"
    clock.ahead = LIFETIME + 1
    assert not visit(world_of(engine, clock=clock), ticket)[1].resumed


def test_client_certificates_are_asked_for_each_time(engine) -> None:
    class Rule:
        ca_pem = material("ca", ca=True).chain_pem
        required = True

    ticket = visit(world_of(engine))[0].tickets[0]
    world = world_of(engine)
    world.profiles["a.example"] = profile("a.example", Rule())
    mine = material("me", "ca", client=True)
    shown = {"certificate": mine.certificate, "private_key": mine.key}
    client, ready = visit(world, **shown)
    assert (client.tickets, ready.resumed) == ([], False)
    stranger = world.connect(Client(address=("198.51.100.8", 1), session_ticket=ticket))
    assert world.run(lambda: stranger.closed is not None, seconds=5)
    assert not visit(world, ticket, **shown)[1].resumed


def test_another_cipher_resumes_nothing(engine) -> None:
    client, _ = visit(world_of(engine))
    ticket = client.tickets[0]
    others = [suite for suite in client.quic.tls._cipher_suites if suite != ticket.cipher_suite]
    _, ready = visit(world_of(engine), ticket, cipher_suites=others)
    assert not ready.resumed


@pytest.mark.parametrize("forged", [b"", b"x", bytes(200), b"\xff" * 4000])
def test_forged_tickets_are_passed_over(engine, forged: bytes) -> None:
    ticket = visit(world_of(engine))[0].tickets[0]
    ticket.ticket = forged
    if forged:
        assert not visit(world_of(engine), ticket)[1].resumed
    ticket.ticket = visit(world_of(engine))[0].tickets[0].ticket  # of another client: its secret is not known here
    world = world_of(engine)
    thief = world.connect(Client(session_ticket=ticket))
    assert world.run(lambda: thief.closed is not None, seconds=5)
    assert not world.of(ConnectionReady)
