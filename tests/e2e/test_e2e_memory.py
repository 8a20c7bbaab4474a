"""What one HTTP/3 connection costs the proxy at most, of 100 answers that it does not take."""

import asyncio

import pytest
from harness.bulk import memory_of
from harness.content import GIB, MIB
from harness.figures import report
from harness.http3 import http3

pytestmark = pytest.mark.speaks("HTTP/3")

STREAMS = 100
OUTPUT = 2 * MIB
BOUND = OUTPUT + STREAMS * 97 * 1024  # 32 KiB that may wait of each, a read of 64 KiB from each backend, and heads
BESIDES = 16 * MIB  # connections to backends, requests, and what an allocator keeps
HELD = 'qproxy_limits_hit_total{limit="output_per_connection"}'


def waiting(proxy):
    return sum(value for name, value in proxy.metrics().items() if name.startswith("qproxy_quic_output_bytes"))


async def test_a_hundred_answers_that_nobody_takes(authority, start_proxy):
    """Of a client that opens every window and acknowledges nothing."""
    proxy = start_proxy(server={"limits": {"output_per_connection": "2MiB"}})
    host = f"a.example.com:{proxy.port}"
    async with http3(authority, proxy.port) as warm:
        await asyncio.gather(*(warm.get("/bytes/100000", host=host) for _ in range(STREAMS // 2)))
    with memory_of(proxy) as memory:
        async with http3(authority, proxy.port, max_stream_data=GIB, max_data=GIB) as client:
            for _ in range(STREAMS):
                client.open(f"/bytes/{GIB}", host=host, keep=False)
            await client.fall_silent()
            await asyncio.to_thread(settled, proxy)
            most = waiting(proxy)
            async with http3(authority, proxy.port) as other:
                assert (await other.get("/hello", host=host)).status == 200
    report(f"{most / MIB:.1f} MiB wait, the proxy grew by {memory.growth / MIB:.1f} MiB")
    assert OUTPUT < most <= BOUND
    assert proxy.metrics()[HELD] > 0
    assert memory.growth < BOUND + BESIDES


def settled(proxy):
    """Wait until the same waits as half a second before, and more than the bound."""
    last = []

    def same():
        last.append(waiting(proxy))
        return len(last) > 25 and last[-1] == last[-25] > OUTPUT  # 20 ms and a request between two

    proxy.wait_for(same, "came to rest", 30)
