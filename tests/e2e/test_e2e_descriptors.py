"""A proxy that has too few file descriptors: who is connected is served on, who comes waits and is served when there are enough again."""

import contextlib
import socket
import time
from pathlib import Path

import pytest
from harness import clients
from harness.http2 import http2

A = "a.example.com"
LIMIT = 160
COME = 250


def cpu(pid: int) -> float:
    """Seconds of processor time that a process took so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def hits(proxy):
    return proxy.metrics().get('qproxy_limits_hit_total{limit="descriptors"}', 0)


@pytest.mark.speaks("HTTP/2")
async def test_without_descriptors_those_connected_are_served_and_the_others_wait(authority, start_proxy):
    proxy = start_proxy(server={"timeouts": {"handshake": "60s"}}, descriptors=LIMIT)
    with contextlib.ExitStack() as flood, clients.tls_socket(authority, proxy.port) as present:
        present.settimeout(10)
        async with http2(authority, proxy.port) as client:
            assert (await client.get("/hello", host=A)).status == 200
            for _ in range(COME):
                flood.enter_context(socket.create_connection(("127.0.0.1", proxy.port), timeout=10))
            proxy.wait_for(lambda: '"out of file descriptors' in proxy.logs(), "said that it is out of descriptors")
            assert proxy.descriptors() <= LIMIT
            assert hits(proxy) >= 1, "the admin API answers"
            assert proxy.metrics()["qproxy_accepting"] == 0

            before, began = cpu(proxy.pid), time.monotonic()
            for _ in range(20):
                assert (await client.get("/hello", host=A)).status == 200
                present.sendall(f"GET /hello HTTP/1.1\r\nhost: {A}\r\n\r\n".encode())
                assert present.recv(65536).startswith(b"HTTP/1.1 200 ")
            streams = [client.open("/slow?seconds=0.2", host=A) for _ in range(4)]
            answers = [await client.answer(number) for number in streams]
            assert [answer.status for answer in answers] == [200] * 4, "with connections to backends of their own"
            proxy.wait_for(lambda: time.monotonic() > began + 1.5, "rested")
            assert cpu(proxy.pid) - before < 0.6, "it does not rest"

            late = socket.create_connection(("127.0.0.1", proxy.port), timeout=10)
            late.setblocking(False)
            with pytest.raises(BlockingIOError):
                late.recv(1)
            late.close()

            flood.close()
            proxy.wait_for(lambda: "file descriptors are there again" in proxy.logs(), "has descriptors again")
            assert proxy.health() == 200
            assert proxy.metrics()["qproxy_accepting"] == 1
            assert (await client.get("/hello", host=A)).status == 200
    states = [value for name, value in proxy.metrics().items() if name.startswith("qproxy_backend_up")]
    assert set(states) == {1}, "no backend is blamed"
    assert proxy.logs().count("backend changed state") == 0
    assert proxy.logs().count('"out of file descriptors') <= 3


@pytest.mark.speaks("HTTP/2")
async def test_more_requests_than_descriptors_are_503_and_nobody_is_blamed(authority, start_proxy):
    proxy = start_proxy(descriptors=LIMIT, server={"limits": {"streams_per_connection": 400}})
    async with http2(authority, proxy.port) as client:
        assert (await client.get("/hello", host=A)).status == 200
        streams = [client.open("/slow?seconds=1.5", host=A) for _ in range(300)]
        statuses = [(await client.answer(number)).status for number in streams]
        assert set(statuses) == {200, 503}
        assert statuses.count(200) > LIMIT // 2
        assert proxy.descriptors() <= LIMIT
        answers = [await client.get("/hello", host=A) for _ in range(20)]
        assert [answer.status for answer in answers] == [200] * 20
    proxy.wait_for(lambda: "file descriptors are there again" in proxy.logs(), "has descriptors again")
    assert proxy.health() == 200
    assert hits(proxy) >= 1
    states = [value for name, value in proxy.metrics().items() if name.startswith("qproxy_backend_up")]
    assert set(states) == {1}, "no backend is blamed"
