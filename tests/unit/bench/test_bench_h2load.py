"""What h2load prints, read: rates, and every answer that was wrong, missing or of a wrong size."""

import pytest

from bench.load.h2load import Load, LoadError, latencies, parse

LOAD = Load("h2", "/1k", 1024, connections=2, streams=5, seconds=3)
TEXT = """
finished in 3.00s, {rate} req/s, 1.23MB/s
requests: {good} total, {good} started, {good} done, {good} succeeded, 7 failed, {errored} errored, 0 timeout
status codes: {good} 2xx, 0 3xx, 0 4xx, {bad} 5xx
traffic: 1.10MB (1153434) total, 10.00KB (10240) headers (space savings 90.00%), 1.00MB ({bodies}) data
"""


def printed(*, rate=1000.5, good=1000, bad=0, errored=0, bodies=1024 * 1000):
    return TEXT.format(rate=rate, good=good, bad=bad, errored=errored, bodies=bodies)


def test_right_answers_give_the_rate():
    assert parse(printed(), LOAD) == {"rate": 1000.5, "failed": 0.0, "answers": 1000.0}


def test_large_answers_are_counted_by_their_bytes():
    large = Load("h3", "/1m", 2**20, connections=2, streams=5, seconds=4)
    assert parse(printed(rate=24.75, good=99, bodies=2**20 * 102), large)["rate"] == 25.5


def test_statuses_and_lost_requests_are_failures_and_its_own_count_is_not():
    assert parse(printed(bad=3, errored=4), LOAD)["failed"] == 7


@pytest.mark.parametrize(("bodies", "failed"), [(1024 * 1010, 0), (1024 * 990, 0), (1024 * 900, 100), (1024 * 1100, 100), (0, 1000)])
def test_bodies_are_of_the_right_size_but_for_what_was_under_way_at_the_edges(bodies, failed):
    assert parse(printed(bodies=bodies), LOAD)["failed"] == failed
    assert parse(printed(bodies=bodies), LOAD, sizes=False)["failed"] == 0


def test_no_answer_and_no_figures_are_errors():
    with pytest.raises(LoadError, match="no request was answered"):
        parse(printed(good=0, bad=9, bodies=0), LOAD)
    with pytest.raises(LoadError, match="could not connect to host"):
        parse("could not connect to host", LOAD)


def test_latencies_come_from_the_log(tmp_path):
    log = tmp_path / "log"
    log.write_text("".join(f"1700000000000000\t200\t{number * 1000}\n" for number in range(1, 1001)))
    assert latencies(log) == {"p50": 500.0, "p90": 900.0, "p99": 990.0, "p99.9": 999.0, "max": 1000.0}
    log.write_text("")
    with pytest.raises(LoadError, match="logged no request"):
        latencies(log)
