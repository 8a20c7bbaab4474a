"""What is told of each exchange: one true line in the access log, counts that add up, and no label that a client could choose."""

import asyncio
import json
import re
import time

import pytest
from harness import clients, frames, raw3
from harness.guard import Guard, fetch, sample
from harness.proxy import Proxy
from harness.scripted import Conversation, Scripted
from harness.speak import speak
from harness.wire import plain_wire, wire

pytestmark = pytest.mark.workers(2)

VERSIONS = clients.VERSIONS
every_version = pytest.mark.parametrize("version", VERSIONS)
FIELDS = {
    "time", "request_id", "client_address", "listener", "version", "method", "host", "path", "status", "site", "route", "backend", "key",
    "attempts", "bytes_in", "bytes_out", "seconds", "seconds_connect", "seconds_first_byte", "ended", "error",
}  # fmt: skip


@pytest.fixture(scope="module")
def scripted():
    backend = Scripted()
    yield backend
    backend.close()


@pytest.fixture(scope="module")
def proxy(make_proxy, backends, scripted):
    routes = [
        {"match": {"path": "/s"}, "pool": "scripted", "retry": {"attempts": 1}},
        {"match": {"path": "/both"}, "pool": "both", "retry": {"attempts": 2}},
        {"match": {"path": "/down"}, "pool": "down"},
        {"match": {"path": "/denied"}, "pool": "web", "access": {"deny": ["127.0.0.0/8"]}},
        {"match": {"path": "/limited"}, "pool": "web", "limits": {"body_size": "1KiB"}},
        {"match": {"path": "/web"}, "pool": "web", "strip_prefix": "/web"},
    ]
    pools = {
        "scripted": {"endpoints": [scripted.url], "passive": {"fall": 0}},
        "down": {"endpoints": ["http://127.0.0.1:1"], "passive": {"fall": 0}},
        "both": {"endpoints": [scripted.url, backends[0].url], "passive": {"fall": 0}, "balance": {"key": "path"}},
    }
    return make_proxy(server={"timeouts": {"header": "1s"}}, sites={"a.example.com": {"routes": routes, "pools": pools}}).start()


@pytest.fixture(scope="module")
def guard(authority, proxy, backends):
    return Guard(authority, proxy, backends)


def records(proxy: Proxy) -> list[dict]:
    """The access log so far. Every line of the whole log must be a JSON object."""
    lines = [json.loads(line) for line in proxy.logs().splitlines()]
    return [line for line in lines if "bytes_out" in line]


def record(proxy: Proxy, path: str) -> dict:
    """The one line for *path*, once it is there."""
    found: list[dict] = []

    def there() -> bool:
        found[:] = [line for line in records(proxy) if line["path"] == path]
        return bool(found)

    proxy.wait_for(there, f"logged {path}")
    (only,) = found
    assert set(only) == FIELDS
    return only


@every_version
async def test_every_field_is_true(authority, proxy, backends, version):
    path = f"/web/slow?seconds=0.3&v={version}"
    before = time.time()
    answer = await speak(authority, proxy.port, version, path, method="POST", body=b"x" * 1000, host=f"a.example.com:{proxy.port}")
    told = record(proxy, path)
    (backend,) = [one for one in backends if one.name == answer.get("x-backend")]
    at = time.mktime(time.strptime(told["time"][:19], "%Y-%m-%dT%H:%M:%S")) - time.timezone
    assert before - 2 < at < time.time() + 2
    assert told["time"].endswith("Z")
    expected = {
        "client_address": "127.0.0.1",
        "listener": f"127.0.0.1:{proxy.port}",
        "version": version,
        "method": "POST",
        "host": f"a.example.com:{proxy.port}",
        "path": path,
        "status": 200,
        "site": "a.example.com",
        "route": "a.example.com/6",
        "backend": backend.url,
        "attempts": 1,
        "bytes_in": 1000,
        "bytes_out": len(answer.body),
        "ended": "complete",
        "error": "",
    }
    assert {name: told[name] for name in expected} == expected
    assert re.fullmatch(r"[0-9a-f]{32}", told["key"])
    assert 0.28 < told["seconds_first_byte"] <= told["seconds"] < 10
    assert 0 <= told["seconds_connect"] < 0.3


@every_version
async def test_the_backend_has_the_request_id_of_the_log(authority, proxy, version):
    path = f"/web/headers?id&v={version}"
    seen = dict(json.loads((await speak(authority, proxy.port, version, path)).body)["headers"])
    told = record(proxy, path)
    assert seen["x-request-id"] == told["request_id"]


@every_version
async def test_one_line_for_each_exchange(authority, proxy, version):
    """Forty on one connection; every id is there once."""
    if version == "HTTP/1.1":
        with wire(authority, proxy.port) as connection:
            for number in range(40):
                assert connection.ask(f"GET /web/hello?n={number}&v=1 HTTP/1.1\r\nhost: a.example.com\r\n\r\n".encode()).status == 200
    elif version == "HTTP/2":
        with frames.framed(authority, proxy.port) as client:
            for number in range(40):
                client.request(2 * number + 1, request(f"/web/hello?n={number}&v=2"))
            for number in range(40):
                assert client.answer(2 * number + 1).status == 200
    else:
        async with raw3.raw3(authority, proxy.port) as quic:
            streams = [quic.stream(raw3.head(request(f"/web/hello?n={number}&v=3")), end=True) for number in range(40)]
            for stream in streams:
                assert (await quic.answer(stream)).status == 200
    mark = f"&v={version[5]}"

    def mine() -> list[dict]:
        return [line for line in records(proxy) if re.fullmatch(r"/web/hello\?n=\d+" + mark, line["path"])]

    proxy.wait_for(lambda: len(mine()) >= 40, "logged forty exchanges")
    assert sorted(line["path"] for line in mine()) == sorted(f"/web/hello?n={number}{mark}" for number in range(40))
    ids = [line["request_id"] for line in records(proxy)]
    assert len(set(ids)) == len(ids)


def request(path: str) -> list[tuple[bytes, bytes]]:
    return [(b":method", b"GET"), (b":scheme", b"https"), (b":authority", b"a.example.com"), (b":path", path.encode())]


ENDS = {
    # path: status, what ended it, whether a backend was asked
    "/nowhere": (404, "no_route", False),
    "/denied": (403, "denied", False),
    "/limited/x": (413, "body_too_large", False),
    "/down": (502, "connect_refused", True),
}


@pytest.mark.parametrize("path", ENDS)
@every_version
async def test_what_the_proxy_refuses_has_its_line(authority, proxy, version, path):
    status, ended, asked = ENDS[path]
    full = f"{path}?v={version}"
    body = b"x" * 5000 if status == 413 else b"x"
    answer = await speak(authority, proxy.port, version, full, method="POST", headers=[("content-length", str(len(body)))], body=body)
    assert answer.status == status
    told = record(proxy, full)
    assert (told["status"], told["ended"], bool(told["backend"]), told["request_id"]) == (status, ended, asked, answer.get("x-request-id"))
    assert told["error"]


@every_version
async def test_a_misdirected_request_has_its_line(authority, proxy, version):
    path = f"/misdirected?v={version}"
    assert (await speak(authority, proxy.port, version, path, host="b.example.com")).status == 421
    told = record(proxy, path)
    assert (told["status"], told["ended"], told["site"], told["route"], told["host"]) == (421, "misdirected", "", "", "b.example.com")


async def test_health_has_its_line(authority, proxy):
    await speak(authority, proxy.port, "HTTP/1.1", "/health?mine")
    assert (record(proxy, "/health?mine")["status"], record(proxy, "/health?mine")["ended"]) == (200, "answered")


def test_a_redirect_from_plain_http_has_its_line(proxy):
    with plain_wire(proxy.port) as connection:
        connection.ask(b"GET /plain HTTP/1.1\r\nhost: a.example.com\r\n\r\n")
    assert (record(proxy, "/plain")["status"], record(proxy, "/plain")["ended"]) == (308, "answered")


@every_version
async def test_a_cancelled_request_has_its_line(authority, proxy, scripted, version):
    """The client leaves while the backend is still thinking: 499, and the backend is left as well."""
    path = f"/s/cancelled?v={version}"

    def script(talk: Conversation) -> None:
        scripted.asked.put(talk.request())
        scripted.done.put("gone" if talk.gone() else "there")

    scripted.script(script)
    if version == "HTTP/1.1":
        with wire(authority, proxy.port) as connection:
            connection.send(f"GET {path} HTTP/1.1\r\nhost: a.example.com\r\n\r\n".encode())
            scripted.next()
    elif version == "HTTP/2":
        with frames.framed(authority, proxy.port) as client:
            client.request(1, request(path))
            scripted.next()
            client.send(frames.frame(frames.RST_STREAM, 0, 1, bytes((0, 0, 0, frames.CANCEL))))
            assert scripted.done.get(timeout=20) == "gone"
    else:
        async with raw3.raw3(authority, proxy.port) as quic:
            stream = quic.stream(raw3.head(request(path)), end=True)
            await asyncio.to_thread(scripted.next)
            quic.quic.stop_stream(stream, 0x10C)
            quic.transmit()
            assert await asyncio.to_thread(scripted.done.get, timeout=20) == "gone"
    told = record(proxy, path)
    assert (told["status"], told["bytes_out"], told["backend"]) == (499, 0, scripted.url)
    assert told["ended"].startswith("client: ")


@every_version
async def test_a_malformed_rest_has_its_line(authority, proxy, version):
    """Accepted by its head and refused for its body."""
    path = f"/web/hello?malformed&v={version}"
    if version == "HTTP/1.1":
        with wire(authority, proxy.port) as connection:
            connection.send(f"POST {path} HTTP/1.1\r\nhost: a.example.com\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n".encode())
            assert connection.reply().status == 400
    else:
        await speak(authority, proxy.port, version, path, method="POST", headers=[("content-length", "3")], body=b"abcdef")
    told = record(proxy, path)
    assert (told["status"], told["ended"]) == (400, "malformed")
    assert told["error"]


async def test_a_retried_request_has_one_line_that_says_so(authority, proxy, scripted, backends):
    """One of two backends hangs up on everybody; whoever meets it first is served by the other one, in the second attempt."""
    scripted.script(lambda talk: scripted.asked.put(talk.request()))
    attempts = {}
    for number in range(20):
        path = f"/both/{number}"
        answer = await speak(authority, proxy.port, "HTTP/1.1", path)
        assert answer.status == 404  # the other backend's own
        told = record(proxy, path)
        assert (told["backend"], told["ended"]) == (backends[0].url, "complete")
        attempts[number] = told["attempts"]
    assert set(attempts.values()) == {1, 2}
    assert proxy.metrics()[sample("qproxy_upstream_retries_total", pool="a.example.com/both")] == list(attempts.values()).count(2)


HOSTILE = '/web/headers?"}],{"a":"\\u0000&\'<script>${jndi:x}%0a%0d{0}'


@every_version
async def test_nothing_that_a_client_sends_breaks_a_line(authority, proxy, version):
    """Quotes, braces, backslashes and escapes stand in the log as they were sent, in one JSON string."""
    path = f"{HOSTILE}&v={version}"
    await speak(authority, proxy.port, version, path, method="G'E|T", headers=[("user-agent", '"}\\n{"')])
    told = record(proxy, path)
    assert (told["method"], told["path"]) == ("G'E|T", path)


async def test_a_long_path_is_shortened_in_the_log(authority, proxy):
    await speak(authority, proxy.port, "HTTP/1.1", "/web/headers?long=" + "x" * 9000)
    proxy.wait_for(lambda: any(line["path"].startswith("/web/headers?long=") for line in records(proxy)), "logged it")
    (told,) = [line for line in records(proxy) if line["path"].startswith("/web/headers?long=")]
    assert len(told["path"]) < 3000
    assert told["path"].endswith("...")


# Metrics

FAMILIES = {
    "http1_requests_total", "http2_requests_total", "http3_requests_total", "sni_resolutions_total", "http3_connections_total",
    "server_up", "qproxy_handshake_seconds", "qproxy_handshake_failures_total", "qproxy_connections_total", "qproxy_connections_open",
    "qproxy_streams_total", "qproxy_streams_open", "qproxy_stream_errors_total", "qproxy_connection_errors_total", "qproxy_rejected_total",
    "qproxy_upstream_seconds",
    "qproxy_upstream_connects_total", "qproxy_upstream_retries_total", "qproxy_upstream_reused_total", "qproxy_pool_backends",
    "qproxy_backend_up", "qproxy_limits_hit_total", "qproxy_exchange_errors_total", "qproxy_reloads_total", "qproxy_config_generation",
}  # fmt: skip


def test_every_family_is_there_with_its_type_and_help(proxy):
    text = fetch(proxy.admin_port, "/metrics").decode()
    types = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
    helps = dict(re.findall(r"^# HELP (\S+) (.+)$", text, re.MULTILINE))
    told = set(types) | {f"{name}_total" for name, kind in types.items() if kind == "counter"}
    assert told >= FAMILIES
    assert set(helps) == set(types)


@every_version
async def test_requests_are_counted_by_version_and_configured_host(authority, proxy, guard, version):
    """A name under a wildcard counts as the wildcard."""
    name = f"http{version[5]}_requests_total"
    before = guard.metrics()
    await speak(authority, proxy.port, version, "/web/hello")
    for host in ("x.a.example.com", "y.a.example.com"):
        await speak(authority, proxy.port, version, "/web/hello", host=host, sni=host)
    after = guard.metrics()
    grown = {key: after[key] - before.get(key, 0) for key in after if key.startswith(name) and after[key] != before.get(key)}
    assert grown == {sample(name, host="a.example.com"): 1, sample(name, host="*.a.example.com"): 2}
    resolved = [sample("sni_resolutions_total", domain=domain) for domain in ("a.example.com", "*.a.example.com")]
    assert [after[key] - before.get(key, 0) for key in resolved] == [1, 2]


@pytest.mark.speaks("HTTP/2", "HTTP/3")
async def test_no_client_can_make_a_label(authority, proxy, guard):
    """Hosts, SNI, methods, paths, fields and malformed ones with a mark in it: it turns up nowhere, and no series is added by another."""
    mark = "zzmark"
    await speak(authority, proxy.port, "HTTP/1.1", "/web/hello")

    async def all_of_them(number: int) -> None:
        word = f"{mark}{number}"
        for version in VERSIONS:
            await speak(authority, proxy.port, version, f"/{word}?{word}", method=word.upper(), headers=[(word, word)])
            await speak(authority, proxy.port, version, "/web/hello", host=f"{word}.a.example.com")
            await speak(authority, proxy.port, version, "/web/hello", host=f"{word}.example.org")
            await speak(authority, proxy.port, version, f"/{word}/../x", method=word.upper(), headers=[(word, word)])
            await speak(authority, proxy.port, version, "/web/hello", headers=[("content-length", word)])
        clients.s_client(proxy.port, "-quiet", "-ign_eof", sni=f"{word}.example.org", data=b"GET /health HTTP/1.0\r\n\r\n")
        clients.s_client(proxy.port, "-quiet", "-alpn", word, sni=f"{word}.a.example.com")

    await all_of_them(0)
    before = set(guard.metrics())
    await all_of_them(1)
    assert mark not in fetch(proxy.admin_port, "/metrics").decode().lower()
    assert {name for name in set(guard.metrics()) - before if "probe" not in name} == set()


@pytest.mark.speaks("HTTP/2", "HTTP/3")
async def test_gauges_come_back_to_zero(authority, proxy, guard):
    """Once everybody has left: no connection, stream or request in flight is left over from all that was done above."""
    for version in VERSIONS:
        await speak(authority, proxy.port, version, "/web/hello")
    gauges = ("qproxy_connections_open", "qproxy_streams_open", "qproxy_backend_inflight")
    guard.wait_for(
        lambda: not any(value for name, value in guard.metrics().items() if name.partition("{")[0] in gauges), "came back to zero", limit=20
    )


def test_server_is_up_and_the_admin_listener_says_no_more_than_it_should(proxy, guard):
    assert guard.metrics()["server_up"] == 1
    assert fetch(proxy.admin_port, "/health").strip() == b"OK"
    assert b"there are /metrics" in fetch(proxy.admin_port, "/nowhere")


def test_a_refused_head_is_told_with_its_reason(authority, proxy):
    """No exchange came of it, so it has no line in the access log; the event log names version, reason and client."""
    with wire(authority, proxy.port) as connection:
        connection.send(b"GET /refused-head HTTP/1.1\r\nhost: a.example.com\r\nbad name: 1\r\n\r\n")
        assert connection.reply().status == 400

    def told() -> list[dict]:
        return [line for line in map(json.loads, proxy.logs().splitlines()) if "'bad name'" in line.get("detail", "")]

    proxy.wait_for(lambda: bool(told()), "logged the refusal")
    (line,) = told()
    assert (line["event"], line["version"], line["reason"], line["client"]) == ("request refused", "HTTP/1.1", "field_name", "127.0.0.1")
    assert "/refused-head" not in {each["path"] for each in records(proxy)}
