"""``python -m bench.workers --help``."""

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from bench.figures import VERSIONS, Run, Runs
from bench.load.h2load import LoadError
from bench.run import RESULTS, absolute
from bench.servers import backend
from bench.servers import place as places
from bench.servers.qproxy import Build
from bench.targets import COMPILED, form
from bench.workers import measure, told

PARTS = ("request", "spread", "rest", "idle")


def main() -> int:
    """The command line."""
    options = _options()
    file = options.output / "workers.json"
    facts: dict[str, object] = {"date": datetime.now(UTC).date().isoformat(), "kernel": platform.release(), "cores": os.cpu_count()}
    facts |= {"qproxy is": form(options.python)[0], "workers": options.workers, "rounds": options.rounds}
    runs = Runs()
    if file.exists() and set(options.parts) != set(PARTS):  # the others stay as they were measured
        kept = json.loads(file.read_text())
        facts = kept["facts"] | facts if "request" in options.parts else facts | kept["facts"]
        runs = Runs(run for run in Runs.load(kept["runs"]).runs if run.workload not in options.parts)
    options.output.mkdir(parents=True, exist_ok=True)

    def keep() -> None:
        file.write_text(json.dumps({"facts": facts, "runs": runs.dump()}, indent=1) + "\n")
        (options.output / "workers.md").write_text(told.markdown(runs, facts))

    try:
        with places.prepared(None, pinned=False) as place:
            backend.start(place)
            _measure(place, options, runs, keep)
    except places.UnavailableError as error:
        print(f"qproxy: the workers can't be measured: {error}", file=sys.stderr)
        return 1
    print("\n" + told.markdown(runs, facts))
    return 0


def _measure(place: places.Place, options: argparse.Namespace, runs: Runs, keep: Callable[[], None]) -> None:
    build = Build("qproxy", options.python, "auto", "auto")

    def run(workload: str, version: str, target: str, number: int, ask: Callable[[], dict[str, float]]) -> None:
        try:
            one = Run(workload, version, target, number, ask())
        except (LoadError, places.UnavailableError) as error:
            one = Run(workload, version, target, number, error=str(error))
        runs.add(one)
        keep()
        print(f"{workload} {number + 1} {VERSIONS[version]} {target}: {one.error or one.figures}", flush=True)

    if {"request", "rest"} & set(options.parts):
        servers = measure.start(place, build, options.workers)
        both = (("one", servers.one), ("several", servers.several))
        if "rest" in options.parts:
            for target, running in both:
                run("rest", "h1", target, 0, lambda running=running: measure.at_rest(running))
        if "request" in options.parts:
            for number in range(options.rounds):
                for version in VERSIONS:
                    for target, running in both:
                        run(
                            "request",
                            version,
                            target,
                            number,
                            lambda running=running, version=version: measure.request(place, running, version, options.seconds),
                        )
        for _, running in both:
            place.stop(running.process)
    for version in VERSIONS:
        if "spread" in options.parts:
            run(
                "spread",
                version,
                "several",
                0,
                lambda version=version: measure.spread(place, build, options.workers, version, options.seconds),
            )
    for target, workers in (("several", options.workers), ("one", 1)):
        for version in VERSIONS:
            if "idle" in options.parts and options.idle:
                run(
                    "idle",
                    version,
                    target,
                    0,
                    lambda workers=workers, version=version: measure.idle(place, build, workers, version, options.idle),
                )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench.workers", description=told.__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    here = COMPILED if COMPILED.exists() else Path(sys.executable)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=4, help="of each run")
    parser.add_argument("--idle", type=int, default=10_000, help="idle connections")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="only these; the others stay as they were")
    parser.add_argument("--python", type=absolute, default=here, help="interpreter with the build to measure")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for the results")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
