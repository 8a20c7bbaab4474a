"""Envelopes: what is opened, what is refused and why, and what is remembered."""

from collections import Counter
from itertools import count

import pytest

from proxy.cluster import envelope as e
from proxy.cluster.envelope import ANSWER, DATAGRAM, Opener, Sealer, packed, unpacked

KEY, OTHER_KEY = b"k" * 32, b"o" * 32
NOW = 1_800_000_000.0
CLIENT, LOCAL = packed(("198.51.100.7", 50123)), packed(("2001:db8::1", 443))


def sealer(seed: int = 1, epoch: int = 3, key: bytes = KEY) -> Sealer:
    names = count(seed << 32)
    return Sealer(epoch, key, lambda size: next(names).to_bytes(size))


def sealed(by: Sealer, payload: bytes = b"datagram", now: float = NOW) -> bytes:
    return by.seal(DATAGRAM, payload, now, steer=7, port=8443, back=9, client=CLIENT, local=LOCAL, ecn=2)


def opener() -> Opener:
    return Opener({3: KEY})


def test_an_envelope_brings_all_that_was_put_in() -> None:
    data = sealer().seal(ANSWER, b"aaaabbbbcc", NOW, steer=7, port=8443, back=9, client=CLIENT, local=LOCAL, segment=4, ecn=1)
    assert len(data) == 10 + e.OVERHEAD
    assert e.OVERHEAD <= 100  # what docs/explanation tells to leave room for
    found = opener().open(data, NOW)
    assert found == e.Envelope(int(NOW * 1e6), ANSWER, 1, 8443, 9, 4, CLIENT, LOCAL, b"aaaabbbbcc")
    assert found.datagrams() == [b"aaaa", b"bbbb", b"cc"]


def test_the_steer_stands_where_a_kernel_finds_it() -> None:
    data = sealed(sealer())
    assert data[:4] == b"\x01\x03\x00\x07"


def test_an_envelope_is_opened_once_and_by_the_same_key() -> None:
    one, by = opener(), sealer()
    data = sealed(by)
    assert one.open(data, NOW) is not None
    assert one.open(data, NOW) is None
    assert Opener({3: OTHER_KEY}).open(data, NOW) is None
    assert one.refused == {"replayed": 1}


def test_what_comes_late_is_opened_within_the_window() -> None:
    one, by = opener(), sealer()
    datagrams = [sealed(by) for _ in range(e.WINDOW + 2)]
    assert one.open(datagrams[-1], NOW) is not None
    assert one.open(datagrams[2], NOW) is not None
    assert one.open(datagrams[2], NOW) is None
    assert one.open(datagrams[1], NOW) is None
    assert one.refused == {"replayed": 2}


def test_a_leap_beyond_the_window_leaves_nothing_of_before_open() -> None:
    one, by = opener(), sealer()
    first, *_, last = [sealed(by) for _ in range(e.WINDOW + 5)]
    assert one.open(first, NOW) is not None
    assert one.open(last, NOW) is not None
    assert one.open(first, NOW) is None


@pytest.mark.parametrize("skew", [-e.FRESH - 0.01, e.FRESH + 0.01])
def test_what_is_too_old_or_from_the_future_is_refused_and_its_sender_not_remembered(skew: float) -> None:
    one = opener()
    assert one.open(sealed(sealer()), NOW + skew) is None
    assert one.refused == {"stale": 1}
    assert one.senders == 0


@pytest.mark.parametrize("skew", [-e.FRESH, e.FRESH])
def test_clocks_may_differ(skew: float) -> None:
    assert opener().open(sealed(sealer()), NOW + skew) is not None


def test_what_a_forgotten_sender_sent_before_is_stale(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(e, "SENDERS", 1)
    one, by = opener(), sealer()
    data = sealed(by, now=NOW + e.FRESH)  # its clock is ahead
    assert one.open(data, NOW) is not None
    later = NOW + e.REMEMBERED + 0.01
    assert one.open(sealed(sealer(2), now=later), later) is not None
    monkeypatch.setattr(e, "SENDERS", 2)
    assert one.open(data, later) is None
    assert one.refused == {"stale": 1}


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "short"),
        (sealed(sealer())[: e.OVERHEAD - 1], "short"),
        (b"\x02" + sealed(sealer())[1:], "version"),
        (b"\x01\x04" + sealed(sealer())[2:], "epoch"),
        (sealed(sealer())[:-1], "forged"),
        (sealed(sealer()) + b"x", "forged"),
        (sealed(sealer(key=OTHER_KEY)), "forged"),
        (b"\x01\x03" + bytes(65505), "forged"),
        (sealed(sealer(), b""), "malformed"),
        (sealer().seal(3, b"x", NOW), "malformed"),
    ],
)
def test_what_is_none_of_ours_is_refused_and_counted(data: bytes, reason: str) -> None:
    one = opener()
    assert one.open(data, NOW) is None
    assert one.refused == Counter([reason])
    assert reason in e.REFUSALS
    assert one.senders == 0


def test_an_envelope_holds_so_much() -> None:
    by = sealer()
    assert len(by.seal(DATAGRAM, bytes(e.MAX_PAYLOAD), NOW)) == 65507
    with pytest.raises(ValueError, match="more than an envelope holds"):
        by.seal(DATAGRAM, bytes(e.MAX_PAYLOAD + 1), NOW)
    with pytest.raises(ValueError, match="more than an envelope holds"):
        by.seal(DATAGRAM, bytes(e.MAX_SEGMENTS + 1), NOW, segment=1)


def test_datagrams_without_number_are_refused_though_they_be_authentic() -> None:
    by, one = sealer(), opener()
    envelope = by.seal(DATAGRAM, bytes(e.MAX_SEGMENTS), NOW, segment=1)
    assert one.open(envelope, NOW) is not None
    many = e.MAX_SEGMENTS
    try:
        e.MAX_SEGMENTS = many + 1  # of another version of this code
        envelope = by.seal(DATAGRAM, bytes(many + 1), NOW, segment=1)
    finally:
        e.MAX_SEGMENTS = many
    assert one.open(envelope, NOW) is None
    assert one.refused == {"malformed": 1}


def test_a_full_table_refuses_new_senders_and_keeps_the_others() -> None:
    one, first = opener(), sealer()
    assert one.open(sealed(first), NOW) is not None
    for number in range(1, e.SENDERS):
        assert one.open(sealed(sealer(number + 1)), NOW) is not None
    late = sealer(e.SENDERS + 1)
    assert one.open(sealed(late), NOW + 1.5) is None
    assert one.refused == {"full": 1}
    assert one.open(sealed(first, now=NOW + 25), NOW + 25) is not None
    assert one.open(sealed(late, now=NOW + 31), NOW + 31) is not None  # all but the first were silent
    assert one.senders == 2


def test_forgeries_under_any_name_leave_nothing_behind() -> None:
    one, data = opener(), sealed(sealer())
    for number in range(1000):
        assert one.open(data[:4] + number.to_bytes(16) + data[20:], NOW) is None
    assert one.senders == 0
    assert one.refused == {"forged": 1000}


def test_forgeries_under_a_known_name_do_not_move_its_window() -> None:
    one, by = opener(), sealer()
    assert one.open(sealed(by), NOW) is not None
    data = sealed(by)
    assert one.open(data[:20] + b"\xff" * 8 + data[28:], NOW) is None
    assert one.open(data, NOW) is not None


def test_both_keys_open_during_a_rotation_and_the_window_goes_on() -> None:
    one, by = opener(), sealer()
    before = sealed(by)
    assert one.open(before, NOW) is not None
    one.use({3: KEY, 4: OTHER_KEY})
    assert one.open(before, NOW) is None
    by.use(4, OTHER_KEY)
    assert one.open(sealed(by), NOW) is not None
    assert one.open(sealed(sealer(2)), NOW) is not None
    assert one.refused == {"replayed": 1}


def test_a_key_that_was_taken_away_opens_nothing_any_more() -> None:
    one, by = opener(), sealer()
    assert one.open(sealed(by), NOW) is not None
    one.use({4: OTHER_KEY})
    assert one.open(sealed(by), NOW) is None
    assert one.refused == {"epoch": 1}


def test_a_worn_key_is_left_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(e, "PER_SENDER", 2)
    one, by = opener(), sealer()
    datagrams = [sealed(by) for _ in range(5)]
    assert len({data[4:20] for data in datagrams}) == 3
    assert all(one.open(data, NOW) for data in datagrams)


@pytest.mark.parametrize("address", [("192.0.2.1", 1), ("2001:db8::1", 65535), ("0.0.0.0", 0)])
def test_addresses_go_there_and_back(address: tuple[str, int]) -> None:
    assert unpacked(packed(address)) == address
