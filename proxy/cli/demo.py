"""``qproxy demo``: the example configuration, with certificates and backends made for it.

Knows the addresses of the example (conf.d/ names the same). The proxy that it runs is the ordinary one, as its own process.
"""

import asyncio
import ssl
import sys
from pathlib import Path

import click

from proxy.demo import certificates, supervise
from proxy.demo.ports import Port, problem

HOSTS = ("a.example.com", "b.example.com")
BACKEND_PORTS = (9001, 9002, 9003)
PUBLIC_PORT = 8443
ADMIN_PORT = 9090
START_LIMIT = 30.0
"""Seconds that each program has until it answers."""

TO_TRY = """
qproxy serves a.example.com and b.example.com on port {port}. In another terminal, try:

  curl -k --http2 --resolve '*:{port}:127.0.0.1' https://a.example.com:{port}/        # HTTP/2; --http1.1 for HTTP/1.1
  curl -k --http3 --resolve '*:{port}:127.0.0.1' https://a.example.com:{port}/        # where your curl has HTTP/3
  curl -k -i --resolve '*:{port}:127.0.0.1' https://b.example.com:{port}/old/page     # a redirect
  {qproxy} explain -c {config} https://a.example.com:{port}/                          # why a request goes where it goes
  curl http://127.0.0.1:{admin}/metrics                                               # what was counted

Ctrl-C ends the proxy and the backends.
"""


@click.command()
@click.option(
    "-c", "--config", type=click.Path(path_type=Path), default=Path("conf.d"), show_default=True, metavar="DIR", help="The example."
)
def demo(config: Path) -> None:
    """Run the example configuration with three backends, and say what to try."""
    if not config.is_dir():
        msg = f"{config} is not a folder; run this in a clone of the repository, or name its conf.d"
        raise click.BadParameter(msg, param_hint="-c")
    wanted = [Port("127.0.0.1", number, "TCP") for number in (*BACKEND_PORTS, ADMIN_PORT)]
    wanted += [Port("0.0.0.0", PUBLIC_PORT, kind) for kind in ("TCP", "UDP")]  # noqa: S104  # as the example's listener
    problems = [sentence for port in wanted if (sentence := problem(port)) is not None]
    if problems:
        raise click.ClickException(" ".join(problems))
    try:
        for host in HOSTS:
            certificates.ensure(config.resolve().parent / ".state" / "demo", host)
        code = asyncio.run(_run(config))
    except supervise.ChildEnded as error:
        click.echo(f"qproxy demo: {error}; everything else was stopped.", err=True)
        code = error.code or 1
    except TimeoutError as error:
        msg = f"no answer within {START_LIMIT:.0f} seconds; everything was stopped."
        raise click.ClickException(msg) from error
    except OSError as error:
        raise click.ClickException(str(error)) from error
    sys.exit(code)


async def _run(config: Path) -> int:
    module = [sys.executable, "-m"]
    programs = [
        supervise.Program(f"backend-{index}", [*module, "proxy.demo.backend", "--name", f"backend-{index}", "--port", str(port)])
        for index, port in enumerate(BACKEND_PORTS, 1)
    ]
    programs.append(supervise.Program("qproxy", [*module, "proxy", "-c", str(config)]))

    async def started(index: int) -> None:
        if index < len(BACKEND_PORTS):
            await asyncio.wait_for(_healthy(BACKEND_PORTS[index], None), START_LIMIT)
        else:
            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # it only asks whether somebody is there
            await asyncio.wait_for(_healthy(PUBLIC_PORT, context), START_LIMIT)

    def ready() -> None:
        click.echo(TO_TRY.format(port=PUBLIC_PORT, admin=ADMIN_PORT, config=config, qproxy=Path(sys.argv[0])))

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
