"""``python -m bench.paths --help``."""

import argparse
import json
import platform
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path as File

from bench.paths import drawn, told
from bench.paths.measure import Asked, Sent, download, find_client, serve
from bench.paths.plan import ALL, CONTROLLERS, SOME, Controller
from bench.run import RESULTS, absolute
from bench.servers import backend
from bench.servers import place as places
from bench.targets import COMPILED


def main() -> int:
    """The command line."""
    options = _options()
    file = options.output / "paths.json"
    facts: dict[str, object] = {"date": datetime.now(UTC).date().isoformat(), "kernel": platform.release()}
    facts |= {"seconds": options.seconds, "rounds": options.rounds}
    runs: list[Sent] = []
    left_out: list[str] = []
    if options.add or options.draw:
        kept = json.loads(file.read_text())
        runs, left_out, facts = [Sent.load(one) for one in kept["runs"]], kept["left_out"], {**facts, **kept["facts"]}
    try:
        if not options.draw:
            find_client()
            with places.prepared(None, pinned=options.pin) as place:
                backend.start(place)
                for controller in CONTROLLERS:
                    if not options.controllers or str(controller) in options.controllers:
                        runs += _measure(place, options, controller, left_out)
    except places.UnavailableError as error:
        print(f"qproxy: the paths can't be measured: {error}", file=sys.stderr)
        return 1
    options.output.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"facts": facts, "left_out": left_out, "runs": [run.dump() for run in runs]}, indent=1) + "\n")
    order = {controller: at for at, controller in enumerate(CONTROLLERS)}
    runs.sort(key=lambda run: (ALL.index(run.path), order[run.controller], run.round))
    text = told.markdown(runs, facts, left_out)
    (options.output / "paths.md").write_text(text)
    drawn.draw(runs, options.output)
    print("\n" + text)
    return 0


def _measure(place: places.Place, options: argparse.Namespace, controller: Controller, left_out: list[str]) -> Iterator[Sent]:
    try:
        running = serve(place, options.python, controller)
    except places.UnavailableError as error:
        left_out.append(f"{controller}: {error}")
        return
    for number in range(options.rounds):
        for path in ALL if options.full else SOME:
            if options.rates and path.megabits not in options.rates:
                continue
            try:
                run = download(place, running, Asked(path, controller, number, options.seconds))
            except places.UnavailableError as error:
                left_out.append(str(error))
                continue
            yield run
            print(f"{controller}: {path}: {run.goodput / 1e6:.2f} Mbit/s, queue p95 {run.relay['queue_p95'] * 1000:.1f} ms", flush=True)
    place.stop(running.process)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench.paths", description=told.__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    here = COMPILED if COMPILED.exists() else File(sys.executable)
    names = [str(controller) for controller in CONTROLLERS]
    parser.add_argument("--full", action="store_true", help="all paths, a quarter of an hour; without: some of them, two minutes")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each download")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--rates", type=int, nargs="+", help="only paths with these megabits a second")
    parser.add_argument("--controllers", nargs="+", choices=names, help="only these")
    parser.add_argument("--python", type=absolute, default=here, help="interpreter with the build to measure")
    parser.add_argument("--pin", action=argparse.BooleanOptionalAction, default=True, help="keep server and load on a core each")
    parser.add_argument("--output", type=File, default=RESULTS, help="folder for the results")
    parser.add_argument("--add", action="store_true", help="keep what the folder has, and add to it")
    parser.add_argument("--draw", action="store_true", help="measure nothing: write the report and the pictures anew")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
