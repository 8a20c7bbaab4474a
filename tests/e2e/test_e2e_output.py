"""What a process keeps of answers that many clients don't take, on all versions at once; and that others are served meanwhile."""

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
from harness.bulk import memory_of
from harness.content import GIB, MIB, digest
from harness.figures import report
from harness.http1 import http1
from harness.http2 import http2
from harness.http3 import http3

CONNECT = {"HTTP/1.1": http1, "HTTP/2": http2, "HTTP/3": http3}

OUTPUT = 32 * MIB
CLIENTS = {"HTTP/1.1": 60, "HTTP/2": 20, "HTTP/3": 20}
STREAMS = {"HTTP/1.1": 1, "HTTP/2": 15, "HTTP/3": 15}
REQUESTS = sum(CLIENTS[version] * STREAMS[version] for version in CLIENTS)
FLOORS = REQUESTS * 97 * 1024 + (CLIENTS["HTTP/1.1"] + CLIENTS["HTTP/2"]) * 33 * 1024
"""Of each request 32 KiB that may wait, a read of 64 KiB from its backend, and heads; over TCP, 32 KiB in the transport."""
BOUND = OUTPUT + OUTPUT // 16 + FLOORS
BESIDES = 32 * MIB  # connections on both sides, requests, and what an allocator keeps
SIZE = 4 * MIB  # of an answer that is read
EXCEEDED, WITHIN = "clients leave more of their answers waiting", "clients leave no more of their answers waiting"
HELD = 'qproxy_limits_hit_total{limit="output"}'

pytestmark = pytest.mark.speaks("HTTP/2", "HTTP/3")


@asynccontextmanager
async def stuck(authority, proxy):
    """Clients that ask for endless answers and take nothing: some keep windows shut, others don't read at all."""
    host = f"a.example.com:{proxy.port}"
    silent = []
    async with AsyncExitStack() as stack:
        for version, clients in CLIENTS.items():
            for number in range(clients):
                options = {}
                if version == "HTTP/2":
                    options = {"stream_window": 1000 if number % 2 else GIB}
                elif version == "HTTP/3":
                    options = {"max_stream_data": GIB, "max_data": GIB}
                client = await stack.enter_async_context(CONNECT[version](authority, proxy.port, **options))
                for _ in range(STREAMS[version]):
                    stream = client.open(f"/bytes/{GIB}", host=host, keep=False)
                    if version == "HTTP/2" and number % 2:
                        await client.pause(stream)
                if version != "HTTP/2" or not number % 2:
                    await client.fall_silent()
                if version == "HTTP/3":
                    silent.append(client)
        yield
        for client in silent:
            await client.say_goodbye()


async def read(client, host: str) -> None:
    answer = await client.get(f"/bytes/{SIZE}", host=host, keep=False)
    assert (answer.status, answer.size, answer.sha256) == (200, SIZE, digest(SIZE))


async def stay(client, host: str, until: asyncio.Event) -> None:
    """A request every now and then."""
    while not until.is_set():
        assert (await client.get("/hello", host=host)).status == 200
        await asyncio.sleep(0.5)


def settled(proxy):
    """Wait until the same waits as half a second before."""
    last = []

    def same():
        last.append(proxy.metrics()["qproxy_output_bytes"])
        return len(last) > 25 and last[-1] == last[-25] > OUTPUT  # 20 ms and a request between two

    proxy.wait_for(same, "came to rest", 60)
    return last[-1]


@pytest.mark.timeout(240)
async def test_many_clients_that_take_nothing(authority, start_proxy):
    """Memory stays within the budget and its arithmetic, whoever reads is served, and all is as before when they are gone."""
    proxy = start_proxy(server={"limits": {"output": f"{OUTPUT}B"}})
    host = f"a.example.com:{proxy.port}"
    async with AsyncExitStack() as stack:
        readers = [await stack.enter_async_context(connect(authority, proxy.port)) for connect in CONNECT.values()]
        await asyncio.gather(*(read(reader, host) for reader in readers for _ in range(5)))
        with memory_of(proxy) as memory:
            async with stuck(authority, proxy):
                rested = asyncio.Event()
                async with asyncio.TaskGroup() as others:
                    for reader in readers:
                        others.create_task(stay(reader, host, rested))
                    most = await asyncio.to_thread(settled, proxy)
                    rested.set()
                for reader in readers:
                    await read(reader, host)  # one at a time, on connections from before
                for connect in CONNECT.values():
                    async with connect(authority, proxy.port) as fresh:
                        await read(fresh, host)
                held = proxy.metrics()
        report(
            f"{most / MIB:.1f} MiB wait for {REQUESTS} requests, bound {BOUND / MIB:.1f}; the proxy grew by {memory.growth / MIB:.1f} MiB"
        )
        assert OUTPUT < most <= BOUND
        assert memory.growth < BOUND + BESIDES
        assert held[HELD] > 0
        assert held["qproxy_output_bound_bytes"] == 32 * 1024
        await asyncio.to_thread(proxy.wait_for, lambda: proxy.metrics()["qproxy_output_bytes"] == 0, "let go of everything", 60)
        await asyncio.to_thread(proxy.wait_for, lambda: proxy.metrics()["qproxy_output_bound_bytes"] == 4 * MIB, "gave it back", 30)
        await asyncio.to_thread(proxy.wait_for, lambda: WITHIN in proxy.logs(), "said so", 30)
        assert (proxy.logs().count(EXCEEDED), proxy.logs().count(WITHIN)) == (1, 1)
        for reader in readers:
            await read(reader, host)
