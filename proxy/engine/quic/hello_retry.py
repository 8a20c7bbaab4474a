"""HelloRetryRequest for aioquic, which has none: a client whose key share is of no group of ours is asked for another one.

RFC 8446, section 4.1.4. Clients send shares of the groups that they think likely; who guesses wrong has a round trip more.
Knows TLS messages and no packets.
"""

from collections.abc import Sequence
from typing import Any

from aioquic import tls
from aioquic._buffer import Buffer
from cryptography.hazmat.primitives import hashes

_RANDOM = bytes.fromhex("cf21ad74e59a6111be1d8c021e65b891c2a211167abb8c5e079e09e2c8a8339c")
"""Makes a ServerHello a HelloRetryRequest (section 4.1.3)."""

_MESSAGE_HASH = 254  # section 4.4.1


class HelloRetry:
    """A request that was sent: what the next ClientHello has to be like, and what its transcript begins with."""

    __slots__ = ("_cipher", "_group", "_transcript")

    def __init__(self, first: bytes, group: int, cipher: tls.CipherSuite) -> None:
        digest = hashes.Hash(tls.cipher_suite_hash(cipher))
        digest.update(first)
        hashed = digest.finalize()
        self._group = group
        self._cipher = cipher
        self._transcript = bytes((_MESSAGE_HASH, 0, 0, len(hashed))) + hashed

    def write(self, hello: tls.ClientHello, buffer: Buffer) -> None:
        """Ask for it."""
        start = buffer.tell()
        tls.push_server_hello(
            buffer,
            tls.ServerHello(
                random=_RANDOM,
                legacy_session_id=hello.legacy_session_id,
                cipher_suite=self._cipher,
                compression_method=tls.CompressionMethod.NULL,
                supported_version=tls.TLS_VERSION_1_3,
                other_extensions=[(tls.ExtensionType.KEY_SHARE, self._group.to_bytes(2))],
            ),
        )
        self._transcript += buffer.data_slice(start, buffer.tell())

    def check(self, hello: tls.ClientHello, cipher: tls.CipherSuite) -> None:
        """Whether this is what was asked for. Raises an Alert."""
        if [group for group, _ in hello.key_share or ()] != [self._group] or cipher != self._cipher:
            msg = "not the ClientHello that was asked for"
            raise tls.AlertIllegalParameter(msg)

    def retold(self, message: Buffer) -> Any:
        """The second ClientHello for the library: as a transcript, it is what was said before as well."""
        return _Retold(message, self._transcript)


class _Retold:
    """Stands for a ``Buffer``, which can't be derived from."""

    __slots__ = ("_before", "_message")

    def __init__(self, message: Buffer, before: bytes) -> None:
        self._message = message
        self._before = before

    @property
    def data(self) -> bytes:
        """What the library hashes."""
        return self._before + self._message.data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._message, name)


def group_to_ask(hello: tls.ClientHello, ours: Sequence[int]) -> int | None:
    """The client's first choice of *ours*, where it sent a share of none of them; else None."""
    if hello.key_share is None or any(group in ours for group, _ in hello.key_share):
        return None
    return next((group for group in hello.supported_groups or () if group in ours), None)
