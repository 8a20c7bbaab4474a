"""nginx of Debian testing, as its guides advise for a proxy: one worker, keep-alive to the backend, no body on disk."""

import re
import subprocess

from bench.servers.backend import behind
from bench.servers.place import Place, Running, free_port
from bench.servers.variant import PLAIN, Variant

NAME = "nginx"
CONFIGURATION = """
worker_processes 1; daemon off; user root;
pid {folder}/{name}.pid; error_log {folder}/{name}.log crit;
events {{ worker_connections 8192; }}
http {{
  access_log {access}; keepalive_requests 1000000000; keepalive_timeout 3600s; tcp_nodelay on;
  client_body_temp_path {folder}/{name}-1; proxy_temp_path {folder}/{name}-2; fastcgi_temp_path {folder}/{name}-3;
  uwsgi_temp_path {folder}/{name}-4; scgi_temp_path {folder}/{name}-5;
  ssl_certificate {certificate}; ssl_certificate_key {key}; ssl_protocols TLSv1.3; ssl_session_cache shared:tls:10m; ssl_session_tickets on;
  http2 on; http3 on; quic_gso on; http2_max_concurrent_streams 128; http3_max_concurrent_streams 128;
  client_max_body_size 0; proxy_request_buffering off;
  proxy_buffer_size 16k; proxy_buffers 32 16k; proxy_max_temp_file_size 0;
  proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host $host;
  proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for; proxy_set_header X-Forwarded-Proto $scheme;
  server_names_hash_max_size 65536; server_names_hash_bucket_size 64;
  upstream backend {{ server 127.0.0.1:{backend}; keepalive 512; keepalive_requests 1000000000; keepalive_timeout 3600s; }}
{servers}
}}
"""
SERVER = """  server {{
    listen 127.0.0.1:{port} ssl{once}; listen 127.0.0.1:{port} quic{reuse};
    server_name {host}; location / {{ proxy_pass http://backend; }}
  }}
"""


def start(place: Place, variant: Variant = PLAIN) -> Running:
    """All versions on one port."""
    port = free_port()
    name = f"nginx-{port}"
    folder = place.seen(place.folder)
    command = place.in_debian("nginx")
    servers = [
        SERVER.format(port=port, host=host, once="" if number else " backlog=4096", reuse="" if number else " reuseport")
        for number, host in enumerate(variant.hosts())
    ]
    access = f"{folder}/{name}.access combined buffer=64k flush=1s" if variant.access_log else "off"
    text = CONFIGURATION.format(
        folder=folder,
        name=name,
        access=access,
        certificate=place.seen(place.certificate),
        key=place.seen(place.key),
        backend=behind(place, variant),
        servers="".join(servers),
    )
    path = place.folder / f"{name}.conf"
    path.write_text(text)
    command += ["-e", f"{folder}/{name}.log", "-c", place.seen(path)]
    return place.start(name, command, dict.fromkeys(("h1", "h2", "h3"), port))


def version(place: Place) -> str:
    """As it says itself."""
    text = subprocess.run([*place.in_debian("nginx"), "-v"], capture_output=True, text=True, check=True).stderr
    return re.findall(r"nginx/(\S+)", text)[0]
