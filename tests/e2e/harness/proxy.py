"""The proxy as a process of its own, the way its users run it."""

import contextlib
import copy
import os
import re
import select
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import yaml

from harness.authority import Authority
from harness.backends import ROOT, Backend
from harness.others import opened
from harness.ports import free_port

START_LIMIT = 60.0
"""Seconds; a proxy of several workers is four processes and more, and machines that test are busy."""
READY = '"event":"ready"'
SAMPLE = re.compile(r"^([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? (\S+)$")


def merged(base: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """*base* with *over* laid on it: mappings are merged, everything else is replaced, None removes."""
    result = copy.deepcopy(base)
    for key, value in over.items():
        if isinstance(value, Mapping) and isinstance(result.get(key), dict):
            result[key] = merged(result[key], value)
        elif value is None:
            result.pop(key, None)
        else:
            result[key] = copy.deepcopy(value)
    return result


class Proxy:
    """One running proxy with its configuration folder.

    By default it has one worker, and serves a.example.com and b.example.com (each with a certificate of *authority*) from the pool ``web``
    of *backends*, and shows the affinity key to them in X-Affinity-Key. ``server`` and ``sites`` (by first host) are laid over that.
    ``answers=False``: its listener does not answer /health to everybody. It has no more file descriptors than *descriptors*, where that is
    given. ``open_to_all=True``: other users than this one may reach its folder and its program.
    """

    def __init__(
        self,
        folder: Path,
        authority: Authority,
        backends: Sequence[Backend],
        *,
        server: Mapping[str, Any] | None = None,
        sites: Mapping[str, Mapping[str, Any]] | None = None,
        environment: Mapping[str, str] | None = None,
        answers: bool = True,
        descriptors: int | None = None,
        open_to_all: bool = False,
    ) -> None:
        self.folder, self.authority, self.backends = folder, authority, list(backends)
        self.port, self.admin_port = free_port(), free_port()
        self.config = folder / "conf.d"
        self.log_file = folder / "qproxy.log"
        self._environment = dict(environment or {})
        self._answers = answers
        self._limited = [] if descriptors is None else ["sh", "-c", f'ulimit -n {descriptors}; exec "$@"', "sh"]
        if open_to_all:
            self._limited = opened(folder)
            folder.chmod(0o755)
        self._process: subprocess.Popen[bytes] | None = None
        (self.config / "sites").mkdir(parents=True, exist_ok=True)
        self.server = merged(self._default_server(), server or {})
        self.sites = {host: self._default_site(host) for host in ("a.example.com", "b.example.com")}
        for host, over in (sites or {}).items():
            self.sites[host] = merged(self.sites.get(host) or self._default_site(host), over)
        self.write()

    def _default_server(self) -> dict[str, Any]:
        return {
            "workers": 1,
            "listeners": [{"address": f"127.0.0.1:{self.port}", "protocols": ["http/1.1", "h2", "h3"]}],
            "admin": {"address": f"127.0.0.1:{self.admin_port}"},
            "state": str(self.folder / "state"),
            "trusted_proxies": [],
        }

    def _default_site(self, host: str) -> dict[str, Any]:
        chain, key = self.authority.issue(host, f"*.{host}", file=host, folder=self.config)
        return {
            "hosts": [host, f"*.{host}"],
            "tls": {"certificate": str(chain), "key": str(key)},
            "routes": [{"match": {"path": "/"}, "pool": "web", "headers": {"request": {"set": {"X-Affinity-Key": "{affinity_key}"}}}}],
            "pools": {
                "web": {
                    "endpoints": [backend.url for backend in self.backends],
                    "health": {"path": "/health", "interval": "200ms", "timeout": "1s", "rise": 1, "fall": 2},
                }
            },
        }

    def write(self) -> None:
        """Write the configuration as ``server`` and ``sites`` stand now (``reload`` makes the proxy read it)."""
        self._write_file(self.config / "qproxy.yaml", {"server": self.server})
        for host, site in self.sites.items():
            self._write_file(self.config / "sites" / f"{host}.yaml", {"site": site})

    @staticmethod
    def _write_file(path: Path, value: Any) -> None:
        new = path.with_suffix(".new")
        new.write_text(yaml.safe_dump(value, sort_keys=False))
        new.replace(path)

    # Its life

    def start(self) -> "Proxy":
        assert self._process is None
        began = self.logs().count(READY)
        keep = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "LANG", "LD_LIBRARY_PATH")}
        with self.log_file.open("ab") as log:
            self._process = subprocess.Popen(
                [*self._limited, sys.executable, "-W", "error::RuntimeWarning", "-m", "proxy", "-c", str(self.config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=keep | {"PYTHONPATH": str(ROOT), "PYTHONFAULTHANDLER": "1"} | self._environment,
                cwd=self.folder,
            )
        self.wait_for(lambda: self.logs().count(READY) > began, "says that it is ready", START_LIMIT)
        if self._answers:
            self.wait_for(lambda: self.health() == 200, "answers /health", START_LIMIT)
        return self

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, "the proxy is not running"
        return self._process

    @property
    def pid(self) -> int:
        """Of its only process, or of the supervisor."""
        return self.process.pid

    def pids(self) -> list[int]:
        """Of all its processes."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children")
        return [self.pid, *map(int, children.read_text().split())]

    def health(self) -> int:
        """The status of /health over TLS without SNI, by HTTP/1.0; 0 where nobody answers."""
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=5) as raw, context.wrap_socket(raw) as secured:
                secured.sendall(b"GET /health HTTP/1.0\r\n\r\n")
                answer = secured.recv(65536)
        except OSError:
            return 0
        return int(answer.split(b" ")[1]) if answer.startswith(b"HTTP/1.") else 0

    def wait_for(self, condition: Any, what: str, limit: float = 10.0) -> None:
        """Wait until ``condition()`` is true; fail with the log if the process ends or *limit* seconds pass first."""
        end = time.monotonic() + limit
        while not condition():
            code = self.process.poll()
            assert code is None, f"the proxy ended with {code} before it {what}:\n{self.logs()}"
            assert time.monotonic() < end, f"the proxy never {what}:\n{self.logs()[-5000:]}"
            time.sleep(0.02)  # another process gives no event to wait for; bounded by *limit*

    def reload(self, *, expect: str = "reload") -> None:
        """SIGHUP, and wait until the log tells of it (a line that has *expect* in it)."""
        before = self.logs().count(expect)
        self.process.send_signal(signal.SIGHUP)
        self.wait_for(lambda: self.logs().count(expect) > before, f"logged {expect!r}")

    def terminate(self, limit: float = 40.0) -> int:
        """SIGTERM; returns the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.wait(limit)

    def wait(self, limit: float = 40.0) -> int:
        """Wait for the end; returns the exit code."""
        code = self.process.wait(limit)
        self._process = None
        return code

    def crash(self) -> None:
        """SIGKILL of all its processes: it can say goodbye to nobody. ``start`` begins its next life, at the same address."""
        processes = [os.pidfd_open(pid) for pid in self.pids()]
        for process in processes:  # the supervisor first, which would start the others again
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(process, signal.SIGKILL)
        self.wait()
        for process in processes[1:]:
            assert select.select([process], [], [], 10)[0], "a process of the proxy does not end"
        for process in processes:
            os.close(process)

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """All its processes stand still meanwhile (SIGSTOP), as in a machine that is suspended; what comes waits in its sockets."""
        pids = self.pids()
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)

    def close(self) -> None:
        """End it, whatever state it is in."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(3)
            except subprocess.TimeoutExpired:
                self.crash()  # with its workers, which would finish what they have
            self._process = None

    # What it tells

    def rss(self) -> int:
        """Bytes of memory that all its processes have resident now."""
        return sum(int(re.findall(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())[0]) * 1024 for pid in self.pids())

    def descriptors(self) -> int:
        """Open file descriptors of its only process, or of the supervisor."""
        return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))

    def logs(self) -> str:
        return self.log_file.read_text(errors="replace") if self.log_file.exists() else ""

    def metrics(self) -> dict[str, float]:
        """Samples by name and labels, as exposed: ``http2_requests_total{host="a.example.com"}``."""
        text = httpx.get(f"http://127.0.0.1:{self.admin_port}/metrics", trust_env=False).raise_for_status().text
        found = {}
        for line in text.splitlines():
            match = SAMPLE.match(line)
            if match:
                name, labels, value = match.groups()
                found[f"{name}{{{labels}}}" if labels else name] = float(value)
        return found

    def pools(self) -> list[dict[str, Any]]:
        """What /pools has of each."""
        pools: list[dict[str, Any]] = (
            httpx.get(f"http://127.0.0.1:{self.admin_port}/pools", trust_env=False).raise_for_status().json()["pools"]
        )
        return pools

    def metric(self, name: str) -> float:
        """The sum of all samples of one name."""
        return sum(value for key, value in self.metrics().items() if key.partition("{")[0] == name)

    def url(self, path: str = "/", host: str = "a.example.com") -> str:
        return f"https://{host}:{self.port}{path}"

    def assert_sound(self) -> None:
        """Nothing of ours went wrong so far: no traceback in the log."""
        log = self.logs()
        at = log.find("Traceback (most recent call last)")
        assert at < 0, f"the proxy logged a traceback:\n{log[max(0, at - 1000) : at + 4000]}"
        assert "RuntimeWarning" not in log
        assert "was never retrieved" not in log
