"""What every process of the proxy does for itself: its event loop, its descriptors, its memory."""

import asyncio
import contextlib
import gc
import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path

from proxy.config.load import Configuration
from proxy.config.model_server import MAX_WORKERS
from proxy.message import Address
from proxy.observe import Log
from proxy.snapshot import Snapshot

EXIT_OK, EXIT_FAILURE, EXIT_CONFIGURATION = 0, 1, 2

SPARE_DESCRIPTORS = 128
"""For listeners, logs, probes, watches and the admin API."""


class SetupError(Exception):
    """The system can't do what the configuration asks for; the text says what."""


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Uvloop where it is installed, else asyncio's own."""
    try:
        import uvloop  # noqa: PLC0415  # optional on systems without it
    except ImportError:
        return None
    return uvloop.new_event_loop  # type: ignore[no-any-return,unused-ignore]


def workers_of(configuration: Configuration) -> int:
    """Workers that the configuration asks for."""
    workers = configuration.server.workers
    return most_workers() if isinstance(workers, str) else workers


def most_workers() -> int:
    """Workers that make sense here: one for each core."""
    return min(cpus(), MAX_WORKERS)


def supervised(configuration: Configuration) -> bool:
    """Whether the workers are processes of their own. Raises SetupError where that is asked for and can't be had."""
    workers = configuration.server.workers
    if sys.platform == "linux":
        return workers != 1
    if isinstance(workers, int) and workers > 1:
        msg = f"server.workers is {workers}: several processes on one port need Linux; here, expected 1 or auto, which is one process"
        raise SetupError(msg)
    return False


def cpus(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Cores that this process may use: those that it may run on, and no more than its control group's quota makes whole ones of."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):
        quota, period = (cgroup / "cpu.max").read_text().split()
        return max(1, min(allowed, int(quota) // int(period)))  # "max" is no number: then there is none
    with contextlib.suppress(OSError, ValueError):
        quota_us = int((cgroup / "cpu/cpu.cfs_quota_us").read_text())
        if quota_us > 0:
            return max(1, min(allowed, quota_us // int((cgroup / "cpu/cpu.cfs_period_us").read_text())))
    return allowed


def raise_descriptor_limit(connections: int, log: Log) -> int:
    """Take as many descriptors as the system allows, and give their number. Says so when so many client connections can need more."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):  # macOS allows less than it says
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    have, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if have == resource.RLIM_INFINITY:
        have = sys.maxsize
    wanted = 2 * connections + SPARE_DESCRIPTORS  # a client's connection and one to a backend
    if have < wanted:
        log.warning(
            "fewer file descriptors than the connections may need: raise the hard limit, or lower limits.connections",
            descriptors=have,
            connections=connections,
            wanted=wanted,
        )
    return have


def settle_memory() -> None:
    """What exists now lives to the end: the collector need not look at it again (docs/design)."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
    gc.enable()


def listed(snapshot: Snapshot) -> list[str]:
    """Its listeners, for the log."""
    return [f"{listener.name} {' '.join(sorted(listener.protocols))}" for listener in snapshot.sockets]


def shown(address: Address | None) -> str:
    """An address as people write it."""
    if address is None:
        return "off"
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def complain(text: str, code: int) -> int:
    """Say on standard error what is wrong, before there is a log; gives *code* back."""
    sys.stderr.write(text + "\n")
    return code
