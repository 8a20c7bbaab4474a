"""Downloads over emulated paths as pictures, SVG and PNG: goodput, and how long datagrams waited in the queue."""

import statistics
from collections.abc import Sequence
from pathlib import Path as File

import matplotlib as mpl
from matplotlib import pyplot as plt

from bench.paths.measure import Sent
from bench.paths.told import share
from bench.plots import FORMATS

COLORS = ("#1f6fb4", "#5b9bd0", "#9fc6e4", "#7a7a7a", "#b5b5b5")


def draw(runs: Sequence[Sent], folder: File) -> list[File]:
    """A picture of goodput and one of waiting; gives the files."""
    mpl.use("agg")
    mpl.rcParams.update({"svg.hashsalt": "qproxy", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    files = []
    for name, title, unit in (("paths", "Goodput", "share of the rate"), ("paths-queue", "Waiting in the queue, p95", "ms")):
        figure = _panels(runs, name, title, unit)
        files += [folder / f"{name}.{form}" for form in FORMATS]
        for form in FORMATS:
            figure.savefig(folder / f"{name}.{form}", dpi=130, metadata={"Date": None} if form == "svg" else None)
        plt.close(figure)
    return files


def _panels(runs: Sequence[Sent], name: str, title: str, unit: str) -> plt.Figure:
    """A panel for each rate and round trip and for each queue; in it, bars by the share that is lost."""
    lines = list(dict.fromkeys((run.path.megabits, run.path.round_trip) for run in runs))
    queues = sorted({run.path.queue for run in runs})
    controllers = list(dict.fromkeys(run.controller for run in runs))
    figure, panels = plt.subplots(len(lines), len(queues), figsize=(4.6 * len(queues), 2.3 * len(lines)), squeeze=False)
    for row, (megabits, round_trip) in zip(panels, lines, strict=True):
        for panel, queue in zip(row, queues, strict=True):
            here = [run for run in runs if (run.path.megabits, run.path.round_trip, run.path.queue) == (megabits, round_trip, queue)]
            losses = sorted({run.path.loss for run in here})
            for at, controller in enumerate(controllers):
                heights = [_height([run for run in here if (run.path.loss, run.controller) == (loss, controller)], name) for loss in losses]
                places = [number + (at - (len(controllers) - 1) / 2) * 0.16 for number in range(len(losses))]
                panel.bar(places, heights, 0.15, color=COLORS[at % len(COLORS)], label=str(controller))
            panel.set_xticks(range(len(losses)), [f"{loss:.0%} lost" for loss in losses])
            panel.set_title(f"{megabits} Mbit/s, {round_trip * 1000:.0f} ms, queue of {queue:g} BDP", fontsize=9)
            if name == "paths":
                panel.set_ylim(0, 1)
        row[0].set_ylabel(unit)
    figure.suptitle(title)
    figure.tight_layout(rect=(0, 0.03, 1, 1))
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="lower center", ncols=len(controllers), fontsize=8, frameon=False)
    return figure


def _height(runs: Sequence[Sent], name: str) -> float:
    if not runs:
        return 0.0
    return (share(runs) or 0.0) if name == "paths" else statistics.median(run.relay["queue_p95"] * 1000 for run in runs)
