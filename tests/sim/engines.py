"""The QUIC engines, as the tests see them: how each is made, and where they differ by nature."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from proxy.engine import choice


@dataclass(frozen=True)
class Engine:
    """One engine and its capabilities."""

    name: str
    virtual_time: bool
    """Time is what the caller says it is. Else the engine looks at the system's clock: a simulated second is a real one."""
    version_2: bool
    """QUIC version 2 (RFC 9369) besides version 1."""
    handshake_bytes: int
    """Bytes of handshake messages of a client that are kept at most."""
    tells_stats: bool
    """Round-trip time, losses and congestion window of a connection at its end."""
    keeps_window_on_rebinding: bool
    """Congestion window and round-trip time of a client whose port alone has changed."""
    connection_ids: int
    """That a client has at most."""
    probes: int
    """Datagrams of a connection that try whether the path takes larger ones, at most."""
    unknown_authority: int
    wrong_purpose: int
    """The TLS alerts for client certificates of a stranger, and for those that are not for clients."""

    def load(self) -> Callable:
        return choice.find("quic", self.name).load()

    def __str__(self) -> str:
        return self.name


AIOQUIC = Engine(
    "aioquic",
    virtual_time=True,
    version_2=True,
    handshake_bytes=18_000,
    tells_stats=False,
    keeps_window_on_rebinding=True,
    connection_ids=4,
    probes=0,
    unknown_authority=42,
    wrong_purpose=42,
)
NATIVE = Engine(
    "native",
    virtual_time=False,
    version_2=False,
    handshake_bytes=70_000,
    tells_stats=True,
    keeps_window_on_rebinding=False,
    connection_ids=8,
    probes=30,
    unknown_authority=48,
    wrong_purpose=43,
)


def parameters() -> list:
    """For ``pytest.mark.parametrize``: each engine, one that is not installed here skipped with what to do about it."""
    marks = []
    for engine in (AIOQUIC, NATIVE):
        entry = choice.find("quic", engine.name)
        why = entry.why_missing()
        marks.append(pytest.param(engine, id=engine.name, marks=[pytest.mark.skip(reason=f"{why}: {entry.install}")] if why else []))
    return marks
