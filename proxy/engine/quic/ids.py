"""Connection IDs that we issue, and the tokens that go with them (RFC 9000, sections 5.1 and 10.3).

Knows a secret. Knows no connections.
"""

from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b

from balancer import quic_lb

OPAQUE_BYTES = 8
"""Length of connection IDs that nobody routes by."""

FORMS = 8
"""Forms of connection IDs that are known for ours: QUIC-LB has seven configuration IDs, and the opaque form is one more."""


@dataclass(frozen=True, slots=True)
class Routable:
    """The form of connection IDs that a balancer in front routes by (QUIC-LB), and the server that they name."""

    layout: quic_lb.Layout
    server_id: bytes


class Minter:
    """Gives connection IDs that are all different, each with its stateless reset token: a keyed hash of the ID.

    Without a *routable* form, an ID is a counter behind a permutation of 64 bits: none tells of another.
    """

    def __init__(self, secret: bytes, random_bytes: Callable[[int], bytes], routable: Routable | None = None) -> None:
        self._secret = secret[:64]
        self._random_bytes = random_bytes
        self._token_key = blake2b(b"", key=self._secret, person=b"stateless reset", digest_size=32).digest()
        self._forms: dict[Routable | None, _Form] = {}  # the present one last
        self.lengths: tuple[int, ...] = ()
        """Bytes of a connection ID, in the present form and in those before it."""
        self.generation = 0
        """How often the form has changed."""
        self.cid_bytes = 0
        """Bytes of a connection ID, in the present form."""
        self._use(routable)

    def change(self, routable: Routable | None) -> bool:
        """Give IDs of another form from now on; those of the last ``FORMS`` are still known for ours. False: it is the present one."""
        if routable == next(reversed(self._forms)):
            return False
        self._use(routable)
        self.generation += 1
        return True

    def _use(self, routable: Routable | None) -> None:
        form = self._forms.pop(routable, None)  # one of before goes on where it was: no nonce serves twice
        self._forms[routable] = form or _Form(self._secret, self._random_bytes, routable)
        if len(self._forms) > FORMS:
            del self._forms[next(iter(self._forms))]
        self._mint = self._forms[routable].mint
        self.cid_bytes = self._forms[routable].cid_bytes
        self.lengths = tuple(dict.fromkeys((self.cid_bytes, *self.lengths)))  # 20 at most, by nature

    def __call__(self) -> tuple[bytes, bytes]:
        """A connection ID and its stateless reset token."""
        cid = self._mint()
        return cid, self.token(cid)

    def token(self, cid: bytes) -> bytes:
        """The stateless reset token of *cid*, in this life of the process or another."""
        return blake2b(cid, key=self._token_key, digest_size=16).digest()

    def ours(self, data: bytes) -> bytes | None:
        """The connection ID that *data* begins with, where it may be from us: an opaque one may, or a routable one that names us."""
        for form in reversed(self._forms.values()):
            cid = data[: form.cid_bytes]
            if form.may_be(cid):
                return cid
        return None


class _Form:
    """How connection IDs look, and the next one."""

    def __init__(self, secret: bytes, random_bytes: Callable[[int], bytes], routable: Routable | None) -> None:
        self.mint: Callable[[], bytes]
        self._server_id = b""
        self._codec: quic_lb.Codec | None = None
        if routable is None:
            self.cid_bytes = OPAQUE_BYTES
            salt = blake2b(random_bytes(16), key=secret, person=b"connection id", digest_size=quic_lb.KEY_BYTES).digest()
            self.mint = _Opaque(salt)
        else:
            self.cid_bytes = routable.layout.cid_bytes
            salt = blake2b(b"", key=secret, person=b"nonces", digest_size=quic_lb.KEY_BYTES).digest()
            self._server_id = routable.server_id
            self._codec = quic_lb.Codec(routable.layout)
            self.mint = quic_lb.Minter(self._codec, quic_lb.Server(routable.server_id, salt), random_bytes)

    def may_be(self, cid: bytes) -> bool:
        """Whether *cid* may be of this form, and from this server."""
        if self._codec is None:
            return len(cid) == self.cid_bytes
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
