"""Which engine serves: named, automatic, absent."""

import sys

import pytest

from proxy.engine import choice
from proxy.engine.choice import Engine, NotInstalled, choose
from proxy.engine.h2 import H2Connection
from proxy.engine.h2_ngh2 import Ngh2Connection
from proxy.engine.quic.endpoint import QuicEndpoint

ABSENT = Engine("quic", "absent", "proxy.engine.quic.there_is_none", "Endpoint", (), "make absent")


@pytest.fixture
def with_absent(monkeypatch):
    monkeypatch.setattr(choice, "ENGINES", (*choice.ENGINES, ABSENT))


def test_the_portable_engines_are_always_there():
    assert choose("h2", "h2").load() is H2Connection
    assert choose("quic", "aioquic").load() is QuicEndpoint


def test_http2_is_served_by_libnghttp2_where_it_is_installed(monkeypatch):
    assert choose("h2", "auto").load() is Ngh2Connection
    monkeypatch.setitem(sys.modules, "proxy.engine.h2_ngh2", None)
    assert choose("h2", "auto").load() is H2Connection


def test_an_engine_tells_the_versions_of_its_libraries():
    engine = choose("h2", "h2")
    assert sorted(engine.versions()) == ["h2", "hpack"]
    assert str(engine).startswith("h2 (h2 4.")


def test_auto_takes_the_first_that_is_installed(monkeypatch, with_absent):
    monkeypatch.setattr(choice, "AUTO_QUIC", ("absent", "aioquic"))
    assert choose("quic", "auto").name == "aioquic"


def test_a_named_engine_that_is_absent_is_told_with_what_to_install(with_absent):
    with pytest.raises(NotInstalled, match=r"engine 'absent' is not installed here \(No module .*\); expected auto, or first: make absent"):
        choose("quic", "absent")


def test_auto_with_nothing_installed_tells_of_the_last_resort(monkeypatch, with_absent):
    monkeypatch.setattr(choice, "AUTO_QUIC", ("absent",))
    with pytest.raises(NotInstalled, match="'absent'"):
        choose("quic", "auto")


def test_a_broken_library_counts_as_absent(monkeypatch, with_absent):
    """What a wheel for another system does: the import fails, and not for want of a module."""
    monkeypatch.setitem(sys.modules, ABSENT.module, None)
    assert "halted" in str(ABSENT.why_missing())


@pytest.mark.parametrize("engine", choice.ENGINES, ids=lambda engine: engine.name)
def test_every_engine_says_what_it_is_made_of(engine):
    assert engine.install
    if engine.why_missing() is None:
        assert all(engine.versions().values())


def test_there_is_no_engine_of_an_unknown_name():
    with pytest.raises(KeyError):
        choice.find("h2", "aioquic")
