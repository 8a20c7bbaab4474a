"""What is compared: the floors stand beside the product in the same form, and the pure form beside a compiled one."""

import sys
from pathlib import Path

from bench import targets as module
from bench.targets import form, targets

HERE = Path(sys.executable)


def named(python, before=None):
    return [target.name for target in targets(python, before)]


def test_a_pure_build_has_no_other_beside_it(monkeypatch):
    monkeypatch.setattr(module, "form", lambda _: ("pure", "3.11.2"))
    assert named(HERE)[:4] == ["qproxy", "qproxy-portable", "floor", "floor-portable"]


def test_beside_a_compiled_build_the_sources_are_asked_for_the_bars_alone(monkeypatch):
    monkeypatch.setattr(module, "form", lambda _: ("compiled", "3.11.2"))
    assert named(HERE, HERE)[:3] == ["qproxy", "qproxy-pure", "before"]
    pure = targets(HERE)[1]
    assert [pure.takes(name) for name in ("get-1k", "get-1m", "latency", "idle")] == [True, True, False, False]


def test_the_form_of_an_interpreter_with_nothing_is_empty(tmp_path):
    empty = tmp_path / "python"
    empty.write_text(f'#!/bin/sh\nexec {HERE} -S -I "$@"\n')
    empty.chmod(0o755)
    assert form(empty) == ("", "")
    assert form(HERE)[0] in {"pure", "compiled"}
