"""Each source of a key, and the connection's key where a request lacks it."""

import pytest

from proxy.policy.key import KeySource, cookie

HEADERS = [(b"x-user", b"u1"), (b"cookie", b"a=1; sid=abc=; asid=no"), (b"cookie", b"late=2"), (b"empty", b"")]


@pytest.mark.parametrize(
    ("kind", "name", "key"),
    [
        ("connection", b"", b"connection"),
        ("client_address", b"", b"client"),
        ("header", b"x-user", b"u1"),
        ("header", b"x-none", b"connection"),
        ("header", b"empty", b"connection"),
        ("cookie", b"sid", b"abc="),
        ("cookie", b"late", b"2"),
        ("cookie", b"SID", b"connection"),
        ("cookie", b"id", b"connection"),
        ("path", b"", b"/p"),
        ("query", b"k", b"v w"),
        ("query", b"none", b"connection"),
    ],
)
def test_key(kind, name, key):
    source = KeySource(kind, name)
    assert source.key(connection_key=b"connection", client_key=lambda: b"client", path=b"/p?k=v+w", headers=HEADERS) == key


def test_the_clients_key_is_made_only_when_it_is_needed():
    def forbidden() -> bytes:
        raise AssertionError

    assert KeySource("connection").key(connection_key=b"c", client_key=forbidden, path=b"/", headers=[]) == b"c"


def test_cookie_reads_pairs_as_clients_send_them():
    assert cookie([(b"cookie", b" sid = x;sid=y ; z")], b"sid") == b"y"
    assert cookie([], b"sid") is None
