"""All routes of one site, arranged so that a request finds its own at once.

Knows Match and nothing of what a route does. The order: exact path, then the longest prefix, then more conditions, then the
order of the file. A lookup costs one slice and one dict access for each distinct prefix length of the configuration, whatever the
client sends.
"""

from collections.abc import Iterable
from typing import Generic, Protocol, TypeVar

from proxy.message import Headers
from proxy.policy.path import canonical
from proxy.route.match import Match


class HasMatch(Protocol):
    """What a table needs of a route."""

    @property
    def match(self) -> Match:
        """Its conditions."""


RouteT = TypeVar("RouteT", bound=HasMatch)

_SLASH = 0x2F


class RouteTable(Generic[RouteT]):
    """Immutable. ``routes`` keeps the order of the file."""

    __slots__ = ("_exact", "_only", "_prefixes", "_ranked", "_rest", "routes")

    def __init__(self, routes: Iterable[RouteT]) -> None:
        self.routes = tuple(routes)
        self._ranked = sorted(self.routes, key=_rank)
        exact: dict[bytes, list[tuple[Match | None, RouteT]]] = {}
        prefixes: dict[bytes, list[tuple[Match | None, RouteT]]] = {}
        for route in self._ranked:
            match = route.match
            entry = (match if match.conditions else None, route)
            if match.exact is not None:
                exact.setdefault(canonical(match.exact), []).append(entry)
            else:
                prefixes.setdefault(canonical(match.prefix or b"/"), []).append(entry)
        self._rest = tuple(prefixes.pop(b"/", ()))
        self._exact = exact
        lengths = sorted({len(prefix) for prefix in prefixes}, reverse=True)
        self._prefixes = tuple((size, {p: tuple(e) for p, e in prefixes.items() if len(p) == size}) for size in lengths)
        lone = not exact and not prefixes and bool(self._rest) and self._rest[0][0] is None
        self._only: RouteT | None = self._rest[0][1] if lone else None

    def find(self, method: bytes, path: bytes, headers: Headers) -> RouteT | None:
        """The route for a request, or None. *path* is in origin-form with its query, or ``*``."""
        if self._only is not None:
            return self._only
        query = path.find(b"?")
        bare = path if query < 0 else path[:query]
        if b"%" in bare or b"//" in bare:
            bare = canonical(bare)
        if self._exact:
            for match, route in self._exact.get(bare, ()):
                if match is None or match.holds(method, path, headers):
                    return route
        length = len(bare)
        for size, prefixes in self._prefixes:
            if size > length:
                continue
            found = prefixes.get(bare[:size])
            if found is None or (size < length and bare[size] != _SLASH and bare[size - 1] != _SLASH):
                continue
            for match, route in found:
                if match is None or match.holds(method, path, headers):
                    return route
        for match, route in self._rest:
            if match is None or match.holds(method, path, headers):
                return route
        return None

    def explain(self, method: bytes, path: bytes, headers: Headers) -> list[tuple[RouteT, bool, str]]:
        """Every route in the order in which it is tried: the route, whether it is the one taken, and why or why not."""
        steps: list[tuple[RouteT, bool, str]] = []
        won = False
        for route in self._ranked:
            obstacle = route.match.obstacle(method, path, headers)
            if obstacle is not None:
                steps.append((route, False, obstacle))
            elif won:
                steps.append((route, False, "matches too, but comes later"))
            else:
                won = True
                steps.append((route, True, "matches: " + route.match.describe()))
        return steps


def _rank(route: HasMatch) -> tuple[bool, int, int]:
    match = route.match
    return (match.exact is None, 0 if match.exact is not None else -len(canonical(match.prefix or b"/")), -match.conditions)
