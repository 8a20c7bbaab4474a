"""What instances with one key file take from each other, through a rotation; and what was given before there were epochs."""

import random
from hashlib import blake2b

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from balancer.affinity import connection_key
from balancer.quic_lb import Layout, config_id_of
from proxy.engine.quic.gate import Gate
from proxy.engine.quic.ids import Minter, Routable
from proxy.engine.quic.resets import Resets
from proxy.engine.quic.retry import TOKEN_BYTES, Refusal, Tokens
from proxy.engine.quic.sessions import Sessions
from proxy.engine.quic.settings import QuicSettings
from proxy.engine.quic.tickets import ROTATION, Tickets, derive_key
from proxy.keys import Key, Keyring, KeySet, Purpose, config_id
from tests.sim.material import profile

BEGIN = 1_800_000_000.0
KEYS = [Key(250 + number, BEGIN + number * 3600, bytes([number]) * 32) for number in range(3)]
PEER = ("192.0.2.1", 4711)
AFFINITY = b"k" * 16


def instance(*numbers: int, own: bytes = b"own" * 11) -> Keyring:
    """One that has these keys."""
    return Keyring(KeySet(tuple(KEYS[number] for number in numbers), b"r" * 32), own)


class Clock:
    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def tickets_of(keys: Keyring, clock: Clock, seed: int = 1) -> Tickets:
    return Tickets(keys, clock, random.Random(seed).randbytes, lambda: 0.0)


# Session tickets


def test_a_ticket_names_its_epoch_and_opens_wherever_that_key_is() -> None:
    clock = Clock(BEGIN + 3599)
    first = tickets_of(instance(0, 1, own=b"one"), clock).seal(b"terms", AFFINITY, b"state")
    clock.now += 1
    second = tickets_of(instance(0, 1, own=b"one"), clock).seal(b"terms", AFFINITY, b"state")
    assert (first[0], second[0]) == (250, 251)
    both, behind, ahead = (tickets_of(instance(*numbers), clock, 2) for numbers in ((0, 1), (0,), (1, 2)))

    def opens(tickets: Tickets) -> list[bool]:
        return [tickets.open(b"terms", ticket) is not None for ticket in (first, second)]

    assert [opens(both), opens(behind), opens(ahead)] == [[True, True], [True, False], [False, True]]
    assert not any(both.open(b"terms", bytes([epoch]) + first[1:]) for epoch in range(256) if epoch != 250)


def test_a_ticket_given_before_there_were_epochs_still_opens() -> None:
    secret, clock = b"s" * 32, Clock(BEGIN)
    period = int(clock.now // ROTATION)
    content = int(clock.now * 1000).to_bytes(8) + b"issuer..".ljust(8) + AFFINITY + b"state"
    clear, nonce = period.to_bytes(4), b"n" * 12
    ticket = clear + nonce + AESGCM(derive_key(secret, period)).encrypt(nonce, content, b"terms")
    found = tickets_of(Keyring.alone(secret), clock).open(b"terms", ticket)
    assert found is not None
    assert (found.state, found.affinity) == (b"state", AFFINITY)
    assert tickets_of(Keyring.alone(secret), clock).seal(b"terms", AFFINITY, b"state")[:4] == clear


def test_with_keys_that_others_have_no_early_data_is_vouched_for() -> None:
    """Not that of its own tickets either: the flight may have come to another instance, which let it wait and acted on it."""
    clock = Clock(BEGIN)
    for keys, vouched in ((instance(0), False), (Keyring.alone(b"s" * 32), True)):
        tickets = tickets_of(keys, clock)
        opened = tickets.open(b"terms", tickets.seal(b"terms", AFFINITY, b"state"))
        assert opened is not None
        assert tickets.vouch(opened, b"r" * 32) is vouched


def test_keys_that_are_replaced_seal_at_once() -> None:
    clock, keys = Clock(BEGIN), instance(0)
    tickets = tickets_of(keys, clock)
    before = tickets.seal(b"terms", AFFINITY, b"state")
    other = Key(250, BEGIN, b"other" + bytes(27))
    keys.replace(KeySet((other,), b"r" * 32))
    assert tickets.open(b"terms", before) is None
    after = tickets.seal(b"terms", AFFINITY, b"state")
    assert tickets_of(Keyring(KeySet((other,), b""), b""), clock, 2).open(b"terms", after) is not None


# Retry tokens


def test_a_retry_token_is_taken_by_whoever_has_the_key_of_its_epoch() -> None:
    at = BEGIN + 3600
    token = Tokens(instance(0, 1), bytes).seal(PEER, b"original", b"source", at)
    assert len(token) == TOKEN_BYTES
    assert Tokens(instance(1, 2), bytes).open(token, PEER, b"source", at + 1) == b"original"
    assert Tokens(instance(0), bytes).open(token, PEER, b"source", at + 1) is Refusal.FORGED
    earlier = Tokens(instance(0, 1), bytes).seal(PEER, b"original", b"source", at - 1)
    assert earlier[:4] != token[:4]
    assert Tokens(instance(0, 1), bytes).open(earlier, PEER, b"source", at + 1) == b"original"


def test_a_retry_token_given_before_there_were_epochs_is_still_taken() -> None:
    secret = b"s" * 32
    salt = b"salt" * 4
    key = blake2b(salt, key=blake2b(b"", key=secret, person=b"retry tokens", digest_size=32).digest(), digest_size=16).digest()
    host = bytes(10) + b"\xff\xff" + bytes([192, 0, 2, 1])
    content = int(BEGIN * 1000).to_bytes(8) + host + (4711).to_bytes(2) + b"\x08original".ljust(21, b"\0") + b"\x06source".ljust(21, b"\0")
    token = b"qpR\x01" + salt + AESGCM(key).encrypt(bytes(12), content, None)
    assert Tokens(Keyring.alone(secret), bytes).open(token, PEER, b"source", BEGIN) == b"original"


def test_a_token_of_every_epoch_is_told_from_others() -> None:
    at = BEGIN
    heads = set()
    for epoch in range(256):
        keys = Keyring(KeySet((Key(epoch, BEGIN, b"k" * 32),), b""), b"")
        token = Tokens(keys, bytes).seal(PEER, b"original", b"source", at)
        assert Tokens(keys, bytes).open(token, PEER, b"source", at) == b"original"
        heads.add(token[:4])
    assert len(heads) == 256


# Connection IDs and resets


def form(number: int, server_id: bytes = b"west") -> Routable:
    keys = instance(0, 1, 2)
    epoch = KEYS[number].epoch
    return Routable(Layout(config_id(epoch), 4, 8, key=keys.cid_key(epoch)), server_id, epoch)


def minter(keys: Keyring, present: int | None, known: tuple[int, ...] = (), seed: int = 1) -> Minter:
    random_bytes = random.Random(seed).randbytes
    return Minter(keys, random_bytes, None if present is None else form(present), known=[form(number) for number in known])


def test_an_instance_in_the_place_of_another_makes_its_reset_tokens() -> None:
    """The same server ID on another machine, before, at and after a rotation."""
    old, new = instance(0, 1, own=b"one"), instance(0, 1, own=b"two")
    for mine, its in ((0, 1), (1, 0), (0, 0)):
        issued = minter(old, mine, known=(its,))
        successor = minter(new, its, known=(mine,), seed=2)
        cid, token = issued()
        assert config_id_of(cid) == config_id(KEYS[mine].epoch)
        assert successor.token(cid + b"the rest") == token
    reset = Resets(successor, bytes).answer(cid + bytes(60), 100, 0.0)
    assert reset is not None
    assert reset.endswith(token)


@pytest.mark.parametrize("routable", [None, Routable(Layout(0, 4, 8), b"west")], ids=["opaque", "in clear"])
def test_of_an_id_that_shows_no_epoch_only_its_own_machine_makes_the_token(routable: Routable | None) -> None:
    """RFC 9000, section 21.11: else a copied packet, sent to another instance, would end a connection that lives."""
    mine, again, other = (Minter(instance(0, own=own), bytes, routable) for own in (b"one", b"one", b"two"))
    cid, token = mine()
    assert again.token(cid) == token
    assert other.token(cid) != token


def test_an_id_of_another_server_is_not_reset() -> None:
    keys = instance(0)
    east = Minter(keys, random.Random(1).randbytes, form(0, b"east"))
    assert minter(keys, 0).token(east()[0]) is None


def test_the_next_form_is_known_before_its_key_begins_and_goes_on_where_it_was() -> None:
    keys = instance(0, 1)
    mint = minter(keys, 0, known=(1,))
    issued = [mint() for _ in range(5)]
    assert mint.change(form(1), [form(0)])
    issued += [mint() for _ in range(5)]
    assert mint.change(form(0), [form(1)])
    issued += [mint() for _ in range(5)]
    assert len({cid for cid, _ in issued}) == 15
    assert all(mint.token(cid) == token for cid, token in issued)
    assert mint.generation == 2
    keys.replace(instance(0, 1, 2).keys)
    assert not mint.change(form(0), [form(1), form(2)])
    assert mint.generation == 2
    other = Minter(instance(0, 1, 2), bytes, form(2))
    cid, token = other()
    assert mint.token(cid) == token


# Affinity


def test_the_key_of_a_connection_follows_what_seals() -> None:
    clock = Clock(BEGIN)
    keys = instance(0, 1)
    sessions = Sessions(lambda _: profile("a.example"), keys, clock, None, b"epoch")

    def key() -> bytes:
        session = sessions.begin("a.example", b"dcid")
        assert session is not None
        return session.ready(PEER, resumed=False).affinity

    assert key() == connection_key(keys.derive(Purpose.HASH, 250), b"dcid")
    clock.now += 3600
    assert key() == connection_key(keys.derive(Purpose.HASH, 251), b"dcid")


def test_a_gate_takes_what_another_asked_for() -> None:
    """With ``retry: always``, and the wall clock that says which key seals."""
    clock = Clock(BEGIN + 3600)
    settings, mint = QuicSettings(retry="always"), minter(instance(0), None)
    one, other = (Gate(settings, instance(*numbers), mint, bytes, clock) for numbers in ((0, 1), (1,)))
    token = one._tokens.seal(PEER, b"original", b"source", clock.now)
    assert other._tokens.open(token, PEER, b"source", clock.now) == b"original"
