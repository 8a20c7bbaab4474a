"""The microbenchmarks: ``python -m bench.micro`` (``make micro``), or one part: ``python -m bench.micro --part h1``.

Times each part of ``parts.py`` with pyperf, in processes of their own, and writes ``bench/results/micro.md``. Options are pyperf's:
``--fast``, ``--rigorous``, ``--affinity CORES``. A busy machine makes every figure worse; calls and bytes are the same everywhere.
"""

import platform
import sys
from importlib.metadata import version
from pathlib import Path

import pyperf

from bench.micro.calls import cost
from bench.micro.parts import PARTS, PER_PLAY

RESULTS = Path(__file__).parents[1] / "results"
BARS = {"route-10": 3.0, "route-1000": 3.0, "route-10000": 3.0, "ring-3": 3.0, "ring-1000": 3.0}
"""Microseconds that a part may take, where that was promised."""


def main() -> None:
    """Run, and write the table."""
    runner = pyperf.Runner(program_args=("-m", "bench.micro"), add_cmdline_args=_pass_on)
    runner.argparser.add_argument("--part", choices=PARTS, action="append", help="only this one")
    wanted = runner.parse_args().part or list(PARTS)
    found = {}
    for name in wanted:
        if not runner.args.worker or runner.args.worker_task is None or wanted.index(name) == runner.args.worker_task:
            found[name] = runner.bench_func(name, PARTS[name](), inner_loops=PER_PLAY.get(name, 1))
        else:
            runner.bench_func(name, _nothing)
    if runner.args.worker or not all(found.values()):
        return
    text = table(found)
    print(text)
    if wanted == list(PARTS):
        (RESULTS / "micro.md").write_text(text)


def _nothing() -> None:
    """Stands for the parts that another worker process measures."""


def _pass_on(command: list[str], arguments) -> None:
    for name in arguments.part or ():
        command += ["--part", name]


def table(found: dict[str, pyperf.Benchmark]) -> str:
    """The figures for people."""
    machine = f"{platform.python_implementation()} {platform.python_version()}, {platform.system()} {platform.release()}"
    lines = [
        "# Microbenchmarks",
        "",
        f"{machine}, pyperf {version('pyperf')}. One request through each part (`bench/micro/parts.py`); mean of",
    ]
    lines += ["processes with its deviation, calls and bytes as `python -m bench.micro.calls` counts them. No system calls are in it.", ""]
    lines += ["| part | microseconds | +- | bar | Python calls | C calls | bytes at once |", "|---|---|---|---|---|---|---|"]
    for name, one in found.items():
        told = cost(name)
        bar = f"{BARS[name]:g}" if name in BARS else ""
        lines.append(
            f"| {name} | {one.mean() * 1e6:.2f} | {one.stdev() * 1e6:.2f} | {bar} | {told.python:.0f} | {told.c:.0f} | {told.peak:.0f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
