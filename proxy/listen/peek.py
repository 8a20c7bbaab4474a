"""Reads the first bytes of a TCP connection: plain HTTP or TLS, and what the ClientHello asks for.

Knows the record layer and the ClientHello as far as SNI, ALPN and the versions (RFC 8446 sections 4.1.2 and 5.1, RFC 6066 section 3,
RFC 7301 section 3.1); decrypts nothing and decides nothing. The certificate is chosen by SNI *before* the TLS object is made, since
OpenSSL does not enforce the client-certificate rule of a context that is swapped in during the handshake. Bytes in, result out: no
I/O, no clock (the listener owns the handshake deadline). PROXY protocol comes before it and has its own reader.
"""

import re
import struct
from dataclasses import dataclass
from typing import TypeAlias

MAX_HELLO = 64 * 1024
"""Bytes of one ClientHello, record headers included. The largest in the field (post-quantum key shares) are about 2 KiB."""

MAX_RECORD = 1 << 14
"""Bytes of plaintext in one record (RFC 8446, section 5.1)."""

_HANDSHAKE_RECORD = 0x16
_CLIENT_HELLO = 1
_HOST = re.compile(rb"[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*\.?\Z")
_MAX_HOST = 255
_TLS_13 = 0x0304
_FINITE_FIELD = 1
"""High octet of the named groups over finite fields (RFC 7919, section 2)."""


@dataclass(slots=True)
class PlainHttp:
    """The first byte is that of an HTTP request, never of a TLS record."""


@dataclass(slots=True)
class ClientHello:
    """What a well-formed ClientHello says. The bytes still go to the TLS library, which judges the rest."""

    sni: str | None
    """Host name, lower case ASCII without a trailing dot; None when absent, or when what stands there can't be a host name."""
    alpn: tuple[bytes, ...]
    """Protocols offered, in the client's order; empty when the extension is absent."""
    versions: tuple[int, ...]
    """Versions offered (0x0304 is TLS 1.3), unknown ones included."""
    finite_field: bool = False
    """The key exchange would be over a finite field (RFC 7919): ffdhe8192 costs a server 100 ms of CPU, a hundred times X25519."""

    @property
    def offers_tls13(self) -> bool:
        """Whether TLS 1.3 is among the versions."""
        return _TLS_13 in self.versions


@dataclass(slots=True)
class NotTls:
    """Neither a TLS handshake nor HTTP: nothing that we send would be understood."""

    detail: str
    reason: str = "not_tls"
    """One of ``tls.FAILURES``."""


@dataclass(slots=True)
class Malformed:
    """A TLS handshake that breaks the rules: answer with ``tls.DECODE_ERROR_ALERT``."""

    detail: str
    reason: str = "decode_error"
    """One of ``tls.FAILURES``."""


Result: TypeAlias = PlainHttp | ClientHello | NotTls | Malformed


class Peek:
    """Collects the first bytes of one connection until they tell what it is.

    ``data`` has every byte that was fed, for whoever comes next. At most ``MAX_HELLO`` bytes and one read are ever held; each byte is
    looked at a bounded number of times, however small the pieces are.
    """

    __slots__ = ("_body", "_data", "_next_record")

    def __init__(self) -> None:
        self._data: bytes | bytearray = b""
        self._body: bytearray | None = None
        """Handshake bytes out of complete records, once the ClientHello turned out to span more than one."""
        self._next_record = 0

    @property
    def data(self) -> bytes:
        """All bytes fed so far."""
        return bytes(self._data)

    def feed(self, data: bytes) -> Result | None:
        """Take more bytes; None while they don't suffice. Not to be called again after a result. Never raises."""
        if not self._data:
            self._data = data
        else:
            if type(self._data) is bytes:
                self._data = bytearray(self._data)
            self._data += data
        held = self._data
        if not held:
            return None
        if held[0] != _HANDSHAKE_RECORD:
            return PlainHttp() if _is_letter(held[0]) else NotTls("first byte is neither a TLS record nor a method")
        if len(held) > 1 and held[1] != 3:
            return NotTls("record version is not of TLS")
        if len(held) > 9 and self._body is None:
            record = held[3] << 8 | held[4]
            if record <= MAX_RECORD and len(held) >= 5 + record:
                hello = held[6] << 16 | held[7] << 8 | held[8]
                if hello + 4 <= record and held[5] == _CLIENT_HELLO:
                    return _parse(bytes(held), 9, 9 + hello)
        return self._assemble(held)

    def _assemble(self, held: bytes | bytearray) -> Result | None:
        """The ClientHello is not all in the first record, or not all here yet."""
        body = self._body
        at = self._next_record
        while len(held) >= at + 5:
            kind, major, _minor, length = struct.unpack_from("!BBBH", held, at)
            if kind != _HANDSHAKE_RECORD or major != 3:
                return Malformed("another record inside the ClientHello")
            if not 0 < length <= MAX_RECORD:
                return Malformed("record length out of range")
            if len(held) < at + 5 + length:
                break
            if body is None:
                body = self._body = bytearray()
            body += held[at + 5 : at + 5 + length]
            at = self._next_record = at + 5 + length
            if body[0] != _CLIENT_HELLO:
                return Malformed("handshake does not begin with a ClientHello")
            if len(body) >= 4:
                end = 4 + int.from_bytes(body[1:4])
                if end > MAX_HELLO:
                    return Malformed("ClientHello too large")
                if len(body) >= end:
                    return _parse(bytes(body), 4, end)
        return Malformed("ClientHello too large") if len(held) >= MAX_HELLO else None


def _is_letter(byte: int) -> bool:
    """Methods are tokens (RFC 9110, section 9.1), and all that anybody uses begin with a letter."""
    return 0x41 <= byte <= 0x5A or 0x61 <= byte <= 0x7A


def _parse(data: bytes, at: int, end: int) -> ClientHello | Malformed:
    """A ClientHello whose body is ``data[at:end]``."""
    try:
        return _parse_checked(data, at, end)
    except (IndexError, struct.error):
        return Malformed("ClientHello ends early")


def _parse_checked(data: bytes, at: int, end: int) -> ClientHello | Malformed:
    """The same; reads past the whole input raise, reads past *end* are noticed by the lengths, which must meet it exactly."""
    version = _pair(data, at)
    at += 34  # legacy_version, random
    length = data[at]
    if length > 32:
        return Malformed("session id too long")
    at += 1 + length
    length = _pair(data, at)
    if length < 2 or length & 1:
        return Malformed("cipher suites of a wrong length")
    at += 2 + length
    at += 1 + data[at]  # compression methods
    if at == end:
        return ClientHello(None, (), (version,))  # TLS 1.2 allows a hello without extensions
    if at + 2 + _pair(data, at) != end:
        return Malformed("extensions of a wrong length")
    at += 2
    sni: str | None = None
    alpn: tuple[bytes, ...] | None = None
    versions: tuple[int, ...] | None = None
    named = finite_field = False
    while at < end:
        kind, length = struct.unpack_from("!HH", data, at)
        at += 4
        after = at + length
        if after > end:
            return Malformed("extension longer than the ClientHello")
        if kind == 0:
            if named:
                return Malformed("two server_name extensions")
            named = True
            # One list with one host_name (RFC 6066, section 3: not two of a type, and no other type was ever defined).
            if length < 6 or data[at + 2] or _pair(data, at) != length - 2 or _pair(data, at + 3) != length - 5:
                return Malformed("server_name of a wrong form")
            sni = _host(data[at + 5 : after])
        elif kind == 16:
            if alpn is not None:
                return Malformed("two ALPN extensions")
            alpn = _protocols(data, at, after)
            if not alpn:
                return Malformed("ALPN of a wrong form")
        elif kind == 43:
            count = data[at] >> 1 if length else 0
            if versions is not None or not count or length != 1 + 2 * count or data[at] & 1:
                return Malformed("supported_versions of a wrong form")
            versions = struct.unpack_from(f"!{count}H", data, at + 1)
        elif kind == 10:
            if length < 4 or length & 1 or _pair(data, at) != length - 2:
                return Malformed("supported_groups of a wrong form")
            # A server answers with the first of its own groups that the client has, and has elliptic curves before finite fields.
            if data[at + 2] == _FINITE_FIELD and data[at + 2 : after : 2].count(_FINITE_FIELD) == length // 2 - 1:
                finite_field = True
        elif kind == 51:
            share = at + 2
            while share < after:
                if data[share] == _FINITE_FIELD:
                    finite_field = True
                share += 4 + _pair(data, share + 2)
            if length < 2 or _pair(data, at) != length - 2 or share != after:
                return Malformed("key_share of a wrong form")
        at = after
    return ClientHello(sni, alpn or (), versions or (version,), finite_field)


def _pair(data: bytes, at: int) -> int:
    return data[at] << 8 | data[at + 1]


def _host(name: bytes) -> str | None:
    """A host name as the configuration knows them; None for what no certificate of ours can be meant by."""
    if len(name) > _MAX_HOST or _HOST.match(name) is None:
        return None
    text = name.decode("ascii").lower()
    return text[:-1] if text[-1] == "." else text


def _protocols(data: bytes, at: int, end: int) -> tuple[bytes, ...]:
    """ProtocolNameList in ``data[at:end]``; empty when it is not one (RFC 7301, section 3.1: no empty name, no empty list)."""
    if end - at < 2 or at + 2 + _pair(data, at) != end:
        return ()
    at += 2
    found = []
    while at < end:
        after = at + 1 + data[at]
        if after > end or after == at + 1:
            return ()
        found.append(data[at + 1 : after])
        at = after
    return tuple(found)
