"""``qproxy demo``: the example configuration, with certificates and backends made for it.

Takes the addresses from the configuration; the names of the hosts are agreed with it (conf.d/ names the certificate files). The proxy
that it runs is the ordinary one, as its own process.
"""

import asyncio
import os
import ssl
import sys
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import click

from proxy.config.load import ConfigError, Configuration, load
from proxy.demo import certificates, supervise
from proxy.demo.ports import Port, problem

HOSTS = ("a.example.com", "b.example.com")
START_LIMIT = 30.0
"""Seconds that each program has until it answers."""

TO_TRY = """
qproxy serves a.example.com and b.example.com on port {port}. In another terminal, try:

  curl -k --http2 --resolve '*:{port}:127.0.0.1' https://a.example.com:{port}/       # HTTP/2; --http1.1 for HTTP/1.1
  curl -k --http3 --resolve '*:{port}:127.0.0.1' https://a.example.com:{port}/       # HTTP/3, where your curl has it
  curl -k -i --resolve '*:{port}:127.0.0.1' https://b.example.com:{port}/old/page    # a redirect
  {qproxy} explain -c {config} https://a.example.com:{port}/    # why a request goes where it goes
  curl http://127.0.0.1:{admin}/metrics    # what was counted

Ctrl-C ends the proxy and the backends.
"""


@dataclass(frozen=True, slots=True)
class Plan:
    """The addresses of one configuration."""

    public: tuple[str, int]
    admin: tuple[str, int]
    backends: tuple[int, ...]
    """Ports on 127.0.0.1."""

    @property
    def ports(self) -> list[Port]:
        """All that must be free."""
        backends = [Port("127.0.0.1", number, "TCP") for number in self.backends]
        return [*backends, Port(*self.admin, "TCP"), Port(*self.public, "TCP"), Port(*self.public, "UDP")]


@click.command()
@click.option(
    "-c", "--config", type=click.Path(path_type=Path), default=Path("conf.d"), show_default=True, metavar="DIR", help="The example."
)
def demo(config: Path) -> None:
    """Run the example configuration with three backends, and say what to try."""
    if not config.is_dir():
        msg = f"{config} is not a folder; run this in a clone of the repository, or name its conf.d"
        raise click.BadParameter(msg, param_hint="-c")
    try:
        for host in HOSTS:
            certificates.ensure(config.resolve().parent / ".state" / "demo", host)
        addresses = plan(load(config, os.environ))
        problems = [sentence for port in addresses.ports if (sentence := problem(port)) is not None]
        if problems:
            raise click.ClickException(" ".join(problems))
        code = asyncio.run(_run(config, addresses))
    except ConfigError as error:
        click.echo(str(error), err=True)
        code = 2
    except supervise.ChildEnded as error:
        click.echo(f"qproxy demo: {error}; everything else was stopped.", err=True)
        code = error.code or 1
    except TimeoutError as error:
        msg = f"no answer within {START_LIMIT:.0f} seconds; everything was stopped."
        raise click.ClickException(msg) from error
    except OSError as error:
        raise click.ClickException(str(error)) from error
    sys.exit(code)


def plan(configuration: Configuration) -> Plan:
    """The addresses of the example. Raises ClickException for a configuration that the demo can't run."""
    endpoints = {urlsplit(endpoint.url) for site in configuration.sites for pool in site.pools.values() for endpoint in pool.endpoints}
    elsewhere = sorted(url.geturl() for url in endpoints if (url.scheme, url.hostname) != ("http", "127.0.0.1") or url.port is None)
    admin = configuration.server.admin
    if elsewhere or isinstance(admin, str):
        what = f"has an endpoint {elsewhere[0]}" if elsewhere else "switches the admin listener off"
        msg = f"this configuration {what}; the demo runs backends at http://127.0.0.1:PORT and needs the admin listener. Use qproxy -c DIR."
        raise click.ClickException(msg)
    return Plan(
        configuration.server.listeners[0].address, admin.address, tuple(sorted(url.port for url in endpoints if url.port is not None))
    )


async def _run(config: Path, addresses: Plan) -> int:
    module = [sys.executable, "-m"]
    programs = [
        supervise.Program(f"backend-{index}", [*module, "proxy.demo.backend", "--name", f"backend-{index}", "--port", str(port)])
        for index, port in enumerate(addresses.backends, 1)
    ]
    programs.append(supervise.Program("qproxy", [*module, "proxy", "-c", str(config)]))

    async def started(index: int) -> None:
        if index < len(addresses.backends):
            await asyncio.wait_for(_healthy(addresses.backends[index], None), START_LIMIT)
        else:
            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # it only asks whether somebody is there
            await asyncio.wait_for(_healthy(addresses.public[1], context), START_LIMIT)
            await asyncio.wait_for(_healthy(addresses.admin[1], None), START_LIMIT)  # opens when all workers serve

    def ready() -> None:
        qproxy = Path(sys.argv[0])
        click.echo(TO_TRY.format(port=addresses.public[1], admin=addresses.admin[1], config=config, qproxy=qproxy))

    return await supervise.run(programs, started, ready)


async def _healthy(port: int, context: ssl.SSLContext | None) -> None:
    """Return once 127.0.0.1:*port* answers /health with 200."""
    while True:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
            writer.write(b"GET /health HTTP/1.0\r\nhost: localhost\r\n\r\n")
            status = await reader.readline()
            writer.close()
            if status.split(b" ")[1:2] == [b"200"]:
                return
        except OSError:
            pass
        await asyncio.sleep(0.05)
