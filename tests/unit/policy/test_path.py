"""One canonical form for rules, while the path as sent is measured byte for byte."""

import pytest

from proxy.policy.path import canonical, parameter, parameters, prefix_length, split


@pytest.mark.parametrize(
    ("bare", "form"),
    [
        (b"/", b"/"),
        (b"/a/b", b"/a/b"),
        (b"/%61", b"/a"),
        (b"//a////b/", b"/a/b/"),
        (b"/a%2Fb", b"/a/b"),
        (b"/a%2F%2fb", b"/a/b"),
        (b"/%zz%4", b"/%zz%4"),
        (b"/a%3Fb", b"/a?b"),
    ],
)
def test_canonical(bare, form):
    assert canonical(bare) == form


@pytest.mark.parametrize(
    ("bare", "prefix", "length"),
    [
        (b"/api/x", b"/api/", 5),
        (b"/api/x", b"/api", 4),
        (b"/api", b"/api", 4),
        (b"/api", b"/api/", None),
        (b"/apix", b"/api", None),
        (b"/%61pi/x", b"/api/", 7),
        (b"/%61pi/x", b"/api", 6),
        (b"//api//x", b"/api", 5),
        (b"//api//x", b"/api/", 7),
        (b"/api%2Fx", b"/api", 4),
        (b"/%61pix", b"/api", None),
        (b"/%61", b"/ab", None),
        (b"/%6", b"/a", None),
        (b"*", b"/", None),
    ],
)
def test_prefix_length(bare, prefix, length):
    assert prefix_length(bare, prefix) == length


def test_split_and_parameters():
    assert split(b"/a?b?c") == (b"/a", b"b?c")
    assert split(b"/a") == (b"/a", b"")
    assert list(parameters(b"a=1&b&%63=x+y%21&=z")) == [(b"a", b"1"), (b"b", b""), (b"c", b"x y!"), (b"", b"z")]
    assert parameter(b"a=1&a=2", b"a") == b"1"
    assert parameter(b"a=1", b"b") is None
