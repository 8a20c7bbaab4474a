"""Caddy of Debian testing: one processor for its Go runtime, idle connections to the backend kept."""

import subprocess

from bench.servers.backend import behind
from bench.servers.place import Place, Running, free_port
from bench.servers.variant import HOST, PLAIN, Variant

NAME = "Caddy"
CONFIGURATION = """
{{
  admin off
  auto_https disable_redirects
  persist_config off
  default_sni {default}
  servers {{
    protocols h1 h2 h3
  }}
}}
{names} {{
  bind 127.0.0.1
  tls {certificate} {key} {{
    protocols tls1.3
  }}
  reverse_proxy 127.0.0.1:{backend} {{
    transport http {{
      keepalive 1h
      keepalive_idle_conns 1024
      keepalive_idle_conns_per_host 1024
    }}
  }}
{log}
}}
"""


def start(place: Place, variant: Variant = PLAIN) -> Running:
    """All versions on one port."""
    port = free_port()
    name = f"caddy-{port}"
    log = f"  log {{\n    output file {place.seen(place.folder / name)}.access\n  }}" if variant.access_log else ""
    names = ", ".join(f"https://{host}:{port}" for host in variant.hosts())
    text = CONFIGURATION.format(
        names=names,
        default=HOST,
        certificate=place.seen(place.certificate),
        key=place.seen(place.key),
        backend=behind(place, variant),
        log=log,
    )
    path = place.folder / f"{name}.caddyfile"
    path.write_text(text)
    command = [*place.in_debian("caddy"), "run", "--adapter", "caddyfile", "--config", place.seen(path)]
    at = command.index("caddy")
    command[at:at] = ["GOMAXPROCS=1"]  # for env(1), which precedes it
    return place.start(name, command, dict.fromkeys(("h1", "h2", "h3"), port))


def version(place: Place) -> str:
    """As it says itself."""
    text = subprocess.run([*place.in_debian("caddy"), "version"], capture_output=True, text=True, check=True).stdout
    return text.split()[0].lstrip("v")
