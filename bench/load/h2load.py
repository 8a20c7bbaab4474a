"""h2load: requests by all three versions, as fast as they are answered (closed loop) or at a rate (open loop).

The one of the Debian root speaks HTTP/3 and counts latency from the intended send time (``h2load-intended.patch``); where there is
none, the system's measures HTTP/1.1 and HTTP/2 in a closed loop.
"""

import re
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from bench import processes
from bench.figures import quantile
from bench.servers.place import Place, Running, UnavailableError

LOST = re.compile(r"requests: .* (\d+) errored, (\d+) timeout")
STATUSES = re.compile(r"status codes: (\d+) 2xx, (\d+) 3xx, (\d+) 4xx, (\d+) 5xx")
RATE = re.compile(r"finished in [\d.]+\w+, ([\d.]+) req/s")
BODIES = re.compile(r", \S+ \((\d+)\) data")
EDGE = 0.2
"""Seconds at both ends of a measurement that processor time is not counted in."""
LARGE = 100 * 1024
"""Answers of this many bytes and more are counted by the bytes that came, since too few of them are complete within the time."""
GRACE = 60.0
"""Seconds for h2load to end by itself."""
QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999}


class LoadError(Exception):
    """The generator did not run; the text says why."""


@dataclass(frozen=True)
class Load:
    """What is asked for, and by how many at once."""

    version: str
    path: str
    size: int
    """Bytes of each answer's body."""
    connections: int
    streams: int
    """Requests under way on each connection; HTTP/1.1 has one."""
    seconds: int
    host: str = "a.example.com"
    upload: Path | None = None
    """A file that is sent with each request."""
    rate: float = 0.0
    """Requests a second of all connections together; 0: as fast as they are answered."""
    warm_up: int = 1
    """Seconds before the measurement, whole ones."""


def run(place: Place, server: Running, load: Load) -> dict[str, float]:
    """Load *server*; gives the figures of a run. Raises LoadError and UnavailableError."""
    log = place.folder / "latencies"
    log.unlink(missing_ok=True)
    command = _command(place, server.ports[load.version], load, log)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        time.sleep(load.warm_up + EDGE)
        before = processes.Sample.take(server.pids, place.server_core, place.load_core)
        time.sleep(max(0.1, load.seconds - 2 * EDGE))
        after = processes.Sample.take(server.pids, place.server_core, place.load_core)
        text, _ = process.communicate(timeout=GRACE)
    except subprocess.TimeoutExpired:
        msg = "h2load did not end"
        raise LoadError(msg) from None
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    figures = parse(text, load, sizes=place.debian is not None)
    shares = after.since(before)
    user, system = (shares.pop(name) / figures["rate"] * 1e6 for name in ("user", "system"))
    figures |= {"cpu": user + system, "system": system, **shares}
    if load.rate:
        figures.update(latencies(log))
    return figures


def _command(place: Place, port: int, load: Load, log: Path) -> list[str]:
    try:
        program = place.in_debian("h2load")
    except UnavailableError:
        found = shutil.which("h2load")
        if found is None or load.version == "h3" or load.rate:
            raise
        program = [found]
    command = [*place.pin(place.load_core), *program, "-D", str(load.seconds), f"--warm-up-time={load.warm_up}", "-t", "1"]
    command += ["-c", str(load.connections), "-m", str(1 if load.version == "h1" else load.streams)]
    command += {"h1": ["--h1"], "h2": [], "h3": ["--alpn-list=h3"]}[load.version]
    if load.upload is not None:
        command += ["-d", place.seen(load.upload)]
    if load.rate:
        command += [f"--rps={load.rate / load.connections:.3f}", f"--log-file={place.seen(log)}"]
    return [*command, f"--connect-to=127.0.0.1:{port}", f"https://{load.host}:{port}{load.path}"]


def parse(text: str, load: Load, *, sizes: bool = True) -> dict[str, float]:
    """Rate and failures from what h2load prints: statuses other than 2xx, requests without an answer, and bodies of a wrong size
    (*sizes*: without the patch, those of the warm-up count, too).

    Not its own "failed": on HTTP/1.1 it counts every answer with an empty reason phrase as such. Raises LoadError.
    """
    rate, lost, statuses, bodies = (pattern.search(text) for pattern in (RATE, LOST, STATUSES, BODIES))
    if rate is None or lost is None or statuses is None or bodies is None:
        last = " ".join(text.split())[-200:]
        msg = f"h2load said nothing that can be read: {last}"
        raise LoadError(msg)
    good, *bad = map(int, statuses.groups())
    failed = sum(bad) + sum(map(int, lost.groups()))
    under_way = load.connections * max(load.streams, 1)  # at both edges of the time some answers are in part inside it
    if sizes and abs(int(bodies[1]) - good * load.size) > under_way * load.size:
        failed += max(1, abs(int(bodies[1]) // load.size - good))
    if not good or not float(rate[1]):
        msg = f"no request was answered ({failed} failed)"
        raise LoadError(msg)
    large = sizes and load.size >= LARGE
    return {"rate": int(bodies[1]) / load.size / load.seconds if large else float(rate[1]), "failed": float(failed), "answers": float(good)}


def latencies(log: Path) -> dict[str, float]:
    """Quantiles in milliseconds from a log of h2load: start, status and microseconds of each request. Raises LoadError."""
    values = sorted(int(line.rsplit("\t", 1)[1]) / 1000 for line in log.read_text().splitlines() if line.count("\t") == 2)
    if not values:
        msg = "h2load logged no request"
        raise LoadError(msg)
    return {**{name: quantile(values, share) for name, share in QUANTILES.items()}, "max": values[-1]}
