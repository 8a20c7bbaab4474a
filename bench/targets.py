"""All that is compared, by name: which programs serve which versions."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from bench.servers import caddy, envoy, haproxy, hypercorn, nginx, qproxy
from bench.servers.place import ROOT, Place, Running
from bench.servers.qproxy import Build
from bench.servers.variant import Variant

Start = Callable[[Place, Variant], Running]
ALL = ("h1", "h2", "h3")
COMPILED = ROOT / ".venv-compiled" / "bin" / "python"
"""What ``make compiled`` makes."""


@dataclass(frozen=True)
class Target:
    """A server, or a floor of one program for each version."""

    name: str
    title: str
    programs: tuple[tuple[tuple[str, ...], Start], ...]
    """Versions, and what starts the program that serves them."""
    version: Callable[[Place], str] | None = None
    """The program's own, where it is not part of this project."""


def targets(python: Path, portable_python: Path, before: Path | None = None) -> list[Target]:
    """In the order of tables. *before* is the interpreter of an older build to compare with, if any."""
    fast = Build("qproxy", python, "ngh2", "native")
    portable = Build("qproxy-portable", portable_python, "h2", "aioquic")
    return [
        _fast("qproxy (ngh2, native)", fast),
        *([_fast("qproxy compiled (ngh2, native)", Build("qproxy-compiled", COMPILED, "ngh2", "native"))] if COMPILED.exists() else []),
        *([_fast("before (ngh2, native)", Build("before", before, "ngh2", "native"))] if before else []),
        Target("qproxy-portable", "qproxy (h2, aioquic)", ((ALL, functools.partial(_start_ours, portable)),)),
        _floor("floor", "floor (ngh2, native)", fast),
        _floor("floor-portable", "floor (h2, aioquic)", portable),
        Target("bare", "bare uvloop + httptools", ((("h1",), functools.partial(_start_floor, portable, "h1", "bare")),)),
        *(Target(module.NAME.lower(), module.NAME, ((ALL, module.start),), module.version) for module in (nginx, haproxy, caddy, envoy)),
        Target("hypercorn", "hypercorn (no backend)", ((ALL, hypercorn.start),), hypercorn.version),
    ]


def _fast(title: str, build: Build) -> Target:
    """Two processes, so that what can be measured is where one of the engines is not installed."""
    over_tcp, over_udp = replace(build, quic="aioquic"), replace(build, h2="h2")
    programs = ((("h1", "h2"), functools.partial(_start_ours, over_tcp)), (("h3",), functools.partial(_start_ours, over_udp)))
    return Target(build.name, title, programs)


def _floor(name: str, title: str, build: Build) -> Target:
    engines = {"h1": "h1", "h2": build.h2, "h3": build.quic}
    programs = tuple(((version,), functools.partial(_start_floor, build, version, engine)) for version, engine in engines.items())
    return Target(name, title, programs)


def _start_ours(build: Build, place: Place, variant: Variant) -> Running:
    return qproxy.start(place, build, variant)


def _start_floor(build: Build, version: str, engine: str, place: Place, variant: Variant) -> Running:
    return qproxy.start_floor(place, build, version, engine, variant)
