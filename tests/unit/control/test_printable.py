"""Hostile text can't move a cursor or begin a line."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.control.printable import block, printable


@pytest.mark.parametrize(
    ("text", "limit", "shown"),
    [
        ("plain é", 20, "plain é"),
        ("a\nb\r", 20, "a\\nb\\r"),
        ("\x1b[2J", 20, "\\x1b[2J"),
        ("\x9b2J", 20, "\\x9b2J"),
        ("\u202eevil", 20, "\\u202eevil"),
        ("\ud800", 20, "\\ud800"),
        (b"/p\x00\xc3\xa9", 20, "/p\\x00\\xc3\\xa9"),
        ("abcdef", 3, "abc..."),
        (b"abcdef", 3, "abc..."),
    ],
)
def test_printable(text, limit, shown):
    assert printable(text, limit) == shown


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(codec=None)) | st.binary(), st.integers(1, 50))
def test_the_result_is_printable_and_bounded(text, limit):
    shown = printable(text, limit)
    assert shown.isprintable()
    assert len(shown) <= limit * 10 + 3
    assert "\n" not in shown.encode("utf-8").decode()


def test_a_block_keeps_its_lines_indented():
    assert block("Traceback:\n\tfile\nValueError: \x1b[2Jx", 100) == "  Traceback:\n      file\n  ValueError: \\x1b[2Jx"
    assert block("x" * 1000, 10) == "  " + "x" * 10
