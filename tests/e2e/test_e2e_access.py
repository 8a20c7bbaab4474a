"""Who the client is, and whether it may: addresses by socket, PROXY protocol and trusted fields; access lists; IPv6 and unix sockets."""

import json
import socket
import ssl
import struct
import tempfile
from pathlib import Path

import curl_cffi
import pytest
from curl_cffi import CurlOpt
from harness import clients
from harness.inprocess import InProcess

VERSIONS = clients.VERSIONS
A = "a.example.com"


def ask(authority, proxy, version="HTTP/1.1", path="/", *, source=None, to="127.0.0.1", host=A, **more):
    """A request from the address *source* to the address *to*."""
    options = {CurlOpt.RESOLVE: [f"*:{proxy.port}:{to}"]}
    if source is not None:
        options[CurlOpt.INTERFACE] = f"host!{source}"
    with curl_cffi.Session(
        verify=str(authority.file), http_version=clients.CURL_VERSIONS[version], curl_options=options, trust_env=False, timeout=30
    ) as session:
        response = session.get(proxy.url(path, host), **more)
        assert clients.SPOKEN[response.http_version] == version
        return response


def fields(response):
    """What the backend got, by name; lists where a field came twice."""
    found = {}
    for name, value in response.json()["headers"]:
        found.setdefault(name.lower(), []).append(value)
    return {name: values[0] if len(values) == 1 else values for name, values in found.items()}


def record(proxy, response_id):
    """The access log's line of a request."""
    proxy.wait_for(lambda: response_id in proxy.logs(), "logged the request")
    return next(json.loads(line) for line in proxy.logs().splitlines() if f'"request_id":"{response_id}"' in line)


# Forwarded fields


@pytest.mark.parametrize("version", VERSIONS)
def test_fields_of_a_client_that_nobody_trusts_are_replaced(authority, proxy, version):
    lies = {
        "X-Forwarded-For": "203.0.113.7",
        "X-Forwarded-Proto": "http",
        "X-Forwarded-Host": "lies.example.org",
        "Forwarded": "for=203.0.113.7",
        "X-Request-Id": "mine",
    }
    got = fields(ask(authority, proxy, version, "/headers", source="127.0.7.1", headers=lies))
    authority_sent = f"{A}:{proxy.port}"
    assert got["x-forwarded-for"] == "127.0.7.1"
    assert got["x-forwarded-proto"] == "https"
    assert got["x-forwarded-host"] == authority_sent
    assert got["forwarded"] == f'for=127.0.7.1;host="{authority_sent}";proto=https'
    assert got["x-request-id"] != "mine"
    assert got["via"] == f"{version.removeprefix('HTTP/')} qproxy"
    assert "203.0.113.7" not in json.dumps(got)
    line = record(proxy, got["x-request-id"])
    assert (line["client_address"], line["status"], line["ended"]) == ("127.0.7.1", 200, "complete")


@pytest.fixture(scope="module")
def trusting(make_proxy):
    """A proxy that trusts 127.0.7.0/24 to speak for clients."""

    access = {"allow": ["203.0.113.0/24", "127.0.0.0/8"], "deny": ["203.0.113.66/32"]}
    running = make_proxy(
        server={"trusted_proxies": ["127.0.7.0/24"]},
        sites={A: {"access": access, "pools": {"web": {"balance": {"key": "client_address"}}}}},
    )
    return running.start()


@pytest.mark.parametrize("version", VERSIONS)
def test_fields_of_a_trusted_proxy_are_believed_and_added_to(authority, trusting, version):
    told = {"X-Forwarded-For": "198.51.100.1, 203.0.113.7", "X-Forwarded-Proto": "http", "X-Request-Id": f"from-the-balancer-{version[-1]}"}
    got = fields(ask(authority, trusting, version, "/headers", source="127.0.7.1", headers=told))
    assert got["x-forwarded-for"] == "198.51.100.1, 203.0.113.7, 127.0.7.1"
    assert got["x-request-id"] == told["X-Request-Id"]
    line = record(trusting, told["X-Request-Id"])
    assert line["client_address"] == "203.0.113.7", "the rightmost that is no trusted proxy"


def test_a_trusted_proxy_s_clients_are_told_apart_by_access_and_by_key(authority, trusting):
    def through(address, source="127.0.7.1"):
        return ask(authority, trusting, source=source, headers={"X-Forwarded-For": address})

    assert through("203.0.113.66").status_code == 403
    assert through("198.51.100.1").status_code == 403
    assert through("203.0.113.66", source="127.0.8.1").status_code == 200, "nobody trusts that peer, and its own address is allowed"
    assert len({through(f"203.0.113.{number}").headers["x-backend"] for number in range(10, 40)}) == 3
    assert len({through("203.0.113.9").headers["x-backend"] for _ in range(5)}) == 1


# Access


@pytest.fixture(scope="module")
def guarded(make_proxy):
    """A proxy whose site lets 127.0.7.0/24 in but not 127.0.7.9; /open is for all but 127.0.7.9, /closed for 127.0.8.1 alone."""

    site = {
        "access": {"allow": ["127.0.7.0/24"], "deny": ["127.0.7.9/32"]},
        "routes": [
            {"match": {"path": "/open"}, "respond": {"body": "open"}, "access": {"allow": ["127.0.0.0/8"]}},
            {"match": {"path": "/closed"}, "respond": {"body": "closed"}, "access": {"allow": ["127.0.8.1/32"]}},
            {"match": {"path": "/"}, "pool": "web"},
        ],
    }
    return make_proxy(sites={A: site}).start()


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("source", "expected"),
    [("127.0.7.1", [200, 200, 403]), ("127.0.7.9", [403, 403, 403]), ("127.0.8.1", [403, 200, 200]), ("127.0.9.1", [403, 200, 403])],
)
def test_access_by_address(authority, guarded, version, source, expected):
    statuses = [ask(authority, guarded, version, path, source=source).status_code for path in ("/", "/open", "/closed")]
    assert statuses == expected


def test_a_refusal_tells_nothing_and_health_answers_everybody(authority, guarded):
    refused = ask(authority, guarded, source="127.0.9.1")
    assert refused.headers["proxy-status"] == "qproxy; error=http_request_denied"
    assert "127.0.7" not in refused.text
    assert ask(authority, guarded, path="/health", source="127.0.9.1").text == "OK"
    assert guarded.metrics()['qproxy_exchange_errors_total{kind="denied"}'] >= 1


# PROXY protocol

V1 = b"PROXY TCP4 203.0.113.9 127.0.0.1 4711 443\r\n"
V1_IPV6 = b"PROXY TCP6 2001:db8::9 ::1 4711 443\r\n"
V2_SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"


def v2(command, family, body):
    return V2_SIGNATURE + bytes([0x20 | command, family]) + struct.pack(">H", len(body)) + body


V2 = v2(1, 0x11, socket.inet_aton("203.0.113.9") + socket.inet_aton("127.0.0.1") + struct.pack(">HH", 4711, 443))
V2_TLVS = v2(1, 0x11, V2[16:] + b"\x04\x00\x03abc")
V2_IPV6 = v2(
    1, 0x21, socket.inet_pton(socket.AF_INET6, "2001:db8::9") + socket.inet_pton(socket.AF_INET6, "::1") + struct.pack(">HH", 4711, 443)
)
HEADERS = {
    "v1": (V1, "203.0.113.9"),
    "v1 over IPv6": (V1_IPV6, "2001:db8::9"),
    "v1 unknown": (b"PROXY UNKNOWN\r\n", "127.0.0.1"),
    "v2": (V2, "203.0.113.9"),
    "v2 with TLVs": (V2_TLVS, "203.0.113.9"),
    "v2 over IPv6": (V2_IPV6, "2001:db8::9"),
    "v2 local": (v2(0, 0, b""), "127.0.0.1"),
}


@pytest.fixture(scope="module")
def proxied(make_proxy):
    """A proxy that expects PROXY protocol headers from 127.0.0.1 and from nobody else."""
    from harness.ports import free_port  # noqa: PLC0415

    port = free_port()
    listener = {"address": f"127.0.0.1:{port}", "proxy_protocol": {"from": ["127.0.0.1/32"]}}
    running = make_proxy(
        server={"listeners": [listener]},
        sites={A: {"access": {"deny": ["203.0.113.66/32"]}}},
        answers=False,
    )
    running.port = port
    return running.start()


def spoken(authority, proxy, beginning, *, source="127.0.0.1", alpn=(), pieces=1):
    """The answer of /hello over TLS on a connection that begins with *beginning*; empty where it is closed."""
    raw = socket.create_connection(("127.0.0.1", proxy.port), timeout=20, source_address=(source, 0))
    context = clients.trusting(authority)
    context.set_alpn_protocols(list(alpn))
    try:
        size = -(-len(beginning) // pieces) or 1
        for at in range(0, len(beginning), size):
            raw.sendall(beginning[at : at + size])
        with context.wrap_socket(raw, server_hostname=A) as secured:
            secured.sendall(f"GET /hello HTTP/1.1\r\nhost: {A}\r\nconnection: close\r\n\r\n".encode())
            return b"".join(iter(lambda: secured.recv(65536), b"")).decode()
    except (ssl.SSLError, OSError):
        raw.close()
        return ""


@pytest.mark.parametrize("kind", HEADERS)
def test_the_client_of_a_proxy_protocol_header_is_the_client(authority, proxied, kind):
    header, address = HEADERS[kind]
    for pieces in (1, len(header)):
        assert f"\r\nx-client-address: {address}\r\n" in spoken(authority, proxied, header, pieces=pieces)


def test_the_key_of_a_connection_is_the_client_s_and_so_are_its_rights(authority, proxied):
    def key(header):
        return spoken(authority, proxied, header).partition("x-affinity-key: ")[2].partition("\r\n")[0]

    assert key(V1) == key(V2) != ""
    assert key(V1) != key(V1.replace(b"203.0.113.9", b"203.0.113.10"))
    assert spoken(authority, proxied, V1.replace(b"113.9 ", b"113.66 ")).startswith("HTTP/1.1 403 ")


@pytest.mark.parametrize(
    "beginning",
    [
        b"",
        b"PROXY TCP4 203.0.113.9\r\n",
        b"PROXY TCP4 999.0.113.9 127.0.0.1 4711 443\r\n",
        V1[:-2] + b"x" * 107,
        V2_SIGNATURE + b"\x31\x11\0\0",
    ],
    ids=["none", "short", "no address", "too long", "version 3"],
)
def test_a_trusted_peer_must_begin_with_a_right_header(authority, proxied, beginning):
    failures = 'qproxy_handshake_failures_total{reason="proxy_protocol",transport="tcp"}'
    before = proxied.metrics().get(failures, 0)
    assert spoken(authority, proxied, beginning) == ""
    assert proxied.metrics()[failures] == before + 1


def test_a_header_of_anybody_else_is_no_beginning(authority, proxied):
    assert "\r\nx-client-address: 127.0.7.1\r\n" in spoken(authority, proxied, b"", source="127.0.7.1")
    for header in (V1, V2):
        assert spoken(authority, proxied, header, source="127.0.7.1") == ""


# Where it listens and where it goes


def has_ipv6():
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="no IPv6 on loopback")


@pytest.fixture
def listening(start_proxy):
    """Start a proxy that listens on one host's address in place of 127.0.0.1."""

    def start(host, **more):
        from harness.ports import free_port  # noqa: PLC0415

        port = free_port()
        proxy = start_proxy(server={"listeners": [{"address": f"{host}:{port}"}]}, answers=False, **more)
        proxy.port = port
        return proxy

    return start


@pytest.mark.speaks("HTTP/2", "HTTP/3")
@needs_ipv6
@pytest.mark.parametrize("address", ["[::1]", "[::]"])
def test_an_ipv6_listener(authority, listening, address):
    proxy = listening(address)
    for version in VERSIONS:
        response = ask(authority, proxy, version, to="[::1]")
        assert (response.status_code, response.headers["x-client-address"]) == (200, "::1")
        got = fields(ask(authority, proxy, version, "/headers", to="[::1]"))
        assert (got["x-forwarded-for"], got["forwarded"].partition(";")[0]) == ("::1", 'for="[::1]"')


@pytest.mark.speaks("HTTP/2", "HTTP/3")
@needs_ipv6
def test_ipv4_clients_of_an_ipv6_socket_are_ipv4_clients(authority, listening):
    proxy = listening("[::]", sites={A: {"access": {"allow": ["127.0.7.1/32"]}}})
    for version in VERSIONS:
        response = ask(authority, proxy, version, source="127.0.7.1")
        assert (response.status_code, response.headers["x-client-address"]) == (200, "127.0.7.1")
        assert ask(authority, proxy, version, source="127.0.7.2").status_code == 403


@pytest.mark.speaks("HTTP/2", "HTTP/3")
@pytest.mark.parametrize("address", ["0.0.0.0", pytest.param("[::]", marks=needs_ipv6)])
def test_answers_leave_from_the_address_that_was_asked(authority, listening, address):
    """A client's UDP socket takes datagrams only from where it sent its own."""
    proxy = listening(address)
    for version in VERSIONS:
        assert ask(authority, proxy, version, to="127.0.9.9").status_code == 200


@pytest.mark.speaks("HTTP/2", "HTTP/3")
def test_unix_socket_and_ipv6_backends(authority, start_proxy):
    with tempfile.TemporaryDirectory(prefix="qproxy-") as folder:  # short: a unix socket's path has 107 bytes at most
        running = [InProcess("by-path", path=Path(folder) / "backend.sock")]
        if has_ipv6():
            running.append(InProcess("by-ipv6", host="::1"))
        try:
            for backend in running:
                health = {"interval": "100ms", "rise": 1, "fall": 1}
                proxy = start_proxy(sites={A: {"pools": {"web": {"endpoints": [backend.url], "health": health}}}})
                for version in VERSIONS:
                    response = ask(authority, proxy, version, "/upload", data=b"x" * 300_000)
                    assert (response.headers["x-backend"], response.json()["size"]) == (backend.name, 300_000)
                ok, failed = (f'qproxy_probes_total{{pool="{A}/web",result="{result}"}}' for result in ("ok", "failed"))
                proxy.wait_for(lambda proxy=proxy, ok=ok: proxy.metrics()[ok] >= 2, "probed the backend")
                assert proxy.metrics()[failed] == 0
        finally:
            for backend in running:
                backend.close()


def test_a_unix_socket_that_is_not_there_is_502(authority, start_proxy, tmp_path):
    pool = {"endpoints": [f"unix:{tmp_path}/none.sock"], "health": "off"}
    refused = ask(authority, start_proxy(sites={A: {"pools": {"web": pool}}}))
    assert (refused.status_code, refused.headers["proxy-status"]) == (502, "qproxy; error=connection_refused")
    assert str(tmp_path) not in refused.text
