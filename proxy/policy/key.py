"""Where the key of consistent hashing comes from: one of six places in a request.

Knows fields, paths and keys as bytes; hashing them is the balancer's affair.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from proxy.message import Headers, get
from proxy.policy.path import parameter, split

Kind: TypeAlias = Literal["connection", "client_address", "header", "cookie", "path", "query"]

FIXED: frozenset[Kind] = frozenset({"connection", "client_address"})
"""Kinds that stay the same for a whole connection, so that a choice can be pinned to it."""


@dataclass(frozen=True, slots=True)
class KeySource:
    """A key: ``name`` is the header field (lower case), cookie or query parameter; empty for the other kinds."""

    kind: Kind
    name: bytes = b""

    def key(self, *, connection_key: bytes, client_key: Callable[[], bytes], path: bytes, headers: Headers) -> bytes:
        """The key of a request: never empty; where the request has no such field or parameter, the key of its connection."""
        kind = self.kind
        found: bytes | None = None
        if kind == "client_address":
            found = client_key()
        elif kind == "header":
            found = get(headers, self.name)
        elif kind == "cookie":
            found = cookie(headers, self.name)
        elif kind == "path":
            found = split(path)[0]
        elif kind == "query":
            found = parameter(split(path)[1], self.name)
        return found or connection_key


def cookie(headers: Headers, name: bytes) -> bytes | None:
    """The value of the first cookie *name* (case counts: RFC 6265, section 4.2.1), or None."""
    start = name + b"="
    for key, value in headers:
        if key == b"cookie" and start in value:
            for pair in value.split(b";"):
                bare = pair.strip()
                if bare.startswith(start):
                    return bare[len(start) :]
    return None
