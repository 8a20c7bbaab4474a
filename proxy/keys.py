"""The keys that instances share, and what follows from them. Pure: text, and the time of day, are arguments.

A key file is text: comments (``#``), empty lines, one line for each key, and at most one for the ring::

    ring KEY
    EPOCH BEGIN KEY

EPOCH is a number from 0 to 255, BEGIN the time from which on the key seals (ISO 8601, ``2026-11-23T20:00:00Z``), KEY 32 bytes in base64.
Every key opens, also before its begin; the one that began last seals. So instances may take a file with one key more in any order: who has
not yet taken it is asked to open nothing that it can't, until that key's begin, and who has opens both.

From each key follow others, one for each purpose. No key of the file is used by itself. What consistent hashing is keyed with is no
secret to renew, and renewing it would move every client to another backend: so it stands by itself, and stays through rotations.

Knows neither files nor who uses the keys.
"""

import base64
import binascii
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from math import inf

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from balancer.quic_lb import KEY_BYTES as CID_KEY_BYTES
from balancer.quic_lb import UNROUTABLE as CONFIG_IDS

SECRET_BYTES = 32
"""Of a key in the file, and of each that follows from it."""

EPOCHS = 256
"""An epoch is one byte wherever it is named."""

MAX_KEYS = 4
"""In one file: what seals, what comes next, and two of before whose tickets may still come. QUIC-LB tells seven apart."""

MAX_TEXT = 16 * 1024
"""Characters of a key file; four keys and the ring's have 400, the rest is for comments."""

TIME_FORM = "%Y-%m-%dT%H:%M:%SZ"
"""How the file names a time."""


class Purpose(StrEnum):
    """What a key serves for."""

    TICKET = "ticket"
    """Session tickets (RFC 8446, section 4.6.1)."""
    RETRY = "retry"
    """Tokens of Retry packets (RFC 9000, section 8.1.2)."""
    RESET = "reset"
    """Stateless reset tokens (RFC 9000, section 10.3)."""
    CID = "cid"
    """Connection IDs that name a server (QUIC-LB)."""
    HASH = "hash"
    """Keyed hashes that clients are dealt to backends by."""
    ENVELOPE = "envelope"
    """Datagrams between instances, and between the tier and instances."""
    RING = "ring"
    """Where backends stand on the ring of consistent hashing."""


class KeyFileError(Exception):
    """A key file that can't be used: one ``name:line: what is wrong; expected what`` for each mistake. Never repeats a key."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


@dataclass(frozen=True, slots=True)
class Key:
    """One key of the file."""

    epoch: int
    """0 to 255."""
    begin: float
    """Seconds since 1970 from which on it seals."""
    secret: bytes = field(repr=False)

    def line(self) -> str:
        """As it stands in a file."""
        return f"{self.epoch} {shown_time(self.begin)} {base64.b64encode(self.secret).decode()}"


@dataclass(frozen=True, slots=True)
class KeySet:
    """What one key file says. Equal sets make equal keys."""

    keys: tuple[Key, ...]
    """Whoever begins first stands first; at least one."""
    ring: bytes = field(repr=False)
    """What consistent hashing is keyed with, 32 bytes."""
    shared: bool = True
    """Whether other machines may have it. What is not shared is the state folder's secret."""

    @classmethod
    def alone(cls, secret: bytes) -> "KeySet":
        """A cluster of one: the secret of the state folder is its only key, of epoch 0."""
        return cls((Key(0, -inf, secret),), secret, shared=False)

    @property
    def ring_key(self) -> bytes:
        """What keys the ring of consistent hashing, 32 bytes; no rotation changes it."""
        return _expanded(self.ring, f"qproxy {Purpose.RING}") if self.shared else self.ring

    def __post_init__(self) -> None:
        """Put the keys in order. Raises ValueError where there is none."""
        if not self.keys:
            msg = "a key set has at least one key"
            raise ValueError(msg)
        object.__setattr__(self, "keys", tuple(sorted(self.keys, key=lambda key: key.begin)))

    def sealing(self, now: float) -> Key:
        """The key that seals at *now*, seconds since 1970: the one that began last, or the first where none has begun."""
        return next((key for key in reversed(self.keys) if key.begin <= now), self.keys[0])

    def next_begin(self, now: float) -> float:
        """When another key than that of *now* seals, in seconds since 1970; infinity where none follows."""
        sealing = self.sealing(now).begin
        return next((key.begin for key in self.keys if key.begin > max(now, sealing)), inf)


class Keyring:
    """The keys of a process: those that follow from the key set that it has now, *keys*.

    One object for the life of the process, so that whoever uses it sees what ``replace`` brings. *own* is the secret of the state folder,
    for what no other machine is to know.
    """

    def __init__(self, keys: KeySet, own: bytes) -> None:
        self.own = own
        self.opened: dict[Purpose, Counter[int]] = {purpose: Counter() for purpose in (Purpose.TICKET, Purpose.RETRY, Purpose.ENVELOPE)}
        """How much was opened so far, by the epoch of its key: whoever opens counts here."""
        self._derived: dict[tuple[Purpose, int], bytes] = {}
        self.replace(keys)

    @classmethod
    def alone(cls, secret: bytes) -> "Keyring":
        """Those of a machine that shares none: all follow from the secret of its state folder."""
        return cls(KeySet.alone(secret), secret)

    def replace(self, keys: KeySet) -> None:
        """Have these keys from now on."""
        self.keys = keys
        self._secrets = {key.epoch: key.secret for key in keys.keys}
        self._epochs = {config_id(key.epoch): key.epoch for key in keys.keys}
        self._derived.clear()
        self.ring_key = keys.ring_key

    def sealing(self, now: float) -> int:
        """The epoch that seals at *now*, seconds since 1970."""
        return self.keys.sealing(now).epoch

    def opens(self, epoch: int) -> bool:
        """Whether there is a key of this epoch."""
        return epoch in self._secrets

    def derive(self, purpose: Purpose, epoch: int) -> bytes:
        """The key for *purpose*, 32 bytes: HKDF-SHA256 (RFC 5869). Raises KeyError where there is no key of this *epoch*.

        Of the state folder's secret, those that are not for other machines are the secret itself, as they were before there were epochs:
        what was given to clients then is good still. Their users hash it each in a way of their own.
        """
        found = self._derived.get((purpose, epoch))
        if found is None:
            secret = self._secrets[epoch]
            if self.keys.shared or purpose in (Purpose.CID, Purpose.ENVELOPE):
                secret = _expanded(secret, f"qproxy {purpose} {epoch}")
            found = self._derived[purpose, epoch] = secret
        return found

    def epoch_of(self, config: int) -> int | None:
        """The epoch whose connection IDs have the configuration ID *config* (0 to 6), or None."""
        return self._epochs.get(config)

    def cid_key(self, epoch: int) -> bytes:
        """The key of QUIC-LB for the connection IDs of *epoch*, 16 bytes. Raises KeyError where there is no such epoch."""
        return self.derive(Purpose.CID, epoch)[:CID_KEY_BYTES]


def config_id(epoch: int) -> int:
    """The configuration ID (QUIC-LB) of the connection IDs of *epoch*: 0 to 6."""
    return epoch % CONFIG_IDS


def parse(text: str, name: str) -> KeySet:
    """The keys that *text* holds; *name* is its file's, for messages. Raises KeyFileError with all that is wrong."""
    if len(text) > MAX_TEXT:
        raise KeyFileError([f"{name}: more than {MAX_TEXT} characters; expected at most {MAX_KEYS} keys"])
    problems: list[str] = []
    keys: dict[int, Key] = {}  # by line
    ring: bytes | None = None
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].split()
        try:
            if words and words[0] == "ring":
                _need(ring is None, "a second 'ring'; expected one line of it")
                ring = _ring_of(words)
            elif words:
                key = _key_of(words)
                _apart(key, keys)
                keys[number] = key
        except _Mistake as mistake:
            problems.append(f"{name}:{number}: {mistake}")
    if len(keys) > MAX_KEYS:
        problems.append(f"{name}: {len(keys)} keys; expected {MAX_KEYS} at most: remove the oldest")
    if not keys and not problems:
        problems.append(f"{name}: no key; expected lines of 'EPOCH BEGIN KEY', as 'qproxy keygen' writes them")
    if problems:
        raise KeyFileError(problems)
    return KeySet(tuple(keys.values()), ring or min(keys.values(), key=lambda key: key.begin).secret)


def parse_time(text: str) -> float:
    """Seconds since 1970 of an ISO 8601 time that names its offset from UTC. Raises ValueError, with what was expected."""
    try:
        at = datetime.fromisoformat(text)
        told = at.utcoffset() is not None and at.astimezone(UTC).year >= 1970
    except (ValueError, OverflowError):
        told = False
    if not told:
        msg = f"{text[:40]!r} is no time of day in UTC; expected one like 2026-11-23T20:00:00Z"
        raise ValueError(msg)
    return at.timestamp()


def shown_time(at: float) -> str:
    """*at*, seconds since 1970, as the file has it."""
    return datetime.fromtimestamp(at, UTC).strftime(TIME_FORM)


class _Mistake(Exception):  # noqa: N818  # what a line says of itself
    pass


def _ring_of(words: list[str]) -> bytes:
    _need(len(words) == 2, f"{_words(words)}; expected two: 'ring' and 32 bytes in base64")
    return _secret_of(words[1])


def _key_of(words: list[str]) -> Key:
    _need(len(words) == 3, f"{_words(words)}; expected three: EPOCH BEGIN KEY")
    epoch, begin, secret = words
    known = epoch.isascii() and epoch.isdigit() and len(epoch) <= 3 and int(epoch) < EPOCHS
    _need(known, f"the epoch is {_quoted(epoch)}; expected a number from 0 to {EPOCHS - 1}")
    try:
        at = parse_time(begin)
    except ValueError:
        msg = f"the begin is {_quoted(begin)}; expected a time in UTC like 2026-11-23T20:00:00Z"
        raise _Mistake(msg) from None
    return Key(int(epoch), at, _secret_of(secret))


def _words(words: list[str]) -> str:
    return f"{len(words)} word{'' if len(words) == 1 else 's'}"


def _quoted(word: str) -> str:
    """For a message; a word as long as a key may be one."""
    return repr(word) if len(word) <= 30 else f"a word of {len(word)} characters"


def _secret_of(word: str) -> bytes:
    try:
        secret = base64.b64decode(word, validate=True)
    except (binascii.Error, ValueError):
        msg = f"the key is no base64; expected {SECRET_BYTES} bytes in it (44 characters)"
        raise _Mistake(msg) from None
    _need(len(secret) == SECRET_BYTES, f"the key has {len(secret)} bytes; expected {SECRET_BYTES} in base64 (44 characters)")
    return secret


def _apart(key: Key, others: dict[int, Key]) -> None:
    """Raise where *key* can't be told from another one of the file."""
    for number, other in others.items():
        _need(key.epoch != other.epoch, f"epoch {key.epoch} stands on line {number} too; expected each once")
        _need(
            config_id(key.epoch) != config_id(other.epoch),
            f"epochs {key.epoch} and {other.epoch} (line {number}) make connection IDs of one configuration ID, {config_id(key.epoch)}; "
            f"expected epochs that differ modulo {CONFIG_IDS}",
        )
        _need(key.begin != other.begin, f"begins at the same time as the key on line {number}; expected another time")
        _need(key.secret != other.secret, f"the same key as on line {number}; expected another one")


def _need(fact: bool, otherwise: str) -> None:
    if not fact:
        raise _Mistake(otherwise)


def _expanded(secret: bytes, info: str) -> bytes:
    return HKDF(SHA256(), SECRET_BYTES, salt=None, info=info.encode()).derive(secret)
