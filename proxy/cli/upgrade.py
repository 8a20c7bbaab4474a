"""``qproxy upgrade``: have the running proxy go over to the code that is installed now, and say what came of it."""

import signal
import time
from pathlib import Path

import click

from proxy.cli.running import checked, config_option, fail, look, pause, send, serving
from proxy.process.pid_file import Running


@click.command()
@config_option
@click.option("--timeout", type=click.FloatRange(min=0), default=300.0, show_default=True, metavar="SECONDS", help="To wait.")
@click.option("--force", is_flag=True, help="End old workers at once, with their connections, should it have to wait for them.")
def upgrade(config: Path, timeout: float, *, force: bool) -> None:
    """Have the proxy that runs with this configuration go over to the code that is installed now (SIGUSR2), and say what came of it.

    An upgrade waits until the workers of the one before it have ended, as long as timeouts.drain grants them.
    Exit code 0 when the new processes serve; 2 when the configuration is wrong; 1 when the upgrade failed, and the old processes go on.
    """
    until = time.monotonic() + timeout
    configuration = checked(config)
    running = serving(configuration, config, until)
    if not running.supervisor:
        fail(f"qproxy: process {running.pid} serves alone: only several workers can be upgraded (server.workers); restart it")
    seen, state, words = running.upgrade
    if state == "trying":
        click.echo("an upgrade is in progress")
    elif state == "waiting":
        _waits(running, words, force=force)
    else:
        send(running, signal.SIGUSR2)
    while True:
        now = look(configuration, config)
        if now is None:
            fail("qproxy: the proxy has ended")
        number, state, words = now.upgrade
        if number > seen:
            seen = number
            if state == "failed":
                fail(f"the upgrade failed: {words}; what served before goes on, and its log has more")
            if state == "done":
                click.echo(f"upgraded: process {running.pid} has new children")
                return
            if state == "waiting":
                _waits(running, words, force=force)
        pause(until, "no word of the upgrade")


def _waits(running: Running, words: str, *, force: bool) -> None:
    if force:
        send(running, signal.SIGUSR1)
        click.echo(f"the upgrade waits {words}: they are ended now")
    else:
        click.echo(f"the upgrade waits {words}; with --force they are ended at once")
