"""Connection IDs that we issue, and the tokens that go with them (RFC 9000, sections 5.1 and 10.3).

Knows a secret. Knows no connections.
"""

from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b

from balancer import quic_lb

OPAQUE_BYTES = 8
"""Length of connection IDs that nobody routes by."""


@dataclass(frozen=True, slots=True)
class Routable:
    """The form of connection IDs that a balancer in front routes by (QUIC-LB), and the server that they name."""

    layout: quic_lb.Layout
    server_id: bytes


class Minter:
    """Gives connection IDs that are all different, each with its stateless reset token: a keyed hash of the ID.

    Without *routable*, an ID is a counter behind a permutation of 64 bits: none tells of another.
    """

    def __init__(self, secret: bytes, random_bytes: Callable[[int], bytes], routable: Routable | None = None) -> None:
        self._token_key = blake2b(b"", key=secret[:64], person=b"stateless reset", digest_size=32).digest()
        self._mint: Callable[[], bytes]
        self._server_id = b""
        self._codec: quic_lb.Codec | None = None
        if routable is None:
            self.cid_bytes = OPAQUE_BYTES
            salt = blake2b(random_bytes(16), key=secret[:64], person=b"connection id", digest_size=quic_lb.KEY_BYTES).digest()
            self._mint = _Opaque(salt)
        else:
            self.cid_bytes = routable.layout.cid_bytes
            salt = blake2b(b"", key=secret[:64], person=b"nonces", digest_size=quic_lb.KEY_BYTES).digest()
            self._server_id = routable.server_id
            self._codec = quic_lb.Codec(routable.layout)
            self._mint = quic_lb.Minter(self._codec, quic_lb.Server(routable.server_id, salt), random_bytes)

    def __call__(self) -> tuple[bytes, bytes]:
        """A connection ID and its stateless reset token."""
        cid = self._mint()
        return cid, self.token(cid)

    def token(self, cid: bytes) -> bytes:
        """The stateless reset token of *cid*, in this life of the process or another."""
        return blake2b(cid, key=self._token_key, digest_size=16).digest()

    def is_ours(self, cid: bytes) -> bool:
        """Whether *cid*, of the right length, may be from us: an opaque one may, a routable one that names this server too."""
        if self._codec is None:
            return True
        try:
            return self._codec.decode(cid).server_id == self._server_id
        except quic_lb.NotRoutable:
            return False


class _Opaque:
    def __init__(self, salt: bytes) -> None:
        self._disguise = quic_lb.permutation(salt, OPAQUE_BYTES)[0]
        self._count = 0

    def __call__(self) -> bytes:
        self._count += 1
        return self._disguise(self._count.to_bytes(OPAQUE_BYTES))
