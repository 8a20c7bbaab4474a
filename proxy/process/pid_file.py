"""Where a running proxy is found: a file in its state folder with its process id, locked while it lives.

Standard library only: the supervisor has it. There is a file for each configuration, by its path, since several may share a state folder.
Of two proxies with the same configuration and state folder, the file is the first one's until that ends or begins to drain; the second
serves without. The lock (POSIX, fcntl(2)) outlives ``exec`` and goes with the process, so what the system says of its holder is never the
number of somebody else.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import struct
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

PID_FILE = "QPROXY_PID_FILE"
"""Environment: the descriptor of the file, for the program that takes this process over."""

ASKS_RUNNING = "QPROXY_CHECK_RUNNING"
"""Environment: ``0`` has ``qproxy check`` ask no proxy that runs."""

MAX_BYTES = 65_536
"""Read of such a file."""

UpgradeState = Literal["trying", "waiting", "done", "failed"]

_FLOCK = struct.Struct("hhqqi4x")  # struct flock of Linux on 64 bits: type, whence, start, length, pid


class PidFile:
    """The file of this process; with the descriptor -1 there is none, and nothing is told."""

    def __init__(self, descriptor: int = -1) -> None:
        self._descriptor = descriptor

    @classmethod
    def take(cls, folder: Path, config: Path) -> "PidFile":
        """Lock the one of *config* in *folder*. Raises OSError whose text says why it can't be had."""
        if sys.platform != "linux":
            return cls()
        path = path_of(folder, config)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.fcntl(descriptor, fcntl.F_SETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
        except OSError as error:
            os.close(descriptor)
            msg = f"{path}: another proxy with this configuration and state folder has it"
            raise OSError(error.errno, msg) from None
        file = cls(descriptor)
        os.ftruncate(descriptor, 0)
        file.tell(pid=os.getpid(), configuration=os.path.abspath(config))  # noqa: PTH100  # as ``path_of``
        return file

    @classmethod
    def inherited(cls) -> "PidFile":
        """The one that the program before this one had, by the environment, from which it goes."""
        descriptor = int(os.environ.pop(PID_FILE, "-1"))
        if descriptor >= 0:
            os.set_inheritable(descriptor, False)
        return cls(descriptor)

    def hand_over(self) -> dict[str, str]:
        """Environment for the program that comes by ``exec``."""
        if self._descriptor < 0:
            return {}
        os.set_inheritable(self._descriptor, True)
        return {PID_FILE: str(self._descriptor)}

    def tell(self, **facts: object) -> None:
        """Put *facts* in place of those of the same names. What the disk does not take is not told."""
        if self._descriptor < 0:
            return
        with contextlib.suppress(OSError):
            data = json.dumps(_facts(self._descriptor) | facts).encode() + b"\n"
            os.pwrite(self._descriptor, data, 0)
            os.ftruncate(self._descriptor, len(data))

    def tell_upgrade(self, state: UpgradeState, words: str = "") -> None:
        """What has become of an upgrade, numbered, for whoever waits for it."""
        if self._descriptor >= 0:
            number = upgrade_of(_facts(self._descriptor))[0] + 1
            self.tell(upgrade=[number, state, words])

    def close(self) -> None:
        """Give it up: from now on, no command finds this process."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


@dataclass(frozen=True, slots=True)
class Running:
    """A proxy that runs."""

    pid: int
    """0: of another PID namespace, where no signal from here comes."""
    ready: bool
    """Whether it serves: before, a signal would end it."""
    supervisor: bool
    """Whether it has several processes."""
    admin: tuple[str, int] | None
    """The admin API's address."""
    upgrade: tuple[int, str, str]
    """Number, state (``UpgradeState``) and words of the last thing told of an upgrade; number 0: nothing yet."""


def find(folder: Path, config: Path) -> Running | None:
    """The proxy that runs with *config* and has the state folder *folder*. Raises OSError where that can't be seen."""
    try:
        descriptor = os.open(path_of(folder, config), os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        lock = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        kind, _, _, _, pid = _FLOCK.unpack(fcntl.fcntl(descriptor, fcntl.F_GETLK, lock))
        if kind == fcntl.F_UNLCK:
            return None
        facts = _facts(descriptor)
    finally:
        os.close(descriptor)
    pid = max(0, pid)
    if pid and facts.get("pid") != pid:
        facts = {}  # it has the lock, and is about to write
    admin = facts.get("admin")
    return Running(
        pid=pid,
        ready=facts.get("ready") is True,
        supervisor=facts.get("supervisor") is True,
        admin=(str(admin[0]), int(admin[1])) if admin else None,
        upgrade=upgrade_of(facts),
    )


def path_of(folder: Path, config: Path) -> Path:
    """The file's name, by the configuration's path as it is written: what a symbolic link leads to may change."""
    name = os.path.abspath(config)  # noqa: PTH100  # resolve() would follow the link
    return folder / f"pid-{hashlib.sha256(os.fsencode(name)).hexdigest()[:16]}"


def upgrade_of(facts: dict[str, Any]) -> tuple[int, str, str]:
    """See ``Running.upgrade``."""
    number, state, words = facts.get("upgrade") or (0, "", "")
    return int(number), str(state), str(words)


def _facts(descriptor: int) -> dict[str, Any]:
    """What it says; nothing while it is being written."""
    try:
        facts = json.loads(os.pread(descriptor, MAX_BYTES, 0))
    except ValueError:
        return {}
    return facts if isinstance(facts, dict) else {}
