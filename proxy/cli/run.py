"""``qproxy run``: serve a configuration until told to stop.

Knows only how the outcome becomes an exit code and a sentence; ``app.py`` does the work.
"""

import sys
from pathlib import Path

import click

from proxy import app


@click.command()
@click.option(
    "-c", "--config", type=click.Path(path_type=Path), metavar="DIR", required=True, help="The folder with qproxy.yaml and sites/."
)
@click.option("--in-process", is_flag=True, help="One process, whatever the configuration says of workers: for debugging.")
def run(config: Path, in_process: bool) -> None:
    """Serve what the YAML files in DIR say. SIGTERM drains and ends, SIGHUP reads them again."""
    sys.exit(app.run(config, in_process=in_process))
