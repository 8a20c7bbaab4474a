"""Start, reload, drain: what an operator does to a proxy at work, and that its clients don't notice."""

import asyncio
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest
from harness import clients
from harness.backends import ROOT
from harness.http3 import http3
from harness.load import Load, Polite
from harness.ports import free_port
from harness.proxy import Proxy

pytestmark = pytest.mark.workers(2)

VERSIONS = clients.VERSIONS
HOST = "a.example.com"


def admin(proxy, page):
    return httpx.get(f"http://127.0.0.1:{proxy.admin_port}/{page}", trust_env=False).raise_for_status().json()


def assert_nothing_left(proxy, pid):
    """No process of that id or its group, and the ports are free."""
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        with socket.socket(socket.AF_INET, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", proxy.port))


class Asking(threading.Thread):
    """One request in the background by libcurl; ``answer`` or ``error`` afterwards."""

    def __init__(self, authority, proxy, version, path):
        super().__init__(daemon=True)
        self.answer = self.error = None
        self._what = authority, proxy, version, path
        self.start()

    def run(self):
        authority, proxy, version, path = self._what
        try:
            with clients.curl_session(authority, proxy.port, version) as session:
                self.answer = session.get(proxy.url(path))
        except Exception as error:  # noqa: BLE001  # the test looks at it
            self.error = error

    def result(self):
        self.join(40)
        assert not self.is_alive()
        assert self.error is None, self.error
        return self.answer


# Drain


@pytest.mark.parametrize("version", VERSIONS)
def test_a_drain_under_load_costs_no_request_and_leaves_nothing(authority, start_proxy, version):
    proxy = start_proxy()
    pid = proxy.pid
    with Load(authority, proxy.port, versions=[version], clients=6, streams=3, reconnect=False) as load:
        load.more(50)
        assert proxy.terminate() == 0
        load.ended()
    assert not load.lost, load.summary()
    assert_nothing_left(proxy, pid)
    assert '"event":"stopped"' in proxy.logs()


@pytest.mark.speaks("HTTP/2", "HTTP/3")
def test_while_draining_health_says_503_and_what_runs_is_finished(authority, start_proxy, backends):
    proxy = start_proxy(server={"timeouts": {"drain_delay": "30s"}})
    names = {version: f"long-{proxy.port}-{number}" for number, version in enumerate(VERSIONS)}
    running = {version: Asking(authority, proxy, version, f"/stream/{name}") for version, name in names.items()}
    proxy.wait_for(lambda: proxy.metric("qproxy_streams_open") == 3, "has three requests running")
    proxy.process.send_signal(signal.SIGTERM)
    proxy.wait_for(lambda: proxy.health() == 503, "says 503 at /health")
    for version in VERSIONS:  # on all versions; other requests are still served, by balancers that have not looked yet
        with clients.curl_session(authority, proxy.port, version) as session:
            assert session.get(proxy.url("/health")).status_code == 503
            assert session.get(proxy.url("/hello")).status_code == 200
    assert httpx.get(f"http://127.0.0.1:{proxy.admin_port}/health", trust_env=False).status_code == 503
    assert proxy.metrics()["server_up"] == 0
    for name in names.values():
        for backend in backends:  # whichever has it
            backend.push(name, b"the end\n", end=True)
    for version in VERSIONS:
        assert running[version].result().text == "the end\n"
    assert proxy.terminate() == 0  # the second signal: no more waiting


@pytest.mark.speaks("HTTP/2", "HTTP/3")
def test_a_request_that_runs_at_sigterm_is_finished_after_accepting_ended(authority, start_proxy, backends):
    proxy = start_proxy()
    running = {version: Asking(authority, proxy, version, f"/stream/last-{proxy.port}-{version[-1]}") for version in VERSIONS}
    proxy.wait_for(lambda: proxy.metric("qproxy_streams_open") == 3, "has three requests running")
    proxy.process.send_signal(signal.SIGTERM)
    proxy.wait_for(lambda: proxy.health() == 0, "accepts no more")
    for version in VERSIONS:
        for backend in backends:
            backend.push(f"last-{proxy.port}-{version[-1]}", b"the end\n", end=True)
    for version in VERSIONS:
        assert running[version].result().text == "the end\n"
    assert proxy.wait() == 0


def goaways(data):
    """(last stream, error code) of the GOAWAY frames in *data*."""
    found, at = [], 0
    while at + 9 <= len(data):
        length, kind = int.from_bytes(data[at : at + 3], "big"), data[at + 3]
        if kind == 7:
            found.append(struct.unpack(">II", data[at + 9 : at + 17]))
        at += 9 + length
    return found


def test_http1_says_connection_close_on_the_last_answer(authority, start_proxy, backends):
    proxy = start_proxy()
    with clients.tls_socket(authority, proxy.port) as connection:
        connection.sendall(f"GET /stream/bye?head=late HTTP/1.1\r\nhost: {HOST}\r\n\r\n".encode())
        proxy.wait_for(lambda: proxy.metric("qproxy_streams_open") == 1, "has the request")
        proxy.process.send_signal(signal.SIGTERM)
        proxy.wait_for(lambda: proxy.health() == 0, "accepts no more")
        for backend in backends:
            backend.push("bye", b"the end\n", end=True)
        heard = b"".join(iter(lambda: connection.recv(65536), b""))
    assert b"\r\nconnection: close\r\n" in heard
    assert heard.endswith((b"\r\n\r\nthe end\n", b"\r\nthe end\n\r\n0\r\n\r\n"))  # whole: by its length, or in chunks
    assert proxy.wait() == 0


@pytest.mark.speaks("HTTP/2")
def test_http2_says_goaway_twice_so_that_nothing_on_its_way_is_refused(authority, start_proxy):
    proxy = start_proxy()
    with clients.tls_socket(authority, proxy.port, alpn=["h2"]) as connection:
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5))
        proxy.wait_for(lambda: proxy.metrics().get('qproxy_connections_open{version="HTTP/2"}') == 1, "has the connection")
        proxy.process.send_signal(signal.SIGTERM)
        heard, pings = b"", 0
        while piece := connection.recv(65536):
            heard += piece
            if pings == 0 and (found := re.search(rb"\x00\x00\x08\x06\x00\x00\x00\x00\x00(.{8})", heard, re.DOTALL)):
                pings = 1
                connection.sendall(b"\x00\x00\x08\x06\x01\x00\x00\x00\x00" + found[1])
    assert goaways(heard) == [(2**31 - 1, 0), (0, 0)]
    assert proxy.wait() == 0


@pytest.mark.speaks("HTTP/3")
async def test_http3_says_goaway_and_then_closes_without_an_error(authority, start_proxy):
    proxy = start_proxy()
    async with http3(authority, proxy.port, protocol=Polite) as client:
        assert (await client.get("/hello", host=HOST)).status == 200
        proxy.process.send_signal(signal.SIGTERM)
        await asyncio.wait_for(client.wait_closed(), 20)
        assert client.http.leaving
        assert client.terminated.error_code == 0x100  # H3_NO_ERROR
    assert await asyncio.to_thread(proxy.wait) == 0


@pytest.mark.speaks("HTTP/2", "HTTP/3")
def test_the_deadline_cuts_what_is_left(authority, start_proxy):
    proxy = start_proxy(server={"timeouts": {"drain": "300ms"}})
    running = [Asking(authority, proxy, version, "/stream/never") for version in VERSIONS]
    proxy.wait_for(lambda: proxy.metric("qproxy_streams_open") == 3, "has three requests running")
    assert proxy.terminate() == 0
    for asking in running:
        asking.join(20)
        assert asking.error is not None, "half an answer must not look like a whole one"
    assert sum(map(int, re.findall(r'"event":"stopped at the deadline",.*"cut_exchanges":(\d+)', proxy.logs()))) == 3


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_it_at_once(authority, start_proxy, second):
    proxy = start_proxy(server={"timeouts": {"drain": "90s", "drain_delay": "90s"}})
    asking = Asking(authority, proxy, "HTTP/1.1", "/stream/never")
    proxy.wait_for(lambda: proxy.metric("qproxy_streams_open") == 1, "has a request running")
    proxy.process.send_signal(signal.SIGTERM)
    proxy.wait_for(lambda: proxy.health() == 503, "drains")
    proxy.process.send_signal(second)
    assert proxy.wait(limit=30) == 0
    asking.join(20)
    assert asking.error is not None


# Reload


@pytest.mark.speaks("HTTP/2", "HTTP/3")
def test_reloads_under_load_cost_no_request_and_no_connection(authority, start_proxy, backends):
    """Routes, pools, endpoints and limits change again and again; the pool in use keeps its endpoints."""
    proxy = start_proxy()
    with Load(authority, proxy.port, clients=3, streams=3) as load:
        load.more(20)
        for number in range(6):
            site = proxy.sites[HOST]
            extra = {"match": {"path": f"/other-{number}"}, "pool": "other"} if number % 2 else {"match": {"exact": "/x"}, "respond": {}}
            site["routes"] = [extra, site["routes"][-1]]
            site["pools"] = {"web": site["pools"]["web"]}
            if number % 2:
                site["pools"]["other"] = {"endpoints": [f"http://127.0.0.1:{9000 + number}"], "health": "off"}
            site["headers"] = {"response": {"set": {"X-Generation": str(number)}}}
            proxy.server["limits"] = {"streams_per_connection": 100 + number}
            proxy.write()
            proxy.reload(expect="configuration reloaded")
            load.more(10)
    assert not load.lost, load.summary()
    moved = {key: names for key, names in load.backends().items() if len(names) != 1}
    assert not moved, "pins stay"
    assert len(load.backends()) == 9, "connections stay"
    assert proxy.metrics()['qproxy_reloads_total{result="ok"}'] == 6
    assert admin(proxy, "config")["generation"] == 7
    with clients.httpx_client(authority) as client:
        assert client.get(proxy.url()).headers["x-generation"] == "5"


@pytest.mark.speaks("HTTP/2", "HTTP/3")
def test_an_endpoint_taken_away_under_load_finishes_what_it_has_and_gets_no_more(authority, start_proxy, backends):
    proxy = start_proxy()
    with Load(authority, proxy.port, clients=3, streams=3) as load:
        load.more(20)
        before = load.backends()
        gone = next(names[0] for names in before.values())
        proxy.sites[HOST]["pools"]["web"]["endpoints"] = [backend.url for backend in backends if backend.name != gone]
        proxy.write()
        proxy.reload(expect="configuration reloaded")
        load.more(10)
        at = time.monotonic()
        load.more(20)
        assert gone not in {name for names in load.backends(at).values() for name in names}
        others = {key: names for key, names in before.items() if names != [gone]}
        assert {key: load.backends(at)[key] for key in others} == others, "the keys of the others did not move"
    assert not load.lost, load.summary()


def test_a_reload_keeps_health_state_and_connections_of_endpoints_it_leaves_alone(authority, start_proxy, backends):
    dead = f"http://127.0.0.1:{free_port()}"
    endpoints = [*(backend.url for backend in backends), dead]
    health = {"interval": "1h", "jitter": 0, "fall": 1}  # one probe in the life of the test: a state that is lost does not come back
    proxy = start_proxy(sites={HOST: {"pools": {"web": {"endpoints": endpoints, "health": health}}}})

    def states():
        return {entry["backend"]: entry["state"] for entry in admin(proxy, "pools")["pools"][0]["backends"]}

    proxy.wait_for(lambda: states()[dead] == "down", "sees the dead endpoint")
    with clients.httpx_client(authority) as client:
        assert client.get(proxy.url()).status_code == 200
        connects = 'qproxy_upstream_connects_total{pool="a.example.com/web",result="ok"}'
        before = proxy.metrics()[connects]
        proxy.sites[HOST]["pools"]["web"]["endpoints"] = [*endpoints, f"http://127.0.0.1:{free_port()}"]
        proxy.sites[HOST]["headers"] = {"response": {"set": {"X-New": "yes"}}}
        proxy.write()
        proxy.reload(expect="configuration reloaded")
        answer = client.get(proxy.url())
    assert (answer.status_code, answer.headers["x-new"]) == (200, "yes")
    assert proxy.metrics()[connects] == before, "the connection to the backend was kept"
    assert states()[dead] == "down"


@pytest.mark.speaks("HTTP/2", "HTTP/3")
def test_a_bad_configuration_leaves_the_old_one_running_and_says_why(authority, start_proxy):
    proxy = start_proxy()
    file = proxy.config / "sites" / f"{HOST}.yaml"
    good = file.read_text()
    with Load(authority, proxy.port, clients=1, streams=2) as load:
        load.more(10)
        file.write_text(good.replace("routes:", "ruotes:"))
        line = good.splitlines().index("  routes:") + 1
        proxy.reload(expect="the new configuration is wrong")
        load.more(10)
        place = f"sites/{HOST}.yaml:{line}:3: "
        logged = next(
            json.loads(entry) for entry in proxy.logs().splitlines() if "the new configuration is wrong" in entry and place in entry
        )
        assert "'ruotes'" in logged["problem"]
        assert "routes" in logged["problem"].partition("'ruotes'")[2]  # what was meant, perhaps
        status = admin(proxy, "config")
        assert (status["generation"], status["last_reload"]["result"]) == (1, "failed")
        assert any(place in problem for problem in status["last_reload"]["problems"])
        assert proxy.metrics()['qproxy_reloads_total{result="failed"}'] == 1

        file.write_text("]: no yaml\n")
        proxy.reload(expect=f"sites/{HOST}.yaml:1:1: ")
        file.write_text(good)
        proxy.reload(expect="configuration reloaded")
        load.more(10)
    assert not load.lost, load.summary()
    status = admin(proxy, "config")
    assert (status["generation"], status["last_reload"]["result"], status["last_reload"]["problems"]) == (2, "ok", [])


@pytest.mark.speaks("HTTP/2", "HTTP/3")
def test_a_reload_while_it_drains_and_one_on_top_of_the_other_are_harmless(authority, start_proxy):
    proxy = start_proxy(server={"timeouts": {"drain_delay": "60s"}})
    for _ in range(20):
        proxy.process.send_signal(signal.SIGHUP)
    with Load(authority, proxy.port, clients=1) as load:
        load.more(10)
        proxy.process.send_signal(signal.SIGTERM)
        proxy.wait_for(lambda: proxy.health() == 503, "drains")
        proxy.process.send_signal(signal.SIGHUP)
        load.more(10)
        assert proxy.health() == 503
        load.more(10)
    assert not load.lost, load.summary()
    assert proxy.terminate() == 0


# Start


def run_qproxy(folder, *through):
    """Run it to its end; it must end by itself."""
    return subprocess.run(
        [sys.executable, *through, "-m", "proxy", "-c", str(folder)],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def written(folder, authority, *, server=None, **more):
    """A configuration that is written and not started."""
    return Proxy(
        folder,
        authority,
        [],
        server=server,
        sites={host: {"pools": None, "routes": [{"respond": {}}]} for host in (HOST, "b.example.com")},
        **more,
    )


@pytest.mark.parametrize(("kind", "name"), [(socket.SOCK_STREAM, "TCP"), (socket.SOCK_DGRAM, "UDP")])
def test_a_port_in_use_is_one_sentence_and_exit_code_1(authority, tmp_path, kind, name):
    proxy = written(tmp_path, authority)
    with socket.socket(socket.AF_INET, kind) as taken:
        taken.bind(("127.0.0.1", proxy.port))
        if kind == socket.SOCK_STREAM:
            taken.listen()
        ended = run_qproxy(proxy.config)
    assert ended.returncode == 1
    (line,) = ended.stderr.splitlines()
    assert line.startswith(f"qproxy: can't listen on 127.0.0.1:{proxy.port} ({name}): ")
    assert "in use" in line


def test_a_taken_admin_port_is_one_sentence_and_exit_code_1(authority, tmp_path):
    proxy = written(tmp_path, authority)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", proxy.admin_port))
        taken.listen()
        ended = run_qproxy(proxy.config)
    assert ended.returncode == 1
    (line,) = ended.stderr.splitlines()
    assert f"127.0.0.1:{proxy.admin_port}" in line
    assert "in use" in line


def test_an_address_that_is_not_ours_is_one_sentence(authority, tmp_path):
    proxy = written(tmp_path, authority, server={"listeners": [{"address": "192.0.2.1:8443"}]})
    ended = run_qproxy(proxy.config)
    assert ended.returncode == 1
    (line,) = ended.stderr.splitlines()
    assert line.startswith("qproxy: can't listen on 192.0.2.1:8443 (TCP): ")


UNPRIVILEGED = """
import ctypes, os, sys
if os.geteuid() == 0:  # root without its privileges: CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_NET_BIND_SERVICE
    for capability in (1, 2, 10):
        assert ctypes.CDLL(None).prctl(24, capability, 0, 0, 0) == 0  # PR_CAPBSET_DROP: gone from the next exec on
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


def test_a_privileged_port_without_permission_is_one_sentence_and_exit_code_1(authority, tmp_path):
    if int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text()) <= 443:
        pytest.skip("here everybody may bind low ports")
    proxy = written(tmp_path, authority, server={"listeners": [{"address": "127.0.0.1:443"}]})
    ended = run_qproxy(proxy.config, "-c", UNPRIVILEGED)
    assert ended.returncode == 1
    (line,) = ended.stderr.splitlines()
    assert line.startswith("qproxy: can't listen on 127.0.0.1:443 (TCP): ")
    assert "ermission" in line


def test_an_unwritable_state_folder_is_one_sentence_and_exit_code_1(authority, tmp_path):
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o555)
    proxy = written(tmp_path, authority, server={"state": str(locked / "state")})
    ended = run_qproxy(proxy.config, "-c", UNPRIVILEGED)
    assert ended.returncode == 1
    (line,) = ended.stderr.splitlines()
    assert line.startswith(f"qproxy: {locked}/state")
    assert "the state folder has to be writable" in line


def test_a_damaged_secret_is_one_sentence_and_exit_code_1(authority, tmp_path):
    proxy = written(tmp_path, authority)
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "secret").write_bytes(b"short")
    ended = run_qproxy(proxy.config)
    assert ended.returncode == 1
    (line,) = ended.stderr.splitlines()
    assert "5 bytes where 32 were expected" in line


def test_configuration_errors_are_all_told_with_their_places_and_exit_code_2(authority, tmp_path):
    proxy = written(tmp_path, authority)
    proxy.server["limitz"] = {}
    proxy.sites[HOST]["routes"] = [{"match": {"path": "/"}, "pool": "wep"}]
    proxy.write()
    ended = run_qproxy(proxy.config)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert re.search(r"qproxy\.yaml:\d+:\d+: .*'limitz'.*limits", ended.stderr)
    assert re.search(rf"sites/{re.escape(HOST)}\.yaml:\d+:\d+: .*'?wep'?", ended.stderr)
    assert "Traceback" not in ended.stderr


def test_a_folder_that_is_not_there_is_exit_code_2(tmp_path):
    ended = run_qproxy(tmp_path / "nowhere")
    assert ended.returncode == 2
    assert str(tmp_path / "nowhere") in ended.stderr
    assert "Traceback" not in ended.stderr
