"""What a route asks of a request: the conditions as the configuration states them.

Knows methods, paths and fields; nothing of sites or pools. ``table.py`` finds the route; a Match judges one request by itself.
"""

from dataclasses import dataclass

from proxy.message import Headers
from proxy.policy.path import canonical, parameters, prefix_length, split

Condition = tuple[bytes, bytes | None]
"""A name and the value that it must have; None: any, as long as it is there."""


@dataclass(frozen=True, slots=True)
class Match:
    """All given conditions must hold; a Match without any takes every request.

    A prefix matches whole segments: ``/api/`` takes what begins with it, ``/api`` takes ``/api`` and ``/api/...`` but not ``/apix``,
    ``/`` takes everything. Paths are compared percent-decoded, with runs of slashes merged, without their query.
    """

    prefix: bytes | None = None
    exact: bytes | None = None
    """The whole path; goes before every prefix."""
    methods: frozenset[bytes] = frozenset()
    """Empty: any."""
    headers: tuple[Condition, ...] = ()
    """Names in lower case. A field sent on several lines holds when one of them does."""
    query: tuple[Condition, ...] = ()
    """Names and values decoded."""

    @property
    def conditions(self) -> int:
        """How many conditions there are besides the path: the more, the earlier the route is tried."""
        return bool(self.methods) + len(self.headers) + len(self.query)

    def holds(self, method: bytes, path: bytes, headers: Headers) -> bool:
        """Whether the conditions besides the path hold; *path* has its query."""
        if self.methods and method not in self.methods:
            return False
        for condition in self.headers:
            if not _has(condition, headers):
                return False
        if self.query:
            given = list(parameters(split(path)[1]))
            return all(_has(condition, given) for condition in self.query)
        return True

    def obstacle(self, method: bytes, path: bytes, headers: Headers) -> str | None:
        """Why this request does not match, in words for a person; None when it does. Slow and complete: for ``explain``."""
        bare, query = split(path)
        if self.exact is not None and canonical(bare) != canonical(self.exact):
            return f"path is not {_text(self.exact)}"
        prefix = canonical(self.prefix or b"/")
        if prefix != b"/" and prefix_length(bare, prefix) is None:
            return f"path does not begin with {_text(prefix)}"
        if self.methods and method not in self.methods:
            return f"method {_text(method)} is not one of {', '.join(sorted(map(_text, self.methods)))}"
        for condition in self.headers:
            if not _has(condition, headers):
                return "header " + _wanted(condition)
        given = list(parameters(query)) if self.query else []
        for condition in self.query:
            if not _has(condition, given):
                return "query parameter " + _wanted(condition)
        return None

    def describe(self) -> str:
        """The conditions in one line: ``path /api/*, method GET``."""
        parts = [f"path {_text(self.exact)}" if self.exact is not None else f"path {_text(self.prefix or b'/')}*"]
        if self.methods:
            parts.append("method " + " or ".join(sorted(map(_text, self.methods))))
        parts += ["header " + _stated(condition) for condition in self.headers]
        parts += ["query " + _stated(condition) for condition in self.query]
        return ", ".join(parts)


def _has(condition: Condition, given: Headers) -> bool:
    name, wanted = condition
    return any(key == name and (wanted is None or value == wanted) for key, value in given)


def _stated(condition: Condition) -> str:
    name, value = condition
    return _text(name) if value is None else f"{_text(name)}={_text(value)}"


def _wanted(condition: Condition) -> str:
    name, value = condition
    return f"{_text(name)} is missing" if value is None else f"{_text(name)} is not {_text(value)}"


def _text(value: bytes) -> str:
    return value.decode("utf-8", "backslashreplace")
