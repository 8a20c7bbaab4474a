"""Pictures of a comparison, as SVG and PNG: rates, latencies, memory, and how rates grow with connections and streams."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
from matplotlib import pyplot as plt

from bench.figures import VERSIONS, Runs
from bench.plan import LATENCY, Plan, Workload

OURS, FLOORS, PEERS = "#1f6fb4", "#9fc6e4", "#8a8a8a"
FORMATS = ("svg", "png")
PANEL = (4.4, 3.4)
"""Inches of the panel of one version."""


@dataclass(frozen=True)
class Chart:
    """Bars of one figure."""

    name: str
    """Of the workload and of the file."""
    title: str
    unit: str
    figure: str = "rate"
    scale: float = 1.0


def draw(runs: Runs, names: Mapping[str, str], plan: Plan, folder: Path) -> list[Path]:
    """Draw what was measured into *folder*; gives the files."""
    mpl.use("agg")
    mpl.rcParams.update({"svg.hashsalt": "qproxy", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    files: list[Path] = []
    for chart in _charts(plan):
        if chart.name in runs.workloads():
            files += _save(_bars(runs, names, chart), folder, chart.name)
    for prefix, label in (("connections", "connections"), ("streams", "streams on each of 32 connections")):
        swept = [workload for workload in plan.sweeps if workload.name.startswith(prefix) and workload.name in runs.workloads()]
        if swept:
            files += _save(_curves(runs, names, swept, label), folder, prefix)
    return files


def _charts(plan: Plan) -> Iterator[Chart]:
    for workload in plan.workloads:
        if workload.large:
            yield Chart(workload.name, workload.title, "MiB/s", scale=workload.per_request / 2**20)
        else:
            yield Chart(workload.name, workload.title, "requests/s")
    yield Chart("latency", f"p99: {LATENCY.title.lower()}", "ms", "p99")
    yield Chart("idle", "Memory of an idle connection", "KiB", "bytes", 1 / 1024)
    yield Chart("new", "New connections a second of one core, full handshake", "connections/s")
    yield Chart("resumed", "New connections a second of one core, resumed", "connections/s")


def _bars(runs: Runs, names: Mapping[str, str], chart: Chart) -> plt.Figure:
    """One panel for each version, a bar for each server, a whisker from the least to the most of the rounds."""
    versions = [version for version in VERSIONS if runs.targets(chart.name, version)]
    figure, panels = plt.subplots(1, len(versions), figsize=(PANEL[0] * len(versions), PANEL[1]), squeeze=False)
    for panel, version in zip(panels[0], versions, strict=True):
        values = {}
        for target in runs.targets(chart.name, version):
            found = sorted(value * chart.scale for value in runs.values(chart.name, version, target, chart.figure).values())
            if found:
                values[target] = (found[0], (runs.median(chart.name, version, target, chart.figure) or 0.0) * chart.scale, found[-1])
        whiskers = [[middle - low for low, middle, _ in values.values()], [high - middle for _, middle, high in values.values()]]
        middles = [middle for _, middle, _ in values.values()]
        colors = [_color(target) for target in values]
        panel.barh(range(len(values)), middles, color=colors, xerr=whiskers, error_kw={"lw": 0.8, "capsize": 2})
        panel.set_yticks(range(len(values)), [names.get(target, target) for target in values])
        panel.invert_yaxis()
        panel.set_title(VERSIONS[version], fontsize=10)
        panel.set_xlabel(chart.unit)
    figure.suptitle(chart.title)
    figure.tight_layout()
    return figure


def _curves(runs: Runs, names: Mapping[str, str], swept: list[Workload], label: str) -> plt.Figure:
    versions = [version for version in VERSIONS if any(runs.targets(workload.name, version) for workload in swept)]
    figure, panels = plt.subplots(1, len(versions), figsize=(PANEL[0] * len(versions), PANEL[1]), squeeze=False)
    for panel, version in zip(panels[0], versions, strict=True):
        for target in dict.fromkeys(target for workload in swept for target in runs.targets(workload.name, version)):
            points = [(int(re.findall(r"\d+", workload.name)[0]), runs.median(workload.name, version, target)) for workload in swept]
            good = [(place, rate) for place, rate in points if rate is not None]
            if good:
                width = 2.2 if _color(target) == OURS else 1.0
                color = f"C{list(names).index(target) % 10}" if target in names else None
                panel.plot(*zip(*good, strict=True), marker="o", ms=3, lw=width, color=color, label=names.get(target, target))
        panel.set_xscale("log")
        panel.set_title(VERSIONS[version], fontsize=10)
        panel.set_xlabel(label)
        panel.set_ylim(bottom=0)
    panels[0][0].set_ylabel("requests/s")
    panels[0][-1].legend(fontsize=7, frameon=False)
    figure.tight_layout()
    return figure


def _color(target: str) -> str:
    if target.startswith("qproxy"):
        return OURS
    return FLOORS if target.startswith(("floor", "bare")) else PEERS


def _save(figure: plt.Figure, folder: Path, name: str) -> list[Path]:
    files = [folder / f"{name}.{form}" for form in FORMATS]
    for file in files:
        figure.savefig(file, dpi=130, metadata={"Date": None} if file.suffix == ".svg" else None)
    plt.close(figure)
    return files
