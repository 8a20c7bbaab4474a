"""What must hold after every hostile case: the proxy lives, serves, logged no traceback, counted right, and the backends saw nothing."""

import http.client
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from harness.authority import Authority
from harness.backends import Backend
from harness.proxy import SAMPLE, Proxy
from harness.wire import wire

FORBIDDEN = "never"
"""A path that has this in it must not reach a backend."""
LIMIT = 10.0  # seconds that a count may take to show


def fetch(port: int, path: str) -> bytes:
    """A plain GET to 127.0.0.1, quick enough for hundreds of times."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request("GET", path)
        return connection.getresponse().read()
    finally:
        connection.close()


def sample(name: str, **labels: str) -> str:
    """A sample's name and labels as exposed: labels in the order of the alphabet."""
    inner = ",".join(f'{key}="{labels[key]}"' for key in sorted(labels))
    return f"{name}{{{inner}}}"


def rejected(version: str, reason: str) -> str:
    """The sample that counts refused requests."""
    return sample("qproxy_rejected_total", version=version, reason=reason)


class Guard:
    """Watches one proxy and its backends."""

    def __init__(self, authority: Authority, proxy: Proxy, backends: Sequence[Backend], *, expected: bytes = b"\0") -> None:
        """*expected*: what a line of an error that the tests bring about has in it."""
        self.authority, self.proxy, self.backends, self.expected = authority, proxy, backends, expected
        self.pid = proxy.pid
        self._log_at = 0

    def metrics(self) -> dict[str, float]:
        found = {}
        for line in fetch(self.proxy.admin_port, "/metrics").decode().splitlines():
            if match := SAMPLE.match(line):
                name, labels, value = match.groups()
                found[f"{name}{{{labels}}}" if labels else name] = float(value)
        return found

    def wait_for(self, condition: Callable[[], bool], what: str, limit: float = LIMIT) -> None:
        self.proxy.wait_for(condition, what, limit)

    @contextmanager
    def case(self, *counted: str | tuple[str, ...]) -> Iterator[None]:
        """A hostile case; each sample in *counted*, or one of each tuple, must have grown by its end, and all else must be sound."""
        before = self.metrics()
        yield
        end = time.monotonic() + LIMIT
        groups = [(name,) if isinstance(name, str) else name for name in counted]
        while missing := [group for group in groups if all((now := self.metrics()).get(name, 0) <= before.get(name, 0) for name in group)]:
            grown = {
                name: value for name, value in now.items() if value != before.get(name) and "_bucket" not in name and "probe" not in name
            }
            assert time.monotonic() < end, f"not counted: {missing}; what changed: {grown}"
            time.sleep(0.02)  # another process gives no event to wait for; bounded by LIMIT
        self.check()

    def check(self) -> None:
        """It lives and serves on a new connection, and no fault of its own is in the log."""
        assert self.proxy.process.poll() is None, self.proxy.logs()[-5000:]
        assert self.proxy.pid == self.pid
        with wire(self.authority, self.proxy.port) as connection:
            answer = connection.ask(b"GET /hello HTTP/1.1\r\nhost: a.example.com\r\n\r\n")
        assert (answer.status, answer.body) == (200, b"Hello from a.example.com (HTTP/1.1)!\n")
        self.check_log()
        self.check_backends()

    def check_log(self) -> None:
        with self.proxy.log_file.open("rb") as log:
            log.seek(self._log_at)
            new = log.read()
        self._log_at += len(new)
        new = b"\n".join(line for line in new.split(b"\n") if self.expected not in line)
        for sign in (b"Traceback (most", b"RuntimeWarning", b"was never retrieved", b'"level":"error"'):
            at = new.find(sign)
            assert at < 0, f"in the log: {new[max(0, at - 300) : at + 3000].decode('utf-8', 'replace')}"

    def check_backends(self) -> None:
        for backend in self.backends:
            seen = [path for path in json.loads(fetch(backend.port, "/count")) if FORBIDDEN in path]
            assert not seen, f"{backend.name} saw {seen}"
