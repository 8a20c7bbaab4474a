"""Hostile connection IDs, Retry tokens and session tickets, for a given time: ``python -m tests.fuzz.quic_tokens --seconds 60``.

Each case is a number (``runner.py``): one layout of connection IDs, one token and one ticket of ours, and what becomes of them when they
are bent, cut or made up. What is asked of it: nothing raises; what isn't ours is refused, and for the reason that the documentation gives;
what is decoded encodes to the same bytes.
"""

from random import Random

from balancer.quic_lb import Codec, Decoded, Layout, NotRoutable, config_id_of
from proxy.engine.quic import packets
from proxy.engine.quic.retry import Refusal, Tokens
from proxy.engine.quic.settings import MIN_DATAGRAM
from proxy.engine.quic.tickets import Tickets
from proxy.keys import Keyring
from tests.fuzz.runner import main

TRIES = 50
"""Things made up of each kind in one case."""


def bent(random: Random, data: bytes) -> bytes:
    """Not *data*, and mostly near it."""
    kind = random.randrange(5)
    if kind == 0:
        return random.randbytes(random.choice((0, 1, 4, len(data), 20, 300)))
    changed = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 8))):
        at = random.randint(0, len(changed))
        if kind == 1:
            del changed[at : at + random.choice((1, 4, 100))]
        elif kind == 2:
            changed[at:at] = random.randbytes(random.choice((1, 4, 100)))
        elif at < len(changed):
            changed[at] ^= 1 << random.randrange(8)
    return bytes(changed)


def connection_ids(random: Random) -> None:
    slot = random.random() < 0.5
    server_id = random.randint(1, 15 - slot)
    nonce = random.randint(4, 19 - slot - server_id)
    key = random.randbytes(16) if random.random() < 0.7 else None
    layout = Layout(random.randrange(7), server_id, nonce, slot=slot, key=key, length_in_first=random.random() < 0.5)
    codec = Codec(layout)
    ours = random.randbytes(server_id), random.randbytes(nonce)
    cid = codec.encode(*ours, slot=random.randrange(256), low_bits=random.randrange(32))
    decoded = codec.decode(cid)
    assert (decoded.server_id, decoded.nonce) == ours
    for _ in range(TRIES):
        made_up = bent(random, cid)
        config_id_of(made_up)
        found = decode(codec, made_up)
        if found is not None:
            again = codec.encode(found.server_id, found.nonce, slot=found.slot or 0, low_bits=made_up[0])
            assert again[1:] == made_up[1 : layout.cid_bytes]


def decode(codec: Codec, cid: bytes) -> Decoded | None:
    try:
        return codec.decode(cid)
    except NotRoutable:
        return None


def tokens(random: Random) -> None:
    ours = Tokens(Keyring.alone(random.randbytes(16)), random.randbytes)
    peer = random.choice(("192.0.2.1", "2001:db8::1", "::ffff:192.0.2.1")), random.randrange(65536)
    original, source, now = (
        random.randbytes(random.choice((0, 8, 20))),
        random.randbytes(random.choice((0, 8, 20))),
        random.uniform(1e9, 4e9),
    )
    token = ours.seal(peer, original, source, now)
    assert ours.open(token, peer, source, now) == original
    for _ in range(TRIES):
        made_up = bent(random, token)
        assert made_up == token or ours.open(made_up, peer, source, now) in {Refusal.UNKNOWN, Refusal.FORGED}


def tickets(random: Random) -> None:
    now = random.uniform(1e9, 4e9)
    ours = Tickets(Keyring.alone(random.randbytes(32)), lambda: now, random.randbytes, lambda: 0.0)
    terms, affinity, state = random.randbytes(32), random.randbytes(16), random.randbytes(random.choice((0, 100, 2000)))
    ticket = ours.seal(terms, affinity, state)
    opened = ours.open(terms, ticket)
    assert opened is not None
    assert (opened.affinity, opened.state) == (affinity, state)
    others = bent(random, terms)
    assert others == terms or ours.open(others, ticket) is None
    for _ in range(TRIES):
        made_up = bent(random, ticket)
        assert made_up == ticket or ours.open(terms, made_up) is None


def heads(random: Random) -> None:
    """Of datagrams: what the endpoint looks at before anything is authentic."""
    first = random.choice((0xC0, 0xD0, 0xE0, 0xF0, 0x40, 0x00, random.randrange(256)))
    version = random.choice((b"\0\0\0\1", b"\x6b\x33\x43\xcf", bytes(4), random.randbytes(4)))
    ids = b"".join(bytes((size,)) + random.randbytes(min(size, 20)) for size in random.choices((0, 8, 20, 21, 255), k=2))
    datagram = bytes((first,)) + version + ids + random.randbytes(random.choice((0, 1, 3, 40, 1200)))
    for end in (len(datagram), random.randint(0, len(datagram))):
        packets.destination_of(datagram[:end], random.choice((8, 18, 20)))
        header = packets.read_long_header(datagram[:end])
        if header is not None:
            answer = packets.version_negotiation(header, random.randrange(256))
            assert len(answer) < MIN_DATAGRAM


def check(case: int) -> int:
    """Run one case."""
    random = Random(case)
    for kind in (connection_ids, tokens, tickets, heads):
        kind(random)
    return 1


if __name__ == "__main__":
    main("tests.fuzz.quic_tokens", check, __doc__)
