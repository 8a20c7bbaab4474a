"""Clients by several makers, all of which resolve every name to 127.0.0.1 and trust the test authority only."""

import base64
import contextlib
import os
import re
import signal
import socket
import ssl
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import curl_cffi
import httpcore
import httpx
import niquests
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from curl_cffi import CurlHttpVersion, CurlOpt

from harness.authority import Authority
from harness.spoken import note

VERSIONS = ("HTTP/1.1", "HTTP/2", "HTTP/3")


# httpx: HTTP/1.1 and HTTP/2


class _Loopback(httpcore.SyncBackend):
    def connect_tcp(self, host: str, port: int, *args: Any, **more: Any) -> httpcore.NetworkStream:
        return super().connect_tcp("127.0.0.1", port, *args, **more)


class _AsyncLoopback(httpcore.AnyIOBackend):
    async def connect_tcp(self, host: str, port: int, *args: Any, **more: Any) -> httpcore.AsyncNetworkStream:
        return await super().connect_tcp("127.0.0.1", port, *args, **more)


def trusting(authority: Authority, *, client: tuple[Path, Path] | None = None) -> ssl.SSLContext:
    """A client's TLS context that trusts *authority*, with an optional client certificate and key."""
    context = ssl.create_default_context(cafile=str(authority.file))
    if client is not None:
        context.load_cert_chain(*client)
    return context


def httpx_client(authority: Authority, version: str = "HTTP/1.1", *, client: tuple[Path, Path] | None = None, **more: Any) -> httpx.Client:
    """An httpx client that speaks exactly *version* (HTTP/1.1 or HTTP/2)."""
    note(version)
    transport = httpx.HTTPTransport(verify=trusting(authority, client=client), **_only(version), limits=httpx.Limits(), trust_env=False)
    transport._pool._network_backend = _Loopback()
    return httpx.Client(transport=transport, trust_env=False, timeout=more.pop("timeout", 30), **more)


def async_httpx_client(authority: Authority, version: str = "HTTP/2", **more: Any) -> httpx.AsyncClient:
    """The same, for asyncio; its pool is not bounded."""
    note(version)
    unbounded = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    transport = httpx.AsyncHTTPTransport(verify=trusting(authority), **_only(version), limits=unbounded, trust_env=False)
    transport._pool._network_backend = _AsyncLoopback()
    return httpx.AsyncClient(transport=transport, trust_env=False, timeout=more.pop("timeout", 30), **more)


def _only(version: str) -> dict[str, bool]:
    return {"http1": version == "HTTP/1.1", "http2": version == "HTTP/2"}


# curl_cffi: libcurl with BoringSSL, ngtcp2 and nghttp3


def curl_session(authority: Authority, port: int, version: str = "HTTP/3", **more: Any) -> "curl_cffi.Session[Any]":
    """A session that speaks exactly *version*; responses tell theirs in ``response.http_version`` (see SPOKEN)."""
    note(version)
    return curl_cffi.Session(
        verify=str(authority.file),
        http_version=CURL_VERSIONS[version],
        curl_options={CurlOpt.RESOLVE: [f"*:{port}:127.0.0.1"]},
        trust_env=False,
        timeout=more.pop("timeout", 30),
        **more,
    )


CURL_VERSIONS = {"HTTP/1.1": CurlHttpVersion.V1_1, "HTTP/2": CurlHttpVersion.V2_0, "HTTP/3": CurlHttpVersion.V3ONLY}
SPOKEN = {CurlHttpVersion.V1_1: "HTTP/1.1", CurlHttpVersion.V2_0: "HTTP/2", CurlHttpVersion.V3: "HTTP/3", 30: "HTTP/3"}


# niquests: urllib3.future with qh3


def niquests_session(authority: Authority, port: int, **more: Any) -> "niquests.Session":
    """A session that speaks HTTP/3 to a.example.com at *port* from the first request on; responses tell theirs (``http_version`` 30)."""
    note("HTTP/3")
    session = niquests.Session(
        resolver=["in-memory://default/?hosts=a.example.com:127.0.0.1"],
        quic_cache_layer=niquests.structures.QuicSharedCache(16),
        disable_http1=True,
        disable_http2=True,
        **more,
    )
    session.quic_cache_layer.add_domain("a.example.com", port)
    session.verify = str(authority.file)
    session.trust_env = False
    return session


# The curl of the system


@dataclass(frozen=True)
class Curled:
    code: int
    """Exit code of curl; 0 is success."""
    status: int
    version: str
    headers: dict[str, str]
    body: bytes
    errors: str


def curl(authority: Authority, url: str, *options: str, data: bytes | None = None, trust: bool = True) -> Curled:
    """Run the system's curl, names resolved to loopback."""
    port = re.findall(r":(\d+)", url.partition("//")[2])[0]
    told = "%{stderr}\n@@%{http_version} %{response_code}"
    command = ["curl", "-sS", "--noproxy", "*", "-i", "--max-time", "60", "--resolve", f"*:{port}:127.0.0.1", "-w", told]
    command += ["--cacert", str(authority.file)] if trust else ["-k"]
    run = subprocess.run([*command, *options, url], input=data, capture_output=True, check=False, timeout=90)
    errors, _, last = run.stderr.decode().rpartition("\n@@")
    version, _, status = last.partition(" ")
    rest, head = run.stdout, b""
    while rest.startswith(b"HTTP/"):  # 1xx answers come before the final one
        head, _, rest = rest.partition(b"\r\n\r\n")
    fields = (line.partition(": ") for line in head.decode("latin-1").split("\r\n")[1:])
    spoken = "HTTP/" + {"1": "1.0"}.get(version, version)
    note(spoken)
    return Curled(run.returncode, int(status or 0), spoken, {name.lower(): value for name, _, value in fields}, rest, errors)


# ngtcp2's own client, with GnuTLS: another TLS than all of the above, and it keeps its sessions


class Gtlsclient:
    """Asks for *url*, of localhost, with *options*; early where *folder* has a session ticket of an earlier one. It trusts everybody.

    *port* is that of the proxy, or of a relay before it; *sni* another name than localhost.
    """

    def __init__(self, folder: Path, url: str, *options: str, port: int | None = None, sni: str = "localhost") -> None:
        note("HTTP/3")
        _, _, rest = url.partition("://")
        host, _, path = rest.partition("/")
        self.file = folder / path.rpartition("/")[2]
        kept = [f"--session-file={folder / 'session'}", f"--tp-file={folder / 'parameters'}", f"--download={folder}"]
        command = ["gtlsclient", "--quiet", "--exit-on-all-streams-close", f"--sni={sni}", *kept, *options]
        command += ["127.0.0.1", str(port or host.rpartition(":")[2]), url]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._process.kill()
        self._process.communicate()

    def body(self) -> bytes:
        """The whole answer's."""
        _, told = self._process.communicate(timeout=60)
        assert self._process.returncode == 0, told.decode()
        return self.file.read_bytes()


def gtlsclient(folder: Path, url: str, *options: str) -> bytes:
    """The body of *url*, of localhost, as ``Gtlsclient`` gets it."""
    with Gtlsclient(folder, url, *options) as client:
        return client.body()


# A browser


class Chromium:
    """One visit to a page, as a browser without a window; it speaks HTTP/3 to the page's origin from the start.

    It speaks QUIC to whom a public authority knows, or whose key is named; the key is asked for over TCP.
    """

    def __init__(self, authority: Authority, folder: Path, url: str, port: int) -> None:
        note("HTTP/3")
        host, _, its_port = url.split("/")[2].rpartition(":")
        with (
            socket.create_connection(("127.0.0.1", int(its_port))) as plain,
            trusting(authority).wrap_socket(plain, server_hostname=host) as secured,
        ):
            key = x509.load_der_x509_certificate(secured.getpeercert(binary_form=True) or b"").public_key()
        info = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
        named = base64.b64encode(sha256(info).digest()).decode()
        command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--dump-dom"]
        command += ["--disable-background-networking", "--disable-component-update", f"--user-data-dir={folder / 'browser'}"]
        command += [f"--host-resolver-rules=MAP {host}:{its_port} 127.0.0.1:{port}, MAP * ~NOTFOUND", "--no-proxy-server"]
        command += [f"--origin-to-force-quic-on={host}:{its_port}", f"--ignore-certificate-errors-spki-list={named}", url]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.communicate()

    def page(self) -> str:
        """The document once it is loaded, with what its scripts made of it."""
        document, told = self._process.communicate(timeout=90)
        assert self._process.returncode == 0, told.decode()
        return document.decode()


# openssl s_client


def s_client(port: int, *options: str, sni: str | None = None, data: bytes = b"", limit: float = 20) -> str:
    """What ``openssl s_client`` says; *data* is sent after the handshake."""
    named = ["-servername", sni] if sni is not None else ["-noservername"]
    command = ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", *named, *options]
    run = subprocess.run(command, input=data, capture_output=True, check=False, timeout=limit)
    return (run.stdout + run.stderr).decode("latin-1")


# h2load


@dataclass(frozen=True)
class Load:
    """What h2load counted."""

    total: int
    succeeded: int
    failed: int
    errored: int
    timeout: int
    rate: float
    """Requests a second."""
    text: str


class Loading:
    """h2load at work in the background."""

    def __init__(self, command: Iterable[str]) -> None:
        self._process = subprocess.Popen(list(command), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def result(self, limit: float = 120) -> Load:
        try:
            text, _ = self._process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            self._process.kill()
            text, _ = self._process.communicate()
            msg = f"h2load did not end within {limit} s:\n{text}"
            raise AssertionError(msg) from None
        counted = re.search(
            r"requests: (\d+) total, \d+ started, \d+ done, (\d+) succeeded, (\d+) failed, (\d+) errored, (\d+) timeout", text
        )
        rate = re.search(r"([\d.]+) req/s", text)
        assert counted, text
        assert rate, text
        total, succeeded, failed, errored, timeout = map(int, counted.groups())
        return Load(total, succeeded, failed, errored, timeout, float(rate[1]), text)


def h2load(
    port: int,
    path: str = "/",
    *,
    host: str = "a.example.com",
    version: str = "HTTP/2",
    requests: int = 1000,
    seconds: float = 0,
    connections: int = 10,
    streams: int = 10,
    options: Iterable[str] = (),
) -> Loading:
    """Start h2load: for *requests* in all, or for *seconds* when that is not 0."""
    note(version)
    amount = ["-D", str(seconds)] if seconds else ["-n", str(requests)]
    command = ["h2load", *amount, "-c", str(connections), "-m", str(streams if version == "HTTP/2" else 1), "-t", "1"]
    command += ["--h1"] if version == "HTTP/1.1" else []
    command += [f"--connect-to=127.0.0.1:{port}", *options]
    return Loading([*command, f"https://{host}:{port}{path}"])


# Plain sockets


def tls_socket(authority: Authority, port: int, *, sni: str = "a.example.com", alpn: Iterable[str] = ()) -> ssl.SSLSocket:
    """A TLS connection on a plain socket, for bytes that no client library would send."""
    context = trusting(authority)
    if alpn:
        context.set_alpn_protocols(list(alpn))
        note("HTTP/2" if "h2" in alpn else "HTTP/1.1")
    return context.wrap_socket(socket.create_connection(("127.0.0.1", port), timeout=30), server_hostname=sni)
