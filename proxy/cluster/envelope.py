"""Envelopes: UDP datagrams between a relay, which has the client's address in hand, and the instance that answers.

Pure: bytes, keys and the time of day in; bytes and counters out. Knows neither sockets nor QUIC, nor who may send what.

    version (1) | epoch (1) | steer (2) | sender (16) | counter (8) | AES-128-GCM of what follows | tag (16)
    time (8) | kind (1) | ECN (1) | port (2) | back (2) | segment (2) | client (18) | local (18) | payload

All numbers in network order. The head is authenticated as associated data. The key of the cipher is HKDF-Expand (RFC 5869, section 2.3)
of the epoch's key with the sender, the nonce is the counter: a sender draws its 16 bytes at random, so no nonce serves twice.

``Sealer`` and ``Opener`` are run for each datagram of an L4 tier: they make no objects but what they return. Addresses are 18 bytes here
(``packed``, ``unpacked``), which tables can use as keys as they are.
"""

import hmac
import struct
from collections import Counter
from collections.abc import Callable, Mapping
from functools import lru_cache
from ipaddress import IPv6Address, ip_address
from typing import NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from proxy.message import Address

VERSION = 1

DATAGRAM, ANSWER, HELLO = 0, 1, 2
"""Kinds: what a client sent, on its way to an instance; what an instance sends to a client, on its way to the relay; who I am."""

KEY_BYTES = 32
"""Of an epoch's key."""

HASHED = 256
"""What *steer* and *back* are below it is the slot of a worker; from it on up to 65535, a hash for whoever is there."""

FRESH = 10.0
"""Seconds by which the clocks of sender and receiver may differ, the way included. A receiver that forgot a sender takes no older text."""

REMEMBERED = 30.0
"""Seconds that a silent sender is remembered at least: more than twice ``FRESH``, so that nothing of it is still fresh when it is not."""

SENDERS = 16384
"""Senders that are remembered at once: each worker of each instance is one. About 600 bytes each."""

WINDOW = 1024
"""Counters below a sender's highest that may still come, once each."""

MAX_SEGMENTS = 64
"""Datagrams in one envelope."""

PER_SENDER = 1 << 32
"""Envelopes under one key; then the sender takes another name, and so another key."""

NOBODY = bytes(18)
"""An address where there is none, as in HELLO."""

REFUSALS = ("short", "version", "epoch", "full", "forged", "malformed", "stale", "replayed")
"""Why an envelope is not opened: cut off; a version or epoch that we do not have; no room for another sender; not sealed under the key; a
kind or a size that can't be; too old or from the future; opened before."""

_HEAD = struct.Struct("!BBH16sQ")
_BODY = struct.Struct("!QBBHHH18s18s")
_TAG = 16
_INFO = b"qproxy envelope sender"
_MASK = (1 << WINDOW) - 1

OVERHEAD = _HEAD.size + _BODY.size + _TAG
"""Bytes of an envelope besides its payload."""

MAX_PAYLOAD = 65507 - OVERHEAD
"""Bytes that fit into one: 65,507 is the most that UDP carries over IPv4."""


class Envelope(NamedTuple):
    """What was in one."""

    time: int
    """When it was sealed, by the sender's clock: µs since 1970."""
    kind: int
    ecn: int
    """Of the IP header that the datagram had or is to have: 0 to 3 (RFC 3168)."""
    port: int
    """UDP port of the listener at the instance: of a DATAGRAM, where to; of an ANSWER, where from."""
    back: int
    """Steer of the answers to this."""
    segment: int
    """Bytes of each datagram in the payload, but for the last, which may have less; 0: it is one."""
    client: bytes
    """The client's address, ``packed``."""
    local: bytes
    """The relay's own address that the client sends to, ``packed``."""
    payload: bytes

    def datagrams(self) -> list[bytes]:
        """Those in the payload, at most ``MAX_SEGMENTS``."""
        payload, size = self.payload, self.segment
        return [payload[at : at + size] for at in range(0, len(payload), size)] if size else [payload]


class Sealer:
    """Seals what one process sends, to whomever. *key* has 32 bytes and is that of *epoch*, 0 to 255; *random_bytes* names the sender."""

    def __init__(self, epoch: int, key: bytes, random_bytes: Callable[[int], bytes]) -> None:
        self._random_bytes = random_bytes
        self._epoch, self._key = epoch, key
        self._begin()

    def use(self, epoch: int, key: bytes) -> None:
        """Seal under this key from now on."""
        self._epoch, self._key = epoch, key
        self._begin()

    def _begin(self) -> None:
        self._sender = self._random_bytes(16)
        self._counter = 0
        self._encrypt = _cipher(self._key, self._sender).encrypt

    def seal(  # noqa: PLR0913  # the fields of the format, in their order
        self,
        kind: int,
        payload: bytes,
        now: float,
        *,
        steer: int = HASHED,
        port: int = 0,
        back: int = HASHED,
        client: bytes = NOBODY,
        local: bytes = NOBODY,
        segment: int = 0,
        ecn: int = 0,
    ) -> bytes:
        """An envelope: the fields are those of ``Envelope``, *now* the time of day in seconds since 1970.

        Raises ValueError for more than ``MAX_PAYLOAD`` bytes or ``MAX_SEGMENTS`` datagrams.
        """
        if len(payload) > MAX_PAYLOAD or (segment and len(payload) > segment * MAX_SEGMENTS):
            msg = f"{len(payload)} bytes in segments of {segment} are more than an envelope holds"
            raise ValueError(msg)
        counter = self._counter
        if counter == PER_SENDER:
            self._begin()
            counter = 0
        self._counter = counter + 1
        head = _HEAD.pack(VERSION, self._epoch, steer, self._sender, counter)
        body = _BODY.pack(int(now * 1e6), kind, ecn, port, back, segment, client, local)
        return head + self._encrypt(counter.to_bytes(12), body + payload, head)


class Opener:
    """Opens what comes to one process, each envelope once. *keys* has the 32 bytes of each epoch that may be used.

    What is refused is counted in ``refused``, what is not in *opened*, by epoch. Nothing is remembered of a sender before an envelope of it
    was authentic. The table is bounded by ``SENDERS``: when it is full of senders that were heard of lately, others are refused.
    """

    def __init__(self, keys: Mapping[int, bytes], opened: Counter[int] | None = None) -> None:
        self._keys = dict(keys)
        self.opened: Counter[int] = Counter() if opened is None else opened
        self._senders: dict[bytes, _Sender] = {}
        self._swept_at = float("-inf")
        self.refused: Counter[str] = Counter()
        """How many envelopes, by one of ``REFUSALS``."""

    def use(self, keys: Mapping[int, bytes]) -> None:
        """These are the keys from now on. What was opened before stays known."""
        self._keys = dict(keys)
        for sender in self._senders.values():
            sender.epoch = -1

    @property
    def senders(self) -> int:
        """How many are remembered."""
        return len(self._senders)

    def open(self, data: bytes, now: float) -> Envelope | None:
        """What is in an envelope that came, or None; *now* is the time of day in seconds since 1970. Never raises on hostile input."""
        if len(data) < OVERHEAD:
            self.refused["short"] += 1
            return None
        version, epoch, _, name, counter = _HEAD.unpack_from(data)
        if version != VERSION:
            self.refused["version"] += 1
            return None
        sender = self._senders.get(name)
        if sender is None or sender.epoch != epoch:
            key = self._keys.get(epoch)
            if key is None:
                self.refused["epoch"] += 1
                return None
            if sender is None and len(self._senders) >= SENDERS and not self._sweep(now):
                self.refused["full"] += 1
                return None
            cipher = _cipher(key, name)
        else:
            cipher = sender.cipher
        try:
            plain = cipher.decrypt(counter.to_bytes(12), data[_HEAD.size :], data[: _HEAD.size])
        except InvalidTag:
            self.refused["forged"] += 1
            return None
        envelope = Envelope(*_BODY.unpack_from(plain), plain[_BODY.size :])  # type: ignore[call-arg]  # struct has no types
        size = len(envelope.payload)
        if not size or envelope.kind > HELLO or (envelope.segment and size > envelope.segment * MAX_SEGMENTS):
            self.refused["malformed"] += 1
            return None
        if not -FRESH <= now - envelope.time / 1e6 <= FRESH:
            self.refused["stale"] += 1
            return None
        if sender is None:
            sender = self._senders[name] = _Sender(counter)
        elif not sender.take(counter):
            self.refused["replayed"] += 1
            return None
        sender.epoch, sender.cipher, sender.heard_at = epoch, cipher, now
        self.opened[epoch] += 1
        return envelope

    def _sweep(self, now: float) -> bool:
        """Forget who was silent for long; whether there is room then. Looks once a second at most."""
        if 0 <= now - self._swept_at < 1.0:
            return False
        self._swept_at = now
        for name in [name for name, sender in self._senders.items() if abs(now - sender.heard_at) > REMEMBERED]:
            del self._senders[name]
        return len(self._senders) < SENDERS


class _Sender:
    """One that was authentic: its cipher, and which of its counters were seen."""

    __slots__ = ("cipher", "epoch", "heard_at", "highest", "seen")

    def __init__(self, counter: int) -> None:
        self.epoch = -1
        self.cipher: AESGCM
        self.heard_at = 0.0
        self.highest = counter
        self.seen = 1  # bit n: highest - n

    def take(self, counter: int) -> bool:
        """Whether *counter* was not seen before, as far as the window goes back; it was from now on."""
        ahead = counter - self.highest
        if ahead > 0:
            self.seen = (self.seen << ahead | 1) & _MASK if ahead < WINDOW else 1
            self.highest = counter
            return True
        bit = 1 << -ahead if ahead > -WINDOW else 0
        if not bit or self.seen & bit:
            return False
        self.seen |= bit
        return True


def _cipher(key: bytes, sender: bytes) -> AESGCM:
    return AESGCM(hmac.digest(key, _INFO + sender + b"\x01", "sha256")[:16])


@lru_cache(maxsize=16384)
def packed(address: Address) -> bytes:
    """IP address and port as 18 bytes: IPv6, into which IPv4 is mapped (RFC 4291, section 2.5.5.2). Raises ValueError."""
    ip = ip_address(address[0])
    return (ip.packed if ip.version == 6 else b"\0" * 10 + b"\xff\xff" + ip.packed) + address[1].to_bytes(2)


@lru_cache(maxsize=16384)
def unpacked(data: bytes) -> Address:
    """The address that ``packed`` made *data* of; any 18 bytes are one."""
    ip = IPv6Address(data[:16])
    return str(ip.ipv4_mapped or ip), int.from_bytes(data[16:])
