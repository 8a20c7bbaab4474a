"""The servers that are compared: how each is set up and started.

All of them have the same certificate and, but for hypercorn, the same backend.
"""

import importlib.metadata
import random
import re
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
SIZES = {"/1k": 1024, "/1m": 1024 * 1024}
KEEP_REQUESTS = 1_000_000_000
NGINX = """
worker_processes 1; daemon off; pid {folder}/{name}.pid; error_log {folder}/{name}.log crit;
events {{ worker_connections 4096; }}
http {{
  access_log off; keepalive_requests {keep}; sendfile on; tcp_nopush on;
  client_body_temp_path {folder}/{name}-1; proxy_temp_path {folder}/{name}-2; fastcgi_temp_path {folder}/{name}-3;
  uwsgi_temp_path {folder}/{name}-4; scgi_temp_path {folder}/{name}-5;
  {rest}
}}
"""
BACKEND = "server {{ listen 127.0.0.1:{port} backlog=4096; root {folder}/www; open_file_cache max=10; default_type text/plain; }}"
REVERSE_PROXY = """
  upstream backend {{ server 127.0.0.1:{backend}; keepalive 512; keepalive_requests {keep}; }}
  server {{
    listen 127.0.0.1:{port} ssl http2 backlog=4096;
    server_name a.example.com; ssl_certificate {certificate}; ssl_certificate_key {key}; ssl_protocols TLSv1.3;
    http2_max_requests {keep};
    location / {{
      proxy_pass http://backend; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host $host;
      proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for; proxy_set_header X-Forwarded-Proto $scheme;
    }}
  }}
"""
ASGI = """
BODIES = {bodies!r}
BODIES = {{path: b"x" * size for path, size in BODIES.items()}}


async def app(scope, receive, send):
    if scope["type"] == "http":
        body = BODIES[scope["path"]]
        headers = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(body))]
        await send({{"type": "http.response.start", "status": 200, "headers": headers}})
        await send({{"type": "http.response.body", "body": body}})
"""


@dataclass
class Bench:
    """Where everything runs, and what was started."""

    folder: Path
    server_prefix: Sequence[str]
    """Puts a server on its core."""
    load_prefix: Sequence[str]
    """Puts the backend and the load generator on theirs."""
    certificate: Path
    key: Path
    backend_port: int = 0
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def spawn(self, prefix: Sequence[str], command: Sequence[str], name: str, port: int, kinds: str = "tcp") -> None:
        """Start a server and wait until it accepts on TCP, has its UDP port, or both, as *kinds* says."""
        with (self.folder / f"{name}.out").open("wb") as log:
            process = subprocess.Popen([*prefix, *command], stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=ROOT)
        self.processes.append(process)
        end = time.monotonic() + 30
        while ("tcp" in kinds and not accepts(port)) or ("udp" in kinds and is_free(port, "udp")):
            if process.poll() is not None or time.monotonic() > end:
                msg = f"{name} does not start:\n{(self.folder / f'{name}.out').read_text()[-3000:]}"
                raise RuntimeError(msg)
            time.sleep(0.05)

    def close(self) -> None:
        """End all that was started."""
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def accepts(port: int) -> bool:
    """Whether somebody accepts TCP connections at *port* of 127.0.0.1."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except OSError:
        return False
    return True


def is_free(port: int, kinds: str = "tcp udp") -> bool:
    """Whether *port* of 127.0.0.1 can be had."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as tcp, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        try:
            if "tcp" in kinds:
                tcp.bind(("127.0.0.1", port))
            udp.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def free_port() -> int:
    """A port that is free for TCP and UDP, under the range that client sockets use."""
    return next(port for port in iter(lambda: random.randrange(10240, 32000), 0) if is_free(port))


def start_backend(bench: Bench) -> None:
    """nginx that serves files of known sizes; never the bottleneck."""
    bench.backend_port = port = free_port()
    (bench.folder / "www").mkdir()
    for path, size in SIZES.items():
        (bench.folder / "www" / path[1:]).write_bytes(b"x" * size)
    _nginx(bench, bench.load_prefix, "backend", BACKEND.format(port=port, folder=bench.folder), port)


def start_nginx(bench: Bench) -> dict[str, int]:
    """nginx of the system as a reverse proxy: HTTP/1.1 and HTTP/2 on one port."""
    port = free_port()
    rest = REVERSE_PROXY.format(port=port, backend=bench.backend_port, certificate=bench.certificate, key=bench.key, keep=KEEP_REQUESTS)
    version = nginx_version()
    if version >= (1, 19, 7):  # http2_max_requests became keepalive_requests (nginx's changelog)
        rest = re.sub(r" *http2_max_requests .*\n", "", rest)
    _nginx(bench, bench.server_prefix, "nginx", rest, port)
    return {"h1": port, "h2": port}


def _nginx(bench: Bench, prefix: Sequence[str], name: str, rest: str, port: int) -> None:
    path = bench.folder / f"{name}.conf"
    path.write_text(NGINX.format(folder=bench.folder, name=name, rest=rest, keep=KEEP_REQUESTS))
    bench.spawn(prefix, ["nginx", "-e", str(bench.folder / f"{name}.log"), "-c", str(path)], name, port)


def nginx_version() -> tuple[int, ...]:
    """As ``nginx -v`` says."""
    text = subprocess.run(["nginx", "-v"], capture_output=True, text=True, check=True).stderr
    return tuple(map(int, re.findall(r"nginx/([\d.]+)", text)[0].split(".")))


def start_qproxy(bench: Bench) -> dict[str, int]:
    """qproxy as installed here, access log off as in nginx."""
    port = free_port()
    config = bench.folder / "conf.d"
    config.mkdir()
    server = {
        "listeners": [{"address": f"127.0.0.1:{port}"}],
        "admin": "off",
        "state": str(bench.folder / "state"),
        "log": {"access": False},
    }
    site = {
        "hosts": ["a.example.com"],
        "tls": {"certificate": str(bench.certificate), "key": str(bench.key)},
        "routes": [{"match": {"path": "/"}, "pool": "web"}],
        "pools": {"web": {"endpoints": [f"http://127.0.0.1:{bench.backend_port}"], "connections": {"max_idle": 512}}},
    }
    (config / "qproxy.yaml").write_text(yaml.safe_dump({"server": server, "site": site}))
    bench.spawn(bench.server_prefix, [sys.executable, "-m", "proxy", "-c", str(config)], "qproxy", port, "tcp udp")
    return dict.fromkeys(("h1", "h2", "h3"), port)


def start_hypercorn(bench: Bench) -> dict[str, int]:
    """hypercorn with uvloop, which answers from memory: it has no backend to ask, so it does less than the others."""
    port = free_port()
    (bench.folder / "static_app.py").write_text(ASGI.format(bodies=SIZES))
    command = [sys.executable, "-m", "hypercorn", "--worker-class", "uvloop", "--certfile", str(bench.certificate)]
    command += ["--keyfile", str(bench.key), "--bind", f"127.0.0.1:{port}", "--quic-bind", f"127.0.0.1:{port}"]
    config = bench.folder / "hypercorn.toml"
    config.write_text(f"keep_alive_max_requests = {KEEP_REQUESTS}\n")
    command += ["--config", str(config), f"{bench.folder}/static_app.py:app"]
    bench.spawn(bench.server_prefix, command, "hypercorn", port, "tcp udp")
    return dict.fromkeys(("h1", "h2", "h3"), port)


def start_floor(bench: Bench) -> dict[str, int]:
    """The bare libraries: one program for each version."""
    ports = {}
    for version in ("h1", "h2", "h3"):
        ports[version] = port = free_port()
        command = [sys.executable, "-m", f"bench.floor.{version}", "--port", str(port), "--backend", str(bench.backend_port)]
        command += ["--certificate", str(bench.certificate), "--key", str(bench.key)]
        bench.spawn(bench.server_prefix, command, f"floor-{version}", port, "udp" if version == "h3" else "tcp")
    return ports


STARTERS = {"qproxy": start_qproxy, "floor": start_floor, "nginx": start_nginx, "hypercorn": start_hypercorn}


def versions() -> dict[str, str]:
    """What is compared, by version."""
    found = {name: importlib.metadata.version(name) for name in ("hypercorn", "httptools", "h2", "aioquic", "uvloop", "qh3")}
    return {"nginx": ".".join(map(str, nginx_version())), **found}
