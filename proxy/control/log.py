"""Both logs of a process: events to standard error, accesses to standard output, as JSON lines or for people.

Knows structlog and the writers. Never blocks its callers: see ``writer``. What the standard library and other packages log comes along.
"""

import logging
import os
from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, cast

import orjson
import structlog

from proxy.control.access_log import AccessLog
from proxy.control.printable import block, printable
from proxy.control.writer import CLOSE_SECONDS, LineWriter
from proxy.observe import Log, Metrics

Form: TypeAlias = Literal["auto", "json", "text"]
"""``auto``: text on a terminal, else JSON."""
Level: TypeAlias = Literal["debug", "info", "warning", "error"]

MAX_DETAIL = 2048
"""Characters of one detail of an event, at most."""
MAX_TRACEBACK = 16 * 1024
"""Characters of a traceback, at most."""
MAX_DEPTH = 4
"""How deep a detail of lists and mappings is shown."""

_LEVELS: dict[Level, int] = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


@dataclass(frozen=True, slots=True)
class LogSettings:
    """What the configuration says of the logs."""

    form: Form = "auto"
    level: Level = "info"
    """The least that is shown of events."""
    access: bool = True
    """Whether there is an access log."""
    worker: int | None = None
    """Slot of the worker whose events these are, where there are several."""


class Logs:
    """Opens both logs. ``events`` fits ``observe.Log``; ``access`` is None where it was switched off."""

    def __init__(self, settings: LogSettings, metrics: Metrics, *, error_fd: int = 2, output_fd: int = 1) -> None:
        form = settings.form
        self._events_writer = LineWriter(error_fd)
        self.events: Log = event_log(
            self._events_writer, settings.level, json=_is_json(form, error_fd), colors=os.isatty(error_fd), worker=settings.worker
        )
        self._access_writer = LineWriter(output_fd) if settings.access else None
        self.access: AccessLog | None = None
        if self._access_writer is not None:
            self.access = AccessLog(self._access_writer, metrics, json=_is_json(form, output_fd))
        self._bridge = _Bridge(self.events)
        self._before: tuple[list[logging.Handler], int] | None = None
        dropped = metrics.counter("qproxy_event_log_dropped_total", "Event log lines lost because their reader was too slow").cell()

        def show_dropped() -> None:
            dropped.value = self._events_writer.dropped

        metrics.before_read.append(show_dropped)

    def adopt_standard_logging(self) -> None:
        """Let warnings and errors of other packages come out here, instead of as bare lines on standard error."""
        root = logging.getLogger()
        self._before = (root.handlers[:], root.level)
        root.handlers[:] = [self._bridge]
        root.setLevel(logging.WARNING)
        logging.captureWarnings(capture=True)

    def flush(self) -> None:
        """Hand collected access records over; to be called a few times a second."""
        if self.access is not None:
            self.access.flush()

    def close(self, seconds: float = CLOSE_SECONDS) -> None:
        """Write what is left, waiting at most so long for each reader; standard logging is as it was before."""
        self.flush()
        if self._before is not None:
            root = logging.getLogger()
            root.handlers[:], level = self._before
            root.setLevel(level)
            logging.captureWarnings(capture=False)
            self._before = None
        if self._access_writer is not None:
            self._access_writer.close(seconds)
        self._events_writer.close(seconds)


def event_log(writer: LineWriter, level: Level = "info", *, json: bool, colors: bool = False, worker: int | None = None) -> Log:
    """A structlog logger that writes one event to a line (a traceback in text form takes more, indented); with *worker* in each."""
    renderer: Any = _render_json
    if not json:
        renderer = structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=structlog.dev.plain_traceback, pad_event_to=0)
    logger = structlog.wrap_logger(
        _Lines(writer),
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="time" if json else "timestamp"),
            structlog.processors.format_exc_info,
            _clean,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        context_class=dict,
        cache_logger_on_first_use=True,
    )
    return cast("Log", logger.bind() if worker is None else logger.bind(worker=worker))


class _Lines:
    """What structlog calls at the end of its chain: every level is the same, a line."""

    def __init__(self, writer: LineWriter) -> None:
        self._writer = writer

    def msg(self, message: str | bytes) -> None:
        data = message if isinstance(message, bytes) else message.encode("utf-8", "backslashreplace")
        self._writer.write(data + b"\n")

    debug = info = warning = error = critical = msg


class _Bridge(logging.Handler):
    """Records of the standard library's logging, as events."""

    def __init__(self, log: Log) -> None:
        super().__init__()
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        write = self._log.error if record.levelno >= logging.ERROR else self._log.warning
        try:
            details: dict[str, object] = {"exc_info": record.exc_info} if record.exc_info else {}
            write(record.getMessage(), logger=record.name, **details)
        except Exception:  # noqa: BLE001  # a logger's own fault must not reach whoever logs
            self.handleError(record)


def _is_json(form: Form, descriptor: int) -> bool:
    return form == "json" or (form == "auto" and not os.isatty(descriptor))


def _clean(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Escape and shorten what may come from outside: in text form it could else draw on the terminal or forge a line."""
    for key, value in event.items():
        if key == "exception":
            event[key] = block(str(value), MAX_TRACEBACK)
        elif key != "timestamp":
            event[key] = _plain(value, MAX_DEPTH)
    return event


def _plain(value: object, depth: int) -> object:
    if value is None or isinstance(value, bool | float):
        return value
    if isinstance(value, int):
        return value if -(2**53) < value < 2**53 else str(value)
    if isinstance(value, str | bytes):
        return printable(value, MAX_DETAIL)
    if depth and isinstance(value, list | tuple | set | frozenset):
        return [_plain(item, depth - 1) for item in value]
    if depth and isinstance(value, dict):
        return {printable(str(key), MAX_DETAIL): _plain(item, depth - 1) for key, item in value.items()}
    return printable(str(value), MAX_DETAIL)


def _render_json(_logger: object, _method: str, event: MutableMapping[str, Any]) -> bytes:
    head = {"time": event.pop("time", None), "level": event.pop("level", None), "event": event.pop("event", None)}
    return orjson.dumps(head | dict(event), option=orjson.OPT_NON_STR_KEYS)
