"""Request paths as rules see them: one canonical form for matching, while the path as sent travels on.

Knows bytes only. ``/%61dmin``, ``//admin`` and ``/admin`` are one resource to most backends; a rule on ``/admin`` has to hold for
all of them, so that rules compare the canonical form. Dot segments never get here: the engines refuse them.
"""

from collections.abc import Iterator
from urllib.parse import unquote_to_bytes

MAX_PARAMETERS = 1000
"""Query parameters that are looked at, at most: what lies behind them is not seen by rules (PHP and Tomcat stop there too)."""

_SLASH = 0x2F


def split(path: bytes) -> tuple[bytes, bytes]:
    """The path without its query, and the query without its question mark (empty when there is none)."""
    bare, _, query = path.partition(b"?")
    return bare, query


def canonical(bare: bytes) -> bytes:
    """The form that rules compare: percent-decoded (RFC 3986, section 6.2.2), runs of slashes merged; *bare* has no query."""
    if b"%" in bare:
        bare = unquote_to_bytes(bare)
    while b"//" in bare:
        bare = bare.replace(b"//", b"/")
    return bare


def prefix_length(bare: bytes, prefix: bytes) -> int | None:
    """How many bytes of *bare*, as sent, make up the canonical *prefix*; None where it does not begin with that.

    Only whole segments count: ``/api`` is no prefix of ``/apix``. Of a run of slashes behind it, a prefix with a final slash takes all,
    one without takes none.
    """
    if b"%" not in bare and b"//" not in bare:
        size = len(prefix)
        if bare.startswith(prefix) and (prefix.endswith(b"/") or len(bare) == size or bare[size] == _SLASH):
            return size
        return None
    return _walk(bare, prefix)


def parameters(query: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Name and value of each query parameter, decoded as forms are (``+`` is a space); the first ``MAX_PARAMETERS``."""
    for part in query.split(b"&", MAX_PARAMETERS)[:MAX_PARAMETERS]:
        name, _, value = part.partition(b"=")
        yield _decode(name), _decode(value)


def parameter(query: bytes, name: bytes) -> bytes | None:
    """The first value of the parameter *name* (decoded), or None."""
    for key, value in parameters(query):
        if key == name:
            return value
    return None


def _walk(bare: bytes, prefix: bytes) -> int | None:
    at, size = 0, len(bare)
    for wanted in prefix:
        octet, after = _octet(bare, at)
        if octet != wanted:
            return None
        at = after
        if wanted == _SLASH:
            at = _skip_slashes(bare, at)
    if prefix.endswith(b"/") or at == size or _octet(bare, at)[0] == _SLASH:
        return at
    return None


def _skip_slashes(bare: bytes, at: int) -> int:
    while True:
        octet, after = _octet(bare, at)
        if octet != _SLASH:
            return at
        at = after


def _octet(bare: bytes, at: int) -> tuple[int, int]:
    """The decoded octet at *at* (-1 at the end) and where the next one begins."""
    if at >= len(bare):
        return -1, at
    if bare[at : at + 1] == b"%":
        decoded = unquote_to_bytes(bare[at : at + 3])
        if len(decoded) == 1:
            return decoded[0], at + 3
    return bare[at], at + 1


def _decode(text: bytes) -> bytes:
    if b"+" in text:
        text = text.replace(b"+", b" ")
    return unquote_to_bytes(text) if b"%" in text else text
