"""qproxy doctor, as its users run it: beside a proxy that serves, before one that can't, and with backends in every state."""

import json
import socket
from pathlib import Path

import pytest
from harness.authority import Authority
from harness.backends import Backend
from harness.cli import qproxy
from harness.dns import Nameserver
from harness.ports import free_port
from harness.proxy import Proxy
from harness.tier import Tier


@pytest.fixture
def nameserver():
    with Nameserver() as server:
        yield server


def examined(proxy, code):
    ran = qproxy("doctor", "-c", proxy.config, "--format", "json")
    assert (ran.code, ran.err) == (code, ""), ran.err
    document = json.loads(ran.out)
    assert document["summary"]["failure"] == sum(finding["verdict"] == "failure" for finding in document["findings"])
    assert (document["summary"]["failure"] > 0) == (code == 1)
    return document["findings"]


def of(findings, area):
    return {finding["what"]: (finding["verdict"], finding["found"]) for finding in findings if finding["area"] == area}


def files(proxy):
    return {path: path.read_bytes() for path in proxy.folder.rglob("*") if path.is_file() and path != proxy.log_file}


def test_a_proxy_that_serves_is_well(start_proxy, backends):
    proxy = start_proxy()
    before = files(proxy)
    findings = examined(proxy, 0)
    assert of(findings, "backend") == {
        f"{host}/web {backend.url}": ("ok", "status 200") for host in ("a.example.com", "b.example.com") for backend in backends
    }
    ports = of(findings, "port")
    assert set(ports) == {f"tcp 127.0.0.1:{proxy.port}", f"udp 127.0.0.1:{proxy.port}", f"tcp 127.0.0.1:{proxy.admin_port}"}
    assert set(ports.values()) == {("ok", f"in use by {proxy_name(proxy)} (process {proxy.pid})")}
    assert of(findings, "state") == {str(proxy.folder / "state"): ("ok", "has its secret")}
    assert {verdict for verdict, _ in of(findings, "certificate").values()} <= {"ok", "warning"}
    assert {"net.core.rmem_max", "net.core.somaxconn"} <= set(of(findings, "kernel"))
    assert files(proxy) == before, "it changes nothing"
    text = qproxy("doctor", "-c", proxy.config).out
    assert f"{backends[0].url}" in text
    assert text.splitlines()[-1].endswith("0 failures")


def proxy_name(proxy):
    return Path(f"/proc/{proxy.pid}/comm").read_text().strip()


def test_each_thing_that_is_wrong_is_found_with_what_mends_it(tmp_path, authority, nameserver):
    healthy, mortal = Backend("healthy"), Backend("mortal")
    try:
        healthy.ask("/control?health=503", "POST")
        nameserver.zone |= {"web.internal": {"A": ["127.0.0.1"]}, "_http._tcp.web.internal": {"SRV": [f"0 0 {mortal.port} web.internal."]}}
        endpoints = [
            healthy.url,
            f"http://web.internal:{mortal.port}",
            "http://gone.internal",
            "srv+http://_http._tcp.web.internal",
            "srv+http://_none._tcp.web.internal",
        ]
        server = {"dns": {"nameservers": [nameserver.address]}}
        sites = {"a.example.com": {"pools": {"web": {"endpoints": endpoints}}}}
        proxy = Proxy(tmp_path, authority, [mortal], server=server, sites=sites)
        mortal_well = examined(proxy, 1)
        mortal.kill()
        with socket.create_server(("127.0.0.1", proxy.port)):
            findings = examined(proxy, 1)
    finally:
        healthy.kill()
        mortal.kill()
    name = "a.example.com/web"
    found = of(mortal_well, "backend")
    assert found[f"{name} http://web.internal:{mortal.port}"] == ("ok", "status 200, at 127.0.0.1")
    found = of(findings, "backend")
    assert found[f"{name} {healthy.url}"] == ("failure", "status 503")
    assert found[f"{name} http://web.internal:{mortal.port}"] == ("failure", "connection refused, at 127.0.0.1")
    assert found[f"{name} http://gone.internal"] == ("failure", "gone.internal: domain name not found")
    assert found[f"{name} srv+http://_http._tcp.web.internal"][0] == "ok"
    assert found[f"{name} srv+http://_none._tcp.web.internal"] == ("failure", "unknown: domain name not found")
    mends = {finding["what"]: finding["mend"] for finding in findings if finding["verdict"] == "failure"}
    assert mends[f"{name} {healthy.url}"] == f"curl -v {healthy.url}/health"
    assert mends[f"{name} http://gone.internal"] == "dig gone.internal"
    verdict, taken = of(findings, "port")[f"tcp 127.0.0.1:{proxy.port}"]
    assert (verdict, taken.startswith("taken by ")) == ("failure", True)
    assert of(findings, "port")[f"udp 127.0.0.1:{proxy.port}"] == ("ok", "free")
    assert of(findings, "state") == {str(tmp_path / "state"): ("ok", "is not there; it is made at the first start")}
    assert not (tmp_path / "state").exists()


def test_a_pool_without_a_health_check_is_connected_to(tmp_path, authority, backends):
    closed = f"http://127.0.0.1:{free_port()}"
    pool = {"endpoints": [backends[0].url, closed], "health": "off"}
    proxy = Proxy(tmp_path, authority, backends[:1], sites={"a.example.com": {"pools": {"web": pool}}})
    found = of(examined(proxy, 1), "backend")
    assert found[f"a.example.com/web {backends[0].url}"] == ("ok", "can be connected to; the pool has no health check")
    assert found[f"a.example.com/web {closed}"] == ("failure", "Connection refused")


def test_the_instances_of_a_tier_are_asked_as_the_tier_asks_them(tmp_path, authority):
    beside, own = free_port(), free_port()
    entries = [
        {"protocols": ["tcp"], "instances": {"endpoints": [f"127.0.0.41:{own}"], "health": {"port": beside}}},
        {"protocols": ["tcp"], "instances": {"endpoints": [f"127.0.0.42:{own}"]}},
    ]
    tier = Tier(tmp_path, authority, [{"address": f"127.0.0.1:{free_port()}"} | entry for entry in entries])
    mended = {finding["what"].split()[-1]: finding["mend"] for finding in examined(tier, 1) if finding["area"] == "backend"}
    assert mended == {
        f"tcp://127.0.0.41:{own}": f"curl -v http://127.0.0.41:{beside}/health",
        f"tcp://127.0.0.42:{own}": f"curl -v --haproxy-protocol http://127.0.0.42:{own}/health",
    }


def test_a_wrong_configuration_is_told_and_nothing_else_is_asked(tmp_path, backends):
    proxy = Proxy(tmp_path, Authority(tmp_path / "authority"), backends)
    proxy.server["limits"] = {"conections": 1}
    proxy.write()
    (finding,) = examined(proxy, 1)
    assert (finding["area"], "conections" in finding["found"]) == ("configuration", True)
    assert finding["mend"] == f"qproxy check -c {proxy.config}"
    assert qproxy("doctor", "-c", tmp_path / "nowhere").code == 1
    assert qproxy("doctor").code == 2
