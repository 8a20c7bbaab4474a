"""Header fields that end at this hop, and the edits of the configuration.

Knows fields only. Framing belongs to the engines: no edit and no Connection field reaches it.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from proxy.message import Header, Headers
from proxy.policy.template import Template, Variables

HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"te",
        b"transfer-encoding",
        b"upgrade",
        b"http2-settings",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-authentication-info",
    }
)
"""Fields for the next hop only (RFC 9110, sections 7.6.1 and 11.7; RFC 7540, section 3.2.1)."""

KEPT = frozenset(
    {
        b"content-length",
        b"content-type",
        b"content-encoding",
        b"content-range",
        b"host",
        b"cache-control",
        b"trailer",
        b"forwarded",
        b"x-forwarded-for",
        b"x-forwarded-host",
        b"x-forwarded-proto",
        b"x-request-id",
        b"via",
    }
)
"""Fields that Connection can't take away: framing, meaning of the body, and what trusted proxies said (RFC 9110, section 7.6.1,
forbids naming fields that are meant for all recipients; a client that does so wants to desynchronise or to hide)."""

_PERSISTENCE = frozenset({b"keep-alive", b"close", b"Keep-Alive", b"Close"})
_NOT_EDITABLE = frozenset({"connection", "content-length", "expect", "host", "http2-settings", "keep-alive", "proxy-connection", "te"}) | {
    "trailer",
    "transfer-encoding",
    "upgrade",
}
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


def strip_hop_by_hop(headers: Headers) -> Headers:
    """The fields that go on to the next hop, in a new list: without hop-by-hop ones and those that Connection names."""
    passed = [header for header in headers if header[0] not in HOP_BY_HOP]
    if len(passed) != len(headers):
        named = connection_named(headers)
        if named:
            return [header for header in passed if header[0] not in named]
    return passed


def connection_named(headers: Iterable[Header]) -> frozenset[bytes]:
    """The fields, in lower case, that Connection takes away besides the usual ones (RFC 9110, section 7.6.1)."""
    named: set[bytes] = set()
    for name, value in headers:
        if name == b"connection" and value not in _PERSISTENCE:
            named.update(option.strip(b" \t") for option in value.lower().split(b","))
    return frozenset(named - KEPT) if named else frozenset()


def check_editable(name: str) -> str | None:
    """Why the configuration can't set or remove the field *name*; None when it can."""
    lower = name.lower()
    if lower.startswith(":"):
        return f"{name} is a pseudo-field: it is made from the request itself"
    if not _TOKEN.fullmatch(name):
        return f"{name!r} is not the name of a header field"
    if lower == "host":
        return "Host is set by the route's own key for it"
    if lower in _NOT_EDITABLE:
        return f"{name} belongs to the connection, not to the message: the proxy keeps it itself"
    return None


@dataclass(frozen=True, slots=True)
class HeaderEdit:
    """Fields to set (all of that name give way to the one) and to remove. A field that is both is set."""

    set: tuple[tuple[bytes, Template], ...] = ()
    """Names in lower case."""
    remove: frozenset[bytes] = frozenset()
    _dropped: frozenset[bytes] = field(init=False, repr=False, compare=False)
    _constant: tuple[Header, ...] | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        constants = tuple((name, template.constant) for name, template in self.set if template.constant is not None)
        object.__setattr__(self, "_dropped", self.remove | {name for name, _ in self.set})
        object.__setattr__(self, "_constant", constants if len(constants) == len(self.set) else None)

    def apply(self, headers: Headers, variables: Callable[[], Variables]) -> Headers:
        """The fields after the edit, in a new list; *variables* is called only when a template needs them."""
        dropped = self._dropped
        edited = [header for header in headers if header[0] not in dropped]
        if self._constant is not None:
            edited.extend(self._constant)
            return edited
        values = variables()
        edited.extend([(name, template.render(values)) for name, template in self.set])
        return edited
