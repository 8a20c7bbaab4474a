"""The command line: ``qproxy -c conf.d/`` serves; the other things to do are subcommands.

Knows where each command lives, and imports it only when it is called: ``qproxy --help`` loads nothing else of the proxy.
Must not know what a command does. Exit codes: 0, 2 for a wrong command line or configuration, 1 for everything else.
"""

import importlib
from pathlib import Path

import click

COMMANDS = {
    "run": "Serve, as `qproxy -c DIR` does.",
    "reload": "Have the running proxy read its configuration again.",
    "upgrade": "Have the running proxy go over to new code.",
    "check": "Check a configuration, and say all that is wrong with it.",
    "doctor": "Say what this machine lacks to serve it, and what mends it.",
    "explain": "Say where a request would go, step by step, and why.",
    "cid": "Explain and mint QUIC connection IDs that a balancer routes by.",
    "keygen": "Write the keys that instances share, or add the next one.",
    "schema": "Print the JSON Schema of the configuration.",
    "demo": "Run the example configuration with three backends.",
}
"""Each command NAME is the click command NAME in the module ``proxy.cli.NAME``; the text is for the overview."""


class LazyGroup(click.Group):
    """A group whose commands are imported when they are called, not when they are listed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, in the order of ``COMMANDS``."""
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command, or None where there is none of that name."""
        del ctx
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = getattr(importlib.import_module(f"proxy.cli.{cmd_name}"), cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The overview, without importing anything."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


def _version(ctx: click.Context, parameter: click.Parameter, wanted: bool) -> None:
    del parameter
    if wanted and not ctx.resilient_parsing:
        click.echo(importlib.import_module("proxy.cli.version").text())
        ctx.exit()


@click.group(cls=LazyGroup, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="The versions, and the engines in use.")
@click.option("-c", "--config", type=click.Path(path_type=Path), metavar="DIR", help="The folder with qproxy.yaml and sites/.")
@click.pass_context
def main(ctx: click.Context, config: Path | None) -> None:
    """A reverse proxy and load balancer for HTTP/1.1, HTTP/2 and HTTP/3.

    `qproxy -c DIR` serves what the YAML files in DIR say, until SIGTERM or Ctrl-C; SIGHUP reads them again.
    """
    if ctx.invoked_subcommand is None:
        if config is None:
            msg = "say which configuration to serve: qproxy -c DIR"
            raise click.UsageError(msg, ctx)
        command = main.get_command(ctx, "run")
        assert command is not None
        ctx.invoke(command, config=config, in_process=False)
    elif config is not None:
        ctx.default_map = {ctx.invoked_subcommand: {"config": str(config)}}
