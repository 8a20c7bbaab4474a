"""HTTP/3 over paths that are no loopback: datagrams are lost and overtake each other, the client's address changes, a tunnel comes."""

import asyncio
import json
from contextlib import closing

import pytest
from harness import clients
from harness.bulk import Curled
from harness.content import MIB, content, digest
from harness.figures import report
from harness.http3 import http3
from harness.relay import Path, Relay

pytestmark = pytest.mark.speaks("HTTP/3")
HOST = "a.example.com"
PATHS = {
    "2 % lost": Path(loss=0.02),
    "5 % lost": Path(loss=0.05),
    "10 % reordered": Path(reorder=0.1),
    "2 % lost and 10 % reordered by 8": Path(loss=0.02, reorder=0.1, overtaken_by=8),
}
every_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)


def told(relay):
    report(f"the relay passed {relay.passed} datagrams, lost {relay.lost}, let {relay.swapped} be overtaken")


@every_path
async def test_bodies_are_whole_both_ways_by_aioquic(authority, proxy, path):
    size = 2 * MIB
    with Relay(proxy.port, path, seed=1) as relay:
        async with http3(authority, relay.port) as client:
            down = await client.get(f"/bytes/{size}", host=HOST, keep=False)
            up = await client.upload("/upload", content(size, 5), host=HOST)
        told(relay)
    assert (down.status, down.size, down.sha256) == (200, size, digest(size))
    assert json.loads(up.body) == {"sha256": digest(size, 5), "size": size}
    assert relay.lost + relay.swapped > 10


@every_path
def test_bodies_are_whole_both_ways_by_curl(authority, proxy, path):
    size = 4 * MIB
    with Relay(proxy.port, path, seed=2) as relay, closing(Curled(authority, proxy, "HTTP/3", port=relay.port)) as client:
        down = client.download(f"/bytes/{size}")
        up = client.upload("/upload", size, seed=6)
        told(relay)
    assert (down.status, down.size, down.sha256) == (200, size, digest(size))
    assert (up.status, up.size, up.sha256) == (200, size, digest(size, 6))
    assert relay.lost + relay.swapped > 10


def test_bodies_are_whole_both_ways_by_niquests(authority, proxy):
    size = 2 * MIB
    with Relay(proxy.port, Path(loss=0.02, reorder=0.05), seed=3) as relay, clients.niquests_session(authority, relay.port) as session:
        down = session.get(f"https://{HOST}:{relay.port}/bytes/{size}?seed=1")
        up = session.post(f"https://{HOST}:{relay.port}/upload", data=b"".join(content(size, 7)))
        told(relay)
    assert (down.status_code, down.http_version) == (200, 30)
    assert down.content == b"".join(content(size, 1))
    assert up.json() == {"sha256": digest(size, 7), "size": size}
    assert relay.lost > 10


@every_path
async def test_many_requests_at_once_all_have_their_own_answer(authority, proxy, path):
    with Relay(proxy.port, path, seed=4) as relay:
        async with http3(authority, relay.port) as client:
            for _ in range(5):
                sizes = range(1000, 1040)
                answers = await asyncio.gather(*(client.get(f"/bytes/{size}?seed={size}", host=HOST) for size in sizes))
                assert [(answer.status, answer.sha256) for answer in answers] == [(200, digest(size, size)) for size in sizes]


async def test_handshakes_come_about_where_every_fifth_datagram_is_lost(authority, start_proxy):
    # quiche waits a second before it sends again, then two, four and eight: one of a hundred handshakes is not done in the usual ten
    proxy = start_proxy(server={"timeouts": {"handshake": "60s"}})
    with Relay(proxy.port, Path(loss=0.2), seed=5) as relay:
        for _ in range(15):
            async with http3(authority, relay.port) as client:
                assert (await client.get("/hello", host=HOST)).status == 200
    assert relay.lost > 10


async def test_a_download_goes_on_after_a_tunnel(authority, proxy):
    size = 4 * MIB
    with Relay(proxy.port) as relay:
        async with http3(authority, relay.port) as client:
            stream = client.open(f"/bytes/{size}", host=HOST, keep=False)
            for number in (1, 2):
                await reached(client, stream, number * size // 4)
                relay.fall_deaf(0.3)
            answer = await client.answer(stream)
    assert (answer.status, answer.size, answer.sha256) == (200, size, digest(size))
    assert relay.lost > 2


@pytest.mark.parametrize("most", [1472, None], ids=["the link's size", "a size that was searched for"])
async def test_a_download_goes_on_when_its_path_begins_to_drop_large_datagrams(authority, start_proxy, differs, most):
    """Without a word, as tunnels do."""
    finds = differs("path MTU")
    proxy = start_proxy(server={"quic": {"max_datagram_size": most if finds else None}})
    size = 4 * MIB
    with Relay(proxy.port, Path(size=1500)) as relay:
        async with http3(authority, relay.port) as client:
            for _ in range(50 if finds else 0):
                await client.get("/bytes/200000", host=HOST, keep=False)
                if relay.largest_to_clients > 1300:
                    break
            stream = client.open(f"/bytes/{size}", host=HOST, keep=False)
            await reached(client, stream, size // 4)
            relay.shrink(1300)
            answer = await client.answer(stream)
    assert (answer.status, answer.size, answer.sha256) == (200, size, digest(size))
    assert (relay.largest_to_clients > 1300, relay.lost > 0) == (finds, finds)
    if finds:
        proxy.wait_for(lambda: proxy.metric("qproxy_quic_packets_sent_total") > 0, "saw the connection end")
    assert (proxy.metric("qproxy_quic_path_black_holes_total") > 0) == finds


async def reached(client, stream, size):
    """Wait until the answer is that long."""
    while client.streams[stream].answer.size < size:
        client.streams[stream].changed.clear()
        await asyncio.wait_for(client.streams[stream].changed.wait(), 20)


# Rebinding, and migration

ELSEWHERE = "127.0.0.2"
REBINDINGS = 'qproxy_quic_path_changes_total{kind="rebinding"}'
MIGRATIONS = 'qproxy_quic_path_changes_total{kind="migration"}'


async def moved(proxy, times):
    """Wait until the proxy has seen the client's address change so often: an address that was left before it was validated never counts."""
    await asyncio.to_thread(proxy.wait_for, lambda: proxy.logs().count('"path changed"') == times, f"logged change {times} of the path", 30)


BAD = Path(loss=0.02, reorder=0.05)


async def moves_mid_download(authority, proxy, path, *, seed=6, moves=0):
    """A download during which the client's port changes three times, *moves* of other clients before it: the right bytes, one backend."""
    size = 6 * MIB
    with Relay(proxy.port, path, seed=seed) as relay:
        async with http3(authority, relay.port, asks=True) as client:
            before = await client.get("/hello", host=HOST)
            stream = client.open(f"/bytes/{size}", host=HOST)
            for number in (1, 2, 3):
                await reached(client, stream, number * size // 5)
                relay.rebind()
                await moved(proxy, moves + number)
            answer = await client.answer(stream)
            after = await client.get("/hello", host=HOST)
    assert (answer.status, answer.size, answer.sha256) == (200, size, digest(size))
    backends = {before.headers["x-backend"], answer.headers["x-backend"], after.headers["x-backend"]}
    assert len(backends) == 1
    assert before.headers["x-affinity-key"] == after.headers["x-affinity-key"]
    changes = [json.loads(line) for line in proxy.logs().splitlines() if '"path changed"' in line]
    assert {change["key"] for change in changes[-3:]} == {before.headers["x-affinity-key"]}
    assert proxy.metrics()[REBINDINGS] == moves + 3


@pytest.mark.parametrize("path", [Path(), BAD], ids=["a good path", "a bad path"])
async def test_a_client_whose_address_changes_mid_download_gets_the_right_bytes_from_the_same_backend(authority, start_proxy, path):
    await moves_mid_download(authority, start_proxy(), path)


async def test_bbr_goes_on_through_changes_of_the_address_on_a_bad_path(authority, start_proxy, differs):
    """Ten downloads: an answer to a challenge may get lost, and with bbr all else is soon acknowledged."""
    bbr = differs("congestion control")
    proxy = start_proxy(server={"quic": {"congestion_control": "bbr" if bbr else "auto"}})
    for number in range(10 if bbr else 1):
        await moves_mid_download(authority, proxy, BAD, seed=number, moves=3 * number)


async def test_a_client_whose_address_changes_mid_upload_is_heard_to_the_end(authority, start_proxy):
    proxy = start_proxy()
    size = 4 * MIB
    with Relay(proxy.port) as relay:

        def pieces():
            for number, piece in enumerate(content(size, 8)):
                if number in {4, 9}:
                    relay.rebind()
                yield piece

        async with http3(authority, relay.port, asks=True) as client:
            answer = await client.upload("/upload", pieces(), host=HOST)
            assert (await client.get("/hello", host=HOST)).status == 200
    assert json.loads(answer.body) == {"sha256": digest(size, 8), "size": size}
    await asyncio.to_thread(proxy.wait_for, lambda: proxy.metrics()[REBINDINGS] == 2, "saw two changes of the path")


async def test_a_client_may_move_more_often_than_it_has_connection_ids(authority, start_proxy):
    proxy = start_proxy()
    with Relay(proxy.port) as relay:
        async with http3(authority, relay.port, asks=True) as client:
            keys = {(await client.get("/hello", host=HOST)).headers["x-affinity-key"]}
            for number in range(1, 21):
                relay.rebind()
                keys.add((await client.get("/hello", host=HOST)).headers["x-affinity-key"])
                await moved(proxy, number)
    assert len(keys) == 1


def test_curl_s_address_changes_mid_download(authority, start_proxy):
    proxy = start_proxy()
    size = 8 * MIB
    with Relay(proxy.port) as relay, closing(Curled(authority, proxy, "HTTP/3", port=relay.port)) as client:
        moved = client.download(f"/bytes/{size}", at={2 * MIB: relay.rebind, 5 * MIB: relay.rebind})

        def counted():
            return client.download("/hello").status == 200 and proxy.metrics()[REBINDINGS] == 2  # curl answers only while it transfers

        proxy.wait_for(counted, "saw two changes of the path")
    assert (moved.status, moved.size, moved.sha256) == (200, size, digest(size))


async def test_many_clients_behind_one_nat_all_move_at_once(authority, start_proxy):
    proxy = start_proxy()
    async with asyncio.TaskGroup() as group:
        with Relay(proxy.port) as relay:
            moved = asyncio.Barrier(11)

            async def life():
                async with http3(authority, relay.port) as client:
                    before = await client.get("/hello", host=HOST)
                    await moved.wait()
                    await moved.wait()
                    after = await client.get("/hello", host=HOST)
                    assert (before.status, after.status) == (200, 200)
                    assert before.headers["x-affinity-key"] == after.headers["x-affinity-key"]

            lives = [group.create_task(life()) for _ in range(10)]
            await moved.wait()
            relay.rebind()
            await moved.wait()
            await asyncio.gather(*lives)
    assert proxy.metrics()[REBINDINGS] == 10


async def test_a_client_that_changes_its_network_and_its_connection_id_mid_download_gets_the_right_bytes(authority, start_proxy):
    proxy = start_proxy()
    size = 6 * MIB
    with Relay(proxy.port) as relay:
        async with http3(authority, relay.port, asks=True) as client:
            before = await client.get("/hello", host=HOST)
            stream = client.open(f"/bytes/{size}", host=HOST)
            for number, host in ((1, ELSEWHERE), (2, "127.0.0.3"), (3, "127.0.0.1")):
                await reached(client, stream, number * size // 5)
                client._quic.change_connection_id()
                relay.rebind(host)
                await moved(proxy, number)
            answer = await client.answer(stream)
            after = await client.get("/hello", host=HOST)
    assert (answer.status, answer.size, answer.sha256) == (200, size, digest(size))
    assert len({one.headers["x-backend"] for one in (before, answer, after)}) == 1
    assert before.headers["x-affinity-key"] == after.headers["x-affinity-key"]
    assert (proxy.metrics()[MIGRATIONS], proxy.metrics()[REBINDINGS]) == (3, 0)
    changes = [json.loads(line) for line in proxy.logs().splitlines() if '"path changed"' in line]
    assert [(change["kind"], change["new"].partition(":")[0]) for change in changes] == [
        ("migration", ELSEWHERE),
        ("migration", "127.0.0.3"),
        ("migration", "127.0.0.1"),
    ]


async def test_where_migration_is_off_a_rebinding_goes_on_and_another_address_is_not_heard(authority, make_proxy):
    proxy = make_proxy()
    proxy.server["listeners"][0]["migration"] = False
    proxy.write()
    proxy.start()
    refused = "qproxy_quic_moves_refused_total"
    size = 4 * MIB
    with Relay(proxy.port) as relay:
        async with http3(authority, relay.port, asks=True) as client:
            stream = client.open(f"/bytes/{size}", host=HOST, keep=False)
            await reached(client, stream, size // 4)
            relay.rebind()
            await moved(proxy, 1)
            await reached(client, stream, size // 2)
            relay.rebind(ELSEWHERE)
            await asyncio.to_thread(proxy.wait_for, lambda: proxy.metrics()[refused] > 2, "refused what came from elsewhere")
            relay.rebind("127.0.0.1")
            answer = await client.answer(stream)
    assert (answer.status, answer.size, answer.sha256) == (200, size, digest(size))
    assert proxy.metrics()[MIGRATIONS] == 0
