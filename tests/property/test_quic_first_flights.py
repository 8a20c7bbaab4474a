"""Hostile tickets and first flights: whatever is in them, nothing is raised, nothing grows, and no request comes that was not sent."""

import random
import time
from functools import cache

import pytest
from aioquic.h3.connection import H3Connection
from hypothesis import given
from hypothesis import strategies as st

from proxy.engine.events import ConnectionClosed, ConnectionReady, RequestHead
from proxy.engine.quic.tickets import OVERHEAD, Tickets
from proxy.engine.seam import Datagram
from proxy.keys import Keyring
from tests.sim import engines
from tests.sim.material import profile
from tests.sim.simulator import SERVER, Client, World

SECRET = b"s" * 32


def process(seed: int) -> Tickets:
    return Tickets(Keyring.alone(SECRET), time.time, random.Random(seed).randbytes, lambda: 0.0)


def world_of(engine: engines.Engine, seed: int) -> World:
    world = World(engine=engine, tickets=process(seed))
    world.profiles["a.example"] = profile("a.example", early_data=True)
    return world


@cache
def flight(engine: engines.Engine) -> tuple[tuple[str, int], list[bytes]]:
    """A client's address, and its first datagrams with three requests in early data."""
    world = world_of(engine, 1)
    first = world.connect()
    assert world.run(lambda: bool(first.tickets), seconds=5)
    client = Client(address=("198.51.100.9", 4000), session_ticket=first.tickets[0], http=False)
    client.quic.connect(SERVER, now=0.0)
    client.http = H3Connection(client.quic)
    for number in range(3):
        client.request(b"/early", headers=[(b"x-more", b"%d" % number * 400)])
    return client.address, [data for data, _ in client.quic.datagrams_to_send(0.0)]


@given(st.binary(max_size=400))
def test_junk_is_no_ticket(junk: bytes) -> None:
    assert process(1).open(b"terms", junk) is None


@given(st.binary(max_size=200), st.integers(0, 8 * (200 + OVERHEAD) - 1))
def test_no_bit_of_a_ticket_can_be_changed(state: bytes, bit: int) -> None:
    ticket = bytearray(process(1).seal(b"terms", b"k" * 16, state))
    ticket[bit // 8 % len(ticket)] ^= 1 << bit % 8
    assert process(2).open(b"terms", bytes(ticket)) is None


changes = st.lists(st.tuples(st.integers(0, 10), st.integers(0, 1500), st.integers(0, 255)), max_size=6)
order = st.lists(st.integers(0, 10), min_size=1, max_size=8)


@pytest.mark.parametrize("engine", engines.parameters())
@given(changes=changes, order=order, cut=st.integers(0, 1500))
def test_a_flight_that_is_bent_brings_no_request_that_was_not_sent(engine, changes, order, cut: int) -> None:
    address, sent = flight(engine)
    datagrams = [bytearray(data) for data in sent]
    for number, at, value in changes:
        data = datagrams[number % len(datagrams)]
        data[at % len(data)] = value
    if cut < len(datagrams[-1]):
        del datagrams[-1][cut:]
    world = world_of(engine, 2)
    told = world.endpoint.receive([Datagram(bytes(datagrams[number % len(datagrams)]), address, SERVER) for number in order], 0.0)
    heads = [event for _, event in told if isinstance(event, RequestHead)]
    assert all(head.early and head.path == b"/early" for head in heads)
    assert len({head.stream for head in heads}) == len(heads) <= 3
    assert sum(isinstance(event, ConnectionReady) for _, event in told) <= 1
    assert all(not event.vouched for _, event in told if isinstance(event, ConnectionReady))
    assert sum(isinstance(event, ConnectionClosed) for _, event in told) <= len(order)
    assert world.endpoint.connections <= len(order)
    world.endpoint.take_datagrams(0.0)
