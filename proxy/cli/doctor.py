"""``qproxy doctor``: is everything there that this configuration needs? It reads, looks up and connects; nothing is changed."""

import asyncio
import os
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from proxy.config.compile import compile_snapshot
from proxy.config.load import ConfigError, Configuration, load
from proxy.config.material import self_signed
from proxy.control.doctor.backends import examine_backends
from proxy.control.doctor.files import examine_certificates, examine_keys, examine_state, system_authorities
from proxy.control.doctor.finding import Finding, as_json, as_text
from proxy.control.doctor.ports import examine_ports
from proxy.control.doctor.system import examine_system, kernel_clock
from proxy.listen.bind import may_force_buffers
from proxy.observe import Metrics, NullLog
from proxy.process.naming import make_naming
from proxy.process.setup import SPARE_DESCRIPTORS
from proxy.tasks import Tasks

PROC = Path("/proc")

EXIT_FAILURE = 1


@click.command()
@click.option(
    "-c",
    "--config",
    type=click.Path(path_type=Path),
    metavar="DIR",
    required=True,
    help="The folder with the configuration, or one file of it.",
)
@click.option("--format", "form", type=click.Choice(["text", "json"]), default="text", show_default=True)
def doctor(config: Path, form: str) -> None:
    """Look at the kernel, the ports, the certificates, the state folder and the backends, and say what to do about each that is wrong.

    Run it as the user that qproxy runs as. Exit code 0 when nothing fails (warnings do not), else 1.
    """
    try:
        configuration = load(config, os.environ, keep=False)
    except ConfigError as error:
        findings = [
            Finding("failure", "configuration", str(config), str(problem), "what the reference says", f"qproxy check -c {config}")
            for problem in error.problems
        ]
    else:
        findings = list(_examine(configuration))
    for line in [as_json(findings)] if form == "json" else as_text(findings):
        click.echo(line)
    sys.exit(EXIT_FAILURE if any(finding.verdict == "failure" for finding in findings) else 0)


def _examine(configuration: Configuration) -> Iterator[Finding]:
    for warning in configuration.warnings:
        yield Finding("warning", "configuration", str(configuration.source), str(warning))
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    descriptors = hard if hard != resource.RLIM_INFINITY else sys.maxsize
    yield from examine_system(
        configuration, PROC, descriptors, spare=SPARE_DESCRIPTORS, clock=kernel_clock, force_buffers=may_force_buffers()
    )
    yield from examine_ports(configuration, PROC, privileged=_may_bind_any(PROC))
    yield from examine_certificates(configuration, system_authorities, time.time())
    yield from examine_keys(configuration, time.time())
    yield from examine_state(configuration.state)
    yield from asyncio.run(_ask_backends(configuration))


def _may_bind_any(root: Path) -> bool:
    """Whether this process has CAP_NET_BIND_SERVICE (10 of capabilities(7))."""
    try:
        lines = (root / "self/status").read_text().splitlines()
        effective = next(line for line in lines if line.startswith("CapEff:"))
        return bool(int(effective.split()[1], 16) >> 10 & 1)
    except (OSError, StopIteration, ValueError, IndexError):
        return os.geteuid() == 0


async def _ask_backends(configuration: Configuration) -> list[Finding]:
    asyncio.get_running_loop().set_exception_handler(_ignore)
    log, metrics = NullLog(), Metrics()
    tasks = Tasks(log)
    naming = make_naming(configuration.server.dns, log, metrics, tasks)
    snapshot = compile_snapshot(
        configuration,
        metrics=metrics,
        secret=bytes(32),
        seed=0,
        generation=0,
        make_request_id=lambda: b"",
        default_certificate=self_signed(("localhost",)),
        services=naming.discovery.services,
    )
    try:
        await naming.begin(snapshot.pools)
        return await examine_backends(snapshot.pools, naming.resolver, naming.discovery.words)
    finally:
        await tasks.close()
        await naming.close()


def _ignore(_loop: asyncio.AbstractEventLoop, _context: dict[str, Any]) -> None:
    """What a backend does to a connection that is dropped is of no interest."""
