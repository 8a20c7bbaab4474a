"""Who is slow waits alone: back-pressure holds on each stream, in both directions, and memory stays bounded meanwhile."""

import asyncio
import json
import statistics
import time
from itertools import count

import pytest
from harness.bulk import memory_of
from harness.content import GIB, MIB, content, digest
from harness.figures import report
from harness.http1 import http1
from harness.http2 import http2
from harness.http3 import http3

CONNECT = {"HTTP/1.1": http1, "HTTP/2": http2, "HTTP/3": http3}
STALL = 10.0  # seconds for which a reader stops
SMALL = 20_000  # bytes of a neighbour's answer
NEIGHBOURS = 4  # requests that run beside the stalled one at any time
GROWTH = 32 * MIB
IDLE = 2.0  # seconds, of the proxies here that cut silent clients
CUT = 4 * IDLE  # seconds: one for the exchange, one for the connection, two for a goodbye that nobody takes
names = count()


async def _neighbours(client, host: str, until) -> list[float]:
    """Requests one after another, NEIGHBOURS at a time, until *until()*; how long each took. All must be right."""
    took: list[float] = []

    async def one_by_one() -> None:
        while not until():
            began = time.monotonic()
            answer = await client.get(f"/bytes/{SMALL}", host=host)
            took.append(time.monotonic() - began)
            assert (answer.status, answer.sha256) == (200, digest(SMALL))

    await asyncio.gather(*(one_by_one() for _ in range(NEIGHBOURS)))
    return took


def after(seconds: float):
    end = time.monotonic() + seconds
    return lambda: time.monotonic() >= end


async def until(condition, what: str, limit: float = 20) -> None:
    end = time.monotonic() + limit
    while not await condition():
        assert time.monotonic() < end, f"never {what}"
        await asyncio.sleep(0.02)  # the other side is a process of its own; bounded by *limit*


def _same_pace(before: list[float], during: list[float]) -> None:
    report(f"neighbours: median {statistics.median(before) * 1000:.1f} ms before, {statistics.median(during) * 1000:.1f} ms during")
    assert statistics.median(during) < max(0.1, 5 * statistics.median(before))
    assert max(during) < STALL / 2, "a neighbour waited for the stalled one"


@pytest.mark.parametrize("version", CONNECT)
async def test_a_reader_that_stops_does_not_slow_its_neighbours(authority, proxy, version):
    """On HTTP/2 and HTTP/3 they share its connection."""
    size, host = 32 * MIB, f"a.example.com:{proxy.port}"
    async with CONNECT[version](authority, proxy.port) as client:
        before = await _neighbours(client, host, after(1))
        stalled = client.open(f"/bytes/{size}", host=host, keep=False)
        await client.pause(stalled)
        with memory_of(proxy) as memory:
            during = await _neighbours(client, host, after(STALL))
        assert await client.size(stalled) < size // 2, "it did not stop"
        assert memory.growth < GROWTH
        _same_pace(before, during)
        await client.resume(stalled)
        answer = await client.answer(stalled)
    assert (answer.status, answer.size, answer.sha256) == (200, size, digest(size))


@pytest.mark.parametrize("version", CONNECT)
async def test_a_backend_that_does_not_read_slows_its_uploader_only(authority, proxy, backends, version):
    size, host, name = 32 * MIB, f"a.example.com:{proxy.port}", f"hold-{next(names)}"
    async with CONNECT[version](authority, proxy.port) as client:
        before = await _neighbours(client, host, after(1))
        held = client.open(f"/hold/{name}", method="POST", host=host, end=False)
        sending = asyncio.ensure_future(client.send(held, content(size)))
        with memory_of(proxy) as memory:
            during = await _neighbours(client, host, after(2))
        assert not sending.done(), "the whole body went somewhere"
        assert memory.growth < GROWTH
        _same_pace(before, during)
        for backend in backends:  # one of them has it
            await asyncio.to_thread(backend.push, name, b"")
        answer = await client.answer(held)
        await sending
    assert (answer.status, json.loads(answer.body)) == (200, {"size": size, "sha256": digest(size)})


@pytest.mark.parametrize("stopped", [False, True], ids=["reading", "stopped"])
@pytest.mark.parametrize("version", CONNECT)
async def test_a_client_that_cancels_a_download_stops_the_backend_at_once(authority, start_proxy, backends, version, stopped):
    backend, name = backends[0], f"cancel-{next(names)}"
    proxy = start_proxy(backends=[backend])
    host = f"a.example.com:{proxy.port}"
    async with CONNECT[version](authority, proxy.port) as client:
        number = client.open(f"/bytes/{GIB}?name={name}", host=host, keep=False)

        async def well_begun() -> bool:
            return await client.size(number) > 100_000

        await until(well_begun, "began")
        if stopped:
            await client.pause(number)
        gone = asyncio.ensure_future(asyncio.to_thread(backend.ask, f"/gone/{name}"))
        began = time.monotonic()
        await client.cancel(number)
        assert (await gone).status_code == 200
        seconds = time.monotonic() - began
        report(f"{version}: the backend's connection ended after {seconds * 1000:.0f} ms")
        assert seconds < 1
        answer = await client.get("/hello", host=host)  # the same connection, where the version allows it
        assert answer.status == 200


@pytest.mark.parametrize("version", CONNECT)
async def test_a_client_that_cancels_an_upload_stops_the_backend_at_once(authority, start_proxy, backends, version):
    backend, name = backends[0], f"cancel-{next(names)}"
    proxy = start_proxy(backends=[backend])
    host = f"a.example.com:{proxy.port}"
    async with CONNECT[version](authority, proxy.port) as client:
        number = client.open(f"/upload?name={name}", method="POST", host=host, end=False)
        sending = asyncio.ensure_future(client.send(number, content(GIB)))

        async def arrived() -> bool:
            return "/upload" in await asyncio.to_thread(backend.counts)

        await until(arrived, "began")
        gone = asyncio.ensure_future(asyncio.to_thread(backend.ask, f"/gone/{name}"))
        sending.cancel()
        began = time.monotonic()
        await client.cancel(number)
        assert (await gone).status_code == 200
        assert time.monotonic() - began < 1
        answer = await client.get("/hello", host=host)
        assert answer.status == 200


async def _ended(proxy, version: str) -> None:
    async def none_open() -> bool:
        metrics = await asyncio.to_thread(proxy.metrics)
        return metrics.get(f'qproxy_connections_open{{version="{version}"}}', 0) == 0

    await until(none_open, f"ended the {version} connection", limit=CUT)


@pytest.mark.parametrize("version", CONNECT)
async def test_a_client_that_never_reads_costs_little_and_is_cut(authority, start_proxy, backends, version):
    """What waits for it is bounded, its backend gets rid of it, and so does the proxy."""
    backend, name = backends[0], f"never-{next(names)}"
    timeouts = {"idle": f"{IDLE}s"}
    proxy = start_proxy(backends=[backend], server={"timeouts": timeouts}, sites={"a.example.com": {"timeouts": timeouts}})
    host = f"a.example.com:{proxy.port}"
    async with CONNECT[version](authority, proxy.port) as warm:
        assert (await warm.get("/hello", host=host)).status == 200
    await _ended(proxy, version)
    settings = {"HTTP/2": {"stream_window": GIB}, "HTTP/3": {"max_stream_data": GIB, "max_data": GIB}}.get(version, {})
    with memory_of(proxy) as memory:
        async with CONNECT[version](authority, proxy.port, **settings) as client:
            gone = asyncio.ensure_future(asyncio.to_thread(backend.ask, f"/gone/{name}"))
            client.open(f"/bytes/{GIB}?name={name}", host=host, keep=False)
            await client.fall_silent()
            assert (await gone).status_code == 200
            await _ended(proxy, version)
    report(f"{version}: a client that never reads: the proxy grew by {memory.growth / MIB:.1f} MiB")
    assert memory.growth < GROWTH
