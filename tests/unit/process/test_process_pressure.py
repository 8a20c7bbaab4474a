"""What a worker reads of itself, and what comes of it."""

import os
from dataclasses import replace
from typing import Any

import pytest

from proxy.listen.limits import AcceptLimits
from proxy.observe import Metrics
from proxy.policy.access import Networks
from proxy.process import pressure as pressure_module
from proxy.process.pressure import ASK_EVERY, STAYS, TRIM_EVERY, Pressure, give_memory_back, group_memory, resident_memory
from proxy.snapshot import Overload
from tests.unit.exchange_world import World

MIB = 1024 * 1024


class Made:
    """A pressure over a worker that has the memory that it is told to have."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, group: int = 0, **settings: Any) -> None:
        self.memory = 0
        self.trims = 0
        monkeypatch.setattr(pressure_module, "resident_memory", lambda: lambda: self.memory)
        monkeypatch.setattr(pressure_module, "give_memory_back", self._trim)
        self.world = World()
        self.services = self.world.services
        self.configure(**settings)
        self.limits = AcceptLimits(self.services.snapshot.limits, Networks([]), Metrics())
        self.pressure = Pressure(self.services, self.limits, group)
        self.now = 1000.0

    def _trim(self) -> None:
        self.trims += 1

    def configure(self, **settings: Any) -> None:
        self.services.snapshot = replace(self.services.snapshot, overload=Overload(**settings))

    def look(self, times: int = 1, lag: float = 0.0) -> None:
        for _ in range(times):
            self.now += 0.1
            self.pressure.look(lag, self.now)


def test_without_limits_nothing_is_read_or_shown(monkeypatch):
    made = Made(monkeypatch, memory=None)
    made.memory = 1 << 40
    made.look(50, lag=5.0)
    assert made.services.shedding is None
    assert made.services.meters.load.cells == {}


def test_a_late_loop_has_requests_turned_away_until_it_is_in_time(monkeypatch):
    made = Made(monkeypatch, lag=0.2)
    made.look(5, lag=0.3)
    assert made.services.shedding is made.pressure.load
    made.look(60)
    assert made.services.shedding is None
    assert made.limits.gate.is_open


def test_requests_in_progress_count_over_all_versions(monkeypatch):
    made = Made(monkeypatch, exchanges=10)
    for version in ("HTTP/1.1", "HTTP/2", "HTTP/3"):
        made.services.meters.streams_open.cell(version).value = 4
    made.look()
    assert made.services.meters.load.cell("exchanges").value == 1.2
    assert made.services.shedding is not None


def test_at_the_limit_of_memory_nobody_comes_in_and_some_is_given_back(monkeypatch):
    made = Made(monkeypatch, memory=100 * MIB)
    made.memory = 99 * MIB
    made.look(20)
    assert made.limits.gate.is_open
    made.memory = 100 * MIB
    made.look(int(TRIM_EVERY / 0.1) + 5)
    assert (made.limits.gate.is_open, made.trims) == (False, 2)
    assert made.limits.admit("192.0.2.1", made.now) == "memory"
    made.memory = 50 * MIB
    made.look()
    assert made.limits.gate.is_open
    assert made.limits.admit("192.0.2.1", made.now) is None
    made.look(60)
    assert made.services.shedding is None


def test_the_control_groups_memory_is_the_limit_unless_one_is_set(monkeypatch):
    made = Made(monkeypatch, group=100 * MIB, memory=None)
    made.memory = 60 * MIB
    made.look()
    assert made.services.meters.load.cell("memory").value == 0.6
    made.configure(memory=200 * MIB)
    made.pressure.replace(made.services.snapshot, 100 * MIB)
    made.look()
    assert made.services.meters.load.cell("memory").value == 0.3
    made.configure(memory=0)
    made.pressure.replace(made.services.snapshot, 100 * MIB)
    made.look()
    assert made.services.meters.load.cells == {}


def test_resident_memory_grows_with_what_is_kept_and_can_be_given_back():
    read = resident_memory()
    before = read()
    assert MIB < before < 1 << 40
    kept = os.urandom(1) * (64 * MIB)
    assert 60 * MIB < read() - before < 80 * MIB
    del kept
    give_memory_back()
    assert read() - before < 20 * MIB


@pytest.mark.parametrize(
    ("own", "files", "limit"),
    [
        ("0::/\n", {"memory.max": "1000"}, 1000),
        ("0::/\n", {"memory.max": "max"}, 0),
        ("0::/a/b\n", {"a/b/memory.max": "max", "a/memory.max": "500", "memory.max": "800"}, 500),
        ("0::/a/b\n", {"a/b/memory.max": "300", "a/memory.max": "500"}, 300),
        ("4:memory:/x\n1:cpu:/\n", {"memory/x/memory.limit_in_bytes": "700"}, 700),
        ("4:cpu,memory:/\n", {"memory/memory.limit_in_bytes": "9223372036854771712"}, 0),
        ("0::/gone\n", {}, 0),
        ("", {}, 0),
    ],
)
def test_the_memory_of_the_control_group(tmp_path, own, files, limit):
    root = tmp_path / "cgroup"
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    (tmp_path / "own").write_text(own)
    assert group_memory(root, tmp_path / "own") == limit


def test_a_system_without_control_groups_has_no_limit(tmp_path):
    assert group_memory(tmp_path, tmp_path / "none") == 0


def test_a_worker_whose_memory_stays_at_its_limit_asks_to_be_replaced(monkeypatch):
    made = Made(monkeypatch, memory=100 * MIB)
    asked = []
    made.pressure.memory_stays = lambda: asked.append(round(made.now - 1000, 1))
    made.memory = 100 * MIB
    made.look(int(STAYS / 0.1) - 1)
    assert asked == []
    made.memory = 90 * MIB
    made.look()  # a moment below
    made.memory = 100 * MIB
    made.look(int(STAYS / 0.1))
    assert asked == []
    made.look(int(2 * ASK_EVERY / 0.1) + 5)
    assert [round(when) for when in asked] == [60, 65, 70]
    made.services.draining = True
    made.look(200)
    assert len(asked) == 3, "it is on its way already"


def test_another_number_of_workers_is_another_share_of_the_group_s_memory(monkeypatch):
    made = Made(monkeypatch, group=100 * MIB, memory=None)
    made.memory = 60 * MIB
    made.look()
    assert made.services.meters.load.cell("memory").value == 0.6
    made.pressure.replace(made.services.snapshot, 50 * MIB)
    made.look()
    assert made.services.meters.load.cell("memory").value == 1.2
