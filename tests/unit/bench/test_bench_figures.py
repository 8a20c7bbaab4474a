"""Medians, spread and ratios within a round: only good runs count, and only rounds that both servers have."""

import pytest

from bench.figures import Run, Runs, quantile


def runs(*rates, target="ours", first=0, **figures):
    return [Run("get-1k", "h2", target, first + number, {"rate": rate, **figures}) for number, rate in enumerate(rates)]


def test_a_median_leaves_out_failed_runs():
    found = Runs([*runs(10, 30, 20), *runs(1000, first=3, failed=2.0), Run("get-1k", "h2", "ours", 4, error="it died")])
    assert found.median("get-1k", "h2", "ours") == 20
    assert found.spread("get-1k", "h2", "ours") == 1.0
    assert found.failures("get-1k", "h2", "ours") == ["2 answers were wrong or missing", "it died"]


def test_other_workloads_versions_and_targets_do_not_mix():
    found = Runs(
        [*runs(10), Run("get-1m", "h2", "ours", 0, {"rate": 1}), Run("get-1k", "h3", "ours", 0, {"rate": 2}), *runs(3, target="x")]
    )
    assert found.median("get-1k", "h2", "ours") == 10
    assert found.workloads() == ["get-1k", "get-1m"]
    assert found.targets("get-1k", "h2") == ["ours", "x"]


def test_a_ratio_is_taken_within_rounds_and_not_of_medians():
    found = Runs([*runs(10, 100, 40), *runs(20, 50, 40, target="theirs")])
    assert found.ratio("get-1k", "h2", "ours", "theirs") == 1.0  # of 0.5, 2.0 and 1.0; the medians' would be 40 / 40 by chance
    found = Runs([*runs(10, 20), *runs(5, target="theirs", first=1), *runs(1, target="theirs", first=7)])
    assert found.ratio("get-1k", "h2", "ours", "theirs") == 4.0


def test_what_was_not_measured_is_none():
    found = Runs(runs(10))
    assert found.median("get-1k", "h1", "ours") is None
    assert found.spread("get-1k", "h2", "ours") is None
    assert found.ratio("get-1k", "h2", "ours", "theirs") is None


def test_a_dump_is_loaded_as_it_was():
    found = Runs([*runs(1.5, 2.5), Run("get-1k", "h2", "ours", 2, error="why")])
    assert Runs.load(found.dump()).runs == found.runs


@pytest.mark.parametrize(("share", "expected"), [(0.5, 50), (0.9, 90), (0.99, 99), (0.999, 100), (1.0, 100), (0.001, 1)])
def test_a_quantile_is_of_the_nearest_rank(share, expected):
    assert quantile(list(range(1, 101)), share) == expected


def test_nothing_has_no_quantile():
    with pytest.raises(ValueError, match="no values"):
        quantile([], 0.5)
