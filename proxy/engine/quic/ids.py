"""Connection IDs that we issue, and the tokens that go with them (RFC 9000, sections 5.1 and 10.3).

Knows a secret. Knows no connections. QUIC-LB will mint them here.
"""

from hashlib import blake2b

from proxy.engine.quic.packets import CID_BYTES


class Minter:
    """Connection IDs: a counter behind a permutation of 64 bits, so that no two are alike and none tells of another.

    The permutation is a Feistel network of four rounds on keyed BLAKE2b (Luby and Rackoff). The stateless reset token is a keyed hash
    of the ID.
    """

    def __init__(self, secret: bytes, salt: bytes) -> None:
        self._key = blake2b(salt, key=secret[:64], person=b"connection id", digest_size=32).digest()
        self._token_key = blake2b(b"", key=secret[:64], person=b"stateless reset", digest_size=32).digest()
        self._count = 0

    def __call__(self) -> tuple[bytes, bytes]:
        """A connection ID and its stateless reset token."""
        self._count += 1
        left, right = self._count >> 32, self._count & 0xFFFFFFFF
        for step in range(4):
            mixed = blake2b(b"%c%b" % (step, right.to_bytes(4, "big")), key=self._key, digest_size=4).digest()
            left, right = right, left ^ int.from_bytes(mixed, "big")
        cid = (left << 32 | right).to_bytes(CID_BYTES, "big")
        return cid, blake2b(cid, key=self._token_key, digest_size=16).digest()
