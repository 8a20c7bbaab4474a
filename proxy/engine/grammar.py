"""The pieces of a message that have a grammar of their own: names, values, methods, authorities, paths, content-length.

Knows bytes and the RFCs' rules for them (RFC 9110, RFC 3986). Knows nothing of messages or versions: ``validate`` puts the pieces
together. Whatever could be read in two ways is refused. What is remembered between calls is bounded, and is only speed.
"""

import re
from collections.abc import Sequence
from ipaddress import AddressValueError, IPv6Address
from itertools import chain
from typing import NoReturn, TypeAlias

from proxy.engine.seam import EngineLimits
from proxy.message import Headers
from proxy.policy.forwarded import FROM_STRANGERS

REASONS = frozenset(
    {
        "authority",  # missing, malformed, or Host and :authority (or the request target) contradict each other
        "body_length",  # the body and its content-length differ, or a body where none can be
        "chunk",  # malformed chunked coding
        "connection_field",  # connection-specific field on HTTP/2 or HTTP/3, or Connection naming a field that frames
        "content_length",
        "expect",
        "field_name",
        "field_value",
        "header_too_large",
        "method",
        "not_implemented",  # CONNECT, :protocol, Upgrade
        "path",
        "protocol",  # any other breach of the version's own rules, found by an engine
        "pseudo_field",
        "scheme",
        "status",
        "syntax",  # HTTP/1: a line that is no request line, status line or field line
        "too_many_fields",
        "too_many_streams",
        "trailers",
        "transfer_encoding",
        "version",
    }
)
"""Every ``Malformed.reason``: a bounded set, fit for a metric's label."""

CONTENT_LENGTH_DIGITS = 18
"""Longest content-length: every number of so many digits fits 63 bits, so that no backend overflows where we don't."""

AUTHORITY_BYTES = 261
"""Longest authority: a name of 255 octets (RFC 1035, section 2.3.4), a colon and a port."""

NAME_BYTES_REMEMBERED = 64
"""Longer field names are checked anew every time."""

LINE_BYTES_REMEMBERED = 128
"""Longer field lines of HTTP/1 are parsed, and made, anew every time."""

LINES_REMEMBERED = 4096
"""Field lines kept as parsed, and as many as made; a full table starts again. Most lines of a head were in one before."""

NAMES_REMEMBERED = 1024
"""Field names kept as known to be good, in each of two tables; a full table starts again from the well-known names."""

AUTHORITIES_REMEMBERED = 1024
"""Authorities kept as known to be good; a full set starts again."""

_QUOTED_BYTES = 48  # of a hostile value, in Malformed.detail


class Malformed(Exception):  # noqa: N818 - the RFCs' word for it
    """A message that is refused: ``reason`` is in REASONS, ``detail`` is for the log, ``status`` is the answer that fits."""

    def __init__(self, reason: str, detail: str, status: int = 400) -> None:
        super().__init__(detail)
        assert reason in REASONS, reason
        self.reason = reason
        self.detail = detail
        self.status = status


# What a field name means to the validator. Most mean nothing: 0. Pseudo-fields come first, in the order that ``validate`` unpacks.
METHOD, SCHEME, AUTHORITY, PATH, PROTOCOL = 1, 2, 3, 4, 5
LAST_PSEUDO = PROTOCOL
HOST, CONTENT_LENGTH, COOKIE, EXPECT, TE, CONNECTION, TRANSFER_ENCODING, UPGRADE, HOP = 6, 7, 8, 9, 10, 11, 12, 13, 14
# What is nothing to the validator, but to those who pass a message on: what they may have to take out, and Date.
FILTERED, DATE = 15, 16

_PSEUDO = {b":method": METHOD, b":scheme": SCHEME, b":authority": AUTHORITY, b":path": PATH, b":protocol": PROTOCOL}
_MEANING = dict.fromkeys(FROM_STRANGERS, FILTERED) | {
    b"host": HOST,
    b"content-length": CONTENT_LENGTH,
    b"cookie": COOKIE,
    b"expect": EXPECT,
    b"te": TE,
    b"connection": CONNECTION,
    b"transfer-encoding": TRANSFER_ENCODING,
    b"upgrade": UPGRADE,
    b"keep-alive": HOP,
    b"proxy-connection": HOP,
    b"date": DATE,
}
_COMMON = (
    b"Accept Accept-Encoding Accept-Language Authorization Cache-Control Content-Type Date ETag If-Modified-Since If-None-Match "
    b"Last-Modified Location Origin Pragma Range Referer Sec-Fetch-Dest Sec-Fetch-Mode Sec-Fetch-Site Server Set-Cookie User-Agent "
    b"Vary Via X-Forwarded-For X-Forwarded-Host X-Forwarded-Proto X-Request-Id Host Content-Length Cookie Expect TE Connection "
    b"Transfer-Encoding Upgrade Keep-Alive Proxy-Connection"
).split()
_LOWER_BASE = {name.lower(): _MEANING.get(name.lower(), 0) for name in _COMMON} | _PSEUDO
_FOLDED_BASE = {form: (name.lower(), _MEANING.get(name.lower(), 0)) for name in _COMMON for form in (name, name.lower())}

lower_names: dict[bytes, int] = dict(_LOWER_BASE)
"""Known good names of HTTP/2 and HTTP/3, and what they mean. On a miss ask ``learn_lower``."""
folded_names: dict[bytes, tuple[bytes, int]] = dict(_FOLDED_BASE)
"""Known good names of HTTP/1 as sent: their lower case, and what it means. On a miss ask ``learn_folded``."""
_authorities: set[bytes] = set()
PRIVATE = frozenset((b"authorization", b"cookie", b"proxy-authorization", b"set-cookie"))
"""Fields that are never kept: how fast a line is parsed tells nobody whether somebody else sent it."""

PERSISTENCE = frozenset((b"close", b"keep-alive", b"Close", b"Keep-Alive"))
"""What Connection says most often: nothing of other fields, so that the field itself ends where it was parsed."""

_TOKEN_BYTES = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#$%&'*+-.^_`|~"  # RFC 9110, section 5.6.2
_SECTION_BYTES = b"\t\n" + bytes(range(0x20, 0x7F)) + bytes(range(0x80, 0x100))  # RFC 9110, section 5.5; LF: our separator
_TARGET_BYTES = bytes(set(range(0x21, 0x7F)) - {ord("#")})
METHODS = frozenset((b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"PATCH"))
_HOST_PORT = re.compile(rb"((?:[A-Za-z0-9_-]+\.)*[A-Za-z0-9_-]+\.?|\[[0-9A-Fa-f:.]{2,45}\])(?::([0-9]{1,5}))?")
# Some servers take "\" for "/", cut ";parameters" off a segment before they resolve it, or decode %2f and %5c first.
_DOT_SEGMENT = re.compile(rb"(?:[/\\]|%2f|%5c)(?:\.|%2e){1,2}(?:[/\\;]|%2f|%5c|%3b|$)", re.IGNORECASE)
_BAD_PERCENT = re.compile(rb"%(?![0-9A-Fa-f]{2})|%[01][0-9A-Fa-f]|%7f", re.IGNORECASE)


def quote(value: bytes) -> str:
    """The beginning of a hostile value, printable, for the log."""
    return ascii(value[:_QUOTED_BYTES])[1:]


def check_section(fields: Sequence[tuple[bytes, bytes]], limits: EngineLimits, extra: int = 0) -> bytes:
    """Bounds and bytes of a whole section at once; returns names and values joined by LF. *extra* bytes count towards the limit."""
    count = len(fields)
    if count > limits.header_count:
        raise Malformed("too_many_fields", f"{count} fields", 431)
    blob = b"\n".join(chain.from_iterable(fields))
    separators = 2 * count - 1 if count else 0
    if len(blob) - separators + 32 * count + extra > limits.header_bytes:
        raise Malformed("header_too_large", f"over {limits.header_bytes} bytes", 431)
    if blob.translate(None, _SECTION_BYTES) or blob.count(b"\n") != separators:
        _blame(fields)
    return blob


def check_lines(lines: Sequence[bytes], limits: EngineLimits, extra: int = 0) -> None:
    """The same bounds for field lines, each with its colon and without its end; their bytes are judged line by line."""
    count = len(lines)
    if count > limits.header_count:
        raise Malformed("too_many_fields", f"{count} fields", 431)
    if sum(map(len, lines)) + 31 * count + extra > limits.header_bytes:
        raise Malformed("header_too_large", f"over {limits.header_bytes} bytes", 431)


def _blame(fields: Sequence[tuple[bytes, bytes]]) -> NoReturn:
    """Say which field has the control character that ``check_section`` met."""
    for name, value in fields:
        if value.translate(None, _SECTION_BYTES) or b"\n" in value:
            raise Malformed("field_value", f"control character in {quote(name)}")
        if name.translate(None, _SECTION_BYTES) or b"\n" in name:
            break
    raise Malformed("field_name", "control character")


def learn_lower(name: bytes) -> int:
    """Check a name of HTTP/2 or HTTP/3 that is not in ``lower_names``; upper case is malformed (RFC 9113, section 8.2.1)."""
    if name[:1] == b":":
        raise Malformed("pseudo_field", quote(name))
    if not name or name.translate(None, _TOKEN_BYTES) or name != name.lower():
        raise Malformed("field_name", quote(name))
    code = _MEANING.get(name, 0)
    if len(name) <= NAME_BYTES_REMEMBERED:
        if len(lower_names) >= NAMES_REMEMBERED:
            lower_names.clear()
            lower_names.update(_LOWER_BASE)
        lower_names[name] = code
    return code


def learn_folded(name: bytes) -> tuple[bytes, int]:
    """Check a name of HTTP/1 that is not in ``folded_names``: its lower case and meaning. White space is malformed."""
    if not name or name.translate(None, _TOKEN_BYTES):
        raise Malformed("field_name", quote(name))
    lower = name.lower()
    entry = (lower, _MEANING.get(lower, 0))
    if len(name) <= NAME_BYTES_REMEMBERED:
        if len(folded_names) >= NAMES_REMEMBERED:
            folded_names.clear()
            folded_names.update(_FOLDED_BASE)
        folded_names[name] = entry
    return entry


Entry: TypeAlias = tuple[tuple[bytes, bytes], int]
"""A field of HTTP/1, checked: lower-case name and stripped value, and what the name means."""


class Lines(dict[bytes, Entry]):
    """Field lines that were parsed before; any other is parsed when it is asked for (``learn_line``)."""

    def __missing__(self, line: bytes) -> Entry:
        return learn_line(line)


known_lines = Lines()


def learn_line(line: bytes) -> Entry:
    """Parse and check a field line of HTTP/1 that is not in ``known_lines`` (RFC 9112, section 5). Raises Malformed."""
    raw, colon, padded = line.partition(b":")
    if not colon:
        raise Malformed("syntax", quote(line))
    entry = folded_field(raw, padded)
    if len(line) <= LINE_BYTES_REMEMBERED and entry[0][0] not in PRIVATE:
        if len(known_lines) >= LINES_REMEMBERED:
            known_lines.clear()
        known_lines[line] = entry
    return entry


def folded_field(raw: bytes, padded: bytes) -> Entry:
    """Check a field of HTTP/1: its name in any case, its value with white space around it. Raises Malformed."""
    if padded.translate(None, _SECTION_BYTES) or b"\n" in padded:
        raise Malformed("field_value", f"control character in {quote(raw)}")
    name, code = folded_names.get(raw) or learn_folded(raw)
    return (name, padded.strip(b" \t")), code


def add_content_length(value: bytes, before: int | None, headers: Headers) -> int:
    """Digits only, and again only if it says the same (RFC 9110, section 8.6): kept in *headers* once, canonical."""
    if len(value) > CONTENT_LENGTH_DIGITS or not value.isdigit():
        raise Malformed("content_length", quote(value))
    length = int(value)
    if before is None:
        headers.append((b"content-length", str(length).encode() if value[:1] == b"0" else value))
    elif before != length:
        raise Malformed("content_length", f"{before} and {length}")
    return length


def check_method(method: bytes) -> None:
    """A token (RFC 9110, section 9.1). CONNECT is refused with 501."""
    if method in METHODS:
        return
    if method == b"CONNECT":
        raise Malformed("not_implemented", "CONNECT", 501)
    if not method or method.translate(None, _TOKEN_BYTES):
        raise Malformed("method", quote(method))


def check_path(path: bytes, method: bytes) -> None:
    """Origin-form with its query, or ``*`` for OPTIONS: visible ASCII, no fragment, and one reading only of its path.

    Refused beyond RFC 3986: dot segments however written, backslash, and percent-encoded control characters in the path, since
    servers differ in what they make of them. The query is the application's own.
    """
    if path[:1] != b"/":
        if path == b"*" and method == b"OPTIONS":
            return
        raise Malformed("path", quote(path))
    if path.translate(None, _TARGET_BYTES):
        raise Malformed("path", quote(path))
    if 0x25 in path or 0x5C in path or path.find(b"/.") >= 0:  # "%" and "\\": octets are found six times as fast as strings of one
        path = path.partition(b"?")[0]
        if 0x5C in path or _BAD_PERCENT.search(path) or _DOT_SEGMENT.search(path):
            raise Malformed("path", quote(path))


def check_authority(authority: bytes) -> None:
    """Host and optional port (RFC 9110, section 4.2): a name of letters, digits, ``-``, ``_`` and dots, or an IP literal.

    Narrower than reg-name of RFC 3986: user information, percent-encoding, sub-delimiters, an empty port and port 0 are refused.
    """
    if authority in _authorities:
        return
    match = _HOST_PORT.fullmatch(authority) if len(authority) <= AUTHORITY_BYTES else None
    if match is None or (match[2] is not None and not 0 < int(match[2]) < 65536):
        raise Malformed("authority", quote(authority))
    if authority[:1] == b"[":
        try:
            IPv6Address(match[1][1:-1].decode())
        except AddressValueError:
            raise Malformed("authority", quote(authority)) from None
    if len(_authorities) >= AUTHORITIES_REMEMBERED:
        _authorities.clear()
    _authorities.add(authority)


_DEFAULT_PORT = {b"http": b":80", b"https": b":443"}


def agree(authority: bytes | None, host: bytes | None, scheme: bytes) -> bytes:
    """The authority of a request that may name it twice (RFC 9113, section 8.3.1): both must name the same; one is enough."""
    if authority is None:
        if host is None:
            raise Malformed("authority", "no host")
        check_authority(host)
        return host
    check_authority(authority)
    if host is not None and host != authority:
        check_authority(host)
        port = _DEFAULT_PORT[scheme]
        if authority.lower().removesuffix(port) != host.lower().removesuffix(port):
            raise Malformed("authority", f"{quote(authority)} and host {quote(host)}")
    return authority
