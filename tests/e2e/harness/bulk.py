"""Bodies of any size through libcurl, hashed as they pass and never held, and a watch on a process's memory meanwhile."""

import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from curl_cffi import Curl, CurlInfo, CurlOpt

from harness.authority import Authority
from harness.clients import CURL_VERSIONS, SPOKEN
from harness.content import MIB, content
from harness.proxy import Proxy
from harness.spoken import note

PERIOD = 0.02  # seconds between two samples


@dataclass(frozen=True)
class Moved:
    """A body that went through."""

    status: int
    version: str
    size: int
    sha256: str
    seconds: float

    @property
    def rate(self) -> float:
        """MiB a second."""
        return self.size / MIB / self.seconds


class Curled:
    """One libcurl handle that speaks exactly *version*; its connection is kept from one transfer to the next.

    *port*: where it connects to, if not to the proxy itself.
    """

    def __init__(self, authority: Authority, proxy: Proxy, version: str, *, port: int | None = None) -> None:
        note(version)
        self._version, self._port = version, port or proxy.port
        self._curl: Curl[Any] = Curl(cacert=str(authority.file))

    def close(self) -> None:
        self._curl.close()

    def _perform(self, path: str, limit: float, sink: Any, options: dict[CurlOpt, Any]) -> tuple[int, float]:
        curl = self._curl
        curl.reset()
        for option, value in {
            CurlOpt.URL: f"https://a.example.com:{self._port}{path}".encode(),
            CurlOpt.PROXY: b"",
            CurlOpt.HTTP_VERSION: int(CURL_VERSIONS[self._version]),
            CurlOpt.RESOLVE: [f"*:{self._port}:127.0.0.1"],
            CurlOpt.TIMEOUT: int(limit),
            CurlOpt.NOSIGNAL: 1,
            CurlOpt.BUFFERSIZE: 512 * 1024,
            CurlOpt.UPLOAD_BUFFERSIZE: MIB,
            CurlOpt.WRITEFUNCTION: sink,
            **options,
        }.items():
            curl.setopt(option, value)
        began = time.monotonic()
        curl.perform()
        spoken = SPOKEN[curl.getinfo(CurlInfo.HTTP_VERSION)]
        assert spoken == self._version
        return curl.getinfo(CurlInfo.RESPONSE_CODE), time.monotonic() - began

    def download(self, path: str, limit: float = 110, *, at: Mapping[int, Callable[[], None]] | None = None) -> Moved:
        """GET; *at* says what to do once so many bytes have come."""
        found, size = hashlib.sha256(), 0
        waiting = dict(at or {})

        def sink(data: bytes) -> int:
            nonlocal size
            found.update(data)
            size += len(data)
            for due in [due for due in waiting if size >= due]:
                waiting.pop(due)()
            return len(data)

        status, seconds = self._perform(path, limit, sink, {})
        return Moved(status, self._version, size, found.hexdigest(), seconds)

    def upload(self, path: str, size: int, seed: int = 0, limit: float = 110) -> Moved:
        """PUT ``content(size, seed)``; the answer's JSON tells what the backend got."""
        source, told = _Reader(content(size, seed)), bytearray()

        def sink(data: bytes) -> int:
            told.extend(data)
            return len(data)

        status, seconds = self._perform(
            path, limit, sink, {CurlOpt.UPLOAD: 1, CurlOpt.INFILESIZE_LARGE: size, CurlOpt.READFUNCTION: source.read}
        )
        seen = json.loads(told)
        return Moved(status, self._version, seen["size"], seen["sha256"], seconds)


class _Reader:
    """Pieces of any size as reads of any size."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces, self._rest = pieces, memoryview(b"")

    def read(self, size: int) -> bytes:
        if not self._rest:
            self._rest = memoryview(next(self._pieces, b""))
        piece, self._rest = self._rest[:size], self._rest[size:]
        return bytes(piece)


class Memory:
    """Resident bytes of a process: before, and the most that was seen since."""

    def __init__(self, before: int) -> None:
        self.before = self.most = before

    @property
    def growth(self) -> int:
        return self.most - self.before


@contextmanager
def memory_of(proxy: Proxy) -> Iterator[Memory]:
    """Sample the proxy's resident memory until the block ends."""
    memory, done = Memory(proxy.rss()), threading.Event()

    def watch() -> None:
        while True:
            memory.most = max(memory.most, proxy.rss())
            if done.wait(PERIOD):
                return

    watching = threading.Thread(target=watch, daemon=True)
    watching.start()
    try:
        yield memory
    finally:
        done.set()
        watching.join()
        memory.most = max(memory.most, proxy.rss())
