"""Whatever stands in a file, reading it ends in a configuration or in ConfigError with places that exist."""

import string
import tempfile
from pathlib import Path

import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from proxy.config.load import ConfigError, Problem, load
from proxy.config.model_server import File
from proxy.config.reference import models

WORDS = sorted({field.alias or name for model in models() for name, field in model.model_fields.items()})
VALUES = [
    *("off", "on", "", "~", "0", "-1", "1e999", "nan", "75s", "5", "32KiB", "10MB", "h2", "h3", "/", "/api/", "web", "a.example.com"),
    *(
        "*.example.com",
        "0.0.0.0:8443",
        "[::]:1",
        "10.0.0.0/8",
        "http://127.0.0.1:1",
        "https://x",
        "unix:/x",
        "http://[::1",
        "http://x:99999",
    ),
    *("${HOME}", "${NONE}", "${NONE:-web}", "${", "{host}", "{", "{hots}", "consistent_hash", "200-399", "404", "\N{SNOWMAN}", "x" * 300),
    *("_" * 70, "1" * 5000, "0x10", "٣", "٣s", "½", "::", "a:b:c", "\x7f", "\u2028", "http://x\n", "//", "..", "%2e%2e", "xn--"),
]

scalars = st.sampled_from([*VALUES, None, True, 7, 1.5]) | st.text(max_size=10)
keys = st.sampled_from([*WORDS, "web", "X-A"]) | st.text(max_size=5)
trees = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4), max_leaves=20)


def check(data: bytes) -> None:
    """Load one file of these bytes; what it raises must be ConfigError, printable, with places inside of the file."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "conf.d"
        root.mkdir()
        (root / "x.yaml").write_bytes(data)
        problems: list[Problem] = []
        try:
            load(root, {"HOME": "/root"}, now=0.0, keep=False)
        except ConfigError as error:
            problems = error.problems
            assert problems
        breaks = len(data.decode("utf-8", "replace").splitlines())  # the same line breaks as YAML's, and a few more
        for problem in problems:
            assert problem.file.startswith(str(root))
            assert 0 <= problem.line <= breaks + 1
            assert problem.column >= (1 if problem.line else 0)
            assert problem.message
            str(problem).encode()


@settings(max_examples=80, deadline=None)
@given(st.binary(max_size=200))
@example(b"")
@example(b"\xef\xbb\xbf")
@example(b"%YAML 9.9\n---\n")
@example(b"&a : *a")
@example(b"\xff\xfe\x00")
@example(b"!!binary x")
@example(b"? ? ? ? a")
@example(b"[" * 5000)
@example(b"{a: " * 5000)
@example(b"- " * 5000)
def test_any_bytes(data):
    check(data)


@settings(max_examples=80, deadline=None)
@given(st.text(alphabet=string.printable + "äé\u2028\U0001f600", max_size=200))
def test_any_text(text):
    check(text.encode())


@settings(max_examples=100, deadline=None)
@given(trees)
def test_any_tree_of_the_words_of_the_language(tree):
    check(yaml.safe_dump(tree, allow_unicode=True).encode("utf-8", "surrogatepass"))


def nearly_right(draw: st.DrawFn) -> dict[str, object]:
    """A configuration that is right but for one or two values, drawn anywhere."""
    route = {
        "match": {"path": "/", "headers": {"X": "1"}},
        "pool": "web",
        "timeouts": {"idle": "1s"},
        "headers": {"request": {"set": {"A": "b"}}},
    }
    pool = {"endpoints": ["http://x", {"url": "http://y", "weight": 2}], "balance": {"policy": "random"}, "health": {"interval": "1s"}}
    tree: dict[str, object] = {
        "server": {"listeners": [{"address": "0.0.0.0:1", "protocols": ["h2"]}], "limits": {"connections": 1}, "tls": {}, "admin": {}},
        "site": {"hosts": ["a.example.com"], "tls": {"self_signed": False}, "routes": [route], "pools": {"web": pool}},
    }
    for _ in range(draw(st.integers(1, 2))):
        node: object = tree
        while True:
            assert isinstance(node, dict | list)
            steps = list(node) if isinstance(node, dict) else list(range(len(node)))
            if not steps:
                break
            step = draw(st.sampled_from(steps))
            below = node[step]
            if not isinstance(below, dict | list) or not below or draw(st.integers(0, 3)) == 0:
                node[step] = draw(trees)
                break
            node = below
    return tree


@settings(max_examples=100, deadline=None)
@given(st.composite(nearly_right)())
def test_a_mistake_anywhere_in_a_right_file(tree):
    check(yaml.safe_dump(tree, allow_unicode=True).encode("utf-8", "surrogatepass"))


def test_the_words_are_those_of_the_language():
    assert set(File.model_fields) <= set(WORDS)
