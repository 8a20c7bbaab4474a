"""What HTTP means, on each version through real backends: bodies, trailers, interim answers, fields, paths, routes, faults, time."""

import json
import re
import threading
import time

import pytest
from harness import clients, frames, raw3
from harness.proxy import Proxy
from harness.scripted import Conversation, Scripted
from harness.speak import Spoken, speak
from harness.wire import plain_wire, wire

VERSIONS = clients.VERSIONS
PUBLIC_PORT = 4433
every_version = pytest.mark.parametrize("version", VERSIONS)
above_1 = pytest.mark.parametrize("version", VERSIONS[1:])


@pytest.fixture(scope="module")
def scripted():
    backend = Scripted()
    yield backend
    backend.close()


@pytest.fixture(scope="module")
def proxy(make_proxy, scripted):
    def to_script(path: str, **more):
        return {"match": {"path": path}, "pool": "scripted", **more}

    routes = [
        to_script("/s", retry={"attempts": 1}),
        to_script("/response", retry={"attempts": 1}, timeouts={"response": "400ms"}),
        to_script("/idle", retry={"attempts": 1}, timeouts={"idle": "400ms"}),
        to_script("/total", retry={"attempts": 1}, timeouts={"total": "600ms"}),
        {"match": {"path": "/down"}, "pool": "down"},
        {"match": {"path": "/old"}, "redirect": {"to": "https://{host}/new{path}", "status": 301}},
        {"match": {"path": "/fixed"}, "respond": {"status": 418, "body": "short and stout\n", "headers": {"x-fixed": "yes"}}},
        {"match": {"path": "/strip"}, "strip_prefix": "/strip", "pool": "web"},
        {"match": {"path": "/replace"}, "replace_prefix": {"from": "/replace", "to": "/headers"}, "pool": "web"},
        {
            "match": {"path": "/edit"},
            "replace_prefix": {"from": "/edit", "to": "/headers"},
            "pool": "web",
            "host": "endpoint",
            "headers": {
                "request": {"set": {"x-set": "{method} {path} for {client_address}"}, "remove": ["x-secret"]},
                "response": {"set": {"x-by": "{backend}"}, "remove": ["x-backend"]},
            },
        },
        {"match": {"path": "/limited"}, "pool": "web", "limits": {"body_size": "1KiB"}},
        {"match": {"path": "/denied"}, "pool": "web", "access": {"deny": ["127.0.0.0/8"]}},
        {"match": {"exact": "/upload", "methods": ["PATCH"]}, "respond": {"status": 200, "body": "patched\n"}},
        {"match": {"path": "/"}, "pool": "web"},
    ]
    pools = {
        "scripted": {"endpoints": [scripted.url], "passive": {"fall": 0}},
        "down": {"endpoints": ["http://127.0.0.1:1"], "passive": {"fall": 0}},
    }
    running = make_proxy(
        server={"timeouts": {"idle": "20s"}},
        sites={"a.example.com": {"routes": routes, "pools": pools}},
    )
    running.server["listeners"][0]["public_port"] = PUBLIC_PORT
    running.write()
    return running.start()


@pytest.fixture
def ask(authority, proxy):
    async def ask(version: str, path: str, **more) -> Spoken:
        return await speak(authority, proxy.port, version, path, **more)

    return ask


def record_of(proxy: Proxy, request_id: str) -> dict:
    """The access log's line of a request."""
    found: list[dict] = []

    def there() -> bool:
        found[:] = [
            json.loads(line) for line in proxy.logs().splitlines() if f'"request_id":"{request_id}"' in line and '"bytes_out"' in line
        ]
        return bool(found)

    proxy.wait_for(there, f"logged the exchange {request_id}")
    (record,) = found
    return record


# Fields


@every_version
async def test_the_backend_learns_of_the_client_and_not_by_its_own_word(ask, version):
    """What a client that nobody trusts says about itself is replaced."""
    lies = [
        (name, "lie") for name in ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-request-id", "x-real-ip")
    ]
    seen = json.loads((await ask(version, "/headers", headers=[*lies, ("x-other", "kept")])).body)
    fields = dict(seen["headers"])
    assert len(fields) == len(seen["headers"])
    assert fields["forwarded"] == "for=127.0.0.1;host=a.example.com;proto=https"
    assert (fields["x-forwarded-for"], fields["x-forwarded-host"], fields["x-forwarded-proto"]) == ("127.0.0.1", "a.example.com", "https")
    assert fields["via"] == f"{version.removeprefix('HTTP/')} qproxy"
    assert re.fullmatch(r"[0-9a-f-]{8,}", fields["x-request-id"])
    assert (fields["host"], fields["x-other"]) == ("a.example.com", "kept")
    assert "lie" not in fields.values()


async def test_hop_by_hop_fields_of_a_request_stop_here(ask):
    """The known ones and those that Connection names."""
    hop = [
        ("connection", "keep-alive, x-named"),
        ("x-named", "1"),
        ("keep-alive", "timeout=5"),
        ("proxy-connection", "keep-alive"),
        ("te", "trailers"),
        ("proxy-authorization", "Basic x"),
        ("upgrade", "h2c"),
        ("x-other", "kept"),
    ]
    names = {name for name, _ in json.loads((await ask("HTTP/1.1", "/headers", headers=hop)).body)["headers"]}
    assert names.isdisjoint({"x-named", "keep-alive", "proxy-connection", "upgrade", "connection"})
    assert "x-other" in names


@every_version
async def test_hop_by_hop_fields_of_an_answer_stop_here(ask, scripted, version):
    scripted.answer(
        b"HTTP/1.1 200 OK\r\nconnection: close, x-named\r\nx-named: 1\r\nkeep-alive: timeout=5\r\nproxy-connection: close\r\n"
        b"upgrade: h2c\r\nx-other: kept\r\nset-cookie: a=1\r\nset-cookie: b=2\r\ncontent-length: 2\r\n\r\nOK"
    )
    answer = await ask(version, "/s")
    assert (answer.status, answer.body, answer.get("x-other"), answer.all("set-cookie")) == (200, b"OK", "kept", ["a=1", "b=2"])
    for name in ("x-named", "keep-alive", "proxy-connection", "upgrade", "connection"):
        assert answer.get(name) is None


@above_1
async def test_cookie_crumbs_are_joined(ask, version):
    seen = json.loads(
        (await ask(version, "/headers", headers=[("cookie", "a=1"), ("cookie", "b=2"), ("x-a", "1"), ("cookie", "c=3")])).body
    )
    assert [value for name, value in seen["headers"] if name == "cookie"] == ["a=1; b=2; c=3"]


@every_version
async def test_fields_given_twice_stay_two(ask, version):
    seen = json.loads((await ask(version, "/headers", headers=[("x-a", "1"), ("x-b", "x"), ("x-a", "2")])).body)
    assert [value for name, value in seen["headers"] if name == "x-a"] == ["1", "2"]


TARGETS = [
    "/headers?",
    "/headers?a=%2e%2E&b=a+b&c=%00%0d%0A",
    "/headers/%7Ejoe/%e2%82%AC?x=[1]|{}&&=&?/../",
    "/headers/a//b///c",
    "/headers/;params=1/a;b?q",
    "/headers/%2f%2F?next=https://b.example.com/x%3Fy",
    "/headers/..a/...b/.c?%zz",
    "/headers/" + "x" * 8000,
]


@pytest.mark.parametrize("target", TARGETS, ids=range(len(TARGETS)))
@every_version
async def test_paths_and_queries_travel_byte_for_byte(ask, version, target):
    assert json.loads((await ask(version, target)).body)["target"] == target


# Bodies


@every_version
async def test_a_body_of_unknown_length_up_and_down(ask, version):
    body = bytes(range(256)) * 1000
    assert json.loads((await ask(version, "/upload", method="POST", body=body)).body)["size"] == len(body)
    answer = await ask(version, "/bytes/300000?chunked=1")
    assert (len(answer.body), answer.get("content-length")) == (300000, None)
    assert answer.get("transfer-encoding") == ("chunked" if version == "HTTP/1.1" else None)


@every_version
async def test_content_length_travels_with_its_body(ask, scripted, version):
    """A known length stays one towards the backend: nothing is chunked without need."""
    scripted.answer(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
    assert (await ask(version, "/s", method="PUT", headers=[("content-length", "3")], body=b"abc")).get("content-length") == "0"
    asked = scripted.next()
    assert (asked.get(b"content-length"), asked.get(b"transfer-encoding"), asked.body) == (b"3", None, b"abc")


@every_version
async def test_a_request_without_a_body_has_no_framing(ask, scripted, version):
    scripted.answer(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
    await ask(version, "/s")
    asked = scripted.next()
    assert (asked.line, asked.get(b"content-length"), asked.get(b"transfer-encoding")) == (b"GET /s HTTP/1.1", None, None)


@every_version
async def test_trailers_both_ways(ask, scripted, version):
    scripted.answer(
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\nconnection: close\r\n\r\n2\r\nOK\r\n0\r\nX-Sum: 7\r\n\r\n"
    )
    more = [("te", "trailers"), *([("connection", "te")] if version == "HTTP/1.1" else [])]
    answer = await ask(version, "/s", method="POST", body=b"abc", headers=more, trailers=[("x-check", "9")])
    assert (answer.body, answer.trailers) == (b"OK", [("x-sum", "7")])
    asked = scripted.next()
    assert (asked.body, asked.trailers) == (b"abc", [(b"x-check", b"9")])


async def test_trailers_are_left_out_for_a_client_that_did_not_ask(ask):
    """HTTP/1.1 without TE: trailers (RFC 9110, section 6.5.1)."""
    answer = await ask("HTTP/1.1", "/trailers")
    assert (answer.body, answer.trailers) == (b"hello", [])


@every_version
async def test_head_has_the_fields_and_no_body(ask, version):
    answer = await ask(version, "/bytes/1234", method="HEAD")
    assert (answer.status, answer.get("content-length"), answer.body) == (200, "1234", b"")


@every_version
async def test_204_and_304_have_no_body(ask, scripted, version):
    scripted.answer(b"HTTP/1.1 204 No Content\r\nx-a: 1\r\nconnection: close\r\n\r\n")
    answer = await ask(version, "/s")
    assert (answer.status, answer.get("content-length"), answer.body) == (204, None, b"")
    scripted.answer(b'HTTP/1.1 304 Not Modified\r\netag: "1"\r\ncontent-length: 77\r\nconnection: close\r\n\r\n')
    answer = await ask(version, "/s")
    assert (answer.status, answer.get("etag"), answer.get("content-length"), answer.body) == (304, '"1"', "77", b"")


@every_version
async def test_early_hints_come_before_the_answer(ask, version):
    answer = await ask(version, "/early-hints")
    assert (answer.informational, answer.status, answer.body) == ([103], 200, b"after the hints\n")


@every_version
async def test_a_body_until_the_end_of_the_connection(ask, scripted, version):
    """A backend of the old kind: no length, no chunks, FIN at the end."""
    scripted.answer(b"HTTP/1.0 200 OK\r\n\r\n", b"until", b" the end")
    answer = await ask(version, "/s")
    assert (answer.status, answer.body, answer.cut) == (200, b"until the end", False)


# Expect: 100-continue, with a client that really waits

EXPECTING = [(b"expect", b"100-continue"), (b"content-length", b"5")]


async def upload_after_100(authority, proxy, version: str, path: str) -> tuple[list[int], int, bytes]:
    """Interim statuses before the body was sent, the final status and body; the body goes out only after an interim answer."""
    first = [(b":method", b"POST"), (b":scheme", b"https"), (b":authority", b"a.example.com"), (b":path", path.encode())]
    if version == "HTTP/1.1":
        with wire(authority, proxy.port) as connection:
            connection.send(f"POST {path} HTTP/1.1\r\nhost: a.example.com\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n".encode())
            answer = connection.reply()
            if answer.status >= 200:
                return [], answer.status, answer.body
            connection.send(b"hello")
            final = connection.reply()
            return [answer.status], final.status, final.body
    if version == "HTTP/2":
        with frames.framed(authority, proxy.port) as client:
            client.request(1, [*first, *EXPECTING], end=False)
            seen = client.answers.setdefault(1, frames.Answered())
            while not seen.informational and not seen.ended:
                assert client.read() is not None
            interim = list(seen.informational)
            if interim:
                client.send(frames.frame(frames.DATA, frames.END_STREAM, 1, b"hello"))
            final = client.answer(1)
            return interim, final.status, final.body
    async with raw3.raw3(authority, proxy.port) as client:
        stream = client.stream(raw3.head([*first, *EXPECTING]))
        found = client.answers.setdefault(stream, raw3.Answered())
        await client.until(lambda: found.informational or found.ended, "an answer came")
        interim = list(found.informational)
        if interim:
            client.send(stream, raw3.frame(raw3.DATA, b"hello"), end=True)
        await client.answer(stream)
        return interim, found.status, found.body


@every_version
async def test_the_body_is_asked_for(authority, proxy, version):
    interim, status, body = await upload_after_100(authority, proxy, version, "/upload")
    assert (interim, status, json.loads(body)["size"]) == ([100], 200, 5)


@every_version
@pytest.mark.parametrize(("path", "status"), [("/denied", 403), ("/fixed", 418), ("/down", 502)])
async def test_the_body_is_not_asked_for_when_the_answer_is_clear(authority, proxy, version, path, status):
    interim, found, _ = await upload_after_100(authority, proxy, version, path)
    assert (interim, found) == ([], status)


# Connections of clients


def test_keep_alive_and_pipelining_in_order(authority, proxy):
    """Six requests in one write, the first the slowest, some with bodies; the answers come in their order."""
    plan = [
        (b"GET /slow?seconds=0.3 HTTP/1.1\r\nhost: a.example.com\r\n\r\n", b"at last\n"),
        (b"GET /bytes/100000 HTTP/1.1\r\nhost: a.example.com\r\n\r\n", None),
        (b"POST /upload HTTP/1.1\r\nhost: a.example.com\r\ncontent-length: 3\r\n\r\nabc", None),
        (b"POST /upload HTTP/1.1\r\nhost: a.example.com\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n", None),
        (b"HEAD /hello HTTP/1.1\r\nhost: a.example.com\r\n\r\n", b""),
        (b"GET /hello HTTP/1.1\r\nhost: a.example.com\r\nconnection: close\r\n\r\n", b"Hello from a.example.com (HTTP/1.1)!\n"),
    ]
    with wire(authority, proxy.port) as connection:
        connection.send(b"".join(data for data, _ in plan))
        answers = [connection.reply("HEAD" if data.startswith(b"HEAD") else "GET") for data, _ in plan]
        assert connection.rest() == b""
    assert [answer.status for answer in answers] == [200] * 6
    for (_, body), answer in zip(plan, answers, strict=True):
        assert body is None or answer.body == body
    assert (len(answers[1].body), json.loads(answers[2].body)["size"], json.loads(answers[3].body)["size"]) == (100000, 3, 2)
    assert [answer.get("connection") for answer in answers] == [None] * 5 + ["close"]


def test_http_1_0(authority, proxy):
    """Closes by default, is kept alive when asked, gets no chunks and no 1xx."""
    with wire(authority, proxy.port) as connection:
        first = connection.ask(b"GET /hello HTTP/1.0\r\nhost: a.example.com\r\nconnection: keep-alive\r\n\r\n")
        assert (first.status, first.get("connection")) == (200, "keep-alive")
        second = connection.ask(b"GET /bytes/5000000?chunked=1 HTTP/1.0\r\nhost: a.example.com\r\nconnection: keep-alive\r\n\r\n")
        assert (second.get("transfer-encoding"), second.get("connection"), len(second.body)) == (None, "close", 5_000_000)
    with wire(authority, proxy.port) as connection:
        answer = connection.ask(b"GET /early-hints HTTP/1.0\r\nhost: a.example.com\r\n\r\n")
        assert (answer.status, answer.body, connection.rest()) == (200, b"after the hints\n", b"")
    with wire(authority, proxy.port, alpn=None) as connection:
        answer = connection.ask(b"GET /health HTTP/1.0\r\n\r\n")
        assert (answer.status, answer.body) == (200, b"OK")


@pytest.mark.parametrize("version", VERSIONS[:2])
async def test_tcp_answers_advertise_http3_at_the_public_port(ask, version):
    assert (await ask(version, "/hello")).get("alt-svc") == f'h3=":{PUBLIC_PORT}"; ma=86400'


@pytest.mark.speaks("HTTP/3")
async def test_http3_answers_do_not_advertise_it(ask):
    assert (await ask("HTTP/3", "/hello")).get("alt-svc") is None


def test_plain_http_on_the_tls_port(proxy):
    """Health is answered, the rest is redirected to the public port, keeping path and query; nothing is forwarded."""
    with plain_wire(proxy.port) as connection:
        assert connection.ask(b"GET /health HTTP/1.1\r\nhost: a.example.com\r\n\r\n").body == b"OK"
        answer = connection.ask(b"GET /a/%7Eb?c=d&e HTTP/1.1\r\nhost: a.example.com:80\r\n\r\n")
        assert (answer.status, answer.get("location")) == (308, f"https://a.example.com:{PUBLIC_PORT}/a/%7Eb?c=d&e")
        assert connection.ask(b"POST /upload HTTP/1.1\r\nhost: b.example.com\r\ncontent-length: 3\r\n\r\nabc").status == 308


@above_1
async def test_a_connection_may_not_ask_for_another_site(ask, version):
    """Its certificate does not cover that name: 421, and the client opens a connection of its own."""
    assert (await ask(version, "/hello", host="b.example.com")).status == 421
    assert (await ask(version, "/hello", host="x.a.example.com")).status == 200


# Routes


@every_version
async def test_redirect_and_fixed_answer(ask, version):
    answer = await ask(version, "/old/page?q=1")
    assert (answer.status, answer.get("location"), answer.body) == (301, "https://a.example.com/new/old/page?q=1", b"")
    answer = await ask(version, "/fixed", method="POST", body=b"ignored")
    assert (answer.status, answer.body, answer.get("x-fixed"), answer.get("content-length")) == (418, b"short and stout\n", "yes", "16")
    assert answer.get("content-type") == "text/plain; charset=utf-8"
    answer = await ask(version, "/fixed", method="HEAD")
    assert (answer.status, answer.body, answer.get("content-length")) == (418, b"", "16")


@every_version
async def test_paths_are_rewritten_and_fields_edited(ask, version):
    assert json.loads((await ask(version, "/strip/headers/x?q=%2f")).body)["target"] == "/headers/x?q=%2f"
    assert json.loads((await ask(version, "/replace/x?q")).body)["target"] == "/headers/x?q"
    answer = await ask(version, "/edit?q", headers=[("x-secret", "1"), ("x-set", "mine")])
    seen = json.loads(answer.body)
    fields = dict(seen["headers"])
    assert fields["x-set"] == "GET /edit?q for 127.0.0.1"
    assert "x-secret" not in fields
    assert answer.get("x-backend") is None
    assert answer.get("x-by") == f"http://{fields['host']}"


@every_version
async def test_a_route_for_one_method(ask, version):
    assert (await ask(version, "/upload", method="PATCH", body=b"x")).body == b"patched\n"
    assert b"sha256" in (await ask(version, "/upload", method="PUT", body=b"x")).body


@every_version
async def test_the_limit_of_a_body(ask, version):
    """Told beforehand or found out on the way: 413."""
    assert (await ask(version, "/limited/x", method="POST", headers=[("content-length", "2000")], body=b"x" * 2000)).status == 413
    assert (await ask(version, "/limited/x", method="POST", body=b"x" * 2000)).status == 413


@every_version
async def test_a_denied_client(ask, proxy, version):
    answer = await ask(version, "/denied/x")
    assert (answer.status, answer.get("proxy-status")) == (403, "qproxy; error=http_request_denied")
    record = record_of(proxy, answer.get("x-request-id"))
    assert (record["status"], record["ended"], record["backend"], record["path"]) == (403, "denied", "", "/denied/x")


# Backends that answer early, break off, or speak nonsense


@every_version
async def test_an_answer_before_the_request_is_complete(ask, scripted, version):
    """The client gets it at once, although its upload never ends."""

    def script(talk: Conversation) -> None:
        scripted.asked.put(talk.head())
        talk.send(b"HTTP/1.1 409 Conflict\r\ncontent-length: 5\r\nconnection: close\r\n\r\nearly")

    scripted.script(script)
    answer = await ask(version, "/s", method="POST", body=b"x" * 1000, finish=False)
    assert (answer.status, answer.body) == (409, b"early")


HEAD = b"HTTP/1.1 200 OK\r\n"
BROKEN = {
    "nothing": b"",
    "a part of a head": b"HTTP/1.1 200 OK\r\ncontent-le",
    "no HTTP": b"220 smtp.example.com ESMTP\r\n\r\n",
    "HTTP/2": b"\0\0\x12\4\0\0\0\0\0" + bytes(18) + b"\r\n\r\n",
    "TLS": b"\x15\3\1\0\2\2\x28" + b"\r\n\r\n",
    "HTTP/2.0 as a version": b"HTTP/2.0 200 OK\r\ncontent-length: 0\r\n\r\n",
    "a status of two digits": b"HTTP/1.1 20 OK\r\ncontent-length: 0\r\n\r\n",
    "a status of four digits": b"HTTP/1.1 2000 OK\r\ncontent-length: 0\r\n\r\n",
    "status 099": b"HTTP/1.1 099 OK\r\ncontent-length: 0\r\n\r\n",
    "101 that nobody asked for": b"HTTP/1.1 101 Switching Protocols\r\nupgrade: h2c\r\nconnection: upgrade\r\n\r\n",
    "two lengths": HEAD + b"content-length: 3\r\ncontent-length: 4\r\n\r\nabcd",
    "a length that is none": HEAD + b"content-length: abc\r\n\r\nabc",
    "a length and chunks": HEAD + b"content-length: 3\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    "an unknown coding": HEAD + b"transfer-encoding: cow\r\n\r\nabc",
    "a space before a colon": HEAD + b"x-a : 1\r\ncontent-length: 0\r\n\r\n",
    "NUL in a value": HEAD + b"x-a: \0\r\ncontent-length: 0\r\n\r\n",
    "a line without a colon": HEAD + b"hello\r\ncontent-length: 0\r\n\r\n",
    "LF alone": b"HTTP/1.1 200 OK\ncontent-length: 0\n\n",
    "a head without end": HEAD + b"x-a: " + b"a" * 200_000,
    "fields without end": HEAD + b"x-a: 1\r\n" * 5000,
    "interim answers without end": b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n" * 2000,
}


@pytest.mark.speaks("HTTP/2", "HTTP/3")
@pytest.mark.parametrize("name", BROKEN)
async def test_a_backend_that_speaks_nonsense_is_502(ask, proxy, scripted, name):
    """With Proxy-Status and the request id, by which the log tells more; nothing of the nonsense reaches the client."""
    scripted.answer(BROKEN[name])
    version = VERSIONS[list(BROKEN).index(name) % 3]
    answer = await ask(version, "/s/nonsense")
    assert answer.status == 502
    assert answer.get("proxy-status") in {f"qproxy; error={kind}" for kind in ("connection_terminated", "http_protocol_error")}
    request_id = answer.get("x-request-id")
    assert request_id.encode() in answer.body
    assert scripted.url.encode() not in answer.body
    record = record_of(proxy, request_id)
    assert (record["status"], record["backend"], record["attempts"]) == (502, scripted.url, 1)
    assert record["ended"] in {"upstream_closed", "upstream_protocol"}
    assert record["error"]


CUT = {
    "in the middle of a known length": HEAD + b"content-length: 1000\r\n\r\nabc",
    "in the middle of a chunk": HEAD + b"transfer-encoding: chunked\r\n\r\nff\r\nabc",
    "between two chunks": HEAD + b"transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n",
    "by a chunk size that is none": HEAD + b"transfer-encoding: chunked\r\n\r\n3\r\nabc\r\nzz\r\n",
    "within the trailers": HEAD + b"transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nx-a",
}


@pytest.mark.parametrize("name", CUT)
@every_version
async def test_an_answer_that_breaks_off_is_never_taken_for_a_whole_one(ask, scripted, version, name):
    scripted.answer(CUT[name])
    answer = await ask(version, "/s")
    assert answer.cut or answer.status == 502  # the fault may be seen before the head was sent on


async def test_a_body_longer_than_its_length_ends_there(ask, scripted):
    """What comes behind is nobody's: that connection is not used again."""
    scripted.answer(HEAD + b"content-length: 3\r\n\r\nabcHTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nforged")
    assert (await ask("HTTP/1.1", "/s")).body == b"abc"
    scripted.answer(HEAD + b"content-length: 2\r\nconnection: close\r\n\r\nOK")
    assert (await ask("HTTP/1.1", "/s")).body == b"OK"


@every_version
async def test_no_backend_at_all(ask, version):
    answer = await ask(version, "/down")
    assert (answer.status, answer.get("proxy-status")) == (502, "qproxy; error=connection_refused")


# Time


@every_version
async def test_a_backend_that_is_silent(ask, proxy, scripted, version):
    scripted.script(lambda talk: (scripted.asked.put(talk.request()), scripted.done.put("gone" if talk.gone() else "there"))[0])
    began = time.monotonic()
    answer = await ask(version, "/response")
    assert (answer.status, answer.get("proxy-status")) == (504, "qproxy; error=http_response_timeout")
    assert 0.35 < time.monotonic() - began < 10
    assert scripted.done.get(timeout=20) == "gone"  # and the backend is told
    assert record_of(proxy, answer.get("x-request-id"))["ended"] == "response_timeout"


@every_version
async def test_a_backend_that_falls_silent_within_its_answer(ask, scripted, version):
    def script(talk: Conversation) -> None:
        talk.request()
        talk.send(HEAD + b"content-length: 1000\r\n\r\nabc")
        scripted.done.put("gone" if talk.gone() else "there")

    scripted.script(script)
    answer = await ask(version, "/idle")
    assert answer.cut
    assert scripted.done.get(timeout=20) == "gone"


@every_version
async def test_a_client_that_falls_silent_within_its_request(ask, proxy, scripted, version):
    scripted.script(lambda talk: scripted.done.put("gone" if (talk.head(), talk.gone())[1] else "there"))
    answer = await ask(version, "/idle", method="POST", body=b"abc", finish=False)
    assert answer.status == 408
    assert scripted.done.get(timeout=20) == "gone"
    assert record_of(proxy, answer.get("x-request-id"))["ended"] == "request_timeout"


@every_version
async def test_an_exchange_that_takes_too_long_in_all(ask, scripted, version):
    """Bytes that keep coming don't save it."""
    over = threading.Event()

    def script(talk: Conversation) -> None:
        talk.request()
        while not over.wait(0.05):
            talk.send(b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n")

    scripted.script(script)
    try:
        answer = await ask(version, "/total")
    finally:
        over.set()
    assert (answer.status, answer.get("proxy-status")) == (504, "qproxy; error=http_response_timeout")
