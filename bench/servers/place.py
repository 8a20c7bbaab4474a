"""Where a comparison takes place: a folder, the cores, the Debian root with the peers, and the processes that were started.

Knows processes and ports, nothing of HTTP. A program of the root sees the same folder under another path: ``Place.seen``.
"""

import contextlib
import ctypes
import fcntl
import os
import random
import resource
import shutil
import socket
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from proxy.demo import certificates

ROOT = Path(__file__).parents[2]
START_SECONDS = 60.0
"""For a server to accept; a configuration with 10,000 sites takes its time."""
CLONE_NEWNET = 0x40000000
SIOCGIFFLAGS, SIOCSIFFLAGS, SIOCSIFMTU, IFF_UP = 0x8913, 0x8914, 0x8922, 1


class UnavailableError(Exception):
    """A server or a program can't be had here; the text says why."""


@dataclass
class Running:
    """A server at work."""

    process: subprocess.Popen[bytes]
    ports: dict[str, int]
    """The port of each version of HTTP that it speaks: h1, h2, h3."""
    pids: list[int] = field(default_factory=list)
    """Its first processes, one or more; their children count, too."""


@dataclass
class Place:
    """Where servers run: on their core, in a folder of this session."""

    folder: Path
    """As this program sees it; inside the Debian root where there is one."""
    pem: Path
    """Chain and key in one file: P-256, self-signed, for example.com and the names right under it."""
    certificate: Path
    """The chain alone."""
    key: Path
    """The key alone."""
    debian: Path | None = None
    """The Debian root with nginx, HAProxy, Caddy, curl and h2load."""
    python_peers: Path | None = None
    """The virtual environment with Envoy and hypercorn."""
    server_core: int | None = None
    load_core: int | None = None
    backend: int = 0
    """The port of the backend that serves files, on the load generator's core."""
    uploads: int = 0
    """The port of the backend that takes uploads, there, too."""
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def seen(self, path: Path) -> str:
        """*path* as a program of the Debian root sees it."""
        return str(path) if self.debian is None else f"/{path.relative_to(self.debian)}"

    def pin(self, core: int | None) -> list[str]:
        """What to put before a command to keep it on *core*."""
        return [] if core is None else ["taskset", "-c", str(core)]

    def in_debian(self, program: str) -> list[str]:
        """A program of the Debian root as a command. Raises UnavailableError."""
        if self.debian is None:
            msg = "there is no Debian root with it (scripts/peers makes one, as root)"
            raise UnavailableError(msg)
        if not any((self.debian / folder / program).exists() for folder in ("usr/local/bin", "usr/sbin", "usr/bin")):
            msg = f"the Debian root has no {program}"
            raise UnavailableError(msg)
        path = "PATH=/usr/local/bin:/usr/sbin:/usr/bin"
        return ["chroot", str(self.debian), "/usr/bin/env", "-i", path, "HOME=/tmp", "XDG_DATA_HOME=/tmp", program]

    def python_peer(self, program: str) -> str:
        """A program of the peers' virtual environment. Raises UnavailableError."""
        if self.python_peers is None or not (self.python_peers / "bin" / program).exists():
            msg = f"{program} is not installed (scripts/peers does it)"
            raise UnavailableError(msg)
        return str(self.python_peers / "bin" / program)

    def start(
        self,
        name: str,
        command: Sequence[str],
        ports: Mapping[str, int],
        *,
        load_side: bool = False,
        environment: Mapping[str, str] | None = None,
    ) -> Running:
        """Start a server and wait until it has its ports. Raises UnavailableError with its last words."""
        log = self.folder / f"{name}.out"
        prefix = self.pin(self.load_core if load_side else self.server_core)
        with log.open("wb") as out:
            process = subprocess.Popen(
                [*prefix, *command], stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd=self.folder, env=environment
            )
        self.processes.append(process)
        end = time.monotonic() + START_SECONDS
        while not all(taken(port, "udp") if version == "h3" else accepts(port) for version, port in ports.items()):
            if process.poll() is not None or time.monotonic() > end:
                self.stop(process)
                last = log.read_text(errors="replace").strip().splitlines()[-1:]
                msg = f"it does not start: {' '.join(last)[:300] or f'exit code {process.returncode}'}"
                raise UnavailableError(msg)
            time.sleep(0.05)
        return Running(process, dict(ports), [process.pid])

    def stop(self, process: subprocess.Popen[bytes]) -> None:
        """End one of the processes."""
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self.processes.remove(process)

    def close(self) -> None:
        """End all that was started."""
        for process in self.processes:
            process.terminate()
        for process in list(self.processes):
            self.stop(process)


@contextlib.contextmanager
def prepared(peers: Path | None, *, pinned: bool = True) -> Iterator[Place]:
    """A place with a certificate, of the machine's first and last core. *peers* is the folder that scripts/peers made, or None."""
    debian = peers / "debian" if peers and (peers / "debian" / "usr" / "local" / "bin" / "h2load").exists() and os.geteuid() == 0 else None
    python = peers / "python" if peers and (peers / "done-python").exists() else None
    parent = (debian or Path(tempfile.gettempdir())) / ("tmp" if debian else "")
    folder = Path(tempfile.mkdtemp(prefix="qproxy-bench-", dir=parent))
    folder.chmod(0o755)  # a peer's worker may be another user
    files = certificate_files(folder)
    cores = sorted(os.sched_getaffinity(0))
    first, last = (cores[0], cores[-1]) if pinned and len(cores) > 1 and shutil.which("taskset") else (None, None)
    place = Place(folder, *files, debian, python, first, last)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        if last is not None:
            os.sched_setaffinity(0, {last})
        yield place
    finally:
        place.close()
        os.sched_setaffinity(0, cores)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        shutil.rmtree(folder, ignore_errors=True)


def certificate_files(folder: Path) -> tuple[Path, Path, Path]:
    """A new certificate for *folder*: chain and key in one file, the chain, the key."""
    whole = certificates.ensure(folder, "example.com")
    chain, begin, key = whole.read_text().partition("-----BEGIN PRIVATE KEY")
    files = (whole, folder / "chain.pem", folder / "key.pem")
    for file, text in zip(files, (chain + begin + key, chain, begin + key), strict=True):
        file.write_text(text)
        file.chmod(0o644)  # a peer's worker may be another user
    return files


def own_network(mtu: int) -> bool:
    """Move this process to a network namespace of its own whose loopback has *mtu* as the Internet has; False where root is needed.

    Loopback's own MTU of 65,536 lets a server that probes for it send datagrams that no other network carries.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET):
        return False
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as handle:
        flags = struct.unpack("16sh", fcntl.ioctl(handle, SIOCGIFFLAGS, struct.pack("16sh", b"lo", 0)))[1]
        fcntl.ioctl(handle, SIOCSIFFLAGS, struct.pack("16sh", b"lo", flags | IFF_UP))
        fcntl.ioctl(handle, SIOCSIFMTU, struct.pack("16si", b"lo", mtu))
    return True


def module(python: Path, name: str) -> list[str]:
    """What runs the module *name* of this tree by *python*, whose installed (perhaps compiled) product goes before the sources here."""
    script = "import runpy, sys; sys.path.append(sys.argv.pop(1)); runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)"
    return [str(python), "-c", script, str(ROOT), name]


def accepts(port: int) -> bool:
    """Whether somebody accepts TCP connections at *port* of 127.0.0.1."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except OSError:
        return False
    return True


def taken(port: int, kinds: str = "tcp udp") -> bool:
    """Whether *port* of 127.0.0.1 is in use, for TCP or UDP."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as tcp, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        try:
            if "tcp" in kinds:
                tcp.bind(("127.0.0.1", port))
            udp.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False


def free_port() -> int:
    """A port that is free for TCP and UDP, under the range that client sockets use."""
    return next(port for port in iter(lambda: random.randrange(10240, 32000), 0) if not taken(port))
