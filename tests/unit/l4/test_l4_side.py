"""Two ends that are joined: bytes, halves that end, a side that does not read, one that is reset; over real sockets, by either poller."""

import asyncio
import contextlib
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from proxy.counters import Cell
from proxy.deadlines import Deadlines
from proxy.l4.poller import EpollPoller, LoopPoller
from proxy.l4.side import FLUSH, READ_SIZE, Shared, Side
from proxy.observe import NullLog
from tests.unit.upstream.rig import until


class Kept(NullLog):
    def __init__(self) -> None:
        self.events: list[str] = []

    def exception(self, event: str, **details: object) -> None:  # type: ignore[override]
        self.events.append(event)


@dataclass
class World:
    now: float
    shared: Shared
    first: Side
    second: Side
    client: socket.socket
    instance: socket.socket
    log: Kept

    @property
    def over(self) -> bool:
        return self.first.closed and self.second.closed


def pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        far = socket.create_connection(server.getsockname())
        near, _ = server.accept()
    for sock in (far, near):
        sock.setblocking(False)
    return far, near


@pytest.fixture(params=[EpollPoller, LoopPoller])
async def world(request: pytest.FixtureRequest) -> Iterator[World]:
    log = Kept()
    poller, deadlines = request.param(log), Deadlines(0.0)
    made: World
    shared = Shared(poller, deadlines, lambda: made.now)
    (client, near), (instance, far) = pair(), pair()
    made = World(0.0, shared, Side(shared, near, Cell()), Side(shared, far, Cell()), client, instance, log)
    made.first.other, made.second.other = made.second, made.first
    made.first.settle()
    made.second.settle()
    yield made
    made.first.cut()
    made.second.cut()
    poller.close()
    client.close()
    instance.close()


async def got(sock: socket.socket, size: int = 65536) -> bytes:
    async with asyncio.timeout(5):
        return await asyncio.get_running_loop().sock_recv(sock, size)


async def test_bytes_go_both_ways_and_are_counted(world: World) -> None:
    world.client.send(b"question")
    assert await got(world.instance) == b"question"
    world.instance.send(b"the answer")
    assert await got(world.client) == b"the answer"
    assert (world.first.moved.value, world.second.moved.value) == (8, 10)


async def test_half_may_end_before_the_other(world: World) -> None:
    world.client.send(b"last")
    world.client.shutdown(socket.SHUT_WR)
    assert await got(world.instance) == b"last"
    assert await got(world.instance) == b""
    world.instance.send(b"still")
    assert await got(world.client) == b"still"
    world.instance.close()
    assert await got(world.client) == b""
    await until(lambda: world.over)


async def test_who_does_not_read_has_the_other_wait_and_misses_nothing(world: World) -> None:
    sent, quiet = bytearray(), 0
    while quiet < 20:
        try:
            piece = bytes([len(sent) // 65536 % 251]) * 65536
            sent += piece[: world.instance.send(piece)]
            quiet = 0
        except BlockingIOError:
            quiet += 1
            await asyncio.sleep(0.01)
        assert len(sent) < 64 << 20, "nobody holds it back"
    assert 0 < len(world.first.waiting) <= READ_SIZE
    world.instance.shutdown(socket.SHUT_WR)
    received = bytearray()
    while data := await got(world.client, 1 << 20):
        received += data
    assert received == sent
    assert not world.over, "the client may go on"


async def test_one_that_is_reset_takes_the_other_with_it(world: World) -> None:
    world.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    world.client.close()
    with pytest.raises(ConnectionResetError):
        await got(world.instance)
    assert world.over


async def test_an_answer_that_is_cut_short_does_not_look_whole(world: World) -> None:
    with contextlib.suppress(BlockingIOError):
        while True:
            world.instance.send(bytes(65536))
            await asyncio.sleep(0)
    await until(lambda: world.first.waiting)
    world.instance.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    world.instance.close()
    with pytest.raises(ConnectionResetError):
        await _drained(world.client)
    await until(lambda: world.over)


async def _drained(sock: socket.socket) -> None:
    while await got(sock, 1 << 20):
        pass


async def test_what_is_left_for_one_side_is_given_some_time(world: World) -> None:
    with contextlib.suppress(BlockingIOError):
        while True:
            world.instance.send(bytes(65536))
            await asyncio.sleep(0)
    await until(lambda: world.first.waiting)
    left = len(world.first.waiting)
    world.first.other = world.second.other = None
    world.second.close()
    world.first.finish()
    assert not world.first.closed
    world.now = FLUSH - 1
    world.shared.deadlines.turn(world.now)
    assert (world.first.closed, len(world.first.waiting)) == (False, left)
    world.now = FLUSH + 1
    world.shared.deadlines.turn(world.now)
    assert world.over


async def test_a_fault_cuts_its_own_connection_and_is_logged(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def poison(*_: object) -> None:
        raise RuntimeError("poison")

    monkeypatch.setattr(Side, "_read", poison)
    world.client.send(b"x")
    with pytest.raises(ConnectionResetError):
        await got(world.instance)
    assert (world.over, world.log.events) == (True, ["a connection failed"])
