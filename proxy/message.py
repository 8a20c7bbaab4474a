"""Messages as every part sees them: version-neutral, bytes, lower-case field names.

Knows nothing of sockets, engines or configuration.
"""

from typing import TypeAlias

Header: TypeAlias = tuple[bytes, bytes]
"""A field: lower-case name, value without surrounding white space."""

Headers: TypeAlias = list[Header]
"""Fields in the order received. Never holds pseudo-fields, ``host`` (see ``authority``), ``transfer-encoding`` or ``expect``."""

Address: TypeAlias = tuple[str, int]
"""Host (IP address as text, without scope or brackets) and port."""


def get(headers: Headers, name: bytes) -> bytes | None:
    """The first value of the field *name* (lower case), or None."""
    for key, value in headers:
        if key == name:
            return value
    return None


def host_of(authority: bytes) -> bytes:
    """The lower-case host of an authority, without port and brackets: ``b"[::1]:443"`` gives ``b"::1"``.

    The dot that ends an absolute name is taken off: clients leave it out of the SNI (RFC 6066, section 3).
    """
    if authority[:1] == b"[":
        return authority[1 : authority.find(b"]")].lower()
    return authority.split(b":", 1)[0].lower().removesuffix(b".")


def unmapped(host: str) -> str:
    """An IP address as text, where a dual-stack socket shows IPv4 in its IPv6 form (``::ffff:192.0.2.1``; RFC 4291, section 2.5.5.2)."""
    return host[7:] if host.startswith("::ffff:") and "." in host else host


def mapped(host: str) -> str:
    """The same the other way round: as a dual-stack socket takes it."""
    return host if ":" in host else "::ffff:" + host


def bracketed(host: bytes) -> bytes:
    """A host as it stands in an authority: an IPv6 address in brackets."""
    return b"[%b]" % host if b":" in host else host
