"""The bars: the ratio of each cell, passed or missed, and what was not measured is said so."""

from bench import bars
from bench.bars import Bar
from bench.figures import Run, Runs


def measured(version, workload="get-1k", **rates):
    return [Run(workload, version, target.replace("_", "-"), 0, {"rate": rate}) for target, rate in rates.items()]


def row(runs, title, rows=bars.ROWS):
    return dict(bars.rates(runs, rows))[title]


def test_each_cell_is_the_ratio_of_its_column():
    runs = Runs([*measured("h1", qproxy=12, envoy=10), *measured("h2", qproxy=13, envoy=10), *measured("h3", "get-1m", qproxy=5, envoy=2)])
    cells = row(runs, "against Envoy")
    assert [cell.found for cell in cells] == [1.2, 1.3, None, 2.5]
    assert [cell.passed for cell in cells] == [True, False, None, True]
    assert [cell.verdict for cell in cells] == ["pass", "**miss**", "not measured", "pass"]


def test_portable_engines_stand_against_the_portable_floor():
    runs = Runs(measured("h2", qproxy=9, qproxy_portable=3, floor=10, floor_portable=4))
    assert row(runs, "against its own floor")[1].found == 0.9
    assert row(runs, "portable engines against their floor")[1].found == 0.75


def test_an_aim_asks_only_for_some_columns():
    runs = Runs(measured("h2", qproxy=9, haproxy=10))
    assert row(runs, "ahead of HAProxy", bars.AIMS) == [
        None,
        Bar("ahead of HAProxy, H2", 1.0, 0.9),
        Bar("ahead of HAProxy, H3", 1.0, None),
        None,
    ]


def test_latency_and_memory_are_bounds_from_above():
    latency = [Run("latency-beside", "h3", target, 0, {"p99": p99}) for target, p99 in (("qproxy", 3.0), ("caddy", 2.0))]
    idle = [Run("idle", "h1", "qproxy", 0, {"bytes": 30_000.0})]
    found = {bar.title: (bar.found, bar.passed) for bar in bars.others(Runs([*latency, *idle]))}
    assert found["p99 at half of Caddy's best rate over Caddy's, HTTP/3"] == (1.5, False)
    assert found["memory of an idle connection, HTTP/1.1, qproxy (bytes)"] == (30_000, True)
    assert found["ring lookup (us)"] == (None, None)
