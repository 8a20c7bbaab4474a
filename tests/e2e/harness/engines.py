"""Which engines a test runs on.

A test that speaks HTTP/2 or HTTP/3 runs twice: on the portable engines and on the fast ones. A test that speaks neither runs once. What a
test speaks is told by its parameter ``version`` and by ``@pytest.mark.speaks("HTTP/2", ...)``; ``forgotten`` finds out who did not say so.
"""

from collections.abc import Sequence

import pytest

from harness.spoken import NOTED
from proxy.engine import choice
from proxy.engine.choice import Kind

PORTABLE, FAST = "portable", "fast"
SETS: dict[str, dict[Kind, str]] = {PORTABLE: {"h2": "h2", "quic": "aioquic"}, FAST: {"h2": "ngh2", "quic": "native"}}
KINDS: dict[str, Kind] = {"HTTP/2": "h2", "HTTP/3": "quic"}


def missing(name: str) -> dict[Kind, str]:
    """The engines of a set that are not installed here, each with what to do about it."""
    found: dict[Kind, str] = {}
    for kind, engine in SETS[name].items():
        try:
            choice.choose(kind, engine)
        except choice.NotInstalled as error:
            found[kind] = str(error)
    return found


def configured(name: str) -> dict[Kind, str]:
    """``server.engines`` for a set; a fast engine that is absent leaves its place to the portable one."""
    absent = missing(name)
    return {kind: SETS[PORTABLE if kind in absent else name][kind] for kind in SETS[name]}


def speaks(item: pytest.Item) -> set[str]:
    """The versions above HTTP/1.1 that a test says it speaks."""
    named = {version for mark in item.iter_markers("speaks") for version in mark.args}
    callspec = getattr(item, "callspec", None)
    if callspec is not None:
        named.add(callspec.params.get("version", ""))
    return named & set(KINDS)


def select(items: Sequence[pytest.Item], wanted: Sequence[str]) -> tuple[list[pytest.Item], list[pytest.Item]]:
    """The tests to run and the others: each runs on the *wanted* sets of engines that make a difference to it.

    Where an engine is absent, a skip says so.
    """
    absent = {name: missing(name) for name in wanted}
    kept, dropped = [], []
    for item in items:
        callspec = getattr(item, "callspec", None)
        name = callspec.params.get("engines") if callspec is not None else None
        if name is None:
            kept.append(item)
            continue
        needed = [KINDS[version] for version in speaks(item)]
        if name != wanted[0] and not needed:
            dropped.append(item)  # it would show the same again
            continue
        kept.append(item)
        for kind in needed:
            if kind in absent[name]:
                item.add_marker(pytest.mark.skip(reason=absent[name][kind]))
    return kept, dropped


def forgotten(item: pytest.Item) -> set[str]:
    """Versions that were spoken since the test began, and that it does not say it speaks."""
    return (NOTED & set(KINDS)) - speaks(item)
