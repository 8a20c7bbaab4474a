"""Reads how loaded this worker is, at each tick of its clock, and has that work: on the exchanges, at accept, and on the memory itself.

What the readings mean ``overload.py`` says.
"""

import contextlib
import ctypes
import gc
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from proxy.listen.limits import AcceptLimits
from proxy.overload import Load
from proxy.services import Services
from proxy.snapshot import Overload, Snapshot

REASON = "memory"
"""Of the gate, and the label of the metric."""

GROUP_SHARE = 0.9
"""Of the control group's memory that its processes may take by default: the kernel's buffers and what is started beside need some."""

TRIM_EVERY = 10.0
"""Seconds between attempts to give memory back to the system, which stop the loop for some milliseconds each."""

STAYS = 30.0
"""Seconds at the limit of memory, with nothing new served and all given back that can be, after which only the end of the process helps."""

ASK_EVERY = 5.0
"""Seconds between requests to be replaced for that."""

_NO_LIMIT = 1 << 60
"""What stands in a group of version 1 that has none is about the largest number."""


class Pressure:
    """The load of this process and its consequences."""

    def __init__(self, services: Services, limits: AcceptLimits, group_memory: int) -> None:
        """*group_memory*: bytes that this process may take of its control group's; 0 where that has no limit."""
        self._services = services
        self._limits = limits
        self._group_memory = group_memory
        self._streams = services.meters.streams_open
        self.load = Load(self._settings(services.snapshot), services.snapshot.trusted_proxies, services.meters, services.log)
        self._resident = resident_memory()
        self._was_full = False
        self._trimmed = float("-inf")
        self._full_since = 0.0
        self._asked = float("-inf")
        self.memory_stays: Callable[[], None] = _nothing
        """Told while the memory does not go down whatever is turned away, every ``ASK_EVERY`` seconds."""

    def replace(self, snapshot: Snapshot, group_memory: int) -> None:
        """Take the limits of a new configuration."""
        self._group_memory = group_memory
        self.load.replace(self._settings(snapshot), snapshot.trusted_proxies)

    def _settings(self, snapshot: Snapshot) -> Overload:
        settings = snapshot.overload
        return settings if settings.memory is not None else replace(settings, memory=self._group_memory)

    def look(self, lag: float, now: float) -> None:
        """At each tick: *lag* seconds late, at *now*."""
        load, services = self.load, self._services
        if not load.wanted and not load.shedding and load.state == "normal":
            return
        in_progress = int(sum(cell.value for cell in self._streams.cells.values()))
        memory = self._resident()
        load.look(lag, memory, in_progress, now)
        services.shedding = load if load.shedding else None
        if load.full is not self._was_full:
            self._full_since = now
            self._change(memory)
        if load.full and now >= self._trimmed + TRIM_EVERY:
            self._trimmed = now
            give_memory_back()
        if load.full and now >= max(self._full_since + STAYS, self._asked + ASK_EVERY) and not services.draining:
            self._asked = now
            self.memory_stays()

    def _change(self, memory: int) -> None:
        """Memory came to its limit, or is below it again."""
        full = self._was_full = self.load.full
        if full:
            self._limits.shut(REASON)
            self._services.log.error("memory is at its limit: no request is served and no connection accepted", resident_bytes=memory)
        else:
            self._limits.open_again(REASON)
            self._services.log.info("memory is below its limit again", resident_bytes=memory)


def _nothing() -> None:
    """Nobody can replace the only process there is."""


def resident_memory() -> Callable[[], int]:
    """What gives the bytes of memory that this process has resident; always 0 where the system does not tell (Linux does)."""
    page = os.sysconf("SC_PAGE_SIZE")
    try:
        descriptor = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return lambda: 0

    def read() -> int:
        return int(os.pread(descriptor, 128, 0).split()[1]) * page

    return read


def group_memory(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int:
    """Bytes of memory that the control group of this process may have, the strictest on the way to the root; 0: no limit."""
    limits = []
    with contextlib.suppress(OSError):
        for line in own.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers:
                limits += _limits(root, path, "memory.max")
            elif "memory" in controllers.split(","):
                limits += _limits(root / "memory", path, "memory.limit_in_bytes")
    return min(limits, default=0)


def _limits(root: Path, path: str, name: str) -> list[int]:
    found = []
    group = root / path.strip("/")
    for folder in (group, *group.parents):
        with contextlib.suppress(OSError, ValueError):  # "max" is no number: there is none
            limit = int((folder / name).read_text())
            if 0 < limit < _NO_LIMIT:
                found.append(limit)
        if folder == root:
            break
    return found


def give_memory_back() -> None:
    """What Python and the C library keep though nothing is in it."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # glibc has it
        ctypes.CDLL(None).malloc_trim(0)
