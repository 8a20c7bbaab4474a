"""A client's way to an instance: refused, out of descriptors, by a name, too slow; in this process, over real sockets."""

import asyncio
import contextlib
import errno
import os
import socket
import time
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from balancer.pool import Member, PoolSettings
from balancer.pool import Pool as BalancerPool
from proxy.counters import Cell
from proxy.deadlines import Deadlines
from proxy.keys import Keyring
from proxy.l4 import approach
from proxy.l4.meters import TierMeters
from proxy.l4.tcp import TcpTier
from proxy.listen.bind import bind_tcp
from proxy.listen.limits import AcceptLimits
from proxy.listen.proxy_protocol import header
from proxy.observe import Metrics, NullLog
from proxy.snapshot import Endpoint, Limits
from tests.unit.upstream.book import Book
from tests.unit.upstream.rig import until

HELLO = b"GET / HTTP/1.1\r\n\r\n"


class World:
    """A tier over TCP, and instances that are listening sockets."""

    def __init__(self, endpoints: list[tuple[str, int]], sock: socket.socket | None = None) -> None:
        urls = {f"tcp://{host}:{port}": Endpoint(f"tcp://{host}:{port}", False, host, port, None) for host, port in endpoints}
        self.balancer = BalancerPool("l4", [Member(url) for url in urls], PoolSettings(probed=True), b"s" * 32, 7)
        pool = SimpleNamespace(balancer=self.balancer, endpoint=urls.__getitem__)
        metrics, limits = Metrics(), Limits(0, 0, 0, 0, None)  # type: ignore[arg-type]
        self.deadlines, self.book, self.relieved = Deadlines(time.monotonic()), Book(), 0
        means: Any = SimpleNamespace(
            keys=Keyring.alone(b"s" * 32), log=NullLog(), limits=AcceptLimits(limits, frozenset(), metrics), addresses=self.book,  # type: ignore[arg-type]
            relieve=self.relieve, handshake_timeout=lambda: 5.0, deadlines=self.deadlines, clock=time.monotonic,
        )  # fmt: skip
        self.listener: Any = SimpleNamespace(instances=SimpleNamespace(pool=pool), connect_timeout=0.2, idle_timeout=60.0)
        self.meters = TierMeters(metrics).of_listener("l4")
        self.tier = TcpTier(self.listener, means, self.meters)
        sock = sock or bind_tcp(("127.0.0.1", 0))
        self.address = "127.0.0.1", sock.getsockname()[1]
        self.tier.start(sock)

    def relieve(self) -> None:
        self.relieved += 1

    def results(self) -> dict[str, float]:
        return {result: cell.value for result, cell in self.meters.connections.items() if cell.value}

    async def ask(self) -> socket.socket:
        client = socket.socket()
        client.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(client, self.address)
        await loop.sock_sendall(client, HELLO)
        return client

    async def turn(self) -> None:
        """Until a connect is under way, and then past its time."""
        await until(lambda: any(each._approach is not None for each in self.tier.connections))
        self.deadlines.turn(time.monotonic() + 1)


@contextlib.asynccontextmanager
async def world(endpoints: list[tuple[str, int]], sock: socket.socket | None = None) -> AsyncIterator[World]:
    made = World(endpoints, sock)
    try:
        yield made
    finally:
        made.tier.stop_accepting()
        await made.tier.close()
        assert (made.meters.open.value, made.tier.limits.connections) == (0, 0)
        assert [backend.inflight for backend in made.balancer.backends] == [0] * len(made.balancer.backends)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


async def greeted(server: socket.socket) -> bytes:
    loop = asyncio.get_running_loop()
    server.setblocking(False)
    async with asyncio.timeout(5):
        accepted, _ = await loop.sock_accept(server)
        with accepted:
            return await loop.sock_recv(accepted, 65536)


async def test_an_instance_that_refuses_is_passed_over() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        async with world([("127.0.0.1", free_port()), server.getsockname()]) as made:
            made.balancer.choose = lambda *_: made.balancer.backends[0]  # type: ignore[method-assign]
            with await made.ask():
                assert (await greeted(server)).endswith(HELLO)
                assert (made.results(), made.meters.connect_failures.value) == ({"passed": 1}, 1)


@pytest.mark.parametrize("host", ["127.0.0.1", "::"])
async def test_the_header_of_an_ipv4_client_is_one_of_ipv4_whatever_the_listener_is(host: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        async with world([server.getsockname()], bind_tcp((host, 0))) as made:
            with await made.ask() as client:
                expected = header(client.getsockname(), made.address) + HELLO
                assert await greeted(server) == expected
                assert len(expected) == 28 + len(HELLO)


async def test_a_name_is_looked_up_and_its_addresses_tried() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        async with world([("web.internal", server.getsockname()[1])]) as made:
            made.book["web.internal"] = ["127.0.0.2", "127.0.0.1"]
            with await made.ask():
                assert (await greeted(server)).endswith(HELLO)
                assert made.results() == {"passed": 1}


async def test_a_name_without_addresses_is_no_instance() -> None:
    async with world([("web.internal", 80)]) as made:
        with await made.ask() as client:
            assert await asyncio.get_running_loop().sock_recv(client, 1) == b""
            assert made.results() == {"connect_failed": 1}


async def test_a_connect_that_takes_too_long_is_given_up() -> None:
    with socket.socket() as full, contextlib.ExitStack() as stack:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                waiting.connect(full.getsockname())
        async with world([full.getsockname()]) as made:
            with await made.ask() as client:
                await made.turn()
                assert await asyncio.get_running_loop().sock_recv(client, 1) == b""
                assert made.results() == {"connect_failed": 1}


@pytest.mark.parametrize(("failures", "results"), [(1, {"passed": 1}), (2, {"connect_failed": 1})])
async def test_without_a_descriptor_one_in_reserve_is_asked_for_and_nobody_is_blamed(
    monkeypatch: pytest.MonkeyPatch, failures: int, results: dict[str, float]
) -> None:
    left, real, blamed = Cell(), approach.begin, []
    left.value = failures

    def begin(*where: Any) -> tuple[socket.socket, bool]:
        if left.value:
            left.value -= 1
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return real(*where)

    monkeypatch.setattr(approach, "begin", begin)
    with socket.create_server(("127.0.0.1", 0)) as server:
        async with world([server.getsockname()]) as made:
            made.balancer.report = lambda *what: bool(blamed.append(what))  # type: ignore[method-assign]
            with await made.ask():
                await until(made.results)
                assert (made.results(), made.relieved, blamed) == (results, failures, [])
