"""A Match judges one request, and says in words why it does not fit."""

import pytest

from proxy.policy.path import MAX_PARAMETERS
from proxy.route.match import Match


@pytest.mark.parametrize(
    ("match", "method", "path", "headers", "holds"),
    [
        (Match(), b"GET", b"/", [], True),
        (Match(methods=frozenset({b"GET"})), b"GET", b"/", [], True),
        (Match(methods=frozenset({b"GET"})), b"HEAD", b"/", [], False),
        (Match(headers=((b"x-a", None),)), b"GET", b"/", [(b"x-a", b"")], True),
        (Match(headers=((b"x-a", None),)), b"GET", b"/", [(b"x-b", b"1")], False),
        (Match(headers=((b"x-a", b"2"),)), b"GET", b"/", [(b"x-a", b"1"), (b"x-a", b"2")], True),
        (Match(headers=((b"x-a", b"3"),)), b"GET", b"/", [(b"x-a", b"1"), (b"x-a", b"2")], False),
        (Match(headers=((b"x-a", b"1"), (b"x-b", None))), b"GET", b"/", [(b"x-a", b"1")], False),
        (Match(query=((b"v", None),)), b"GET", b"/?v", [], True),
        (Match(query=((b"v", b"1"),)), b"GET", b"/?a=2&v=1", [], True),
        (Match(query=((b"v", b"1"),)), b"GET", b"/?v=2", [], False),
        (Match(query=((b"v", b"a b"),)), b"GET", b"/?%76=a%20b", [], True),
        (Match(query=((b"v", b"a b"),)), b"GET", b"/?v=a+b", [], True),
        (Match(query=((b"v", None),)), b"GET", b"/v", [], False),
    ],
)
def test_conditions(match, method, path, headers, holds):
    assert match.holds(method, path, headers) is holds
    assert (match.obstacle(method, path, headers) is None) is holds


def test_only_a_bounded_number_of_parameters_is_looked_at():
    match = Match(query=((b"v", None),))
    assert match.holds(b"GET", b"/?" + b"a&" * (MAX_PARAMETERS - 1) + b"v", [])
    assert not match.holds(b"GET", b"/?" + b"a&" * MAX_PARAMETERS + b"v", [])


@pytest.mark.parametrize(
    ("match", "words"),
    [
        (Match(exact=b"/x"), "path is not /x"),
        (Match(prefix=b"/api"), "path does not begin with /api"),
        (Match(methods=frozenset({b"PUT", b"POST"})), "method GET is not one of POST, PUT"),
        (Match(headers=((b"x-a", None),)), "header x-a is missing"),
        (Match(headers=((b"x-a", b"1"),)), "header x-a is not 1"),
        (Match(query=((b"v", b"1"),)), "query parameter v is not 1"),
        (Match(prefix=b"/apix"), None),
    ],
)
def test_obstacles_in_words(match, words):
    assert match.obstacle(b"GET", b"/apix?w=1", []) == words


def test_describe_names_every_condition():
    match = Match(prefix=b"/api/", methods=frozenset({b"GET"}), headers=((b"x-a", None),), query=((b"v", b"1"),))
    assert match.describe() == "path /api/*, method GET, header x-a, query v=1"
    assert match.conditions == 3
    assert Match(exact=b"/x").describe() == "path /x"
