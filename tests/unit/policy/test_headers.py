"""Hop-by-hop fields go, framing can't be edited away, edits replace whole fields."""

import pytest

from proxy.policy.headers import HOP_BY_HOP, HeaderEdit, check_editable, connection_named, strip_hop_by_hop
from proxy.policy.template import Template, Variables

VALUES = Variables(b"GET", b"https", b"a.example.com", b"/", b"HTTP/2", b"192.0.2.1", b"id")


def test_strip_removes_hop_by_hop_fields_and_those_that_connection_names():
    headers = [
        (b"connection", b"close, X-Private ,\tx-other"),
        (b"x-private", b"1"),
        (b"x-other", b"2"),
        (b"keep-alive", b"timeout=5"),
        (b"te", b"trailers"),
        (b"content-type", b"text/plain"),
        (b"trailer", b"x-sum"),
        (b"connection", b"x-second"),
        (b"x-second", b"3"),
    ]
    assert strip_hop_by_hop(headers) == [(b"content-type", b"text/plain"), (b"trailer", b"x-sum")]


def test_strip_gives_a_new_list_and_leaves_the_old_one():
    headers = [(b"a", b"1")]
    stripped = strip_hop_by_hop(headers)
    stripped.append((b"b", b"2"))
    assert headers == [(b"a", b"1")]


def test_connection_takes_neither_framing_nor_what_proxies_said():
    headers = [
        (b"connection", b"content-length, Host, x-forwarded-for, close, x"),
        (b"content-length", b"5"),
        (b"x-forwarded-for", b"1.1.1.1"),
    ]
    assert strip_hop_by_hop(headers) == [(b"content-length", b"5"), (b"x-forwarded-for", b"1.1.1.1")]
    assert connection_named(headers) == {b"close", b"x"}


@pytest.mark.parametrize(
    "name", ["Connection", "content-length", "HOST", "transfer-encoding", ":path", "te", "a b", "", "é", "x\n", "Expect", "x:"]
)
def test_names_that_cant_be_edited(name):
    assert check_editable(name)


@pytest.mark.parametrize("name", ["X-A", "server", "strict-transport-security", "Via", "authorization"])
def test_names_that_can(name):
    assert check_editable(name) is None


def test_edit_sets_removes_and_keeps_the_order_of_the_rest():
    edit = HeaderEdit(((b"b", Template.compile("new {host}")), (b"c", Template.compile("x"))), frozenset({b"d", b"c"}))
    headers = [(b"a", b"1"), (b"b", b"2"), (b"b", b"3"), (b"d", b"4"), (b"e", b"5")]
    assert edit.apply(headers, lambda: VALUES) == [(b"a", b"1"), (b"e", b"5"), (b"b", b"new a.example.com"), (b"c", b"x")]
    assert len(headers) == 5


def test_constant_edits_ask_for_no_variables():
    def forbidden() -> Variables:
        raise AssertionError

    edit = HeaderEdit(((b"b", Template.compile("x")),), frozenset({b"a"}))
    assert edit.apply([(b"a", b"1")], forbidden) == [(b"b", b"x")]
    assert edit == HeaderEdit(((b"b", Template.compile("x")),), frozenset({b"a"}))


def test_every_hop_by_hop_field_goes():
    assert strip_hop_by_hop([(name, b"x") for name in HOP_BY_HOP]) == []
