"""Connecting to real sockets: what works, and in which words it fails."""

import asyncio
import contextlib
import socket
import ssl
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from proxy.snapshot import UpstreamTls
from proxy.upstream import race as race_module
from proxy.upstream.race import STAGGER, race
from proxy.upstream.resolve import MAX_ADDRESSES
from tests.unit.listen.conftest import Authority, Signed
from tests.unit.upstream.rig import Backend, Rig, Taker, polite, serve, until


@pytest.fixture(scope="module")
def ca() -> Authority:
    return Authority("Backends")


def server_context(folder: Path, signed: Signed) -> ssl.SSLContext:
    (folder / "chain.pem").write_bytes(signed.chain)
    (folder / "key.pem").write_bytes(signed.key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "chain.pem", folder / "key.pem")
    return context


def trusting(ca: Authority, name: str | None = None) -> UpstreamTls:
    context = ssl.create_default_context(cadata=ca.pem.decode())
    return UpstreamTls(context, name, ("test",))


@contextlib.asynccontextmanager
async def pool_of(url: str, tls: UpstreamTls | None = None) -> AsyncIterator[Rig]:
    made = Rig(url, tls=tls)
    try:
        yield made
    finally:
        await made.close()


async def failure(made: Rig, seconds: float = 5) -> object:
    taker = Taker()
    made.open(taker, seconds)
    await until(lambda: taker.said)
    (said,) = taker.said
    assert (made.connects("ok"), made.connects("failed")) == (0, 1)
    await until(lambda: made.open_now == 0)
    return said


async def test_a_unix_socket_serves(tmp_path: Path) -> None:
    async with serve(polite, path=tmp_path / "s") as backend, pool_of(f"unix:{tmp_path / 's'}") as made:
        assert (await made.get()).body == b"ok"
        assert (await made.get()).body == b"ok"
        assert backend.connections == 1


async def test_a_tcp_connection_has_no_delay() -> None:
    async with serve(polite) as backend, pool_of(f"http://127.0.0.1:{backend.port}") as made:
        taker = await made.get()
        assert taker.connection is not None
        assert taker.connection._transport is not None
        sock = taker.connection._transport.get_extra_info("socket")
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0


async def test_tls_is_verified_by_the_endpoints_own_name_or_by_the_configured_one(tmp_path: Path, ca: Authority) -> None:
    context = server_context(tmp_path, ca.sign("localhost", "web.internal"))
    async with serve(polite, context=context) as backend:
        async with pool_of(f"https://localhost:{backend.port}", trusting(ca)) as made:
            assert (await made.get()).body == b"ok"
            assert (await made.get()).body == b"ok"
            assert made.reused == 1
        async with pool_of(f"https://127.0.0.1:{backend.port}", trusting(ca, "web.internal")) as made:
            assert (await made.get()).body == b"ok"


async def test_tls_is_verified_by_the_name_that_an_endpoint_brings(tmp_path: Path, ca: Authority) -> None:
    context = server_context(tmp_path, ca.sign("api.example.com"))
    async with serve(polite, context=context) as backend, pool_of(f"https://localhost:{backend.port}", trusting(ca)) as made:
        (plain,) = made.pool.endpoints.values()
        assert await failure(made) == ("failed", "UPSTREAM_CERTIFICATE", True)
        made.pool.endpoints = {plain.url: replace(plain, tls_name="api.example.com")}
        made.upstreams._endpoints.clear()
        assert (await made.get()).body == b"ok"


@pytest.mark.parametrize("fault", ["untrusted", "wrong name", "expired"])
async def test_a_certificate_that_can_not_be_trusted_is_said_to_be_one(fault: str, tmp_path: Path, ca: Authority) -> None:
    signer = Authority("Nobody") if fault == "untrusted" else ca
    signed = signer.sign("other.example" if fault == "wrong name" else "localhost", expired=fault == "expired")
    context = server_context(tmp_path, signed)
    async with serve(polite, context=context) as backend, pool_of(f"https://localhost:{backend.port}", trusting(ca)) as made:
        assert await failure(made) == ("failed", "UPSTREAM_CERTIFICATE", True)


async def test_a_plain_server_behind_https_is_a_tls_error(ca: Authority) -> None:
    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()
        await reader.read()

    async with serve(plain) as backend, pool_of(f"https://localhost:{backend.port}", trusting(ca)) as made:
        assert await failure(made) == ("failed", "UPSTREAM_TLS", True)


async def test_a_server_that_closes_within_the_handshake_is_a_tls_error(ca: Authority) -> None:
    async def rude(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)

    async with serve(rude) as backend, pool_of(f"https://localhost:{backend.port}", trusting(ca)) as made:
        assert await failure(made) == ("failed", "UPSTREAM_TLS", True)


async def test_a_server_that_is_silent_in_the_handshake_is_a_timeout(ca: Authority) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)
        await asyncio.Event().wait()

    async with serve(silent) as backend, pool_of(f"https://localhost:{backend.port}", trusting(ca)) as made:
        assert await failure(made, 0.2) == ("failed", "CONNECT_TIMEOUT", True)


async def test_refused_and_missing_places_are_refused_connects(tmp_path: Path) -> None:
    async with serve(polite) as backend:
        port = backend.port
    for url in (f"http://127.0.0.1:{port}", f"unix:{tmp_path / 'nothing'}"):
        async with pool_of(url) as made:
            assert await failure(made) == ("failed", "CONNECT_REFUSED", True)


async def test_a_name_that_can_not_be_verified_is_a_failed_connect(ca: Authority, tmp_path: Path) -> None:
    context = server_context(tmp_path, ca.sign("localhost"))
    async with serve(polite, context=context) as backend, pool_of(f"https://localhost:{backend.port}", trusting(ca, ".x")) as made:
        assert await failure(made) == ("failed", "CONNECT_REFUSED", True)


@contextlib.contextmanager
def full_listener(host: str) -> "contextlib.AbstractContextManager[int]":
    """A listening socket whose queue is full, so that a connect to it is never answered."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind((host, 0))
        listener.listen(0)
        port = listener.getsockname()[1]
        for _ in range(4):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                client.connect((host, port))
        yield port


async def test_a_backend_that_does_not_answer_the_connect_is_a_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(race_module, "TCP_FASTOPEN_CONNECT", 0)
    with full_listener("127.0.0.1") as port:
        async with pool_of(f"http://127.0.0.1:{port}") as made:
            assert await failure(made, 0.2) == ("failed", "CONNECT_TIMEOUT", True)


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def closed_port() -> int:
    async with serve(polite) as backend:
        return backend.port


@pytest.fixture
async def elsewhere() -> AsyncIterator[Backend]:
    """A backend on 127.0.0.2, on whose port nothing listens at 127.0.0.1."""
    async with serve(polite, host="127.0.0.2") as backend:
        yield backend


async def test_the_addresses_of_a_name_are_tried_in_turn_at_once_where_one_refuses(elsewhere: Backend) -> None:
    async with pool_of(f"http://web.internal:{elsewhere.port}") as made:
        made.book["web.internal"] = ["127.0.0.1", "127.0.0.3", "127.0.0.2"]
        began = time.monotonic()
        assert (await made.get()).body == b"ok"
        assert time.monotonic() - began < STAGGER
        assert (made.connects("ok"), made.connects("failed")) == (1, 0)


async def test_an_address_that_swallows_packets_costs_the_head_start_that_it_had() -> None:
    with full_listener("127.0.0.1") as port:
        async with serve(polite, host="127.0.0.2", port=port), pool_of(f"http://web.internal:{port}") as made:
            made.book["web.internal"] = ["127.0.0.1", "127.0.0.2"]
            taker = Taker()
            began = time.monotonic()
            made.open(taker, 10)
            await until(lambda: taker.said)
            took = time.monotonic() - began
            assert taker.said == [("connected",)]
            assert STAGGER - 0.01 <= took < 4 * STAGGER
            assert taker.connection is not None
            taker.connection.abort()


async def test_addresses_that_refuse_do_not_end_a_connect_that_is_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(race_module, "STAGGER", 0.01)
    with full_listener("127.0.0.1") as port:
        async with pool_of(f"http://web.internal:{port}") as made:
            made.book["web.internal"] = ["127.0.0.1", "127.0.0.2", "127.0.0.3"]
            assert await failure(made, 0.2) == ("failed", "CONNECT_TIMEOUT", True)


async def test_no_more_addresses_than_the_bound_are_tried(elsewhere: Backend) -> None:
    async with pool_of(f"http://web.internal:{elsewhere.port}") as made:
        made.book["web.internal"] = ["127.0.0.1"] * MAX_ADDRESSES + ["127.0.0.2"]
        assert await failure(made) == ("failed", "CONNECT_REFUSED", True)


async def test_a_connect_given_up_leaves_no_socket() -> None:
    before = open_files()
    with full_listener("127.0.0.1") as port:
        open_then = open_files()
        task = asyncio.get_running_loop().create_task(race(["127.0.0.1"] * 3, port, fast_open=False))
        await asyncio.sleep(0.01)
        assert open_files() == open_then + 1
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert open_files() == open_then
    assert open_files() == before


async def test_a_connect_given_up_as_it_is_won_leaves_no_socket() -> None:
    async with serve(polite) as backend:
        before = open_files()
        loop = asyncio.get_running_loop()
        for turns in range(6):  # one of them is the turn in which the connect is over
            task = loop.create_task(race(["127.0.0.1"], backend.port, fast_open=False))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            (sock,) = await asyncio.gather(task, return_exceptions=True)
            if isinstance(sock, socket.socket):
                sock.close()
        await until(lambda: open_files() <= before)


async def test_a_family_that_the_system_lacks_is_passed_over(elsewhere: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    real = socket.socket

    def without_ipv6(family: int = -1, *values: Any) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(97, "Address family not supported by protocol")
        return real(family, *values)

    monkeypatch.setattr(race_module.socket, "socket", without_ipv6)
    sock = await race(["2001:db8::1", "127.0.0.2"], elsewhere.port, fast_open=False)
    sock.close()


async def test_fast_open_is_for_one_address_alone(elsewhere: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(race_module, "TCP_FASTOPEN_CONNECT", 30)
    asked = []
    for addresses in (["127.0.0.2"], ["127.0.0.2", "127.0.0.1"]):
        sock = await race(addresses, elsewhere.port, fast_open=True)
        asked.append(sock.getsockopt(socket.IPPROTO_TCP, 30))
        sock.close()
    assert asked == [1, 0]


async def test_a_name_without_addresses_is_a_dns_error() -> None:
    async with pool_of("http://web.internal:80") as made:
        assert await failure(made) == ("failed", "DNS_ERROR", True)
