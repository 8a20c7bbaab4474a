"""Traces of QUIC connections (qlog) in a folder: of which connections, a file for each, written by a thread.

Knows files and chance. Knows no QUIC: an engine hands over complete records. Who serves never waits for the disk: what that does not take
is lost and counted. All is bounded: bytes on their way, bytes of a file, files in the folder.
"""

import os
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from threading import Lock, Thread

from proxy.message import Address
from proxy.observe import Log, Metrics
from proxy.policy.access import Networks

MAX_PENDING = 8 * 1024 * 1024
"""Bytes on their way to the disk, at most."""

CLOSE_SECONDS = 2.0
"""How long ``close`` waits for the disk."""

SUFFIX = ".sqlog"
"""The draft's, for JSON text sequences. Other files in the folder are nobody's business."""


@dataclass(frozen=True, slots=True)
class TraceSettings:
    """Which connections are traced, and where to."""

    folder: Path
    share: float
    """Of all connections, by chance: 0 to 1."""
    clients: Networks
    """Traced always."""
    file_bytes: int
    """Of one trace."""
    files: int
    """In the folder; the oldest goes."""


class Tracing:
    """Chooses connections and makes their traces: a ``seam.Tracer``. Raises OSError where the folder can't be made or read."""

    def __init__(self, settings: TraceSettings, metrics: Metrics, log: Log, *, chance: Callable[[], float] = random.random) -> None:
        self._settings = settings
        self._chance = chance
        self._writer = _Writer(settings, log)
        self._count = 0
        self._traces = metrics.counter("qproxy_qlog_traces_total", "QUIC connections of which a trace was begun").cell()
        self._dropped = metrics.counter(
            "qproxy_qlog_dropped_total",
            "Pieces of traces that were lost (queue: the disk is too slow, disk: it failed, size: the file is full, files: it was deleted)",
            ("reason",),
        )
        metrics.before_read.append(self._show)

    def __call__(self, peer: Address, original: bytes) -> "Trace | None":
        """The trace of a connection that begins, or None: it is not chosen. *original* is its original destination connection ID."""
        share = self._settings.share
        if not (share and self._chance() < share) and peer[0] not in self._settings.clients:
            return None
        self._count += 1
        self._traces.value += 1
        began = time.time()
        stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime(began))
        return Trace(self._writer, f"{stamp}-{self._count % 1_000_000:06d}-{original.hex()}{SUFFIX}", began, self._settings.file_bytes)

    def close(self) -> None:
        """Write what is queued, for at most ``CLOSE_SECONDS``."""
        self._writer.close()

    def _show(self) -> None:
        for reason, count in list(self._writer.dropped.items()):
            self._dropped.cell(reason).value = count


class Trace:
    """The trace of one connection: a ``seam.TraceSink``."""

    __slots__ = ("_first", "_name", "_room", "_writer", "began")

    def __init__(self, writer: "_Writer", name: str, began: float, room: int) -> None:
        self.began = began
        self._writer = writer
        self._name = name
        self._room = room
        self._first = True

    def write(self, records: bytes) -> bool:
        """Take complete records; never blocks. False: the file is full, no more is wanted."""
        if len(records) > self._room:
            self._room = 0
            self._writer.dropped["size"] += 1
            return False
        self._room -= len(records)
        if self._writer.put(self._name, records, first=self._first):
            self._first = False
        return True

    def close(self) -> None:
        """The connection is over."""


class _Writer:
    """The thread and the folder."""

    def __init__(self, settings: TraceSettings, log: Log) -> None:
        self._folder = settings.folder
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        kept = sorted(file.name for file in self._folder.iterdir() if file.name.endswith(SUFFIX))
        self._kept: dict[str, None] = dict.fromkeys(kept)  # the oldest first
        self._files = settings.files
        self._log = log
        self._well = True
        self._queue: SimpleQueue[tuple[str, bytes, bool] | None] = SimpleQueue()
        self._lock = Lock()
        self._pending = 0
        self.dropped: Counter[str] = Counter()
        self._thread = Thread(target=self._run, name="qlog writer", daemon=True)
        self._thread.start()

    def put(self, name: str, records: bytes, *, first: bool) -> bool:
        """Queue records of a trace; False when they had to be dropped. *first* makes its file."""
        with self._lock:
            if self._pending + len(records) > MAX_PENDING:
                self.dropped["queue"] += 1
                return False
            self._pending += len(records)
        self._queue.put((name, records, first))
        return True

    def close(self) -> None:
        self._queue.put(None)
        self._thread.join(CLOSE_SECONDS)

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            name, records, first = item
            try:
                self._write(name, records, first=first)
                self._well = True
            except OSError as error:
                self.dropped["disk"] += 1
                if self._well:
                    self._well = False
                    self._log.warning("a trace could not be written", file=name, problem=error.strerror)
            with self._lock:
                self._pending -= len(records)

    def _write(self, name: str, records: bytes, *, first: bool) -> None:
        if first:
            while len(self._kept) >= self._files:
                oldest = next(iter(self._kept))
                del self._kept[oldest]
                (self._folder / oldest).unlink(missing_ok=True)
            self._kept[name] = None
        elif name not in self._kept:
            self.dropped["files"] += 1
            return
        # opened anew each time, since there may be more traces than descriptors; what is in them is for few eyes
        descriptor = os.open(self._folder / name, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            rest = memoryview(records)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
        finally:
            os.close(descriptor)
