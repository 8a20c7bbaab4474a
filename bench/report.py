"""Runs as Markdown: the bars first, then a table for each workload and version. Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from bench import bars
from bench.bars import COLUMNS, Bar
from bench.figures import VERSIONS, Runs
from bench.plan import LATENCY, LATENCY_BESIDE, Plan, Workload

METHOD = """\
One core for the server, another for the load generator and the backend (nginx with static files over keep-alive HTTP/1.1); every server is
one process or thread, with TLS 1.3 and a P-256 certificate, keep-alive to the backend, access log off. One server is loaded at a time,
rounds are interleaved; rates are medians over the rounds, *spread* is largest less smallest over the median, ratios are medians of the
ratios within a round. Machines drift, so only the ratios mean something elsewhere. Every server was asked once for each answer by curl,
and status and size of every answer are counted: a run with a wrong one gives no rate. *CPU* is user and system time of the server's
processes for a request; *core* how busy its core was and *load's core* how busy the other: where that is at 100 % and the server's
is not, the server could have done more."""
WHERE_METHOD = """\
Processor time for a GET of 1 KiB: what the kernel takes, what the floor takes outside of it (the same engine, TLS and event loop with no
policy), and the rest, which is routing, balancing, fields, limits, deadlines, retries and metrics."""
LATENCY_METHOD = """\
Open loop: requests are sent at times fixed beforehand, at half of each server's own best rate of this session, on 32 connections, and
latency counts from the time at which a request was to be sent (h2load with `bench/load/h2load-intended.patch`)."""
BESIDE_METHOD = "The same at one rate for both: half of Caddy's best rate of this session."
NEW_METHOD = """\
Connections made one after the other, each for one GET of 1 KiB. The rate is how many fit a second of one core by the processor time that
the server used, not how many a client could make."""
IDLE_METHOD = """Growth of resident memory (PSS) for each connection that stays open after one GET, on a server just started."""


@dataclass(frozen=True)
class Section:
    """A table of figures other than rates."""

    name: str
    """Of the workload."""
    title: str
    method: str
    columns: tuple[tuple[str, str], ...]
    """Each figure with its head."""


OPEN_LOOP = (("rate", "requests/s"), ("p50", "p50 (ms)"), ("p90", "p90"), ("p99", "p99"), ("p99.9", "p99.9"), ("max", "longest"))

SECTIONS = (
    Section("latency", LATENCY.title, LATENCY_METHOD, OPEN_LOOP),
    Section(LATENCY_BESIDE.name, LATENCY_BESIDE.title, BESIDE_METHOD, OPEN_LOOP),
    Section("new", "New connections, full handshake", NEW_METHOD, (("cpu", "CPU (us)"), ("rate", "a second of one core"))),
    Section("resumed", "New connections, resumed handshake", NEW_METHOD, (("cpu", "CPU (us)"), ("rate", "a second of one core"))),
    Section("idle", "Memory of an idle connection", IDLE_METHOD, (("bytes", "bytes"),)),
)


@dataclass(frozen=True)
class Facts:
    """What the figures depend on."""

    title: str
    machine: Mapping[str, object]
    versions: Mapping[str, str]
    left_out: Mapping[str, str]
    names: Mapping[str, str]
    """A target's title for people."""
    notes: list[str] = field(default_factory=list)


def markdown(runs: Runs, facts: Facts, plan: Plan) -> str:
    """The whole report."""
    lines = [f"# {facts.title}", "", ", ".join(f"{key}: {value}" for key, value in facts.machine.items()) + ".", ""]
    lines += [", ".join(f"{facts.names.get(key, key)} {value}" for key, value in facts.versions.items()) + ".", ""]
    lines += [METHOD, ""]
    lines += [f"{note}\n" for note in facts.notes]
    if facts.left_out:
        lines += ["Left out:", "", *(f"- {name}: {why}" for name, why in facts.left_out.items()), ""]
    lines += ["## The bars", "", *_bars(runs), "", *_where(runs, facts)]
    for workload in (*plan.workloads, *plan.sweeps):
        lines += _rates(runs, facts, workload.name, workload.title, workload)
    for name, title in _others(runs, plan):
        lines += _rates(runs, facts, name, title, None)
    for section in SECTIONS:
        lines += _figures(runs, facts, section)
    return "\n".join(lines).rstrip() + "\n"


def _bars(runs: Runs) -> list[str]:
    titles = [title for title, _, _ in COLUMNS]
    lines = ["| at least | " + " | ".join(titles) + " |", "|---" * (1 + len(titles)) + "|"]
    for title, cells in (*bars.rates(runs), *bars.rates(runs, bars.AIMS)):
        lines.append(f"| {title} | " + " | ".join(_cell(cell) for cell in cells) + " |")
    lines += ["", "| at most | asked | found | |", "|---|---|---|---|"]
    for bar in bars.others(runs):
        lines.append(f"| {bar.title} | {_number(bar.asked)} | {_number(bar.found)} | {bar.verdict} |")
    return lines


def _where(runs: Runs, facts: Facts) -> list[str]:
    """What a small request costs, in parts: the product's less its floor's is what policy costs."""
    rows = []
    for version, version_name in VERSIONS.items():
        for ours, theirs in (("qproxy", "floor"), ("qproxy-portable", "floor-portable")):
            found = [runs.median("get-1k", version, target, figure) for target in (ours, theirs) for figure in ("cpu", "system")]
            if None not in found:
                cpu, system, floor_cpu, floor_system = (value or 0.0 for value in found)
                plumbing = floor_cpu - floor_system
                parts = (cpu, system, plumbing, cpu - system - plumbing)
                rows.append(f"| {version_name} | {facts.names.get(ours, ours)} | " + " | ".join(f"{part:.1f}" for part in parts) + " |")
    if not rows:
        return []
    head = "| version | server | all | kernel | engine and plumbing | policy |"
    return ["## Where the microseconds of a small request go", "", WHERE_METHOD, "", head, "|---" * 6 + "|", *rows, ""]


def _cell(bar: Bar | None) -> str:
    if bar is None:
        return ""
    return f"{bar.asked:.2f}: {_number(bar.found)} {bar.verdict}" if bar.found is not None else f"{bar.asked:.2f}: {bar.verdict}"


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


def _others(runs: Runs, plan: Plan) -> Iterable[tuple[str, str]]:
    for number in plan.sites:
        yield f"sites-{number}", f"GET of 1 KiB with {number:,} sites"
    if "access-log" in runs.workloads():
        yield "access-log", "GET of 1 KiB with an access log"


def _rates(runs: Runs, facts: Facts, name: str, title: str, workload: Workload | None) -> list[str]:
    """A section with a table for each version: rates, and for bodies of 100 KiB and more bytes a second."""
    if name not in runs.workloads():
        return []
    lines = [f"## {title}", ""]
    large = workload is not None and workload.large
    for version, version_name in VERSIONS.items():
        targets = runs.targets(name, version)
        if not targets:
            continue
        at_once = f", {workload.connections} connections" if workload else ""
        at_once += f" with {workload.streams} streams each" if workload and version != "h1" else ""
        lines += [f"### {version_name}{at_once}", ""]
        lines += [
            f"| server | {'MiB/s' if large else 'requests/s'} | spread | CPU (us) | of it kernel | core | load's core | qproxy over it |",
            "|---" * 8 + "|",
        ]
        scale = workload.per_request / 2**20 if large and workload else 1.0
        for target in targets:
            rate = runs.median(name, version, target)
            cells = [facts.names.get(target, target), f"{rate * scale:,.0f}" if rate is not None else _failed(runs, name, version, target)]
            cells += [
                _share(runs.spread(name, version, target)),
                *(_number(runs.median(name, version, target, figure)) for figure in ("cpu", "system")),
            ]
            cells += [_share(runs.median(name, version, target, figure)) for figure in ("busy", "load_busy")]
            cells.append("" if target == "qproxy" else _number(runs.ratio(name, version, "qproxy", target)))
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
    return lines


def _figures(runs: Runs, facts: Facts, section: Section) -> list[str]:
    """One table: servers of all versions by some figures."""
    if section.name not in runs.workloads():
        return []
    heads = " | ".join(head for _, head in section.columns)
    lines = [f"## {section.title}", "", section.method, "", f"| version | server | {heads} |", "|---" * (2 + len(section.columns)) + "|"]
    for version, version_name in VERSIONS.items():
        for target in runs.targets(section.name, version):
            cells = [_number(runs.median(section.name, version, target, figure)) for figure, _ in section.columns]
            if runs.median(section.name, version, target, section.columns[0][0]) is None:
                cells[0] = _failed(runs, section.name, version, target)
            lines.append(f"| {version_name} | {facts.names.get(target, target)} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def _failed(runs: Runs, name: str, version: str, target: str) -> str:
    told = list(dict.fromkeys(runs.failures(name, version, target)))
    return "failed: " + "; ".join(told)[:200] if told else "-"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"
