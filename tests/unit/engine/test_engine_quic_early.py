"""Early data on every QUIC engine: who may send it, what is answered at once, and what becomes of a flight that comes twice."""

import datetime as dt
import random
import time

import pytest
from aioquic.buffer import Buffer
from aioquic.h3.connection import H3Connection
from aioquic.quic.packet import pull_quic_header

from proxy.engine.events import ConnectionClosed, ConnectionReady, HandshakeCompleted, RequestHead
from proxy.engine.quic.settings import QuicSettings
from proxy.engine.quic.tickets import AGE_SKEW, Tickets
from proxy.engine.seam import Datagram
from proxy.keys import Keyring
from tests.sim import engines
from tests.sim.material import profile
from tests.sim.simulator import SERVER, Client, Link, World

SECRET = b"s" * 16
LATER = 0.2
"""Seconds in which whatever is on its way arrives."""

MAX_EARLY_DATA = 0xFFFFFFFF
ALONE = 0.0  # since the epoch

pytestmark = pytest.mark.parametrize("engine", engines.parameters())


def process(seed: int = 1, alone_since: float = ALONE) -> Tickets:
    """Those of a process: it has the secret, and a name of its own."""
    return Tickets(Keyring.alone(SECRET), time.time, random.Random(seed).randbytes, lambda: alone_since)


def world_of(engine, tickets: Tickets, *, early_data: bool = True, **options) -> World:
    world = World(engine=engine, tickets=tickets, **options)
    world.profiles["a.example"] = profile("a.example", early_data=early_data)
    return world


def ticket_of(world: World):
    """The ticket of a client that was here."""
    client = world.connect()
    assert world.run(lambda: bool(client.tickets), seconds=5)
    world.run(seconds=LATER)
    world.clients.clear()
    world.events.clear()
    return client.tickets[0]


def flight(ticket, method: bytes = b"GET", number: int = 0) -> tuple[Client, list[bytes]]:
    """A client's first datagrams, with a request in its early data."""
    client = Client(address=("198.51.100.9", 4000 + number), session_ticket=ticket, http=False)
    client.quic.connect(SERVER, now=0.0)
    client.http = H3Connection(client.quic)  # only now is it known that streams may be opened
    client.request(b"/early", method)
    return client, [data for data, _ in client.quic.datagrams_to_send(0.0)]


def arrive(world: World, client: Client, datagrams: list[bytes]) -> None:
    told = world.endpoint.receive([Datagram(data, client.address, SERVER) for data in datagrams], world.now)
    for handle, event in told:
        world.events.append((handle, event))
        world.serve(handle, event)


def answers(world: World) -> list[bytes]:
    """Answer every request at once; their paths."""
    seen: list[bytes] = []

    def serve(handle: int, event) -> None:
        if isinstance(event, RequestHead):
            seen.append(event.path)
            world.endpoint.respond(handle, event.stream, 200, [], b"hello")

    world.serve = serve
    return seen


def kinds(world: World) -> list[type]:
    return [type(event) for _, event in world.events]


def test_a_request_of_the_first_flight_is_answered_before_the_handshake_is_complete(engine) -> None:
    world = world_of(engine, process())
    ticket = ticket_of(world)
    assert ticket.max_early_data_size == MAX_EARLY_DATA
    answers(world)
    client, datagrams = flight(ticket)
    arrive(world, client, datagrams)
    assert kinds(world) == [ConnectionReady, RequestHead]
    ready, head = (event for _, event in world.events)
    assert (ready.early, ready.vouched, ready.resumed, ready.sni) == (True, True, True, "a.example")
    assert head.early
    assert world.endpoint.handshakes == 1
    for transmit in world.endpoint.take_datagrams(world.now):
        client.quic.receive_datagram(transmit.data, SERVER, 0.0)
    client.drain()
    assert (client.answers[0].status, client.answers[0].body) == (200, b"hello")  # and the client has not said more than its first flight
    assert kinds(world) == [ConnectionReady, RequestHead]
    world.clients.append(client)
    client.request(b"/late")
    assert world.run(lambda: all(answer.ended for answer in client.answers.values()), seconds=5)
    assert kinds(world) == [ConnectionReady, RequestHead, HandshakeCompleted, RequestHead]
    assert not world.of(RequestHead)[1].early
    assert world.endpoint.handshakes == 0
    world.run(seconds=LATER)
    client.quic.close(error_code=0x100)
    assert world.run(lambda: kinds(world)[-1] is ConnectionClosed, seconds=5)
    assert world.of(ConnectionClosed)[0].error == ""


def test_the_same_flight_again_is_the_same_connection(engine) -> None:
    world = world_of(engine, process())
    ticket = ticket_of(world)
    seen = answers(world)
    client, datagrams = flight(ticket)
    for _ in range(3):
        arrive(world, client, datagrams)
    client.address = ("203.0.113.1", 1)  # nor from elsewhere
    arrive(world, client, datagrams)
    assert seen == [b"/early"]
    assert world.endpoint.connections == 2  # with that of the client that had the ticket


@pytest.mark.parametrize("elsewhere", [False, True], ids=["at the same process", "at another one"])
def test_a_flight_that_was_recorded_is_not_vouched_for_and_never_completes(engine, elsewhere: bool) -> None:
    world = world_of(engine, process(), settings=QuicSettings(handshake_timeout=1))
    ticket = ticket_of(world)
    others = world.endpoint.connections
    client, datagrams = flight(ticket)
    arrive(world, client, datagrams)
    world.clients.append(client)
    assert world.run(lambda: client.quic._handshake_confirmed, seconds=5)
    client.quic.close(error_code=0x100)
    assert world.run(lambda: world.endpoint.connections == others, seconds=20)  # its closing period is over as well
    if elsewhere:
        world = world_of(engine, process(2), settings=QuicSettings(handshake_timeout=1))
    world.events.clear()
    world.clients.clear()
    before = world.endpoint.connections
    arrive(world, client, datagrams)
    assert kinds(world) == [ConnectionReady, RequestHead]
    ready, head = (event for _, event in world.events)
    assert (ready.early, ready.vouched, head.early) == (True, False, True)
    world.run(seconds=1.5)
    assert kinds(world)[2:] == [ConnectionClosed]
    assert world.of(ConnectionClosed)[0].error == "handshake_timeout"
    assert (world.endpoint.handshakes, world.endpoint.connections) == (0, before)


def test_the_same_flight_at_two_processes_completes_at_one(engine) -> None:
    one, two = world_of(engine, process(1, float("inf"))), world_of(engine, process(2, float("inf")))
    ticket = ticket_of(one)
    client, datagrams = flight(ticket)
    for world in (one, two):
        arrive(world, client, datagrams)
        assert [ready.vouched for ready in world.of(ConnectionReady)] == [False]
    two.clients.append(client)
    assert two.run(lambda: HandshakeCompleted in kinds(two), seconds=5)
    one.run(seconds=LATER)
    assert HandshakeCompleted not in kinds(one)


def test_where_it_is_off_it_is_refused_and_the_session_resumed(engine) -> None:
    ticket = ticket_of(world_of(engine, process()))
    world = world_of(engine, process(), early_data=False)
    seen = answers(world)
    client, datagrams = flight(ticket)
    arrive(world, client, datagrams)
    assert not seen
    world.clients.append(client)
    assert world.run(lambda: client.answers[0].ended, seconds=5)
    assert seen == [b"/early"]
    [ready] = world.of(ConnectionReady)
    assert (ready.resumed, ready.early, ready.vouched) == (True, False, False)
    assert [head.early for head in world.of(RequestHead)] == [False]
    assert HandshakeCompleted not in kinds(world)
    assert client.tickets[0].max_early_data_size is None


@pytest.mark.parametrize("wrong", [AGE_SKEW + 5, -AGE_SKEW - 5])
def test_a_flight_of_another_time_is_refused_and_the_session_resumed(engine, wrong: float) -> None:
    world = world_of(engine, process())
    ticket = ticket_of(world)
    ticket.not_valid_before -= dt.timedelta(seconds=wrong)
    if wrong < 0:
        ticket.age_add = (ticket.age_add + int(wrong * 1000)) % (1 << 32)
        ticket.not_valid_before += dt.timedelta(seconds=wrong)  # or the client would not use it yet
    client, datagrams = flight(ticket)
    arrive(world, client, datagrams)
    assert RequestHead not in kinds(world)
    world.clients.append(client)
    assert world.run(lambda: RequestHead in kinds(world), seconds=5)
    [ready] = world.of(ConnectionReady)
    assert (ready.resumed, ready.early) == (True, False)


def test_early_bytes_under_wrong_keys_are_dropped(engine) -> None:
    world = world_of(engine, process())
    client, [datagram] = flight(ticket_of(world))
    header = pull_quic_header(Buffer(data=datagram), host_cid_length=8)
    at = header.packet_length + 60  # behind the Initial, in the payload of the 0-RTT packet
    arrive(world, client, [datagram[:at] + bytes([datagram[at] ^ 1]) + datagram[at + 1 :]])
    assert kinds(world) == [ConnectionReady]
    world.clients.append(client)
    assert world.run(lambda: RequestHead in kinds(world), seconds=5)  # sent again
    assert not world.of(ConnectionClosed)


def test_a_client_that_has_to_prove_its_address_may_be_early_all_the_same(engine) -> None:
    """aioquic's client forgets what it sent before the Retry: so nothing is said of the request."""
    world = world_of(engine, process(), settings=QuicSettings(retry="always"))
    ticket = ticket_of(world)
    client, datagrams = flight(ticket)
    arrive(world, client, datagrams)
    assert world.events == []
    world.clients.append(client)
    assert world.run(lambda: HandshakeCompleted in kinds(world), seconds=5)
    [ready] = world.of(ConnectionReady)
    assert (ready.resumed, ready.early, ready.vouched) == (True, True, True)


@pytest.mark.parametrize("seed", range(3))
def test_whatever_is_lost_each_request_comes_once_and_is_answered(engine, seed: int) -> None:
    world = world_of(engine, process(), link=Link(jitter=0.003, seed=seed), settings=QuicSettings(handshake_timeout=60))
    ticket = ticket_of(world)
    seen = answers(world)
    world.link.loss = 0.15
    client, datagrams = flight(ticket)
    later = client.request(b"/second")
    world.clients.append(client)
    for data in datagrams:
        world._send(data, client, client.address)
    assert world.run(lambda: all(answer.ended for answer in client.answers.values()), seconds=60)
    assert sorted(seen) == [b"/early", b"/second"]
    assert client.answers[later].body == b"hello"
