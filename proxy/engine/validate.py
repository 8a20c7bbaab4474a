"""One strict validator of messages for all versions of HTTP (RFC 9110, 9112, 9113, 9114).

Knows requests, responses and trailers as lists of fields, on HTTP/1 as field lines. Knows nothing of frames, bodies or connections: an
engine splits a message and hands its head in. What comes out means the same to every backend; what could be read in two ways is refused.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from proxy.engine.events import RequestHead, ResponseHead
from proxy.engine.grammar import (
    CONNECTION,
    CONTENT_LENGTH,
    COOKIE,
    DATE,
    EXPECT,
    FILTERED,
    HOP,
    HOST,
    LAST_PSEUDO,
    PERSISTENCE,
    REASONS,
    TE,
    TRANSFER_ENCODING,
    UPGRADE,
    Malformed,
    add_content_length,
    agree,
    check_lines,
    check_method,
    check_path,
    check_section,
    folded_names,
    known_lines,
    learn_folded,
    learn_lower,
    lower_names,
    quote,
)
from proxy.engine.seam import EngineLimits
from proxy.message import Headers

__all__ = [
    "REASONS",
    "RESPONSE_LIMITS",
    "Framing",
    "Malformed",
    "plain_request",
    "plain_response",
    "pseudo_request",
    "trailers",
]

RESPONSE_LIMITS = EngineLimits(header_count=200, header_bytes=64 * 1024)
"""Bounds of a backend's header section: wider than a client's, since the configuration chose the backend."""


@dataclass(frozen=True, slots=True)
class Framing:
    """What an HTTP/1 message says of its body and of its connection, besides content-length."""

    transfer_encoding: bytes = b""
    """Lower case, fields joined by commas, empty when there is none; not among the fields of the head."""
    connection: bytes = b""
    """The value of Connection, likewise. The field itself is kept only where it may name others."""
    accepts_trailers: bool = False
    """The client said ``TE: trailers``."""


_UNSAID = Framing()
_WS = b" \t"
_SCHEMES = frozenset((b"http", b"https"))
_FRAMING_NAMES = frozenset((b"content-length", b"transfer-encoding", b"host"))
_TRAILER_MALFORMED = frozenset((HOST, CONTENT_LENGTH, CONNECTION, TRANSFER_ENCODING, UPGRADE, HOP))
_TRAILER_DROPPED = frozenset(  # RFC 9110, section 6.5.1: routing, authentication, request modifiers, content description
    b"age authorization cache-control content-encoding content-range content-type cookie date expect expires forwarded if-match "
    b"if-modified-since if-none-match if-range if-unmodified-since location max-forwards proxy-authenticate proxy-authorization "
    b"range retry-after set-cookie te trailer vary www-authenticate x-forwarded-for x-forwarded-host x-forwarded-proto".split()
)


def pseudo_request(stream: int, fields: Sequence[tuple[bytes, bytes]], limits: EngineLimits, *, end: bool) -> RequestHead:
    """The head of an HTTP/2 or HTTP/3 request (RFC 9113 section 8.3, RFC 9114 section 4.3). Cookie crumbs are joined into one.

    *end*: no body follows. That content-length agrees with that, the engine judges.

    Raises Malformed: 400, 417 for an unknown expectation, 431 over a limit, 501 for CONNECT and ``:protocol``.
    """
    check_section(fields, limits)
    pseudo: list[bytes | None] = [None] * (LAST_PSEUDO + 1)
    host: bytes | None = None
    length: int | None = None
    crumbs = -1
    regular = expect = False
    plain = True
    headers: Headers = []
    names = lower_names
    for field in fields:
        name, value = field
        code = names.get(name)
        if code is None:
            code = learn_lower(name)
        if value.strip(_WS) != value:
            raise Malformed("field_value", "white space around it")
        if not code:
            headers.append(field)
        elif code <= LAST_PSEUDO:
            if regular or headers:
                raise Malformed("pseudo_field", f"{name.decode()} after a regular field")
            if pseudo[code] is not None:
                raise Malformed("pseudo_field", f"{name.decode()} twice")
            pseudo[code] = value
        elif code == COOKIE:
            if crumbs < 0:
                crumbs = len(headers)
                headers.append(field)
            else:
                headers[crumbs] = (name, headers[crumbs][1] + b"; " + value)
        else:
            regular = True
            if code == CONTENT_LENGTH:
                length = add_content_length(value, length, headers)
            elif code == HOST and host is None:
                host = value
            elif code == HOST:
                raise Malformed("authority", "host twice")
            elif code == EXPECT:
                expect = _expectation(value)
            elif code == DATE:
                headers.append(field)
            elif code == FILTERED or (code == TE and value.lower() == b"trailers"):
                plain = False
                headers.append(field)
            else:
                raise Malformed("connection_field", f"{name.decode()}: {quote(value)}")
    _, method, scheme, authority, path, protocol = pseudo
    if method is None:
        raise Malformed("pseudo_field", ":method is missing")
    if protocol is not None:
        raise Malformed("not_implemented", ":protocol", 501)
    check_method(method)
    if scheme is None or path is None:
        raise Malformed("pseudo_field", ":scheme is missing" if scheme is None else ":path is missing")
    if scheme not in _SCHEMES:
        raise Malformed("scheme", quote(scheme))
    check_path(path, method)
    return RequestHead(stream, method, scheme, agree(authority, host, scheme), path, headers, end, length, expect, plain)


def plain_request(  # noqa: PLR0913 - what a request line and its connection say, each once
    stream: int,
    method: bytes,
    target: bytes,
    lines: Sequence[bytes],
    limits: EngineLimits,
    *,
    scheme: bytes,
    http_1_0: bool = False,
) -> tuple[RequestHead, Framing]:
    """The head of an HTTP/1 request (RFC 9112), its field lines without their ends.

    ``end`` and ``expect_continue`` are left to the engine, which knows how the body is framed.
    HTTP/1.0 may go without Host, may not use Transfer-Encoding, and has no expectations (RFC 9110, section 10.1.1).
    Raises Malformed: 400, 417 for an unknown expectation, 431 over a limit, 501 for CONNECT, Upgrade and unknown codings.
    """
    check_lines(lines, limits, len(method) + len(target))
    host: bytes | None = None
    length: int | None = None
    expect = accepts_trailers = False
    coding = connection = upgrade = b""
    plain = True
    headers: Headers = []
    for field, code in map(known_lines.__getitem__, lines):
        if not code:
            headers.append(field)
            continue
        value = field[1]
        if code == HOST:
            if host is not None:
                raise Malformed("authority", "host twice")
            host = value
        elif code == CONNECTION:
            connection = _also(connection, value)
            if value not in PERSISTENCE:
                plain = False
                headers.append(field)
        elif code == CONTENT_LENGTH:
            length = add_content_length(value, length, headers)
        elif code == TRANSFER_ENCODING:
            coding = _also(coding, value)
        elif code == EXPECT:
            if not http_1_0:
                expect = _expectation(value)
        else:
            headers.append(field)
            if code not in (COOKIE, DATE):
                plain = False
                if code == TE:
                    accepts_trailers = accepts_trailers or b"trailers" in _tokens(value.lower())
                elif code == UPGRADE:
                    upgrade = _also(upgrade, value)
    check_method(method)
    if coding:
        _check_coding(coding, length, http_1_0=http_1_0)
    if connection and connection not in (b"close", b"keep-alive"):
        _check_connection(connection, upgrade)
    if target[:1] == b"/":
        authority = None
    else:
        authority, target = _absolute(target, method, scheme)
    check_path(target, method)
    named = b"" if http_1_0 and host is None and authority is None else agree(authority, host, scheme)
    head = RequestHead(stream, method, scheme, named, target, headers, True, length, expect, plain)
    return head, Framing(coding, connection, accepts_trailers) if coding or connection or accepts_trailers else _UNSAID


def plain_response(status: int, lines: Sequence[bytes], limits: EngineLimits = RESPONSE_LIMITS) -> tuple[ResponseHead, Framing]:
    """The head of an HTTP/1 response, of field lines without their ends: names folded, values stripped. Raises Malformed.

    ``end`` is false: the engine sets it, knowing how the body is framed.
    """
    check_lines(lines, limits)
    length: int | None = None
    coding = connection = b""
    plain = True
    dated = False
    headers: Headers = []
    for field, code in map(known_lines.__getitem__, lines):
        if not code:
            headers.append(field)
        elif code == DATE:
            dated = True
            headers.append(field)
        elif code == CONTENT_LENGTH:
            length = add_content_length(field[1], length, headers)
        elif code == TRANSFER_ENCODING:
            coding = _also(coding, field[1])
        elif code == CONNECTION:
            connection = _also(connection, field[1])
            if field[1] not in PERSISTENCE:
                plain = False
                headers.append(field)
        elif code != HOST:
            headers.append(field)
            plain = plain and code in (COOKIE, EXPECT)
    head = ResponseHead(status, headers, False, length, b"", plain, dated)
    return head, Framing(coding, connection) if coding or connection else _UNSAID


def trailers(fields: Sequence[tuple[bytes, bytes]], limits: EngineLimits, *, fold: bool = False) -> Headers:
    """A trailer section (RFC 9110, section 6.5). *fold* for HTTP/1: names in any case, values with white space around them.

    Fields that a recipient must not act on from there are dropped; those that frame or route a message are malformed.
    """
    if not fields:
        return []
    check_section(fields, limits)
    kept: Headers = []
    for raw, padded in fields:
        value = padded.strip(_WS)
        if fold:
            name, code = folded_names.get(raw) or learn_folded(raw)
        else:
            known = lower_names.get(raw)
            name, code = raw, learn_lower(raw) if known is None else known
            if value != padded:
                raise Malformed("field_value", "white space around a field value")
        if code in _TRAILER_MALFORMED or 0 < code <= LAST_PSEUDO:
            raise Malformed("trailers", quote(name))
        if name not in _TRAILER_DROPPED:
            kept.append((name, value))
    return kept


def _also(before: bytes, value: bytes) -> bytes:
    """A list field sent once or in pieces (RFC 9110, section 5.3), lower case. An empty piece stays visible as a comma."""
    return before + b"," + value.lower() if before else value.lower() or b","


def _tokens(value: bytes) -> list[bytes]:
    return [token.strip(_WS) for token in value.split(b",")]


def _expectation(value: bytes) -> bool:
    if value.lower() != b"100-continue":
        raise Malformed("expect", quote(value), 417)
    return True


def _check_coding(coding: bytes, length: int | None, *, http_1_0: bool) -> None:
    """Chunked alone frames a request, and nothing else beside it (RFC 9112, section 6.1; stricter where it leaves a choice)."""
    if http_1_0:
        raise Malformed("transfer_encoding", "on HTTP/1.0")
    if length is not None:
        raise Malformed("transfer_encoding", "beside content-length")
    if coding != b"chunked":
        *others, last = _tokens(coding)
        known = last == b"chunked" and b"chunked" not in others and all(others)
        raise Malformed("transfer_encoding", quote(coding), 501 if known else 400)


def _check_connection(connection: bytes, upgrade: bytes) -> None:
    """Connection may not take framing away. An upgrade that may be ignored (h2c, as curl offers it) is; another is refused."""
    options = _tokens(connection)
    if not _FRAMING_NAMES.isdisjoint(options):
        raise Malformed("connection_field", f"connection: {quote(connection)}")
    if b"upgrade" in options and upgrade and upgrade != b"h2c":
        raise Malformed("not_implemented", f"upgrade: {quote(upgrade)}", 501)


def _absolute(target: bytes, method: bytes, scheme: bytes) -> tuple[bytes | None, bytes]:
    """Authority and path of a target in absolute-form (RFC 9112, section 3.2.2); other forms pass for ``check_path`` to judge."""
    prefix, separator, rest = target.partition(b"://")
    if not separator or b"/" in prefix:
        return None, target
    if prefix.lower() != scheme:
        raise Malformed("scheme", quote(prefix))
    cut = min((at for at in (rest.find(b"/"), rest.find(b"?")) if at >= 0), default=len(rest))
    authority, path = rest[:cut], rest[cut:]
    if not path:
        return authority, b"*" if method == b"OPTIONS" else b"/"
    return authority, path if path[:1] == b"/" else b"/" + path
