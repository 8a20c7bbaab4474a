"""The processes of a proxy with several workers, as the system shows them."""

import contextlib
import os
import re
import signal
import socket
import sys
import time
from pathlib import Path

import httpx

from harness.proxy import Proxy

LISTENS = "0A"
"""A socket's state in /proc/net/tcp."""

ROLE = re.compile(rb"proxy\.process\.(\w+)_main")


def children(proxy: Proxy) -> dict[int, str]:
    """What the supervisor has started, by process id: ``worker`` or ``controller``."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            role = ROLE.search((stat.parent / "cmdline").read_bytes())
        except OSError:
            continue  # it ended meanwhile
        if parent == proxy.pid and role is not None:
            found[int(stat.parent.name)] = role[1].decode()
    return found


def workers(proxy: Proxy) -> list[int]:
    """Process ids."""
    return sorted(pid for pid, role in children(proxy).items() if role == "worker")


def controller(proxy: Proxy) -> int:
    """Its process id."""
    (pid,) = (pid for pid, role in children(proxy).items() if role == "controller")
    return pid


def connections(proxy: Proxy, pid: int) -> set[tuple[str, int]]:
    """Clients' addresses of the TCP connections to the listener that a process has accepted, and has."""
    sockets = set()
    with contextlib.suppress(FileNotFoundError):  # it ended meanwhile
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):  # closed meanwhile
                sockets.add(str(descriptor.readlink()))
    found = set()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, remote, state, _, _, _, _, _, inode, *_ = line.split()
        if state != LISTENS and int(local.rpartition(":")[2], 16) == proxy.port and f"socket:[{inode}]" in sockets:
            host, port = remote.split(":")
            found.add((socket.inet_ntoa(int(host, 16).to_bytes(4, sys.byteorder)), int(port, 16)))
    return found


def holder(proxy: Proxy, client: tuple[str, int]) -> int:
    """Process id of the worker that has the TCP connection of the client at that address."""
    for pid in workers(proxy):
        if client in connections(proxy, pid):
            return pid
    message = f"no worker has the connection from {client}"
    raise AssertionError(message)


def kill(pid: int) -> None:
    """SIGKILL, and wait until it is gone."""
    os.kill(pid, signal.SIGKILL)
    gone(pid)


def gone(pid: int, limit: float = 20.0) -> None:
    """Wait until there is no such process."""
    end = time.monotonic() + limit
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < end, f"process {pid} is still there"
        time.sleep(0.02)  # no child of ours: its end gives no event; bounded by *limit*


def serving(proxy: Proxy, count: int) -> None:
    """Wait until so many workers serve."""

    def found() -> bool:
        try:
            return proxy.metric("qproxy_workers") == count
        except httpx.ConnectError:
            return False  # the admin API opens when all serve

    proxy.wait_for(found, f"has {count} workers", 20)
