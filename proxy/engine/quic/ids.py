"""Connection IDs that we issue, and the tokens that go with them (RFC 9000, sections 5.1 and 10.3).

Who has an ID's reset token can end its connection, and who has its key can have it made: so instances that share keys make the same
tokens only for IDs that name their server in a way that shows the key's epoch. An instance that gets such an ID can tell whose it is, and
whether that one lives. An opaque ID could be anybody's, so its token is for its own machine to make: else a datagram that somebody copied
and sent to another instance would end a connection that lives (RFC 9000, section 21.11).

Knows keys. Knows no connections.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from hashlib import blake2b

from balancer import quic_lb
from proxy.keys import Keyring, Purpose

OPAQUE_BYTES = 8
"""Length of connection IDs that nobody routes by; where the kernel does, between the workers of one host, there are two more
(``quic_lb.unroutable``): an octet that tells the length, and the worker's slot."""

_TOKEN_BYTES = 16

FORMS = 8
"""Forms of connection IDs that are known for ours: QUIC-LB has seven configuration IDs, and the opaque form is one more."""


@dataclass(frozen=True, slots=True)
class Routable:
    """The form of connection IDs that a balancer in front routes by (QUIC-LB), and the server that they name."""

    layout: quic_lb.Layout
    server_id: bytes
    epoch: int | None = None
    """That of the shared key which the layout's follows from, and the reset tokens; None: it follows from none."""


class Minter:
    """Gives connection IDs that are all different, each with its stateless reset token: a keyed hash of the ID.

    Without a *routable* form, an ID is a counter behind a permutation of 64 bits: none tells of another. *slot* is that of this worker,
    where several share a port: it stands in clear at the end of each ID, and no two workers give the same. *known* are forms that this
    server has had or will have, and whose IDs are its own too. Raises ValueError where a routable form has no room for the slot.
    """

    def __init__(
        self,
        keys: Keyring,
        random_bytes: Callable[[int], bytes],
        routable: Routable | None = None,
        slot: int | None = None,
        known: Iterable[Routable] = (),
    ) -> None:
        self._slot = slot
        self._keys = keys
        self._random_bytes = random_bytes
        self._forms: dict[Routable | None, _Form] = {}  # the present one last
        self.lengths: tuple[int, ...] = ()
        """Bytes of a connection ID, in the present form and in those before it."""
        self.generation = 0
        """How often the form has changed."""
        self.cid_bytes = 0
        """Bytes of a connection ID, in the present form."""
        self._use(routable, known)

    def change(self, routable: Routable | None, known: Iterable[Routable] = ()) -> bool:
        """Give IDs of another form from now on; those of the last ``FORMS`` are still known for ours. False: it is the present one.

        Raises ValueError as the constructor does.
        """
        same = routable == next(reversed(self._forms))
        self._use(routable, known)
        self.generation += not same
        return not same

    def _use(self, routable: Routable | None, known: Iterable[Routable]) -> None:
        for other in known:
            self._know(other)
        form = self._know(routable)
        while len(self._forms) > FORMS:
            del self._forms[next(iter(self._forms))]
        self._mint, self._token_key = form.mint, form.token_key
        self.cid_bytes = form.cid_bytes
        self.lengths = tuple(dict.fromkeys((self.cid_bytes, *self.lengths)))  # 20 at most, by nature

    def _know(self, routable: Routable | None) -> "_Form":
        """The form, which is the last one known from now on. One of before goes on where it was: no nonce serves twice."""
        form = self._forms.pop(routable, None) or _Form(self._keys, self._random_bytes, routable, self._slot)
        self._forms[routable] = form
        return form

    def __call__(self) -> tuple[bytes, bytes]:
        """A connection ID and its stateless reset token."""
        cid = self._mint()
        return cid, blake2b(cid, key=self._token_key, digest_size=_TOKEN_BYTES).digest()

    def token(self, data: bytes, gone: Callable[[bytes], bool] = lambda _: False) -> bytes | None:
        """The reset token of the connection ID that *data* begins with; None where it can't be from us, of any slot.

        An opaque one may be, and one that names us; of those whose tokens instances share, also one that names a server which is *gone*.
        The token is the same in this life of the process or another.
        """
        for form in reversed(self._forms.values()):
            cid = data[: form.cid_bytes]
            if form.may_be(cid) or (form.shared and (named := form.decode(cid)) is not None and gone(named.server_id)):
                return blake2b(cid, key=form.token_key, digest_size=_TOKEN_BYTES).digest()
        return None

    def slot_of(self, data: bytes, *, whole: bool) -> int | None:
        """The slot that the connection ID names which *data* begins with, or is (*whole*); None where it can't be ours, or names none."""
        if self._slot is None:
            return None
        for form in reversed(self._forms.values()):
            cid = data if whole else data[: form.cid_bytes]
            if form.may_be(cid) or (len(cid) == form.cid_bytes and quic_lb.is_unroutable(cid)):  # as when nonces are used up
                return cid[-1]
        return None

    def named_by(self, data: bytes, *, whole: bool) -> quic_lb.Decoded | None:
        """The server, and its worker, that the connection ID names which *data* begins with, or is (*whole*), in any form that is known.

        None where it names none. Any bytes of the right length name somebody: whether there is such a server is the caller's to see.
        """
        for form in reversed(self._forms.values()):
            decoded = form.decode(data if whole else data[: form.cid_bytes])
            if decoded is not None:
                return decoded
        return None

    @property
    def server_id(self) -> bytes:
        """Our own, that connection IDs of the present form name; empty where they are opaque."""
        return self._forms[next(reversed(self._forms))].server_id

    @property
    def routable(self) -> list[tuple[int, int]]:
        """Configuration ID and bytes of the forms that name a server, of all that are known."""
        return [(form.layout.config_id, form.layout.cid_bytes) for form in self._forms if form is not None]

    @property
    def slotted(self) -> list[tuple[int, int]]:
        """Configuration ID and bytes of the forms with a slot at the end, of all that are known; but for opaque ones."""
        layouts = [form.layout for form in self._forms if form is not None]
        return [(layout.config_id, layout.cid_bytes) for layout in layouts if layout.slot]


def steered_lengths(forms: Iterable[Routable | None]) -> dict[int, int]:
    """Configuration ID to bytes of a connection ID with a slot at its end, of the last of *forms* that has it.

    Opaque ones (None) are not among them: each tells its own length, under ``quic_lb.UNROUTABLE``.
    """
    return {form.layout.config_id: form.layout.cid_bytes for form in forms if form is not None and form.layout.slot}


def reset_key(secret: bytes) -> bytes:
    """What keys the hash of connection IDs that is their reset token, where it follows from *secret*."""
    return blake2b(b"", key=secret[:64], person=b"stateless reset", digest_size=32).digest()


class _Form:
    """How connection IDs look, the next one, and what keys their reset tokens."""

    def __init__(self, keys: Keyring, random_bytes: Callable[[int], bytes], routable: Routable | None, slot: int | None) -> None:
        self.mint: Callable[[], bytes]
        secret = keys.own[:64]
        epoch = routable.epoch if routable is not None else None
        self.token_key = reset_key(secret if epoch is None else keys.derive(Purpose.RESET, epoch))
        self.shared = epoch is not None
        self.server_id = b""
        self._codec: quic_lb.Codec | None = None
        self._any = routable is None and slot is None
        if routable is None:
            self.cid_bytes = OPAQUE_BYTES + (0 if slot is None else 2)
            salt = blake2b(random_bytes(16), key=secret, person=b"connection id", digest_size=quic_lb.KEY_BYTES).digest()
            self.mint = _Opaque(salt, slot)
        else:
            if slot is not None and not routable.layout.slot:
                msg = "connection IDs need a slot at their end where several workers share a port"
                raise ValueError(msg)
            self.cid_bytes = routable.layout.cid_bytes
            salt = blake2b(b"", key=secret, person=b"nonces", digest_size=quic_lb.KEY_BYTES).digest()
            place = (0, 1) if slot is None else (slot, quic_lb.SLOTS)
            self.server_id = routable.server_id
            self._codec = quic_lb.Codec(routable.layout)
            self.mint = quic_lb.Minter(self._codec, quic_lb.Server(routable.server_id, salt, *place), random_bytes)

    def may_be(self, cid: bytes) -> bool:
        """Whether *cid* may be of this form, and from this server: from any worker of it."""
        if len(cid) != self.cid_bytes:
            return False
        if self._codec is None:
            return self._any or quic_lb.is_unroutable(cid)
        decoded = self.decode(cid)
        return decoded is not None and decoded.server_id == self.server_id

    def decode(self, cid: bytes) -> quic_lb.Decoded | None:
        """What *cid* says in this form, of whichever server; None where it is none of it."""
        if self._codec is None or len(cid) != self.cid_bytes:
            return None
        try:
            return self._codec.decode(cid)
        except quic_lb.NotRoutable:
            return None


class _Opaque:
    """Counts behind a permutation; the slot goes through it too, so that slots share no text even where a salt came twice."""

    def __init__(self, salt: bytes, slot: int | None) -> None:
        self._disguise = quic_lb.permutation(salt, OPAQUE_BYTES)[0]
        self._slot = slot
        self._count = 0

    def __call__(self) -> bytes:
        self._count += 1
        if self._slot is None:
            return self._disguise(self._count.to_bytes(OPAQUE_BYTES))
        return quic_lb.unroutable(self._disguise((self._count << 8 | self._slot).to_bytes(OPAQUE_BYTES)), self._slot)
