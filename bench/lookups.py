"""The parts whose cost must not grow with the configuration: finding a host and its route, a place on the ring, and loading 10,000 sites.

Run as ``python -m bench.lookups``, by the interpreter that has the build in question; prints one JSON object. Lookups are the best of
several rounds: what is asked is what the code costs, not what the machine was doing.
"""

import json
import secrets
import subprocess
import tempfile
import time
from pathlib import Path
from timeit import Timer

from balancer.ring import Ring
from bench.servers.place import module
from proxy.config.compile import compile_snapshot
from proxy.config.load import load
from proxy.config.material import self_signed
from proxy.demo import certificates
from proxy.observe import Metrics
from proxy.snapshot import Snapshot

CALLS, ROUNDS = 20_000, 7
FEW, MANY = 10, 10_000
BACKENDS = 1000
FILE = 1000
"""Sites in a file."""
SITE = """- hosts: [h{number}.example.com]
  tls: {{certificate: example.com.pem, key: example.com.pem}}
  routes:
    - {{match: {{path: /api/}}, pool: web}}
    - {{match: {{path: /}}, pool: web}}
"""
POOLS = 'pools: {web: {endpoints: ["http://127.0.0.1:9001"]}}\n'


def measure(python: Path) -> dict[str, float]:
    """The figures for *python*'s build: microseconds for lookups, seconds for loading. Raises OSError where it fails."""
    done = subprocess.run(module(python, "bench.lookups"), capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(done.stderr.strip()[-300:])
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def main() -> None:
    """Measure in this process."""
    figures = {}
    with tempfile.TemporaryDirectory() as name:
        for number in (FEW, MANY):
            snapshot, figures[f"load_{number}"] = loaded(Path(name), number)
            host = b"h%d.example.com" % (number - 1)
            figures[f"route_{number}"] = microseconds(lambda snapshot=snapshot, host=host: find(snapshot, host, b"/api/things?page=2"))
    figures["route_growth"] = figures[f"route_{MANY}"] / figures[f"route_{FEW}"]
    ring = Ring(tuple((f"http://10.0.{number >> 8}.{number & 255}:8080", 1) for number in range(BACKENDS)), b"secret")
    figures["ring"] = microseconds(lambda: ring.position(b"0123456789abcdef"))
    print(json.dumps(figures))


def loaded(folder: Path, number: int) -> tuple[Snapshot, float]:
    """A snapshot of *number* sites, and the seconds that it took from files to there."""
    folder /= str(number)
    certificates.ensure(folder, "example.com")
    (folder / "qproxy.yaml").write_text(f"server: {{state: {folder}/state}}\n{POOLS}")
    for first in range(0, number, FILE):
        sites = "".join(SITE.format(number=at) for at in range(first, min(number, first + FILE)))
        (folder / f"sites-{first}.yaml").write_text(f"sites:\n{sites}")
    began = time.perf_counter()
    configuration = load(folder, {})
    snapshot = compile_snapshot(
        configuration,
        metrics=Metrics(),
        secret=secrets.token_bytes(32),
        seed=1,
        generation=1,
        make_request_id=lambda: b"",
        default_certificate=self_signed(("localhost",)),
    )
    return snapshot, time.perf_counter() - began


def find(snapshot: Snapshot, host: bytes, path: bytes) -> object:
    """What an exchange does to find its route."""
    found = snapshot.find_host(host)
    assert found is not None
    return found.site.routes.find(b"GET", path, [])


def microseconds(call: object) -> float:
    """Of one call, the best of several rounds."""
    return min(Timer(call).repeat(ROUNDS, CALLS)) / CALLS * 1e6


if __name__ == "__main__":
    main()
