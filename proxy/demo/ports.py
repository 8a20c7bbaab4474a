"""Whether the demo's ports are free, and who has them otherwise.

The owner's name comes from /proc and is told where it can be read (Linux, own processes or root); nothing depends on it.
"""

import socket
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Port:
    """One address that the demo needs."""

    host: str
    number: int
    kind: str
    """``TCP`` or ``UDP``."""


def problem(port: Port) -> str | None:
    """One sentence that says why *port* can't be used, or None if it can."""
    kind = socket.SOCK_STREAM if port.kind == "TCP" else socket.SOCK_DGRAM
    with socket.socket(socket.AF_INET, kind) as probe:
        if kind == socket.SOCK_STREAM:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((port.host, port.number))
            if kind == socket.SOCK_STREAM:
                probe.listen(1)
        except OSError as error:
            owner = _owner(port)
            why = f"{owner} has it" if owner else error.strerror
            return f"{port.kind} port {port.number} of {port.host} can't be used: {why}."
    return None


def _owner(port: Port) -> str | None:
    inodes = _inodes(port)
    try:
        processes = [entry for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    except OSError:
        return None
    for process in processes if inodes else ():
        try:
            if any(str(link.readlink()) in inodes for link in (process / "fd").iterdir()):
                return f"process {process.name} ({(process / 'comm').read_text().strip()})"
        except OSError:  # another user's, or gone meanwhile
            continue
    return None


def _inodes(port: Port) -> set[str]:
    """``socket:[N]`` for each socket bound to the port number (any address), by proc_net(5): local address second, inode tenth."""
    found = set()
    for family in ("", "6"):
        try:
            lines = Path(f"/proc/net/{port.kind.lower()}{family}").read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            parts = line.split()
            listening = port.kind == "UDP" or parts[3] == "0A"
            if listening and int(parts[1].rpartition(":")[2], 16) == port.number:
                found.add(f"socket:[{parts[9]}]")
    return found
