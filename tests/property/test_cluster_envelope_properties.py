"""What envelopes promise whatever is put in, and whatever comes."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from proxy.cluster.envelope import DATAGRAM, HELLO, MAX_SEGMENTS, REFUSALS, WINDOW, Envelope, Opener, Sealer

KEY = b"k" * 32
NOW = 1_800_000_000.0

words = st.integers(0, 65535)
addresses = st.binary(min_size=18, max_size=18)


def sealer() -> Sealer:
    return Sealer(0, KEY, lambda size: b"s" * size)


fields = st.fixed_dictionaries(
    {"steer": words, "port": words, "back": words, "client": addresses, "local": addresses, "ecn": st.integers(0, 3)}
)


@given(st.integers(DATAGRAM, HELLO), st.binary(min_size=1, max_size=3000), fields, st.data())
def test_what_is_sealed_is_opened_as_it_was(kind: int, payload: bytes, given: dict[str, Any], data: st.DataObject) -> None:
    segment = data.draw(st.integers(-(-len(payload) // MAX_SEGMENTS), len(payload)))
    found = Opener({0: KEY}).open(sealer().seal(kind, payload, NOW, segment=segment, **given), NOW)
    given.pop("steer")
    assert found == Envelope(time=int(NOW * 1e6), kind=kind, segment=segment, payload=payload, **given)
    assert b"".join(found.datagrams()) == payload
    assert len(found.datagrams()) <= MAX_SEGMENTS


@given(st.binary(max_size=200) | st.binary(max_size=200).map(b"\x01\x00".__add__))
def test_any_bytes_are_refused_and_counted_once(data: bytes) -> None:
    opener = Opener({0: KEY})
    assert opener.open(data, NOW) is None
    assert opener.refused.total() == 1
    assert set(opener.refused) <= set(REFUSALS)
    assert opener.senders == 0


@given(st.integers(0, 102), st.integers(1, 255))
def test_a_changed_byte_anywhere_is_seen(at: int, change: int) -> None:
    text = bytearray(sealer().seal(DATAGRAM, b"payload", NOW))
    text[at % len(text)] ^= change
    assert Opener({0: KEY}).open(bytes(text), NOW) is None


@given(st.lists(st.integers(0, 4 * WINDOW), max_size=200))
def test_in_any_order_each_is_opened_once_at_most_and_at_least_within_the_window(order: list[int]) -> None:
    by, opener = sealer(), Opener({0: KEY})
    texts = [by.seal(DATAGRAM, b"x", NOW) for _ in range(4 * WINDOW + 1)] if order else []
    seen: set[int] = set()
    for number in order:
        opened = opener.open(texts[number], NOW) is not None
        assert opened == (number not in seen and (not seen or number > max(seen) - WINDOW))
        if opened:
            seen.add(number)
