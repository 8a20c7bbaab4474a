"""``qproxy schema``: the configuration language, for editors and for the reference pages."""

import json

import click

from proxy.config.reference import json_schema, markdown
from proxy.engine import differences


@click.command()
@click.option("--markdown", "as_markdown", is_flag=True, help="The reference page instead of the JSON Schema.")
@click.option("--engines", is_flag=True, help="The reference page of the engines.")
def schema(*, as_markdown: bool, engines: bool) -> None:
    """Print the JSON Schema of a configuration file."""
    if engines:
        click.echo(differences.markdown(), nl=False)
    else:
        click.echo(markdown() if as_markdown else json.dumps(json_schema(), indent=2), nl=not as_markdown)
