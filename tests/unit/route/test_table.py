"""A table finds the route: exact path, longest prefix, more conditions, order of the file."""

from dataclasses import dataclass

import pytest

from proxy.route.match import Match
from proxy.route.table import RouteTable


@dataclass(frozen=True)
class Named:
    name: str
    match: Match


def table(**routes: Match) -> RouteTable[Named]:
    return RouteTable([Named(name, match) for name, match in routes.items()])


def found(routes, path, method=b"GET", headers=()):
    route = routes.find(method, path, list(headers))
    return None if route is None else route.name


PREFIXES = table(
    root=Match(prefix=b"/"),
    api=Match(prefix=b"/api"),
    api_slash=Match(prefix=b"/api/"),
    users=Match(prefix=b"/api/users"),
    health=Match(exact=b"/api/health"),
)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        (b"/", "root"),
        (b"*", "root"),
        (b"/api", "api"),
        (b"/api?x=/api/", "api"),
        (b"/apix", "root"),
        (b"/api/", "api_slash"),
        (b"/api/x", "api_slash"),
        (b"/api/users", "users"),
        (b"/api/users/1", "users"),
        (b"/api/users2", "api_slash"),
        (b"/api/health", "health"),
        (b"/api/health?full=1", "health"),
        (b"/api/health/", "api_slash"),
        (b"/%61pi/users", "users"),
        (b"/api%2fusers", "users"),
        (b"//api///users/1", "users"),
        (b"/API/users", "root"),
    ],
)
def test_exact_then_longest_prefix_at_a_segment_boundary(path, name):
    assert found(PREFIXES, path) == name


def test_more_conditions_go_first_then_the_order_of_the_file():
    routes = table(
        plain=Match(prefix=b"/a"),
        again=Match(prefix=b"/a"),
        post=Match(prefix=b"/a", methods=frozenset({b"POST"})),
        both=Match(prefix=b"/a", methods=frozenset({b"POST"}), headers=((b"x-b", b"1"),)),
    )
    assert found(routes, b"/a") == "plain"
    assert found(routes, b"/a", b"POST") == "post"
    assert found(routes, b"/a", b"POST", [(b"x-b", b"1")]) == "both"


def test_a_route_whose_conditions_fail_gives_way_to_a_shorter_prefix():
    routes = table(
        exact=Match(exact=b"/a/b", query=((b"v", None),)),
        long=Match(prefix=b"/a/b", methods=frozenset({b"PUT"})),
        short=Match(prefix=b"/a"),
        rest=Match(headers=((b"x", None),)),
    )
    assert found(routes, b"/a/b?v") == "exact"
    assert found(routes, b"/a/b", b"PUT") == "long"
    assert found(routes, b"/a/b") == "short"
    assert found(routes, b"/", headers=[(b"x", b"")]) == "rest"
    assert found(routes, b"/") is None


def test_a_single_route_for_everything_and_none_at_all():
    assert found(table(all=Match(prefix=b"/")), b"/what%2Fever?x") == "all"
    assert found(table(), b"/") is None


def test_configured_paths_are_compared_in_the_same_form():
    routes = table(cafe=Match(prefix=b"/caf%C3%A9"), tea=Match(exact="/thé".encode()))
    assert found(routes, "/café/x".encode()) == "cafe"
    assert found(routes, b"/caf%c3%a9") == "cafe"
    assert found(routes, b"/th%C3%A9") == "tea"


def test_explain_tells_every_route_in_the_order_of_trial():
    steps = PREFIXES.explain(b"GET", b"/api/users", [])
    assert [(route.name, taken, why) for route, taken, why in steps] == [
        ("health", False, "path is not /api/health"),
        ("users", True, "matches: path /api/users*"),
        ("api_slash", False, "matches too, but comes later"),
        ("api", False, "matches too, but comes later"),
        ("root", False, "matches too, but comes later"),
    ]
    assert not any(taken for _, taken, _ in table(a=Match(exact=b"/a")).explain(b"GET", b"/b", []))
