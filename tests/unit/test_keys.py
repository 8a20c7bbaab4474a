"""Key files: what they say, what is wrong with them, which key seals when, and which keys follow."""

import base64
import hashlib
import hmac
import pickle
from math import inf

import pytest

from proxy.keys import MAX_TEXT, Key, KeyFileError, Keyring, KeySet, Purpose, config_id, parse, parse_time, shown_time

BEGIN = 1_800_000_000.0  # 2027-01-15T08:00:00Z
HOUR = 3600.0


def encoded(fill: int) -> str:
    return base64.b64encode(bytes([fill]) * 32).decode()


FIRST = Key(4, BEGIN, bytes([1]) * 32)
SECOND = Key(5, BEGIN + HOUR, bytes([2]) * 32)
FILE = f"# made by hand\n\n5 2027-01-15T09:00:00Z {encoded(2)}   # the next\nring {encoded(9)}\n4 2027-01-15T08:00:00Z {encoded(1)}\n"


def test_a_file_holds_keys_in_any_order_comments_and_the_ring() -> None:
    assert parse(FILE, "cluster.key") == KeySet((FIRST, SECOND), bytes([9]) * 32)


def test_a_line_that_is_written_is_read_again() -> None:
    assert parse(f"{SECOND.line()}\r\n{FIRST.line()}", "f").keys == (FIRST, SECOND)


def test_a_file_without_a_ring_takes_the_first_key_for_it() -> None:
    keys = parse(f"{SECOND.line()}\n{FIRST.line()}", "f")
    assert keys.ring == FIRST.secret
    assert keys.ring_key not in (FIRST.secret, Keyring(keys, b"").derive(Purpose.HASH, 4))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("4", "f:1: 1 word; expected three: EPOCH BEGIN KEY"),
        (f"4 {encoded(1)}", "f:1: 2 words; expected three: EPOCH BEGIN KEY"),
        ("4 a b c", "f:1: 4 words; expected three: EPOCH BEGIN KEY"),
        (f"256 2027-01-15T08:00:00Z {encoded(1)}", "f:1: the epoch is '256'; expected a number from 0 to 255"),
        (f"-1 2027-01-15T08:00:00Z {encoded(1)}", "f:1: the epoch is '-1'; expected a number from 0 to 255"),
        (f"\u0663 2027-01-15T08:00:00Z {encoded(1)}", "f:1: the epoch is '\u0663'; expected a number from 0 to 255"),
        (f"{encoded(1)} 2027-01-15T08:00:00Z 4", "f:1: the epoch is a word of 44 characters; expected a number from 0 to 255"),
        (f"4 tomorrow {encoded(1)}", "f:1: the begin is 'tomorrow'; expected a time in UTC like 2026-11-23T20:00:00Z"),
        (
            f"4 2027-01-15T08:00:00 {encoded(1)}",
            "f:1: the begin is '2027-01-15T08:00:00'; expected a time in UTC like 2026-11-23T20:00:00Z",
        ),
        (
            f"4 0001-01-01T00:00:00Z {encoded(1)}",
            "f:1: the begin is '0001-01-01T00:00:00Z'; expected a time in UTC like 2026-11-23T20:00:00Z",
        ),
        (
            f"4 9999-12-31T23:59:59-23:59 {encoded(1)}",
            "f:1: the begin is '9999-12-31T23:59:59-23:59'; expected a time in UTC like 2026-11-23T20:00:00Z",
        ),
        (
            f"4 {encoded(1)} 2027-01-15T08:00:00Z",
            "f:1: the begin is a word of 44 characters; expected a time in UTC like 2026-11-23T20:00:00Z",
        ),
        ("4 2027-01-15T08:00:00Z c2hvcnQ=", "f:1: the key has 5 bytes; expected 32 in base64 (44 characters)"),
        ("4 2027-01-15T08:00:00Z secret!", "f:1: the key is no base64; expected 32 bytes in it (44 characters)"),
        ("4 2027-01-15T08:00:00Z s\u00e9cret", "f:1: the key is no base64; expected 32 bytes in it (44 characters)"),
        ("ring", "f:1: 1 word; expected two: 'ring' and 32 bytes in base64"),
        ("ring c2hvcnQ=", "f:1: the key has 5 bytes; expected 32 in base64 (44 characters)"),
        ("", "f: no key; expected lines of 'EPOCH BEGIN KEY', as 'qproxy keygen' writes them"),
        ("# nothing", "f: no key; expected lines of 'EPOCH BEGIN KEY', as 'qproxy keygen' writes them"),
        (f"ring {encoded(1)}", "f: no key; expected lines of 'EPOCH BEGIN KEY', as 'qproxy keygen' writes them"),
        ("x" * (MAX_TEXT + 1), "f: more than 16384 characters; expected at most 4 keys"),
    ],
)
def test_each_mistake_is_told_with_its_line(line: str, said: str) -> None:
    with pytest.raises(KeyFileError) as raised:
        parse(line, "f")
    assert raised.value.problems == (said,)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (Key(4, BEGIN + 9, b"b" * 32), "f:2: epoch 4 stands on line 1 too; expected each once"),
        (
            Key(11, BEGIN + 9, b"b" * 32),
            "f:2: epochs 11 and 4 (line 1) make connection IDs of one configuration ID, 4; expected epochs that differ modulo 7",
        ),
        (Key(5, BEGIN, b"b" * 32), "f:2: begins at the same time as the key on line 1; expected another time"),
        (Key(5, BEGIN + 9, FIRST.secret), "f:2: the same key as on line 1; expected another one"),
    ],
)
def test_keys_that_cant_be_told_apart_are_refused(other: Key, said: str) -> None:
    with pytest.raises(KeyFileError) as raised:
        parse(f"{FIRST.line()}\n{other.line()}\n", "f")
    assert raised.value.problems == (said,)


def test_all_mistakes_are_told_at_once_and_no_key_is_repeated() -> None:
    lines = [Key(epoch, BEGIN + epoch, bytes([epoch]) * 32).line() for epoch in range(5)]
    with pytest.raises(KeyFileError) as raised:
        parse("\n".join(["what", *lines, f"ring {encoded(7)}", f"ring {encoded(8)}"]), "f")
    assert raised.value.problems == (
        "f:1: 1 word; expected three: EPOCH BEGIN KEY",
        "f:8: a second 'ring'; expected one line of it",
        "f: 5 keys; expected 4 at most: remove the oldest",
    )
    assert not any(encoded(fill) in str(raised.value) for fill in range(9))


def test_the_key_that_began_last_seals() -> None:
    keys = KeySet((SECOND, FIRST), b"")
    assert [keys.sealing(at).epoch for at in (BEGIN - 1, BEGIN, BEGIN + HOUR - 1, BEGIN + HOUR, 2 * BEGIN)] == [4, 4, 4, 5, 5]
    assert [keys.next_begin(at) for at in (BEGIN - 1, BEGIN, BEGIN + HOUR - 1, BEGIN + HOUR)] == [BEGIN + HOUR] * 3 + [inf]


def test_a_key_follows_by_hkdf_from_its_epoch_and_purpose() -> None:
    ring = Keyring(KeySet((FIRST, SECOND), b"r" * 32), b"own")
    extracted = hmac.digest(bytes(32), SECOND.secret, hashlib.sha256)  # RFC 5869, section 2
    expected = hmac.digest(extracted, b"qproxy ticket 5" + b"\x01", hashlib.sha256)
    assert ring.derive(Purpose.TICKET, 5) == expected
    every = [ring.derive(purpose, epoch) for purpose in Purpose for epoch in (4, 5)]
    assert len({*every, ring.keys.ring_key, FIRST.secret, SECOND.secret}) == len(every) + 3
    assert ring.cid_key(4) == ring.derive(Purpose.CID, 4)[:16]


def test_a_replaced_set_is_seen_by_whoever_has_the_ring() -> None:
    ring = Keyring(KeySet((FIRST,), b"r"), b"own")
    before = ring.derive(Purpose.RETRY, 4)
    other = Key(4, BEGIN, b"other".ljust(32))
    ring.replace(KeySet((other, SECOND), b"r"))
    assert ring.derive(Purpose.RETRY, 4) != before
    assert (ring.opens(4), ring.opens(5), ring.opens(6)) == (True, True, False)
    ring.replace(KeySet((SECOND,), b"r"))
    assert not ring.opens(4)
    with pytest.raises(KeyError):
        ring.derive(Purpose.RETRY, 4)


def test_a_configuration_id_names_an_epoch_of_those_that_there_are() -> None:
    ring = Keyring(KeySet((Key(253, BEGIN, b"a" * 32), Key(0, BEGIN + 1, b"b" * 32)), b"r"), b"own")
    assert (config_id(253), config_id(0)) == (1, 0)
    assert [ring.epoch_of(config) for config in range(7)] == [0, 253, None, None, None, None, None]


def test_the_secret_of_the_state_folder_is_used_as_it_always_was() -> None:
    secret = b"s" * 32
    ring = Keyring.alone(secret)
    assert ring.sealing(0.0) == 0
    assert ring.keys.next_begin(0.0) == inf
    assert {ring.derive(purpose, 0) for purpose in (Purpose.TICKET, Purpose.RETRY, Purpose.RESET, Purpose.HASH)} == {secret}
    assert (ring.keys.ring_key, ring.own) == (secret, secret)
    assert len({secret, ring.derive(Purpose.CID, 0), ring.derive(Purpose.ENVELOPE, 0)}) == 3


def test_a_set_crosses_to_other_processes_and_tells_no_key() -> None:
    keys = parse(FILE, "f")
    assert pickle.loads(pickle.dumps(keys)) == keys
    assert "x01" not in repr(keys)
    assert "x09" not in repr(keys)


def test_times_are_read_in_any_offset_and_shown_in_utc() -> None:
    assert shown_time(parse_time("2027-01-15T09:00:00+01:00")) == "2027-01-15T08:00:00Z"
    with pytest.raises(ValueError, match="'noon' is no time of day in UTC; expected one like 2026-11-23T20:00:00Z"):
        parse_time("noon")
