"""Datagrams and bytes a second that pass the L4 tier on one core, against nginx's stream module and HAProxy (TCP), in one run.

``python -m bench.tier``. Runs in a network namespace of its own whose loopback has the MTU of the Internet, where root starts it. The
balancer has the first core, all else the last. Rates are of the balancer's own processor time: so many in a second of one core.
"""

import argparse
import http.server
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from bench.servers.place import ROOT, free_port, own_network, taken
from bench.tier.common import KEYS, SERVER_ID

RESULTS = ROOT / "bench" / "results"

NGINX = """
{module}
worker_processes 1;
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/nginx.log warn;
events {{ worker_connections 4096; }}
stream {{
  server {{ listen 127.0.0.1:{udp} udp; proxy_pass 127.0.0.1:{udp_to}; proxy_timeout 60s; }}
  server {{ listen 127.0.0.1:{tcp} backlog=4096; proxy_pass 127.0.0.1:{tcp_to}; proxy_protocol on; }}
}}
"""

HAPROXY = """
global
  nbthread 1
  maxconn 4096
defaults
  mode tcp
  timeout connect 5s
  timeout client 60s
  timeout server 60s
listen tier
  bind 127.0.0.1:{tcp} backlog 4096
  server one 127.0.0.1:{tcp_to} send-proxy-v2
"""

QPROXY = """
server:
  workers: 1
  admin: {{address: "127.0.0.1:{admin}"}}
  state: {folder}/state
  cluster: {{key_file: {folder}/cluster.key}}
  limits: {{connections: 100000}}
l4:
  - address: "127.0.0.1:{udp}"
    protocols: [quic]
    instances: {{endpoints: [{{address: "127.0.0.1:8443", server_id: "{server_id}"}}], envelope_port: {udp_to}, health: {{port: {health}}}}}
  - address: "127.0.0.1:{tcp}"
    protocols: [tcp]
    instances: {{endpoints: ["127.0.0.1:{tcp_to}"], health: {{port: {health}}}}}
"""


@dataclass
class Balancer:
    name: str
    pids: list[int]
    udp: int
    tcp: int
    envelopes: bool = False


@dataclass
class Bench:
    folder: Path
    cores: list[int]
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def pinned(self, core: int, command: list[str], **more: object) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(["taskset", "-c", str(core), *command], cwd=ROOT, **more)  # type: ignore[call-overload]
        self.processes.append(process)
        return process

    def end(self, module: str, *words: object) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", f"bench.tier.{module}", *map(str, words)]
        return self.pinned(self.cores[-1], command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def stop(self, process: subprocess.Popen[bytes]) -> None:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(5)
        process.kill()
        process.wait()
        self.processes.remove(process)


def heard(process: subprocess.Popen[bytes]) -> dict[str, float]:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, f"{process.args} said nothing"
    told: dict[str, float] = json.loads(line)
    return told


def cpu(pids: list[int]) -> float:
    """Seconds of processor time that the processes had, as the scheduler counts them."""
    threads = (thread for pid in pids for thread in Path(f"/proc/{pid}/task").iterdir())
    return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1e9


def children(pid: int) -> list[int]:
    return [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]


@contextmanager
def healthy() -> Iterator[int]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_address[1]
    server.shutdown()


def start(bench: Bench, name: str, udp_to: int, tcp_to: int, health: int) -> Balancer:
    ports = {"udp": free_port(), "tcp": free_port(), "udp_to": udp_to, "tcp_to": tcp_to, "health": health, "admin": free_port()}
    module = next(iter(Path("/usr/lib").glob("*/nginx/modules/ngx_stream_module.so")), Path("/usr/lib/nginx/modules/ngx_stream_module.so"))
    text = {"nginx": NGINX, "haproxy": HAPROXY, "qproxy": QPROXY}[name].format(
        folder=bench.folder, server_id=SERVER_ID.hex(), module=f"load_module {module};" if module.exists() else "", **ports
    )
    path = bench.folder / {"nginx": "nginx.conf", "haproxy": "haproxy.cfg", "qproxy": "conf.d/tier.yaml"}[name]
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    (bench.folder / "cluster.key").write_text(KEYS)
    (bench.folder / "cluster.key").chmod(0o600)
    commands = {
        "nginx": ["nginx", "-c", str(path), "-p", str(bench.folder)],
        "haproxy": ["haproxy", "-db", "-f", str(path)],
        "qproxy": [sys.executable, "-m", "proxy", "-c", str(path.parent)],
    }
    with (bench.folder / f"{name}.out").open("wb") as out:
        process = bench.pinned(bench.cores[0], commands[name], stdout=out, stderr=out)
    end = time.monotonic() + 30
    while not taken(ports["tcp"], "tcp"):
        assert process.poll() is None, (bench.folder / f"{name}.out").read_text()
        assert time.monotonic() < end, f"{name} does not start"
        time.sleep(0.05)
    time.sleep(1.0)  # for first probes
    return Balancer(name, children(process.pid), ports["udp"], ports["tcp"], envelopes=name == "qproxy")


def upwards(bench: Bench, balancer: Balancer, port: int, size: int, seconds: float) -> dict[str, float]:
    """Datagrams from clients to the instance."""
    more = ["--envelopes"] if balancer.envelopes else []
    taker = bench.end("ends", "take", "--port", port, "--size", size, *more)
    heard(taker)
    began = cpu(balancer.pids)
    sender = bench.end("ends", "send", "--port", balancer.udp, "--size", size, "--seconds", seconds)
    sent = heard(sender)["sent"]
    told = heard(taker)
    used = cpu(balancer.pids) - began
    for end in (sender, taker):
        bench.stop(end)
    return told | {"sent": sent, "cpu": used}


def downwards(bench: Bench, balancer: Balancer, port: int, size: int, count: int) -> dict[str, float]:
    """Datagrams from the instance to a client."""
    more = ["--envelopes"] if balancer.envelopes else []
    answerer = bench.end("ends", "answer", "--port", port, "--size", size, "--count", count, *more)
    heard(answerer)
    receiver = bench.end("ends", "receive", "--port", balancer.udp, "--size", size)
    heard(answerer)
    began = cpu(balancer.pids)
    assert answerer.stdin is not None
    answerer.stdin.write(b"\n")
    answerer.stdin.flush()
    sent = heard(answerer)["sent"]
    told = heard(receiver)
    used = cpu(balancer.pids) - began
    for end in (receiver, answerer):
        bench.stop(end)
    return told | {"sent": sent, "cpu": used}


def stream(bench: Bench, balancer: Balancer, port: int, size: int) -> dict[str, float]:
    """One large download over TCP."""
    server = bench.end("streams", "serve", "--port", port, "--bytes", size)
    heard(server)
    began = cpu(balancer.pids)
    client = bench.end("streams", "download", "--port", balancer.tcp)
    told = heard(client)
    used = cpu(balancer.pids) - began
    for end in (client, server):
        bench.stop(end)
    return told | {"cpu": used}


def connections(bench: Bench, balancer: Balancer, port: int, seconds: float) -> dict[str, float]:
    """Short connections over TCP."""
    server = bench.end("streams", "serve", "--port", port)
    heard(server)
    began = cpu(balancer.pids)
    client = bench.end("streams", "connect", "--port", balancer.tcp, "--seconds", seconds)
    told = heard(client)
    used = cpu(balancer.pids) - began
    for end in (client, server):
        bench.stop(end)
    return told | {"cpu": used}


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.tier", description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--mtu", type=int, default=1500, help="of loopback")
    parser.add_argument("--only", choices=("qproxy", "nginx", "haproxy"))
    parser.add_argument("--write", action="store_true", help="into bench/results")
    options = parser.parse_args()
    network = own_network(options.mtu)
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[-1]})
    found: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory(prefix="qproxy-tier-") as name, healthy() as health:
        Path(name).chmod(0o755)  # a peer's worker may be another user
        bench = Bench(Path(name), cores)
        udp_to, tcp_to = free_port(), free_port()
        try:
            for kind in [options.only] if options.only else ["qproxy", "nginx", "haproxy"]:
                if kind != "qproxy" and shutil.which(kind) is None:
                    print(f"{kind} is not installed", file=sys.stderr)
                    continue
                balancer = start(bench, kind, udp_to, tcp_to, health)
                found[kind] = {}
                for _ in range(options.rounds):
                    measure(bench, balancer, (udp_to, tcp_to), options.seconds, found[kind])
                for process in list(bench.processes):
                    bench.stop(process)
        finally:
            for process in list(bench.processes):
                bench.stop(process)
    text = report(found, options.mtu if network else 65536)
    print(text)
    if options.write:
        (RESULTS / "tier.json").write_text(json.dumps(found, indent=1) + "\n")
        (RESULTS / "tier.md").write_text(text)


def measure(bench: Bench, balancer: Balancer, to: tuple[int, int], seconds: float, into: dict[str, list[float]]) -> None:
    udp_to, tcp_to = to

    def note(name: str, unit: str, run: Callable[[], dict[str, float]]) -> None:
        told = run()
        used = max(told["cpu"], 1e-6)
        into.setdefault(name, []).append(told[unit] / used)
        into.setdefault(f"{name}: share of a core", []).append(used / max(told["seconds"], 0.01))
        print(balancer.name, name, {key: round(value, 3) for key, value in told.items()}, file=sys.stderr)

    if balancer.name != "haproxy":
        for size in (1200, 100):
            note(
                f"datagrams of {size} bytes to the instance", "datagrams", lambda size=size: upwards(bench, balancer, udp_to, size, seconds)
            )  # type: ignore[misc]
        note("datagrams of 1200 bytes to the client", "datagrams", lambda: downwards(bench, balancer, udp_to, 1200, 150_000))
    note("bytes of a download over TCP", "bytes", lambda: stream(bench, balancer, tcp_to, 1 << 30))
    note("connections over TCP", "connections", lambda: connections(bench, balancer, tcp_to, seconds))


def report(found: dict[str, dict[str, list[float]]], mtu: int) -> str:
    names = [name for name in next(iter(found.values())) if "share" not in name]
    rounds = len(next(iter(next(iter(found.values())).values())))
    lines = [
        "# The L4 tier",
        "",
        f"So many in a second of the balancer's processor time, medians of {rounds} rounds; least and most behind it. One core for the",
        f"balancer, one for clients and instance; loopback with an MTU of {mtu}. `make bench-tier BENCH=--write`.",
        "",
        "nginx passes datagrams as they are, by the client's address and port. qproxy reads the connection ID, and seals each datagram",
        "with the client's address for the instance (or opens what the instance has sealed).",
        "",
        "| | " + " | ".join(found) + " |",
        "|---|" + "---|" * len(found),
    ]
    for name in names:
        cells = [shown(each[name]) if name in each else "-" for each in found.values()]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def shown(values: list[float]) -> str:
    scale, unit = (1e9, " G") if statistics.median(values) > 1e9 else (1e3, "k")
    low, middle, high = (value / scale for value in (min(values), statistics.median(values), max(values)))
    return f"{middle:.3g}{unit} ({low:.3g} to {high:.3g})"


if __name__ == "__main__":
    main()
