"""HTTP/1.1 by hand over a socket: bytes out as they stand, answers in one by one."""

import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from harness import clients
from harness.authority import Authority
from harness.spoken import note

LIMIT = 20.0  # seconds that any read waits


@dataclass
class Reply:
    """One answer, interim ones included."""

    status: int
    version: str
    headers: list[tuple[str, str]]
    body: bytes = b""
    trailers: list[tuple[str, str]] = field(default_factory=list)

    def get(self, name: str) -> str | None:
        """The value of a field that stands there once; None where it is absent."""
        found = self.all(name)
        assert len(found) <= 1, f"{name} stands there {len(found)} times"
        return found[0] if found else None

    def all(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key == name]


class Wire:
    """A connected socket, with or without TLS on it."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self.data = b""
        self.reset = False
        """The connection ended by RST and not by FIN."""
        sock.settimeout(LIMIT)

    def send(self, data: bytes) -> None:
        """Send; a peer that has closed already is no failure of the test's."""
        try:
            self.socket.sendall(data)
        except (BrokenPipeError, ConnectionResetError, ssl.SSLError):
            self.reset = True

    def _more(self) -> bool:
        try:
            data = self.socket.recv(65536)
        except (ConnectionResetError, ssl.SSLEOFError):
            self.reset = True
            return False
        self.data += data
        return bool(data)

    def until(self, mark: bytes) -> bytes:
        """Bytes up to and with *mark*."""
        while mark not in self.data:
            assert self._more(), f"the connection ended before {mark!r}: {self.data!r}"
        found, _, self.data = self.data.partition(mark)
        return found + mark

    def take(self, size: int) -> bytes:
        """Exactly *size* bytes."""
        while len(self.data) < size:
            assert self._more(), f"the connection ended before {size} bytes: {self.data!r}"
        found, self.data = self.data[:size], self.data[size:]
        return found

    def rest(self) -> bytes:
        """Everything until the connection ends."""
        while self._more():
            pass
        found, self.data = self.data, b""
        return found

    def reply(self, method: str = "GET") -> Reply:
        """The next answer (an interim one counts) to a request by *method*."""
        line, *fields = self.until(b"\r\n\r\n").decode("latin-1")[:-4].split("\r\n")
        version, status, *_ = line.split(" ", 2)
        answer = Reply(int(status), version, _fields(fields))
        if answer.status < 200 or answer.status in (204, 304) or method == "HEAD":
            return answer
        if answer.get("transfer-encoding") == "chunked":
            while size := int(self.until(b"\r\n").partition(b";")[0], 16):
                answer.body += self.take(size)
                assert self.take(2) == b"\r\n"
            while (line := self.until(b"\r\n").decode("latin-1")) != "\r\n":
                answer.trailers += _fields([line[:-2]])
        elif (length := answer.get("content-length")) is not None:
            answer.body = self.take(int(length))
        else:
            answer.body = self.rest()
        return answer

    def ask(self, data: bytes, method: str = "GET") -> Reply:
        """Send a request and take its answer."""
        self.send(data)
        return self.reply(method)


def _fields(lines: list[str]) -> list[tuple[str, str]]:
    pairs = (line.partition(":") for line in lines)
    return [(name.lower(), value.strip()) for name, _, value in pairs]


@contextmanager
def wire(authority: Authority, port: int, *, sni: str = "a.example.com", alpn: str | None = "http/1.1") -> Iterator[Wire]:
    """A TLS connection to the proxy."""
    context = clients.trusting(authority)
    if alpn is not None:
        context.set_alpn_protocols([alpn])
        note("HTTP/2" if alpn == "h2" else "HTTP/1.1")
    with (
        socket.create_connection(("127.0.0.1", port), timeout=LIMIT) as raw,
        context.wrap_socket(raw, server_hostname=sni, suppress_ragged_eofs=True) as secured,
    ):
        yield Wire(secured)


@contextmanager
def plain_wire(port: int) -> Iterator[Wire]:
    """A TCP connection to the proxy, without TLS."""
    with socket.create_connection(("127.0.0.1", port), timeout=LIMIT) as raw:
        yield Wire(raw)
