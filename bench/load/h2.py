"""HTTP/1.1 and HTTP/2 load by nghttp2's h2load, closed loop."""

import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

LOST = re.compile(r"requests: .* (\d+) errored, (\d+) timeout")
STATUSES = re.compile(r"status codes: \d+ 2xx, (\d+) 3xx, (\d+) 4xx, (\d+) 5xx")
RATE = re.compile(r"finished in [\d.]+\w+, ([\d.]+) req/s")


@dataclass(frozen=True)
class Workload:
    """What is asked for, and by how many at once."""

    title: str
    path: str
    connections: int
    streams: int
    """Requests under way on each connection (HTTP/1.1: one)."""


def run(prefix: Sequence[str], version: str, port: int, workload: Workload, seconds: float) -> tuple[float, int]:
    """Load a.example.com at *port* for *seconds* after a second of warm-up.

    Returns requests a second and how many failed. Raises RuntimeError where h2load doesn't say.
    """
    command = [*prefix, "h2load", "-D", str(max(1, round(seconds))), "--warm-up-time=1", "-t", "1", "-c", str(workload.connections)]
    command += ["--h1"] if version == "h1" else ["-m", str(workload.streams)]
    command += [f"--connect-to=127.0.0.1:{port}", f"https://a.example.com:{port}{workload.path}"]
    text = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds + 60).stdout
    rate, lost, statuses = RATE.search(text), LOST.search(text), STATUSES.search(text)
    if rate is None or lost is None or statuses is None:
        msg = f"h2load said nothing that can be read:\n{text}"
        raise RuntimeError(msg)
    # Not h2load's own "failed": on HTTP/1.1 it counts every answer with an empty reason phrase as such, and hypercorn sends none.
    return float(rate[1]), sum(map(int, (*lost.groups(), *statuses.groups())))
