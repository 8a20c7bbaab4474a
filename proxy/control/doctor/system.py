"""What the kernel allows: buffers, queues, ports, descriptors; and whether its clock is kept right.

Knows ``/proc`` (under *root*, so that a test may lay out another one) and adjtimex. What a system does not have is passed over.
"""

import ctypes
import struct
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from proxy.config.load import Configuration
from proxy.control.doctor.finding import Finding
from proxy.listen.accept import BACKLOG

MAX_PORTS = 64_000
"""Local ports for connections to one address of a backend; there are no more."""

MAX_ERROR = 1.0
"""Seconds that the clock may be off: certificates, tickets and logs go by it."""

_TIME_ERROR = 5
_STA_UNSYNC = 0x40


@dataclass(frozen=True, slots=True)
class Clock:
    """What adjtimex(2) tells."""

    synchronised: bool
    error: float
    """Seconds that it may be off at most, as the kernel reckons."""


def examine_system(  # noqa: PLR0913  # what a machine has, to be told apart from this one by tests
    configuration: Configuration,
    root: Path,
    descriptors: int,
    *,
    spare: int,
    clock: Callable[[], Clock | None],
    force_buffers: bool,
) -> Iterator[Finding]:
    """What the kernel, its limits and its clock lack.

    *descriptors*: the hard limit on files; *spare*: what a process needs besides connections; *force_buffers*: whether it may have larger
    buffers than the kernel allows to others.
    """
    kernel = _Kernel(root)
    server = configuration.server
    if any("h3" in listener.protocols for listener in server.listeners) or any("quic" in tier.protocols for tier in configuration.l4):
        yield from kernel.at_least("net.core.rmem_max", 0 if force_buffers else server.quic.receive_buffer)
        yield from kernel.at_least("net.core.wmem_max", 0 if force_buffers else server.quic.send_buffer)
        yield from kernel.one_of("net.ipv4.tcp_ecn", (1, 2), 2)
    yield from kernel.at_least("net.core.somaxconn", BACKLOG)
    yield from kernel.bits("net.ipv4.tcp_fastopen", 3)
    connections = server.limits.connections
    yield from kernel.ports(min(connections, MAX_PORTS))
    wanted = 2 * connections + spare
    yield _descriptors(descriptors, wanted, connections)
    yield from kernel.at_least("fs.file-max", wanted, "limits")
    yield _time(clock(), shared=configuration.keys is not None)


def kernel_clock() -> Clock | None:
    """The clock of this system; None where it does not tell."""
    try:
        adjtimex = ctypes.CDLL(None, use_errno=True).adjtimex
    except (OSError, AttributeError):
        return None
    if sys.maxsize < 2**32:  # the layout below is that of 64 bits
        return None
    timex = ctypes.create_string_buffer(512)  # modes 0: nothing is set
    state = adjtimex(timex)
    if state < 0:
        return None
    _, _, _, error, _, status = struct.unpack_from("I4xqqqqi", timex.raw)
    return Clock(state != _TIME_ERROR and not status & _STA_UNSYNC, error / 1e6)


class _Kernel:
    """The settings under ``/proc/sys``."""

    def __init__(self, root: Path) -> None:
        self._root = root / "sys"

    def at_least(self, name: str, wanted: int, area: str = "kernel") -> Iterator[Finding]:
        for (found,) in self._read(name, 1):
            yield self._judge(name, found >= wanted, str(found), f"{wanted} or more", str(wanted), area)

    def one_of(self, name: str, good: tuple[int, ...], best: int) -> Iterator[Finding]:
        for (found,) in self._read(name, 1):
            yield self._judge(name, found in good, str(found), " or ".join(map(str, good)), str(best))

    def bits(self, name: str, wanted: int) -> Iterator[Finding]:
        for (found,) in self._read(name, 1):
            expected = f"{wanted}: towards backends (1) and for clients (2)"
            yield self._judge(name, found & wanted == wanted, str(found), expected, str(found | wanted))

    def ports(self, wanted: int) -> Iterator[Finding]:
        name = "net.ipv4.ip_local_port_range"
        for low, high in self._read(name, 2):
            count = max(0, high - low + 1)
            expected = f"{wanted} ports or more: one for each connection to a backend's address"
            yield self._judge(
                name, count >= wanted, f"{low} {high}, {count} ports", expected, f"{min(low, max(1024, high - wanted))} 65535"
            )

    def _read(self, name: str, fields: int) -> Iterator[list[int]]:
        """The numbers of a setting, once; nothing where the system has not this one."""
        try:
            numbers = [int(word) for word in (self._root / name.replace(".", "/")).read_text().split()]
        except (OSError, ValueError):
            return
        if len(numbers) >= fields:
            yield numbers[:fields]

    @staticmethod
    def _judge(name: str, good: bool, found: str, expected: str, value: str, area: str = "kernel") -> Finding:  # noqa: PLR0913, PLR0917
        if good:
            return Finding("ok", area, name, found)
        setting = f"{name}={value}" if " " not in value else f"{name}='{value}'"
        return Finding("warning", area, name, found, expected, f"sysctl -w {setting}   # and into /etc/sysctl.d/ to keep it")


def _descriptors(have: int, wanted: int, connections: int) -> Finding:
    what = "file descriptors (hard limit)"
    if have >= wanted:
        return Finding("ok", "limits", what, str(have) if have < sys.maxsize else "unlimited")
    expected = f"{wanted} or more: two for each of limits.connections, {connections}"
    return Finding("warning", "limits", what, str(have), expected, f"ulimit -Hn {wanted}   # under systemd: LimitNOFILE={wanted}")


def _time(clock: Clock | None, *, shared: bool) -> Finding:
    """*shared*: instances have keys in common, which begin by it."""
    if clock is None:
        return Finding("ok", "time", "clock", "this system does not tell whether it is synchronised")
    if clock.synchronised and clock.error <= MAX_ERROR:
        return Finding("ok", "time", "clock", f"synchronised, {clock.error:.3f} s off at most")
    found = f"synchronised, but up to {clock.error:.0f} s off" if clock.synchronised else "not synchronised"
    if shared:
        found += ": the keys of the cluster begin by it, and what is sealed ages by it"
    return Finding("warning", "time", "clock", found, f"synchronised, {MAX_ERROR:g} s off at most", "timedatectl set-ntp true")
