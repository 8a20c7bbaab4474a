"""Connections that each balancer broke, over time, as a picture: SVG and PNG."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib import pyplot as plt

from bench.fleet.plan import Plan
from bench.fleet.run import BUCKET, Outcome
from bench.plots import FORMATS, OURS


def draw(plan: Plan, outcomes: Sequence[Outcome], folder: Path) -> None:
    """One line for each balancer; where two are alike, the later one is dashed on the earlier."""
    mpl.use("agg")
    mpl.rcParams.update({"svg.hashsalt": "qproxy", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    figure, panel = plt.subplots(figsize=(7.6, 4.2))
    for at, outcome in enumerate(outcomes):
        shares = [broken / plan.connections * 100 for broken in outcome.curve]
        ours = outcome.ours
        color, width, style = (OURS, 2.2, "-" if at % 2 else "--") if ours else (f"C{at + 1}", 1.2, "-")
        panel.plot([number * BUCKET for number in range(len(shares))], shares, color=color, lw=width, ls=style, label=outcome.name)
    for at, what in ((plan.rotation, "next key"), (plan.loss, "tables lost")):
        panel.axvline(at, color="#b5b5b5", lw=0.8, zorder=0)
        panel.annotate(what, (at, 1), xycoords=("data", "axes fraction"), xytext=(3, -9), textcoords="offset points", color="#7a7a7a")
    panel.set_xlabel("seconds")
    panel.set_ylabel("connections broken so far, % of all")
    panel.set_ylim(bottom=-1)
    panel.legend(fontsize=8, frameon=False)
    figure.tight_layout()
    for form in FORMATS:
        figure.savefig(folder / f"fleet.{form}", dpi=130, metadata={"Date": None} if form == "svg" else None)
    plt.close(figure)
