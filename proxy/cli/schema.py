"""``qproxy schema``: the configuration language, for editors and for the reference page."""

import json

import click

from proxy.config.reference import json_schema, markdown


@click.command()
@click.option("--markdown", "as_markdown", is_flag=True, help="The reference page instead of the JSON Schema.")
def schema(*, as_markdown: bool) -> None:
    """Print the JSON Schema of a configuration file."""
    click.echo(markdown() if as_markdown else json.dumps(json_schema(), indent=2), nl=not as_markdown)
