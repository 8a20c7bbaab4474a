"""Who may begin a handshake, as a dialogue of first packets: bounds, Retry by itself and by order, tokens, and when it is over."""

import pytest

from proxy.engine.quic import packets
from proxy.engine.quic.gate import LIMITS, RESULTS, Arrival, Gate, Pressure, network_of
from proxy.engine.quic.ids import Minter
from proxy.engine.quic.retry import LIFETIME, TOKEN_BYTES, Tokens
from proxy.engine.quic.settings import QuicSettings
from proxy.keys import Keyring

SECRET = b"s" * 16
PEER = ("192.0.2.1", 4433)


class Door:
    """A gate, its clients and its clocks."""

    def __init__(self, **settings) -> None:
        self.today = 1_700_000_000.0
        self.now = 0.0
        self.gate = Gate(QuicSettings(**settings), Keyring.alone(SECRET), Minter(Keyring.alone(SECRET), bytes), bytes, lambda: self.today)
        self.count = 0

    def knock(self, peer=PEER, original: bytes = b"", token: bytes = b"", version: int = 1, **more):
        self.count += 1
        destination = original or b"%08d" % self.count
        header = packets.LongHeader(version, destination, b"client", initial=True, early=False, token=token)
        return self.gate.judge(header, peer, self.now, **{"may_answer": True} | more)

    def enter(self, peer=PEER, **more) -> bool:
        arrival = self.knock(peer, **more)
        if not isinstance(arrival, Arrival):
            return False
        self.gate.enter(self.count, peer[0])
        return True

    def answer(self, retry: bytes, peer=PEER):
        """What a client does with a Retry packet."""
        assert len(retry) < 200
        header = packets.read_long_header(retry)
        return self.knock(peer, header.source, retry[-16 - TOKEN_BYTES : -16])

    def told(self):
        return self.gate.first_packets(self.now)

    def tokens(self) -> dict:
        return {result: count for result, count in self.told().tokens.items() if count}

    def limits(self) -> dict:
        return {limit: count for limit, count in self.told().limits_hit.items() if count}


def host(number: int) -> tuple[str, int]:
    """Each in a network of its own."""
    return (f"10.{number >> 8}.{number & 255}.1", 1)


def error_of(answer: bytes, dcid: bytes = b"12345678") -> int:
    """The error in a CONNECTION_CLOSE."""
    keys = packets.CryptoPair()
    keys.setup_initial(cid=dcid, is_client=True, version=1)
    length_at = 7 + answer[5] + answer[6 + answer[5]] + 1
    payload = keys.decrypt_packet(answer, length_at + 2, 0)[1]
    assert payload[0] == 0x1C
    return payload[1]


def test_a_client_is_let_in_and_counted_until_it_leaves() -> None:
    door = Door()
    assert door.knock(original=b"original") == Arrival(b"original", None)
    assert door.gate.handshakes == 0
    door.gate.enter(7, PEER[0])
    assert door.gate.handshakes == 1
    door.gate.leave(7, complete=True)
    assert door.gate.handshakes == 0
    assert not door.gate._networks
    assert (door.tokens(), door.limits(), door.told().retries, door.told().asking) == ({}, {}, 0, False)


def test_what_is_told_has_every_label_from_the_start() -> None:
    told = Door().told()
    assert (tuple(told.tokens), tuple(told.limits_hit)) == (RESULTS, LIMITS)


def test_an_id_that_no_client_may_make_up_is_dropped() -> None:
    assert Door().knock(original=b"7 bytes") is None
    assert Door(retry="always").knock(original=b"7 bytes") is None


# Bounds


def test_handshakes_are_bounded_in_all_and_by_network() -> None:
    door = Door(retry="never", handshakes=5, handshakes_per_network=2)
    assert [door.enter((f"192.0.2.{number}", 1)) for number in range(4)] == [True, True, False, False]
    assert [door.enter((f"2001:db8::{number}", 1)) for number in range(1, 4)] == [True, True, False]
    assert [door.enter(host(number)) for number in range(3)] == [True, False, False]
    assert door.limits() == {"handshakes_per_network": 3, "handshakes": 2}
    door.gate.leave(1, complete=True)
    assert door.enter(("192.0.2.9", 1))
    assert not door.told().asking


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("192.0.2.1", "192.0.2.255", True),
        ("192.0.2.1", "192.0.3.1", False),
        ("192.0.2.1", "::ffff:192.0.2.9", True),
        ("2001:db8:1::1", "2001:db8:1:ffff::1", True),
        ("2001:db8:1::1", "2001:db8:2::1", False),
        ("fe80::1%eth0", "fe80::2", True),
        ("192.0.2.1", "c000:200::", False),
    ],
)
def test_networks(one: str, other: str, same: bool) -> None:
    assert (network_of(one) == network_of(other)) == same


# Retry


def test_always_asks_everybody_once() -> None:
    door = Door(retry="always")
    retry = door.knock(original=b"original")
    assert packets.read_long_header(retry).destination == b"client"
    source = packets.read_long_header(retry).source
    assert door.answer(retry) == Arrival(b"original", source)
    assert door.knock(original=b"another.") != retry
    assert (door.told().retries, door.told().asking, door.tokens()) == (2, True, {"valid": 1})


def test_without_room_for_an_answer_there_is_none() -> None:
    door = Door(retry="always")
    assert door.knock(may_answer=False) is None
    assert door.told().retries == 0
    assert door.knock(token=b"qpR\1" + bytes(TOKEN_BYTES - 4), may_answer=False) is None
    assert door.tokens() == {"forged": 1}


def test_never_takes_a_token_all_the_same() -> None:
    """Another process with the secret may ask for it."""
    retry = Door(retry="always").knock(original=b"original")
    assert Door(retry="never").answer(retry).original == b"original"


def test_tokens_that_prove_nothing_end_the_attempt() -> None:
    door = Door(retry="always")
    retry = door.knock(original=b"original")
    token, source = retry[-16 - TOKEN_BYTES : -16], packets.read_long_header(retry).source
    assert error_of(door.answer(retry, ("192.0.2.1", 4434)), source) == 0xB
    assert error_of(door.answer(retry, ("192.0.2.2", 4433)), source) == 0xB
    assert error_of(door.knock(original=b"12345678", token=token)) == 0xB
    assert error_of(door.knock(original=b"12345678", token=token[:-1] + bytes([token[-1] ^ 1]))) == 0xB
    door.today += LIFETIME + 0.1
    assert error_of(door.answer(retry), source) == 0xB
    assert door.tokens() == {"other_address": 2, "other_connection": 1, "forged": 1, "expired": 1}
    assert (door.told().retries, door.gate.handshakes) == (1, 0)


def test_a_token_of_somebody_else_is_none() -> None:
    """A server that had this address before may have given it, for connections to come (RFC 9000, section 8.1.3)."""
    assert Door().knock(original=b"original", token=b"whatever") == Arrival(b"original", None)
    door = Door(retry="always")
    assert door.answer(door.knock(original=b"original", token=b"whatever")).original == b"original"
    assert door.tokens() == {"unknown": 1, "valid": 1}


# Retry by itself


def test_a_flood_from_everywhere_leaves_room_for_those_who_answer() -> None:
    door = Door(handshakes=40, handshakes_per_network=40)
    assert [door.enter(host(number)) for number in range(100)] == [True] * 10 + [False] * 90
    assert (door.told().retries, door.told().asking) == (90, True)
    for number in range(30):
        retry = door.knock(PEER)
        assert isinstance(door.answer(retry), Arrival)
        door.gate.enter(1000 + number, PEER[0])
    assert door.answer(door.knock(PEER)) is None
    assert door.limits() == {"handshakes": 1}


def test_a_flood_in_the_name_of_one_network_asks_that_one_only() -> None:
    door = Door(handshakes=100, handshakes_per_network=8)
    assert [door.enter() for _ in range(10)] == [True] * 2 + [False] * 8
    assert isinstance(door.knock(host(1)), Arrival)
    assert not door.told().asking
    entered = 0
    while isinstance(door.answer(door.knock()), Arrival):
        door.gate.enter(door.count, PEER[0])
        entered += 1
    assert entered == 6
    assert door.limits() == {"handshakes_per_network": 1}


def test_it_goes_off_when_the_flood_is_over_and_not_before() -> None:
    door = Door(handshakes=40, handshake_timeout=10.0)
    for number in range(10):
        door.enter(host(number))
    assert isinstance(door.knock(host(10)), bytes)
    for handle in range(1, 11):
        door.gate.leave(handle, complete=False)  # they took too long
    for second in range(1, 60):
        door.now = float(second)
        for number in range(10):
            assert isinstance(door.knock(host(second * 10 + number)), bytes)
    for later in (65.0, 74.9):
        door.now = later
        assert door.told().asking
    door.now = 75.0
    assert not door.told().asking
    assert isinstance(door.knock(), Arrival)


def test_clients_that_answer_do_not_keep_it_on() -> None:
    """Some of them with a first flight of two packets, as those with post-quantum keys have it."""
    door = Door(handshakes=40, handshake_timeout=10.0)
    for number in range(10):
        door.enter(host(number))
    assert isinstance(door.knock(host(10)), bytes)
    for handle in range(1, 11):
        door.gate.leave(handle, complete=True)
    for tenth in range(99):
        door.now = tenth / 10
        for number in range(5):
            original = b"%05d%03d" % (tenth, number)
            retry = door.knock(original=original)
            assert isinstance(door.knock(original=original), bytes)
            assert isinstance(door.answer(retry), Arrival)
    door.now = 10.0
    assert isinstance(door.knock(), Arrival)


def test_handshakes_that_come_to_nothing_count_as_well() -> None:
    """Packets that are not authentic, names that nobody has: none of these is ever in progress for long."""
    door = Door(handshakes=40, handshake_timeout=10.0)
    for number in range(10):
        door.now = number / 10
        assert door.enter(host(number))
        door.gate.leave(door.count, complete=False)
    assert isinstance(door.knock(), bytes)
    for number in range(100):
        assert isinstance(door.knock(host(number)), bytes)
    door.now = 11.0
    assert isinstance(door.knock(), bytes)
    door.now = 21.0
    assert isinstance(door.knock(), Arrival)


def test_a_failure_now_and_then_is_nothing() -> None:
    door = Door(handshakes=40, handshake_timeout=10.0)
    for number in range(100):
        door.now = number * 1.2
        assert door.enter(host(number))
        door.gate.leave(door.count, complete=number % 2 == 0)


def test_pressure_stays_between_its_two_marks_as_it_is() -> None:
    pressure = Pressure(10, 5.0)
    assert [pressure.on(count, 0.0) for count in (5, 9, 10, 3)] == [False, False, True, True]
    assert [pressure.on(5, 5.0), pressure.on(4, 9.9), pressure.on(4, 10.0), pressure.on(9, 10.0)] == [True, True, False, False]


def test_pressure_that_nobody_looked_at_for_long_is_over() -> None:
    pressure = Pressure(10, 5.0)
    assert pressure.on(10, 0.0)
    for number in range(1000):
        pressure.asked(b"%d" % number)
    assert len(pressure._asked) == 10
    assert not pressure.on(0, 3600.0)


def test_a_retry_token_is_taken_by_another_life_of_the_process() -> None:
    retry = Door(retry="always").knock(original=b"original")
    door = Door(retry="always")
    door.today += 3
    assert door.answer(retry).original == b"original"


def test_tokens_say_nothing_of_what_is_in_them_by_their_size() -> None:
    made = {
        len(Tokens(Keyring.alone(SECRET), bytes).seal(peer, original, b"source", 0.0))
        for peer in (PEER, ("2001:db8::1", 1))
        for original in (b"", b"o" * 20)
    }
    assert made == {TOKEN_BYTES}
