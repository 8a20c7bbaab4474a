"""Tokens of Retry packets (RFC 9000, section 8.1.2): what a client has to send back to show that it is where it says it is.

Everything that is to be known later is in the token, so that nothing is kept for a client before it has answered. Whoever has the same
secret takes it: another process, or this one after a restart. Knows addresses and the time of day that it is given; no packets.
"""

import struct
from collections.abc import Callable
from enum import StrEnum
from hashlib import blake2b
from ipaddress import IPv4Address, IPv6Address, ip_address

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from proxy.message import Address

LIFETIME = 15.0
"""Seconds that a token is good for. A client answers within a round trip; what is lost of its answers it sends again for about as long as
a handshake may take (10 s), with the same token."""

SKEW = 5.0
"""Seconds by which the clock of who opens a token may be behind that of who sealed it. Ahead it may be by what ``LIFETIME`` leaves."""

_FORM = b"qpR\x01"
_SALT_BYTES = 16
_TAG_BYTES = 16
_NONCE = bytes(12)  # each key is used once
_CONTENT = struct.Struct("!Q16sHB20sB20s")

TOKEN_BYTES = len(_FORM) + _SALT_BYTES + _CONTENT.size + _TAG_BYTES
"""Of each token, whatever is in it."""


class Refusal(StrEnum):
    """Why a token proves nothing."""

    UNKNOWN = "unknown"
    """Not of our form: no Retry of ours, or of another server's that has our address, brought it about."""
    FORGED = "forged"
    """Of our form, and not sealed with our key."""
    EXPIRED = "expired"
    """Too old; or from the future, where clocks differ by too much."""
    OTHER_ADDRESS = "other_address"
    """Given to another address or port."""
    OTHER_CONNECTION = "other_connection"
    """Sent to another connection ID than the one that the Retry packet gave (RFC 9000, section 17.2.5.2)."""


class Tokens:
    """Seals and opens them.

    AES-128-GCM, under a key for each token that a keyed hash makes of 16 random bytes: a flood may ask for more tokens than one key could
    seal under random nonces of 12 bytes. *secret*: 16 bytes or more, the same wherever a token is to be taken.
    """

    def __init__(self, secret: bytes, random_bytes: Callable[[int], bytes]) -> None:
        self._key = blake2b(b"", key=secret[:64], person=b"retry tokens", digest_size=32).digest()
        self._random_bytes = random_bytes

    def seal(self, peer: Address, original: bytes, source: bytes, at: float) -> bytes:
        """A token for the client at *peer*, whose first packet went to the connection ID *original*, and whose next is to go to *source*.

        *at*: seconds since 1970. The IDs have at most 20 bytes.
        """
        host, port = _packed(peer)
        salt = self._random_bytes(_SALT_BYTES)
        content = _CONTENT.pack(round(at * 1000), host, port, len(original), original, len(source), source)
        return _FORM + salt + self._cipher(salt).encrypt(_NONCE, content, None)

    def open(self, token: bytes, peer: Address, destination: bytes, at: float) -> bytes | Refusal:
        """The original connection ID of the client at *peer*, which sends *token* to *destination* at the time *at*. Never raises."""
        if len(token) != TOKEN_BYTES or not token.startswith(_FORM):
            return Refusal.UNKNOWN
        body = len(_FORM) + _SALT_BYTES
        try:
            content = self._cipher(token[len(_FORM) : body]).decrypt(_NONCE, token[body:], None)
        except InvalidTag:
            return Refusal.FORGED
        sealed_at, host, port, original_bytes, original, source_bytes, source = _CONTENT.unpack(content)
        if not -SKEW <= at - sealed_at / 1000 <= LIFETIME:
            return Refusal.EXPIRED
        if (host, port) != _packed(peer):
            return Refusal.OTHER_ADDRESS
        if source[:source_bytes] != destination:
            return Refusal.OTHER_CONNECTION
        return bytes(original[:original_bytes])

    def _cipher(self, salt: bytes) -> AESGCM:
        return AESGCM(blake2b(salt, key=self._key, digest_size=16).digest())


def _packed(peer: Address) -> tuple[bytes, int]:
    packed = _address(peer[0]).packed
    return (packed if len(packed) == 16 else bytes(10) + b"\xff\xff" + packed), peer[1]


def _address(host: str) -> IPv4Address | IPv6Address:
    address = ip_address(host)
    return getattr(address, "ipv4_mapped", None) or address
