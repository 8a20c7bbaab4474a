"""QUIC through the L4 tier, in front of real instances: by connection ID wherever a client moves, through drain, death and new keys."""

import asyncio
import base64
import json
import time

import pytest
from harness.clients import curl_session
from harness.content import MIB, digest
from harness.http3 import http3
from harness.ports import free_port
from harness.relay import Relay

pytestmark = pytest.mark.speaks("HTTP/3")

HOST = "a.example.com"
OLD = f"3 2020-01-01T00:00:00Z {base64.b64encode(bytes(range(32))).decode()}\n"
QUICK = {"path": "/health", "interval": "100ms", "timeout": "1s", "rise": 1, "fall": 2}
ROUTED = "qproxy_l4_datagrams_routed_total"


class Fleet:
    """Instances on addresses of their own with one cluster key file, and what a tier in front of them says of them."""

    def __init__(self, make, folder):
        self._make = make
        self.key_file = folder / "cluster.key"
        self.key_file.write_text(OLD)
        self.key_file.chmod(0o600)
        self.clients, self.envelopes = free_port(), free_port()
        self.proxies = {}

    def start(self, number, **server):
        """Instance *number*, at 127.0.0.*number*; it shows its number in X-Instance."""
        host = f"127.0.0.{number}"
        route = {"match": {"path": "/"}, "pool": "web", "headers": {"response": {"set": {"X-Instance": str(number)}}}}
        own = {
            "workers": 1,
            "listeners": [{"address": f"{host}:{self.clients}", "proxy_protocol": {"from": ["127.0.0.0/8"]}}],
            "cluster": {
                "key_file": str(self.key_file),
                "address": f"{host}:{self.envelopes}",
                "peers": [f"127.0.0.{other}:{self.envelopes}" for other in (51, 52, 53)],
            },
            "quic": {"connection_ids": {"server_id": f"{number:08x}", "slot": True}},
        }
        proxy = self.proxies[number] = self._make(server=own | server, sites={HOST: {"routes": [route]}}, answers=False)
        return proxy.start()

    def at(self, number):
        return f"127.0.0.{number}:{self.clients}"

    def entry(self, **more):
        endpoints = [self.at(number) for number in self.proxies]
        return {"instances": {"endpoints": endpoints, "envelope_port": self.envelopes, "health": QUICK}} | more

    def server(self, **more):
        return {"cluster": {"key_file": str(self.key_file)}} | more

    def named(self, tier, count):
        """Wait until the tier knows so many server IDs."""
        tier.wait_for(lambda: sum_of(tier, "qproxy_l4_server_ids") >= count * workers_of(tier), "knows its instances", 20)


def workers_of(tier):
    return max(1, int(sum_of(tier, "qproxy_workers")))


def sum_of(tier, name):
    return tier.metric(name)


@pytest.fixture
def fleet(make_proxy, tmp_path):
    made = Fleet(make_proxy, tmp_path)
    yield made
    for proxy in made.proxies.values():
        proxy.close()


async def reached(authority, tier, count):
    """The instances that so many new connections come to, made at the same time."""

    async def one():
        async with http3(authority, tier.port) as client:
            return (await client.get("/hello", host=HOST)).headers["x-instance"]

    return await asyncio.gather(*(one() for _ in range(count)))


def curled(authority, tier, path="/headers"):
    with curl_session(authority, tier.port) as client:
        answer = client.get(f"https://{HOST}:{tier.port}{path}")
    assert answer.status_code == 200
    return answer


@pytest.mark.parametrize("workers", [1, 2])
async def test_clients_are_spread_and_the_backend_hears_their_address(authority, fleet, start_tier, workers):
    for number in (51, 52, 53):
        fleet.start(number)
    tier = start_tier([fleet.entry()], server=fleet.server(workers=workers))
    fleet.named(tier, 3)
    assert set(await reached(authority, tier, 16)) == {"51", "52", "53"}
    async with http3(authority, tier.port) as client:
        answer = await client.get("/headers", host=HOST)
    assert dict(map(tuple, json.loads(answer.body)["headers"]))["x-forwarded-for"] == "127.0.0.1"
    answer = await asyncio.to_thread(curled, authority, tier)
    assert dict(map(tuple, answer.json()["headers"]))["x-forwarded-for"] == "127.0.0.1"
    assert tier.metric("qproxy_l4_datagrams_dropped_total") == 0


async def test_a_client_that_moves_in_mid_download_stays_with_its_instance(authority, fleet, start_tier):
    for number in (51, 52, 53):
        fleet.start(number)
    tier = start_tier([fleet.entry()], server=fleet.server())
    fleet.named(tier, 3)
    size = 4 * MIB
    with Relay(tier.port) as relay:
        async with http3(authority, relay.port, asks=True) as client:
            home = (await client.get("/hello", host=HOST)).headers["x-instance"]
            stream = client.open(f"/bytes/{size}", host=HOST, keep=False)
            for host in (None, "127.0.0.88", "127.0.0.99"):
                before = await client.size(stream)
                relay.rebind(host)
                async with asyncio.timeout(20):
                    while await client.size(stream) == before and not client.streams[stream].done.done():
                        await asyncio.sleep(0.01)
            answer = await client.answer(stream)
            assert (answer.size, answer.sha256) == (size, digest(size))
            assert (await client.get("/hello", host=HOST)).headers["x-instance"] == home
    metrics = tier.metrics()
    name = f'{{listener="127.0.0.1:{tier.port}",rule="%s"}}'
    assert metrics[ROUTED + name % "connection_id"] > 100
    assert metrics[ROUTED + name % "hash"] <= 2
    changes = [proxy.metric("qproxy_quic_path_changes_total") for proxy in fleet.proxies.values()]
    assert sorted(changes)[:2] == [0, 0]
    assert max(changes) >= 1


async def test_an_upload_passes_whole(authority, fleet, start_tier):
    fleet.start(51)
    tier = start_tier([fleet.entry()], server=fleet.server())
    fleet.named(tier, 1)
    body = [bytes([number % 256]) * 65536 for number in range(64)]
    async with http3(authority, tier.port) as client:
        answer = await client.upload("/upload", body, host=HOST)
    assert json.loads(answer.body)["size"] == 4 * MIB


async def test_a_drained_instance_keeps_its_connections_and_gets_none(authority, fleet, start_tier):
    for number in (51, 52):
        fleet.start(number, timeouts={"drain_delay": "30s", "drain": "30s"})
    tier = start_tier([fleet.entry()], server=fleet.server())
    fleet.named(tier, 2)
    async with http3(authority, tier.port) as kept:
        home = int((await kept.get("/hello", host=HOST)).headers["x-instance"])
        fleet.proxies[home].process.terminate()
        await asyncio.to_thread(tier.wait_state, fleet.at(home), "draining")
        assert (await kept.get("/hello", host=HOST)).headers["x-instance"] == str(home)
        assert str(home) not in await reached(authority, tier, 10)
        assert (await kept.get("/hello", host=HOST)).headers["x-instance"] == str(home)


async def test_clients_of_an_instance_that_died_come_to_another(authority, fleet, start_tier):
    for number in (51, 52):
        fleet.start(number)
    tier = start_tier([fleet.entry()], server=fleet.server())
    fleet.named(tier, 2)
    async with http3(authority, tier.port) as client:
        home = int((await client.get("/hello", host=HOST)).headers["x-instance"])
        fleet.proxies[home].crash()
        await asyncio.to_thread(tier.wait_state, fleet.at(home), "down")
        assert str(home) not in await reached(authority, tier, 4)


async def test_a_restarted_tier_knows_living_connections_by_their_ids(authority, fleet, start_tier):
    for number in (51, 52, 53):
        fleet.start(number)
    tier = start_tier([fleet.entry()], server=fleet.server())
    fleet.named(tier, 3)
    async with http3(authority, tier.port) as client:
        home = (await client.get("/hello", host=HOST)).headers["x-instance"]
        await asyncio.to_thread(tier.crash)
        await asyncio.to_thread(tier.start)
        await asyncio.to_thread(fleet.named, tier, 3)
        assert (await client.get("/hello", host=HOST, limit=20)).headers["x-instance"] == home


async def test_a_new_key_is_brought_in_any_order_and_costs_no_connection(authority, fleet, start_tier):
    for number in (51, 52):
        fleet.start(number)
    tier = start_tier([fleet.entry()], server=fleet.server())
    fleet.named(tier, 2)
    async with http3(authority, tier.port) as kept:
        home = (await kept.get("/hello", host=HOST)).headers["x-instance"]
        begin = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 4))
        fleet.key_file.write_text(OLD + f"4 {begin} {base64.b64encode(bytes(range(32, 64))).decode()}\n")
        for proxy in (fleet.proxies[52], tier, fleet.proxies[51]):
            await asyncio.to_thread(proxy.reload, expect="configuration reloaded")
            assert (await kept.get("/hello", host=HOST)).headers["x-instance"] == home
        await asyncio.sleep(5)  # until the new key seals
        assert (await kept.get("/hello", host=HOST, limit=20)).headers["x-instance"] == home
        async with http3(authority, tier.port) as client:
            assert (await client.get("/hello", host=HOST)).status == 200
            assert {entry.cid[0] >> 5 for entry in (client._quic._peer_cid, *client._quic._peer_cid_available)} == {4}
        assert {entry.cid[0] >> 5 for entry in (kept._quic._peer_cid, *kept._quic._peer_cid_available)} == {4}
    name = f'{{listener="127.0.0.1:{tier.port}",rule="hash"}}'
    assert tier.metrics()[ROUTED + name] <= 4


@pytest.mark.speaks("HTTP/2", "HTTP/3")
async def test_all_connections_of_a_client_go_to_one_instance_where_its_address_is_the_key(authority, fleet, start_tier):
    for number in (51, 52, 53):
        fleet.start(number)
    tier = start_tier([fleet.entry(initial_key="client_address")], server=fleet.server())
    fleet.named(tier, 3)
    seen = set(await reached(authority, tier, 8))
    with curl_session(authority, tier.port, "HTTP/2") as over_tcp:
        seen.add(over_tcp.get(f"https://{HOST}:{tier.port}/hello").headers["x-instance"])
    assert len(seen) == 1


async def test_a_reload_adds_and_removes_instances_and_living_flows_go_on(authority, fleet, start_tier):
    fleet.start(51)
    tier = start_tier([fleet.entry()], server=fleet.server())
    fleet.named(tier, 1)
    async with http3(authority, tier.port) as kept:
        assert (await kept.get("/hello", host=HOST)).headers["x-instance"] == "51"
        fleet.start(52)
        tier.l4[0]["instances"]["endpoints"] = [fleet.at(52)]
        tier.write()
        await asyncio.to_thread(tier.reload, expect="configuration reloaded")
        assert set(await reached(authority, tier, 4)) == {"52"}
        assert (await kept.get("/hello", host=HOST)).headers["x-instance"] == "51"
