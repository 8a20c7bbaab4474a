"""TLS for one TCP connection, server side, on OpenSSL over memory BIOs: bytes in, bytes out.

Knows the standard ``ssl`` module and nothing of sockets, the event loop or how a context is chosen. asyncio's and uvloop's own TLS
protocols are not used: they keep a 256 KiB buffer per connection and let nobody read the ClientHello first.
"""

import ssl
from collections.abc import Callable

FAILURES = frozenset(
    {
        "no_shared_cipher",
        "no_shared_group",
        "unsupported_protocol",
        "unrecognized_name",
        "no_application_protocol",
        "certificate_required",
        "bad_client_certificate",
        "client_alert",
        "decode_error",
        "not_tls",
        "timeout",
        "closed",
        "other",
    }
)
"""Every reason for which a handshake fails: the label of a metric. ``timeout`` and ``closed`` are found by the listener."""

READ_LIMIT = 256 * 1024
"""Decrypted bytes that one ``read`` gives, at most (and one record more)."""

_RECORD = 16384
"""Plaintext of one record, at most (RFC 8446, section 5.1): OpenSSL reads and writes no more at a time."""

_PIECE = 32 * 1024
"""Ciphertext given to OpenSSL at once. A memory BIO never shrinks, so this bounds what an idle connection keeps."""


class TlsFailure(Exception):  # noqa: N818  # a peer's fault that is expected, not an error of ours
    """The TLS connection is over. ``reason`` is one of ``FAILURES``, ``detail`` is for the log.

    ``alert`` has the bytes to send where no session was made; a session gives its own through ``take``.
    """

    def __init__(self, reason: str, detail: str, alert: bytes = b"") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail
        self.alert = alert


class TlsSession:
    """TLS for one connection, server side: ``feed`` ciphertext, ``handshake`` until it is done, then ``decrypt`` and ``encrypt``.

    Or their parts: ``feed`` and ``read``; ``write`` and ``take``. After every call but ``encrypt``, ``take`` has the
    bytes to send. ``alpn``, ``cipher`` and ``version`` hold once the handshake is done.
    """

    __slots__ = ("_backlog", "_failed", "_incoming", "_outgoing", "_read", "_taken", "_tls", "_write", "closed", "pending")

    def __init__(self, context: ssl.SSLContext) -> None:
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        bare = getattr(self._tls, "_sslobj", self._tls)  # what is under SSLObject has the same two methods, one call less deep
        self._read: Callable[[int], bytes] = bare.read
        self._write: Callable[[bytes | memoryview], int] = bare.write
        self._taken: list[bytes] = []
        self._failed: TlsFailure | None = None
        self._backlog: list[memoryview] = []
        """Ciphertext that waits for room in the BIO, pieces in reverse order."""
        self.closed = False
        """The client sent close_notify: nothing more comes, but our side may still send (RFC 8446, section 6.1)."""
        self.pending = False
        """``read`` stopped at its limit: call it again before the next ``feed``."""

    def feed(self, data: bytes | memoryview) -> None:
        """Take ciphertext as received (copied: a shared buffer may be used again). Bounded by the caller: ``read`` before the next."""
        if self.closed:
            return
        if len(data) <= _PIECE and not self._backlog:
            self._incoming.write(data)
            return
        view = memoryview(bytes(data))
        self._backlog[:0] = [view[at : at + _PIECE] for at in range((len(view) - 1) // _PIECE * _PIECE, -1, -_PIECE)]
        if not self._incoming.pending:
            self._refill()

    def _refill(self) -> bool:
        """Move a piece from the backlog to OpenSSL; False when there is none."""
        if not self._backlog:
            return False
        self._incoming.write(self._backlog.pop())
        return True

    def handshake(self) -> bool:
        """Go on with the handshake; True when it is done. Raises TlsFailure."""
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                if not self._refill():
                    return False
            except ssl.SSLError as error:
                raise _failure(error) from None
            else:
                return True

    def read(self) -> bytes:
        """What can be decrypted now, at most about ``READ_LIMIT`` bytes: empty for none. Raises TlsFailure."""
        if self._failed is not None:
            raise self._failed
        incoming = self._incoming
        self.pending = False
        if self.closed or not (incoming.pending or self._refill()):
            return b""
        return self._records([])

    def decrypt(self, data: bytes | memoryview) -> bytes:
        """``feed`` and the first ``read`` after it. Raises TlsFailure."""
        incoming = self._incoming
        if self._backlog or self._failed is not None or self.closed or not 0 < len(data) <= _PIECE or incoming.pending:
            self.feed(data)
            return self.read()
        incoming.write(data)
        wanted = min(len(data), _RECORD)
        try:
            plain = self._read(wanted)
        except ssl.SSLWantReadError:
            return b""
        except ssl.SSLError as error:
            self._failed = _failure(error)
            raise self._failed from None
        if not plain:
            self.closed = True
            return b""
        if not incoming.pending and (len(plain) < wanted or wanted == _RECORD):
            return plain
        return self._records([plain])

    def _records(self, got: list[bytes]) -> bytes:
        read, incoming = self._read, self._incoming
        size = sum(map(len, got))
        while True:
            # Plaintext is shorter than its record, unless OpenSSL has the beginning of the record already.
            wanted = min(incoming.pending or _RECORD, _RECORD)
            try:
                data = read(wanted)
            except ssl.SSLWantReadError:
                if self._refill():
                    continue
                break
            except ssl.SSLError as error:
                self._failed = _failure(error)
                if not got:
                    raise self._failed from None
                self.pending = True  # Whole records came before the broken one: they count; the next call raises.
                break
            if not data:  # close_notify: whoever waited for SSLWantReadError here would wait for ever.
                self.closed = True
                self._backlog.clear()
                break
            got.append(data)
            size += len(data)
            # An empty BIO after a whole record saves the exception of one more read: OpenSSL reads record by record, never ahead.
            if (len(data) < wanted or wanted == _RECORD) and not incoming.pending and not self._refill():
                break
            if size >= READ_LIMIT:
                self.pending = True
                break
        return got[0] if len(got) == 1 else b"".join(got)

    def encrypt(self, data: bytes) -> bytes:
        """``write`` and ``take``: the bytes to send. Raises TlsFailure."""
        if 0 < len(data) <= _RECORD and not self._taken:
            try:
                self._write(data)  # takes all of it: a memory BIO is never full
            except ssl.SSLError as error:
                raise _failure(error) from None
            return self._outgoing.read()
        self.write(data)
        return self.take()

    def write(self, data: bytes) -> None:
        """Encrypt all of *data*. Raises TlsFailure."""
        write = self._write
        size = len(data)
        try:
            sent = write(data) if 0 < size <= _RECORD else 0
            if sent < size:
                view = memoryview(data)
                while sent < size:
                    sent += write(view[sent : sent + _RECORD])
                    self._taken.append(self._outgoing.read())  # record by record, so that the BIO stays small
        except ssl.SSLError as error:
            raise _failure(error) from None

    def take(self) -> bytes:
        """Ciphertext to send now; empty for none."""
        last = self._outgoing.read()
        if not self._taken:
            return last
        self._taken.append(last)
        whole = b"".join(self._taken)
        self._taken.clear()
        return whole

    def close_notify(self) -> None:
        """Queue our close_notify alert; without effect when the connection is broken or closed already."""
        try:
            self._tls.unwrap()
        except ssl.SSLError:  # The client's own close_notify is still to come (SSLWantReadError), or the connection is broken.
            return

    @property
    def alpn(self) -> str | None:
        """``h2``, ``http/1.1``, ``http/1.0``, or None where the client offered none."""
        return self._tls.selected_alpn_protocol()

    @property
    def cipher(self) -> str:
        """Name of the cipher suite, empty before the handshake."""
        cipher = self._tls.cipher()
        return cipher[0] if cipher else ""

    @property
    def version(self) -> str:
        """``TLSv1.3``, empty before the handshake."""
        return self._tls.version() or ""

    @property
    def resumed(self) -> bool:
        """Whether a session ticket was used."""
        return bool(self._tls.session_reused)

    @property
    def client_certificate(self) -> bytes | None:
        """The client's verified certificate (DER), or None."""
        return self._tls.getpeercert(binary_form=True)


_REASONS = {
    "NO_SHARED_CIPHER": "no_shared_cipher",
    "NO_SUITABLE_KEY_SHARE": "no_shared_group",
    "NO_SHARED_GROUPS": "no_shared_group",
    "NO_SUITABLE_GROUPS": "no_shared_group",
    "UNSUPPORTED_PROTOCOL": "unsupported_protocol",
    "VERSION_TOO_LOW": "unsupported_protocol",
    "NO_APPLICATION_PROTOCOL": "no_application_protocol",
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "certificate_required",
    "CERTIFICATE_VERIFY_FAILED": "bad_client_certificate",
    "BAD_SIGNATURE": "bad_client_certificate",
    "BAD_EXTENSION": "decode_error",
    "BAD_HANDSHAKE_LENGTH": "decode_error",
    "BAD_LENGTH": "decode_error",
    "BAD_PACKET_LENGTH": "decode_error",
    "BAD_RECORD_TYPE": "decode_error",
    "DATA_LENGTH_TOO_LONG": "decode_error",
    "DECRYPTION_FAILED_OR_BAD_RECORD_MAC": "decode_error",
    "ENCRYPTED_LENGTH_TOO_LONG": "decode_error",
    "LENGTH_MISMATCH": "decode_error",
    "LENGTH_TOO_SHORT": "decode_error",
    "RECORD_LENGTH_MISMATCH": "decode_error",
    "UNEXPECTED_MESSAGE": "decode_error",
    "UNEXPECTED_RECORD": "decode_error",
    "UNSOLICITED_EXTENSION": "decode_error",
    "WRONG_VERSION_NUMBER": "decode_error",
}


def _failure(error: ssl.SSLError) -> TlsFailure:
    """Translate OpenSSL's error; its alert is in the outgoing BIO."""
    name: str = getattr(error, "reason", None) or ""  # None where this Python is older than the reason
    text = name.lower().replace("_", " ") or str(error.args[-1]).partition("] ")[2].partition(" (_ssl")[0]
    reason = _REASONS.get(name) or ("client_alert" if " alert " in text else "other")
    return TlsFailure(reason, getattr(error, "verify_message", None) or text)
