"""How many workers there are: by the configuration, the cores, the control group's quota, and what the system can do."""

import os
import sys

import pytest

from proxy.config.load import load
from proxy.config.model_server import MAX_WORKERS
from proxy.process import setup
from proxy.process.setup import SetupError, cpus, supervised, workers_of


@pytest.fixture
def configured(tmp_path):
    """A configuration with such *workers*."""

    def configured(workers):
        (tmp_path / "qproxy.yaml").write_text(f"server: {{workers: {workers}}}\n" if workers else "server: {}\n")
        return load(tmp_path, {})

    return configured


@pytest.fixture
def eight_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)


@pytest.mark.parametrize(
    ("file", "content", "expected"),
    [
        ("cpu.max", "max 100000", 8),
        ("cpu.max", "250000 100000", 2),
        ("cpu.max", "50000 100000", 1),
        ("cpu.max", "1600000 100000", 8),
        ("cpu.max", "nonsense", 8),
        ("cpu/cpu.cfs_quota_us", "300000", 3),
        ("cpu/cpu.cfs_quota_us", "-1", 8),
        ("nothing", "", 8),
    ],
)
def test_cores_are_those_that_the_control_group_pays_for(eight_cores, tmp_path, file, content, expected):
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu/cpu.cfs_period_us").write_text("100000\n")
    (tmp_path / file).write_text(content + "\n")
    assert cpus(tmp_path) == expected


def test_a_worker_for_each_core_is_the_default(configured, monkeypatch):
    monkeypatch.setattr(setup, "cpus", lambda: 6)
    assert workers_of(configured(None)) == 6
    assert workers_of(configured("auto")) == 6
    assert workers_of(configured(3)) == 3
    monkeypatch.setattr(setup, "cpus", lambda: 200)
    assert workers_of(configured(None)) == MAX_WORKERS


@pytest.mark.parametrize(
    ("workers", "platform", "expected"),
    [
        (None, "linux", True),
        ("auto", "linux", True),
        (2, "linux", True),
        (1, "linux", False),
        (None, "darwin", False),
        (1, "darwin", False),
    ],
)
def test_workers_are_processes_of_their_own_unless_there_is_to_be_one(configured, monkeypatch, workers, platform, expected):
    monkeypatch.setattr(setup, "cpus", lambda: 1)  # one core has a supervisor, too
    monkeypatch.setattr(sys, "platform", platform)
    assert supervised(configured(workers)) is expected


def test_several_workers_where_the_system_has_no_way_to_share_a_port(configured, monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(SetupError, match=r"server.workers is 4: .* need Linux; here, expected 1 or auto"):
        supervised(configured(4))
