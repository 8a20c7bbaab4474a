"""Every datagram of many QUIC connections comes to the worker that has them: from new ports, in mixed batches, and through upgrades."""

import asyncio
import signal

import pytest
from harness.crowd import Port
from harness.figures import report
from harness.processes import gone, serving, workers

HOST = "a.example.com"
SHARING = 4  # connections of one socket
OPENING = 10  # sockets at a time
WORKERS = 4


async def until(condition, what):
    for _ in range(6000):
        if condition():
            return
        await asyncio.sleep(0.01)  # many connections have no one event; bounded
    raise AssertionError(what)


async def crowd_of(authority, proxy, count):
    """Connections that each had an answer and have an upload in progress, which keeps them through an upgrade."""
    ports = []
    for first in range(0, count // SHARING, OPENING):
        batch = range(first, min(first + OPENING, count // SHARING))
        new = [Port(authority, proxy.port, f"127.0.8.{1 + number % 50}", SHARING, HOST) for number in batch]
        ones = [one for port in new for one in port.ones]
        await until(lambda ones=ones: all(one.http for one in ones), "all are connected")
        for one in ones:
            one.ask("/hello", HOST)
            one.ask("/upload", HOST, method="POST", end=False)
        for port in new:
            port.flush()
        await until(lambda ones=ones: all(0 in one.answers for one in ones), "all are answered")
        ports += new
    return ports


async def pinged(ports):
    for port in ports:
        port.ping()
        await asyncio.sleep(0)
    await until(lambda: all(one.acknowledged == one.pings for port in ports for one in port.ones), "all PINGs are acknowledged")


@pytest.mark.speaks("HTTP/3")
@pytest.mark.soak
@pytest.mark.timeout(900)
async def test_no_datagram_is_lost_to_the_wrong_worker(authority, start_proxy, soaking):
    if not soaking:
        pytest.skip("with --soak only: test_e2e_chaos has the ordinary run")
    more = {"timeouts": {"drain": "300s"}, "quic": {"handshakes": 10000, "handshakes_per_network": 10000}}
    named = {"headers": {"response": {"set": {"X-Worker": "{request_id}"}}}}
    proxy = start_proxy(server={"workers": WORKERS, **more}, sites={HOST: named})
    await asyncio.to_thread(serving, proxy, WORKERS)
    served = set()
    for round_ in (1, 2):  # an upgrade waits for the connections of the one before it, so each has its half
        old = await asyncio.to_thread(workers, proxy)
        ports = await crowd_of(authority, proxy, 100)
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
    report(f"steering: {len(served)} workers, {sent:.0f} strays sent, {received:.0f} received, {dropped:.0f} dropped")
    assert len(served) == 2 * WORKERS
    assert sent == received > 0 == dropped
    assert metrics.get("qproxy_quic_stateless_resets_total", 0) == 0
