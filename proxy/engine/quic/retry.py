"""Tokens of Retry packets (RFC 9000, section 8.1.2): what a client has to send back to show that it is where it says it is.

Everything that is to be known later is in the token, so that nothing is kept for a client before it has answered. Whoever has the same
keys takes it: another process, or this one after a restart. Knows addresses and the time of day that it is given; no packets.
"""

import struct
from collections.abc import Callable
from enum import StrEnum
from hashlib import blake2b
from ipaddress import IPv4Address, IPv6Address, ip_address

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from proxy.keys import EPOCHS, Keyring, Purpose
from proxy.message import Address

LIFETIME = 15.0
"""Seconds that a token is good for. A client answers within a round trip; what is lost of its answers it sends again for about as long as
a handshake may take (10 s), with the same token."""

SKEW = 5.0
"""Seconds by which the clock of who opens a token may be behind that of who sealed it. Ahead it may be by what ``LIFETIME`` leaves."""

_FORM = b"qpR"
_FIRST_EPOCH = 1
"""The octet behind the form, of epoch 0: the others count on, and 255 is at 0. It was the form's version when there was one key."""
_HEAD_BYTES = len(_FORM) + 1
_SALT_BYTES = 16
_TAG_BYTES = 16
_NONCE = bytes(12)  # each key is used once
_CONTENT = struct.Struct("!Q16sHB20sB20s")

TOKEN_BYTES = _HEAD_BYTES + _SALT_BYTES + _CONTENT.size + _TAG_BYTES
"""Of each token, whatever is in it."""


class Refusal(StrEnum):
    """Why a token proves nothing."""

    UNKNOWN = "unknown"
    """Not of our form: no Retry of ours, or of another server's that has our address, brought it about."""
    FORGED = "forged"
    """Of our form, and not sealed with a key of ours."""
    EXPIRED = "expired"
    """Too old; or from the future, where clocks differ by too much."""
    OTHER_ADDRESS = "other_address"
    """Given to another address or port."""
    OTHER_CONNECTION = "other_connection"
    """Sent to another connection ID than the one that the Retry packet gave (RFC 9000, section 17.2.5.2)."""


class Tokens:
    """Seals and opens them.

    AES-128-GCM, under a key for each token that a keyed hash makes of 16 random bytes: a flood may ask for more tokens than one key could
    seal under random nonces of 12 bytes. *keys* are the same wherever a token is to be taken; the token names its epoch in clear.
    """

    def __init__(self, keys: Keyring, random_bytes: Callable[[int], bytes]) -> None:
        self._keys = keys
        self._random_bytes = random_bytes

    def seal(self, peer: Address, original: bytes, source: bytes, at: float) -> bytes:
        """A token for the client at *peer*, whose first packet went to the connection ID *original*, and whose next is to go to *source*.

        *at*: seconds since 1970. The IDs have at most 20 bytes.
        """
        host, port = _packed(peer)
        salt = self._random_bytes(_SALT_BYTES)
        content = _CONTENT.pack(round(at * 1000), host, port, len(original), original, len(source), source)
        epoch = self._keys.sealing(at)
        return b"%b%c%b%b" % (_FORM, (epoch + _FIRST_EPOCH) % EPOCHS, salt, self._cipher(epoch, salt).encrypt(_NONCE, content, None))

    def open(self, token: bytes, peer: Address, destination: bytes, at: float) -> bytes | Refusal:
        """The original connection ID of the client at *peer*, which sends *token* to *destination* at the time *at*. Never raises."""
        if len(token) != TOKEN_BYTES or not token.startswith(_FORM):
            return Refusal.UNKNOWN
        epoch = (token[len(_FORM)] - _FIRST_EPOCH) % EPOCHS
        if not self._keys.opens(epoch):
            return Refusal.FORGED
        body = _HEAD_BYTES + _SALT_BYTES
        try:
            content = self._cipher(epoch, token[_HEAD_BYTES:body]).decrypt(_NONCE, token[body:], None)
        except InvalidTag:
            return Refusal.FORGED
        self._keys.opened[Purpose.RETRY][epoch] += 1
        sealed_at, host, port, original_bytes, original, source_bytes, source = _CONTENT.unpack(content)
        if not -SKEW <= at - sealed_at / 1000 <= LIFETIME:
            return Refusal.EXPIRED
        if (host, port) != _packed(peer):
            return Refusal.OTHER_ADDRESS
        if source[:source_bytes] != destination:
            return Refusal.OTHER_CONNECTION
        return bytes(original[:original_bytes])

    def _cipher(self, epoch: int, salt: bytes) -> AESGCM:
        key = blake2b(b"", key=self._keys.derive(Purpose.RETRY, epoch), person=b"retry tokens", digest_size=32).digest()
        return AESGCM(blake2b(salt, key=key, digest_size=16).digest())


def _packed(peer: Address) -> tuple[bytes, int]:
    packed = _address(peer[0]).packed
    return (packed if len(packed) == 16 else bytes(10) + b"\xff\xff" + packed), peer[1]


def _address(host: str) -> IPv4Address | IPv6Address:
    address = ip_address(host)
    return getattr(address, "ipv4_mapped", None) or address
