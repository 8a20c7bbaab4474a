"""Reading YAML: values, places, replacement, and bounds that hold against whoever wrote the file."""
# ruff: noqa: E501  # a message stands on one line

import os
import sys
from pathlib import Path

import pytest

from proxy.config import source
from proxy.config.source import read_document


@pytest.fixture
def read(tmp_path):
    """Gives the data and the problems of a text."""

    def run(text, environ=None):
        file = tmp_path / "x.yaml"
        file.write_bytes(text.encode() if isinstance(text, str) else text)
        document, problems = read_document(file, "x.yaml", environ or {})
        return document.data, [str(problem) for problem in problems]

    return run


def test_scalars_stay_as_they_are_written(read):
    data, problems = read("[no, 1.10, 0x1F, 12:30:45, 2030-01-01, 'null', \"~\", true]")
    assert data == ["no", "1.10", "0x1F", "12:30:45", "2030-01-01", "null", "~", "true"]
    assert problems == []


def test_nothing_is_none_and_a_quoted_nothing_is_empty(read):
    assert read("{a: , b: ~, c: null, d: '', e: \"\"}") == ({"a": None, "b": None, "c": None, "d": "", "e": ""}, [])


def test_variables_are_replaced_within_values(read):
    environ = {"HOST": "h", "PORT": "1", "EMPTY": ""}
    text = "a: ${HOST}:${PORT}\nb: '${NONE:-d}'\nc: ${EMPTY:-e}\nd: $${HOST} $HOST\ne: ${NONE:-}\nf: ${EMPTY}\n"
    data, problems = read(text, environ)
    assert data == {"a": "h:1", "b": "d", "c": "e", "d": "${HOST} $HOST", "e": "", "f": ""}
    assert problems == []


def test_a_variable_can_not_bring_structure_or_another_variable(read):
    assert read("a: ${X}", {"X": "[1, 2] # ${Y}"}) == ({"a": "[1, 2] # ${Y}"}, [])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "a: ${HOTS}",
            "x.yaml:1:4: environment variable HOTS is not set; expected a value, or a default as in ${HOTS:-default}; perhaps you meant 'HOST'",
        ),
        (
            "a:\n  b: x${",
            "x.yaml:2:6: ${ without a variable's name and }; expected ${NAME} or ${NAME:-default}, and $${ for the characters themselves",
        ),
        ("a: !fiel x", "x.yaml:1:4: unknown tag !fiel; expected none, or !file before the name of a file; perhaps you meant '!file'"),
        (
            "a: !!python/name:os.system x",
            "x.yaml:1:4: unknown tag !!python/name:os.system; expected none, or !file before the name of a file",
        ),
        ("a: !x {b: 1}", "x.yaml:1:4: unknown tag !x; expected none, or !file before the name of a file"),
        ("a: 1\nb: 2\na: 3", "x.yaml:3:1: duplicate key 'a'; it stands at line 1, column 1 already"),
        ("a: *b", "x.yaml:1:4: alias *b comes before its anchor &b is complete"),
        ("a: &a [*a]", "x.yaml:1:8: alias *a comes before its anchor &a is complete"),
        ("a: &base {x: 1}\nb: *bsae", "x.yaml:2:4: alias *bsae comes before its anchor &bsae is complete; perhaps you meant 'base'"),
        ("<<: 5", "x.yaml:1:5: << merges mappings only; expected an alias of a mapping"),
        ("? [a]\n: 1", "x.yaml:1:3: a key is a list, a mapping or an alias; expected a text"),
        ("a: 1\n---\nb: 2", "x.yaml:2:1: a second YAML document begins here; expected one in a file: put it into a file of its own"),
        ("[" * 40 + "]" * 40, "x.yaml:1:34: nested too deeply; expected 32 levels at most"),
        (
            "a: {b: 1\n",
            "x.yaml:2:1: not valid YAML: did not find expected ',' or '}' (while parsing a flow mapping that begins at line 1, column 4)",
        ),
        ("\ta: 1", "x.yaml:1:1: not valid YAML: found character that cannot start any token (while scanning for the next token)"),
        ("a: !file nowhere.txt", "x.yaml:1:4: !file nowhere.txt: can't be read: No such file or directory"),
        ("a: !file ''", "x.yaml:1:4: !file : has no name"),
        ("a: !file .", "x.yaml:1:4: !file .: can't be read: not a regular file"),
        (b"a: \xff", "x.yaml: not UTF-8: byte 0xff at offset 3; expected text in UTF-8"),
        ("a: \x00", "x.yaml: not valid YAML"),
    ],
)
def test_what_can_not_be_read_is_told_with_its_place(read, text, expected):
    _, problems = read(text, {"HOST": "h"})
    assert len(problems) == 1
    assert problems[0].startswith(expected)


def test_laughs_by_the_billion_are_stopped_before_they_are_built(read):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    _, problems = read("\n".join(lines))
    assert len(problems) == 1
    assert problems[0].endswith("too many values, aliases counted in full; expected 1000000 at most in one file")


def test_long_texts_do_not_multiply_either(read):
    _, problems = read("a: &a " + "x" * 1_000_000 + "\nb: [" + ", ".join(["*a"] * 40) + "]")
    assert len(problems) == 1
    assert "too many values" in problems[0]


def test_a_file_may_not_be_too_large(read, monkeypatch):
    monkeypatch.setattr(source, "MAX_FILE", 1024)
    assert read("#" * 1025) == (None, ["x.yaml: too large; expected 1 KiB at most"])
    assert read("a: 1\n" + "#" * 1019) == ({"a": "1"}, [])


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    pipe = tmp_path / "pipe.yaml"
    os.mkfifo(pipe)
    _, problems = read_document(pipe, "pipe.yaml", {})
    assert [str(problem) for problem in problems] == ["pipe.yaml: can't be read: not a regular file"]


def test_a_file_brings_a_value_without_its_last_line_break(read, tmp_path):
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "token").write_bytes(b"one\ntwo\r\n")
    assert read("a: !file secrets/token\nb: !file '${DIR}/token'", {"DIR": str(tmp_path / "secrets")}) == (
        {"a": "one\ntwo", "b": "one\ntwo"},
        [],
    )


def test_anchors_and_merge_keys_save_writing(read):
    text = "a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\nc: *a\nd: {<<: [*a, {z: 4}]}\n"
    assert read(text) == (
        {"a": {"x": "1", "y": "2"}, "b": {"y": "3", "x": "1"}, "c": {"x": "1", "y": "2"}, "d": {"x": "1", "y": "2", "z": "4"}},
        [],
    )


def test_a_mark_of_byte_order_and_crlf_do_not_disturb(read):
    assert read(b"\xef\xbb\xbfa: 1\r\nb: 2\r\n") == ({"a": "1", "b": "2"}, [])


def test_columns_count_characters_and_not_bytes(read):
    assert read("{äöü: 1, b: !x 1}")[1] == ["x.yaml:1:13: unknown tag !x; expected none, or !file before the name of a file"]


def test_places_of_keys_and_values(tmp_path):
    file = tmp_path / "x.yaml"
    file.write_text("a:\n  - b: 1\n    c: 2\n")
    document, _ = read_document(file, "x", {})
    assert str(document.problem(["a", 0, "c"], "m")) == "x:3:8: m"
    assert str(document.problem(["a", 0, "c"], "m", at_key=True)) == "x:3:5: m"
    assert str(document.problem(["a", 0, "nothing", "below"], "m")) == "x:2:5: m"


def test_an_empty_file_is_nothing(read):
    assert read("") == (None, [])
    assert read("# only words\n") == (None, [])
    assert read("---\n") == (None, [])


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission(tmp_path):
    file = tmp_path / "x.yaml"
    file.write_text("a: 1")
    file.chmod(0)
    assert [str(problem) for problem in read_document(file, "x.yaml", {})[1]] == ["x.yaml: can't be read: Permission denied"]


def test_places_are_found_when_a_message_asks_and_not_before(tmp_path, monkeypatch):
    file = tmp_path / "x.yaml"
    file.write_text("a: &a {b: 1}\nc:\n  <<: *a\n  d:\n  - 1\n  - ${X}\n")
    placed = []
    monkeypatch.setattr(source, "_place", lambda event, place=source._place: placed.append(event) or place(event))
    document, problems = read_document(file, "x.yaml", {"X": "2"})
    assert (document.data, problems, placed) == ({"a": {"b": "1"}, "c": {"b": "1", "d": ["1", "2"]}}, [], [])
    assert str(document.problem(("c", "d", 1), "here")) == "x.yaml:6:5: here"
    assert str(document.problem(("c", "b"), "merged")) == "x.yaml:1:11: merged"
    assert document.find(("c", "d", 1)).origin == "${X}"
    assert placed


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="Linux has files without a size")  # noqa: PTH110
def test_a_file_without_a_size_is_read_whole():
    data, reason = source.read_bytes(Path("/proc/self/status"))
    assert reason == ""
    assert b"Threads:" in data
