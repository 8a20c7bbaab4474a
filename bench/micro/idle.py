"""What an idle connection costs the proxy in memory: ``python -m bench.micro.idle --help``.

Opens connections after one another, makes the handshake and one request with the fields of a browser on each, leaves them open, and
reads how much the proxy has grown: its resident set and its proportional share (``Pss``), from ``/proc``. The first hundred connections
are not counted: they bring what is there once for all (caches, pools, arenas). What the kernel keeps for a socket is not the process's
memory and is not in these figures, for no server that is compared.
"""

import argparse
import os
import re
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from qh3.h3.connection import H3Connection
from qh3.h3.events import DataReceived
from qh3.quic.configuration import QuicConfiguration
from qh3.quic.connection import QuicConnection

from bench.servers.place import accepts, free_port
from proxy.demo import certificates

HOST = "a.example.com"
WARM = 100
FIELDS = [
    ("user-agent", "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"),
    ("accept", "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"),
    ("accept-language", "en-GB,en;q=0.5"),
    ("accept-encoding", "gzip, deflate, br, zstd"),
    ("cookie", "session=0123456789abcdef0123456789abcdef; theme=light"),
    ("upgrade-insecure-requests", "1"),
    ("sec-fetch-dest", "document"),
    ("sec-fetch-mode", "navigate"),
    ("sec-fetch-site", "none"),
    ("priority", "u=0, i"),
]
VERSIONS = ("h1", "h2", "h3")


def memory(pid: int) -> tuple[int, int]:
    """Resident and proportional bytes of a process."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    rss, pss = (int(re.search(rf"^{name}: +(\d+) kB", text, re.MULTILINE).group(1)) for name in ("Rss", "Pss"))
    return rss * 1024, pss * 1024


class Backend:
    """Answers 1 KiB to every request, on any number of kept connections."""

    def __init__(self) -> None:
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            sock, _ = self._server.accept()
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        answer = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 1024\r\n\r\n" + b"x" * 1024
        data = b""
        while piece := sock.recv(65536):
            data += piece
            while b"\r\n\r\n" in data:
                data = data.partition(b"\r\n\r\n")[2]
                sock.sendall(answer)


@contextmanager
def proxy(folder: Path, backend: int, engines: str) -> Iterator[tuple[int, int]]:
    """A running proxy: its port and process id."""
    port = free_port()
    pem = certificates.ensure(folder, HOST)
    (folder / "conf").mkdir()
    (folder / "conf" / "qproxy.yaml").write_text(
        f"""server:
  listeners: [{{address: "127.0.0.1:{port}"}}]
  workers: 1
  admin: off
  timeouts: {{idle: 1h}}
  log: {{access: false}}
  limits: {{connections: 100000}}
  {engines and "engines: " + engines}
site:
  hosts: [{HOST}]
  tls: {{certificate: {pem}, key: {pem}}}
  routes: [{{pool: web}}]
  pools: {{web: {{endpoints: ["http://127.0.0.1:{backend}"]}}}}
"""
    )
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-m", "proxy", "-c", folder / "conf"], stdout=log, stderr=log)
    try:
        for _ in range(600):
            if process.poll() is not None:
                raise RuntimeError((folder / "log").read_text())
            if accepts(port):
                break
            time.sleep(0.05)
        yield port, process.pid
    finally:
        process.terminate()
        try:
            process.wait(3)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _tls(port: int, alpn: str) -> ssl.SSLSocket:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols([alpn])
    return context.wrap_socket(socket.create_connection(("127.0.0.1", port)), server_hostname=HOST)


def h1(port: int) -> object:
    """One HTTP/1.1 connection that has served one request."""
    sock = _tls(port, "http/1.1")
    fields = "".join(f"{name}: {value}\r\n" for name, value in FIELDS)
    sock.sendall(f"GET / HTTP/1.1\r\nhost: {HOST}\r\n{fields}\r\n".encode())
    data = b""
    while not data.endswith(b"x" * 1024):
        piece = sock.recv(65536)
        assert piece, data
        data += piece
    assert data.startswith(b"HTTP/1.1 200"), data[:100]
    return sock


def _literal(name: str, value: str) -> bytes:
    """A field with incremental indexing, as browsers send it (RFC 7541, section 6.2.1); no string is longer than 126 bytes."""
    return b"\x40" + bytes((len(name),)) + name.encode() + bytes((len(value),)) + value.encode()


def h2(port: int) -> object:
    """One HTTP/2 connection that has served one request."""
    sock = _tls(port, "h2")
    block = b"\x82\x87\x84" + _literal(":authority", HOST) + b"".join(_literal(name, value) for name, value in FIELDS)
    headers = len(block).to_bytes(3, "big") + b"\x01\x05\0\0\0\1" + block
    sock.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0" + headers)
    data = b""
    while True:
        piece = sock.recv(65536)
        assert piece
        data += piece
        while len(data) >= 9 and len(data) >= (size := 9 + int.from_bytes(data[:3], "big")):
            frame, data = data[:size], data[size:]
            if frame[3] == 4 and not frame[4] & 1:
                sock.sendall(b"\0\0\0\4\1\0\0\0\0")
            if frame[8] == 1 and frame[3] in (0, 1) and frame[4] & 1:
                return sock


def h3(port: int) -> object:
    """One HTTP/3 connection that has served one request and acknowledged all of it."""
    configuration = QuicConfiguration(is_client=True, alpn_protocols=["h3"], server_name=HOST, verify_mode=ssl.CERT_NONE)
    configuration.idle_timeout = 3600
    quic = QuicConnection(configuration=configuration)
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.connect(("127.0.0.1", port))
    peer = ("127.0.0.1", port)
    quic.connect(peer, now=time.monotonic())
    http: H3Connection | None = None
    done, until = False, time.monotonic() + 10
    quiet = 0
    while quiet < 3:
        assert time.monotonic() < until, "no answer in time"
        for data, _ in quic.datagrams_to_send(now=time.monotonic()):
            sock.send(data)
        sock.settimeout(0.005)
        try:
            quic.receive_datagram(sock.recv(65536), peer, now=time.monotonic())
            quiet = 0
        except TimeoutError:
            quiet += done
            due = quic.get_timer()
            if due is not None and due <= time.monotonic():
                quic.handle_timer(now=time.monotonic())
        while (event := quic.next_event()) is not None:
            if http is None and type(event).__name__ == "HandshakeCompleted":
                http = H3Connection(quic)
                pseudo = [(":method", "GET"), (":scheme", "https"), (":authority", HOST), (":path", "/")]
                http.send_headers(0, [(name.encode(), value.encode()) for name, value in [*pseudo, *FIELDS]], end_stream=True)
            if http is not None:
                for told in http.handle_event(event):
                    done = done or (isinstance(told, DataReceived) and told.stream_ended)
    return quic, sock


OPEN: dict[str, Callable[[int], object]] = {"h1": h1, "h2": h2, "h3": h3}


def measure(version: str, connections: int, engines: str) -> tuple[float, float]:
    """Bytes of one idle connection: resident, proportional."""
    with tempfile.TemporaryDirectory() as name, proxy(Path(name), Backend().port, engines) as (port, pid):
        held = [OPEN[version](port) for _ in range(WARM)]
        time.sleep(0.5)
        rss, pss = memory(pid)
        held += [OPEN[version](port) for _ in range(connections)]
        time.sleep(0.5)
        rss_then, pss_then = memory(pid)
        if hook := os.environ.get("IDLE_HOOK"):
            subprocess.run([*hook.split(), str(pid)], check=False)
        del held
    return (rss_then - rss) / connections, (pss_then - pss) / connections


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--versions", nargs="+", choices=VERSIONS, default=VERSIONS)
    parser.add_argument("--connections", type=int, default=1000)
    parser.add_argument("--engines", default="", help="the value of server.engines, such as '{quic: aioquic}'")
    options = parser.parse_args()
    for version in options.versions:
        rss, pss = measure(version, options.connections, options.engines)
        print(f"{version}: {rss / 1024:.1f} KB resident, {pss / 1024:.1f} KB proportional for each of {options.connections} connections")


if __name__ == "__main__":
    main()
