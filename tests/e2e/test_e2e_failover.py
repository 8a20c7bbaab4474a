"""Backends that die, hang, and come back; what it costs their clients and who is told."""

import signal
import time

import httpx
import pytest
from harness import clients
from harness.backends import Backend
from harness.load import Load

pytestmark = pytest.mark.workers(2)

VERSIONS = clients.VERSIONS


@pytest.fixture
def mortal():
    """Three backends of the test's own, which may do with them what it likes."""
    running = [Backend(f"mortal-{number}") for number in (1, 2, 3)]
    try:
        yield running
    finally:
        for backend in running:
            backend.kill()


def pool(**more):
    """A site's pool with *more* laid over the harness's own."""
    return {"a.example.com": {"pools": {"web": more}}}


def admin(proxy, page):
    return httpx.get(f"http://127.0.0.1:{proxy.admin_port}/{page}", trust_env=False).raise_for_status().json()


def state(proxy, backend):
    pools = {entry["pool"]: entry["backends"] for entry in admin(proxy, "pools")["pools"]}
    return {entry["backend"]: entry["state"] for entry in pools["a.example.com/web"]}[backend.url]


def wait_state(proxy, backend, wanted):
    proxy.wait_for(lambda: state(proxy, backend) == wanted, f"shows {backend.name} as {wanted}")


def get(authority, proxy, version="HTTP/1.1", path="/", method="GET", **more):
    with clients.curl_session(authority, proxy.port, version) as session:
        return session.request(method, proxy.url(path), **more)


@pytest.mark.speaks("HTTP/2", "HTTP/3")
def test_a_backend_killed_under_load_costs_no_request_and_moves_only_its_keys(authority, start_proxy, mortal):
    proxy = start_proxy(backends=mortal)
    with Load(authority, proxy.port, clients=4, streams=3) as load:
        load.more(30)
        before = load.backends()
        assert all(len(names) == 1 for names in before.values()), before  # a connection stays where it is
        victim = next(backend for backend in mortal if [backend.name] == before[next(key for key in before if key[0] == "HTTP/3")])
        victim.kill()
        wait_state(proxy, victim, "down")
        load.more(30)
        after = load.backends(time.monotonic() - 60)
        assert not load.lost, load.summary()
        for key, names in before.items():
            if names == [victim.name]:
                assert len(after[key]) == 2, f"{key} went {after[key]}: away from {victim.name} once and for all"
            else:
                assert after[key] == names, f"{key} had nothing to do with {victim.name} and moved"

        victim.start()
        wait_state(proxy, victim, "up")
        with Load(authority, proxy.port, versions=["HTTP/1.1", "HTTP/2"], clients=4) as newcomers:
            newcomers.more(5)
        load.more(10)
    assert not load.lost, load.summary()
    assert not newcomers.lost, newcomers.summary()
    first = {(version, client): names[0] for (version, client, _), names in before.items() if version != "HTTP/3"}
    again = {(version, client): names for (version, client, _), names in newcomers.backends().items()}
    assert again == {key: [name] for key, name in first.items()}, "new connections of old keys find their first backend again"

    proxy.wait_for(lambda: f"backend {victim.url} of pool a.example.com/web is up" in proxy.logs(), "logged that it is up")
    log = proxy.logs()
    assert victim.url in next(line for line in log.splitlines() if '"state":"down"' in line)
    metrics = proxy.metrics()
    labels = f'{{backend="{victim.url}",pool="a.example.com/web"}}'
    assert metrics[f"qproxy_backend_up{labels}"] == 1
    assert proxy.metric("qproxy_exchange_errors_total") == 0


def test_a_request_that_is_not_idempotent_is_not_sent_twice(authority, start_proxy, backends):
    proxy = start_proxy()
    before = [backend.counts() for backend in backends]
    answer = get(authority, proxy, path="/close", method="POST", data=b"once")
    assert (answer.status_code, answer.headers["proxy-status"]) == (502, "qproxy; error=connection_terminated")
    calls = [backend.counts().get("/close", 0) - earlier.get("/close", 0) for backend, earlier in zip(backends, before, strict=True)]
    assert sorted(calls) == [0, 0, 1]


def test_an_idempotent_request_is_tried_on_as_many_backends_as_configured(authority, start_proxy, backends):
    proxy = start_proxy(sites={"a.example.com": {"retry": {"attempts": 3}}})
    before = [backend.counts() for backend in backends]
    assert get(authority, proxy, path="/reset").status_code == 502
    calls = [backend.counts().get("/reset", 0) - earlier.get("/reset", 0) for backend, earlier in zip(backends, before, strict=True)]
    assert sorted(calls) == [1, 1, 1]


@pytest.mark.speaks("HTTP/2", "HTTP/3")
def test_a_connection_refused_walks_on_at_once_whatever_the_method(authority, start_proxy, mortal):
    sites = pool(health="off", passive="off")
    sites["a.example.com"]["timeouts"] = {"connect": "60s"}
    proxy = start_proxy(backends=mortal, sites=sites)
    mortal[0].kill()
    mortal[1].kill()
    for version in VERSIONS:
        for _ in range(3):
            answer = get(authority, proxy, version, "/upload", "POST", data=b"x" * 100_000)
            assert (answer.status_code, answer.headers["x-backend"], answer.json()["size"]) == (200, "mortal-3", 100_000)
    refused = proxy.metrics()['qproxy_upstream_connects_total{pool="a.example.com/web",result="failed"}']
    assert refused >= 1


@pytest.mark.speaks("HTTP/2", "HTTP/3")
def test_with_all_backends_down_the_answer_is_503_and_says_when_to_come_again(authority, start_proxy, mortal):
    proxy = start_proxy(backends=mortal)
    for backend in mortal:
        backend.kill()
    for backend in mortal:
        wait_state(proxy, backend, "down")
    for version in VERSIONS:
        answer = get(authority, proxy, version)
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) > 0
        assert answer.headers["proxy-status"] == "qproxy; error=destination_unavailable"
        assert answer.headers["x-request-id"] in answer.text
        assert "127.0.0.1" not in answer.text  # nothing of the inside
    mortal[1].start()
    wait_state(proxy, mortal[1], "up")
    for version in VERSIONS:
        assert get(authority, proxy, version).headers["x-backend"] == "mortal-2"


def test_in_panic_the_last_known_good_is_asked(authority, start_proxy, mortal):
    proxy = start_proxy(backends=mortal, sites=pool(panic=True))
    for backend in mortal:
        wait_state(proxy, backend, "up")
    for backend in mortal:  # they say that they are unwell, and answer all the same
        backend.ask("/control?health=500")
        wait_state(proxy, backend, "down")
    assert get(authority, proxy).headers["x-backend"] == "mortal-3"  # healthy last
    mortal[2].kill()
    answer = get(authority, proxy)
    assert (answer.status_code, answer.headers["x-backend"]) == (200, "mortal-2")


@pytest.mark.speaks("HTTP/2", "HTTP/3")
def test_a_backup_serves_when_nothing_else_does(authority, start_proxy, mortal):
    endpoints = [mortal[0].url, {"url": mortal[1].url, "backup": True}]
    proxy = start_proxy(backends=mortal, sites=pool(endpoints=endpoints))
    assert {get(authority, proxy, version).headers["x-backend"] for version in VERSIONS} == {"mortal-1"}
    mortal[0].kill()
    wait_state(proxy, mortal[0], "down")
    assert {get(authority, proxy, version).headers["x-backend"] for version in VERSIONS} == {"mortal-2"}
    mortal[0].start()
    wait_state(proxy, mortal[0], "up")
    assert {get(authority, proxy, version).headers["x-backend"] for version in VERSIONS} == {"mortal-1"}


@pytest.mark.speaks("HTTP/2", "HTTP/3")
def test_a_hung_backend_is_504_and_then_taken_down_by_probes(authority, start_proxy, mortal):
    sites = pool(health={"interval": "300ms", "timeout": "4s", "rise": 1, "fall": 1}, endpoints=[mortal[0].url])
    sites["a.example.com"]["timeouts"] = {"response": "300ms"}
    sites["a.example.com"]["retry"] = {"attempts": 1}
    sites["a.example.com"]["pools"]["web"]["passive"] = "off"
    proxy = start_proxy(backends=mortal, sites=sites)
    mortal[0].send_signal(signal.SIGSTOP)
    try:
        for version in VERSIONS:
            answer = get(authority, proxy, version)
            assert (answer.status_code, answer.headers["proxy-status"]) == (504, "qproxy; error=http_response_timeout")
        wait_state(proxy, mortal[0], "down")
        assert get(authority, proxy).status_code == 503
        proxy.wait_for(lambda: "no answer within 4 s" in proxy.logs(), "said why")
    finally:
        mortal[0].send_signal(signal.SIGCONT)
    wait_state(proxy, mortal[0], "up")
    assert {get(authority, proxy, version).status_code for version in VERSIONS} == {200}


def test_live_failures_in_a_row_take_a_hung_backend_down_without_probes(authority, start_proxy, mortal):
    sites = pool(health="off")
    sites["a.example.com"]["timeouts"] = {"response": "500ms"}
    proxy = start_proxy(backends=mortal, sites=sites)
    hung = next(backend for backend in mortal if backend.name == get(authority, proxy).headers["x-backend"])
    hung.send_signal(signal.SIGSTOP)
    try:
        for _ in range(3):  # three live failures in a row take it down
            assert get(authority, proxy).status_code == 504
        assert state(proxy, hung) == "down"
        assert get(authority, proxy).status_code == 200
    finally:
        hung.send_signal(signal.SIGCONT)


def test_a_backend_without_probes_comes_back_by_a_trial_request(authority, start_proxy, mortal):
    proxy = start_proxy(backends=mortal, sites=pool(health="off", passive={"fall": 1}))
    first = get(authority, proxy).headers["x-backend"]
    victim = next(backend for backend in mortal if backend.name == first)
    victim.kill()
    assert get(authority, proxy).status_code == 200
    assert state(proxy, victim) == "down"
    victim.start()
    proxy.wait_for(lambda: get(authority, proxy).headers["x-backend"] == first, "tried the backend again")
    assert state(proxy, victim) == "up"
