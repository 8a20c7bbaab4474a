"""Engines that the configuration names: installed or told of, with what is asked of them."""

import sys
from dataclasses import replace

import pytest
from config_folder import SITE

from proxy.engine import choice


@pytest.fixture
def portable_only(monkeypatch):
    """As where neither fast engine is installed."""
    for module in ("proxy.engine.h2_ngh2", "proxy.engine.quic.native"):
        monkeypatch.setitem(sys.modules, module, None)


def test_a_named_engine_that_is_not_installed(folder, portable_only):
    halted = "(import of {} halted; None in sys.modules); expected auto, or first: {}"
    assert folder.problems(SITE + "server:\n  engines: {h2: ngh2, quic: native}\n") == [
        "one.yaml:7:17: engine 'ngh2' is not installed here " + halted.format("proxy.engine.h2_ngh2", "pip install ngh2"),
        "one.yaml:7:29: engine 'native' is not installed here "
        + halted.format("proxy.engine.quic.native", "make native (in a clone), or install the wheel qproxy-native"),
    ]


def test_an_engine_that_does_not_exist(folder):
    assert folder.problems(SITE + "server: {engines: {h2: ngh3}}\n") == [
        "one.yaml:6:24: 'server.engines.h2' is not valid: got 'ngh3', expected one of auto, h2, ngh2; perhaps you meant 'ngh2'"
    ]


@pytest.mark.parametrize("engines", ["", "engines: {quic: auto}, ", "engines: {quic: aioquic}, "])
def test_a_congestion_control_that_the_engine_in_use_lacks(folder, portable_only, engines):
    text = f"server: {{{engines}quic: {{congestion_control: bbr}}}}"
    column = text.index("bbr") + 1
    install = choice.find("quic", "native").install
    (problem,) = folder.problems(SITE + text)
    assert problem == (
        f"one.yaml:6:{column}: the QUIC engine in use here, aioquic, has no bbr; native has it, and is not installed here: {install}; "
        "expected one of auto, cubic, reno"
    )


def test_a_feature_of_an_engine_that_is_installed_and_not_in_use(folder, monkeypatch):
    absent = replace(choice.find("quic", "native"), name="other", module="json", attribute="loads")
    monkeypatch.setattr(choice, "ENGINES", (*(one for one in choice.ENGINES if one.name != "native"), absent))
    (problem,) = folder.problems(SITE + "server: {engines: {quic: aioquic}, quic: {congestion_control: bbr}}")
    assert problem.endswith("the QUIC engine in use here, aioquic, has no bbr; other has it; expected one of auto, cubic, reno")


@pytest.mark.parametrize("control", ["auto", "cubic", "reno"])
def test_what_every_engine_has(folder, portable_only, control):
    folder.write(SITE + f"server: {{quic: {{congestion_control: {control}}}}}")
    assert folder.load().server.quic.congestion_control == control


@pytest.mark.parametrize(
    ("quic", "column", "lacks"),
    [
        ("max_datagram_size: 1201", 1, "path MTU discovery, to send more than 1200 bytes"),
        ("certificate_compression: [zlib]", 2, "certificate compression by zlib"),
    ],
)
def test_what_quic_is_asked_for_and_aioquic_lacks(folder, portable_only, quic, column, lacks):
    text = f"server: {{quic: {{{quic}}}}}"
    column += text.index(": ", text.index(quic)) + 2
    (problem,) = folder.problems(SITE + text)
    assert problem.startswith(f"one.yaml:6:{column}: the QUIC engine in use here, aioquic, has no {lacks}; native has it, and is not")


def test_quic_without_what_aioquic_lacks(folder, portable_only):
    folder.write(SITE + "server: {quic: {max_datagram_size: 1200, certificate_compression: []}}")
    quic = folder.load().server.quic
    assert (quic.max_datagram_size, quic.certificate_compression) == (1200, [])
