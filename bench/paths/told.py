"""Downloads over emulated paths as Markdown. Pure."""

import statistics
from collections.abc import Iterable, Mapping, Sequence

from bench.paths.measure import Sent
from bench.paths.plan import Controller, Path

METHOD = """\
One download at a time, of a body that does not end, by ngtcp2's client (GnuTLS) through `bench/paths/relay.py`: a bottleneck of that rate
with a queue of so many bandwidth-delay products (BDP), half of the round trip in each direction, and losses by chance behind the
bottleneck. *Goodput* is the body that came within {seconds:g} s of the client's start, handshake and slow start in it, as a share of the
rate. *Queue* is how long datagrams waited before the bottleneck, in milliseconds, mean and 95th percentile. *Sent* is what the server put
on the path for each byte of the body that came: heads of 2 to 7 % are in it, and what was lost. Medians of {rounds} round(s). Datagrams
have 1452 bytes at most by the native engine, 1200 by aioquic. The relay delivered {late_mean:.0f} us late in the mean, and the 99th
percentile of a run was {late_p99:.0f} us at most; that changes neither rate nor queue."""

COLUMNS = ("goodput", "queue", "sent")


def markdown(runs: Sequence[Sent], facts: Mapping[str, object], left_out: Iterable[str]) -> str:
    """The whole report."""
    late = sorted(run.relay["late_p99"] for run in runs)
    method = METHOD.format(
        seconds=facts["seconds"],
        rounds=facts["rounds"],
        late_mean=statistics.mean(run.relay["late_mean"] for run in runs) * 1e6,
        late_p99=late[-1] * 1e6,
    )
    where = ", ".join(f"{key}: {value}" for key, value in facts.items()) + "."
    lines = ["# Congestion control on emulated paths", "", where, "", method, ""]
    lines += [f"Left out: {why}\n" for why in left_out]
    controllers = list(dict.fromkeys(run.controller for run in runs))
    for title, cell in (("Goodput", goodput_cell), ("Queue, mean / p95 (ms)", queue_cell), ("Sent for a byte that came", sent_cell)):
        lines += [f"## {title}", "", "| path | " + " | ".join(map(str, controllers)) + " |", "|---" * (1 + len(controllers)) + "|"]
        for path in dict.fromkeys(run.path for run in runs):
            cells = (cell([run for run in runs if (run.path, run.controller) == (path, controller)]) for controller in controllers)
            lines.append(f"| {path} | " + " | ".join(cells) + " |")
        lines.append("")
    lines += [*_summary(runs, controllers), ""]
    return "\n".join(lines).rstrip() + "\n"


def share(runs: Iterable[Sent]) -> float | None:
    """The median goodput as a share of the path's rate; None where there is none."""
    found = [run.goodput / (run.path.megabits * 1e6) for run in runs]
    return statistics.median(found) if found else None


def goodput_cell(runs: Sequence[Sent]) -> str:
    """Of one path and controller."""
    found = share(runs)
    return "-" if found is None else f"{found:.0%}" if found >= 0.1 else f"{found:.1%}"


def queue_cell(runs: Sequence[Sent]) -> str:
    """Of one path and controller."""
    if not runs:
        return "-"
    mean, p95 = (statistics.median(run.relay[name] * 1000 for run in runs) for name in ("queue_mean", "queue_p95"))
    return f"{mean:.1f} / {p95:.1f}"


def sent_cell(runs: Sequence[Sent]) -> str:
    """Of one path and controller."""
    return f"{1 + statistics.median(run.overhead for run in runs):.2f}" if runs else "-"


def _summary(runs: Sequence[Sent], controllers: Sequence[Controller]) -> list[str]:
    """Geometric mean of the shares over the paths of a kind: no path counts for more since its rate is higher."""
    kinds: dict[str, list[Path]] = {}
    for path in dict.fromkeys(run.path for run in runs):
        kinds.setdefault("nothing lost by chance" if not path.loss else "with losses by chance", []).append(path)
        kinds.setdefault("shallow queues" if path.queue < 1 else "bloated queues", []).append(path)
        kinds.setdefault("all", []).append(path)
    lines = ["## Goodput over paths of a kind, geometric mean", "", "| paths | " + " | ".join(map(str, controllers)) + " |"]
    lines.append("|---" * (1 + len(controllers)) + "|")
    for kind, paths in sorted(kinds.items(), key=lambda item: len(item[1])):
        cells = []
        for controller in controllers:
            found = [share(run for run in runs if (run.path, run.controller) == (path, controller)) for path in paths]
            good = [value for value in found if value]
            cells.append(f"{statistics.geometric_mean(good):.0%}" if len(good) == len(paths) else "-")
        lines.append(f"| {kind} ({len(paths)}) | " + " | ".join(cells) + " |")
    return lines
