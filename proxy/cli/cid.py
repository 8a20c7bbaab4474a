"""``qproxy cid``: QUIC connection IDs as a load balancer in front reads them. Nothing is bound or sent."""

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import click

from balancer.quic_lb import Codec, Layout, Minter, NotRoutable, Server, config_id_of, is_unroutable
from proxy.config.connection_ids import connection_id_forms, keys_of
from proxy.config.load import ConfigError, Configuration, load
from proxy.config.model_l4 import MAX_SERVER_ID
from proxy.engine.quic.ids import Routable
from proxy.keys import Keyring, config_id
from proxy.process.setup import shown

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
@click.option(
    "--server-id-bytes",
    type=click.IntRange(1, MAX_SERVER_ID),
    help="How long server IDs are, for an L4 tier whose configuration names none.",
)
@_config
def decode(hex_digits: str, server_id_bytes: int | None, config: Path) -> None:
    """Say which server and which nonce are in a connection ID, as a packet capture shows it; of an opaque one, the slot of the worker.

    With the configuration of an L4 tier: which instance.
    """
    try:
        given = bytes.fromhex(hex_digits.removeprefix("0x").replace(":", ""))
    except ValueError:
        msg = f"{hex_digits!r} is no connection ID; expected pairs of hexadecimal digits"
        raise click.BadParameter(msg, param_hint="HEX") from None
    if len(given) > 1 and is_unroutable(given):
        click.echo(f"names no server\nslot: {given[-1]} (where several workers share the port)")
        return
    configuration = _load(config)
    if configuration.server.quic.connection_ids is None and any("quic" in listener.protocols for listener in configuration.l4):
        _decode_for_tier(given, configuration, server_id_bytes)
        return
    forms = _forms(configuration, config)
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
    routable = _forms(_load(config), config)[0]
    mint = Minter(Codec(routable.layout), Server(routable.server_id, os.urandom(16)), os.urandom)
    for _ in range(count):
        click.echo(mint().hex())


def _decode_for_tier(given: bytes, configuration: Configuration, server_id_bytes: int | None) -> None:
    """Under the keys of the cluster, for each listener of the tier."""
    keyring = Keyring(keys_of(configuration, b""), b"")
    epoch = keyring.epoch_of(given[0] >> 5) if given else None
    if epoch is None:
        epochs = ", ".join(f"{config_id(key.epoch)} (epoch {key.epoch})" for key in keyring.keys.keys)
        click.echo(f"names no instance: expected a configuration ID of the cluster's keys, {epochs}")
        sys.exit(1)
    found = False
    for listener in (listener for listener in configuration.l4 if "quic" in listener.protocols):
        instances = listener.instances
        named = {endpoint.server_id: endpoint.address for endpoint in instances.endpoints if endpoint.server_id is not None}
        length = server_id_bytes or len(next(iter(named), b""))
        if not length:
            msg = "instances say their server IDs themselves here; expected --server-id-bytes, which tells how long they are"
            raise click.UsageError(msg)
        try:
            layout = Layout(config_id(epoch), length, instances.nonce, key=keyring.cid_key(epoch))
            decoded = Codec(layout).decode(given)
        except (NotRoutable, ValueError) as error:
            click.echo(f"names no instance of {shown(listener.address)}: {error}")
            continue
        found = True
        address = named.get(decoded.server_id, "").rpartition("//")[2]
        whose = f"instance {address}" if address else "of no instance that the configuration names"
        click.echo(f"configuration ID: {layout.config_id} (epoch {epoch} of the cluster's keys)")
        click.echo(f"server ID: {decoded.server_id.hex()} ({whose}, for {shown(listener.address)})")
        click.echo(f"nonce: {decoded.nonce.hex()}")
    if not found:
        sys.exit(1)


def _load(config: Path) -> Configuration:
    try:
        return load(config, os.environ, keep=False)
    except ConfigError as error:
        for problem in error.problems:
            click.echo(str(problem), err=True)
        sys.exit(EXIT_CONFIGURATION)


def _forms(configuration: Configuration, config: Path) -> Sequence[Routable]:
    """Those that name this server, the present one first."""
    forms = connection_id_forms(configuration, Keyring(keys_of(configuration, b""), b""), time.time()).routable
    if not forms:
        msg = f"{config} has no server.quic.connection_ids: the connection IDs are opaque"
        raise click.ClickException(msg)
    return forms
