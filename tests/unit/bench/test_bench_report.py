"""The report: the bars, a table for each workload and version, and every failure in words."""

from bench.figures import Run, Runs
from bench.plan import GET_1K, GET_1M, Plan
from bench.report import Facts, markdown

PLAN = Plan((GET_1K, GET_1M), 2, 1, 1, 0)


def report(*runs, left_out=None):
    names = {"qproxy": "qproxy (fast)", "nginx": "nginx"}
    return markdown(Runs(runs), Facts("Benchmark", {"cores": 2}, {"nginx": "1.2"}, left_out or {}, names), PLAN)


def run(workload, version, target, rate, number=0, **figures):
    return Run(workload, version, target, number, {"rate": rate, **figures})


def test_rates_stand_beside_what_they_are_compared_with():
    text = report(
        run("get-1k", "h2", "qproxy", 5000.0, cpu=190.0, system=90.0, busy=0.95, load_busy=0.5), run("get-1k", "h2", "nginx", 10_000.0)
    )
    assert "| qproxy (fast) | 5,000 | - | 190 | 90.00 | 95% | 50% |  |" in text
    assert "| nginx | 10,000 | - | - | - | - | - | 0.50 |" in text
    assert "0.60: 0.50 **miss**" in text


def test_large_bodies_are_told_in_bytes_a_second():
    text = report(run("get-1m", "h3", "qproxy", 200.0), run("get-1m", "h3", "qproxy", 220.0, 1))
    assert "| server | MiB/s | spread |" in text
    assert "| qproxy (fast) | 210 | 10% |" in text


def test_a_request_is_told_in_parts():
    ours, floor = run("get-1k", "h3", "qproxy", 1.0, cpu=60.0, system=20.0), run("get-1k", "h3", "floor", 1.0, cpu=35.0, system=15.0)
    assert "| HTTP/3 | qproxy (fast) | 60.0 | 20.0 | 20.0 | 20.0 |" in report(ours, floor)
    assert "microseconds of a small request" not in report(ours)


def test_what_failed_or_is_missing_is_said():
    text = report(Run("get-1k", "h1", "nginx", 0, error="h2load did not end"), left_out={"Caddy: HTTP/3": "not there"})
    assert "| nginx | failed: h2load did not end |" in text
    assert "- Caddy: HTTP/3: not there" in text


def test_what_was_not_measured_has_no_section():
    text = report(run("get-1k", "h2", "qproxy", 1.0))
    assert "GET of 1 MiB" not in text
    assert "Latency" not in text
