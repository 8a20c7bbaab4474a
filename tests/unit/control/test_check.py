"""One health check against real servers: what counts as healthy, and what a person reads when it is not."""

import asyncio
import contextlib
import socket
import ssl
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from proxy.config.material import self_signed
from proxy.control.check import BODY_BYTES, REASON_LENGTH, Checker, Verdict
from proxy.snapshot import Endpoint, HealthCheck, UpstreamTls
from tests.unit.control.probe_backend import DEADLINE, ProbeBackend, answer, header
from tests.unit.few_descriptors import few_descriptors
from tests.unit.upstream.book import Book


def rules(**changes):
    wanted = {"path": "/health", "host": None, "interval": 1.0, "jitter": 0.0, "timeout": 5.0, "statuses": ((200, 299),), "body": None}
    return HealthCheck(**(wanted | changes))


def endpoint(url):
    if url.startswith("unix:"):
        return Endpoint(url, secure=False, host="localhost", port=0, unix_path=url[5:])
    parts = urlsplit(url)
    return Endpoint(url, secure=parts.scheme == "https", host=parts.hostname, port=parts.port, unix_path=None)


async def check(url, tls=None, book=None, **changes):
    checker = Checker(rules(**changes), tls, Book() if book is None else book)
    try:
        return await checker.check(url if isinstance(url, Endpoint) else endpoint(url))
    finally:
        await checker.close()


GOOD = Verdict(healthy=True, words="status 200")


def bad(words):
    return Verdict(healthy=False, words=words)


async def test_a_plain_get_with_a_connection_of_its_own():
    async with ProbeBackend.serve() as backend:
        assert await check(backend.url, path="/health?full=1&x=%2F") == GOOD
        (request,) = backend.requests
        assert request.startswith("GET /health?full=1&x=%2F HTTP/1.1\r\n")
        assert header(request, "host") == [f"127.0.0.1:{backend.port}"]
        assert header(request, "connection") == ["close"]
        assert header(request, "accept-encoding") == ["identity"]
        assert header(request, "user-agent")[0].startswith("qproxy-probe/")


async def test_the_host_that_is_configured():
    async with ProbeBackend.serve() as backend:
        assert await check(backend.url, host="probe.example:8080") == GOOD
        assert header(backend.requests[0], "host") == ["probe.example:8080"]


async def test_ipv6():
    server = await asyncio.start_server(lambda _, writer: (writer.write(answer()), writer.close()), "::1", 0)
    async with server:
        assert await check(f"http://[::1]:{server.sockets[0].getsockname()[1]}") == GOOD


async def test_a_unix_socket(tmp_path):
    async with ProbeBackend.serve(unix=str(tmp_path / "socket")) as backend:
        assert await check(backend.url) == GOOD
        assert header(backend.requests[0], "host") == ["localhost"]
    assert await check(f"unix:{tmp_path / 'absent'}") == bad("no such file or directory")


@pytest.mark.parametrize(
    ("status", "healthy"), [(199, False), (200, True), (299, True), (300, False), (404, True), (405, False), (503, False)]
)
async def test_status_ranges_are_inclusive(status, healthy):
    async with ProbeBackend.serve(answer(status)) as backend:
        verdict = await check(backend.url, statuses=((200, 299), (404, 404)), timeout=0.3 if status < 200 else 5.0)
    assert verdict.healthy is healthy
    if status >= 200:
        assert verdict.words == f"status {status}"


async def test_redirects_are_not_followed():
    async with ProbeBackend.serve(answer(302, fields=b"location: /elsewhere\r\n")) as backend:
        assert await check(backend.url) == bad("status 302")
        assert len(backend.requests) == 1


async def test_proxies_of_the_environment_are_not_used(monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    async with ProbeBackend.serve() as backend:
        assert await check(backend.url) == GOOD


async def test_the_wanted_text_may_be_anywhere_in_the_first_part_of_the_body():
    async with ProbeBackend.serve(answer(body=b"x" * 5000 + "all is wéll".encode() + b"y" * 5000)) as backend:
        assert await check(backend.url, body="is wéll") == GOOD
        assert await check(backend.url, body="") == GOOD
        missing = await check(backend.url, body="no such text")
    assert missing == bad("status 200, but the wanted text is not in the first 65536 bytes")


async def test_the_wanted_text_may_be_split_between_pieces():
    async def dribble(writer):
        writer.write(b"HTTP/1.1 200 X\r\ntransfer-encoding: chunked\r\n\r\n")
        for letter in "all is well":
            writer.write(b"1\r\n" + letter.encode() + b"\r\n")
            await writer.drain()
        writer.write(b"0\r\n\r\n")

    async with ProbeBackend.serve(dribble) as backend:
        assert await check(backend.url, body="is well") == GOOD


async def test_text_behind_the_bound_is_not_found():
    async with ProbeBackend.serve(answer(body=b"x" * (BODY_BYTES - 4) + b"the end")) as backend:
        assert not (await check(backend.url, body="the end")).healthy
        assert (await check(backend.url, body="xthe ")).healthy


async def test_an_endless_body_is_read_no_further_than_the_bound():
    sent = 0

    async def flood(writer):
        nonlocal sent
        writer.write(b"HTTP/1.1 200 X\r\n\r\n")
        while True:
            writer.write(b"x" * 16384)
            await writer.drain()
            sent += 16384

    async with ProbeBackend.serve(flood) as backend:
        assert not (await check(backend.url, body="never")).healthy
        await backend.until(lambda: backend.open == 0)
    assert sent < 64 * 1024 * 1024


async def test_a_body_without_end_does_not_matter_when_nothing_is_wanted_of_it():
    gate = asyncio.Event()

    async def hang(writer):
        writer.write(b"HTTP/1.1 200 X\r\ncontent-length: 5\r\n\r\n")
        await gate.wait()

    async with ProbeBackend.serve(hang) as backend:
        assert await check(backend.url) == GOOD
        gate.set()


async def test_a_loop_that_is_busy_takes_no_backend_for_slow():
    loop = asyncio.get_running_loop()

    def hog():
        time.sleep(0.03)  # what a turn of the loop takes under full load
        nonlocal turn
        turn = loop.call_soon(hog)

    async with ProbeBackend.serve() as backend:
        turn = loop.call_soon(hog)
        try:
            assert await check(backend.url, timeout=0.1) == GOOD
        finally:
            turn.cancel()


async def test_the_timeout_covers_the_whole_check():
    async def drip(writer):
        writer.write(b"HTTP/1.1 200 X\r\ncontent-length: 100000\r\n\r\n")
        while True:
            writer.write(b"x")
            await asyncio.sleep(0.01)  # each byte well within any timeout for a single read
            await writer.drain()

    async with ProbeBackend.serve(drip) as backend:
        assert await check(backend.url, body="never", timeout=0.2) == bad("no answer within 0.2 s")


async def test_nobody_listens():
    async with ProbeBackend.serve() as backend:
        url = backend.url
    assert await check(url) == bad("connection refused")


@pytest.mark.parametrize(
    "reply",
    [
        b"",
        b"SSH-2.0-server\r\n\r\n",
        b"HTTP/1.1 200 X\r\nno colon\r\n\r\n",
        b"HTTP/1.1 200 X\r\nx: " + b"y" * 300_000,
        b"\xff" * 5000,
        b"HTTP/1.1 200",
    ],
)
async def test_what_is_not_http_is_a_verdict_in_one_short_line(reply):
    async with ProbeBackend.serve(reply) as backend:
        verdict = await check(backend.url)
    assert not verdict.healthy
    assert 0 < len(verdict.words) <= REASON_LENGTH
    assert "\n" not in verdict.words


@pytest.mark.parametrize("host", ["a" * 70 + ".invalid", "..", "no such host"])
async def test_a_host_that_cannot_be_is_a_verdict(host):
    impossible = Endpoint("http://x", secure=False, host=host, port=80, unix_path=None)
    assert not (await check(impossible)).healthy


class Secured:
    """A certificate, a server context that notes the SNI, and a client context that trusts it."""

    def __init__(self, folder: Path, *names):
        certificate = self_signed(names)
        (folder / "both.pem").write_bytes(certificate.chain_pem + certificate.key_pem)
        self.server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.server.load_cert_chain(folder / "both.pem")
        self.asked_for = []
        self.server.sni_callback = lambda _, name, __: self.asked_for.append(name)
        self.client = ssl.create_default_context(cadata=certificate.chain_pem.decode())


async def test_tls_is_verified_against_the_host_that_was_looked_up_for_an_address(tmp_path):
    secured = Secured(tmp_path, "web.internal")
    async with ProbeBackend.serve(tls=secured.server) as backend:
        book = Book({"web.internal": ["127.0.0.1"], "other.internal": ["127.0.0.1"]})
        good = await check(f"https://web.internal:{backend.port}", UpstreamTls(secured.client, None, ()), book)
        wrong = await check(f"https://other.internal:{backend.port}", UpstreamTls(secured.client, None, ()), book)
    assert (good, secured.asked_for) == (GOOD, ["web.internal", "other.internal"])
    assert wrong == bad("certificate refused: Hostname mismatch, certificate is not valid for 'other.internal'.")


async def test_tls_is_verified_against_the_pools_name(tmp_path):
    secured = Secured(tmp_path, "backend.test")
    async with ProbeBackend.serve(tls=secured.server) as backend:
        assert await check(backend.url, UpstreamTls(secured.client, "backend.test", ())) == GOOD
        assert secured.asked_for == ["backend.test"]
        wrong = await check(backend.url, UpstreamTls(secured.client, "other.test", ()))
        unnamed = await check(backend.url, UpstreamTls(secured.client, None, ()))
        stranger = await check(backend.url, UpstreamTls(ssl.create_default_context(), "backend.test", ()))
        assert len(backend.requests) == 1
    assert wrong == bad("certificate refused: Hostname mismatch, certificate is not valid for 'other.test'.")
    assert unnamed == bad("certificate refused: IP address mismatch, certificate is not valid for '127.0.0.1'.")
    assert stranger.words.startswith("certificate refused: self")


async def test_without_a_name_of_the_pool_the_endpoints_own_counts(tmp_path):
    secured = Secured(tmp_path, "127.0.0.1")
    async with ProbeBackend.serve(tls=secured.server) as backend:
        assert await check(backend.url, UpstreamTls(secured.client, None, ())) == GOOD


async def test_plain_endpoints_of_a_pool_with_tls_are_asked_plainly(tmp_path):
    secured = Secured(tmp_path, "backend.test")
    async with ProbeBackend.serve() as backend:
        assert await check(backend.url, UpstreamTls(secured.client, "backend.test", ())) == GOOD


async def test_tls_towards_a_server_without_it(tmp_path):
    secured = Secured(tmp_path, "backend.test")
    plain = await asyncio.start_server(lambda _, writer: (writer.write(b"HTTP/1.1 400 X\r\n\r\n"), writer.close()), "127.0.0.1", 0)
    async with plain:
        url = f"https://127.0.0.1:{plain.sockets[0].getsockname()[1]}"
        verdict = await check(url, UpstreamTls(secured.client, "backend.test", ()))
    assert verdict == bad("TLS failed: WRONG_VERSION_NUMBER")


async def test_a_handshake_that_hangs_leaves_no_connection_open(tmp_path):
    secured = Secured(tmp_path, "backend.test")
    ended = asyncio.Event()

    async def say_nothing(reader, writer):
        while await reader.read(65536):
            pass
        ended.set()
        writer.close()

    server = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    async with server:
        url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        tls = UpstreamTls(secured.client, "backend.test", ())
        assert await check(url, tls, timeout=0.2) == bad("no answer within 0.2 s")
        async with asyncio.timeout(DEADLINE):
            await ended.wait()


@contextlib.contextmanager
def black_hole():
    """A port of 127.0.0.1 that never answers a connect."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                client.connect(listener.getsockname())
        yield listener.getsockname()[1]


async def test_a_host_is_asked_at_its_addresses_in_turn_until_one_can_be_connected_to():
    async with ProbeBackend.serve(host="127.0.0.2") as backend:
        url = f"http://web.internal:{backend.port}"
        assert await check(url, book=Book({"web.internal": ["127.0.0.3", "127.0.0.2"]})) == GOOD
        assert header(backend.requests[0], "host") == [f"web.internal:{backend.port}"]
        assert await check(url, book=Book({"web.internal": ["127.0.0.3", "127.0.0.4"]})) == bad("connection refused")
        assert await check(url, book=Book()) == bad("web.internal: domain name not found")


async def test_an_address_that_swallows_packets_leaves_time_for_the_next_one():
    with black_hole() as port:
        async with ProbeBackend.serve(host="127.0.0.2", port=port):
            assert await check(f"http://web.internal:{port}", book=Book({"web.internal": ["127.0.0.1", "127.0.0.2"]}), timeout=0.5) == GOOD
        assert await check(f"http://web.internal:{port}", book=Book({"web.internal": ["127.0.0.1"]}), timeout=0.2) == bad(
            "no answer within 0.2 s"
        )


async def test_an_address_that_connects_is_the_one_that_counts():
    async with ProbeBackend.serve(answer(500), host="127.0.0.1") as broken, ProbeBackend.serve(host="127.0.0.2", port=broken.port) as well:
        url = f"http://web.internal:{broken.port}"
        assert await check(url, book=Book({"web.internal": ["127.0.0.1", "127.0.0.2"]})) == bad("status 500")
        assert not well.requests


async def test_without_a_file_descriptor_nothing_is_learnt_of_the_endpoint():
    async with ProbeBackend.serve() as backend:
        with few_descriptors(0):
            assert await check(backend.url) == Verdict(healthy=False, words="too many open files", ours=True)
        assert await check(backend.url) == GOOD
