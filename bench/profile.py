"""``make profile``: where the time goes, as flame graphs of qproxy and its floors under each workload.

py-spy samples from outside, native frames included, so that engines, TLS and system calls show beside Python. Needs root or a relaxed
ptrace_scope.
"""

import argparse
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from bench.figures import VERSIONS
from bench.load import h2load
from bench.load.h2load import Load, LoadError
from bench.plan import FULL, QUICK, Workload
from bench.run import MTU, RESULTS, absolute, find_peers
from bench.servers import backend
from bench.servers import place as places
from bench.servers.place import Place, Running, UnavailableError
from bench.servers.variant import Variant
from bench.targets import COMPILED, targets

OURS = ("qproxy", "qproxy-portable", "floor", "floor-portable")


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="profile", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    here = Path(sys.executable)
    build = COMPILED if COMPILED.exists() else here
    names = [workload.name for workload in FULL.workloads]
    parser.add_argument("--python", type=absolute, default=build, help="interpreter with the build to profile")
    parser.add_argument("--targets", nargs="+", choices=OURS, default=["qproxy", "qproxy-portable"])
    parser.add_argument("--versions", nargs="+", choices=VERSIONS, default=list(VERSIONS))
    parser.add_argument("--workloads", nargs="+", choices=names, default=[workload.name for workload in QUICK.workloads])
    parser.add_argument("--seconds", type=int, default=15)
    parser.add_argument("--rate", type=int, default=50, help="samples a second; each stops the server for a millisecond or two")
    parser.add_argument("--output", type=Path, default=RESULTS / "profiles")
    options = parser.parse_args()
    spy = shutil.which("py-spy", path=str(here.parent)) or shutil.which("py-spy")
    if spy is None:
        print("qproxy: py-spy is not installed: pip install -e '.[bench]'", file=sys.stderr)
        return 1
    options.output.mkdir(parents=True, exist_ok=True)
    peers = find_peers()
    places.own_network(MTU)
    try:
        with places.prepared(peers) as place:
            backend.start(place)
            backend.start_uploads(place)
            profiler = Profiler(place, options, spy)
            for name in options.targets:
                profiler.target(name)
    except UnavailableError as error:
        print(f"qproxy: nothing can be profiled: {error}", file=sys.stderr)
        return 1
    return 1 if profiler.failed else 0


@dataclass
class Profiler:
    """Makes the graphs, and counts those that could not be made."""

    place: Place
    options: argparse.Namespace
    spy: str
    failed: int = 0

    def target(self, name: str) -> None:
        """All workloads of one target."""
        target = next(target for target in targets(self.options.python) if target.name == name)
        for workload in FULL.workloads:
            if workload.name not in self.options.workloads:
                continue
            for served, start in target.programs:
                try:
                    running = start(self.place, Variant(uploads=bool(workload.upload)))
                except UnavailableError as error:
                    print(f"{target.title} is left out: {error}", flush=True)
                    continue
                for version in served:
                    if version in self.options.versions:
                        self.graph(f"{name}-{version}-{workload.name}.svg", running, self.load(workload, version))
                self.place.stop(running.process)

    def load(self, workload: Workload, version: str) -> Load:
        """Lasts longer than the profile."""
        upload = backend.body(self.place.folder, "/1m") if workload.upload else None
        streams = 1 if version == "h1" else workload.streams
        return Load(version, workload.path, workload.size, workload.connections, streams, self.options.seconds + 2, upload=upload)

    def graph(self, name: str, running: Running, load: Load) -> None:
        """One flame graph, under *load*."""
        file = self.options.output / name
        command = [
            *self.place.pin(self.place.load_core),
            self.spy,
            "record",
            "--native",
            "--pid",
            str(running.process.pid),
        ]
        command += [
            "--duration",
            str(self.options.seconds),
            "--rate",
            str(self.options.rate),
            "--format",
            "flamegraph",
            "--output",
            str(file),
        ]
        told: list[str] = []

        def ask() -> None:
            try:
                told.append(f"{h2load.run(self.place, running, load)['rate']:,.0f} requests/s under the profiler")
            except (LoadError, UnavailableError) as error:
                told.append(f"the load failed: {error}")

        thread = threading.Thread(target=ask)
        thread.start()
        time.sleep(load.warm_up)
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        thread.join()
        good = done.returncode == 0 and file.exists()
        self.failed += not good
        print(f"{name}: {told[0] if good else done.stderr.strip()[-300:]}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
