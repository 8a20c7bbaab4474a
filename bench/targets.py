"""All that is compared, by name: which programs serve which versions."""

import functools
import subprocess
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
"""What ``make compiled`` makes: the released form, by the fastest interpreter here."""
FORM = "import platform, proxy.exchange as e; print('compiled' if not e.__file__.endswith('.py') else 'pure', platform.python_version())"


@dataclass(frozen=True)
class Target:
    """A server, or a floor of one program for each version."""

    name: str
    title: str
    programs: tuple[tuple[tuple[str, ...], Start], ...]
    """Versions, and what starts the program that serves them."""
    version: Callable[[Place], str] | None = None
    """The program's own, where it is not part of this project."""
    workloads: tuple[str, ...] = ()
    """Those it is asked for; empty: all."""

    def takes(self, workload: str) -> bool:
        """Whether it is asked for *workload*."""
        return not self.workloads or workload in self.workloads


def targets(python: Path, before: Path | None = None) -> list[Target]:
    """In the order of tables. *before* is the interpreter of an older build to compare with, if any.

    The floors run the same engines by the same interpreter in the same form: what *python* has installed. Beside a compiled build the
    sources of this tree are asked for the bars, by that interpreter, too.
    """
    fast = Build("qproxy", python, "ngh2", "native")
    portable = Build("qproxy-portable", python, "h2", "aioquic")
    pure = replace(fast, name="qproxy-pure", sources=True)
    old = replace(fast, name="before", python=before) if before else None
    return [
        _fast("qproxy (ngh2, native)", fast),
        *([replace(_fast("qproxy pure (ngh2, native)", pure), workloads=("get-1k", "get-1m"))] if form(python)[0] == "compiled" else []),
        *([_fast("before (ngh2, native)", old)] if old else []),
        Target("qproxy-portable", "qproxy (h2, aioquic)", ((ALL, functools.partial(_start_ours, portable)),)),
        _floor("floor", "floor (ngh2, native)", fast),
        _floor("floor-portable", "floor (h2, aioquic)", portable),
        Target(
            "bare", "bare uvloop + httptools", ((("h1",), functools.partial(_start_floor, portable, "h1", "bare")),), workloads=("get-1k",)
        ),
        *(Target(module.NAME.lower(), module.NAME, ((ALL, module.start),), module.version) for module in (nginx, haproxy, caddy, envoy)),
        Target("hypercorn", "hypercorn (no backend)", ((ALL, hypercorn.start),), hypercorn.version, workloads=("get-1k",)),
    ]


@functools.cache
def form(python: Path) -> tuple[str, str]:
    """Whether *python* has qproxy installed ``compiled`` or ``pure``, and the interpreter's version; both empty where it has none."""
    done = subprocess.run([python, "-c", FORM], cwd="/", capture_output=True, text=True, check=False)
    words = done.stdout.split()
    return (words[0], words[1]) if done.returncode == 0 and len(words) == 2 else ("", "")


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
