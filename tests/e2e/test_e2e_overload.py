"""A proxy that has too much to do: the lowest class is turned away, the highest and /health are served in time, and it recovers."""

import asyncio
import json
import re
import socket
import statistics
import time

import pytest
from harness import clients
from harness.cli import qproxy
from harness.http2 import http2
from harness.http3 import http3
from harness.processes import serving, workers

A = "a.example.com"
WORK = [f"X-Work-{number}" for number in range(150)]
LOW = {
    "match": {"path": "/hello/low"},
    "pool": "web",
    "replace_prefix": {"from": "/hello/low", "to": "/hello"},
    "priority": "low",
    "headers": {
        "request": {"set": dict.fromkeys(WORK, "{client_address} {host} {path} {request_id}")},
        "response": {"set": dict.fromkeys(WORK, "{client_address} {host} {path} {request_id}")},
    },
}
"""Each of its requests takes the proxy ten times the work of another one."""
ROUTES = [
    LOW,
    {"match": {"path": "/hello/high"}, "pool": "web", "replace_prefix": {"from": "/hello/high", "to": "/hello"}, "priority": "high"},
    {"match": {"path": "/"}, "pool": "web"},
]


def shed(proxy, name):
    return proxy.metrics().get(f'qproxy_shed_total{{class="{name}"}}', 0)


def state(proxy):
    (name,) = [key for key, value in proxy.metrics().items() if key.startswith("qproxy_load_state") and value == 1]
    return re.findall('state="(.*)"', name)[0]


def changes(proxy):
    return [json.loads(line)["state"] for line in proxy.logs().splitlines() if '"load changed"' in line]


def health(client):
    return client.get("/health", host=A)


@pytest.mark.speaks("HTTP/2")
async def test_a_slow_loop_turns_the_lowest_class_away_and_recovers(authority, start_proxy):
    proxy = start_proxy(server={"overload": {"lag": "100ms"}}, sites={A: {"routes": ROUTES}})
    async with http2(authority, proxy.port) as client:
        assert (await client.get("/hello/low", host=A)).status == 200
        proxy.wait_for(lambda: state(proxy) == "normal", "has nothing to do", limit=20)
        load = clients.h2load(proxy.port, "/hello/low", seconds=8, connections=80, streams=5)
        taken, statuses = [], []
        end = time.monotonic() + 8
        while time.monotonic() < end:
            began = time.monotonic()
            statuses.append((await client.get("/hello/high", host=A)).status)
            taken.append(time.monotonic() - began)
            statuses.append(await asyncio.to_thread(proxy.health))
        loaded = load.result()
        assert set(statuses) == {200}, "the highest class and health"
        assert statistics.median(taken) < 1.0
        assert loaded.failed > 0
        assert loaded.succeeded > 0
        assert loaded.errored == loaded.timeout == 0
        assert shed(proxy, "low") >= loaded.failed
        assert shed(proxy, "high") == 0
        proxy.wait_for(lambda: state(proxy) == "normal", "recovered", limit=20)
        assert [(await client.get("/hello/low", host=A)).status for _ in range(20)] == [200] * 20
    assert changes(proxy)[0] == "busy"
    assert changes(proxy)[-1] == "normal"
    assert len(changes(proxy)) <= 6, "it does not flap"


@pytest.mark.speaks("HTTP/2", "HTTP/3")
async def test_requests_in_progress_over_all_versions(authority, start_proxy):
    routes = [{"match": {"path": "/slow"}, "pool": "web", "priority": "high"}, *ROUTES]
    overload = {"exchanges": 20, "header": "X-Class"}
    proxy = start_proxy(server={"overload": overload, "trusted_proxies": ["127.0.0.1/32"]}, sites={A: {"routes": routes}})
    async with http2(authority, proxy.port) as second, http3(authority, proxy.port) as third:
        held = [client.open("/slow?seconds=3", host=A) for client in (second, third) for _ in range(15)]
        proxy.wait_for(lambda: state(proxy) == "overloaded", "noticed")
        for client in (second, third):
            refused = await client.get("/hello/low", host=A)
            assert refused.status == 503
            assert 2 <= int(refused.headers["retry-after"]) <= 60
            assert refused.headers["proxy-status"] == "qproxy; error=proxy_internal_response"
            assert (await client.get("/hello/high", host=A)).status == 200
            assert (await client.get("/hello/low", host=A, headers=[("x-class", "high")])).status == 200, "by the word of a trusted proxy"
            assert (await client.get("/hello/high", host=A, headers=[("x-class", "low")])).status == 503
            answer = await health(client)
            assert (answer.status, answer.body) == (200, b"OK")
        for version in ("HTTP/1.1", "HTTP/2"):
            with clients.curl_session(authority, proxy.port, version) as sender:
                for _ in range(2):
                    sent = await asyncio.to_thread(sender.post, proxy.url("/hello/low"), data=bytes(2_000_000))
                    assert sent.status_code == 503, "what is not read of it harms nobody"
        for client, number in zip([second] * 15 + [third] * 15, held, strict=True):
            assert (await client.answer(number)).status == 200, "what was begun is finished"
        proxy.wait_for(lambda: state(proxy) == "normal", "recovered", limit=20)
        for client in (second, third):
            assert (await client.get("/hello/low", host=A)).status == 200
    assert shed(proxy, "low") == 8


@pytest.mark.speaks("HTTP/2", "HTTP/3")
async def test_at_the_limit_of_memory_nobody_is_accepted_until_there_is_less(authority, start_proxy):
    proxy = start_proxy(sites={A: {"routes": ROUTES}})
    async with http2(authority, proxy.port) as client:
        assert (await client.get("/hello/high", host=A)).status == 200
        proxy.server["overload"] = {"memory": "16MiB"}
        proxy.write()
        proxy.reload()
        proxy.wait_for(lambda: proxy.metrics()["qproxy_accepting"] == 0, "stopped accepting")
        assert (await client.get("/hello/high", host=A)).status == 503
        answer = await health(client)
        assert (answer.status, answer.body) == (503, b"overloaded\n")
        waiting = socket.create_connection(("127.0.0.1", proxy.port), timeout=1)
        with pytest.raises(TimeoutError):
            await asyncio.to_thread(clients.trusting(authority).wrap_socket, waiting, server_hostname=A)
        with pytest.raises(ConnectionError):
            async with http3(authority, proxy.port) as refused:
                await refused.get("/hello", host=A)
        assert proxy.metrics()['qproxy_limits_hit_total{limit="memory"}'] == 1
        late = socket.create_connection(("127.0.0.1", proxy.port), timeout=20)
        handshake = asyncio.to_thread(clients.trusting(authority).wrap_socket, late, server_hostname=A)
        assert "memory is at its limit" in proxy.logs()
        proxy.server["overload"] = {"memory": "4GiB"}
        proxy.write()
        proxy.reload()
        secured = await handshake
        await asyncio.to_thread(secured.sendall, f"GET /hello/high HTTP/1.1\r\nhost: {A}\r\n\r\n".encode())
        assert (await asyncio.to_thread(secured.recv, 65536)).startswith(b"HTTP/1.1 200 ")
        secured.close()
        assert (await health(client)).status == 200
        assert "memory is below its limit again" in proxy.logs()
        proxy.wait_for(lambda: state(proxy) == "normal", "recovered", limit=20)
        assert (await client.get("/hello/low", host=A)).status == 200


def test_two_workers_at_the_limit_of_memory(start_proxy):
    proxy = start_proxy(server={"workers": 2}, answers=False)
    proxy.wait_for(lambda: proxy.metrics().get('qproxy_load_state{state="normal"}') == 2, "told of both")
    proxy.server["overload"] = {"memory": "16MiB"}
    proxy.write()
    proxy.reload()
    proxy.wait_for(lambda: proxy.metrics()['qproxy_load_state{state="overloaded"}'] == 2, "had too much to do")
    proxy.wait_for(lambda: proxy.metrics()["qproxy_accepting"] == 0, "stopped accepting")
    assert proxy.metrics()['qproxy_load{part="memory"}'] > 1
    assert proxy.health() == 0
    proxy.server["overload"] = {"memory": "4GiB"}
    proxy.write()
    proxy.reload()
    proxy.wait_for(lambda: proxy.metrics()["qproxy_accepting"] == 1, "accepted again")
    assert [proxy.health() for _ in range(10)] == [200] * 10


def test_workers_whose_memory_stays_at_its_limit_are_replaced_one_by_one_and_not_again_at_once(start_proxy):
    proxy = start_proxy(server={"workers": 2})
    serving(proxy, 2)
    before = workers(proxy)
    proxy.server["overload"] = {"memory": "16MiB"}
    proxy.write()
    proxy.reload()
    replaced, later = "stays at its limit of memory; it is replaced", "stays at its limit of memory, as the one before it did"
    proxy.wait_for(lambda: proxy.logs().count(replaced) == 1, "replaces one", limit=60)
    assert len(set(workers(proxy)) & set(before)) >= 1, "the other one goes on"
    proxy.wait_for(lambda: proxy.logs().count(replaced) == 2, "replaces the other", limit=30)
    proxy.wait_for(lambda: len(workers(proxy)) == 2 and not set(workers(proxy)) & set(before), "has two new ones", limit=30)
    proxy.wait_for(lambda: later in proxy.logs(), "has one more who would like to be", limit=60)
    assert proxy.logs().count(replaced) == 2
    proxy.server["overload"] = {"memory": "4GiB"}
    proxy.write()
    proxy.reload()
    serving(proxy, 2)
    proxy.wait_for(lambda: proxy.metrics()["qproxy_accepting"] == 1, "accepts again")
    assert [proxy.health() for _ in range(10)] == [200] * 10
    assert (proxy.metric("qproxy_worker_deaths_total"), proxy.metric("qproxy_workers_replaced_total")) == (0, 2)
    assert "Traceback" not in proxy.logs()


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("/hello/low", "low, the first to be turned away under overload; x-class may say otherwise"),
        ("/hello/high", "high, served through overload; x-class may say otherwise"),
        ("/", "normal; x-class may say otherwise"),
    ],
)
def test_explain_names_the_class(make_proxy, path, told):
    proxy = make_proxy(server={"overload": {"header": "X-Class"}}, sites={A: {"routes": ROUTES}})
    ran = qproxy("explain", "-c", proxy.config, proxy.url(path))
    assert re.search(rf"^ *class +{told}$", ran.out, re.MULTILINE), ran.out
