"""HAProxy of Debian testing: one thread, connections to the backend shared by all clients."""

import re
import subprocess

from bench.servers.backend import behind
from bench.servers.place import Place, Running, free_port
from bench.servers.variant import PLAIN, Variant

NAME = "HAProxy"
CONFIGURATION = """
global
  nbthread 1
  maxconn 8000
{global_log}
defaults
  mode http
  timeout connect 5s
  timeout client 1h
  timeout server 1h
  timeout http-keep-alive 1h
  http-reuse always
{log}
frontend clients
  bind 127.0.0.1:{port} backlog 4096 ssl crt {pem} alpn h2,http/1.1 ssl-min-ver TLSv1.3
  bind quic4@127.0.0.1:{port} ssl crt {pem} alpn h3 ssl-min-ver TLSv1.3
  option forwardfor
  http-request set-header X-Forwarded-Proto https
{routes}
  default_backend backend
backend backend
  server one 127.0.0.1:{backend}
"""


def start(place: Place, variant: Variant = PLAIN) -> Running:
    """All versions on one port."""
    port = free_port()
    name = f"haproxy-{port}"
    routes = ""
    if variant.sites > 1:
        table = place.folder / f"{name}.map"
        table.write_text("".join(f"{host} backend\n" for host in variant.hosts()))
        routes = f"  use_backend %[req.hdr(host),field(1,:),lower,map({place.seen(table)})]"
    text = CONFIGURATION.format(
        port=port,
        pem=place.seen(place.pem),
        backend=behind(place, variant),
        routes=routes,
        global_log="  log stdout format raw local0" if variant.access_log else "",
        log="  log global\n  option httplog" if variant.access_log else "",
    )
    path = place.folder / f"{name}.cfg"
    path.write_text(text)
    return place.start(name, [*place.in_debian("haproxy"), "-db", "-f", place.seen(path)], dict.fromkeys(("h1", "h2", "h3"), port))


def version(place: Place) -> str:
    """As it says itself."""
    text = subprocess.run([*place.in_debian("haproxy"), "-v"], capture_output=True, text=True, check=True).stdout
    return re.findall(r"version (\S+)", text)[0]
