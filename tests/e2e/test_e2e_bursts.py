"""Thousands of requests in bursts, many at once on each connection, without one failure."""

import asyncio
import time
from contextlib import AsyncExitStack

import pytest
from harness.figures import report
from harness.http2 import http2
from harness.http3 import http3

HOST = "a.example.com"
CONNECTIONS = 6
AT_ONCE = 50  # requests of each connection in one burst
ALL = 24_000  # with --soak; else a tenth


@pytest.mark.soak
@pytest.mark.timeout(300)
@pytest.mark.parametrize("version", ["HTTP/2", "HTTP/3"])
async def test_no_request_of_many_bursts_fails(authority, proxy, version, soaking):
    connect = http2 if version == "HTTP/2" else http3
    bursts = (ALL if soaking else ALL // 10) // (CONNECTIONS * AT_ONCE)
    host = f"{HOST}:{proxy.port}"
    began = time.monotonic()
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(connect(authority, proxy.port)) for _ in range(CONNECTIONS)]
        for _ in range(bursts):
            answers = await asyncio.gather(*(client.get("/hello", host=host) for client in clients for _ in range(AT_ONCE)))
            wrong = [answer for answer in answers if answer.status != 200 or not answer.body.startswith(b"Hello from a.example.com")]
            assert not wrong, wrong[:3]
    count = bursts * CONNECTIONS * AT_ONCE
    report(f"{version}: {count} requests in bursts of {CONNECTIONS * AT_ONCE}, {count / (time.monotonic() - began):.0f} a second")
    metrics = await asyncio.to_thread(proxy.metrics)
    assert not [name for name in metrics if name.startswith("qproxy_stream_errors_total") and metrics[name]]
