"""The command line: versions, help, mistakes in it, check and schema; and explain, which says what the proxy then does."""

import json
import re

import pytest
from harness import clients
from harness.backends import ROOT
from harness.cli import qproxy
from harness.guard import fetch, sample
from harness.proxy import Proxy
from harness.speak import speak

from proxy import __version__


@pytest.fixture(scope="module")
def proxy(make_proxy, backends):
    endpoints = [backend.url for backend in backends]

    def pool(**more):
        return {"endpoints": endpoints, "health": {"interval": "100ms", "rise": 1, "fall": 1}, **more}

    routes = [
        {"match": {"path": "/by-path"}, "pool": "path", "replace_prefix": {"from": "/by-path", "to": "/hello"}},
        {"match": {"path": "/by-header"}, "pool": "header", "replace_prefix": {"from": "/by-header", "to": "/hello"}},
        {"match": {"path": "/by-cookie"}, "pool": "cookie", "replace_prefix": {"from": "/by-cookie", "to": "/hello"}},
        {"match": {"path": "/by-query"}, "pool": "query", "replace_prefix": {"from": "/by-query", "to": "/hello"}},
        {"match": {"path": "/by-client"}, "pool": "client", "replace_prefix": {"from": "/by-client", "to": "/hello"}},
        {"match": {"path": "/weighted"}, "pool": "weighted", "replace_prefix": {"from": "/weighted", "to": "/hello"}},
        {"match": {"path": "/moved"}, "redirect": "https://{host}/elsewhere"},
        {"match": {"path": "/fixed"}, "respond": {"status": 418, "body": "no\n"}},
        {"match": {"path": "/denied"}, "pool": "path", "access": {"deny": ["127.0.0.1"]}},
        {"match": {"path": "/only-post", "methods": ["POST"]}, "pool": "path", "replace_prefix": {"from": "/only-post", "to": "/hello"}},
        {"match": {"path": "/versioned", "headers": {"x-version": "2"}}, "respond": {"status": 200, "body": "two\n"}},
        {"match": {"path": "/versioned"}, "respond": {"status": 200, "body": "one\n"}},
    ]
    pools = {
        "web": None,
        "path": pool(balance={"key": "path"}),
        "header": pool(balance={"key": {"header": "x-user"}}),
        "cookie": pool(balance={"key": {"cookie": "session"}}),
        "query": pool(balance={"key": {"query": "user"}}),
        "client": pool(balance={"key": "client_address"}),
        "weighted": {
            "endpoints": [{"url": endpoints[0], "weight": 5}, {"url": endpoints[1], "backup": True}, endpoints[2]],
            "health": {"interval": "100ms", "rise": 1, "fall": 1},
            "balance": {"key": "path"},
        },
    }
    return make_proxy(sites={"a.example.com": {"routes": routes, "pools": pools}}).start()


def test_version_and_help():
    version = qproxy("--version").out
    assert version.startswith(f"qproxy {__version__} (")
    assert re.search(r"^HTTP/2: \w+ \(\w+ \d", version, re.MULTILINE)
    assert re.search(r"^HTTP/3: \w+ \([\w-]+ \d", version, re.MULTILINE)
    overview = qproxy("--help")
    assert overview.code == 0
    for command in ("run", "check", "explain", "schema", "demo"):
        assert re.search(rf"^  {command} ", overview.out, re.MULTILINE)
        said = qproxy(command, "--help")
        assert (said.code, said.out.startswith("Usage: ")) == (0, True)


MISTAKES = {
    "nothing": [],
    "an unknown command": ["serve"],
    "an unknown option": ["--frobnicate"],
    "a folder without -c": ["conf.d"],
    "-c without a folder": ["-c"],
    "check of nothing": ["check"],
    "explain of nothing": ["explain"],
    "explain without a URL": ["explain", "-c", "conf.d"],
    "a word too many": ["schema", "more"],
    "a URL of another scheme": ["explain", "-c", "CONFIG", "ftp://a.example.com/"],
    "a URL without a host": ["explain", "-c", "CONFIG", "https:///x"],
    "a port beyond 65535": ["explain", "-c", "CONFIG", "https://a.example.com:99999/"],
    "a client that is no address": ["explain", "-c", "CONFIG", "--client", "me", "https://a.example.com/"],
    "a field without a colon": ["explain", "-c", "CONFIG", "-H", "x-user", "https://a.example.com/"],
    "an unknown protocol": ["explain", "-c", "CONFIG", "--protocol", "spdy", "https://a.example.com/"],
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_wrong_command_line_is_2_with_a_sentence(proxy, name):
    ran = qproxy(*[str(proxy.config) if word == "CONFIG" else word for word in MISTAKES[name]])
    assert (ran.code, ran.out) == (2, "")
    assert "Error: " in ran.err


def test_check_says_what_a_right_configuration_has(proxy):
    for words in (["check", "-c", proxy.config], ["-c", proxy.config, "check"]):
        ran = qproxy(*words)
        assert (ran.code, ran.err) == (0, "")
        lines = ran.out.splitlines()
        assert f"listener 127.0.0.1:{proxy.port}: http/1.1 h2 h3" in lines
        assert f"admin: 127.0.0.1:{proxy.admin_port}" in lines
        assert any(line.startswith("site a.example.com, *.a.example.com: 12 routes, certificate ") for line in lines)
        assert any(
            line.startswith("pool a.example.com/header: 3 endpoints, consistent_hash by header x-user, probes /health") for line in lines
        )
        assert lines[-2] == f"{proxy.config}: right, 0 warnings"
        assert lines[-1] == f"the proxy that runs (process {proxy.process.pid}) has this configuration"


def test_check_changes_nothing(proxy):
    before = sorted((path, path.stat().st_mtime_ns) for path in proxy.folder.rglob("*") if path != proxy.log_file)
    qproxy("check", "-c", proxy.config)
    assert sorted((path, path.stat().st_mtime_ns) for path in proxy.folder.rglob("*") if path != proxy.log_file) == before


def test_schema_is_a_json_schema_and_the_reference_page_is_made_from_it():
    schema = json.loads(qproxy("schema").out)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert set(schema["properties"]) == {"server", "site", "sites", "pools", "l4"}
    assert schema["additionalProperties"] is False
    assert qproxy("schema", "--markdown").out == (ROOT / "docs" / "reference" / "configuration.md").read_text()


# explain, and what the proxy then does

ASKED = {
    "the site's own key": ("/by-client", []),
    "by path": ("/by-path/1", []),
    "by another path": ("/by-path/2?q=1", []),
    "by an odd path": ("/by-path//x%2Fy;z", []),
    "by header": ("/by-header", ["x-user: alice"]),
    "by another header": ("/by-header", ["x-user: bob"]),
    "by a header that is missing": ("/by-header", []),
    "by cookie": ("/by-cookie", ["cookie: a=1; session=xyz"]),
    "by another cookie": ("/by-cookie", ["cookie: session=abc"]),
    "by query": ("/by-query?user=alice&x=1", []),
    "by another query": ("/by-query?x=1&user=b%20b", []),
    "by weight": ("/weighted/7", []),
}


def explained(proxy: Proxy, path: str, fields: list[str], *more: str) -> str:
    options = [word for field in fields for word in ("-H", field)]
    ran = qproxy("explain", "-c", proxy.config, *options, *more, proxy.url(path))
    assert (ran.code, ran.err) == (0, ""), ran
    assert f"told by the qproxy that runs at 127.0.0.1:{proxy.admin_port}" in ran.out
    return ran.out


async def served_by(authority, proxy: Proxy, version: str, path: str, fields: list[str]) -> str:
    headers = [(name, value) for name, _, value in (field.partition(": ") for field in fields)]
    answer = await speak(authority, proxy.port, version, path, headers=headers)
    assert answer.status == 200
    found = answer.get("x-backend")
    assert found is not None
    return found


@pytest.mark.speaks("HTTP/2")
@pytest.mark.parametrize("name", ASKED)
async def test_explain_names_the_backend_that_then_answers(authority, proxy, backends, name):
    path, fields = ASKED[name]
    said = explained(proxy, path, fields)
    (chosen,) = re.findall(r"\* \d+\. (\S+) \(up\)", said)
    (expected,) = [backend.name for backend in backends if backend.url == chosen]
    for version in clients.VERSIONS[:2]:
        assert await served_by(authority, proxy, version, path, fields) == expected


async def test_explain_knows_which_backends_are_down(authority, proxy, backends):
    """It asks the running proxy: with the first choice down, both go to the next one."""
    path = "/by-path/1"
    (first,) = re.findall(r"\* 1\. (\S+) \(up\)", explained(proxy, path, []))
    (backend,) = [backend for backend in backends if backend.url == first]
    up = sample("qproxy_backend_up", pool="a.example.com/path", backend=first)
    backend.ask("/control?health=503")
    try:
        proxy.wait_for(lambda: proxy.metrics()[up] == 0, "took the backend down")
        said = explained(proxy, path, [])
        assert f"{first} (down)" in said
        (chosen,) = re.findall(r"\* \d+\. (\S+) \(up\)", said)
        (expected,) = [other.name for other in backends if other.url == chosen]
        assert await served_by(authority, proxy, "HTTP/1.1", path, []) == expected != backend.name
    finally:
        backend.ask("/control?health=200")
    proxy.wait_for(lambda: proxy.metrics()[up] == 1, "took the backend up again")


OTHERS = {
    "a redirect": ("/moved", [], "answer       308 to https://{host}/elsewhere, here https://a.example.com/elsewhere", 308),
    "a fixed answer": ("/fixed", [], "answer       418 with 3 bytes of its own", 418),
    "a denied client": ("/denied", [], "answer       403", 403),
    "another method": ("/only-post", [], "answer       404: no route of the site matches", 404),
    "no route": ("/nowhere", [], "answer       404: no route of the site matches", 404),
    "a condition on a field": ("/versioned", ["x-version: 2"], "answer       200 with 4 bytes of its own", 200),
    "health": ("/health", [], "is answered by the proxy itself: 200 OK", 200),
    "a malformed path": ("/a/../b", [], "refused as malformed", None),
}


@pytest.mark.parametrize("name", OTHERS)
async def test_explain_tells_of_answers_without_a_backend(authority, proxy, name):
    path, fields, said, status = OTHERS[name]
    assert said in explained(proxy, path, fields)
    if status is not None:
        headers = [(key, value) for key, _, value in (field.partition(": ") for field in fields)]
        assert (await speak(authority, proxy.port, "HTTP/1.1", path, headers=headers)).status == status


def test_explain_tells_of_sites_and_listeners_that_are_not_there(proxy):
    ran = qproxy("explain", "-c", proxy.config, f"https://nobody.example.org:{proxy.port}/")
    assert (ran.code, "421: no site has the host nobody.example.org" in ran.out) == (0, True)
    ran = qproxy("explain", "-c", proxy.config, f"http://a.example.com:{proxy.port}/x")
    assert (ran.code, "308 to https://a.example.com" in ran.out) == (0, True)
    assert f"308 to https://a.example.com:{proxy.port}/x\n" in ran.out
    other = 1 if proxy.port != 1 else 2
    ran = qproxy("explain", "-c", proxy.config, f"https://a.example.com:{other}/")
    assert f"(the first one: none for h2 has port {other})" in ran.out


def test_explain_before_the_first_start_writes_nothing(tmp_path):
    (tmp_path / "conf.d").mkdir()
    site = {"hosts": ["a.example.com"], "tls": {"self_signed": True}, "routes": [{"respond": {"body": "here\n"}}]}
    (tmp_path / "conf.d" / "site.yaml").write_text(json.dumps({"site": site}))
    ran = qproxy("explain", "-c", tmp_path / "conf.d", "https://a.example.com:8443/")
    assert (ran.code, "200 with 5 bytes of its own" in ran.out, "before the first start" in ran.out) == (0, True, True)
    assert [entry.name for entry in tmp_path.iterdir()] == ["conf.d"]


def test_explain_sends_nothing(proxy, backends):
    """The counts of the backends stay as they are, but for the proxy's probes."""

    def counts() -> list[dict]:
        told = [json.loads(fetch(backend.port, "/count")) for backend in backends]
        return [{path: count for path, count in seen.items() if path not in ("/health", "/count")} for seen in told]

    before = counts()
    explained(proxy, "/by-path/1", [])
    assert counts() == before
