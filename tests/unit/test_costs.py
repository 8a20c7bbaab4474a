"""The request path has a budget of calls and of memory: a change that makes it longer or fatter is told here, without a clock.

The figures are the same on every machine and in every run; they are counted in a process of their own, where no other test and no
coverage is in the way. A change that lowers them lowers the budget with it.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

pytestmark = pytest.mark.replaces  # by what counts the calls

ROOT = Path(__file__).parents[2]


class Budget(NamedTuple):
    """What one request through a part may cost."""

    python: float
    """Calls of Python functions."""
    c: float
    """Calls of C functions."""
    peak: float
    """Bytes at once."""
    kept: float = 0.5
    """Memory blocks that stay behind without a collection: what leaks, or needs the collector, leaves one at least."""


BUDGETS = {
    "h1": Budget(15, 27, 1750),
    "h1-changing": Budget(29, 60, 3300),
    "h2": Budget(64, 154, 4200),
    "ngh2": Budget(17, 24, 2500),
    "h3": Budget(28, 68, 5500),
    "upstream": Budget(17, 30, 2000),
    "validator": Budget(9, 49, 3200),
    "policy": Budget(60, 53, 1000),
    "whole-h1": Budget(85, 86, 1100),
    "route-10": Budget(3, 6, 350),
    "route-1000": Budget(3, 6, 350),
    "route-10000": Budget(3, 6, 350),
    "ring-3": Budget(3, 6, 650),
    "ring-1000": Budget(3, 6, 650),
    "candidate-3": Budget(6, 7, 900),
    "candidate-1000": Budget(6, 7, 900),
    "site": Budget(580, 470, 18_000, kept=8),  # no request, but the reading of a site's file, of which a digest is kept
}
"""The parts of ``bench/micro/parts.py``, their call included. A little above what they take now; calls on CPython 3.11, of which later
ones make fewer."""

HELD = {"tcp": 2500, "h1": 2800, "h2": 19_500}
"""Bytes that Python holds for an idle connection: its object on the listener side, and its engine after a request."""


@pytest.fixture(scope="module")
def counted() -> dict[str, dict[str, Any]]:
    done = subprocess.run([sys.executable, "-m", "bench.micro.calls", "--json"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def costs(counted) -> dict[str, dict[str, float]]:
    return counted["request"]


def test_every_part_has_a_budget(costs) -> None:
    assert set(costs) <= set(BUDGETS)


@pytest.mark.parametrize("part", BUDGETS)
def test_a_part_keeps_to_its_budget(part, costs) -> None:
    if part not in costs:
        pytest.skip("an engine that is not installed")
    cost, budget = costs[part], BUDGETS[part]
    over = [
        f"{found:.1f} {what} where {allowed} are allowed"
        for what, found, allowed in (
            ("Python calls", cost["python"], budget.python),
            ("C calls", cost["c"], budget.c),
            ("bytes at once", cost["peak"], budget.peak),
            ("memory blocks kept", cost["kept"], budget.kept),
        )
        if found > allowed
    ]
    assert not over, f"a request through {part} costs {', '.join(over)}; `python -m bench.micro.calls {part}` shows each call"


def test_a_route_costs_the_same_among_ten_sites_and_among_ten_thousand(costs) -> None:
    assert costs["route-10"] == costs["route-10000"]


@pytest.mark.parametrize("kind", HELD)
def test_an_idle_connection_keeps_to_its_budget(kind, counted) -> None:
    assert counted["connection"][kind] <= HELD[kind], "`python -m bench.micro.idle` measures the whole of it"
