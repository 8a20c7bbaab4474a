"""Words for systemd are sent where it listens, and cost no time where it does not take them."""

import socket
import time

import pytest

from proxy.process import notify as notify_module
from proxy.process.notify import READY, WATCHDOG, notify


@pytest.fixture
def listener(tmp_path, monkeypatch):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield sock


def test_words_arrive(listener):
    notify(READY)
    notify(WATCHDOG)
    assert [listener.recv(100), listener.recv(100)] == [b"READY=1", b"WATCHDOG=1"]


def test_nobody_waits_for_one_who_does_not_read(listener, monkeypatch):
    """The kernel keeps ten words or so."""
    monkeypatch.setattr(notify_module, "PATIENCE", 0.01)
    began = time.monotonic()
    for _ in range(5000):
        notify(WATCHDOG)
    notify(READY)
    assert time.monotonic() - began < 10
    said = []
    while not said or said[-1]:
        try:
            said.append(listener.recv(100))
        except BlockingIOError:
            break
    assert 1 <= len(said) < 5000
    assert set(said) == {b"WATCHDOG=1"}


def test_without_systemd_nothing_happens(monkeypatch, tmp_path):
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notify(READY)
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    notify(READY)
