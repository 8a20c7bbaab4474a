"""What a newcomer sees first: three versions of HTTP, two sites, health, and what the backend learns of the client."""

import re
import socket

import pytest
from harness import clients
from harness.authority import Authority
from harness.http3 import http3
from harness.proxy import Proxy

HOSTS = ("a.example.com", "b.example.com")


def get(authority: Authority, proxy: Proxy, version: str, path: str, host: str = "a.example.com"):
    """By libcurl with BoringSSL: a client that speaks all three."""
    with clients.curl_session(authority, proxy.port, version) as session:
        response = session.get(proxy.url(path, host))
        assert clients.SPOKEN[response.http_version] == version
        return response


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("version", clients.VERSIONS)
def test_hello_names_the_host_and_the_version(authority, proxy, version, host):
    response = get(authority, proxy, version, "/", host)
    assert (response.status_code, response.text) == (200, f"Hello from {host} ({version})!\n")


@pytest.mark.parametrize("version", clients.VERSIONS)
def test_the_backend_tells_its_name_the_client_and_the_affinity_key(authority, proxy, version):
    headers = get(authority, proxy, version, "/").headers
    assert headers["x-backend"] in {"backend-1", "backend-2", "backend-3"}
    assert headers["x-client-address"] == "127.0.0.1"
    assert re.fullmatch(r"[0-9a-f]{16,}", headers["x-affinity-key"])


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("version", clients.VERSIONS[:2])
def test_httpx(authority, proxy, version, host):
    with clients.httpx_client(authority, version) as client:
        response = client.get(proxy.url("/", host))
    assert (response.http_version, response.text) == (version, f"Hello from {host} ({version})!\n")


@pytest.mark.parametrize(("option", "version"), [("--http1.1", "HTTP/1.1"), ("--http2", "HTTP/2")])
def test_the_curl_of_the_system(authority, proxy, option, version):
    answer = clients.curl(authority, proxy.url(), option)
    assert (answer.code, answer.status, answer.version) == (0, 200, version), answer.errors
    assert answer.body == f"Hello from a.example.com ({version})!\n".encode()


@pytest.mark.speaks("HTTP/3")
async def test_aioquic(authority, proxy):
    async with http3(authority, proxy.port) as client:
        answer = await client.get("/", host=f"a.example.com:{proxy.port}")
    assert (answer.status, answer.body) == (200, b"Hello from a.example.com (HTTP/3)!\n")


@pytest.mark.parametrize("version", clients.VERSIONS[:2])
def test_tcp_answers_advertise_http3_at_the_public_port(authority, proxy, version):
    assert f'h3=":{proxy.port}"' in get(authority, proxy, version, "/").headers["alt-svc"]


@pytest.mark.parametrize("version", clients.VERSIONS)
def test_health_answers_on_every_version(authority, proxy, version):
    response = get(authority, proxy, version, "/health")
    assert (response.status_code, response.text.strip()) == (200, "OK")


def test_health_answers_http_1_0_with_unknown_sni_and_none(proxy):
    probe = b"GET /health HTTP/1.0\r\n\r\n"
    for sni in (None, "nobody.example.org"):
        said = clients.s_client(proxy.port, "-quiet", "-ign_eof", sni=sni, data=probe)
        assert re.search(r"HTTP/1\.[01] 200 .*\r\n\r\nOK", said, re.DOTALL), said


def test_health_answers_a_curl_that_speaks_http_1_0_alone(authority, proxy):
    answer = clients.curl(authority, f"https://a.example.com:{proxy.port}/health", "--http1.0")
    assert (answer.code, answer.status, answer.body) == (0, 200, b"OK")


def test_another_path_under_unknown_sni_is_misdirected(proxy):
    said = clients.s_client(
        proxy.port,
        "-quiet",
        "-ign_eof",
        sni="nobody.example.org",
        data=b"GET / HTTP/1.1\r\nhost: a.example.com\r\nconnection: close\r\n\r\n",
    )
    assert "HTTP/1.1 421 " in said


def test_tls_below_1_3_is_refused(proxy):
    assert "Cipher    : 0000" in clients.s_client(proxy.port, "-tls1_2", sni="a.example.com")
    assert "TLSv1.3" in clients.s_client(proxy.port, sni="a.example.com")


def plain(proxy: Proxy, request: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=10) as connection:
        connection.sendall(request)
        return b"".join(iter(lambda: connection.recv(65536), b""))


def test_plain_http_on_the_tls_port_gets_health_and_a_redirect(proxy):
    assert b" 200 " in plain(proxy, b"GET /health HTTP/1.0\r\n\r\n").split(b"\r\n")[0]
    answer = plain(proxy, b"GET /some/page?q=1 HTTP/1.1\r\nhost: a.example.com\r\nconnection: close\r\n\r\n")
    assert answer.split(b"\r\n")[0].split(b" ")[1] in {b"301", b"308"}
    assert f"location: https://a.example.com:{proxy.port}/some/page?q=1\r\n".encode() in answer.lower()


@pytest.mark.speaks("HTTP/2", "HTTP/3")
def test_requests_are_counted_by_version_and_host(authority, proxy):
    before = proxy.metrics()
    for version in clients.VERSIONS:
        get(authority, proxy, version, "/", "b.example.com")
    after = proxy.metrics()
    for number in (1, 2, 3):
        name = f'http{number}_requests_total{{host="b.example.com"}}'
        assert after[name] - before.get(name, 0) == 1, name
