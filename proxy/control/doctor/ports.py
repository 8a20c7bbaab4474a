"""Who listens where the configuration wants to: nobody, qproxy itself, or somebody else.

Reads ``/proc/net`` and, for the name of who has a port, ``/proc/PID`` (under *root*). Binds nothing to a port.
"""

import contextlib
import errno
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from itertools import pairwise
from pathlib import Path

from proxy.config.load import Configuration
from proxy.config.model_server import Admin, ServerHealth
from proxy.control.doctor.finding import Finding
from proxy.message import Address
from proxy.snapshot import TCP_PROTOCOLS

_LISTENING = {"tcp": "0A", "udp": "07"}
"""States in ``/proc/net``; that of an unconnected UDP socket is 07."""


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A port of the configuration."""

    address: Address
    transport: str
    setting: str


def examine_ports(
    configuration: Configuration,
    root: Path,
    *,
    privileged: bool,
    local: Callable[[str], bool] | None = None,
) -> Iterator[Finding]:
    """*privileged*: may this user bind any port? *local* tells whether this machine has an address."""
    local = local or has_address
    sockets = _Sockets(root)
    start = _first_unprivileged(root)
    for wanted in _wanted(configuration):
        host, port = wanted.address
        shown = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        what = f"{wanted.transport} {shown}"
        if not local(host):
            yield Finding(
                "failure", "port", what, f"this machine has no address {host}", "an address of this machine", f"change {wanted.setting}"
            )
            continue
        if not port:
            yield Finding("ok", "port", what, "any free port")
            continue
        inodes = sockets.on(wanted)
        if inodes:
            yield _taken(what, wanted, sockets.owners(inodes))
        elif port < start and not privileged:
            mend = f"sysctl -w net.ipv4.ip_unprivileged_port_start={port}   # under systemd: AmbientCapabilities=CAP_NET_BIND_SERVICE"
            yield Finding("failure", "port", what, f"free, but this user may not bind ports below {start}", "the right to bind it", mend)
        else:
            yield Finding("ok", "port", what, "free")


def has_address(host: str) -> bool:
    """Whether this machine has the address, or it means all of them."""
    if ip_address(host).is_unspecified:
        return True
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as sock:
        try:
            sock.bind((host, 0))  # of no port in particular, and closed at once
        except OSError as error:
            return error.errno != errno.EADDRNOTAVAIL
        return True
    return False


def _wanted(configuration: Configuration) -> Iterator[_Wanted]:
    for listener in configuration.server.listeners:
        if not set(TCP_PROTOCOLS).isdisjoint(listener.protocols):
            yield _Wanted(listener.address, "tcp", "server.listeners")
        if "h3" in listener.protocols:
            yield _Wanted(listener.address, "udp", "server.listeners")
    for tier in configuration.l4:
        for protocol, transport in (("tcp", "tcp"), ("quic", "udp")):
            if protocol in tier.protocols:
                yield _Wanted(tier.address, transport, "l4")
    server = configuration.server
    if server.cluster is not None and server.cluster.address is not None:
        yield _Wanted(server.cluster.address, "udp", "server.cluster")
    if isinstance(server.admin, Admin):
        yield _Wanted(server.admin.address, "tcp", "server.admin")
    if isinstance(server.health, ServerHealth) and server.health.address is not None:
        yield _Wanted(server.health.address, "tcp", "server.health")


def _taken(what: str, wanted: _Wanted, owners: list[tuple[int, str, bool]]) -> Finding:
    if not owners:
        found = "taken; only root may see by whom"
        mend = f"sudo ss -{'lnup' if wanted.transport == 'udp' else 'lntp'} 'sport = :{wanted.address[1]}'"
        return Finding("warning", "port", what, found, "free, or qproxy's own", mend)
    named = ", ".join(f"{name} (process {process})" for process, name, _ in owners)
    if all(ours for *_, ours in owners):
        return Finding("ok", "port", what, f"in use by {named}")
    others = " ".join(str(process) for process, _, ours in owners if not ours)
    return Finding("failure", "port", what, f"taken by {named}", "free, or qproxy's own", f"kill {others}   # or change {wanted.setting}")


def _first_unprivileged(root: Path) -> int:
    try:
        return int((root / "sys/net/ipv4/ip_unprivileged_port_start").read_text())
    except (OSError, ValueError):
        return 1024


class _Sockets:
    """The sockets of this machine that listen."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._listening: dict[tuple[str, int], list[tuple[IPv4Address | IPv6Address, str]]] = {}
        """By transport and port: addresses with the socket's inode."""
        for transport in _LISTENING:
            for version in ("", "6"):
                self._read(transport, root / "net" / f"{transport}{version}")

    def on(self, wanted: _Wanted) -> set[str]:
        """The inodes of sockets that are in the way of *wanted*: at its address, or at all addresses, or at any where it means all."""
        host, port = wanted.address
        address = ip_address(host)
        return {
            inode
            for there, inode in self._listening.get((wanted.transport, port), ())
            if there == address
            or (address.is_unspecified and address.version in {there.version, 6})
            or (there.is_unspecified and there.version in {address.version, 6})
        }

    def owners(self, inodes: set[str]) -> list[tuple[int, str, bool]]:
        """Who has these sockets, as far as this user may see: process, name, whether it is a qproxy."""
        names = {f"socket:[{inode}]" for inode in inodes}
        found = []
        for folder in sorted(self._root.glob("[0-9]*")):
            with contextlib.suppress(OSError):
                if any(_link(file) in names for file in (folder / "fd").iterdir()):
                    command = (folder / "cmdline").read_bytes().split(b"\0")
                    name = (folder / "comm").read_text(errors="replace").strip()
                    found.append((int(folder.name), name, _is_ours(command)))
        return found

    def _read(self, transport: str, file: Path) -> None:
        try:
            lines = file.read_text().splitlines()[1:]
        except OSError:
            return
        for line in lines:
            fields = line.split()
            if len(fields) < 10 or fields[3] != _LISTENING[transport]:
                continue
            host, _, port = fields[1].partition(":")
            with contextlib.suppress(ValueError):
                self._listening.setdefault((transport, int(port, 16)), []).append((_address(host), fields[9]))


def _link(file: Path) -> str:
    try:
        return str(file.readlink())
    except OSError:
        return ""


def _address(words: str) -> IPv4Address | IPv6Address:
    """An address as ``/proc/net`` writes it: words of four bytes in the machine's order, which is taken to be little endian."""
    packed = bytes.fromhex(words)
    turned = b"".join(packed[at : at + 4][::-1] for at in range(0, len(packed), 4))
    return IPv6Address(turned) if len(turned) == 16 else IPv4Address(turned)


def _is_ours(command: list[bytes]) -> bool:
    """Whether a command line is qproxy's: ``qproxy ...`` as a script, or ``python -m proxy ...``."""
    script = any(word.rpartition(b"/")[2] == b"qproxy" for word in command[:2])
    return script or any(pair == (b"-m", b"proxy") for pair in pairwise(command))
