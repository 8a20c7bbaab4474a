"""Every datagram of many QUIC connections comes to the worker that has them: from new ports, in mixed batches, and through upgrades."""

import asyncio
import resource
import signal

import pytest
from harness.crowd import Port, until
from harness.engines import FAST, PORTABLE, missing
from harness.figures import report
from harness.processes import gone, serving, workers

HOST = "a.example.com"
SHARING = 4  # connections of one socket
OPENING = 10  # sockets at a time
WORKERS = 4
UPGRADES = 2
PATIENCE = "20m"
"""Of whatever would end a connection that rests: thousands of them are opened and moved one after the other."""


@pytest.fixture(scope="module", autouse=True)
def _descriptors():
    """As many as there may be, for the backends: they have a connection for each upload. What is started from here inherits the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def crowd_of(authority, proxy, count):
    """Connections that each had an answer and have an upload in progress, which keeps them through an upgrade."""
    ports = []
    for first in range(0, count // SHARING, OPENING):
        batch = range(first, min(first + OPENING, count // SHARING))
        new = [Port(authority, proxy.port, f"127.0.8.{1 + number % 50}", SHARING, HOST) for number in batch]
        ones = [one for port in new for one in port.ones]
        await until(lambda ones=ones: all(one.http for one in ones), f"all are connected, from {first * SHARING} on")
        for one in ones:
            one.ask("/hello", HOST)
            one.ask("/upload", HOST, method="POST", end=False)
        for port in new:
            port.flush()
        await until(lambda ones=ones: all(0 in one.answers for one in ones), f"all are answered, from {first * SHARING} on")
        ports += new
    return ports


async def pinged(ports):
    for port in ports:
        port.ping()
        await asyncio.sleep(0)
    await until(lambda: all(one.acknowledged == one.pings for port in ports for one in port.ones), "all PINGs are acknowledged")


@pytest.mark.speaks("HTTP/3")
@pytest.mark.soak
@pytest.mark.timeout(1800)
async def test_no_datagram_is_lost_to_the_wrong_worker(authority, start_proxy, engines, soaking):
    if not soaking and engines == PORTABLE and not missing(FAST):
        pytest.skip("with --soak only: the fast engines show it")
    count = 10_000 if soaking else 160
    more = {"timeouts": {"drain": PATIENCE}, "quic": {"handshakes": 10000, "handshakes_per_network": 10000, "idle_timeout": PATIENCE}}
    named = {"headers": {"response": {"set": {"X-Worker": "{request_id}"}}}, "timeouts": {"idle": PATIENCE}}
    proxy = start_proxy(server={"workers": WORKERS, **more}, sites={HOST: named})
    await asyncio.to_thread(serving, proxy, WORKERS)
    served, resets = set(), "qproxy_quic_stateless_resets_total"
    for round_ in range(1, UPGRADES + 1):  # an upgrade waits for the connections of the one before it, so each has its share
        old = await asyncio.to_thread(workers, proxy)
        before = (await asyncio.to_thread(proxy.metrics)).get(resets, 0)  # what comes late for those that have closed may be answered so
        ports = await crowd_of(authority, proxy, count // UPGRADES)
        for port in ports:
            port.rebind()
        await pinged(ports)
        proxy.process.send_signal(signal.SIGUSR2)
        upgraded = lambda: proxy.logs().count('"event":"upgraded"') == round_  # noqa: B023  # used in this round
        await asyncio.to_thread(proxy.wait_for, upgraded, "was upgraded", 60)
        await pinged(ports)
        for port in ports:
            port.rebind()
        await pinged(ports)
        for port in ports:
            for one in port.ones:
                one.http.send_data(4, b"", end_stream=True)
            port.flush()
        ones = [one for port in ports for one in port.ones]
        await until(lambda ones=ones: all(4 in one.answers for one in ones), "all uploads are answered")
        assert (await asyncio.to_thread(proxy.metrics)).get(resets, 0) == before
        for port in ports:
            for one in port.ones:
                first, last = one.answers[0], one.answers[4]
                assert first[":status"] == last[":status"] == "200"
                assert first["x-worker"].partition("-")[0] == last["x-worker"].partition("-")[0], "one worker to the end"
                assert first["x-backend"] == last["x-backend"], "one key, one backend"  # a QUIC connection has a key of its own
                served.add(first["x-worker"].partition("-")[0])
                assert one.terminated is None or one.terminated.error_code == 0x100, one.terminated
                one.quic.close()
            port.flush()
            port.close()
        for pid in old:
            await asyncio.to_thread(gone, pid, 60)
    metrics = await asyncio.to_thread(proxy.metrics)
    sent, received, dropped = (metrics[f'qproxy_quic_strays_total{{result="{name}"}}'] for name in ("sent", "received", "dropped"))
    report(f"steering: {count} connections, {len(served)} workers, {sent:.0f} strays sent, {received:.0f} received, {dropped:.0f} dropped")
    assert len(served) == UPGRADES * WORKERS
    assert sent == received > 0 == dropped
