"""Steering in the kernel: which socket of a real group each kind of packet comes to, and what is no rule."""

from __future__ import annotations

import random
import socket
import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import pytest

from balancer import quic_lb
from balancer.quic_lb import Layout, unroutable
from proxy.engine.quic import packets
from proxy.engine.quic.ids import Minter, Routable, steered_lengths
from proxy.keys import Keyring
from proxy.listen import steering
from proxy.listen.steering import LEAST, Steering, attach
from tests.unit.listen.classic_bpf import RefusedError, instructions, run
from tests.unit.listen.group import bind_group

SLOTS = 8
KEY = 0x5EED1E55
ENCRYPTED = Routable(Layout(2, 4, 6, slot=True, key=bytes(16)), b"west")
AWS = Routable(Layout(0, 8, 10, slot=True), b"the west")
LENGTHS = steered_lengths([ENCRYPTED, AWS, None])
ALL = Steering({slot: slot for slot in range(SLOTS)}, range(4), KEY, LENGTHS)
FORMS = {"opaque": None, "encrypted": ENCRYPTED, "AWS": AWS}
KINDS = {"initial": 0xC0, "0-RTT": 0xD0, "handshake": 0xE0}


class Group:
    """Sockets of one group, bound in order, and a client's."""

    def __init__(self, host: str) -> None:
        self.sockets = bind_group(host, SLOTS)
        self.address = ("127.0.0.1" if host == "::" else host, self.sockets[0].getsockname()[1])
        self.client = socket.socket(socket.AF_INET6 if ":" in self.address[0] else socket.AF_INET, socket.SOCK_DGRAM)

    def close(self) -> None:
        for sock in (*self.sockets, self.client):
            sock.close()

    def steer(self, rule: Steering) -> None:
        attach(self.sockets[0], rule.program())

    def send(self, data: bytes) -> int:
        """The index of the socket that it comes to. Over loopback it is there when the call returns."""
        self.client.sendto(data, self.address)
        got = [index for index, sock in enumerate(self.sockets) if read(sock) == data]
        assert len(got) == 1
        return got[0]


def read(sock: socket.socket) -> bytes | None:
    try:
        return sock.recv(65536)
    except BlockingIOError:
        return None


@pytest.fixture(params=["127.0.0.1", "::1", "::"])
def group(request: pytest.FixtureRequest) -> Iterator[Group]:
    made = Group(request.param)
    yield made
    made.close()


def minted(form: Routable | None, slot: int) -> bytes:
    return Minter(Keyring.alone(b"s" * 16), random.Random(slot).randbytes, form, slot)()[0]


def short(cid: bytes) -> bytes:
    return b"\x41" + cid + bytes(30)


def long(first: int, cid: bytes, version: int = packets.VERSIONS[0]) -> bytes:
    return bytes([first]) + version.to_bytes(4) + bytes([len(cid)]) + cid + b"\x08" + bytes(1200)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_what_names_a_live_slot_comes_to_it_whatever_its_kind(group: Group, form: Routable | None) -> None:
    group.steer(ALL)
    for slot in range(SLOTS):
        cid = minted(form, slot)
        assert group.send(short(cid)) == slot
        for first in KINDS.values():
            for version in packets.VERSIONS:
                assert group.send(long(first, cid, version)) == slot


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_what_names_a_dead_slot_comes_to_one_that_accepts_and_the_others_stay(group: Group, form: Routable | None) -> None:
    dead = replace(ALL, live={slot: slot for slot in range(SLOTS) if slot != 6})
    group.steer(dead)
    for slot in range(SLOTS):
        for packet in (short(minted(form, slot)), *(long(first, minted(form, slot)) for first in KINDS.values())):
            got = group.send(packet)
            assert got == slot if slot != 6 else got in range(4)


def test_first_packets_are_spread_over_those_that_accept_and_their_repetitions_are_not(group: Group) -> None:
    group.steer(ALL)
    seen = Counter()
    bytes_of = random.Random(3).randbytes
    for number in range(400):
        cid = bytes_of(8 + number % 13)
        while (cid[0] >> 5, len(cid)) in LENGTHS.items() or cid[0] == 0xE0 | len(cid) - 1:
            cid = bytes_of(len(cid))
        got = group.send(long(0xC0, cid))
        assert {group.send(long(first, cid, version)) for first in KINDS.values() for version in (1, 2, 0xFF00001D)} == {got}
        seen[got] += 1
    assert set(seen) == {0, 1, 2, 3}
    assert min(seen.values()) > 60


def test_nobody_without_the_key_knows_whose_a_first_packet_will_be() -> None:
    cids = [random.Random(number).randbytes(18) for number in range(200)]
    by_key = [[run(replace(ALL, key=key).program(), long(0xC0, cid)) for cid in cids] for key in (1, 2, 1 << 31)]
    for one, other in ((0, 1), (1, 2), (0, 2)):
        assert 20 < sum(first == second for first, second in zip(by_key[one], by_key[other], strict=True)) < 90


def test_what_is_too_short_comes_to_one_that_accepts(group: Group) -> None:
    group.steer(replace(ALL, accepting={5}))
    for size in range(LEAST):
        assert group.send(bytes([0xC0] * size)) == group.send(bytes([0x40] * size)) == 5


def test_the_program_may_be_replaced_while_datagrams_come(group: Group) -> None:
    """Each comes to whom one of the two programs says; nothing is lost."""
    group.steer(ALL)
    grown = replace(ALL, accepting=range(4, 8), live={slot: slot for slot in range(2, 8)})
    choice = random.Random(9)
    for number in range(2000):
        if number % 5 == 0:
            group.steer(choice.choice((ALL, grown)))
        slot = choice.randrange(SLOTS)
        got = group.send(short(minted(None, slot)))
        assert got == slot if slot >= 2 else got in {slot, 4, 5, 6, 7}


@pytest.mark.parametrize("group", ["127.0.0.1"], indirect=True)
def test_the_kernel_takes_the_largest_program_and_does_what_the_interpreter_says(group: Group) -> None:
    live = {slot: (slot * 5 + 3) % SLOTS for slot in range(256)}  # no two neighbours
    program = Steering(live, live, KEY, {config: 20 - config for config in range(7)}).program()
    assert len(instructions(program)) < 2200
    attach(group.sockets[0], program)
    packet = random.Random(4)
    for _ in range(1000):
        data = packet.randbytes(packet.randrange(60))
        assert group.send(data) == run(program, data)


def test_an_envelope_comes_to_the_worker_that_its_steer_names_or_to_one_that_accepts(group: Group) -> None:
    """Of which some are gone, and some take nothing new."""
    rule = Steering({slot: slot for slot in range(SLOTS) if slot != 6}, range(4), KEY, LENGTHS)
    program = rule.envelope_program()
    attach(group.sockets[0], program)
    seen: Counter[int] = Counter()
    for steer in [*range(SLOTS), 255, *random.Random(1).sample(range(256, 65536), 100)]:
        envelope = b"\1\0" + steer.to_bytes(2) + bytes(92)
        index = group.send(envelope)
        assert index == run(program, envelope)
        if steer in rule.live:
            assert index == steer
        else:
            seen[index] += 1
    assert set(seen) == {0, 1, 2, 3}
    assert min(seen.values()) > 15
    for garbage in (b"x", b"xyz", bytes(4), b"\xff" * 4):
        assert group.send(garbage) == run(program, garbage)
        assert group.send(garbage) < 4


def test_two_banks_need_few_instructions() -> None:
    assert len(instructions(ALL.program())) < 80


def test_what_is_said_of_connection_ids_in_two_places_is_the_same() -> None:
    assert (steering.UNROUTABLE, steering.SLOTS, steering.MAX_CID_BYTES) == (quic_lb.UNROUTABLE, quic_lb.SLOTS, quic_lb.MAX_CID_BYTES)


def test_forms_without_a_slot_are_not_steered_by_one() -> None:
    assert LENGTHS == {2: 12, 0: 20}
    assert steered_lengths([Routable(Layout(3, 4, 6), b"west"), ENCRYPTED, Routable(Layout(2, 4, 8, slot=True), b"west")]) == {2: 14}


def test_a_length_that_an_opaque_id_can_not_have_names_nobody() -> None:
    program = replace(ALL, accepting={7}).program()
    for length in (*range(20, 32), 0):
        data = short(bytes([0xE0 | length]) + bytes(40))
        assert run(program, data) == 7
    assert run(program, short(unroutable(bytes(18), 3))) == 3


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"accepting": ()}, "a group needs a worker that takes new connections"),
        ({"accepting": (3, 9)}, "slot 9 takes new connections and has no worker"),
        ({"live": {256: 0}, "accepting": {256}}, "slots and sockets are 0 to 255"),
        ({"lengths": {7: 10}}, "configuration IDs are 0 to 6"),
        ({"lengths": {0: 21}}, "2 to 20 bytes"),
    ],
)
def test_what_is_no_group(change: dict[str, object], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        replace(ALL, **change)


def test_a_socket_that_shares_nothing_is_no_group() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        with pytest.raises(OSError, match="Invalid argument"):
            attach(sock, ALL.program())


def test_the_interpreter_refuses_what_the_kernel_refuses() -> None:
    """A test of the tests: a jump out of the program, and memory that was never written."""
    [sock] = bind_group("127.0.0.1", 1)
    for program in (struct.pack("=HBBI", 0x05, 0, 0, 9), struct.pack("=HBBIHBBI", 0x61, 0, 0, 1, 0x16, 0, 0, 0)):
        with pytest.raises(OSError, match="Invalid argument"):
            attach(sock, program)
        with pytest.raises(RefusedError):
            instructions(program)
    sock.close()
