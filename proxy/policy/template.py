"""Texts with variables, for header fields and redirects: parsed once, rendered with a join.

Knows the variables' names and nothing of where their values come from. ``{name}`` stands for a variable, ``{{`` and ``}}`` for a brace.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from difflib import get_close_matches
from operator import attrgetter

_CONTROLS = bytes(range(0x20)) + b"\x7f"
_UNFIT = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
_TOKEN = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]|[^{}]+")


@dataclass(slots=True)
class Variables:
    """What a template may say of a request. All are fit for a header field."""

    method: bytes
    scheme: bytes
    """``https`` or ``http``, listener side."""
    host: bytes
    """Lower case, without port; an IPv6 address in its brackets."""
    path: bytes
    """Path and query, as sent."""
    version: bytes
    """``HTTP/1.1``, ``HTTP/2`` or ``HTTP/3``."""
    client_address: bytes
    """The client behind trusted proxies."""
    request_id: bytes
    affinity_key: bytes = b""
    """The key of the connection, in hexadecimal."""
    sni: bytes = b""
    """Empty: the client sent none."""
    backend: bytes = b""
    """The backend's identity; empty before one was chosen."""


NAMES = tuple(field.name for field in fields(Variables))


class TemplateError(ValueError):
    """A template that can't be read: what is wrong, and the variable that was perhaps meant."""

    def __init__(self, message: str, suggestion: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.suggestion = suggestion


@dataclass(frozen=True, slots=True)
class Template:
    """A compiled template. ``constant`` is the whole text where no variable occurs, else None."""

    text: str
    constant: bytes | None
    pieces: tuple[bytes | Callable[[Variables], bytes], ...]

    @classmethod
    def compile(cls, text: str) -> "Template":
        """Parse *text*; TemplateError on an unknown variable, a lone brace or a character unfit for a field."""
        if _UNFIT.search(text):
            msg = "control characters and lone surrogates can't stand in a header field"
            raise TemplateError(msg)
        pieces: list[bytes | Callable[[Variables], bytes]] = []
        literal = ""
        for found in _TOKEN.finditer(text):
            token, name = found.group(), found.group(1)
            if token in ("{{", "}}"):
                literal += token[0]
            elif token in ("{", "}"):
                msg = f"lone {token} at character {found.start() + 1}; a brace itself is written {token}{token}"
                raise TemplateError(msg)
            elif name is None:
                literal += token
            else:
                if literal:
                    pieces.append(literal.encode())
                    literal = ""
                pieces.append(_variable(name))
        if literal or not pieces:
            pieces.append(literal.encode())
        constant = pieces[0] if len(pieces) == 1 and isinstance(pieces[0], bytes) else None
        return cls(text, constant, tuple(pieces))

    def begins_with(self, name: str) -> bool:
        """Whether the variable *name* is the first thing in it."""
        return self.text.startswith(f"{{{name}}}")

    def render(self, variables: Variables) -> bytes:
        """The text. Control bytes never come out, whatever a variable holds."""
        if self.constant is not None:
            return self.constant
        whole = b"".join([piece if isinstance(piece, bytes) else piece(variables) for piece in self.pieces])
        return whole.translate(None, _CONTROLS)


def _variable(name: str) -> Callable[[Variables], bytes]:
    if name in NAMES:
        return attrgetter(name)
    near = get_close_matches(name.strip().lower(), NAMES, n=1)
    msg = f"unknown variable {{{name}}}; there are {', '.join(NAMES)}"
    raise TemplateError(msg, near[0] if near else None)
