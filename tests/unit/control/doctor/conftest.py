"""A machine as ``/proc`` tells of it, and configurations to examine on it."""

import os
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from proxy.config.load import Configuration, load

GOOD = {
    "net/core/rmem_max": "8388608",
    "net/core/wmem_max": "8388608",
    "net/core/somaxconn": "4096",
    "net/ipv4/tcp_fastopen": "3",
    "net/ipv4/tcp_ecn": "2",
    "net/ipv4/ip_local_port_range": "1024\t65535",
    "net/ipv4/ip_unprivileged_port_start": "1024",
    "fs/file-max": "9223372036854775807",
}
HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"


class Machine:
    """A ``/proc`` of a test's own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name, value in GOOD.items():
            self.set(name, value)

    def set(self, name: str, value: str | None) -> None:
        file = self.root / "sys" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.unlink(missing_ok=True)
        if value is not None:
            file.write_text(value + "\n")

    def listening(self, table: str, address: str, inode: int, state: str = "0A") -> None:
        """A socket in ``/proc/net/TABLE``; *address* as that has it."""
        file = self.root / "net" / table
        file.parent.mkdir(exist_ok=True)
        lines = file.read_text() if file.exists() else HEAD
        file.write_text(
            f"{lines}   0: {address} 00000000:0000 {state} 00000000:00000000 00:00000000 00000000     0        0 {inode} 1 0 100 0\n"
        )

    def process(self, number: int, command: list[str], *inodes: int) -> None:
        """A process with these sockets open."""
        folder = self.root / str(number)
        (folder / "fd").mkdir(parents=True)
        (folder / "comm").write_text(command[0].rpartition("/")[2] + "\n")
        (folder / "cmdline").write_bytes("\0".join(command).encode() + b"\0")
        (folder / "fd" / "0").symlink_to("/dev/null")
        for at, inode in enumerate(inodes, 3):
            (folder / "fd" / str(at)).symlink_to(f"socket:[{inode}]")


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path / "proc")


@pytest.fixture
def configured(tmp_path: Path):
    """Make a configuration: its ``server``, ``l4``, and more of its site."""

    def configured(server: dict[str, object] | None = None, *, l4: Sequence[object] = (), **more: object) -> Configuration:
        folder = tmp_path / "conf.d"
        folder.mkdir(exist_ok=True)
        site = {
            "hosts": ["a.example.com"],
            "tls": {"self_signed": True},
            "routes": [{"match": {"path": "/"}, "redirect": "https://b.example.com/"}],
        }
        (folder / "qproxy.yaml").write_text(yaml.safe_dump({"server": server or {}, "site": site | more, "l4": list(l4)}))
        return load(folder, dict(os.environ) | {"STATE_DIRECTORY": str(tmp_path / "state")}, keep=False)

    return configured
