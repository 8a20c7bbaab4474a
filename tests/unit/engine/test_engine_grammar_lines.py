"""Field lines of HTTP/1 that were parsed before: remembered within bounds, and never what is private."""

import pytest

from proxy.engine import grammar
from proxy.engine.grammar import LINE_BYTES_REMEMBERED, LINES_REMEMBERED, Malformed, known_lines, learn_line


def test_a_line_is_parsed_once() -> None:
    known_lines.clear()
    entry = learn_line(b"X-Kind:  some value\t")
    assert entry == ((b"x-kind", b"some value"), 0)
    assert known_lines == {b"X-Kind:  some value\t": entry}


@pytest.mark.parametrize(
    "line", [b"Cookie: a=b", b"AUTHORIZATION: Basic eA==", b"set-cookie: a=b", b"X-Long: " + b"x" * LINE_BYTES_REMEMBERED]
)
def test_private_and_long_lines_are_not_kept(line: bytes) -> None:
    known_lines.clear()
    learn_line(line)
    assert known_lines == {}


def test_the_memory_is_bounded() -> None:
    known_lines.clear()
    for number in range(LINES_REMEMBERED + 10):
        learn_line(b"x-number: %d" % number)
    assert len(known_lines) == 10


@pytest.mark.parametrize(
    ("line", "reason"),
    [(b"no colon", "syntax"), (b"a: b\0", "field_value"), (b"a : b", "field_name"), (b" folded: b", "field_name"), (b": b", "field_name")],
)
def test_a_malformed_line_is_refused_every_time(line: bytes, reason: str) -> None:
    for _ in range(2):
        with pytest.raises(Malformed) as caught:
            learn_line(line)
        assert caught.value.reason == reason
    assert line not in grammar.known_lines
