"""Sockets for every worker that there may be: in order, on one address, and none of somebody else's."""

import json
import os
import socket

import pytest

from proxy.listen.bind import Buffers, inherited
from proxy.listen.steering import Steering
from proxy.process.ports import BANKS, Ports

SMALL = Buffers(65536, 65536)
HOST = "127.0.0.1"


def wanted(port, *, tcp=True, udp=True, host=HOST):
    return {"host": host, "port": port, "tcp": tcp, "udp": udp}


@pytest.fixture
def opened():
    """Opens ports, for two workers, and closes them in the end."""
    made = []

    def opened(ports, *listeners):
        made.append(ports)
        ports.open(listeners, 2, 100, SMALL)
        return ports

    yield opened
    for ports in made:
        ports.close()


def name_of(descriptor):
    with socket.socket(fileno=os.dup(descriptor)) as sock:
        return sock.getsockname()[:2]


@pytest.mark.parametrize("host", [HOST, "::1"])
def test_each_worker_has_sockets_of_its_own_on_the_same_ports(host, opened):
    listener = wanted(0, host=host)
    ports = opened(Ports({}), listener)
    ((tcp, udp),) = ports.numbers([listener])
    seen = [ports.of_worker(listener, position, bank * 2 + position) for bank in range(BANKS) for position in range(2)]
    assert {name_of(one) for one, _ in seen} == {(host, tcp)}
    assert {name_of(other) for _, other in seen} == {(host, udp)}
    assert len({other for _, other in seen}) == 4, "a UDP socket for each slot"
    assert len({one for one, _ in seen}) == 2, "a TCP socket for each position, whichever bank has it"


def test_a_port_of_somebody_else_is_refused_although_it_would_be_shared(opened):
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind((HOST, 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(OSError, match=rf"can't listen on 127.0.0.1:{port} \(TCP\): Address already in use"):
            opened(Ports({}), wanted(port))


def given(kind, *, shared):
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM if kind == "TCP" else socket.SOCK_DGRAM)
    if shared:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind((HOST, 0))
    return sock


@pytest.mark.parametrize("shared", [True, False])
def test_a_tcp_socket_from_systemd_is_used(shared, opened):
    sock = given("TCP", shared=shared)
    port = sock.getsockname()[1]
    listener = wanted(port, udp=False)
    ports = opened(Ports({("TCP", HOST, port): sock}), listener)
    assert {name_of(ports.of_worker(listener, position, position)[0]) for position in range(2)} == {(HOST, port)}
    assert ports.unused() == []


def test_a_udp_socket_from_systemd_has_to_be_one_that_can_be_shared(opened):
    for shared in (True, False):
        sock = given("UDP", shared=shared)
        port = sock.getsockname()[1]
        listener = wanted(port, tcp=False)
        if shared:
            assert name_of(opened(Ports({("UDP", HOST, port): sock}), listener).of_worker(listener, 1, 3)[1]) == (HOST, port)
        else:
            with sock, pytest.raises(OSError, match="its unit needs ReusePort=yes"):
                opened(Ports({("UDP", HOST, port): sock}), listener)


def test_what_no_listener_names_is_told(opened):
    sock = given("TCP", shared=False)
    port = sock.getsockname()[1]
    assert opened(Ports({("TCP", HOST, port): sock})).unused() == [f"127.0.0.1:{port} (TCP)"]


def test_sockets_for_somebody_else_are_not_ours():
    for environ in ({}, {"LISTEN_FDS": "1", "LISTEN_PID": "1"}, {"LISTEN_FDS": "x", "LISTEN_PID": str(os.getpid())}):
        assert inherited(environ) == {}
        assert environ == {}, "no child is to take them for its own"


def test_each_slot_of_a_tier_has_ports_for_answers_of_its_own(opened):
    ports = opened(Ports({}), wanted(0, tcp=False) | {"l4": True})
    names = [name_of(one) for slot in range(BANKS * 2) for one in ports.relays_of(slot)]
    assert {host for host, _ in names} == {"0.0.0.0", "::"}
    assert all(port for _, port in names)
    assert len(set(names)) == len(names) == 2 * BANKS * 2


def test_an_upgrade_finds_everything_again(opened):
    listener, tier = wanted(0), wanted(0, host="127.0.0.2", tcp=False) | {"l4": True}
    before = opened(Ports({}), listener, tier)
    known, copies = before.known(), {descriptor: os.dup(descriptor) for descriptor in before.descriptors()}

    def copied(value):
        if isinstance(value, list):
            return [copied(item) for item in value]
        return copies.get(value, value) if isinstance(value, int) and not isinstance(value, bool) else value

    moved = {name: copied(value) if name in {"tcp", "udp", "strays", "relays", "counts"} else value for name, value in known.items()}
    after = Ports({})
    after.take_over(moved)
    assert after.numbers([listener]) == before.numbers([listener])
    assert [name_of(one) for one in after.of_worker(listener, 1, 3)] == [name_of(one) for one in before.of_worker(listener, 1, 3)]
    ends, others = after.strays_of(listener, 2)
    assert (len(ends), others) == (4, [0, 1, 3])
    relays = [[name_of(one) for one in ports.relays_of(3)] for ports in (before, after)]
    assert relays[0] == relays[1]
    after.close()


def test_the_port_of_envelopes_is_steered_by_what_they_say_before_and_after_an_upgrade(opened, monkeypatch):
    attached = {}
    monkeypatch.setattr("proxy.process.ports.attach", lambda sock, program: attached.update({sock.getsockname()[1]: program}))
    clients, envelopes = wanted(0, tcp=False), wanted(0, tcp=False) | {"envelopes": True, "host": "127.0.0.2"}
    ports = opened(Ports({}), clients, envelopes)
    (_, client_port), (_, envelope_port) = ports.numbers([clients, envelopes])
    steering = Steering({0: 0, 1: 1}, {0, 1}, 1, {})
    ports.steer({0, 1}, {0, 1})
    assert attached[envelope_port] == steering.envelope_program() != attached[client_port]
    after = Ports({})
    after.take_over(json.loads(json.dumps(ports.known() | {"counts": None})))
    before = dict(attached)
    attached.clear()
    after.steer({0, 1}, {0, 1})
    for sock in [
        *(sock for group in after._udp.values() for sock in group),
        *(end for pairs in after._strays.values() for pair in pairs for end in pair),
    ]:
        sock.detach()  # it is the same as before
    assert attached.keys() == before.keys()
    assert attached == before
