"""Session tickets (RFC 8446, section 4.6.1), sealed under keys that follow from a shared one and the time.

Whoever has the key reads them: a ticket of one process resumes at any other, before and after a restart, and no process keeps a session.
What seals changes with the time by itself; the epoch of the key that it follows from stands in clear.

What that costs: with the key and a recorded handshake, its early data can be read, and with a client's ticket its server be played.
Resumption always makes fresh keys besides (psk_dhe_ke), so nothing else can be read. The key is to be kept as a private key is.

Knows what a ticket says, and no TLS: what a TLS library needs to resume is bytes here. Pure: the clock and randomness are arguments.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from math import inf

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from balancer.affinity import KEY_BYTES as AFFINITY_BYTES
from proxy.engine.quic.strikes import StrikeRegister
from proxy.keys import Keyring, Purpose

LIFETIME = 24 * 3600
"""Seconds for which a ticket resumes. RFC 8446 allows seven days; most clients that come back do so within one."""

ROTATION = 6 * 3600
"""Seconds for which a key seals. With random nonces it may do so 2**32 times (NIST SP 800-38D, section 8.3): 190,000 a second."""

SKEW = 60
"""Seconds by which the clocks of processes that share keys may differ."""

TICKETS = 2
"""For each handshake: a client that uses each once (RFC 8446, appendix C.4) may open two connections at once when it comes back."""

AGE_SKEW = 60
"""Seconds by which the age of a ticket that a client tells may be wrong where it sends early data: a flight that is replayed later has none
(RFC 8446, section 8.3). BoringSSL's bound."""

STRIKE_WINDOW = 2 * AGE_SKEW + 5
"""Seconds for which a flight may be replayed with its early data, and some for rounding."""

STRIKE_RATE = 1000
"""Flights with early data a second that are remembered for as long; a register of some 25 MB when it is full."""

_CIPHERS = 32
"""AEAD contexts kept: four epochs, each with the periods of a ticket's life, are 20 to 24."""

_PERIOD = struct.Struct(">I")
_CLEAR = struct.Struct(">I")  # epoch (8 bits) and period (24 bits, until the year 13,000): of epoch 0, what it was when there was one key
_PERIOD_BITS = 24
_NONCE_BYTES, _TAG_BYTES = 12, 16
_KEY_BYTES = 32
_ISSUER_BYTES = 8
_HEAD = struct.Struct(f">Q{_ISSUER_BYTES}s{AFFINITY_BYTES}s")

OVERHEAD = _CLEAR.size + _NONCE_BYTES + _HEAD.size + _TAG_BYTES
"""Bytes of a ticket besides the state that it holds."""


@dataclass(frozen=True, slots=True)
class Opened:
    """What an authentic ticket says."""

    state: bytes
    """As it was given to ``seal``."""
    affinity: bytes
    """The affinity key of the connection that it was given to."""
    sealed: float
    """Seconds since the epoch."""
    age: float
    """Seconds since then."""
    issuer: bytes
    """Who sealed it."""


class Tickets:
    """Seals and opens the tickets of one process, and vouches for the early data that comes with them.

    *wall_clock* gives seconds since 1970, *random_bytes* so many random bytes; *alone_since* says since when, by that clock, no other
    process of this machine had the keys for sure (infinity: there may be one). Of other machines nobody knows: where *keys* are shared with
    some, nobody is alone.
    """

    def __init__(
        self,
        keys: Keyring,
        wall_clock: Callable[[], float],
        random_bytes: Callable[[int], bytes],
        alone_since: Callable[[], float] = lambda: inf,
    ) -> None:
        self._keys = keys
        self._wall_clock = wall_clock
        self._alone_since = alone_since
        self._issuer = random_bytes(_ISSUER_BYTES)
        self._strikes = StrikeRegister(STRIKE_WINDOW, STRIKE_WINDOW * STRIKE_RATE)
        self.random_bytes = random_bytes
        self._ciphers: dict[tuple[bytes, int], AESGCM] = {}

    def seal(self, terms: bytes, affinity: bytes, state: bytes) -> bytes:
        """A ticket that opens under the same *terms* only. *affinity*: a key of ``balancer.affinity``."""
        now = self._wall_clock()
        epoch, period = self._keys.sealing(now), int(now // ROTATION)
        nonce = self.random_bytes(_NONCE_BYTES)
        content = _HEAD.pack(int(now * 1000), self._issuer, affinity) + state
        return _CLEAR.pack(epoch << _PERIOD_BITS | period) + nonce + self._cipher(epoch, period).encrypt(nonce, content, terms)

    def open(self, terms: bytes, ticket: bytes) -> Opened | None:
        """What *ticket* says; None where it is not from one of us, too old, or was sealed under other *terms*."""
        if len(ticket) < OVERHEAD:
            return None
        now = self._wall_clock()
        epoch, period = divmod(_CLEAR.unpack_from(ticket)[0], 1 << _PERIOD_BITS)
        if not _first_period(now) <= period <= _last_period(now) or not self._keys.opens(epoch):
            return None
        start = _CLEAR.size + _NONCE_BYTES
        try:
            content = self._cipher(epoch, period).decrypt(ticket[_CLEAR.size : start], ticket[start:], terms)
        except InvalidTag:
            return None
        self._keys.opened[Purpose.TICKET][epoch] += 1
        sealed_ms, issuer, affinity = _HEAD.unpack_from(content)
        sealed = sealed_ms / 1000
        age = now - sealed
        return Opened(content[_HEAD.size :], affinity, sealed, max(age, 0.0), issuer) if -SKEW <= age < LIFETIME else None

    def vouch(self, opened: Opened, client_random: bytes) -> bool:
        """Whether the early data of a flight may be acted upon at once: nobody did, and nobody else will.

        *client_random* is its ClientHello's, authentic by the ticket *opened*, whose age the client told rightly (``AGE_SKEW``). Another
        process could act on the same flight where it had the keys at any time since the ticket was sealed: this one can't know of its
        register, so it must have been alone. False is no accusation: the end of the handshake tells a client from a replay.
        """
        if self._keys.keys.shared or opened.issuer != self._issuer:
            return False
        return opened.sealed >= self._alone_since() and self._strikes.first(client_random, self._wall_clock())

    def _cipher(self, epoch: int, period: int) -> AESGCM:
        secret = self._keys.derive(Purpose.TICKET, epoch)
        cipher = self._ciphers.get((secret, period))
        if cipher is None:
            if len(self._ciphers) >= _CIPHERS:
                self._ciphers.clear()
            cipher = self._ciphers[secret, period] = AESGCM(derive_key(secret, period))
        return cipher


def derive_key(secret: bytes, period: int) -> bytes:
    """The key of tickets sealed under *secret* in [period * ROTATION, (period + 1) * ROTATION): HKDF-SHA256 (RFC 5869)."""
    return HKDF(SHA256(), _KEY_BYTES, salt=None, info=b"qproxy quic ticket" + _PERIOD.pack(period)).derive(secret)


def _first_period(now: float) -> int:
    return int((now - LIFETIME) // ROTATION)


def _last_period(now: float) -> int:
    return int((now + SKEW) // ROTATION)
