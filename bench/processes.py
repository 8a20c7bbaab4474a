"""What processes use, from /proc: processor time and memory of a server with all its children, and how busy a core is."""

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Sample:
    """Counters at one time."""

    at: float
    used: tuple[float, float]
    """Seconds of processor time of the server's processes, user and system."""
    server: tuple[float, float]
    load: tuple[float, float]
    """Busy and all seconds of the two cores."""

    @classmethod
    def take(cls, pids: Iterable[int], server_core: int | None, load_core: int | None) -> "Sample":
        """Now."""
        return cls(time.monotonic(), cpu_seconds(pids), core_seconds(server_core), core_seconds(load_core))

    def since(self, before: "Sample") -> dict[str, float]:
        """Shares of the time between: ``user`` and ``system`` of one core by the server, ``busy`` and ``load_busy`` of the cores by all."""
        passed = self.at - before.at
        figures = {"user": (self.used[0] - before.used[0]) / passed, "system": (self.used[1] - before.used[1]) / passed}
        for name, now, then in (("busy", self.server, before.server), ("load_busy", self.load, before.load)):
            if now[1] > then[1]:
                figures[name] = (now[0] - then[0]) / (now[1] - then[1])
        return figures


def family(pids: Iterable[int]) -> set[int]:
    """*pids* with all their descendants."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (fields := _stat(int(entry.name))):
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    found: set[int] = set()
    left = list(pids)
    while left:
        pid = left.pop()
        found.add(pid)
        left += children.get(pid, [])
    return found


def cpu_seconds(pids: Iterable[int]) -> tuple[float, float]:
    """User and system time of *pids* and their descendants that live."""
    user = system = 0
    for pid in family(pids):
        if fields := _stat(pid):
            user, system = user + int(fields[11]), system + int(fields[12])
    return user / TICKS, system / TICKS


def core_seconds(core: int | None) -> tuple[float, float]:
    """Seconds that *core* was busy, and all its seconds, since the machine started; zeros for None."""
    if core is None:
        return 0.0, 0.0
    for line in Path("/proc/stat").read_text().splitlines():
        name, *numbers = line.split()
        if name == f"cpu{core}":
            times = [int(number) for number in numbers[:8]]
            return (sum(times) - times[3] - times[4]) / TICKS, sum(times) / TICKS
    return 0.0, 0.0


def memory_bytes(pids: Iterable[int]) -> int:
    """Resident memory of *pids* and their descendants; what several share counts once (PSS) where the kernel tells."""
    total = 0
    for pid in family(pids):
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)
    return total


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on (proc(5), field 3); empty for a process that is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
