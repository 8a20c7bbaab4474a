"""A worker that runs out of file descriptors: it rests, serves those it has, and accepts again when there are enough."""

import asyncio
import contextlib
import os
import socket
import ssl
import time

import pytest

from proxy.counters import Cell
from proxy.listen.descriptors import PAUSE, Descriptors
from proxy.listen.gate import Gate
from proxy.meters import ProxyMetrics
from proxy.observe import Metrics
from tests.unit.few_descriptors import few_descriptors
from tests.unit.listen.conftest import Authority
from tests.unit.listen.edge import HOST, edge
from tests.unit.upstream.rig import until


class Said:
    """A log that keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []

    def info(self, event: str, **details: object) -> None:
        self.lines.append(("info", event.partition(":")[0]))

    def warning(self, event: str, **details: object) -> None:
        self.lines.append(("warning", event.partition(":")[0]))


def can_be_had(most: int = 1000) -> int:
    taken = []
    with contextlib.suppress(OSError):
        while len(taken) < most:
            taken.append(os.dup(0))
    for descriptor in taken:
        os.close(descriptor)
    return len(taken)


def made(limit: int) -> tuple[Descriptors, Gate, Said, ProxyMetrics]:
    meters, said = ProxyMetrics(Metrics()), Said()
    gate = Gate(Cell())
    descriptors = Descriptors(gate, meters, said, lambda: said.lines.append(("closed", "idle")))  # type: ignore[arg-type]
    descriptors.keep(limit)
    return descriptors, gate, said, meters


def test_the_gate_is_shut_while_there_is_a_reason():
    shown, moves = Cell(), []
    gate = Gate(shown)
    gate.tell(lambda: moves.append(gate.is_open))
    gate.take_back("a")
    gate.shut("a")
    gate.shut("a")
    gate.shut("b")
    gate.take_back("a")
    assert (gate.is_open, shown.value, moves) == (False, 0.0, [False])
    gate.take_back("b")
    assert (gate.is_open, shown.value, moves) == (True, 1.0, [False, True])


@pytest.mark.parametrize(("limit", "reserve"), [(64, 8), (1024, 64), (1 << 40, 256)])
def test_a_share_of_what_there_may_be_is_kept(limit, reserve):
    with few_descriptors(500):
        descriptors, _, _, _ = made(limit)
        assert can_be_had() == 500 - reserve
        descriptors.close()
        assert can_be_had() == 500


def test_out_of_descriptors_and_back():
    with few_descriptors(20):
        descriptors, gate, said, meters = made(64)
        hit = meters.limits_hit.cell("descriptors")
        taken = [os.dup(0) for _ in range(12)]
        assert can_be_had() == 0
        descriptors.look(100.0)
        assert gate.is_open
        descriptors.relieve(100.0)
        descriptors.relieve(100.1)
        assert (can_be_had(), gate.is_open, hit.value) == (8, False, 2)
        descriptors.look(100.0 + PAUSE)
        assert (can_be_had(), gate.is_open) == (8, False), "the reserve alone is not enough"
        for _ in range(3):
            os.close(taken.pop())
        descriptors.look(100.5)
        assert not gate.is_open, "not before the pause is over"
        descriptors.look(100.0 + PAUSE)
        assert (can_be_had(), gate.is_open) == (3, True)
        descriptors.look(200.0)
        idle = ("closed", "idle")
        assert said.lines == [idle, ("warning", "out of file descriptors"), idle, ("info", "file descriptors are there again")]
        for descriptor in taken:
            os.close(descriptor)
        descriptors.close()


async def test_a_listener_out_of_descriptors_rests_serves_on_and_accepts_again(authority: Authority) -> None:
    async with edge(authority) as made:
        said = Said()
        descriptors = Descriptors(made.limits.gate, made.meters, said, made.world.services.upstreams.close_idle)  # type: ignore[arg-type]
        made.world.services.relieve = lambda: descriptors.relieve(0.0)
        descriptors.keep(64)
        async with made.h1() as present:
            made.limits.gate.shut("test")
            waiting = [socket.create_connection(("127.0.0.1", made.port)) for _ in range(40)]
            with few_descriptors(10):
                made.limits.gate.take_back("test")
                await until(lambda: not made.limits.gate.is_open)
                began = time.process_time()
                await asyncio.sleep(0.3)
                assert time.process_time() - began < 0.15, "it does not rest"
                assert made.meters.limits_hit.cell("descriptors").value == 1
                await until(lambda: len(made.listener.connections) == 11)
                present.ask("/")
                assert await present.answer() == (200, b"hello"), "a backend is reached with the reserve"
                descriptors.look(PAUSE)
                assert not made.limits.gate.is_open
            descriptors.look(PAUSE)
            assert made.limits.gate.is_open
            await until(lambda: len(made.listener.connections) == 41)
            waiting[-1].setblocking(False)
            secured = await _handshake(made.client_context, waiting.pop())
            secured.send(b"GET /health HTTP/1.1\r\nhost: a.example.com\r\n\r\n")
            assert b"200 OK" in await asyncio.to_thread(secured.recv, 4096)
            secured.close()
            for each in waiting:
                each.close()
        assert [kind for kind, _ in said.lines] == ["warning", "info"]
        descriptors.close()


async def _handshake(context: ssl.SSLContext, sock: socket.socket) -> ssl.SSLSocket:
    sock.setblocking(True)
    return await asyncio.to_thread(context.wrap_socket, sock, server_hostname=HOST)


async def test_an_accept_that_fails_for_a_client_is_no_reason_to_stop(authority: Authority) -> None:
    async with edge(authority) as made:
        real, failures = (
            made.listener._acceptor._socket,
            [OSError(71, "Protocol error"), ConnectionAbortedError(103, "aborted"), InterruptedError()],
        )

        class Flawed:
            def accept(self):
                if failures:
                    raise failures.pop()
                return real.accept()

            def __getattr__(self, name):
                return getattr(real, name)

        made.listener._acceptor._socket = Flawed()
        async with made.h1() as client:
            client.ask("/health")
            assert await client.answer() == (200, b"OK")
        assert failures == []
        made.listener._acceptor._socket = real
        assert made.limits.gate.is_open


def test_few_descriptors_are_few():
    with few_descriptors(3):
        assert can_be_had() == 3
