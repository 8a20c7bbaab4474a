"""The report of several workers, and which processes a proxy has."""

import os
import subprocess
import sys

from bench.figures import Run, Runs
from bench.servers.place import Running
from bench.workers import measure, told

FACTS = {"workers": 2, "rounds": 2}


def test_the_report_has_ratios_of_rounds_and_what_failed():
    runs = Runs(
        [
            *(Run("request", "h1", "one", number, {"cpu": cpu}) for number, cpu in enumerate((40.0, 80.0))),
            *(Run("request", "h1", "several", number, {"cpu": cpu}) for number, cpu in enumerate((44.0, 96.0))),
            Run("spread", "h2", "several", 0, {"least": 0.48, "most": 0.52, "answers": 1000, "connections": 256}),
            Run("rest", "h1", "one", 0, {"process": 50 * told.MIB, "all": 50 * told.MIB}),
            Run("rest", "h1", "several", 0, {"supervisor": 17 * told.MIB, "worker": 44 * told.MIB, "all": 105 * told.MIB}),
            Run("idle", "h3", "several", 0, {"connections": 10_000, "failed": 3, "bytes": 20 * told.KIB}),
            Run("idle", "h3", "one", 0, error="it does not start"),
        ]
    )
    lines = told.markdown(runs, FACTS).splitlines()
    rows = [line for line in lines if line.startswith("| ") and not line.startswith("| |")]
    assert rows == [
        "| HTTP/1.1 | 60 us | 70 us | 1.15 |",
        "| HTTP/2 | 256 | 1,000 | 48.0% | 52.0% |",
        "| the one process | 50.0 |",
        "| supervisor | 17.0 |",
        "| each worker | 44.0 |",
        "| all of them | 105.0 |",
        "| HTTP/3 | 10,000 | 9,997 | - | 20.0 |",
    ]
    assert lines[-1] == "- idle, HTTP/3, one: it does not start"


def test_processes_are_told_by_their_commands():
    process = subprocess.Popen([sys.executable, "-c", "input()", "proxy.process.worker_main"], stdin=subprocess.PIPE)
    try:
        assert measure.roles(Running(process, {}, [process.pid])) == [("worker", process.pid)]
        assert measure.own_memory(process.pid) > 0
    finally:
        process.communicate(b"\n")
    assert ("process", os.getpid()) in measure.roles(Running(process, {}, [os.getpid()]))
