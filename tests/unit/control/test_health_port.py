"""The plain port for health checks, over real sockets: what cloud balancers send is answered, and nobody keeps them away."""

import asyncio
import contextlib
from contextlib import asynccontextmanager

import pytest

from proxy.answers import DRAINING, READY
from proxy.control import health_port
from proxy.control.health_port import HealthPort, Page
from proxy.observe import NullLog


@asynccontextmanager
async def serving(answer=READY, path=b"/health"):
    port = HealthPort(("127.0.0.1", 0), Page(lambda: path, lambda: answer), NullLog())
    await port.start()
    try:
        yield port
    finally:
        await port.stop()


async def ask(port, request, *, half_close=False):
    reader, writer = await asyncio.open_connection(*port.address)
    writer.write(request)
    if half_close:
        writer.write_eof()
    async with asyncio.timeout(10):
        answer = await reader.read()
    await closed(writer)
    return answer


async def closed(writer):
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


def get(path=b"/health", method=b"GET", more=b""):
    return method + b" " + path + b" HTTP/1.1\r\nHost: 10.0.0.7:8081\r\nConnection: close\r\n" + more + b"\r\n"


CHECKS = {
    "HTTP/1.1": get(more=b"User-Agent: ELB-HealthChecker/2.0\r\nAccept-Encoding: gzip, compressed\r\n"),
    "a query": get(b"/health?from=here"),
    "HTTP/1.0 without a host": b"GET /health HTTP/1.0\r\n\r\n",
    "HTTP/1.0 with one": b"GET /health HTTP/1.0\r\nHost: 10.0.0.7\r\nUser-Agent: GoogleHC/1.0\r\n\r\n",
}


@pytest.mark.parametrize("request_", CHECKS.values(), ids=CHECKS)
@pytest.mark.parametrize("half_close", [False, True])
async def test_checks_in_many_forms_are_answered(request_, half_close):
    async with serving() as port:
        head, _, body = (await ask(port, request_, half_close=half_close)).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    assert b"cache-control: no-store" in head
    assert body == b"OK"


async def test_why_not_is_in_the_body_and_head_has_none():
    async with serving(DRAINING) as port:
        asked, headed = await ask(port, get()), await ask(port, get(method=b"HEAD"))
    assert asked.startswith(b"HTTP/1.1 503 ")
    assert asked.endswith(b"\r\n\r\ndraining\n")
    assert headed.startswith(b"HTTP/1.1 503 ")
    assert b"content-length: 9\r\n" in headed
    assert headed.endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    ("request_", "status", "more"),
    [
        (get(method=b"POST", more=b"Content-Length: 0\r\n"), 405, b"allow: GET, HEAD"),
        (get(method=b"DELETE"), 405, b"allow: GET, HEAD"),
        (get(method=b"POST", more=b"Content-Length: 1000000\r\n"), 405, b"connection: close"),
        (get(b"/"), 404, b""),
        (get(b"/healthy"), 404, b""),
        (b"GET /health HTTP/1.1\r\n\r\n", 400, b""),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400, b""),
        (b"GET /health HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 20_000 + b"\r\n\r\n", 431, b""),
    ],
)
async def test_everything_else_is_refused(request_, status, more):
    async with serving() as port:
        answer = await ask(port, request_)
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert more in answer


async def test_nothing_is_there_where_health_is_off():
    async with serving(path=None) as port:
        assert (await ask(port, get())).startswith(b"HTTP/1.1 404 ")


async def test_a_check_that_keeps_its_connection_is_answered_again_and_again():
    async with serving() as port:
        reader, writer = await asyncio.open_connection(*port.address)
        for _ in range(3):
            writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n" * 2)
            for _ in range(2):
                assert (await reader.readuntil(b"\r\n\r\nOK")).startswith(b"HTTP/1.1 200 ")
        await closed(writer)


async def test_silent_connections_don_t_keep_a_check_away(monkeypatch):
    monkeypatch.setattr(health_port, "MAX_CONNECTIONS", 3)
    async with serving() as port:
        kept_reader, kept = await asyncio.open_connection(*port.address)
        silent = [await asyncio.open_connection(*port.address) for _ in range(2)]
        kept.write(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        await kept_reader.readuntil(b"\r\n\r\nOK")
        assert (await ask(port, get())).endswith(b"OK")
        with contextlib.suppress(ConnectionError):
            assert await silent[0][0].read() == b"", "the one that was silent longest is closed"
        kept.write(get())
        assert (await kept_reader.read()).endswith(b"OK"), "who asked last stays"
        for writer in (kept, *(writer for _, writer in silent)):
            await closed(writer)


async def test_silence_ends(monkeypatch):
    monkeypatch.setattr(health_port, "IDLE_SECONDS", 0.05)
    async with serving() as port:
        reader, writer = await asyncio.open_connection(*port.address)
        writer.write(b"GET /hea")
        async with asyncio.timeout(10):
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
        await closed(writer)


async def test_a_port_that_is_taken_is_an_error():
    async with serving() as port:
        with pytest.raises(OSError, match="in use"):
            await HealthPort(port.address, Page(lambda: b"/", lambda: READY), NullLog()).start()
