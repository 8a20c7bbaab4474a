"""Downloads over a path: one at a time, by ngtcp2's client, for so many seconds."""

import json
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path as File
from typing import Any

from bench.paths.plan import Controller, Path
from bench.servers import qproxy
from bench.servers.backend import body, content
from bench.servers.place import Place, Running, UnavailableError, module
from bench.servers.qproxy import Build

CLIENT = "gtlsclient"
HOST = "localhost"
"""What the client sends as SNI wherever it is given an address to connect to."""
FILE = "/64m"
SIZE = 64 * 1024 * 1024
"""More than any path carries in the time."""
DATAGRAM = 1452
"""Bytes, where the engine looks for what the path carries: Ethernet's, with IPv6."""


@dataclass(frozen=True)
class Sent:
    """One download."""

    path: Path
    controller: Controller
    round: int
    goodput: float
    """Bits a second of the body, from the client's start on."""
    overhead: float
    """Bytes that the server sent for each byte of the body that came, less 1: heads, and what was sent again or never came."""
    relay: dict[str, float]

    def dump(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def load(cls, told: dict[str, Any]) -> "Sent":
        """What ``dump`` gave."""
        return cls(**{**told, "path": Path(**told["path"]), "controller": Controller(**told["controller"])})


def find_client() -> str:
    """Raises UnavailableError."""
    found = shutil.which(CLIENT)
    if found is None:
        msg = f"{CLIENT} is not installed (Debian's ngtcp2-client; scripts/debian-packages does it)"
        raise UnavailableError(msg)
    return found


def serve(place: Place, python: File, controller: Controller) -> Running:
    """Start qproxy with that controller. Raises UnavailableError."""
    file = body(place.folder, FILE)
    if not file.exists():
        file.write_bytes(content(SIZE))
    quic: dict[str, Any] = {"congestion_control": controller.name, "idle_timeout": "2s"}
    if controller.engine == "native":
        quic["max_datagram_size"] = DATAGRAM
    return qproxy.start(place, Build(f"qproxy-{controller.engine}-{controller.name}", python, "h2", controller.engine), quic=quic)


@dataclass(frozen=True)
class Asked:
    """What to download."""

    path: Path
    controller: Controller
    round: int
    seconds: float


def download(place: Place, running: Running, asked: Asked) -> Sent:
    """Send what the path takes within the time. Raises UnavailableError where nothing comes."""
    path = asked.path
    kept = place.folder / "kept"
    shutil.rmtree(kept, ignore_errors=True)
    kept.mkdir()
    command = [*place.pin(place.load_core), *module(File(sys.executable), "bench.paths.relay"), f"--to={running.ports['h3']}"]
    command += [f"--rate={path.rate}", f"--delay={path.round_trip / 2}", f"--queue={path.queue_bytes}"]
    command += [f"--loss={path.loss}", f"--seed={asked.round + 1}"]
    relay = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert relay.stdout is not None
    try:
        port = int(relay.stdout.readline())
        command = [find_client(), "--quiet", f"--max-data={SIZE}", f"--max-stream-data-bidi-local={SIZE}"]
        command += [f"--download={kept}", "127.0.0.1", str(port), f"https://{HOST}{FILE}"]
        began = time.monotonic()
        client = subprocess.Popen([*place.pin(place.load_core), *command], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        try:
            client.wait(asked.seconds)
        except subprocess.TimeoutExpired:
            client.kill()
        client.wait()
        passed = time.monotonic() - began
    finally:
        relay.terminate()
        said, _ = relay.communicate(timeout=30)
    file = kept / FILE[1:]
    came = file.stat().st_size if file.exists() else 0
    if not came:
        msg = f"nothing came over {path} by {asked.controller}"
        raise UnavailableError(msg)
    told = json.loads(said)
    return Sent(path, asked.controller, asked.round, came * 8 / passed, told["offered_bytes"] / came - 1, told)
