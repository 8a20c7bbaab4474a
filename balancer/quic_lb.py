"""Connection IDs that a load balancer can route: QUIC-LB (draft-ietf-quic-load-balancers-21).

``Layout`` says where in a connection ID the server ID stands, ``Codec`` writes and reads such IDs, ``Minter`` issues them without ever
issuing one twice. Knows no connections and no network.
"""

from collections.abc import Callable
from dataclasses import dataclass

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.ciphers.modes import ECB

MAX_CID_BYTES = 20
"""Of version 1 (RFC 9000, section 17.2)."""

KEY_BYTES = 16

UNROUTABLE = 0b111
"""Configuration ID of connection IDs that name no server (section 3.2 of the draft)."""

MIN_SERVER_ID_BYTES, MIN_NONCE_BYTES, MAX_BYTES = 1, 4, 19
"""Of a server ID, of a nonce, and of both together (section 3)."""

SLOTS = 256
"""Workers that a slot byte tells apart."""

_BLOCK = 16
_LENGTH_BITS = 0b11111


class NotRoutable(Exception):  # noqa: N818  # no error: anybody may send any bytes
    """A connection ID that names no server of this layout; the text says why."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Where things stand in a connection ID: ``first octet | server ID | nonce | slot``, the middle two encrypted where there is a key.

    Raises ValueError, with what was expected, for what the draft does not allow.
    """

    config_id: int
    """0 to 6: which of the layouts in use it is, for balancers that know several during a rotation."""

    server_id_bytes: int
    nonce_bytes: int

    slot: bool = False
    """Whether a byte in clear at the end names the worker."""

    key: bytes | None = None
    """16 bytes, shared with the balancers; None: in clear."""

    length_in_first: bool = True
    """Whether the low five bits of the first octet tell the length (for hardware that needs it); else they are random."""

    def __post_init__(self) -> None:
        if not 0 <= self.config_id < UNROUTABLE:
            msg = f"the configuration ID has to be 0 to 6, not {self.config_id}"
            raise ValueError(msg)
        if self.server_id_bytes < MIN_SERVER_ID_BYTES:
            msg = "a server ID has at least 1 byte"
            raise ValueError(msg)
        if self.nonce_bytes < MIN_NONCE_BYTES:
            msg = f"a nonce has at least {MIN_NONCE_BYTES} bytes, not {self.nonce_bytes}"
            raise ValueError(msg)
        if self.cid_bytes > MAX_CID_BYTES:
            have, room = self.cid_bytes - 1, MAX_CID_BYTES - 1
            msg = f"server ID, nonce and slot have {have} bytes together, and a connection ID has room for {room}"
            raise ValueError(msg)
        if self.key is not None and len(self.key) != KEY_BYTES:
            msg = f"the key has to have {KEY_BYTES} bytes, not {len(self.key)}"
            raise ValueError(msg)

    @property
    def cid_bytes(self) -> int:
        """Length of the connection IDs."""
        return 1 + self.server_id_bytes + self.nonce_bytes + self.slot


@dataclass(frozen=True, slots=True)
class Decoded:
    """What a connection ID says."""

    server_id: bytes
    nonce: bytes
    slot: int | None
    """Of the worker; None where the layout has none."""


class Codec:
    """Writes and reads the connection IDs of one layout."""

    __slots__ = ("_decrypt", "_encrypt", "layout")

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self._encrypt: Callable[[bytes], bytes] = _same
        self._decrypt: Callable[[bytes], bytes] = _same
        if layout.key is not None:
            self._encrypt, self._decrypt = permutation(layout.key, layout.server_id_bytes + layout.nonce_bytes)

    def encode(self, server_id: bytes, nonce: bytes, *, slot: int = 0, low_bits: int = 0) -> bytes:
        """The connection ID of these parts.

        *slot*, 0 to 255, counts where the layout has one; *low_bits*, 0 to 31, are those of the first octet where it does not tell the
        length, and should be random. A nonce never serves twice. Raises ValueError where a length is not the layout's.
        """
        layout = self.layout
        if len(server_id) != layout.server_id_bytes or len(nonce) != layout.nonce_bytes:
            msg = (
                f"expected a server ID of {layout.server_id_bytes} and a nonce of {layout.nonce_bytes} bytes, "
                f"not {len(server_id)} and {len(nonce)}"
            )
            raise ValueError(msg)
        low = layout.cid_bytes - 1 if layout.length_in_first else low_bits & _LENGTH_BITS
        cid = b"%c%b" % (layout.config_id << 5 | low, self._encrypt(server_id + nonce))
        return b"%b%c" % (cid, slot) if layout.slot else cid

    def decode(self, cid: bytes) -> Decoded:
        """What *cid* says; longer than the layout's is fine. Raises NotRoutable.

        Any bytes of the right length decode to something: whether there is such a server is the caller's to see.
        """
        layout = self.layout
        if not cid or cid[0] >> 5 != layout.config_id:
            msg = f"its configuration ID is {cid[0] >> 5}, not {layout.config_id}" if cid else "it is empty"
            raise NotRoutable(msg)
        if len(cid) < layout.cid_bytes:
            msg = f"it has {len(cid)} bytes, and those of this layout have {layout.cid_bytes}"
            raise NotRoutable(msg)
        split = 1 + layout.server_id_bytes
        end = split + layout.nonce_bytes
        plain = self._decrypt(cid[1:end])
        return Decoded(plain[: split - 1], plain[split - 1 :], cid[end] if layout.slot else None)


@dataclass(frozen=True, slots=True)
class Server:
    """Who issues connection IDs. Several processes may be one server, each with a slot of its own and all with one salt."""

    server_id: bytes
    salt: bytes
    """16 secret bytes."""

    slot: int = 0
    slots: int = 1
    """How many slots there are."""


class Minter:
    """Issues connection IDs of one server, each once.

    Nonces are a counter with a start by *random*, which gives as many random bytes as it is asked for. In clear, where a counter would
    let an observer link the IDs of one client, it stands behind a permutation under the salt. The slots share the nonces out among
    them. When all were used, what follows is unroutable, as section 3.2 of the draft asks. Raises ValueError where the server ID is not
    of the layout's length, or the slot none of the slots.
    """

    def __init__(self, codec: Codec, server: Server, random: Callable[[int], bytes]) -> None:
        if not 0 <= server.slot < server.slots:
            msg = f"slot {server.slot} is none of {server.slots}"
            raise ValueError(msg)
        layout = codec.layout
        codec.encode(server.server_id, bytes(layout.nonce_bytes))  # tells of a wrong length
        self._codec, self._server, self._random = codec, server, random
        self._all = (1 << 8 * layout.nonce_bytes) // server.slots
        self._start = int.from_bytes(random(layout.nonce_bytes)) % self._all
        self._used = 0
        self._disguise = _same if layout.key is not None else permutation(server.salt, layout.nonce_bytes)[0]

    @property
    def left(self) -> int:
        """Routable connection IDs that can still be issued."""
        return self._all - self._used

    def __call__(self) -> bytes:
        """Another connection ID."""
        layout, server = self._codec.layout, self._server
        if self._used == self._all:
            return unroutable(self._random(layout.cid_bytes - 1 - layout.slot), server.slot if layout.slot else None)
        nonce = (self._start + self._used) % self._all * server.slots + server.slot
        self._used += 1
        low_bits = 0 if layout.length_in_first else self._random(1)[0]
        disguised = self._disguise(nonce.to_bytes(layout.nonce_bytes))
        return self._codec.encode(server.server_id, disguised, slot=server.slot, low_bits=low_bits)


def config_id_of(cid: bytes) -> int | None:
    """The configuration ID that *cid* names, 0 to 6; None for an unroutable or empty one."""
    if not cid or cid[0] >> 5 == UNROUTABLE:
        return None
    return cid[0] >> 5


def unroutable(data: bytes, slot: int | None = None) -> bytes:
    """A connection ID that names no server, of *data* and with its length in the first octet; *slot* stands at its end, where given."""
    body = data if slot is None else b"%b%c" % (data, slot)
    return b"%c%b" % (UNROUTABLE << 5 | len(body), body)


def is_unroutable(cid: bytes) -> bool:
    """Whether *cid* looks like one of ``unroutable``."""
    return len(cid) > 0 and cid[0] == UNROUTABLE << 5 | len(cid) - 1


def _same(data: bytes) -> bytes:
    return data


def permutation(key: bytes, length: int) -> tuple[Callable[[bytes], bytes], Callable[[bytes], bytes]]:
    """The draft's cipher for texts of *length* bytes, 4 to 19 (section 5.4), and its inverse. *key*: 16 bytes."""
    cipher = Cipher(algorithms.AES(key), ECB())  # noqa: S305  # one block, and never the same one twice
    block = cipher.encryptor().update
    if length == _BLOCK:
        return block, cipher.decryptor().update
    half, odd = (length + 1) // 2, length % 2
    mask = (1 << 8 * half) - 1
    # The halves as numbers. Of an odd length, the middle octet is shared: four bits of it belong to each.
    left_mask, right_mask = (mask ^ 0xF, mask >> 4) if odd else (mask, mask)
    shift = 8 * (half - odd)

    def mixed(part: int, step: int) -> int:
        """The half that goes into the block, out of it as many bytes."""
        return int.from_bytes(block(b"%b%b%c%c" % (part.to_bytes(half), bytes(14 - half), length, step))[:half])

    def split(data: bytes) -> tuple[int, int]:
        return int.from_bytes(data[:half]) & left_mask, int.from_bytes(data[length - half :]) & right_mask

    def joined(left: int, right: int) -> bytes:
        return (left << shift | right).to_bytes(length)

    def encrypt(data: bytes) -> bytes:
        left, right = split(data)
        right ^= mixed(left, 1) & right_mask
        left ^= mixed(right, 2) & left_mask
        right ^= mixed(left, 3) & right_mask
        left ^= mixed(right, 4) & left_mask
        return joined(left, right)

    def decrypt(data: bytes) -> bytes:
        left, right = split(data)
        left ^= mixed(right, 4) & left_mask
        right ^= mixed(left, 3) & right_mask
        left ^= mixed(right, 2) & left_mask
        right ^= mixed(left, 1) & right_mask
        return joined(left, right)

    return encrypt, decrypt
