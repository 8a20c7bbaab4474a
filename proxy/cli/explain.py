"""``qproxy explain``: where a request would go, and why.

Takes the configuration from its folder and the backends' states from a running qproxy's admin API, where there is one.
"""

import ipaddress
import os
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click
import httpx

from balancer.pool import Member, Outcome
from proxy.config.compile import compile_snapshot
from proxy.config.compile_pool import compile_endpoint
from proxy.config.connection_ids import keys_of
from proxy.config.load import ConfigError, Configuration, load
from proxy.config.material import self_signed
from proxy.config.names import parse_endpoint
from proxy.control.explain import TRANSPORTS, Line, Question
from proxy.control.explain import explain as explain_request
from proxy.control.explain_tier import explain_tier, tier_listener
from proxy.control.state import SECRET_BYTES, StateError, read_secret
from proxy.keys import Keyring, Purpose
from proxy.observe import Metrics
from proxy.snapshot import Pool, Snapshot

ADMIN_SECONDS = 1.0
"""How long the admin API of a running qproxy may take."""

STEP_WIDTH = 12


@click.command()
@click.option(
    "-c", "--config", type=click.Path(path_type=Path), metavar="DIR", required=True, help="The folder with qproxy.yaml and sites/."
)
@click.argument("url")
@click.option("-X", "--method", default="GET", show_default=True)
@click.option("-H", "--header", "headers", multiple=True, metavar="'NAME: VALUE'", help="A request header field; may be given again.")
@click.option("--client", default="127.0.0.1", show_default=True, metavar="ADDRESS", help="The client's IP address.")
@click.option("--protocol", type=click.Choice(sorted(TRANSPORTS)), default="h2", show_default=True)
def explain(  # noqa: PLR0913, PLR0917  # click gives each option an argument
    config: Path, url: str, method: str, headers: tuple[str, ...], client: str, protocol: str
) -> None:
    """Say step by step where a request for URL would go, and why; through an L4 tier, to which instance.

    Nothing is sent or written. The backends' states come from the qproxy that runs with this configuration's admin address, if one does.
    """
    try:
        configuration = load(config, os.environ, keep=False)
        kept = read_secret(configuration.state)
        keys = keys_of(configuration, kept or bytes(SECRET_BYTES))
        snapshot = _compile(configuration, keys.ring_key)
    except ConfigError as error:
        click.echo(str(error), err=True)
        sys.exit(2)
    except StateError as error:
        click.echo(f"qproxy: {error}", err=True)
        sys.exit(1)
    question = _question(url, method, headers, client, protocol)
    now = time.monotonic()
    places: dict[tuple[str, str], str] = {}
    notes = [_running_states(snapshot, now, places)]
    if kept is None and not keys.shared:
        notes.append(Line("secret", f"none in {configuration.state} before the first start: then keys, and what they choose, are others"))
    keyring = Keyring(keys, b"")
    secret = keyring.derive(Purpose.HASH, keyring.sealing(time.time()))
    tier = tier_listener(snapshot, question)
    if tier is None:
        lines = explain_request(snapshot, question, secret, now, places)
    else:
        lines = explain_tier(tier, question, keys.ring_key, now, places)
    for line in [*lines, *notes]:
        click.echo(f"{line.step:<{STEP_WIDTH}} {line.text}".rstrip())


def _compile(configuration: Configuration, secret: bytes) -> Snapshot:
    return compile_snapshot(
        configuration,
        metrics=Metrics(),
        secret=secret,
        seed=0,
        generation=1,
        make_request_id=lambda: b"explain",
        default_certificate=self_signed(("localhost",)),
        previous=None,
        now=time.monotonic(),
    )


def _question(url: str, method: str, headers: tuple[str, ...], client: str, protocol: str) -> Question:
    """The command line as a question. Raises click's BadParameter."""
    try:
        parts = urlsplit(url if "//" in url else f"https://{url}")
        port = parts.port or (80 if parts.scheme == "http" else 443)
    except ValueError as error:
        msg = f"{url!r}: {error}"
        raise click.BadParameter(msg, param_hint="URL") from None
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        msg = f"{url!r}: expected https://HOST[:PORT]/PATH"
        raise click.BadParameter(msg, param_hint="URL")
    try:
        address = str(ipaddress.ip_address(client))
    except ValueError:
        msg = f"{client!r}: expected an IP address"
        raise click.BadParameter(msg, param_hint="--client") from None
    fields = []
    for header in headers:
        name, colon, value = header.partition(":")
        if not colon or not name.strip():
            msg = f"{header!r}: expected 'NAME: VALUE'"
            raise click.BadParameter(msg, param_hint="--header")
        fields.append((name.strip().lower().encode(), value.strip().encode()))
    return Question(
        authority=parts.netloc.rpartition("@")[2],
        port=port,
        path=(parts.path or "/") + (f"?{parts.query}" if parts.query else ""),
        plain=parts.scheme == "http",
        method=method,
        headers=fields,
        client=address,
        protocol="http/1.1" if parts.scheme == "http" else protocol,
    )


def _populate(pool: Pool, told: list[dict[str, Any]], now: float) -> None:
    """Give a pool the backends that a running qproxy has from DNS. Raises ValueError or KeyError."""
    members = [Member(parse_endpoint(backend["backend"]), backend["weight"], backend["rank"]) for backend in told]
    pool.balancer = pool.balancer.with_members(members, now)
    pool.endpoints = {member.identity: compile_endpoint(member.identity) for member in members}


def _running_states(snapshot: Snapshot, now: float, places: dict[tuple[str, str], str]) -> Line:
    """Give the snapshot's backends the states that a running qproxy tells of, and say whether there is one.

    Where it has those that are named by host goes to *places*.
    """
    if snapshot.admin is None:
        return Line("states", "the admin API is off: every backend is taken to be up")
    host, port = snapshot.admin
    authority = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        answer = httpx.get(f"http://{authority}/pools", timeout=ADMIN_SECONDS, trust_env=False).raise_for_status().json()
        told = [(pool["pool"], backend) for pool in answer["pools"] for backend in pool["backends"]]
        for entry in answer["pools"]:
            if entry["services"] and (pool := snapshot.pools.get(entry["pool"])) is not None:
                _populate(pool, entry["backends"], now)
    except (httpx.HTTPError, ValueError, KeyError, TypeError):
        return Line("states", f"no qproxy answers at {authority}: every backend is taken to be up")
    for name, seen in told:
        pool = snapshot.pools.get(name)
        backend = pool.balancer.find(seen["backend"]) if pool is not None else None
        if pool is None or backend is None:
            continue
        if seen.get("dns"):
            places[name, backend.identity] = f"{', '.join(seen['addresses']) or 'no address'} ({seen['dns']})"
        if seen["state"] == "draining":
            pool.balancer.drain(backend, now)
        elif seen["state"] == "down":
            for _ in range(pool.balancer.settings.fall):
                pool.balancer.report(backend, Outcome.PROBE_FAILED, now)
            backend.reason = seen["reason"]
    return Line("states", f"told by the qproxy that runs at {authority}")
