"""The backends, on the load generator's core: files by nginx of the system, and what takes uploads.

nginx's static files are never the bottleneck here. It refuses a POST to a file, and answers one elsewhere before the body came, so the
uploads go to a small program that counts what it got.
"""

import os
import shutil
import sys
from pathlib import Path

from bench.servers.place import Place, UnavailableError, free_port, module
from bench.servers.variant import Variant

SIZES = {"/1k": 1024, "/100k": 100 * 1024, "/1m": 1024 * 1024}
"""What is served, in bytes."""
UPLOAD = "/upload"
"""Takes a body of 1 MiB; answers 400 to any other."""
CONFIGURATION = """
worker_processes 1; daemon off; {user} pid {folder}/backend.pid; error_log {folder}/backend.log crit;
events {{ worker_connections 8192; }}
http {{
  access_log off; keepalive_requests 1000000000; keepalive_timeout 3600s; sendfile on; tcp_nopush on;
  client_body_temp_path {folder}/backend-1; proxy_temp_path {folder}/backend-2; fastcgi_temp_path {folder}/backend-3;
  uwsgi_temp_path {folder}/backend-4; scgi_temp_path {folder}/backend-5;
  server {{
    listen 127.0.0.1:{port} backlog=4096; root {folder}/www; open_file_cache max=10; default_type text/plain; access_log off;
  }}
}}
"""


def start(place: Place) -> None:
    """Start the backend for files; sets ``place.backend``. Raises UnavailableError."""
    nginx = shutil.which("nginx") or shutil.which("/usr/sbin/nginx")
    if nginx is None:
        msg = "the backend is Debian's nginx, and it is not installed (scripts/debian-packages does it)"
        raise UnavailableError(msg)
    folder, port = place.folder, free_port()
    (folder / "www").mkdir()
    for path, size in SIZES.items():
        body(folder, path).write_bytes(content(size))
    (folder / "backend.conf").write_text(CONFIGURATION.format(port=port, folder=folder, user="user root;" if os.geteuid() == 0 else ""))
    command = [nginx, "-e", str(folder / "backend.log"), "-c", str(folder / "backend.conf")]
    place.start("backend", command, {"h1": port}, load_side=True)
    place.backend = port


def start_uploads(place: Place) -> None:
    """Start the backend for uploads; sets ``place.uploads``. Raises UnavailableError."""
    port = free_port()
    place.start("uploads", [*module(Path(sys.executable), "bench.servers.sink"), str(port)], {"h1": port}, load_side=True)
    place.uploads = port
    return port


def body(folder: Path, path: str) -> Path:
    """The file that is served at *path*."""
    return folder / "www" / path[1:]


def content(size: int) -> bytes:
    """Bytes that can't be taken for others of their number: no two lines are alike."""
    return b"".join(b"%015d\n" % number for number in range(size // 16 + 1))[:size]


def behind(place: Place, variant: Variant) -> int:
    """The port of the backend that a server of *variant* is to ask."""
    return place.uploads if variant.uploads else place.backend
