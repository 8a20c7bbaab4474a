"""Connections kept between requests: which is taken, which is let go, and what a reload leaves of them."""

import asyncio
import ssl
from typing import Any

import pytest

from proxy.engine.events import UpstreamRequest
from proxy.errors import ProxyError
from proxy.snapshot import UpstreamConnections, UpstreamTls
from proxy.upstream import pool as pool_module
from proxy.upstream.connect import connect
from proxy.upstream.h1 import UpstreamConnection
from tests.unit.few_descriptors import few_descriptors
from tests.unit.upstream.rig import Rig, Taker, answer, polite, read_head, rig, serve, until

Reader, Writer = asyncio.StreamReader, asyncio.StreamWriter


async def busy(made: Rig, count: int) -> list[Taker]:
    """So many connections, each with a request in progress that was answered."""
    takers = [await made.connect() for _ in range(count)]
    for taker in takers:
        made.ask(taker)
    return takers


async def settle(takers: list[Taker]) -> None:
    for taker in takers:
        await until(lambda taker=taker: taker.over)


async def test_the_last_one_given_back_is_taken_first() -> None:
    async with rig(polite) as (made, backend):
        takers = await busy(made, 3)
        await settle(takers)
        order = [taker.connection for taker in takers]
        idle = made.idle
        assert {id(connection) for connection in idle} == {id(connection) for connection in order}
        assert [made.take(Taker()), made.take(Taker()), made.take(Taker())] == idle[::-1]
        assert made.connections.take() is None
        for connection in idle:
            connection.abort()
        assert (backend.connections, made.reused, made.connects("ok")) == (3, 3, 3)


async def test_no_more_are_kept_than_the_pool_says() -> None:
    async with rig(polite, settings=UpstreamConnections(2, 60, 600)) as (made, _):
        await settle(await busy(made, 4))
        await until(lambda: made.open_now == 2)
        assert len(made.idle) == 2


async def test_the_oldest_expire_and_the_others_stay() -> None:
    async with rig(polite) as (made, _):
        takers = await busy(made, 1)
        await settle(takers)
        old = takers[0].connection
        made.now += 50
        young = [await made.connect()]
        made.ask(young[0])
        await settle(young)
        made.upstreams.expire(made.now + 5)
        assert len(made.idle) == 2
        made.upstreams.expire(made.now + 11)
        assert made.idle == [young[0].connection]
        assert old is not None
        assert old.closed
        await until(lambda: made.open_now == 1)
        made.upstreams.expire(made.now + 61)
        await until(lambda: made.open_now == 0)


async def test_a_connection_past_its_lifetime_is_not_kept() -> None:
    async with rig(polite) as (made, backend):
        await made.get()
        made.now += 599
        await made.get()
        made.now += 2
        await made.get()
        await until(lambda: made.open_now == 0)
        await made.get()
        assert backend.connections == 2


async def test_a_connection_that_nobody_waits_for_any_more_serves_the_next_one() -> None:
    async with rig(polite) as (made, backend):
        taker = Taker()
        made.open(taker).abandon()
        await until(lambda: made.idle)
        assert taker.said == []
        await made.get()
        assert (backend.connections, made.connects("ok"), made.reused) == (1, 1, 1)


async def test_a_failed_connect_that_nobody_waits_for_is_counted_and_that_is_all() -> None:
    async with serve(polite) as backend:
        port = backend.port
    made = Rig(f"http://127.0.0.1:{port}")
    taker = Taker()
    made.open(taker).abandon()
    await until(lambda: made.connects("failed") == 1)
    assert taker.said == []
    await made.close()


async def test_a_backend_that_accepts_and_closes_is_a_failed_connect() -> None:
    """Where the close is seen before the connection is handed over, not a byte was sent: any request may walk on."""

    class Hasty(Taker):
        def on_connected(self, connection):  # the close came later: what is written fails
            super().on_connected(connection)
            self.said.clear()
            connection.begin(self, UpstreamRequest(b"POST", b"/", b"x", [], None, end=True))

    async def script(reader: Reader, writer: Writer) -> None:
        writer.transport.abort()

    async with rig(script) as (made, _):
        takers = [Hasty() for _ in range(20)]
        for taker in takers:
            made.open(taker)
        await settle(takers)
        for taker in takers:
            assert taker.said in ([("failed", "UPSTREAM_CLOSED", True)], [("error", "UPSTREAM_CLOSED", False)])
        await until(lambda: made.open_now == 0)


async def test_a_connection_lost_before_it_is_handed_over_is_a_failed_connect(monkeypatch: pytest.MonkeyPatch) -> None:
    async with rig(polite) as (made, _):

        async def connect_and_lose(*values: Any, **named: Any) -> UpstreamConnection:
            connection = await connect(*values, **named)
            connection.abort()
            await until(lambda: made.open_now == 0)
            return connection

        monkeypatch.setattr(pool_module, "connect", connect_and_lose)
        taker = Taker()
        made.open(taker)
        await until(lambda: taker.said)
        assert taker.said == [("failed", "UPSTREAM_CLOSED", True)]
        assert (made.connects("ok"), made.connects("failed")) == (0, 1)


async def test_a_fault_of_the_waiter_is_told_to_it_and_the_connection_is_dropped() -> None:
    async with rig(polite) as (made, _):
        taker = Taker()
        taker.poison = "connected"
        made.open(taker)
        await until(lambda: ("internal", "connected") in taker.said)
        await until(lambda: made.open_now == 0)
        assert len(made.tasks) == 0


async def test_a_fault_of_the_waiter_over_a_failed_connect_is_told_to_it() -> None:
    async with serve(polite) as backend:
        port = backend.port
    made = Rig(f"http://127.0.0.1:{port}")
    taker = Taker()
    taker.poison = "failed"
    made.open(taker)
    await until(lambda: ("internal", "failed") in taker.said)
    await made.close()


async def test_a_reload_keeps_the_connections_of_an_endpoint_that_stays() -> None:
    async with rig(polite) as (made, backend):
        await made.get()
        made.settings = UpstreamConnections(0, 60, 600)
        made.pool = made.make_pool()
        made.upstreams.replace({"web": made.pool})
        await made.get()
        assert backend.connections == 1
        await until(lambda: made.open_now == 0)  # the new settings keep nothing


async def test_a_reload_lets_go_of_an_endpoint_that_is_gone_idle_ones_now_and_busy_ones_after_their_exchange() -> None:
    go = asyncio.Event()

    async def script(reader: Reader, writer: Writer) -> None:
        await read_head(reader)
        writer.write(answer())
        await read_head(reader)
        await go.wait()
        writer.write(answer())
        await reader.read()

    async with rig(script) as (made, _):
        old_pool, identity = made.pool, made.identity
        await settle(await busy(made, 2))
        running = Taker()
        made.take(running)
        made.ask(running)
        made.upstreams.replace({"web": made.make_pool(url="http://127.0.0.1:1")})
        await until(lambda: made.open_now == 1)
        go.set()
        await until(lambda: running.over)
        assert running.said == [("head", 200, False), ("end", [])]
        await until(lambda: made.open_now == 0)
        # an exchange of the old snapshot still gets a connection, and leaves nothing behind
        late = Taker()
        connections = made.upstreams.of(old_pool, identity)
        assert connections.take() is None
        connections.open(late, 5)
        await until(lambda: late.said)
        late.said.clear()
        made.ask(late)
        await until(lambda: late.over)
        await until(lambda: made.open_now == 0)
        assert made.upstreams.of(old_pool, identity) is not connections
        assert len(made.upstreams._endpoints) == 0


async def test_an_address_that_dns_has_no_more_loses_its_connections_idle_ones_now_and_busy_ones_after_their_exchange() -> None:
    go = asyncio.Event()

    async def script(reader: Reader, writer: Writer) -> None:
        await read_head(reader)
        await go.wait()
        writer.write(answer())
        await polite(reader, writer)

    async with serve(script, host="127.0.0.2") as old, serve(polite, host="127.0.0.1", port=old.port):
        made = Rig(f"http://web.internal:{old.port}")
        made.book["web.internal"] = ["127.0.0.2"]
        idle, running = await made.connect(), await made.connect()
        made.ask(running)
        assert idle.connection is not None
        made.connections.give_back(idle.connection, made.now)
        made.upstreams.move("other.internal", ["127.0.0.1"])
        made.upstreams.move("web.internal", ["127.0.0.1", "127.0.0.2"])
        assert len(made.idle) == 1, "its address is there as before"
        made.upstreams.move("web.internal", ["127.0.0.1"])
        assert made.idle == []
        go.set()
        await until(lambda: running.over)
        assert running.said == [("head", 200, False), ("end", [])]
        await until(lambda: made.open_now == 0)
        made.book["web.internal"] = ["127.0.0.1"]
        made.now += 1
        await made.get()
        await until(lambda: made.idle)
        assert [connection.peer for connection in made.idle] == ["127.0.0.1"]
        await made.close()


async def test_an_exchange_of_an_older_snapshot_does_not_leave_its_tls_to_the_new_one() -> None:
    made = Rig("https://127.0.0.1:1", tls=UpstreamTls(ssl.create_default_context(), None, ("old",)))
    old = made.pool
    made.upstreams.of(old, made.identity)
    new = made.make_pool(UpstreamTls(ssl.create_default_context(), None, ("new",)))
    made.upstreams.replace({"web": new})
    strayed = made.upstreams.of(old, made.identity)
    kept = made.upstreams.of(new, made.identity)
    assert kept is not strayed
    assert kept._tls is new.tls
    assert made.upstreams.of(old, made.identity) is kept  # once it is there, the new rules are for everybody
    await made.close()


async def test_closing_lets_every_idle_connection_go_and_a_connect_in_progress_tells_nobody() -> None:
    async with rig(polite) as (made, _):
        await made.get()
        taker = Taker()
        made.open(taker)
        made.upstreams.close()
        await made.tasks.close()
        await until(lambda: made.open_now == 0)
        assert all(not isinstance(what[0], ProxyError) for what in taker.said)


async def test_idle_connections_close_when_their_descriptors_are_needed_and_busy_ones_stay() -> None:
    go = asyncio.Event()

    async def script(reader: Reader, writer: Writer) -> None:
        await read_head(reader)
        writer.write(answer())
        await read_head(reader)
        await go.wait()
        writer.write(answer())
        await reader.read()

    async with rig(script) as (made, _):
        await settle(await busy(made, 3))
        running = Taker()
        made.take(running)
        made.ask(running)
        made.upstreams.close_idle()
        await until(lambda: made.open_now == 1)
        go.set()
        await until(lambda: running.over)
        assert made.connections.take() is running.connection
        running.connection.abort()


async def test_a_connect_without_a_file_descriptor_is_our_own_fault() -> None:
    async with rig(polite) as (made, _):
        taker = Taker()
        with few_descriptors(0):
            made.open(taker)
            await until(lambda: taker.said)
        assert taker.said == [("failed", "OVERLOADED", True)]
        assert (await made.get()).body == b"ok"
