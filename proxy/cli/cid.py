"""``qproxy cid``: QUIC connection IDs as a load balancer in front reads them. Nothing is bound or sent."""

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import click

from balancer.quic_lb import Codec, Minter, NotRoutable, Server, config_id_of, is_unroutable
from proxy.config.connection_ids import connection_id_forms, keys_of
from proxy.config.load import ConfigError, load
from proxy.engine.quic.ids import Routable
from proxy.keys import Keyring

EXIT_CONFIGURATION = 2

_config = click.option(
    "-c", "--config", type=click.Path(path_type=Path), metavar="DIR", required=True, help="The folder with the configuration."
)


@click.group()
@click.pass_context
def cid(ctx: click.Context) -> None:
    """Explain and mint connection IDs in the form of server.quic.connection_ids."""
    if ctx.default_map:  # qproxy -c DIR cid ...
        ctx.default_map = {name: dict(ctx.default_map) for name in cid.commands}


@cid.command()
@click.argument("hex_digits", metavar="HEX")
@_config
def decode(hex_digits: str, config: Path) -> None:
    """Say which server and which nonce are in a connection ID, as a packet capture shows it; of an opaque one, the slot of the worker."""
    try:
        given = bytes.fromhex(hex_digits.removeprefix("0x").replace(":", ""))
    except ValueError:
        msg = f"{hex_digits!r} is no connection ID; expected pairs of hexadecimal digits"
        raise click.BadParameter(msg, param_hint="HEX") from None
    if len(given) > 1 and is_unroutable(given):
        click.echo(f"names no server\nslot: {given[-1]} (where several workers share the port)")
        return
    forms = _forms(config)
    routable = next((form for form in forms if form.layout.config_id == config_id_of(given)), forms[0])
    try:
        decoded = Codec(routable.layout).decode(given)
    except NotRoutable as error:
        click.echo(f"names no server: {error}")
        sys.exit(1)
    whose = "this server" if decoded.server_id == routable.server_id else f"another server; this one is {routable.server_id.hex()}"
    epoch = "" if routable.epoch is None else f" (epoch {routable.epoch} of the cluster's keys)"
    click.echo(f"configuration ID: {routable.layout.config_id}{epoch}")
    click.echo(f"server ID: {decoded.server_id.hex()} ({whose})")
    click.echo(f"nonce: {decoded.nonce.hex()}")
    if decoded.slot is not None:
        click.echo(f"slot: {decoded.slot}")


@cid.command()
@click.option("--count", type=click.IntRange(1, 1_000_000), default=1, show_default=True, help="How many.")
@_config
def new(count: int, config: Path) -> None:
    """Mint connection IDs of this server, to try a balancer with."""
    routable = _forms(config)[0]
    mint = Minter(Codec(routable.layout), Server(routable.server_id, os.urandom(16)), os.urandom)
    for _ in range(count):
        click.echo(mint().hex())


def _forms(config: Path) -> Sequence[Routable]:
    """Those that name this server, the present one first."""
    try:
        configuration = load(config, os.environ, keep=False)
    except ConfigError as error:
        for problem in error.problems:
            click.echo(str(problem), err=True)
        sys.exit(EXIT_CONFIGURATION)
    forms = connection_id_forms(configuration, Keyring(keys_of(configuration, b""), b""), time.time()).routable
    if not forms:
        msg = f"{config} has no server.quic.connection_ids: the connection IDs are opaque"
        raise click.ClickException(msg)
    return forms
