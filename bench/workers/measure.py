"""One process and several workers of the same build, asked in turn: what a request costs them, who serves it, and what memory they take."""

import re
import shutil
import subprocess
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from bench import processes
from bench.load import connect, h2load
from bench.load.h2load import Load, LoadError
from bench.plan import GET_1K
from bench.servers import qproxy
from bench.servers.place import Place, Running, UnavailableError
from bench.servers.qproxy import Build
from bench.servers.variant import PLAIN, Variant

CLIENT = "gtlsclient"
"""Of HTTP/3, by ngtcp2: the system's h2load has none."""

CONNECTIONS = 256
"""Over which the spread is looked at: the kernel deals connections by chance, so each of two workers has 128 of them, give or take 8."""

QUIC_CLIENTS, QUIC_REQUESTS = 8, 5000
"""Processes at a time, a connection each, and requests of each."""

SPREAD_ROUNDS = 8
"""In which HTTP/3 makes its connections for the spread, ``QUIC_CLIENTS`` in each."""

WORKER = re.compile(rb'"request_id":"([0-9a-f]+)-')
"""In the access log: the part of a request's id that is the process's own."""

ROLE = re.compile(rb"proxy\.process\.(\w+?)(?:_main)?\0")


@dataclass(frozen=True)
class Servers:
    """The two that are compared."""

    one: Running
    several: Running


def start(place: Place, build: Build, workers: int) -> Servers:
    """Raises UnavailableError."""
    several = Variant(workers=workers)
    return Servers(qproxy.start(place, build, quic={}), ready(qproxy.start(place, build, several, quic={}), workers))


def ready(running: Running, workers: int) -> Running:
    """Wait until so many workers have started, and are at rest. Raises UnavailableError."""
    for _ in range(600):
        if [role for role, _ in roles(running)].count("worker") == workers:
            time.sleep(connect.SETTLE)
            return running
        time.sleep(0.05)
    msg = f"it has no {workers} workers"
    raise UnavailableError(msg)


def roles(running: Running) -> list[tuple[str, int]]:
    """What each of its processes is, and its id: ``supervisor``, ``controller``, ``worker``; ``process`` where there is only one."""
    found = []
    for pid in sorted(processes.family(running.pids)):
        try:
            role = ROLE.search(Path(f"/proc/{pid}/cmdline").read_bytes())
        except OSError:
            continue  # it ended meanwhile
        found.append((role[1].decode() if role is not None else "process", pid))
    return found


def at_rest(running: Running) -> dict[str, float]:
    """Bytes of resident memory by role, what is shared counted by shares (PSS), and where there are several of a role their mean."""
    found: dict[str, list[int]] = {}
    for role, pid in roles(running):
        found.setdefault(role, []).append(own_memory(pid))
    return {role: sum(sizes) / len(sizes) for role, sizes in found.items()} | {"all": float(sum(map(sum, found.values())))}


def own_memory(pid: int) -> int:
    """Of one process, as ``processes.memory_bytes``."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def request(place: Place, running: Running, version: str, seconds: int) -> dict[str, float]:
    """``cpu``: microseconds of all processes for a GET of 1 KiB. Raises LoadError and UnavailableError."""
    if version == "h3":
        return quic(place, running)
    streams = 1 if version == "h1" else GET_1K.streams
    return h2load.run(place, running, Load(version, GET_1K.path, GET_1K.size, GET_1K.connections, streams, seconds))


def quic(place: Place, running: Running, requests: int = QUIC_REQUESTS) -> dict[str, float]:
    """As many requests as ``QUIC_CLIENTS`` have, handshakes in it. Raises LoadError and UnavailableError."""
    program = shutil.which(CLIENT)
    if program is None:
        msg = f"{CLIENT} is not installed (Debian's ngtcp2-client; scripts/debian-packages does it)"
        raise UnavailableError(msg)
    port = running.ports["h3"]
    command = [*place.pin(place.load_core), program, "--quiet", "--exit-on-all-streams-close", f"--nstreams={requests}"]
    command += ["127.0.0.1", str(port), f"https://localhost:{port}{GET_1K.path}"]
    before = sum(processes.cpu_seconds(running.pids))
    began = time.monotonic()
    clients = [subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL) for _ in range(QUIC_CLIENTS)]
    failed = 0
    try:
        for client in clients:
            failed += client.wait(h2load.GRACE) != 0
    except subprocess.TimeoutExpired:
        msg = f"{CLIENT} did not end"
        raise LoadError(msg) from None
    finally:
        for client in clients:
            if client.poll() is None:
                client.kill()
                client.wait()
    asked = QUIC_CLIENTS * requests
    used = sum(processes.cpu_seconds(running.pids)) - before
    return {"cpu": used / asked * 1e6, "rate": asked / (time.monotonic() - began), "failed": float(failed * requests)}


def spread(place: Place, build: Build, workers: int, version: str, seconds: int) -> dict[str, float]:
    """Shares of the requests that the workers served, by the access log: ``least`` and ``most``. Raises LoadError and UnavailableError."""
    variant = Variant(access_log=True, workers=workers)
    running = ready(qproxy.start(place, build, variant, quic={} if version == "h3" else None), workers)
    log = place.folder / f"{build.name}-{running.ports['h1']}.out"
    if version == "h3":
        for _ in range(SPREAD_ROUNDS):
            quic(place, running, QUIC_REQUESTS // SPREAD_ROUNDS)
        connections = QUIC_CLIENTS * SPREAD_ROUNDS
    else:
        streams = 1 if version == "h1" else GET_1K.streams
        h2load.run(place, running, Load(version, GET_1K.path, GET_1K.size, CONNECTIONS, streams, seconds, PLAIN.asked))
        connections = CONNECTIONS
    place.stop(running.process)
    served = Counter(WORKER.findall(log.read_bytes()))
    log.unlink()
    shares = sorted(count / served.total() for count in served.values())
    if len(shares) < workers:
        shares = [0.0, *shares]
    return {"least": shares[0], "most": shares[-1], "answers": float(served.total()), "connections": float(connections), "failed": 0.0}


def idle(place: Place, build: Build, workers: int, version: str, count: int) -> dict[str, float]:
    """``connect.idle`` of a fresh server. Raises LoadError and UnavailableError."""
    running = qproxy.start(place, build, Variant(workers=workers))
    if workers > 1:
        ready(running, workers)
    try:
        return connect.idle(place, running, version, count)
    finally:
        place.stop(running.process)
