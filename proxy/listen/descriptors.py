"""A reserve of file descriptors: what a worker that ran out of them goes on with, while no new connection takes another one.

At the limit (EMFILE, ENFILE), accept fails and leaves the connection in the queue, so that the socket stays readable: a loop that asks
again at once never rests, and those who are connected already can reach no backend. So descriptors are kept that lead nowhere. When one
can't be had, they are given up, for connections to backends, logs, probes and the admin API; accepting waits until as many are to be had
again.
"""

import contextlib
import errno
import os
from collections.abc import Callable

from proxy.errors import OUT_OF_DESCRIPTORS
from proxy.listen.gate import Gate
from proxy.meters import ProxyMetrics
from proxy.observe import Log

OUT_OF_THEM = OUT_OF_DESCRIPTORS | {errno.ENOBUFS, errno.ENOMEM}
"""What accept says when the process or the system has no more to give (accept(2)); the connection waits meanwhile."""

REASON = "descriptors"
"""Of the gate, and the label of the metric."""

LEAST, MOST = 8, 256
"""Descriptors in reserve."""

SHARE = 16
"""One in so many is kept."""

PAUSE = 1.0
"""Seconds for which accepting waits at least: no faster change between enough and too few than that."""


class Descriptors:
    """The reserve of one process. It has none before ``keep``."""

    def __init__(self, gate: Gate, meters: ProxyMetrics, log: Log, close_idle: Callable[[], None]) -> None:
        """*close_idle* frees descriptors that nothing needs at present: of idle connections to backends."""
        self._gate = gate
        self._close_idle = close_idle
        self._hit = meters.limits_hit.cell(REASON)
        self._log = log
        self._wanted = 0
        self._kept: list[int] = []
        self._out_since: float | None = None

    def keep(self, limit: int) -> None:
        """Take the reserve for a process that may have *limit* descriptors: a sixteenth of them, 8 to 256. Not before the limit is set."""
        self._wanted = max(LEAST, min(MOST, limit // SHARE))
        self._kept += _take(self._wanted - len(self._kept))

    def relieve(self, now: float) -> None:
        """A descriptor was wanted and there was none: give up the reserve, and accept nobody until it can be had again."""
        self._hit.value += 1
        if self._out_since is not None:
            return
        self._out_since = now
        given = len(self._kept)
        self._give_up()
        self._close_idle()
        self._gate.shut(REASON)
        self._log.warning("out of file descriptors: new connections wait, those in reserve serve the present ones", reserve=given)

    def look(self, now: float) -> None:
        """Whether there are enough again: those in reserve, and a quarter of them beside. Costs nothing while they never ran out."""
        if self._out_since is None or now < self._out_since + PAUSE:
            return
        beside = self._wanted // 4 + 1
        taken = _take(self._wanted + beside)
        enough = len(taken) == self._wanted + beside
        for descriptor in taken[self._wanted :] if enough else taken:
            os.close(descriptor)
        if not enough:
            self._close_idle()
        else:
            self._kept = taken[: self._wanted]
            self._log.info("file descriptors are there again: new connections come in", seconds=round(now - self._out_since, 1))
            self._out_since = None
            self._gate.take_back(REASON)

    def close(self) -> None:
        """Give up the reserve for good."""
        self._give_up()

    def _give_up(self) -> None:
        kept, self._kept = self._kept, []
        for descriptor in kept:
            os.close(descriptor)


def _take(count: int) -> list[int]:
    """As many as can be had, up to *count*."""
    taken: list[int] = []
    with contextlib.suppress(OSError):
        for _ in range(count):
            taken.append(os.dup(taken[0]) if taken else os.open(os.devnull, os.O_RDONLY))
    return taken
