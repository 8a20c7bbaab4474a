"""Compare qproxy with nginx, hypercorn and its own floor, on this machine: ``make bench`` or ``python -m bench.run --help``.

Each server is one process on one core; the load generator and the backend share another. One server is loaded at a time, the
rounds are interleaved, and what counts are the medians of the ratios within a round: machines drift. The load is a closed loop, which
finds how much a server can do and says nothing of its latency under a given rate.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bench import targets
from bench.load import h2
from bench.load.h2 import Workload
from proxy.demo import certificates

RESULTS = Path(__file__).parent / "results"
NAMES = {"h1": "HTTP/1.1", "h2": "HTTP/2", "h3": "HTTP/3"}
WORKLOADS = {
    "small": Workload("Small answers (1 KiB), requests a second", "/1k", connections=32, streams=10),
    "large": Workload("Large answers (1 MiB), MiB a second", "/1m", connections=8, streams=2),
}


def measure(bench: targets.Bench, version: str, port: int, workload: Workload, seconds: float) -> dict[str, float]:
    """One run: the rate, the failures, and for HTTP/3 the generator's share of its core."""
    if version != "h3":
        rate, failed = h2.run(bench.load_prefix, version, port, workload, seconds)
        return {"rate": rate, "failed": failed}
    command = [*bench.load_prefix, sys.executable, "-m", "bench.load.h3load", "--port", str(port), "--path", workload.path]
    command += ["--connections", str(workload.connections), "--streams", str(workload.streams), "--seconds", str(seconds)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=targets.ROOT, timeout=seconds + 60)
    if done.returncode:
        raise RuntimeError(done.stderr)
    told = json.loads(done.stdout)
    return {"rate": told["rate"], "failed": told["failed"], "own_cpu": told["own_cpu"]}


def run(options: argparse.Namespace) -> dict[str, object]:
    """All rounds; returns what goes into the JSON file."""
    cores = sorted(os.sched_getaffinity(0))
    pinned = len(cores) > 1
    prefixes = [["taskset", "-c", str(core)] if pinned else [] for core in (cores[0], cores[-1])]
    results: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)  # nginx's worker may be another user
        pem = certificates.ensure(folder, "a.example.com")
        bench = targets.Bench(folder, prefixes[0], prefixes[1], pem, pem)
        try:
            targets.start_backend(bench)
            ports = {target: targets.STARTERS[target](bench) for target in options.targets}
            for workload in options.workloads:
                results[workload] = rounds(bench, options, ports, WORKLOADS[workload])
        finally:
            bench.close()
    return {"machine": machine(pinned=pinned), "versions": targets.versions(), "seconds": options.seconds, "results": results}


def rounds(bench: targets.Bench, options: argparse.Namespace, ports: dict[str, dict[str, int]], workload: Workload) -> object:
    """``{version: {target: [run, ...]}}``, the targets of a version in turn within each round."""
    found: dict[str, dict[str, list[dict[str, float]]]] = {}
    for number in range(options.rounds):
        for version in options.versions:
            for target in options.targets:
                if version in ports[target]:
                    one = measure(bench, version, ports[target][version], workload, options.seconds)
                    found.setdefault(version, {}).setdefault(target, []).append(one)
                    say(f"round {number + 1}  {workload.path}  {version}  {target:10}", one)
    return found


def say(what: str, one: dict[str, float]) -> None:
    """One line of progress."""
    failed = f", {one['failed']:.0f} FAILED" if one["failed"] else ""
    print(f"{what} {one['rate']:10.1f} requests/s{failed}", flush=True)


def machine(*, pinned: bool) -> dict[str, object]:
    """What the figures depend on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "?")
    return {"cpu": model, "cores": os.cpu_count(), "pinned": pinned, "kernel": platform.release(), "python": platform.python_version()}


def median_ratio(runs: dict[str, list[dict[str, float]]], over: str) -> str:
    """The median of qproxy's rate over another's, round by round."""
    if "qproxy" not in runs or over not in runs:
        return "-"
    ratios = [mine["rate"] / theirs["rate"] for mine, theirs in zip(runs["qproxy"], runs[over], strict=True) if theirs["rate"]]
    return f"{statistics.median(ratios):.2f}" if ratios else "-"


def markdown(told: dict[str, object], order: Sequence[str]) -> str:
    """The tables for people."""
    facts, versions = told["machine"], told["versions"]
    lines = ["# Benchmark", ""]
    lines += [", ".join(f"{key}: {value}" for key, value in facts.items()) + ".", ""]
    lines += [", ".join(f"{key} {value}" for key, value in versions.items()) + ".", ""]
    lines += [
        "One core for the server, another for load and backend, TLS 1.3 with P-256, keep-alive on both sides, access logs off; medians",
        "over interleaved rounds, ratios taken within a round. `floor` is the bare libraries (bench/floor). hypercorn answers from memory",
        "and asks no backend. HTTP/1.1 and HTTP/2 by h2load, HTTP/3 by bench/load/h3load.py. Only the ratios mean something elsewhere.",
    ]
    for name, by_version in told["results"].items():
        workload = WORKLOADS[name]
        title, scale = workload.title, targets.SIZES[workload.path] / 2**20 if name == "large" else 1
        over = [target for target in order if target != "qproxy"]
        lines += ["", f"## {title}", "", "| version | " + " | ".join([*order, *(f"qproxy / {target}" for target in over)]) + " |"]
        lines.append("|---" * (1 + len(order) + len(over)) + "|")
        for version, runs in by_version.items():
            cells = []
            for target in order:
                rates = [one["rate"] * scale for one in runs.get(target, [])]
                failed = sum(one["failed"] for one in runs.get(target, []))
                cells.append((f"{statistics.median(rates):,.0f}" if rates else "-") + (f" ({failed:.0f} failed)" if failed else ""))
            cells += [median_ratio(runs, target) for target in over]
            lines.append(f"| {NAMES[version]} | " + " | ".join(cells) + " |")
        busiest = max((one.get("own_cpu", 0) for runs in by_version.values() for target in runs.values() for one in target), default=0)
        if busiest:
            lines += ["", f"The HTTP/3 generator used at most {busiest:.0%} of its core (the backend runs there, too)."]
    return "\n".join(lines) + "\n"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4, help="of each run, after a second of warm-up where the generator has one")
    parser.add_argument("--targets", nargs="+", choices=targets.STARTERS, default=list(targets.STARTERS))
    parser.add_argument("--versions", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for benchmark.json and benchmark.md")
    options = parser.parse_args()
    told = run(options)
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "benchmark.json").write_text(json.dumps(told, indent=1) + "\n")
    text = markdown(told, options.targets)
    (options.output / "benchmark.md").write_text(text)
    print("\n" + text)


if __name__ == "__main__":
    main()
