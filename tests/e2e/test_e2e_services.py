"""Pools by SRV records, with a nameserver of the test's own: backends come and go with the answers, and no request is lost for it."""

import time

import httpx
import pytest
from harness import clients
from harness.backends import Backend
from harness.cli import qproxy
from harness.dns import SILENT, Nameserver
from harness.load import Load

NAME = "_http._tcp.web.internal"
URL = f"srv+http://{NAME}"
POOL = "a.example.com/web"


@pytest.fixture
def nameserver():
    with Nameserver() as server:
        for number in range(1, 5):
            server.zone[f"w{number}.internal"] = {"A": ["127.0.0.1"]}
        yield server


@pytest.fixture(scope="module")
def four():
    running = [Backend(f"w{number}") for number in range(1, 5)]
    try:
        yield running
    finally:
        for backend in running:
            backend.kill()


@pytest.fixture
def start(start_proxy, nameserver, four):
    """Start a proxy whose pool is the name."""

    def start(*, endpoints=(URL,), dns=None, workers=1, **pool):
        pool = {"balance": {"policy": "round_robin"}, "endpoints": list(endpoints)} | pool
        server = {"dns": {"nameservers": [nameserver.address]} | (dns or {}), "workers": workers}
        return start_proxy(server=server, sites={"a.example.com": {"pools": {"web": pool}}}, backends=four, answers=workers == 1)

    return start


def records(four, *numbers, priority=1, weight=1):
    return [f"{priority} {weight} {four[number - 1].port} w{number}.internal." for number in numbers]


def shown(proxy):
    """What the admin API shows of the pool."""
    pools = httpx.get(f"http://127.0.0.1:{proxy.admin_port}/pools", trust_env=False).raise_for_status().json()["pools"]
    return next(pool for pool in pools if pool["pool"] == POOL)


def names(proxy):
    return sorted(backend["backend"].split("//")[1].split(".")[0] for backend in shown(proxy)["backends"])


def asked(authority, proxy, count):
    """Who answers so many requests, each on a connection of its own."""
    found = []
    for _ in range(count):
        with clients.httpx_client(authority) as client:
            answer = client.get(proxy.url("/hello"))
            assert answer.status_code == 200, answer.text
            found.append(answer.headers["x-backend"])
    return found


@pytest.mark.speaks("HTTP/2", "HTTP/3")
def test_a_set_grows_and_shrinks_under_requests_and_none_fails(authority, start, nameserver, four):
    nameserver.zone[NAME] = {"SRV": records(four, 1)}
    proxy = start()
    assert names(proxy) == ["w1"], "a start waits for the first answer"
    with Load(authority, proxy.port, clients=2, streams=2) as load:
        load.more(10)
        for present in ([1, 2], [1, 2, 3, 4], [3, 4], [4], [1, 2, 4], [2]):
            nameserver.zone[NAME] = {"SRV": records(four, *present)}
            proxy.wait_for(lambda present=present: names(proxy) == [f"w{number}" for number in present], f"has {present}")
            changed = time.monotonic()
            load.more(20)
            served = {result.backend for result in load.results if result.at > changed + 1}
            assert served <= {f"w{number}" for number in present}
    assert not load.lost, load.summary()
    assert {result.backend for result in load.results} == {"w1", "w2", "w3", "w4"}
    assert {result.status for result in load.results} == {200}
    log = proxy.logs()
    assert log.count(f"backends of pool {POOL} have changed in DNS") == 7
    metrics = proxy.metrics()
    assert metrics['qproxy_dns_lookups_total{kind="service",result="ok"}'] >= 7
    assert metrics['qproxy_dns_names{kind="service",state="fresh"}'] == 1
    assert metrics['qproxy_dns_names{kind="address",state="fresh"}'] == 1, "the hosts of backends that are gone are asked for no more"
    assert metrics[f'qproxy_pool_backends{{pool="{POOL}",state="up"}}'] == 1


@pytest.mark.speaks("HTTP/2", "HTTP/3")
def test_several_workers_follow_each_for_itself_and_none_fails_a_request(authority, start, nameserver, four):
    nameserver.zone[NAME] = {"SRV": records(four, 1, 2)}
    proxy = start(workers=2)
    with Load(authority, proxy.port, clients=4, streams=2) as load:
        load.more(10)
        for present in ([1, 2, 3, 4], [3, 4], [1]):
            nameserver.zone[NAME] = {"SRV": records(four, *present)}
            proxy.wait_for(lambda present=present: names(proxy) == [f"w{number}" for number in present], f"has {present}")
            load.more(20)
        proxy.wait_for(lambda: proxy.logs().count(f"backends of pool {POOL} have changed in DNS") >= 12, "has three processes that follow")
        settled = time.monotonic()
        load.more(20)
        assert {result.backend for result in load.results if result.at > settled + 0.5} <= {"w1"}
        proxy.reload(expect="configuration reloaded")
        load.more(20)
    assert not load.lost, load.summary()
    assert {result.status for result in load.results} == {200}
    metrics = proxy.metrics()
    assert metrics['qproxy_dns_names{kind="service",state="fresh"}'] == 1
    assert metrics[f'qproxy_dns_answer_age_seconds{{kind="service",name="{NAME}"}}'] < 3


def test_what_stays_keeps_its_state_and_its_connections(authority, start, nameserver, four):
    nameserver.zone[NAME] = {"SRV": records(four, 1, 2)}
    proxy = start(health={"interval": "100ms", "fall": 1, "rise": 1})
    four[1].kill()
    try:
        proxy.wait_for(lambda: [backend["state"] for backend in shown(proxy)["backends"]] == ["up", "down"], "sees that w2 is down")
        assert set(asked(authority, proxy, 3)) == {"w1"}
        before = proxy.metrics()[f'qproxy_upstream_connects_total{{pool="{POOL}",result="ok"}}']
        nameserver.zone[NAME] = {"SRV": records(four, 1, 2, 3)}
        proxy.wait_for(lambda: names(proxy) == ["w1", "w2", "w3"], "has w3")
        states = {backend["backend"].split(".")[0][-2:]: backend["state"] for backend in shown(proxy)["backends"]}
        assert (states["w1"], states["w2"]) == ("up", "down")
        assert set(asked(authority, proxy, 6)) == {"w1", "w3"}
        after = proxy.metrics()[f'qproxy_upstream_connects_total{{pool="{POOL}",result="ok"}}']
        assert after == before + 1, "w3 needed a connection, and w1 had one"
        proxy.wait_for(lambda: all(backend["last_probe"] for backend in shown(proxy)["backends"]), "probes all three")
    finally:
        four[1].start()


def test_what_dns_would_have_kept_for_longer_than_max_ttl_is_asked_for_again(authority, start, nameserver, four):
    """As Docker's does, which says ten minutes; the library that asks keeps answers too, if it may."""
    nameserver.ttl = 600
    nameserver.zone[NAME] = {"SRV": records(four, 1)}
    proxy = start(dns={"max_ttl": "1s"})
    assert names(proxy) == ["w1"]
    nameserver.zone[NAME] = {"SRV": records(four, 1, 2)}
    proxy.wait_for(lambda: names(proxy) == ["w1", "w2"], "has the second one", 15)


def test_priorities_and_weights(authority, start, nameserver, four):
    nameserver.zone[NAME] = {
        "SRV": [*records(four, 1, weight=300), *records(four, 2, weight=100), *records(four, 3, priority=2), *records(four, 4, priority=3)]
    }
    proxy = start(health="off")
    assert {backend["backend"].split(".")[0][-2:]: (backend["weight"], backend["rank"]) for backend in shown(proxy)["backends"]} == {
        "w1": (3, 0),
        "w2": (1, 0),
        "w3": (1, 1),
        "w4": (1, 2),
    }
    assert sorted(asked(authority, proxy, 8)) == ["w1"] * 6 + ["w2"] * 2
    told = qproxy("explain", "-c", proxy.config, proxy.url()).out
    assert "4 endpoints" in told
    assert told.count(": backup: ") == 2
    four[0].kill()
    four[1].kill()
    try:
        assert set(asked(authority, proxy, 4)) == {"w3"}, "the next priority, and not the one after that"
        four[2].kill()
        assert set(asked(authority, proxy, 2)) == {"w4"}
    finally:
        for backend in four[:3]:
            backend.stop()
            backend.start()


@pytest.mark.parametrize("failure", [SILENT, "SERVFAIL", None])
def test_dns_that_fails_takes_no_backend_with_it(authority, start, nameserver, four, failure):
    nameserver.zone[NAME] = {"SRV": records(four, 1, 2)}
    proxy = start(dns={"timeout": "1s"})
    nameserver.zone[NAME] = failure
    proxy.wait_for(lambda: shown(proxy)["services"][URL].startswith("stale"), "has seen that DNS fails")
    assert set(asked(authority, proxy, 4)) == {"w1", "w2"}
    nameserver.zone[NAME] = {"SRV": records(four, 3)}
    proxy.wait_for(lambda: names(proxy) == ["w3"], "has the new set", 20)
    assert set(asked(authority, proxy, 2)) == {"w3"}


def test_a_name_without_services_is_503_until_there_are_some(authority, start, nameserver, four):
    proxy = start()
    with clients.httpx_client(authority) as client:
        answer = client.get(proxy.url())
        assert (answer.status_code, answer.headers["proxy-status"]) == (503, "qproxy; error=destination_unavailable")
        assert shown(proxy) == {"pool": POOL, "services": {URL: "unknown: domain name not found"}, "backends": []}
        told = qproxy("explain", "-c", proxy.config, proxy.url()).out
        assert f"candidates   none: DNS has no backends for {URL}" in told
        nameserver.zone[NAME] = {"SRV": ["0 0 80 .", *records(four, 1, weight=0)]}
        proxy.wait_for(lambda: names(proxy) == ["w1"], "has found it", 15)
        assert client.get(proxy.url()).status_code == 200


def test_a_reload_brings_services_without_a_request_that_finds_none(authority, start, nameserver, four):
    nameserver.zone |= {NAME: {"SRV": records(four, 1)}, "_http._tcp.other.internal": {"SRV": records(four, 2, 3)}}
    proxy = start()
    with Load(authority, proxy.port, versions=["HTTP/1.1"], clients=2, streams=1) as load:
        load.more(10)
        proxy.sites["a.example.com"]["pools"]["web"]["endpoints"] = [
            "srv+http://_http._tcp.other.internal",
            {"url": four[3].url, "backup": True},
        ]
        proxy.write()
        proxy.reload(expect="configuration reloaded")
        load.more(20)
        proxy.sites["a.example.com"]["pools"]["web"]["endpoints"] = [URL]
        proxy.write()
        proxy.reload(expect="configuration reloaded")
        load.more(20)
    assert not load.lost, load.summary()
    assert {result.backend for result in load.results} == {"w1", "w2", "w3"}, "and the backup was not needed"
    assert f"added srv+http://_http._tcp.other.internal, {four[3].url}, removed {URL}" in proxy.logs()
