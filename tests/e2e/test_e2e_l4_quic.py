"""QUIC through the L4 tier, in front of real instances: by connection ID wherever a client moves, through drain, death and new keys."""

import asyncio
import base64
import json
import re
import time

import pytest
from curl_cffi.requests import exceptions
from harness.cli import qproxy
from harness.clients import curl_session
from harness.content import MIB, digest
from harness.fleet import HOST, OLD
from harness.http3 import http3
from harness.load import Load, Polite
from harness.processes import kill, workers
from harness.relay import Relay

from proxy.cluster.peers import ASK_EVERY, UNANSWERED

pytestmark = pytest.mark.speaks("HTTP/3")

ROUTED = "qproxy_l4_datagrams_routed_total"
RESETS = "qproxy_quic_stateless_resets_total"
DEAD_AFTER = UNANSWERED * ASK_EVERY


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


async def test_clients_of_an_instance_that_died_hear_so_through_the_tier_and_begin_again(authority, fleet, start_tier):
    """aioquic, which waits for an answer, and then curl, which asks; what resets them is the other instance."""
    for number in (51, 52):
        fleet.start(number)
    tier = start_tier([fleet.entry(initial_key="client_address")], server=fleet.server())
    fleet.named(tier, 2)
    url = f"https://{HOST}:{tier.port}/hello"

    def asked_again(session):
        try:
            return session.get(url)
        except exceptions.ConnectionError:  # the reset came while it wrote, and it leaves it to its user to ask again
            return session.get(url)

    with curl_session(authority, tier.port) as session:
        async with http3(authority, tier.port, protocol=Polite, asks=True, idle_timeout=120) as client:
            home = int((await client.get("/hello", host=HOST)).headers["x-instance"])
            [other] = fleet.proxies.keys() - {home}
            assert (await asyncio.to_thread(session.get, url)).headers["x-instance"] == str(home)
            resets = fleet.proxies[other].metric(RESETS)
            fleet.proxies[home].crash()
            client.open("/hello", host=HOST)
            async with asyncio.timeout(15):  # 5 s, after which its peers say that it is dead, and some for a busy machine
                while client.terminated is None:
                    await asyncio.sleep(0.01)
            assert client.terminated.reason_phrase == "stateless reset"
        async with asyncio.timeout(10):  # without a reset its idle timeout, two minutes
            answer = await asyncio.to_thread(asked_again, session)
        assert answer.headers["x-instance"] == str(other)
    assert fleet.proxies[other].metric(RESETS) >= resets + 2


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
    for proxy in (tier, *fleet.proxies.values()):
        found = proxy.metrics()
        keys = {name: value for name, value in found.items() if name.startswith("qproxy_cluster_keys{")}
        assert keys == {'qproxy_cluster_keys{epoch="3",state="opens"}': 1, 'qproxy_cluster_keys{epoch="4",state="seals"}': 1}
        assert found['qproxy_cluster_key_opened_total{epoch="4",kind="envelope"}'] > 0
    name = f'{{listener="127.0.0.1:{tier.port}",rule="hash"}}'
    assert tier.metrics()[ROUTED + name] <= 4


async def test_another_key_in_the_place_of_one_is_taken_with_the_reload(authority, fleet, start_tier):
    """As of a file that was made anew, whose first epoch has the same number. Connections are lost, new ones come in."""
    fleet.start(51)
    tier = start_tier([fleet.entry()], server=fleet.server())
    fleet.named(tier, 1)
    fleet.key_file.write_text(OLD.replace(base64.b64encode(bytes(range(32))).decode(), base64.b64encode(bytes(range(32, 64))).decode()))
    for proxy in (fleet.proxies[51], tier):
        await asyncio.to_thread(proxy.reload, expect="configuration reloaded")
    by_id = f'{ROUTED}{{listener="127.0.0.1:{tier.port}",rule="connection_id"}}'
    before = tier.metrics()[by_id]
    for _ in range(3):
        async with http3(authority, tier.port) as client:
            assert (await client.get("/hello", host=HOST, limit=20)).headers["x-instance"] == "51"
    assert tier.metrics()[by_id] > before


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
    told = await asyncio.to_thread(qproxy, "explain", "-c", tier.config, "--protocol", "h3", f"https://{HOST}:{tier.port}/")
    assert set(re.findall(r"\* 1\. tcp://127\.0\.0\.(\d+):\d+ \(up\)", told.out)) == seen


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


async def test_a_tier_that_was_stopped_keeps_an_instance_that_was_removed(authority, fleet, start_tier):
    """Nobody answered it meanwhile, for longer than such an instance may be silent; but it has asked nobody either."""
    fleet.start(51)
    tier = start_tier([fleet.entry()], server=fleet.server())
    fleet.named(tier, 1)
    async with http3(authority, tier.port, protocol=Polite) as kept:
        assert (await kept.get("/hello", host=HOST)).headers["x-instance"] == "51"
        fleet.start(52)
        tier.l4[0]["instances"]["endpoints"] = [fleet.at(52)]
        tier.write()
        await asyncio.to_thread(tier.reload, expect="configuration reloaded")
        await asyncio.sleep(ASK_EVERY * 2)  # it has been asked since, and goes by that
        with tier.stopped():
            await asyncio.sleep(DEAD_AFTER + 1)
        for _ in range(10):
            assert (await kept.get("/hello", host=HOST, limit=20)).headers["x-instance"] == "51"
            await asyncio.sleep(ASK_EVERY / 5)  # over some rounds of HELLOs


async def test_clients_of_an_instance_that_was_removed_and_died_begin_again_soon(authority, fleet, start_tier):
    """Nobody probes it any more: that it says nothing has to be noticed all the same."""
    fleet.start(51)
    tier = start_tier([fleet.entry()], server=fleet.server())
    fleet.named(tier, 1)
    async with http3(authority, tier.port, protocol=Polite) as kept:
        assert (await kept.get("/hello", host=HOST)).headers["x-instance"] == "51"
        fleet.start(52)
        tier.l4[0]["instances"]["endpoints"] = [fleet.at(52)]
        tier.write()
        await asyncio.to_thread(tier.reload, expect="configuration reloaded")
        await asyncio.sleep(DEAD_AFTER + 1)  # still there, as it says, although nothing comes from it
        assert (await kept.get("/hello", host=HOST)).headers["x-instance"] == "51"
        fleet.proxies[51].crash()
        asking = asyncio.ensure_future(kept.ask_where_it_is_silent())
        with pytest.raises(ConnectionError, match="stateless reset"):
            await kept.get("/hello", host=HOST, limit=4 * DEAD_AFTER)
        asking.cancel()


async def test_a_client_that_waits_in_silence_has_its_answer_over_an_upgrade_of_the_tier(authority, start_tier, fleet):
    """The instance answers to the worker that the request came by, which has a successor then; a client that says nothing tells of none."""
    fleet.start(51)
    tier = start_tier([fleet.entry()], server=fleet.server(workers=2))
    fleet.named(tier, 1)
    async with http3(authority, tier.port) as client:
        stream = client.open("/slow?seconds=8", host=HOST)
        await asyncio.sleep(1)  # the request is with the backend, and acknowledged
        ran = await asyncio.to_thread(qproxy, "upgrade", "-c", tier.config)
        assert ran.code == 0, ran.err
        answer = await client.answer(stream, 20)
        assert answer.status == 200
        assert (await client.get("/hello", host=HOST)).status == 200
        assert client.terminated is None


async def test_a_client_that_waits_in_silence_has_its_answer_when_the_tiers_workers_are_killed(authority, start_tier, fleet):
    """The instance answers to a port that goes on, and who comes in the place of the dead one reads there."""
    fleet.start(51)
    tier = start_tier([fleet.entry()], server=fleet.server(workers=2))
    fleet.named(tier, 1)
    async with http3(authority, tier.port) as client:
        stream = client.open("/slow?seconds=6", host=HOST)
        await asyncio.sleep(1)  # the request is with the backend, and acknowledged
        for pid in workers(tier):
            await asyncio.to_thread(kill, pid)
        answer = await client.answer(stream, 30)
        assert answer.status == 200
        assert client.terminated is None


@pytest.mark.speaks("HTTP/2")
def test_upgrades_of_tier_and_instance_and_reloads_of_the_tier_lose_nothing(authority, start_tier, fleet):
    """Under load of all versions; what the tier itself goes through moves no QUIC connection either."""
    for number in (51, 52):
        fleet.start(number, workers=2)
    tier = start_tier([fleet.entry([51])], server=fleet.server(workers=2))
    fleet.named(tier, 1)
    with Load(authority, tier.port, clients=3) as load:
        load.more(30)
        began = time.monotonic()
        tier.l4 = [tier.l4[0] | fleet.entry([51, 52])]
        tier.write()
        tier.reload()
        fleet.named(tier, 2)
        load.more(20)
        upgraded(tier)
        load.more(30)
        tier.l4 = [tier.l4[0] | fleet.entry([52])]
        tier.write()
        tier.reload()
        load.more(20)
        assert held(load, began) == 3
        upgraded(fleet.proxies[51])
        upgraded(fleet.proxies[52])
        load.more(40)
    assert not load.lost, load.summary()


def upgraded(proxy):
    ran = qproxy("upgrade", "-c", proxy.config)
    assert ran.code == 0, ran.err


def held(load, since):
    """How many clients over QUIC have had one connection only since then, which goes on."""
    used = {}
    for result in list(load.results):
        if result.version == "HTTP/3" and result.at >= since:
            used.setdefault(result.client, set()).add(result.connection)
    return sum(len(connections) == 1 for connections in used.values())
