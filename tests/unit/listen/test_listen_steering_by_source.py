"""Steering by the client's address: what comes from one address and port comes to one socket, of those that take something."""

import socket
from collections import Counter

import pytest

from proxy.listen.steering import attach, by_source_program
from tests.unit.listen.group import bind_group

KEY = 0x5EED1E55
ACCEPTING = [4, 5, 6]


def taker(sockets, data):
    """The index of the socket that has *data*."""
    found = []
    for index, sock in enumerate(sockets):
        try:
            found += [index] if sock.recv(65536) == data else []
        except BlockingIOError:
            continue
    assert len(found) == 1
    return found[0]


@pytest.fixture(params=[("127.0.0.1", "127.0.0.1"), ("::1", "::1"), ("::", "127.0.0.1"), ("::", "::1")], ids=str)
def group(request):
    host, at = request.param
    sockets = bind_group(host, 8)
    attach(sockets[0], by_source_program(ACCEPTING, KEY))
    yield sockets, (at, sockets[0].getsockname()[1])
    for sock in sockets:
        sock.close()


def test_a_clients_datagrams_come_to_one_socket_whatever_is_in_them_and_clients_are_spread(group):
    sockets, address = group
    takers = Counter()
    for _ in range(240):
        with socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET, socket.SOCK_DGRAM) as client:
            found = set()
            for data in (b"\xc0long", b"\x40short" + bytes(1000), b"x"):
                client.sendto(data, address)
                found.add(taker(sockets, data))
            assert len(found) == 1
            takers.update(found)
    assert set(takers) == set(ACCEPTING)
    assert min(takers.values()) > 40


def test_clients_of_many_addresses_are_spread_too():
    sockets = bind_group("0.0.0.0", 3)
    attach(sockets[0], by_source_program([0, 1, 2], KEY))
    address = ("127.0.0.1", sockets[0].getsockname()[1])
    takers = Counter()
    for number in range(1, 250):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.bind((f"127.0.9.{number}", 40000))
            client.sendto(b"the same port", address)
        takers[taker(sockets, b"the same port")] += 1
    for sock in sockets:
        sock.close()
    assert min(takers[index] for index in range(3)) > 50


def test_another_key_spreads_them_in_another_way():
    assert by_source_program([0, 1], 1) != by_source_program([0, 1], 2)
