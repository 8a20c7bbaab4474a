"""An upgrade: whether the code that is installed now would start, and how the supervisor becomes it. Standard library only.

It is ``exec``: the process stays, with its sockets and its children. What it knows of them goes over in a file without a name. When an
upgrade may begin, and what serves, the supervisor knows.
"""

import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import Collection, Mapping
from typing import Any, Protocol

from proxy.process.notify import notify, reloading
from proxy.process.pid_file import ASKS_RUNNING, PidFile

STATE = "QPROXY_SUPERVISOR_STATE"
"""Environment: the descriptor of what the supervisor knew before the upgrade."""


class Say(Protocol):
    """An event for the log."""

    def __call__(self, level: str, event: str, **details: object) -> None:
        """Write it."""


class Upgrade:
    """From the wish for an upgrade to the new code's first step. One at a time."""

    def __init__(self, config: str, pid_file: PidFile, say: Say) -> None:
        self._config = config
        self._pid_file = pid_file
        self._say = say
        self.waits = False
        """One is wanted, and has to wait."""
        self.trial: int | None = None
        """Process that tries whether the new code would start."""

    def wait(self, words: str, **details: object) -> None:
        """It can't begin yet: *words* say what for."""
        self.waits = True
        self._say("info", f"the upgrade waits {words}", **details)
        self._pid_file.tell_upgrade("waiting", words)

    def begin(self) -> None:
        """Try whether the new code would start, and takes the configuration."""
        self.waits = False
        silent = (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)  # what is wrong goes to standard error
        command = python("proxy", "check", "-c", self._config)  # of new code, or of older code that is gone back to
        environment = {**os.environ, ASKS_RUNNING: "0"}
        self.trial = os.posix_spawn(sys.executable, command, environment, setsid=True, file_actions=[silent])
        self._pid_file.tell_upgrade("trying")

    def tried(self, code: int) -> bool:
        """The trial has ended with *code*; gives whether it went well."""
        self.trial = None
        if code:
            self.fail("the new code or the configuration does not pass its check", **ending(code))
        return not code

    def become(self, known: Mapping[str, Any], descriptors: Collection[int], signals: Collection[int], wakeup: socket.socket) -> None:
        """Become the new code, which gets *known* and *descriptors*, and *signals* that come meanwhile. Comes back only where that fails.

        *wakeup* is where the numbers of signals arrive that were not looked at yet.
        """
        state = os.memfd_create("qproxy-upgrade")
        os.write(state, json.dumps(known).encode())
        for descriptor in (state, *descriptors):
            os.set_inheritable(descriptor, True)
        notify(reloading())
        signal.pthread_sigmask(signal.SIG_BLOCK, signals)  # nobody handles them until the new code does, and by default they are the end
        with contextlib.suppress(BlockingIOError):
            for number in set(wakeup.recv(4096)):
                os.kill(os.getpid(), number)
        arriving = signal.set_wakeup_fd(-1)
        try:
            os.execve(  # noqa: S606
                sys.executable, supervisor_command(self._config), {**os.environ, STATE: str(state), **self._pid_file.hand_over()}
            )
        except OSError as error:
            os.close(state)
            for descriptor in descriptors:
                os.set_inheritable(descriptor, False)
            signal.set_wakeup_fd(arriving, warn_on_full_buffer=False)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
            self.fail(f"the new code can't be begun: {error.strerror}")

    def fail(self, words: str, **details: object) -> None:
        """It is off; what serves goes on."""
        self._say("error", "the upgrade failed; what serves goes on", reason=words, **details)
        self._pid_file.tell_upgrade("failed", words)


def inherited() -> dict[str, Any] | None:
    """What the code before this one knew (``Upgrade.become``); None where there was none."""
    descriptor = os.environ.pop(STATE, None)
    if descriptor is None:
        return None
    with os.fdopen(int(descriptor), "rb") as file:
        file.seek(0)
        known: dict[str, Any] = json.load(file)
        return known


def supervisor_command(config: str) -> list[str]:
    """What makes a process the supervisor of the proxy with that configuration."""
    return python("proxy.process.supervisor", config)


def python(module: str, *arguments: str) -> list[str]:
    """The command that runs *module* by this interpreter, with the warnings that it was told to show."""
    return [sys.executable, *(f"-W{option}" for option in sys.warnoptions), "-m", module, *arguments]


def ending(code: int) -> dict[str, object]:
    """How a process ended, for the log."""
    return {"signal": signal.Signals(-code).name} if code < 0 else {"exit_code": code}
