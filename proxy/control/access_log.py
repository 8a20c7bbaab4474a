"""The access log: one line for each finished exchange, JSON or for people, written in batches.

Knows ``meters.AccessRecord`` and a writer. Everything that a client can choose is shortened and escaped here.
"""

from collections.abc import Callable
from datetime import UTC, datetime

import orjson

from proxy.control.printable import printable
from proxy.control.writer import LineWriter
from proxy.meters import AccessRecord
from proxy.observe import Metrics

BATCH = 256
"""Records that are formatted at once, at most: a batch takes about a millisecond."""

MAX_PATH = 2048
MAX_HOST = 255
MAX_TOKEN = 128
MAX_ERROR = 512
"""Characters of a field that come from outside, at most; what was cut ends with ``...``."""


class AccessLog:
    """Takes records on the data path and writes them behind it. ``flush`` is to be called a few times a second."""

    def __init__(self, writer: LineWriter, metrics: Metrics, *, json: bool) -> None:
        self._writer = writer
        self._format: Callable[[AccessRecord], bytes] = json_line if json else text_line
        self._records: list[AccessRecord] = []
        dropped = metrics.counter("qproxy_access_log_dropped_total", "Access log lines lost because their reader was too slow").cell()

        def show_dropped() -> None:
            dropped.value = writer.dropped

        metrics.before_read.append(show_dropped)

    def append(self, record: AccessRecord) -> None:
        """Take a record; never blocks."""
        records = self._records
        records.append(record)
        if len(records) >= BATCH:
            self.flush()

    def flush(self) -> None:
        """Format what has come since the last time and hand it to the writer."""
        records = self._records
        if records:
            self._records = []
            self._writer.write(b"".join(map(self._format, records)), len(records))


def json_line(record: AccessRecord) -> bytes:
    """The record as one line of JSON; its keys are the record's fields, and ``time`` is RFC 3339 in UTC."""
    return orjson.dumps(
        {
            "time": _timestamp(record.time),
            "request_id": printable(record.request_id, MAX_TOKEN),
            "client_address": record.client_address,
            "listener": record.listener,
            "version": record.version,
            "method": printable(record.method, MAX_TOKEN),
            "host": printable(record.host, MAX_HOST),
            "path": printable(record.path, MAX_PATH),
            "status": record.status,
            "site": record.site,
            "route": record.route,
            "backend": record.backend,
            "key": record.key[:MAX_TOKEN].hex(),
            "attempts": record.attempts,
            "bytes_in": record.bytes_in,
            "bytes_out": record.bytes_out,
            "seconds": round(record.seconds, 6),
            "seconds_connect": round(record.seconds_connect, 6),
            "seconds_first_byte": round(record.seconds_first_byte, 6),
            "ended": printable(record.ended, MAX_TOKEN),
            "error": printable(record.error, MAX_ERROR),
        },
        option=orjson.OPT_APPEND_NEWLINE,
    )


def text_line(record: AccessRecord) -> bytes:
    """The record for a person: time, status, request, what it took, where it went, for whom; then what went wrong."""
    where = f" -> {record.backend} ({record.route})" if record.backend else f" ({record.route})" if record.route else ""
    tries = f" after {record.attempts} tries" if record.attempts > 1 else ""
    ended = "" if record.ended in {"complete", "answered"} else f" {printable(record.ended, MAX_TOKEN)}"
    error = f": {printable(record.error, MAX_ERROR)}" if record.error else ""
    request = f"{printable(record.method, MAX_TOKEN)} {printable(record.host, MAX_HOST)}{printable(record.path, MAX_PATH)}"
    return (
        f"{_timestamp(record.time)} {record.status or '---'} {request} {record.version} {_duration(record.seconds)}"
        f" {record.bytes_out} B{where}{tries} for {record.client_address} id {printable(record.request_id, MAX_TOKEN)}{ended}{error}\n"
    ).encode()


_second = -1
_prefix = ""


def _timestamp(epoch: float) -> str:
    """RFC 3339 in UTC to the millisecond. The date is made once a second."""
    global _second, _prefix  # noqa: PLW0603  # one process-wide memory of the last second; making the date costs as much as the line
    milliseconds = int(epoch * 1000)
    second, rest = divmod(milliseconds, 1000)
    if second != _second:
        _prefix = datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")
        _second = second
    return f"{_prefix}.{rest:03d}Z"


def _duration(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"
