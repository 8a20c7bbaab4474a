"""``python -m bench.fleet --help``."""

import argparse
import json
import sys
from dataclasses import asdict, fields
from pathlib import Path

from bench.fleet import deal, drawn, told
from bench.fleet.balancers import Consistent, Stateless, Tracking
from bench.fleet.plan import Plan
from bench.fleet.run import Outcome, run
from bench.fleet.tier import TheTier, layouts
from bench.run import RESULTS


def main() -> int:
    """The command line."""
    options = _options()
    plan = Plan(instances=options.instances, connections=options.connections, duration=options.duration, seed=options.seed)
    outcomes: list[Outcome] = []
    runs = (
        (Stateless(), False),
        (Consistent(), False),
        (Tracking(), False),
        (Tracking(), True),
        (TheTier(plan, "dcid"), False),
        (TheTier(plan, "client_address"), False),
    )
    for balancer, forwarding in runs:
        outcomes.append(run(plan, balancer, layouts(), forwarding=forwarding))
        print(f"{outcomes[-1].name}: {told.kept(outcomes[-1])} kept", flush=True)
    spreads, moves = deal.spreads(options.seed), deal.moves(options.seed)
    options.output.mkdir(parents=True, exist_ok=True)
    kept = {"plan": asdict(plan), "outcomes": [asdict(one) for one in outcomes]}
    kept |= {"spreads": [asdict(one) for one in spreads], "moves": [asdict(one) for one in moves]}
    (options.output / "fleet.json").write_text(json.dumps(kept, indent=1) + "\n")
    text = told.markdown(plan, outcomes, spreads, moves)
    (options.output / "fleet.md").write_text(text)
    drawn.draw(plan, outcomes, options.output)
    print("\n" + text)
    return 0


def _options() -> argparse.Namespace:
    usual = {field.name: field.default for field in fields(Plan)}
    parser = argparse.ArgumentParser(
        prog="bench.fleet", description="A fleet in virtual time.", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--instances", type=int, default=usual["instances"])
    parser.add_argument("--connections", type=int, default=usual["connections"])
    parser.add_argument("--duration", type=float, default=usual["duration"], help="virtual seconds")
    parser.add_argument("--seed", type=int, default=usual["seed"])
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for the results")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
