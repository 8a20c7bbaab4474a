"""Connecting to real sockets: what works, and in which words it fails."""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from proxy.snapshot import UpstreamTls
from proxy.upstream import connect as connect_module
from tests.unit.listen.conftest import Authority, Signed
from tests.unit.upstream.rig import Rig, Taker, polite, serve, until


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


async def test_refused_missing_and_impossible_places_are_refused_connects(tmp_path: Path) -> None:
    async with serve(polite) as backend:
        port = backend.port
    for url in (f"http://127.0.0.1:{port}", f"unix:{tmp_path / 'nothing'}", f"http://{'a' * 64}.example:1", "http://a..b:1"):
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
    monkeypatch.setattr(connect_module, "TCP_FASTOPEN_CONNECT", 0)
    with full_listener("127.0.0.1") as port:
        async with pool_of(f"http://127.0.0.1:{port}") as made:
            assert await failure(made, 0.2) == ("failed", "CONNECT_TIMEOUT", True)


@pytest.fixture
def name_with(monkeypatch: pytest.MonkeyPatch):
    """Makes a name have these addresses."""

    def set_addresses(*addresses: tuple[str, int]) -> None:
        loop = asyncio.get_running_loop()
        real = loop.getaddrinfo

        async def getaddrinfo(host: str, port: int, **values: Any) -> list[Any]:
            if host != "web.internal":  # uvloop asks for numeric addresses too
                return await real(host, port, **values)
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", address) for address in addresses]

        monkeypatch.setattr(loop, "getaddrinfo", getaddrinfo)

    return set_addresses


async def closed_port() -> int:
    async with serve(polite) as backend:
        return backend.port


async def test_the_addresses_of_a_name_are_tried_in_turn(name_with) -> None:
    async with serve(polite) as backend, pool_of("http://web.internal:80") as made:
        name_with(("127.0.0.1", await closed_port()), ("127.0.0.1", backend.port))
        assert (await made.get()).body == b"ok"
        assert (made.connects("ok"), made.connects("failed")) == (1, 0)


async def test_an_address_that_swallows_packets_leaves_time_for_the_next_one(name_with, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connect_module, "TCP_FASTOPEN_CONNECT", 0)
    with full_listener("127.0.0.1") as port:
        async with serve(polite) as backend, pool_of("http://web.internal:80") as made:
            name_with(("127.0.0.1", port), ("127.0.0.1", backend.port))
            taker = Taker()
            made.open(taker, 1)
            await until(lambda: taker.said)
            assert taker.said == [("connected",)]
            assert taker.connection is not None
            taker.connection.abort()


async def test_the_last_addresss_failure_is_told_and_no_more_than_the_bound_are_tried(name_with) -> None:
    async with serve(polite) as backend, pool_of("http://web.internal:80") as made:
        refused = ("127.0.0.1", await closed_port())
        name_with(*[refused] * connect_module.MAX_ADDRESSES, ("127.0.0.1", backend.port))
        assert await failure(made) == ("failed", "CONNECT_REFUSED", True)


async def test_a_name_without_addresses_is_a_refused_connect(name_with) -> None:
    async with pool_of("http://web.internal:80") as made:
        name_with()
        assert await failure(made) == ("failed", "CONNECT_REFUSED", True)
