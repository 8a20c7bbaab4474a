"""The trace of one connection as qlog (draft-ietf-quic-qlog-main-schema, version 0.3, JSON text sequences): what aioquic tells, in records.

Knows aioquic's logger and the sink's two methods. Knows no files.
"""

from collections.abc import Callable
from typing import Any

import orjson
from aioquic.quic.logger import QLOG_VERSION, QuicLoggerTrace

from proxy.engine.seam import TraceSink

MAX_WAITING = 4096
"""Events between two turns of a connection, at most: what comes beyond is left out. A turn brings at most a congestion window of them."""


class Trace(QuicLoggerTrace):
    """Stands where aioquic keeps its logger and its trace. *clock* gives the time that the endpoint was told last."""

    def __init__(self, sink: TraceSink, original: bytes, clock: Callable[[], float]) -> None:
        super().__init__(is_client=False, odcid=original)
        self._sink = sink
        self._clock = clock
        self._began = clock()
        self._head: dict[str, Any] | None = {
            "qlog_version": QLOG_VERSION,
            "qlog_format": "JSON-SEQ",
            "title": "qproxy",
            "trace": {
                "vantage_point": {"name": "qproxy", "type": "server"},
                "common_fields": {"ODCID": original.hex(), "time_format": "relative", "reference_time": sink.began * 1000},
            },
        }
        self._waiting: list[dict[str, Any]] = []

    def start_trace(self, **_: object) -> "Trace":
        """As the library's logger: this is the trace."""
        return self

    def end_trace(self, trace: object) -> None:
        """As the library's logger; ``close`` is later, when the connection is forgotten."""

    def log_event(self, *, category: str, event: str, data: dict[str, Any]) -> None:
        """One event; the library may add to *data* until its turn is over."""
        if len(self._waiting) < MAX_WAITING:
            self._waiting.append({"time": (self._clock() - self._began) * 1000, "name": f"{category}:{event}", "data": data})

    def flush(self) -> bool:
        """The connection's turn is over: hand over what was told. False when no more is wanted."""
        waiting = self._waiting
        if not waiting:
            return True
        if self._head is not None:
            waiting.insert(0, self._head)
            self._head = None
        records = b"".join([b"\x1e%b\n" % orjson.dumps(record) for record in waiting])
        waiting.clear()
        return self._sink.write(records)

    def abandon(self) -> None:
        """Forget what was not handed over: there was no connection."""
        self._waiting.clear()

    def close(self) -> None:
        """The connection is forgotten."""
        self.flush()
        self._sink.close()
