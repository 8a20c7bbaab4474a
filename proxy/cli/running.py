"""The proxy that runs with a configuration: found, waited for, asked by its admin API. What is to be done with it, its callers know."""

import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import click
import httpx

from proxy.config.load import ConfigError, Configuration, load
from proxy.process.pid_file import Running, find, path_of

EXIT_OK, EXIT_FAILURE, EXIT_CONFIGURATION = 0, 1, 2

config_option = click.option(
    "-c",
    "--config",
    type=click.Path(path_type=Path),
    metavar="DIR",
    required=True,
    help="The folder with the configuration, or one file of it, as the proxy was started with.",
)
"""Which proxy is meant."""

ADMIN_SECONDS = 5.0
"""How long the admin API may take for an answer."""

LOOK_EVERY = 0.1
"""Seconds between two looks at what is waited for."""


def checked(config: Path) -> Configuration:
    """The configuration; ends the program with all its mistakes where it has some."""
    try:
        return load(config, os.environ, keep=False)
    except ConfigError as error:
        fail(*map(str, error.problems), "nothing was told to the proxy", code=EXIT_CONFIGURATION)


def serving(configuration: Configuration, config: Path, until: float) -> Running:
    """The proxy that runs with it, once it serves; ends the program where there is none by *until*."""
    while True:
        running = look(configuration, config)
        if running is None:
            fail(f"qproxy: no proxy with this configuration runs: nobody holds {path_of(configuration.state, config)}")
        if not running.pid:
            fail(f"qproxy: the proxy with this configuration runs in another PID namespace ({path_of(configuration.state, config)})")
        if running.ready:
            return running
        pause(until, "the proxy does not serve yet")


def look(configuration: Configuration, config: Path) -> Running | None:
    """The proxy that runs with it, or None; ends the program where that can't be seen."""
    try:
        return find(configuration.state, config)
    except OSError as error:
        fail(f"qproxy: {error.filename or configuration.state}: {error.strerror}")


def send(running: Running, number: signal.Signals) -> None:
    """Send it a signal; ends the program where that is not allowed."""
    try:
        os.kill(running.pid, number)
    except OSError as error:
        fail(f"qproxy: process {running.pid} can't be sent {number.name}: {error.strerror}")


def ask(admin: Sequence[Any], until: float = 0.0, path: str = "/config", patience: float = ADMIN_SECONDS) -> dict[str, Any] | None:
    """What its admin API says at *path*; None where it does not answer, not even by *until* (``time.monotonic``).

    Each question has *patience* seconds for its answer.
    """
    host, port = admin
    authority = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    while True:
        try:
            told = httpx.get(f"http://{authority}{path}", timeout=patience, trust_env=False).raise_for_status().json()
            if isinstance(told, dict):
                return told
        except (httpx.HTTPError, ValueError):
            pass
        if time.monotonic() >= until:
            return None
        time.sleep(LOOK_EVERY)


def pause(until: float, otherwise: str) -> None:
    """A moment between two looks; ends the program with *otherwise* when it is too late for one more."""
    if time.monotonic() >= until:
        fail(f"qproxy: {otherwise}; its log has more")
    time.sleep(LOOK_EVERY)


def fail(*lines: str, code: int = EXIT_FAILURE) -> NoReturn:
    """End the program."""
    for line in lines:
        click.echo(line, err=True)
    sys.exit(code)
