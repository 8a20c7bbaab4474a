"""``make bench``: compare qproxy with its peers and its floors on this machine. ``python -m bench.run --help``."""

import argparse
import dataclasses
import json
import os
import platform
import re
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from bench import plots, report
from bench.figures import VERSIONS, Runs
from bench.plan import FULL, QUICK, Plan
from bench.report import Facts
from bench.servers import place as places
from bench.session import Session
from bench.targets import COMPILED, Target, form, targets

RESULTS = Path(__file__).parent / "results"
LIBRARIES = ("uvloop", "httptools", "h2", "ngh2", "aioquic", "qproxy-native")
MTU = 1500


def main() -> int:
    """The command line."""
    options = _options()
    plan = _plan(options)
    if options.draw:
        told = json.loads(options.draw.read_text())
        _write(options, plan, Runs.load(told["runs"]), _facts(options, told))
        return 0
    peers = find_peers() if options.peers else None
    own = bool(options.mtu) and os.geteuid() == 0 and places.own_network(options.mtu)
    try:
        with places.prepared(peers, pinned=options.pin) as place:
            chosen = [target for target in _targets(options) if target.name in (*options.targets, "before")]
            session = Session(place, plan, chosen, options.versions, options.python)
            record = session.record

            def checkpoint() -> None:
                kept = {"left_out": record.left_out, "versions": {**_libraries(options.python), **record.versions}}
                told = {
                    "machine": _machine(place, options.python, own_mtu=options.mtu if own else 0),
                    **kept,
                    "full": options.full,
                    "runs": record.runs.dump(),
                }
                options.output.mkdir(parents=True, exist_ok=True)
                (options.output / "benchmark.json").write_text(json.dumps(told, indent=1) + "\n")
                for name, text in record.configurations.items():
                    (options.output / "configurations").mkdir(exist_ok=True)
                    (options.output / "configurations" / name).write_text(
                        re.sub(rf"[\w/.-]*/{re.escape(place.folder.name)}", "/bench", text)
                    )
                _write(options, plan, record.runs, _facts(options, told))

            session.measure(checkpoint)
    except places.UnavailableError as error:
        print(f"qproxy: the benchmark can't run: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"qproxy: interrupted; {options.output} has what was complete", file=sys.stderr)
        return 130
    print("\n" + (options.output / "benchmark.md").read_text())
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    here = COMPILED if COMPILED.exists() else Path(sys.executable)
    names = [target.name for target in targets(here)]
    parser.add_argument("--full", action="store_true", help="everything, about an hour; without: the bars, some minutes")
    parser.add_argument("--rounds", type=int, help="instead of the plan's")
    parser.add_argument("--seconds", type=int, help="of each run, instead of the plan's")
    parser.add_argument("--targets", nargs="+", choices=names, default=names, metavar="TARGET", help=f"some of {', '.join(names)}")
    parser.add_argument("--versions", nargs="+", choices=VERSIONS, default=list(VERSIONS))
    parser.add_argument("--workloads", nargs="+", help="some of the plan's, by name; with it latency and idle memory are left out")
    parser.add_argument("--python", type=absolute, default=here, help="interpreter with the build to measure")
    parser.add_argument("--before", type=absolute, help="interpreter with an older build on the same engines, to compare with")
    parser.add_argument("--mtu", type=int, default=MTU, help="of loopback, in a network namespace of its own; 0: the system's loopback")
    parser.add_argument("--pin", action=argparse.BooleanOptionalAction, default=True, help="keep server and load on a core each")
    parser.add_argument("--peers", action=argparse.BooleanOptionalAction, default=True, help="set up what scripts/peers sets up")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for the results")
    parser.add_argument("--draw", type=Path, metavar="JSON", help="measure nothing: write the report and the plots of an earlier run anew")
    return parser.parse_args()


def absolute(path: str) -> Path:
    """Programs run in folders of their own. Links stay: that of a virtual environment's interpreter is what makes it one."""
    return Path(path).absolute()


def _plan(options: argparse.Namespace) -> Plan:
    plan = FULL if options.full else QUICK
    if options.workloads:
        chosen = tuple(workload for workload in FULL.workloads if workload.name in options.workloads)
        sweeps = tuple(workload for workload in FULL.sweeps if workload.name in options.workloads)
        plan = dataclasses.replace(QUICK, workloads=chosen, sweeps=sweeps, idle=0)
    if options.rounds:
        plan = dataclasses.replace(plan, rounds=options.rounds)
    if options.seconds:
        plan = dataclasses.replace(plan, seconds=options.seconds, latency_seconds=max(options.seconds, 2))
    return plan


def _targets(options: argparse.Namespace) -> list[Target]:
    return targets(options.python, options.before)


def find_peers() -> Path | None:
    """What scripts/peers made, as far as it came: what is missing is left out by name."""
    script = places.ROOT / "scripts" / "peers"
    subprocess.run([script], check=False, stdout=subprocess.DEVNULL)
    where = subprocess.run([script, "--where"], check=True, capture_output=True, text=True).stdout.strip()
    return Path(where) if Path(where).exists() else None


def _machine(place: places.Place, python: Path, *, own_mtu: int) -> dict[str, object]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "?")
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "processor": model,
        "cores": os.cpu_count(),
        "pinned": place.server_core is not None,
        "loopback's MTU": own_mtu or "the system's",
        "kernel": platform.release(),
        "Python": form(python)[1],
        "qproxy is": form(python)[0],
    }


def _libraries(python: Path) -> dict[str, str]:
    script = "import sys, json, importlib.metadata as m\nfound = {}\nfor name in sys.argv[1:]:\n try: found[name] = m.version(name)\n"
    script += " except m.PackageNotFoundError: pass\nprint(json.dumps(found))"
    done = subprocess.run([python, "-c", script, "qproxy", *LIBRARIES], capture_output=True, text=True, check=False)
    return dict(json.loads(done.stdout)) if done.returncode == 0 else {"qproxy": metadata.version("qproxy")}


def _facts(options: argparse.Namespace, told: dict[str, Any]) -> Facts:
    names = {target.name: target.title for target in _targets(options)}
    notes = ["hypercorn answers from memory and asks no backend: it does less than the others."]
    return Facts("Benchmark", told["machine"], told["versions"], told["left_out"], names, notes)


def _write(options: argparse.Namespace, plan: Plan, runs: Runs, facts: Facts) -> None:
    (options.output / "benchmark.md").write_text(report.markdown(runs, facts, plan))
    plots.draw(runs, facts.names, plan, options.output)


if __name__ == "__main__":
    sys.exit(main())
