"""A redirect keeps path and query, and can't be turned against another host."""

import pytest

from proxy.policy.answer import Redirect, Respond
from proxy.policy.template import Template, Variables


@pytest.mark.parametrize(
    ("location", "path", "target"),
    [
        ("https://{host}{path}", b"/x?y=1", b"https://a.example.com/x?y=1"),
        ("/new", b"/x", b"/new"),
        ("//cdn.example{path}", b"/x", b"//cdn.example/x"),
        ("{path}", b"/x?y", b"/x?y"),
        ("{path}", b"//evil.example/", b"/evil.example/"),
        ("{path}", b"/\\evil.example/", b"/evil.example/"),
    ],
)
def test_target(location, path, target):
    variables = Variables(b"GET", b"https", b"a.example.com", path, b"HTTP/2", b"192.0.2.1", b"id")
    assert Redirect(308, Template.compile(location)).target(variables) == target


def test_answers_are_values():
    assert Respond(200, ((b"a", b"b"),), b"x") == Respond(200, ((b"a", b"b"),), b"x")
    assert hash(Redirect(301, Template.compile("/a"))) == hash(Redirect(301, Template.compile("/a")))
