"""Events as JSON or for people, escaped; other packages' warnings come along; levels and forms are obeyed."""

import logging
import os
import pty
from contextlib import contextmanager

import orjson
import pytest

from proxy.control.log import Logs, LogSettings
from proxy.meters import AccessRecord
from proxy.observe import Metrics


@contextmanager
def logs(**settings):
    """Logs into two pipes, and a function that closes them and gives what was written."""
    error_reader, error_writer = os.pipe()
    output_reader, output_writer = os.pipe()
    metrics = Metrics()
    opened = Logs(LogSettings(**settings), metrics, error_fd=error_writer, output_fd=output_writer)

    def written() -> tuple[str, str]:
        opened.close()
        os.close(error_writer)
        os.close(output_writer)
        with os.fdopen(error_reader) as errors, os.fdopen(output_reader) as output:
            return errors.read(), output.read()

    yield opened, written


def fail(message: str) -> None:
    raise ValueError(message)


def record() -> AccessRecord:
    return AccessRecord(
        b"id", 0.0, "l", "HTTP/2", b"GET", b"h", b"/", 200, "s", "r", "b", b"", "192.0.2.1", 0, 0, 0.1, 0.0, 0.0, 1, "complete", ""
    )


def test_events_in_json():
    with logs(form="json") as (opened, written):
        opened.events.info("started", port=8443, names=("a", b"b\x1b"), share=0.5, path=None, deep={"x": [1, {2: object}]})
        opened.events.debug("unseen")
        opened.events.warning("odd", big=2**70, event_id="\x1b[2J\n")
        errors, output = written()
    first, second = map(orjson.loads, errors.splitlines())
    assert first.pop("time").endswith("Z")
    assert first == {
        "level": "info",
        "event": "started",
        "port": 8443,
        "names": ["a", "b\\x1b"],
        "share": 0.5,
        "path": None,
        "deep": {"x": [1, {"2": "<class 'object'>"}]},
    }
    assert second["big"] == str(2**70)
    assert second["event_id"] == "\\x1b[2J\\n"
    assert output == ""


def test_events_for_people_cant_be_forged():
    with logs(form="text") as (opened, written):
        opened.events.warning("odd\nforged", detail="\x1b[2J\n2026 [info] forged")
        errors, _ = written()
    assert errors.count("\n") == 1
    assert errors[:-1].isprintable()
    assert "odd\\nforged" in errors
    assert "detail=" in errors


@pytest.mark.parametrize("form", ["json", "text"])
def test_tracebacks_are_shown_escaped(form):
    with logs(form=form) as (opened, written):
        try:
            fail("\x1b[2J\nforged")
        except ValueError as error:
            opened.events.error("failed", exc_info=error)
        errors, _ = written()
    assert "Traceback" in errors
    assert "\x1b" not in errors
    assert all(line.startswith(("  ", "20")) or form == "json" for line in errors.splitlines())


@pytest.mark.parametrize(("level", "seen"), [("debug", 4), ("info", 3), ("warning", 2), ("error", 1)])
def test_levels(level, seen):
    with logs(form="json", level=level) as (opened, written):
        for say in (opened.events.debug, opened.events.info, opened.events.warning, opened.events.error):
            say("x")
        errors, _ = written()
    assert len(errors.splitlines()) == seen


def test_accesses_go_to_their_own_descriptor_and_close_flushes():
    with logs(form="json") as (opened, written):
        opened.access.append(record())
        errors, output = written()
    assert errors == ""
    assert orjson.loads(output)["status"] == 200


def test_the_access_log_can_be_switched_off():
    with logs(access=False) as (opened, written):
        assert opened.access is None
        opened.flush()
        assert written() == ("", "")


@pytest.mark.parametrize(("form", "human"), [("auto", True), ("json", False), ("text", True)])
def test_on_a_terminal_auto_means_text(form, human):
    controller, terminal = pty.openpty()
    opened = Logs(LogSettings(form=form), Metrics(), error_fd=terminal, output_fd=terminal)
    opened.access.append(record())
    opened.close()
    line = os.read(controller, 4096)
    assert line.startswith(b"{") is not human
    os.close(controller)
    os.close(terminal)


def test_other_packages_warnings_come_along_and_nothing_stays_behind():
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    with logs(form="json") as (opened, written):
        opened.adopt_standard_logging()
        logging.getLogger("some.package").info("unseen")
        logging.getLogger("some.package").warning("odd %s", "\x1b")
        try:
            1 / 0  # noqa: B018  # to have an exception
        except ZeroDivisionError:
            logging.getLogger("asyncio").exception("lost")
        errors, _ = written()
    assert (root.handlers, root.level) == (handlers, level)
    odd, lost = map(orjson.loads, errors.splitlines())
    assert (odd["event"], odd["logger"], odd["level"]) == ("odd \\x1b", "some.package", "warning")
    assert lost["level"] == "error"
    assert "ZeroDivisionError" in lost["exception"]
