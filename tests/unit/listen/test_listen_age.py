"""The limit of a connection's age: who is told, how often, and that nothing is cut."""

from __future__ import annotations

from dataclasses import replace

import h2.events
import pytest

from proxy.deadlines import Deadlines
from proxy.listen.age import SPREAD, STEP, begin_age
from proxy.snapshot import Timeouts
from tests.sim import engines
from tests.unit.exchange_world import World
from tests.unit.listen.conftest import Authority
from tests.unit.listen.edge import TIMEOUTS, edge
from tests.unit.listen.test_listen_udp import quic
from tests.unit.upstream.rig import until

AGED = replace(TIMEOUTS, idle=5000, connection_age=100.0)


@pytest.mark.parametrize("words", [1, 2])
def test_it_is_told_within_the_spread_and_so_often_as_it_takes(words: int) -> None:
    told: list[float] = []
    for _ in range(50):
        world = World()
        services = world.services
        services.snapshot = replace(services.snapshot, timeouts=AGED)
        begin_age(services, "HTTP/2", lambda: told.append(world.now - began), words)  # noqa: B023  # run within the turn
        began = world.now
        world.pass_time(100 * (1 - SPREAD) - 0.5)
        assert not told
        world.pass_time(100 * 2 * SPREAD + STEP + 1)
        first, *more = told
        assert 100 * (1 - SPREAD) <= first <= 100 * (1 + SPREAD) + STEP
        assert len(more) == words - 1
        assert world.meters.connections_aged.cell("HTTP/2").value == 1
        assert len(services.deadlines) == 0
        told.clear()


def test_without_a_limit_there_is_nothing() -> None:
    world = World()
    assert begin_age(world.services, "HTTP/2", lambda: None, 2) is None
    assert len(world.services.deadlines) == 0


async def test_http_1_hears_it_with_its_next_answer(authority: Authority) -> None:
    async with edge(authority, timeouts=AGED) as made, made.h1() as client:
        client.ask("/")
        head = await client.head()
        assert b"connection: close\r\n" not in head
        await client.reader.readexactly(5)
        await made.pass_time(150)
        assert made.count("connections_aged", "HTTP/1.1") == 1
        await made.pass_time(500)
        assert made.listener.connections  # idle: a request may be on its way
        client.ask("/hold")
        await until(lambda: made.app.seen[1:])
        made.app.release.set()
        assert b"connection: close\r\n" in await client.head()
        assert await client.rest() == b"held"


async def test_http_2_hears_it_twice_and_finishes(authority: Authority) -> None:
    async with edge(authority, timeouts=AGED, route={"timeouts": Timeouts(5, 500, 500, 0)}) as made, made.h2() as client:
        stream = client.ask("/hold")
        await until(lambda: made.app.seen)
        while not made.count("connections_aged", "HTTP/2"):
            await made.pass_time(0.5)
        late = client.ask("/")  # before the client could know
        await client.read(lambda: client.of(h2.events.ConnectionTerminated))
        await client.read(lambda: client.ended(late))
        await made.pass_time(STEP + 1)
        made.app.release.set()
        await client.read(lambda: client.ended(stream))
        assert (client.status(late), client.body(stream)) == (200, 4)
        await client.read(lambda: False)
        assert client.events[-1] == "eof"
        assert made.count("connections_aged", "HTTP/2") == 1


@pytest.mark.parametrize("engine", engines.parameters())
async def test_http_3_hears_it_and_finishes(authority: Authority, engine: engines.Engine) -> None:
    async with quic(authority, engine=engine.load(), timeouts=replace(AGED, connection_age=0.5)) as (made, both):
        services = made.world.services
        services.deadlines = deadlines = Deadlines(services.clock())
        async with both.client(authority) as client:
            stream = client.ask("/hold")
            await until(lambda: made.app.seen)
            (quic_client,) = both.udp.clients.values()
            await until(lambda: deadlines.turn(services.clock()) or made.count("connections_aged", "HTTP/3"))
            assert await client.get("/") == (200, 5)
            await until(lambda: deadlines.turn(services.clock()) or quic_client.age.bucket is None)  # type: ignore[union-attr]
            made.app.release.set()
            await until(lambda: stream in client.ended)
            assert client.status[stream] == 200
            await until(lambda: client.terminated is not None)
            assert client.terminated.error_code == 0x100
        await until(lambda: not both.udp.clients)


async def test_who_leaves_before_is_forgotten(authority: Authority) -> None:
    async with quic(authority, timeouts=AGED) as (made, both), made.h1() as first:
        async with both.client(authority) as client:
            assert await client.get("/") == (200, 5)
            first.ask("/")
            await first.answer()
            assert len(made.world.deadlines) == 3  # two ages, one idle timeout
        await until(lambda: not both.udp.clients)
        first.writer.close()
        await until(lambda: not made.listener.connections)
        assert len(made.world.deadlines) == 0
        assert made.count("connections_aged", "HTTP/3") == 0


@pytest.mark.replaces
async def test_a_fault_of_one_over_tcp_is_not_its_neighbours(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    async with edge(authority, timeouts=AGED) as made, made.h2() as client:
        client.ask("/hold")
        await until(lambda: made.app.seen)
        monkeypatch.setattr(type(made.connection), "goaway", lambda _: 1 // 0)
        await made.pass_time(150)
        await until(lambda: not made.listener.connections)
        assert [event for event, _ in made.log.errors] == ["a connection failed"]


async def test_a_fault_of_one_over_quic_is_not_its_neighbours(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    async with quic(authority, timeouts=AGED) as (made, both), both.client(authority) as client:
        assert await client.get("/") == (200, 5)
        monkeypatch.setattr(both.udp.endpoint, "goaway", lambda handle: 1 // 0)
        (age,) = [one.age for one in both.udp.clients.values()]
        assert age is not None
        age.on_deadline(1.0)
        await until(lambda: client.terminated is not None)
        assert [event for event, _ in made.log.errors] == ["a QUIC connection failed"]
