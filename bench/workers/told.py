"""What was measured of several workers, as Markdown. Pure."""

from collections.abc import Mapping

from bench.figures import VERSIONS, Runs

MIB, KIB = 1024 * 1024, 1024

METHOD = """\
One process (`workers: 1`) and {workers} workers under their supervisor, of the same build and configuration, on one machine and asked
in turn; ratios are medians of {rounds} rounds, each of two runs that followed one another. *CPU* is user and system time of all processes
of the proxy for a request: GET of 1 KiB, 32 connections with 10 streams each (h2load), or on HTTP/3 8 connections (ngtcp2's client),
handshakes in it. Clients, backend and proxy share the cores, and the rates are not those of `benchmark.md`. *Spread*: shares of the
requests that the least and the most busy worker served, over so many connections, which the kernel deals by chance. *Memory* is
resident, what several processes share counted by shares (PSS). *Idle* connections were each asked for one GET of 1 KiB, stayed, and were
asked once more at the end."""


def markdown(runs: Runs, facts: Mapping[str, object]) -> str:
    """The whole report."""
    where = ", ".join(f"{key}: {value}" for key, value in facts.items()) + "."
    lines = ["# Several workers", "", where, "", METHOD.format(workers=facts["workers"], rounds=facts["rounds"])]
    lines += _requests(runs) + _spread(runs) + _rest(runs) + _idle(runs)
    failures = [f"{run.workload}, {VERSIONS[run.version]}, {run.target}: {run.error}" for run in runs.runs if run.error]
    return "\n".join([*lines, *(["", "Left out:", "", *(f"- {text}" for text in failures)] if failures else [])]) + "\n"


def _requests(runs: Runs) -> list[str]:
    lines = ["", "## CPU for a request", "", "| | one process | workers | ratio |", "|---|---|---|---|"]
    for version, name in VERSIONS.items():
        one, several = (runs.median("request", version, target, "cpu") for target in ("one", "several"))
        ratio = runs.ratio("request", version, "several", "one", "cpu")
        if one is not None and several is not None and ratio is not None:
            lines.append(f"| {name} | {one:.0f} us | {several:.0f} us | {ratio:.2f} |")
    return lines


def _spread(runs: Runs) -> list[str]:
    lines = ["", "## Spread of requests over the workers", "", "| | connections | requests | least | most |", "|---|---|---|---|---|"]
    for run in runs.runs:
        if run.workload == "spread" and run.figures:
            f = run.figures
            row = f"{f['connections']:.0f} | {f['answers']:,.0f} | {f['least']:.1%} | {f['most']:.1%}"
            lines.append(f"| {VERSIONS[run.version]} | {row} |")
    return lines


def _rest(runs: Runs) -> list[str]:
    lines = ["", "## Memory at rest", "", "| | MiB |", "|---|---|"]
    names = {"process": "the one process", "supervisor": "supervisor", "controller": "controller", "worker": "each worker"}
    for run in runs.runs:
        if run.workload == "rest":
            parts = {name: run.figures[role] for role, name in names.items() if role in run.figures}
            if len(parts) > 1:
                parts["all of them"] = run.figures["all"]
            lines += [f"| {name} | {size / MIB:.1f} |" for name, size in parts.items()]
    return lines


def _idle(runs: Runs) -> list[str]:
    lines = [
        "",
        "## Idle connections",
        "",
        "| | connections | served at the end | one process, KiB each | workers, KiB each |",
        "|---|---|---|---|---|",
    ]
    for version, name in VERSIONS.items():
        idle = [run for run in runs.runs if (run.workload, run.version) == ("idle", version) and run.figures]
        found = {run.target: run.figures for run in sorted(idle, key=lambda run: run.target)}
        if found:
            cells = [f"{found[target]['bytes'] / KIB:.1f}" if target in found else "-" for target in ("one", "several")]
            held = [f"{figures['connections']:,.0f}" for figures in found.values()]
            served = [f"{figures['connections'] - figures['failed']:,.0f}" for figures in found.values()]
            lines.append(f"| {name} | {' / '.join(held)} | {' / '.join(served)} | {' | '.join(cells)} |")
    return lines
