"""The health answer as balancers ask for it: on every listener in every version, and on a plain port that is answered whatever goes on."""

import asyncio
import signal
import socket
import threading
import time

import httpx
import pytest
import yaml
from harness import clients
from harness.http2 import http2
from harness.http3 import http3
from harness.ports import free_port
from harness.processes import kill, workers

A = "a.example.com"


def asked(port, path="/health", method="GET"):
    """Status and body on the plain port; 0 where nobody answers."""
    try:
        answer = httpx.request(method, f"http://127.0.0.1:{port}{path}", trust_env=False, timeout=5)
    except httpx.HTTPError:
        return 0, ""
    return answer.status_code, answer.text


class Checks(threading.Thread):
    """*check* over and over in a thread, until the end of the block. ``spans`` has when each began, when it ended, and what it gave."""

    def __init__(self, check):
        super().__init__()
        self.check, self.spans, self.enough = check, [], threading.Event()

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *error):
        self.enough.set()
        self.join(60)

    def run(self):
        while not self.enough.wait(0.02):
            began = time.monotonic()
            answer = self.check()
            self.spans.append((began, time.monotonic(), answer))


@pytest.fixture
def port():
    return free_port()


@pytest.mark.speaks("HTTP/2", "HTTP/3")
async def test_get_and_head_on_every_listener_in_every_version(authority, proxy):
    for version in clients.VERSIONS:
        with clients.curl_session(authority, proxy.port, version) as client:
            answers = [client.request(method, proxy.url("/health")) for method in ("GET", "HEAD", "POST")]
        assert [answer.status_code for answer in answers] == [200, 200, 405]
        assert [answer.content for answer in answers[:2]] == [b"OK", b""]
        assert answers[2].headers["allow"] == "GET, HEAD"


def test_plain_http_on_the_tls_port_is_answered_for_health(proxy):
    assert asked(proxy.port) == (200, "OK")
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=5) as plain:
        plain.sendall(b"GET /health HTTP/1.0\r\n\r\n")
        assert plain.recv(4096).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("count", [1, 2])
def test_the_plain_port_says_when_too_few_pools_are_up(start_proxy, backends, port, count):
    health = {"address": f"127.0.0.1:{port}", "pools_up": 1.0, "backends_up": 0.6}
    proxy = start_proxy(
        server={"workers": count, "health": health}, sites={"b.example.com": {"pools": {"web": {"health": None}}}}, answers=False
    )
    assert asked(port) == (200, "OK")
    assert asked(port, method="HEAD") == (200, "")
    assert asked(port, "/")[0] == 404
    assert asked(port, method="POST")[0] == 405
    backends[0].kill()
    try:
        assert asked(port) == (200, "OK"), "two of three are enough"
        backends[1].kill()
        proxy.wait_for(lambda: asked(port) == (503, "pools down\n"), "said that pools are down")
        proxy.wait_for(lambda: proxy.health() == 503, "said so on its listeners as well")
        proxy.server["health"]["pools_up"] = 0.5
        proxy.write()
        proxy.reload()
        assert asked(port) == (200, "OK"), "the pool without probes is one of two"
        assert proxy.health() == 200
    finally:
        for backend in backends[:2]:
            backend.start()


@pytest.mark.speaks("HTTP/2", "HTTP/3")
async def test_the_plain_port_answers_when_all_connections_are_taken(authority, start_proxy, port):
    limits = {"connections": 2}
    proxy = start_proxy(server={"limits": limits, "health": {"address": f"127.0.0.1:{port}"}})
    async with http2(authority, proxy.port) as one, http3(authority, proxy.port) as two:
        for client in (one, two):
            assert (await client.get("/hello", host=A)).status == 200
        assert await asyncio.to_thread(proxy.health) == 0
        assert await asyncio.to_thread(asked, port) == (200, "OK")


@pytest.mark.parametrize("count", [1, 2])
def test_the_plain_port_says_overloaded_and_draining(authority, start_proxy, port, count):
    server = {"workers": count, "health": {"address": f"127.0.0.1:{port}"}, "timeouts": {"drain_delay": "5s", "drain": "5s"}}
    proxy = start_proxy(server=server, answers=False)
    proxy.server["overload"] = {"memory": "16MiB"}
    proxy.write()
    proxy.reload()
    proxy.wait_for(lambda: asked(port) == (503, "overloaded\n"), "said that it is overloaded")
    proxy.server["overload"] = {}
    proxy.write()
    proxy.reload()
    proxy.wait_for(lambda: asked(port) == (200, "OK"), "was well again")
    ended = threading.Thread(target=proxy.terminate)
    ended.start()
    proxy.wait_for(lambda: asked(port) == (503, "draining\n"), "said that it drains")
    ended.join(30)
    assert not ended.is_alive()


POOLS = 3000
"""Their first probes, which a reload begins all at once, keep the loop of an only process for a second or more."""


def test_the_plain_port_of_an_only_process_answers_while_its_loop_is_busy(start_proxy, port):
    proxy = start_proxy(server={"workers": 1, "health": {"address": f"127.0.0.1:{port}"}})
    pools = {f"pool-{number}": {"endpoints": ["http://127.0.0.1:1"], "health": {"interval": "60s"}} for number in range(POOLS)}
    (proxy.config / "pools.yaml").write_text(yaml.dump({"pools": pools}, Dumper=yaml.CSafeDumper))
    with Checks(lambda: asked(port)) as plain, Checks(proxy.health) as listener:

        def most_answers_meanwhile():
            return max(sum(began < at and until < ended for at, until, _ in plain.spans) for began, ended, _ in listener.spans)

        proxy.process.send_signal(signal.SIGHUP)
        proxy.wait_for(lambda: listener.spans and most_answers_meanwhile() >= 15, "answered on the plain port while a listener waited", 30)
    assert {answer for *_, answer in plain.spans} <= {(200, "OK"), (503, "event loop hangs\n")}


def test_the_plain_port_of_an_only_process_answers_under_load(start_proxy, port):
    proxy = start_proxy(server={"workers": 1, "health": {"address": f"127.0.0.1:{port}"}})
    load = clients.h2load(proxy.port, "/hello", version="HTTP/1.1", seconds=5, connections=300)
    with Checks(lambda: asked(port)) as plain:
        loaded = load.result()
    assert loaded.succeeded > 0
    assert loaded.failed == loaded.errored == loaded.timeout == 0
    assert len(plain.spans) >= 20
    assert {answer for *_, answer in plain.spans} == {(200, "OK")}


def test_with_a_worker_dead_the_others_are_reason_enough(start_proxy, port):
    proxy = start_proxy(server={"workers": 2, "health": {"address": f"127.0.0.1:{port}"}}, answers=False)
    kill(workers(proxy)[0])
    assert asked(port) == (200, "OK")
    proxy.wait_for(lambda: len(workers(proxy)) == 2, "has two workers again")


def test_a_port_for_health_that_is_taken_is_told(make_proxy):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        proxy = make_proxy(server={"health": {"address": f"127.0.0.1:{number}"}}, answers=False)
        with pytest.raises(AssertionError):
            proxy.start()
        assert f"can't listen on 127.0.0.1:{number} (server.health): Address already in use" in proxy.logs()
        assert "Traceback" not in proxy.logs()
