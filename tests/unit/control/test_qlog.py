"""Traces in a folder: of whom, what bounds them, and that a disk which fails costs traces only."""

import errno
import os
import stat
import threading
from pathlib import Path

import pytest

from proxy.control import qlog
from proxy.control.qlog import TraceSettings, Tracing
from proxy.observe import Metrics, NullLog
from proxy.policy.access import Networks

PEER = ("192.0.2.7", 4000)
CID = bytes(range(8))


class Log(NullLog):
    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warning(self, event: str, **details: object) -> None:
        self.warnings.append(f"{event}: {details['problem']}")


class Rig:
    def __init__(self, folder: Path, *, share: float = 1.0, clients: tuple[str, ...] = (), size: int = 1000, files: int = 100) -> None:
        self.folder = folder
        self.metrics = Metrics()
        self.log = Log()
        self.chances = [0.5]
        settings = TraceSettings(folder, share, Networks(clients), size, files)
        self.tracing = Tracing(settings, self.metrics, self.log, chance=lambda: self.chances[-1])

    def written(self) -> list[bytes]:
        """Everything, once the thread has written it."""
        self.tracing.close()
        return [file.read_bytes() for file in sorted(self.folder.glob("*.sqlog"))]

    def dropped(self) -> dict[str, float]:
        for show in self.metrics.before_read:
            show()
        return {labels[0]: cell.value for labels, cell in self.tracing._dropped.cells.items()}


@pytest.mark.parametrize(
    ("choice", "chance", "peer", "traced"),
    [
        ({"share": 0.1, "clients": ()}, 0.09, "192.0.2.7", True),
        ({"share": 0.1, "clients": ()}, 0.1, "192.0.2.7", False),
        ({"share": 1.0, "clients": ()}, 0.999, "192.0.2.7", True),
        ({"share": 0.0, "clients": ("192.0.2.0/24",)}, 0.0, "192.0.2.7", True),
        ({"share": 0.0, "clients": ("192.0.2.0/24",)}, 0.0, "192.0.3.7", False),
        ({"share": 0.1, "clients": ("2001:db8::/32",)}, 0.5, "2001:db8::1", True),
    ],
)
def test_who_is_traced(tmp_path, choice, chance, peer, traced) -> None:
    rig = Rig(tmp_path, **choice)
    rig.chances.append(chance)
    assert (rig.tracing((peer, 1), CID) is not None) is traced
    assert rig.written() == []


def test_each_trace_has_its_file_which_nobody_else_reads(tmp_path) -> None:
    rig = Rig(tmp_path / "made" / "here")
    first, second = rig.tracing(PEER, CID), rig.tracing(PEER, CID)
    assert first is not None
    assert second is not None
    assert first.write(b"one ")
    assert second.write(b"other")
    assert first.write(b"more")
    first.close()
    assert rig.written() == [b"one more", b"other"]
    names = sorted(file.name for file in rig.folder.iterdir())
    assert all(name.endswith(f"-{CID.hex()}.sqlog") for name in names)
    assert {stat.S_IMODE(file.stat().st_mode) for file in rig.folder.iterdir()} == {0o600}
    assert stat.S_IMODE(rig.folder.stat().st_mode) == 0o700
    assert rig.dropped() == {}


def test_a_trace_ends_where_its_file_is_full(tmp_path) -> None:
    rig = Rig(tmp_path, size=10)
    trace = rig.tracing(PEER, CID)
    assert trace is not None
    assert trace.write(b"123456")
    assert not trace.write(b"78901")
    assert not trace.write(b"7")
    assert rig.written() == [b"123456"]
    assert rig.dropped() == {"size": 2}


def test_the_oldest_goes_for_a_new_one_and_comes_not_back(tmp_path) -> None:
    (tmp_path / "00000000T000000-000001-aa.sqlog").write_bytes(b"of an earlier life")
    (tmp_path / "notes.txt").write_bytes(b"nobody's business")
    rig = Rig(tmp_path, files=2)
    traces = [rig.tracing(PEER, bytes([number])) for number in range(3)]
    for number, trace in enumerate(traces):
        assert trace is not None
        assert trace.write(b"%d" % number)
    assert traces[0] is not None
    assert traces[0].write(b"late")
    assert rig.written() == [b"1", b"2"]
    assert (tmp_path / "notes.txt").exists()
    assert rig.dropped() == {"files": 1}


def test_a_slow_disk_costs_traces_and_never_waits(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qlog, "MAX_PENDING", 10)
    slow = threading.Event()
    write = os.write
    monkeypatch.setattr(qlog.os, "write", lambda *values: slow.wait(10) and write(*values))
    rig = Rig(tmp_path)
    trace, other = rig.tracing(PEER, CID), rig.tracing(PEER, CID)
    assert trace is not None
    assert other is not None
    assert trace.write(b"123456")
    assert trace.write(b"78901")  # lost: more than may wait
    assert other.write(b"lost as well")
    slow.set()
    rig.tracing._writer._queue.put(None)
    rig.tracing._writer._thread.join(5)
    assert rig.written() == [b"123456"]
    assert rig.dropped() == {"queue": 2}


def test_a_disk_that_fails_is_told_once_until_it_is_well(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    rig = Rig(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(qlog.os, "write", full)
        for _ in range(3):
            trace = rig.tracing(PEER, CID)
            assert trace is not None
            assert trace.write(b"x")
        rig.tracing.close()
    assert rig.dropped() == {"disk": 3}
    assert rig.log.warnings == ["a trace could not be written: No space left on device"]


def test_a_folder_that_can_t_be_made_is_an_error(tmp_path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match="Not a directory"):
        Rig(tmp_path / "file" / "folder")
