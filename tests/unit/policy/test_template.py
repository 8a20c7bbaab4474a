"""Templates are parsed once, teach when they can't be, and never let a control byte out."""

import pytest

from proxy.policy.template import NAMES, Template, TemplateError, Variables

VALUES = Variables(
    method=b"GET",
    scheme=b"https",
    host=b"a.example.com",
    path=b"/x?y=1",
    version=b"HTTP/2",
    client_address=b"192.0.2.1",
    request_id=b"id",
    affinity_key=b"00ff",
    sni=b"a.example.com",
    backend=b"http://127.0.0.1:9001",
)


@pytest.mark.parametrize(
    ("text", "constant", "rendered"),
    [
        ("", b"", b""),
        ("plain", b"plain", b"plain"),
        ("{{x}}", b"{x}", b"{x}"),
        ("{host}", None, b"a.example.com"),
        ("https://{host}:8443{path}", None, b"https://a.example.com:8443/x?y=1"),
        ("{{{method}}}", None, b"{GET}"),
        ("é", "é".encode(), "é".encode()),
    ],
)
def test_render(text, constant, rendered):
    template = Template.compile(text)
    assert template.constant == constant
    assert template.render(VALUES) == rendered


def test_every_variable_can_be_rendered():
    for name in NAMES:
        assert Template.compile(f"<{{{name}}}>").render(VALUES) == b"<" + getattr(VALUES, name) + b">"


@pytest.mark.parametrize(
    ("text", "message", "suggestion"),
    [
        ("{hots}", "unknown variable {hots}", "host"),
        ("{Path}", "unknown variable {Path}", "path"),
        ("{client_adress}", "unknown variable", "client_address"),
        ("{zzzz}", "unknown variable", None),
        ("{}", "unknown variable {}", None),
        ("a{", "lone { at character 2; a brace itself is written {{", None),
        ("ab}c", "lone } at character 3", None),
        ("{a{b}", "lone { at character 1", None),
        ("a\nb", "control characters", None),
        ("a\x7fb", "control characters", None),
        ("a\ud800b", "lone surrogates", None),
    ],
)
def test_errors_teach(text, message, suggestion):
    with pytest.raises(TemplateError) as caught:
        Template.compile(text)
    assert message in caught.value.message
    assert caught.value.suggestion == suggestion


def test_control_bytes_never_come_out():
    hostile = Variables(b"GET", b"https", b"h\r\nset-cookie: a", b"/\x00\x7f", b"HTTP/2", b"1.1.1.1", b"id")
    assert Template.compile("{host}{path}").render(hostile) == b"hset-cookie: a/"
