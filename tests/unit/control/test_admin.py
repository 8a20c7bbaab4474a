"""The admin API over real HTTP."""

import asyncio
import socket
from contextlib import asynccontextmanager

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families as parse

from balancer.backend import Backend
from proxy.config.diff import Changes
from proxy.config.load import ConfigError
from proxy.config.problem import Problem
from proxy.control import admin as admin_module
from proxy.control.admin import Admin, ConfigStatus, Found, Views
from proxy.control.metrics import Exposition, read
from proxy.meters import ProxyMetrics
from proxy.observe import Metrics, NullLog


class Named:
    """A pool as far as the pages look."""

    def __init__(self, name, *backends):
        self.name = name
        self.backends = backends


class World:
    """What the pages show."""

    def __init__(self):
        self.metrics = Metrics()
        self.meters = ProxyMetrics(self.metrics)
        self.draining = False
        self.down = Backend("http://b", 2, backup=True)
        self.down.state, self.down.reason, self.down.inflight = "down", "probe: 503", 4
        self.pools = [Named("web", Backend("http://a"), self.down)]
        self.changes = Changes(["pool a added"], ["user: None -> nobody"])
        self.config = ConfigStatus(3, 0.0, "failed", 60.5, ("a.yaml:1:2: no",))

    async def readings(self):
        return read(self.metrics)

    def views(self):
        return Views(
            readings=self.readings,
            exposition=Exposition(),
            draining=lambda: self.draining,
            pools=lambda: self.pools,
            last_probe=lambda pool, backend: f"{pool}: refused" if backend == "http://b" else None,
            addresses=lambda pool, backend: Found(("192.0.2.1",), "fresh") if backend == "http://a" else None,
            services=lambda pool: {"srv+http://_http._tcp.example.com": "fresh"},
            config=lambda: self.config,
            changes=self.compare,
        )

    async def compare(self):
        if isinstance(self.changes, ConfigError):
            raise self.changes
        return self.changes


class Remembering(NullLog):
    """Keeps what went wrong."""

    def __init__(self):
        self.errors = []

    def error(self, event, **details):
        self.errors.append((event, details))


@asynccontextmanager
async def serving(world=None, host="127.0.0.1", log=None):
    admin = Admin((host, 0), (world or World()).views(), log or NullLog())
    await admin.start()
    try:
        async with httpx.AsyncClient(base_url=f"http://{admin.address[0]}:{admin.address[1]}", trust_env=False) as client:
            yield admin, client
    finally:
        await admin.stop()


async def test_metrics_are_what_prometheus_reads():
    world = World()
    world.meters.sni_resolutions.cell("a.example.com").value += 2
    world.meters.server_up.cell().value = 1
    async with serving(world) as (_, client):
        plain = await client.get("/metrics")
        opened = await client.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
        many = await asyncio.gather(*[client.get("/metrics") for _ in range(5)])
    found = {sample.name: sample.value for family in parse(plain.text) for sample in family.samples}
    assert found["sni_resolutions_total"] == 2
    assert found["server_up"] == 1
    assert plain.headers["content-type"].startswith("text/plain; version=")
    assert opened.headers["content-type"].startswith("application/openmetrics-text")
    assert opened.text.endswith("# EOF\n")
    assert {response.status_code for response in many} == {200}


async def test_health_turns_503_while_draining():
    world = World()
    async with serving(world) as (_, client):
        up = await client.get("/health")
        world.draining = True
        draining = await client.get("/health")
    assert (up.status_code, up.text) == (200, "OK\n")
    assert (draining.status_code, draining.text) == (503, "draining\n")


async def test_pools_tell_every_backend():
    async with serving() as (_, client):
        response = await client.get("/pools")
    assert response.headers["content-type"].startswith("application/json")
    assert response.headers["cache-control"] == "no-store"
    assert response.json() == {
        "pools": [
            {
                "pool": "web",
                "services": {"srv+http://_http._tcp.example.com": "fresh"},
                "backends": [
                    {
                        "backend": "http://a",
                        "state": "up",
                        "reason": "",
                        "weight": 1,
                        "backup": False,
                        "rank": 0,
                        "inflight": 0,
                        "last_probe": None,
                        "addresses": ["192.0.2.1"],
                        "dns": "fresh",
                    },
                    {
                        "backend": "http://b",
                        "state": "down",
                        "reason": "probe: 503",
                        "weight": 2,
                        "backup": True,
                        "rank": 1,
                        "inflight": 4,
                        "last_probe": "web: refused",
                        "addresses": None,
                        "dns": None,
                    },
                ],
            }
        ]
    }


async def test_config_tells_the_last_reload():
    async with serving() as (_, client):
        response = await client.get("/config")
    assert response.json() == {
        "generation": 3,
        "loaded_at": "1970-01-01T00:00:00.000Z",
        "last_reload": {"result": "failed", "at": "1970-01-01T00:01:00.500Z", "problems": ["a.yaml:1:2: no"]},
    }


@pytest.mark.parametrize(
    ("method", "path", "status", "error"),
    [
        ("GET", "/", 404, "there are /metrics, /health, /pools, /peers, /config and /config/changes"),
        ("GET", "/metrics/x", 404, "there are /metrics, /health, /pools, /peers, /config and /config/changes"),
        ("POST", "/pools", 405, "the admin API can only be read"),
        ("DELETE", "/metrics", 405, "the admin API can only be read"),
    ],
)
async def test_errors_are_json(method, path, status, error):
    async with serving() as (_, client):
        response = await client.request(method, path, content=b"x" * 4096 if method == "POST" else None)
    assert response.status_code == status
    assert response.json() == {"error": error}
    if status == 405:
        assert response.headers["allow"] == "GET, HEAD"


async def test_head_gets_no_body():
    async with serving() as (_, client):
        response = await client.head("/health")
    assert (response.status_code, response.content) == (200, b"")


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:9090", 200),
        ("localhost", 200),
        ("LOCALHOST:1", 200),
        ("[::1]:9090", 200),
        ("::1", 200),
        ("192.0.2.1", 200),
        ("qproxy:9090", 200),
        ("evil.example", 403),
        ("evil.example:9090", 403),
        ("127.0.0.1.evil.example", 403),
        ("localhost.evil.example", 403),
        ("a.example.com:80:80", 403),
        ("", 403),
    ],
)
async def test_a_host_that_may_be_somebodys_domain_is_refused(host, status):
    async with serving() as (_, client):
        response = await client.get("/config", headers={"Host": host})
    assert response.status_code == status


async def test_the_configured_name_may_be_used():
    admin = Admin(("admin.internal.example", 0), World().views(), NullLog())
    assert admin._may_name("Admin.internal.example:9090")
    assert not admin._may_name("other.internal.example")


async def test_http_1_0_without_host():
    async with serving() as (admin, _):
        reader, writer = await asyncio.open_connection(*admin.address)
        writer.write(b"GET /health HTTP/1.0\r\n\r\n")
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()
    assert answer.startswith(b"HTTP/1.0 200")
    assert answer.endswith(b"OK\n")


async def test_a_fault_of_a_page_is_500_and_logged_and_the_server_lives():
    world = World()
    log = Remembering()
    world.metrics.before_read.append(lambda: 1 / 0)
    async with serving(world, log=log) as (_, client):
        response = await client.get("/metrics")
        after = await client.get("/health")
    assert (response.status_code, response.json()) == (500, {"error": "an internal error; the log has more"})
    assert after.status_code == 200
    [(event, details)] = log.errors
    assert event == "an admin page failed"
    assert isinstance(details["exc_info"], ZeroDivisionError)


async def test_garbage_leaves_the_server_serving():
    async with serving() as (admin, client):
        for garbage in (b"\x16\x03\x01\x02\x00" * 20, b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 5000, b"G" * 100_000):
            reader, writer = await asyncio.open_connection(*admin.address)
            writer.write(garbage + b"\r\n\r\n")
            try:
                answer = await reader.read()
            except ConnectionError:
                answer = b""
            assert b"Traceback" not in answer
            writer.close()
        assert (await client.get("/health")).status_code == 200


async def test_a_port_in_use_is_an_os_error():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        admin = Admin(taken.getsockname(), World().views(), NullLog())
        with pytest.raises(OSError, match="Address already in use"):
            await admin.start()
        await admin.stop()


async def test_connections_are_bounded(monkeypatch):
    monkeypatch.setattr(admin_module, "MAX_CONNECTIONS", 2)
    async with serving() as (admin, client):
        held = [await asyncio.open_connection(*admin.address) for _ in range(2)]
        for _, writer in held:
            writer.write(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        for reader, _ in held:
            await reader.readuntil(b"OK\n")
        reader, refused = await asyncio.open_connection(*admin.address)
        assert await reader.read() == b""
        for writer in (refused, *[writer for _, writer in held]):
            writer.close()
            await writer.wait_closed()
        async with asyncio.timeout(5):
            while admin._runner.server.connections:  # the server hears of it in a later turn of the loop
                await asyncio.sleep(0)
        assert (await client.get("/health")).status_code == 200


async def test_stopping_frees_the_port_and_may_be_repeated():
    async with serving() as (admin, _):
        address = admin.address
    await admin.stop()
    again = Admin(address, World().views(), NullLog())
    await again.start()
    assert again.address == address
    await again.stop()


async def test_what_the_files_would_change():
    world = World()
    async with serving(world) as (_, client):
        assert (await client.get("/config/changes")).json() == {
            "reload": ["pool a added"],
            "restart": ["user: None -> nobody"],
            "problems": [],
        }
        world.changes = ConfigError([Problem("a.yaml", 1, 2, "no")])
        assert (await client.get("/config/changes")).json() == {"reload": [], "restart": [], "problems": ["a.yaml:1:2: no"]}


async def test_peers_are_shown_as_workers_see_them():
    world = World()
    for peer, server_id, state, workers in (
        ("10.0.0.2:8444", "0b", "ready", 2),
        ("10.0.0.2:8444", "0b", "dead", 1),
        ("10.0.0.1:8444", "", "unknown", 3),
        ("10.0.0.3:8444", "0c", "ready", 0),
    ):
        world.meters.peers.cell(peer, server_id, state).value = workers
    world.meters.peer_round_trip.cell("10.0.0.2:8444").value = 0.0005
    async with serving(world) as (_, client):
        found = (await client.get("/peers")).json()
    assert found["peers"] == [
        {"peer": "10.0.0.1:8444", "server_id": "", "workers": {"unknown": 3}, "round_trip": None},
        {"peer": "10.0.0.2:8444", "server_id": "0b", "workers": {"ready": 2, "dead": 1}, "round_trip": 0.0005},
    ]
    async with serving() as (_, client):
        assert (await client.get("/peers")).json() == {"peers": []}
