"""A backend that answers with the bytes that a test gives it, and keeps the bytes that it was sent."""

import contextlib
import queue
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

LIMIT = 20.0  # seconds that anything waits


@dataclass
class Asked:
    """One request as it came over the wire."""

    line: bytes
    fields: list[tuple[bytes, bytes]]
    """Names in lower case, in order."""
    body: bytes = b""
    trailers: list[tuple[bytes, bytes]] = field(default_factory=list)
    raw: bytes = b""
    """The head as it came."""

    def all(self, name: bytes) -> list[bytes]:
        return [value for key, value in self.fields if key == name]

    def get(self, name: bytes) -> bytes | None:
        found = self.all(name)
        assert len(found) <= 1, found
        return found[0] if found else None


class Conversation:
    """One connection of the proxy, in a thread of its own."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self._data = b""

    def _until(self, mark: bytes) -> bytes:
        while mark not in self._data:
            self._more()
        found, _, self._data = self._data.partition(mark)
        return found

    def _more(self) -> None:
        data = self.socket.recv(65536)
        if not data:
            raise ConnectionResetError
        self._data += data

    def take(self, size: int) -> bytes:
        while len(self._data) < size:
            self._more()
        found, self._data = self._data[:size], self._data[size:]
        return found

    def head(self) -> Asked:
        raw = self._until(b"\r\n\r\n")
        line, *fields = raw.split(b"\r\n")
        return Asked(line, _fields(fields), raw=raw)

    def body(self, asked: Asked) -> Asked:
        """Read the body that belongs to a head."""
        if asked.get(b"transfer-encoding") == b"chunked":
            while size := int(self._until(b"\r\n"), 16):
                asked.body += self.take(size)
                assert self.take(2) == b"\r\n"
            while line := self._until(b"\r\n"):
                asked.trailers += _fields([line])
        elif length := asked.get(b"content-length"):
            asked.body = self.take(int(length))
        return asked

    def request(self) -> Asked:
        return self.body(self.head())

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def gone(self) -> bool:
        """Wait until the proxy has closed or reset the connection."""
        try:
            while self.socket.recv(65536):
                pass
        except ConnectionResetError:
            pass
        except TimeoutError:
            return False
        return True


def _fields(lines: list[bytes]) -> list[tuple[bytes, bytes]]:
    return [(name.lower(), value.strip()) for name, _, value in (line.partition(b":") for line in lines)]


Script = Callable[[Conversation], None]


class Scripted:
    """Accepts connections; each goes by the script that is set when its first byte comes. Requests are kept in ``asked``."""

    def __init__(self) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self.asked: queue.Queue[Asked] = queue.Queue()
        self.done: queue.Queue[str] = queue.Queue()
        """Words of scripts for tests."""
        self.connections = 0
        self._script: Script = self.answering(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nOK")
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def script(self, script: Script) -> None:
        """What the next connections do; what earlier ones said is forgotten."""
        self.asked, self.done = queue.Queue(), queue.Queue()
        self._script = script

    def answering(self, *answers: bytes) -> Script:
        """Read a request whole and send one of *answers* after the other, then close."""

        def script(talk: Conversation) -> None:
            self.asked.put(talk.request())
            for answer in answers:
                talk.send(answer)

        return script

    def answer(self, *answers: bytes) -> None:
        self.script(self.answering(*answers))

    def next(self) -> Asked:
        return self.asked.get(timeout=LIMIT)

    def close(self) -> None:
        self._listening.close()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listening.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._talk, args=(sock,), daemon=True).start()

    def _talk(self, sock: socket.socket) -> None:
        sock.settimeout(LIMIT)
        with sock, contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.recv(1, socket.MSG_PEEK)
            self._script(Conversation(sock))
