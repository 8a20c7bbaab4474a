"""``qproxy check``: whether a configuration is right, what it says, and what it would change of the proxy that runs.

Nothing is bound or written, and nobody hears of it but that proxy's admin API, which is asked.
"""

import os
import sys
import time
from math import inf
from pathlib import Path

import click

from proxy.cli.running import ask
from proxy.config.collector import collector_paused
from proxy.config.compile import compile_snapshot
from proxy.config.connection_ids import connection_id_forms, keys_of
from proxy.config.load import ConfigError, Configuration, load
from proxy.config.material import self_signed
from proxy.engine.choice import choose
from proxy.keys import Keyring, KeySet, shown_time
from proxy.observe import Metrics
from proxy.process.pid_file import ASKS_RUNNING, find
from proxy.snapshot import Pool, Site, Snapshot
from proxy.sni import TlsProfile

EXIT_CONFIGURATION = 2

COMPARISON_SECONDS = 60.0
"""That the proxy that runs may take to read its files: ten thousand sites take some."""


@click.command()
@click.option(
    "-c",
    "--config",
    type=click.Path(path_type=Path),
    metavar="DIR",
    required=True,
    help="The folder with the configuration, or one file of it.",
)
@click.option(
    "--running/--no-running",
    default=True,
    envvar=ASKS_RUNNING,
    help="Ask the proxy that runs with this configuration, if one does, what a reload would change and what needs a restart.",
)
@collector_paused()
def check(config: Path, *, running: bool) -> None:
    """Check a configuration: everything that is wrong with it, or what it says in a few lines.

    Exit code 0 when it is right, 2 when it is not; what the proxy that runs thinks of it changes neither.
    """
    try:
        configuration = load(config, os.environ, keep=False)
    except ConfigError as error:
        for problem in error.problems:
            click.echo(str(problem), err=True)
        count = len(error.problems)
        click.echo(f"{config}: {count} {'mistake' if count == 1 else 'mistakes'}", err=True)
        sys.exit(EXIT_CONFIGURATION)
    for warning in configuration.warnings:
        click.echo(f"warning: {warning}", err=True)
    snapshot = compile_snapshot(
        configuration,
        metrics=Metrics(),
        secret=bytes(32),
        seed=0,
        generation=0,
        make_request_id=lambda: b"",
        default_certificate=self_signed(("localhost",)),
    )
    click.echo("\n".join(summary(configuration, snapshot, time.time())))
    if running:
        lines, warnings = of_running(configuration, config)
        for text in warnings:
            click.echo(f"warning: {text}", err=True)
        if lines:
            click.echo("\n".join(lines))


def of_running(configuration: Configuration, config: Path) -> tuple[list[str], list[str]]:
    """What the proxy that runs with it would do with it, and warnings; neither where none runs.

    It reads the files for itself: its environment is its own.
    """
    try:
        running = find(configuration.state, config)
    except OSError as error:
        return [], [f"whether a proxy runs with it can't be seen: {error.filename or configuration.state}: {error.strerror}"]
    if running is None or not running.ready:
        return [], []
    who = f"the proxy that runs (process {running.pid})" if running.pid else "the proxy that runs, in another PID namespace,"
    if not running.pid or running.admin is None:
        why = "has no admin API" if running.pid else "can't be asked"
        return [], [f"{who} {why}: what a reload changes of it is not known"]
    told = ask(running.admin, path="/config/changes", patience=COMPARISON_SECONDS)
    if told is None:
        return [], [f"{who} does not say what a reload changes: its admin API does not answer, or is of an older version"]
    if told["problems"]:
        return [], [f"{who} would refuse it: {problem}" for problem in told["problems"]]
    lines = []
    if told["reload"]:
        lines += [f"{who} takes with a reload:", *(f"  {line}" for line in told["reload"])]
    if told["restart"]:
        lines += [f"{who} takes with a restart only:", *(f"  {line}" for line in told["restart"])]
    return lines or [f"{who} has this configuration"], []


def summary(configuration: Configuration, snapshot: Snapshot, now: float) -> list[str]:
    """What the configuration says at the time *now*, in seconds since 1970: listeners, sites and pools, one line each."""
    lines = []
    for listener in snapshot.listeners:
        public = "" if listener.public_port == listener.address[1] else f", seen as port {listener.public_port}"
        proxied = ", PROXY protocol from trusted peers" if listener.proxy_protocol_from else ""
        protocols = [name for name in ("http/1.1", "h2", "h3") if name in listener.protocols]
        lines.append(f"listener {listener.name}: {' '.join(protocols)}{public}{proxied}")
    for tier in snapshot.l4:
        names = f", other instances for {', '.join('*' + name if name[0] == '.' else name for name in tier.sni)}" if tier.sni else ""
        lines.append(f"l4 listener {tier.name}: {' '.join(sorted(tier.protocols))}, new connections by {tier.initial_key}{names}")
    lines.append("admin: off" if snapshot.admin is None else f"admin: {_address(snapshot.admin)}")
    engines = configuration.server.engines
    lines.append(f"engines: {choose('h2', engines.h2).name} for HTTP/2, {choose('quic', engines.quic).name} for HTTP/3")
    keys = Keyring(keys_of(configuration, b""), b"")
    if (form := connection_id_forms(configuration, keys, now).present) is not None:
        layout = form.layout
        how = "in clear" if layout.key is None else "encrypted"
        lines.append(f"connection IDs: {layout.cid_bytes} bytes, server {form.server_id.hex()}, configuration ID {layout.config_id}, {how}")
    if configuration.keys is not None:
        lines.append(f"cluster: {_keys(configuration.keys, now)}")
    lines.append(f"state: {configuration.state}")
    seen: dict[str, Site] = {}
    for host in (*snapshot.exact_hosts.values(), *snapshot.wildcard_hosts.values()):
        seen.setdefault(host.site.name, host.site)
    lines += [_site(site, snapshot) for site in seen.values()]
    lines += [_pool(pool) for pool in snapshot.pools.values()]
    lines.append(f"{configuration.source}: right, {_count(len(configuration.warnings), 'warning')}")
    return lines


def _keys(keys: KeySet, now: float) -> str:
    """Which seals, and until when."""
    sealing, until = keys.sealing(now), keys.next_begin(now)
    others = ", ".join(str(key.epoch) for key in keys.keys if key is not sealing)
    opens = f"; opens {others} too" if others else ""
    if until == inf:
        return f"the key of epoch {sealing.epoch} seals, and none comes after it{opens}"
    return f"the key of epoch {sealing.epoch} seals until {shown_time(until)}, then that of {keys.sealing(until).epoch}{opens}"


def _site(site: Site, snapshot: Snapshot) -> str:
    profile = snapshot.sni.select(site.hosts[0].replace("*", "x", 1))
    certificate = _certificate(profile) if profile is not None else "none"
    return f"site {', '.join(site.hosts)}: {_count(len(site.routes.routes), 'route')}, certificate {certificate}"


def _certificate(profile: TlsProfile) -> str:
    clients = "" if profile.client_rule is None else ", client certificates" + (" required" if profile.client_rule.required else "")
    until = (f"{each.source} until {time.strftime('%Y-%m-%d', time.gmtime(each.not_after))}" for each in profile.certificates)
    return " and ".join(until) + clients


def _pool(pool: Pool) -> str:
    probes = f"probes {pool.health.path}" if pool.health is not None else "no probes"
    policy = pool.balancer.settings.policy
    key = pool.key.kind + (f" {pool.key.name.decode()}" if pool.key.name else "")
    by = f" by {key}" if policy == "consistent_hash" else ""
    return f"pool {pool.name}: {_count(len(pool.written), 'endpoint')}, {policy}{by}, {probes}"


def _address(address: tuple[str, int]) -> str:
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
