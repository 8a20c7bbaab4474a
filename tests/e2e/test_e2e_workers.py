"""Several workers: they share the work and what they know; one that dies is started again; reloads and upgrades change all at once."""

import asyncio
import json
import os
import re
import signal
import socket
import time
from collections import Counter, defaultdict

import pytest
from curl_cffi.requests import exceptions
from harness import clients
from harness.content import MIB, digest
from harness.crowd import Port, until
from harness.http1 import http1
from harness.http2 import http2
from harness.http3 import http3
from harness.load import Load
from harness.ports import free_port
from harness.processes import children, controller, gone, kill, serving, workers

HOST = "a.example.com"
CONNECT = {"HTTP/1.1": http1, "HTTP/2": http2, "HTTP/3": http3}
ALL = pytest.mark.speaks("HTTP/2", "HTTP/3")


@pytest.fixture
def team(start_proxy):
    """A proxy with two workers."""
    proxy = start_proxy(server={"workers": 2})
    serving(proxy, 2)
    return proxy


def workers_that_answered(proxy):
    """Answers in the access log by worker, told by the part of a request id that is the process's own."""
    return Counter(re.findall(r'"request_id":"([0-9a-f]{12})-', proxy.logs()))


@ALL
def test_all_versions_are_served_by_all_workers(authority, team):
    already = team.metric("qproxy_streams_total")
    with Load(authority, team.port, clients=12) as load:
        load.more(100)
    assert not load.lost, load.summary()
    assert len(workers_that_answered(team)) == 2
    metrics = team.metrics()
    assert team.metric("qproxy_streams_total") == already + len(load.results)
    assert metrics["qproxy_config_generation"] == metrics["server_up"] == 1


@ALL
def test_a_client_has_the_same_backend_from_every_worker(authority, team):
    with Load(authority, team.port, versions=["HTTP/1.1", "HTTP/2"], clients=6, streams=1) as load:
        load.more(20)
    with Load(authority, team.port, versions=["HTTP/1.1", "HTTP/2"], clients=6, streams=1) as again:
        again.more(20)
    found = {}
    for each in (load, again):
        assert not each.lost, each.summary()
        for (_, client, _), names in each.backends().items():
            found.setdefault(client, set()).update(names)
    assert len(workers_that_answered(team)) == 2
    assert all(len(names) == 1 for names in found.values()), found


BY_KEY = {"address": "client_address", "header": {"header": "X-User"}, "cookie": {"cookie": "user"}}
# So many clients that chance alone hardly ever gives one backend to all, or one worker to half of them: less than once in a million runs.
CLIENTS, VISITS = 18, 4


@pytest.mark.speaks("HTTP/3")
async def test_a_key_has_the_same_backend_from_every_worker_over_quic(authority, start_proxy, backends):
    """Each client comes several times, to whichever worker the kernel gives it."""
    endpoints = [backend.url for backend in backends]
    site = {
        "routes": [{"match": {"path": f"/headers/{name}"}, "pool": name} for name in BY_KEY],
        "pools": {name: {"endpoints": endpoints, "balance": {"key": key}} for name, key in BY_KEY.items()},
        "headers": {"response": {"set": {"X-Worker": "{request_id}"}}},
    }
    proxy = start_proxy(server={"workers": 4}, sites={HOST: site})
    await asyncio.to_thread(serving, proxy, 4)
    by_key, by_worker = defaultdict(set), defaultdict(set)
    for client in range(CLIENTS):
        mine = ("x-user", f"user-{client}"), ("cookie", f"user=user-{client}")
        port = Port(authority, proxy.port, f"127.0.9.{client + 1}", VISITS, HOST)
        await until(lambda port=port: all(one.http for one in port.ones), "all are connected")
        asked = [(name, one, one.ask(f"/headers/{name}", HOST, fields=mine)) for name in BY_KEY for one in port.ones]
        port.flush()
        await until(lambda asked=asked: all(stream in one.answers for _, one, stream in asked), "all are answered")
        for name, one, stream in asked:
            answer = one.answers[stream]
            assert answer[":status"] == "200"
            by_key[name, client].add(answer["x-backend"])
            by_worker[name, client].add(answer["x-worker"].partition("-")[0])
        port.close()
    assert len(set().union(*by_worker.values())) == 4
    moved = [key for key, names in by_worker.items() if len(names) > 1]
    assert len(moved) > len(by_worker) / 2, "one worker for all visits shows nothing"
    assert all(len(names) == 1 for names in by_key.values()), by_key
    assert all(len(set().union(*(by_key[name, client] for client in range(CLIENTS)))) > 1 for name in BY_KEY), "not all keys are one"


@pytest.mark.speaks("HTTP/3")
async def test_a_client_that_comes_back_has_its_key_from_every_worker(authority, start_proxy):
    """By its ticket, since each of its connections is another one."""
    proxy = start_proxy(server={"workers": 2}, sites={HOST: {"headers": {"response": {"set": {"X-Worker": "{request_id}"}}}}})
    await asyncio.to_thread(serving, proxy, 2)
    tickets, seen, served = [], set(), set()
    for visit in range(12):
        async with http3(authority, proxy.port, tickets=tickets, session_ticket=tickets[-1] if tickets else None) as client:
            answer = await client.get("/headers/1", host=HOST)
            assert client._quic.tls.session_resumed == (visit > 0)
        seen.add((answer.headers["x-backend"], dict(json.loads(answer.body)["headers"])["x-affinity-key"]))
        served.add(answer.headers["x-worker"].partition("-")[0])
    assert len(served) == 2
    assert len(seen) == 1


@ALL
def test_a_worker_that_is_killed_costs_its_own_connections_only(authority, team):
    before = workers(team)
    with Load(authority, team.port, clients=8, streams=2, limit=5) as load:  # aioquic's client takes no reset
        load.more(60)
        connections = {result.connection for result in load.results}
        counted = team.metric("qproxy_streams_total")
        kill(before[0])
        serving(team, 2)
        load.more(60)
    assert workers(team) != before
    assert before[1] in workers(team), "the other one goes on"
    assert team.metric("qproxy_streams_total") > counted, "counters never run backwards"
    assert team.metric("qproxy_worker_deaths_total") == 1
    hurt = {result.connection for result in load.lost}
    assert hurt <= connections, "only connections that it had"
    assert len(hurt) < len(connections), load.summary()
    assert '"event":"worker 0 ended; it is started again"' in team.logs() or '"event":"worker 1 ended; it is started again"' in team.logs()


@pytest.mark.speaks("HTTP/3")
def test_a_quic_client_of_a_killed_worker_hears_of_it_at_once(authority, team):
    """By a stateless reset that it believes: it begins anew, and need not wait until it has lost all hope."""
    with clients.curl_session(authority, team.port) as session:
        assert session.get(team.url("/hello")).status_code == 200
        for pid in workers(team):
            kill(pid)
        serving(team, 2)
        began = time.monotonic()
        try:
            answer = session.get(team.url("/hello"))
        except exceptions.ConnectionError:  # the reset came while it wrote, and it leaves it to its user to ask again
            answer = session.get(team.url("/hello"))
        took = time.monotonic() - began
    assert answer.status_code == 200
    assert team.metric("qproxy_quic_stateless_resets_total") >= 1
    assert took < 10  # without the reset: curl's idle timeout


@ALL
def test_without_a_controller_all_is_served_and_one_comes_back(authority, team):
    with Load(authority, team.port, clients=4) as load:
        load.more(20)
        counted = team.metric("qproxy_streams_total")
        had = controller(team)
        kill(had)
        load.more(20)
        team.wait_for(lambda: "the controller is back" in team.logs(), "has a controller again")
        load.more(20)
    assert not load.lost, load.summary()
    assert controller(team) != had
    serving(team, 2)
    assert team.metric("qproxy_streams_total") > counted
    team.sites[HOST]["headers"] = {"response": {"set": {"X-New": "yes"}}}
    team.write()
    team.reload(expect="configuration reloaded")
    for _ in range(6):
        with clients.httpx_client(authority) as client:
            assert client.get(team.url()).headers["x-new"] == "yes"


@ALL
def test_reloads_change_every_worker_and_cost_no_request(authority, team):
    with Load(authority, team.port, clients=4) as load:
        for number in range(5):
            team.sites[HOST]["headers"] = {"response": {"set": {"X-Generation": str(number)}}}
            team.write()
            team.reload(expect="configuration reloaded")
            for _ in range(8):
                with clients.httpx_client(authority) as client:
                    assert client.get(team.url()).headers["x-generation"] == str(number)
            load.more(10)
    assert not load.lost, load.summary()
    assert team.metrics()["qproxy_config_generation"] == 6


def test_a_wrong_configuration_changes_no_worker(authority, team):
    team.sites[HOST]["headers"] = {"response": {"set": {"X-New": "yes"}}}
    team.write()
    (team.config / "broken.yaml").write_text("site: [")
    team.reload(expect="the new configuration is wrong")
    for _ in range(6):
        with clients.httpx_client(authority) as client:
            assert "x-new" not in client.get(team.url()).headers
    assert team.metrics()['qproxy_reloads_total{result="failed"}'] == 1
    kill(controller(team))
    team.wait_for(lambda: "the controller is back" in team.logs(), "has a controller again")
    assert team.metrics()["qproxy_config_generation"] == 1, "it knows what is in use, whatever the files say"


def test_what_one_worker_finds_out_of_a_backend_all_know(authority, start_proxy, backends):
    """Nothing probes here: live requests tell."""
    pool = {"endpoints": [backends[0].url, f"http://127.0.0.1:{free_port()}"], "health": "off", "passive": {"fall": 2}}
    proxy = start_proxy(server={"workers": 2}, sites={HOST: {"pools": {"web": pool | {"balance": {"policy": "round_robin"}}}}})
    serving(proxy, 2)

    def down():
        return proxy.metrics().get(f'qproxy_backend_up{{backend="{pool["endpoints"][1]}",pool="{HOST}/web"}}') == 0

    with clients.httpx_client(authority) as client:
        for _ in range(12):
            assert client.get(proxy.url("/hello")).status_code == 200
    proxy.wait_for(down, "takes the dead backend for down")


@ALL
def test_an_upgrade_changes_every_process_but_the_first_and_costs_no_request(authority, team):
    before, pid, already = children(team), team.pid, team.metric("qproxy_streams_total")
    with Load(authority, team.port, clients=4) as load:
        load.more(20)
        counted = team.metric("qproxy_streams_total")
        team.process.send_signal(signal.SIGUSR2)
        team.wait_for(lambda: '"event":"upgraded"' in team.logs(), "was upgraded", 30)
        load.more(20)
        for old in before:
            gone(old)
        load.more(20)
    assert not load.lost, load.summary()
    after = children(team)
    assert team.pid == pid
    assert not before.keys() & after.keys()
    assert Counter(after.values()) == {"worker": 2, "controller": 1}
    total = team.metric("qproxy_streams_total")
    assert total == already + len(load.results) > counted, "what the old ones counted is not lost, and not counted twice"
    assert team.metrics()["qproxy_config_generation"] == 2
    assert team.metric("qproxy_worker_deaths_total") == 0


@ALL
@pytest.mark.parametrize("version", CONNECT)
async def test_a_download_goes_on_through_reloads_and_an_upgrade(authority, team, version):
    size = 64 * MIB
    async with CONNECT[version](authority, team.port) as client:
        number = client.open(f"/bytes/{size}", host=f"{HOST}:{team.port}", keep=False)
        while await client.size(number) < MIB:
            await asyncio.sleep(0.01)
        await client.pause(number)
        await asyncio.to_thread(team.reload, expect="configuration reloaded")
        team.process.send_signal(signal.SIGUSR2)
        await asyncio.to_thread(team.wait_for, lambda: '"event":"upgraded"' in team.logs(), "was upgraded", 30)
        await client.resume(number)
        answer = await client.answer(number)
    assert (answer.status, answer.size, answer.sha256) == (200, size, digest(size))


def test_an_upgrade_that_can_not_start_leaves_all_as_it_was(authority, team):
    before = children(team)
    (team.config / "broken.yaml").write_text("site: [")
    team.process.send_signal(signal.SIGUSR2)
    team.wait_for(lambda: '"event":"the upgrade failed' in team.logs(), "said that it failed", 20)
    with clients.httpx_client(authority) as client:
        assert client.get(team.url("/hello")).status_code == 200
    assert children(team) == before
    (team.config / "broken.yaml").unlink()
    team.process.send_signal(signal.SIGUSR2)
    team.wait_for(lambda: '"event":"upgraded"' in team.logs(), "was upgraded", 30)


@ALL
def test_an_upgrade_whose_workers_do_not_come_up_leaves_all_as_it_was(authority, team):
    """The code and the configuration are fine, and the new workers fail all the same."""
    before = children(team)
    blocked = team.folder / "traces"
    blocked.write_text("no folder")
    team.server["quic"] = {"qlog": {"folder": str(blocked), "share": 0.1}}
    team.write()
    with Load(authority, team.port, clients=4) as load:
        load.more(20)
        team.process.send_signal(signal.SIGUSR2)
        team.wait_for(lambda: '"event":"the upgrade failed; what serves goes on"' in team.logs(), "said that it failed", 30)
        load.more(20)
        assert children(team) == before
    assert not load.lost, load.summary()
    kill(workers(team)[0])  # and they are still cared for
    team.wait_for(lambda: len(workers(team)) == 2 and team.metric("qproxy_workers") == 2, "has two workers again", 20)
    blocked.unlink()
    team.process.send_signal(signal.SIGUSR2)
    team.wait_for(lambda: '"event":"upgraded"' in team.logs(), "was upgraded", 30)


@ALL
def test_the_end_is_a_drain_of_all_and_leaves_nothing(authority, team):
    had = children(team)
    with Load(authority, team.port, clients=4, reconnect=False) as load:
        load.more(20)
        assert team.terminate() == 0
        load.ended()
    assert not load.lost, load.summary()
    for pid in had:
        gone(pid)
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        with socket.socket(socket.AF_INET, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", team.port))


def test_workers_do_not_outlive_their_supervisor(team):
    had = children(team)
    os.kill(team.pid, signal.SIGKILL)
    for pid in had:
        gone(pid)
    team.wait()


def test_a_port_that_somebody_has_is_not_shared_with_him(start_proxy, make_proxy, team):
    other = make_proxy(server={"workers": 2})
    other.server["listeners"] = team.server["listeners"]
    other.write()
    with pytest.raises(AssertionError, match=r"can't listen on 127\.0\.0\.1:\d+ \(TCP\): Address already in use"):
        other.start()


@ALL
def test_a_reload_grows_and_shrinks_the_crew_and_costs_no_request(authority, start_proxy):
    proxy = start_proxy(server={"workers": 2})
    serving(proxy, 2)
    first = workers(proxy)

    def resize(count):
        proxy.server["workers"] = count
        proxy.write()
        proxy.reload(expect="configuration reloaded")
        serving(proxy, count)
        proxy.wait_for(lambda: len(workers(proxy)) == count, f"has {count} processes", 40)

    with Load(authority, proxy.port, clients=8) as load:
        load.more(20)
        for count in (1, 2, 1, 2):
            resize(count)
            load.more(20)
    assert not load.lost, load.summary()
    assert workers(proxy)[0] == first[0], "who stays stays"
    assert proxy.metric("qproxy_worker_deaths_total") == 0
    proxy.server["workers"] = 64
    proxy.write()
    proxy.reload(expect='"workers: ')
    room = max(2, len(os.sched_getaffinity(0)))
    serving(proxy, room)
    assert f'"workers: {room} -> 64: takes effect with a restart only"' in proxy.logs()


@pytest.mark.speaks("HTTP/2")
def test_those_who_serve_accept_for_one_that_does_not(authority, team):
    """The kernel gives its socket new connections all the same."""
    had = workers(team)
    os.kill(had[1], signal.SIGSTOP)  # it can't even die by itself
    try:
        os.kill(had[1], signal.SIGKILL)
        for _ in range(20):
            with clients.httpx_client(authority, timeout=5) as client:
                assert client.get(team.url("/hello")).status_code == 200
    finally:
        serving(team, 2)
