"""A prefix is taken off as it was sent, segments stay apart, and no path turns into a host."""

import pytest

from proxy.policy.rewrite import PathRewrite


@pytest.mark.parametrize(
    ("prefix", "replacement", "path", "result"),
    [
        (b"/api/", b"", b"/api/x?q=1", b"/x?q=1"),
        (b"/api/", b"/", b"/api/x", b"/x"),
        (b"/api/", b"/v1", b"/api/x", b"/v1/x"),
        (b"/api/", b"/v1/", b"/api/x", b"/v1/x"),
        (b"/api", b"/v1/", b"/api/x", b"/v1/x"),
        (b"/api", b"", b"/api", b"/"),
        (b"/api", b"", b"/api?q", b"/?q"),
        (b"/api", b"/v1/", b"/api", b"/v1/"),
        (b"/api", b"/v1", b"/api", b"/v1"),
        (b"/api/", b"/v1", b"/api/", b"/v1/"),
        (b"/api", b"", b"/apix", b"/apix"),
        (b"/api", b"", b"/other?/api", b"/other?/api"),
        (b"/", b"/v1", b"/x", b"/v1/x"),
        (b"/", b"/v1", b"*", b"*"),
        (b"/api", b"", b"/api//evil.example/", b"/evil.example/"),
        (b"/api/", b"", b"/api//evil.example/", b"/evil.example/"),
        (b"/api", b"", b"//%61pi/a%20b", b"/a%20b"),
        (b"/api", b"", b"/api%2Fx", b"/%2Fx"),
        (b"/api/", b"v1", b"/api/x", b"/v1/x"),
    ],
)
def test_rewrite(prefix, replacement, path, result):
    assert PathRewrite(prefix, replacement).apply(path) == result
