"""Starts and ends backend processes."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import httpx

E2E = Path(__file__).parents[1]
ROOT = E2E.parents[1]


class Backend:
    """One backend process. It keeps its port when it is started again."""

    def __init__(self, name: str, host: str = "127.0.0.1", port: int = 0) -> None:
        self.name = name
        self.host, self.port = host, port
        self._process: subprocess.Popen[str] | None = None
        self.start()

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def start(self) -> None:
        assert self._process is None
        command = [sys.executable, "-m", "harness.backend", self.name, str(self.port), self.host]
        environment = {"PYTHONPATH": f"{E2E}:{ROOT}", "PATH": ""}
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"backend {self.name} did not start"
        self.port = int(line)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """End it (by SIGKILL: without a word to anybody); a second time is nothing."""
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(10)
            assert self._process.stdout is not None
            self._process.stdout.close()
            self._process = None

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to it (SIGSTOP hangs it, SIGCONT lets it go on)."""
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        self.stop(signal.SIGKILL)

    close = kill

    def ask(self, path: str, method: str = "GET", content: bytes = b"") -> httpx.Response:
        """A request straight to it, past the proxy."""
        return httpx.request(method, self.url + path, content=content, trust_env=False, timeout=70)

    def counts(self) -> dict[str, int]:
        """Requests that it had so far, by path."""
        counts: dict[str, int] = json.loads(self.ask("/count").text)
        return counts

    def push(self, name: str, piece: bytes, *, end: bool = False) -> None:
        """Let /stream/NAME send a piece, or /hold/NAME go on."""
        self.ask(f"/push/{name}{'?end=1' if end else ''}", "POST", piece).raise_for_status()
