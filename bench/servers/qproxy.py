"""qproxy itself and its floors, on the fast engines or on the portable ones.

``Build`` says which interpreter runs them: a virtual environment with compiled modules or with the native wheel may be another one.
"""

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from bench.servers.backend import behind
from bench.servers.place import ROOT, Place, Running, UnavailableError, free_port, module
from bench.servers.variant import PLAIN, Variant

SITES_PER_FILE = 1000
"""A file may not have more than 1 MiB."""


@dataclass(frozen=True)
class Build:
    """One way to run the product."""

    name: str
    python: Path
    """Interpreter with the product installed."""
    h2: str
    quic: str
    """Engines by their names in the configuration."""
    sources: bool = False
    """Run the sources of this tree, whatever is installed: the same interpreter and libraries, and nothing compiled."""

    @property
    def environment(self) -> dict[str, str]:
        """For its processes."""
        return {**os.environ, "PYTHONPATH": str(ROOT)} if self.sources else {**os.environ}

    def need(self, engine: str) -> None:
        """Raises UnavailableError where *engine* can't be used by this interpreter."""
        script = "import sys; from proxy.engine.choice import ENGINES; print(*(e.why_missing() for e in ENGINES if e.name == sys.argv[1]))"
        done = subprocess.run(
            [self.python, "-c", script, engine], env=self.environment, cwd="/", capture_output=True, text=True, check=False
        )
        if done.returncode or done.stdout.strip() not in {"None", ""}:
            msg = f"engine {engine}: {(done.stdout or done.stderr).strip()[-200:]}"
            raise UnavailableError(msg)


def start(place: Place, build: Build, variant: Variant = PLAIN, quic: Mapping[str, object] | None = None) -> Running:
    """All versions on one port; *quic* is laid over ``server.quic``, and has localhost served as well.

    Raises UnavailableError where one of the engines is not installed.
    """
    build.need(build.h2)
    build.need(build.quic)
    port = free_port()
    name = f"{build.name}-{port}"
    folder = place.folder / name
    folder.mkdir()
    server = {
        "workers": variant.workers,
        "listeners": [{"address": f"127.0.0.1:{port}"}],
        "engines": {"h2": build.h2, "quic": build.quic},
        "admin": "off",
        "state": str(folder / "state"),
        "log": {"access": variant.access_log},
        "timeouts": {"idle": "1h"},
        "limits": {"connections": 10_100},  # for ten thousand that stay, and those that come before
        "quic": {"handshakes_per_network": 1000, **(quic or {})},  # all clients of the bench are of one
    }
    pools = {"web": {"endpoints": [f"http://127.0.0.1:{behind(place, variant)}"]}}
    tls = {"certificate": str(place.certificate), "key": str(place.key)}
    routes = [{"match": {"path": "/"}, "pool": "web"}]
    sites = [{"hosts": [host], "tls": tls, "routes": routes} for host in variant.hosts()]
    if quic is not None:
        sites.append({"hosts": ["localhost"], "tls": {"self_signed": True}, "routes": routes})
    write(folder / "qproxy.yaml", {"server": server, "pools": pools})
    for at in range(0, len(sites), SITES_PER_FILE):
        write(folder / f"sites-{at}.yaml", {"sites": sites[at : at + SITES_PER_FILE]})
    command = [str(build.python), "-m", "proxy", "-c", str(folder)]
    return place.start(name, command, dict.fromkeys(("h1", "h2", "h3"), port), environment=build.environment)


def start_floor(place: Place, build: Build, version: str, engine: str, variant: Variant = PLAIN) -> Running:
    """One version by one engine, with no policy."""
    if variant.access_log or variant.sites > 1:
        msg = "a floor has no sites and no access log"
        raise UnavailableError(msg)
    build.need(engine)
    port = free_port()
    command = [*module(build.python, "bench.floor"), version, "--engine", engine]
    command += ["--port", str(port), "--backend", str(behind(place, variant)), "--certificate", str(place.pem)]
    return place.start(f"floor-{engine}-{port}", command, {version: port}, environment=build.environment)


def write(path: Path, content: object) -> None:
    """*content* as YAML, in full: no anchors."""
    dumper = type("Dumper", (getattr(yaml, "CSafeDumper", yaml.SafeDumper),), {"ignore_aliases": lambda *_: True})
    path.write_text(yaml.dump(content, Dumper=dumper))
