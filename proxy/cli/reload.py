"""``qproxy reload``: have the running proxy read its configuration again, and say what came of it."""

import signal
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from proxy.cli.running import EXIT_CONFIGURATION, ask, checked, config_option, fail, look, pause, send, serving


@click.command()
@config_option
@click.option("--timeout", type=click.FloatRange(min=0), default=90.0, show_default=True, metavar="SECONDS", help="To wait.")
def reload(config: Path, timeout: float) -> None:
    """Have the proxy that runs with this configuration read it again (SIGHUP), and say what came of it.

    Exit code 0 when the new configuration is in use; 2 when it is wrong, and the present one stays; 1 for everything else.
    """
    until = time.monotonic() + timeout
    configuration = checked(config)
    running = serving(configuration, config, until)
    if running.admin is None:
        send(running, signal.SIGHUP)
        click.echo(f"process {running.pid} was told to reload; its admin API is off: the log tells what comes of it")
        return
    if ask(running.admin, until) is None:
        fail("qproxy: the admin API does not answer; nothing was told to the proxy")
    began = int(time.time() * 1000) / 1000  # as exact as /config
    send(running, signal.SIGHUP)
    while True:
        told = ask(running.admin)
        if told is not None and (attempt := told["last_reload"])["at"] and _seconds(attempt["at"]) >= began:
            break
        if look(configuration, config) is None:
            fail("qproxy: the proxy has ended")
        pause(until, "no word of the reload")
    _say(told)


def _seconds(stamp: str) -> float:
    return datetime.fromisoformat(stamp).timestamp()


def _say(told: dict[str, Any]) -> None:
    attempt = told["last_reload"]
    if attempt["result"] != "ok":
        fail(*attempt["problems"], f"the configuration of generation {told['generation']} stays in use", code=EXIT_CONFIGURATION)
    for warning in attempt["problems"]:
        click.echo(f"warning: {warning}", err=True)
    click.echo(f"reloaded: generation {told['generation']}")
