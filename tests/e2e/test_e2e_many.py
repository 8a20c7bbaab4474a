"""A thousand clients at once: each has its connection, each is served, and an idle one costs little."""

import asyncio
import resource
from contextlib import AsyncExitStack

import pytest
from harness.clients import trusting
from harness.content import MIB
from harness.figures import report
from harness.http1 import http1_connect
from harness.http2 import http2_connect
from harness.http3 import http3

TCP = 1000
QUIC = 100
ROUNDS = 3  # requests of each connection, sent by all at once
OPENING = 50  # handshakes at a time
KIB = 1024


@pytest.fixture(scope="module", autouse=True)
def _descriptors():
    """Enough of them for the clients here; what is started from here inherits the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 8 * TCP
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def _get_from_all(clients, host: str) -> None:
    answers = await asyncio.gather(*(client.get("/hello", host=host) for client in clients))
    wrong = [answer for answer in answers if answer.status != 200 or not answer.body.startswith(b"Hello from a.example.com")]
    assert not wrong, wrong[:3]


async def _open(number: int, connect) -> list:
    gate = asyncio.Semaphore(OPENING)

    async def one():
        async with gate:
            return await connect()

    return await asyncio.gather(*(one() for _ in range(number)))


def _told(version: str, number: int, before: int, idle: int, after: int) -> None:
    report(
        f"{version}: {number} idle connections hold {(idle - before) / number / KIB:.1f} KiB each, "
        f"{(after - before) / number / KIB:.1f} KiB after {ROUNDS} requests each"
    )


@pytest.mark.parametrize(("version", "connect"), [("HTTP/1.1", http1_connect), ("HTTP/2", http2_connect)])
async def test_a_thousand_connections_are_all_served(authority, proxy, version, connect):
    host, context = f"a.example.com:{proxy.port}", trusting(authority)
    if version == "HTTP/2":
        context.set_alpn_protocols(["h2"])
    gauge = f'qproxy_connections_open{{version="{version}"}}'
    warm = await connect(context, proxy.port)
    await _get_from_all([warm], host)
    before = proxy.rss()
    clients = await _open(TCP, lambda: connect(context, proxy.port))
    try:
        idle = proxy.rss()
        for _ in range(ROUNDS):
            await _get_from_all(clients, host)
        assert (await asyncio.to_thread(proxy.metrics))[gauge] == TCP + 1
        _told(version, TCP, before, idle, proxy.rss())
        assert proxy.rss() - before < TCP * MIB / 4
    finally:
        for client in [warm, *clients]:
            client.transport.abort()
            await client.lost
    proxy.wait_for(lambda: proxy.metrics()[gauge] == 0, "forgot the connections that ended")


@pytest.mark.speaks("HTTP/3")
async def test_a_hundred_quic_connections_are_all_served(authority, proxy):
    host = f"a.example.com:{proxy.port}"
    gauge = 'qproxy_connections_open{version="HTTP/3"}'
    async with AsyncExitStack() as stack:
        warm = await stack.enter_async_context(http3(authority, proxy.port))
        await _get_from_all([warm], host)
        before = proxy.rss()
        clients = await _open(QUIC, lambda: stack.enter_async_context(http3(authority, proxy.port)))
        idle = proxy.rss()
        for _ in range(ROUNDS):
            await _get_from_all(clients, host)
        assert (await asyncio.to_thread(proxy.metrics))[gauge] == QUIC + 1
        _told("HTTP/3", QUIC, before, idle, proxy.rss())
        assert proxy.rss() - before < QUIC * MIB
        for client in clients:
            client.close()  # all at once: each then waits out its closing period
    proxy.wait_for(lambda: proxy.metrics()[gauge] == 0, "forgot the connections that ended")
