"""Tickets without any TLS: who opens them, for how long, and under which terms."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.engine.quic.sessions import Session, configuration_epoch
from proxy.engine.quic.settings import QuicSettings
from proxy.engine.quic.tickets import LIFETIME, OVERHEAD, ROTATION, SKEW, Tickets, derive_key
from proxy.engine.seam import EngineLimits
from proxy.keys import Keyring
from tests.sim.material import profile

SECRET = b"s" * 32
KEY = b"k" * 16


class Clock:
    """Seconds since the epoch, as the test wants them."""

    def __init__(self, now: float = 1_000_000 * ROTATION) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def made(clock: Clock, secret: bytes = SECRET) -> Tickets:
    """Tickets of a process; its nonces count."""
    count = iter(range(1 << 20))
    return Tickets(Keyring.alone(secret), clock, lambda size: next(count).to_bytes(size))


def opened(tickets: Tickets, ticket: bytes, terms: bytes = b"terms") -> bytes | None:
    found = tickets.open(terms, ticket)
    return None if found is None else found.state


@given(st.binary(max_size=300), st.binary(min_size=16, max_size=16), st.binary(max_size=50), st.floats(0, LIFETIME - 1))
def test_another_process_with_the_secret_opens_it_for_a_day(state: bytes, affinity: bytes, terms: bytes, age: float) -> None:
    clock = Clock()
    ticket = made(clock).seal(terms, affinity, state)
    assert len(ticket) == len(state) + OVERHEAD
    clock.now += age
    found = made(clock).open(terms, ticket)
    assert found is not None
    assert (found.state, found.affinity) == (state, affinity)
    assert found.age == pytest.approx(age, abs=0.01)


@pytest.mark.parametrize("begun", [0, 1, ROTATION - 1])
def test_it_opens_until_its_time_is_over_wherever_in_its_period_it_was_sealed(begun: float) -> None:
    clock = Clock(Clock().now + begun)
    tickets = made(clock)
    ticket = tickets.seal(b"terms", KEY, b"state")
    sealed = clock.now
    for age in (0, ROTATION, 2 * ROTATION, LIFETIME - 0.01):
        clock.now = sealed + age
        assert opened(tickets, ticket) == b"state"
    for age in (LIFETIME, 2 * LIFETIME, 50 * LIFETIME):
        clock.now = sealed + age
        assert opened(tickets, ticket) is None


def test_clocks_may_differ_a_little() -> None:
    ahead, behind = Clock(), Clock()
    ahead.now += SKEW - 1  # and with it in the next period, or so it thinks
    behind.now -= 1
    ticket = made(ahead).seal(b"terms", KEY, b"state")
    assert opened(made(behind), ticket) == b"state"
    behind.now -= SKEW
    assert opened(made(behind), ticket) is None


def test_other_terms_another_secret_and_altered_bytes_open_nothing() -> None:
    clock = Clock()
    tickets = made(clock)
    ticket = tickets.seal(b"terms", KEY, b"state")
    assert opened(tickets, ticket, b"others") is None
    assert opened(made(clock, b"o" * 32), ticket) is None
    for at in range(len(ticket)):
        altered = bytearray(ticket)
        altered[at] ^= 1
        assert opened(tickets, bytes(altered)) is None


@given(st.binary(max_size=400))
def test_junk_opens_nothing(junk: bytes) -> None:
    assert made(Clock()).open(b"terms", junk) is None


def test_what_is_sealed_twice_looks_different() -> None:
    tickets = made(Clock())
    assert tickets.seal(b"terms", KEY, b"state") != tickets.seal(b"terms", KEY, b"state")


def test_keys_change_with_time_and_old_ones_are_forgotten() -> None:
    clock = Clock()
    tickets = made(clock)
    for _ in range(100):
        tickets.seal(b"terms", KEY, b"state")
        clock.now += ROTATION
    assert len(tickets._ciphers) <= 32
    assert len({derive_key(SECRET, period) for period in range(100)}) == 100


# The session of a handshake


def session(tickets: Tickets, own: bytes, client_rule: object = None, terms: bytes = b"terms") -> Session:
    return Session("a.example", profile("a.example", client_rule), own, tickets, terms)


def test_a_resumed_session_has_the_affinity_key_of_the_first_one_and_hands_it_on() -> None:
    tickets = made(Clock())
    first = session(tickets, b"1" * 16)
    assert first.ready(("192.0.2.1", 1), resumed=False).affinity == b"1" * 16
    ticket = first.seal(b"state", resumed=False)
    for number in (b"2", b"3"):
        later = session(tickets, number * 16)
        assert later.open(ticket) == b"state"
        ready = later.ready(("192.0.2.1", 1), resumed=True)
        assert (ready.affinity, ready.resumed) == (b"1" * 16, True)
        ticket = later.seal(b"state", resumed=True)


def test_a_ticket_that_was_shown_and_not_resumed_gives_no_affinity_key() -> None:
    tickets = made(Clock())
    ticket = session(tickets, b"1" * 16).seal(b"state", resumed=False)
    thief = session(tickets, b"2" * 16)
    thief.open(ticket)
    assert thief.ready(("192.0.2.1", 1), resumed=False).affinity == b"2" * 16
    again = session(tickets, b"3" * 16)
    again.open(thief.seal(b"state", resumed=False))
    assert again.ready(("192.0.2.1", 1), resumed=True).affinity == b"2" * 16


def test_where_client_certificates_are_asked_for_there_are_no_tickets() -> None:
    tickets = made(Clock())
    ticket = session(tickets, KEY).seal(b"state", resumed=False)
    asked = session(tickets, KEY, client_rule=object())
    assert (asked.open(ticket), asked.seal(b"state", resumed=False), asked.tickets) == (None, b"", None)


def test_the_configuration_epoch_is_of_what_a_client_remembers() -> None:
    limits, settings = EngineLimits(), QuicSettings()
    epochs = {
        configuration_epoch(*given)
        for given in (
            ("one", limits, settings),
            ("another", limits, settings),
            ("one", EngineLimits(streams=7), settings),
            ("one", EngineLimits(stream_window=70_000), settings),
            ("one", limits, QuicSettings(idle_timeout=7)),
            ("one", limits, QuicSettings(migration=False)),
        )
    }
    assert len(epochs) == 6
    assert configuration_epoch("one", EngineLimits(), QuicSettings(handshakes=7)) in epochs


# Early data


def vouched(tickets: Tickets, ticket: bytes, client_random: bytes = b"r" * 32) -> bool:
    found = tickets.open(b"terms", ticket)
    assert found is not None
    return tickets.vouch(found, client_random)


def test_a_flight_is_vouched_for_once_where_no_other_process_was_since_its_ticket() -> None:
    clock = Clock()
    alone = [clock.now]
    tickets = Tickets(Keyring.alone(SECRET), clock, random.Random(1).randbytes, lambda: alone[0])
    ticket = tickets.seal(b"terms", KEY, b"state")
    clock.now += 10
    assert vouched(tickets, ticket)
    assert not vouched(tickets, ticket)
    assert vouched(tickets, ticket, b"o" * 32)
    alone[0] = clock.now  # somebody was here meanwhile
    assert not vouched(tickets, ticket, b"p" * 32)
    clock.now += 1
    assert vouched(tickets, tickets.seal(b"terms", KEY, b"state"), b"q" * 32)
    alone[0] = float("inf")
    assert not vouched(tickets, tickets.seal(b"terms", KEY, b"state"), b"s" * 32)


def test_a_ticket_of_another_process_is_never_vouched_for() -> None:
    clock = Clock()
    one, two = (Tickets(Keyring.alone(SECRET), clock, random.Random(seed).randbytes, lambda: 0.0) for seed in (1, 2))
    assert not vouched(two, one.seal(b"terms", KEY, b"state"))
    assert vouched(one, one.seal(b"terms", KEY, b"state"))
