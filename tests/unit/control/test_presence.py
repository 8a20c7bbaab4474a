"""Who is alone with a state folder, and since when: several of them in one process, as the locks are of open files."""

import fcntl
from math import inf
from pathlib import Path

import pytest

from proxy.control.presence import Presence


class Clock:
    """Seconds since the epoch, as the test wants them."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_who_is_alone_is_so_since_it_came(tmp_path: Path, clock: Clock) -> None:
    presence = Presence(tmp_path, clock)
    clock.now += 50
    assert presence.alone_since() == 100.0
    assert Presence(tmp_path / "other", clock).alone_since() == inf  # there is no such folder


def test_while_another_one_is_there_nobody_is_alone(tmp_path: Path, clock: Clock) -> None:
    one = Presence(tmp_path, clock)
    two = Presence(tmp_path, clock)
    assert (one.alone_since(), two.alone_since()) == (inf, inf)
    clock.now = 200.0
    one.close()
    clock.now = 210.0
    assert two.alone_since() == 210.0  # when it was seen first
    assert one.alone_since() == inf


def test_one_that_came_and_went_unseen_is_noticed(tmp_path: Path, clock: Clock) -> None:
    one = Presence(tmp_path, clock)
    clock.now = 200.0
    Presence(tmp_path, clock).close()
    clock.now = 300.0
    assert one.alone_since() == 300.0
    clock.now = 400.0
    assert one.alone_since() == 300.0


def test_who_comes_after_another_one_is_alone_since_then(tmp_path: Path, clock: Clock) -> None:
    Presence(tmp_path, clock).close()
    clock.now = 200.0
    assert Presence(tmp_path, clock).alone_since() == 200.0


def test_where_it_cant_be_known_nobody_is_alone(tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "processes").mkdir()
    assert Presence(tmp_path, clock).alone_since() == inf
    (tmp_path / "processes").rmdir()
    monkeypatch.delattr(fcntl, "F_OFD_SETLK")
    assert Presence(tmp_path, clock).alone_since() == inf
    assert not (tmp_path / "processes").exists()
