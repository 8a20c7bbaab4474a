"""The TCP listener on a real socket, from the first byte of a connection to its last, with clients that behave and that don't."""

import asyncio
import contextlib
import socket
import ssl
import struct
from dataclasses import replace
from typing import Any

import h2.events
import pytest

from proxy.engine.seam import HIGH_WATER, LOW_WATER, EngineLimits
from proxy.policy.access import Networks
from proxy.snapshot import Limits, Timeouts
from tests.unit.listen.conftest import Authority
from tests.unit.listen.edge import BIG, H1, HOST, LIMITS, TIMEOUTS, Edge, edge
from tests.unit.upstream.rig import until

# What works


@pytest.mark.parametrize("http2", [False, True])
async def test_httpx_downloads_uploads_and_reuses_its_connection(authority: Authority, http2: bool) -> None:
    async with edge(authority) as made, made.httpx(http2=http2) as client:
        sni = {"sni_hostname": HOST}
        answer = await client.get("/", extensions=sni)
        assert (answer.status_code, answer.text) == (200, "hello")
        assert answer.http_version == ("HTTP/2" if http2 else "HTTP/1.1")
        answer = await client.post("/echo", content=bytes(3_000_000), extensions=sni)
        assert answer.content == bytes(3_000_000)
        answer = await client.get("/big", extensions=sni)
        assert len(answer.content) == BIG
        version = answer.http_version
        assert made.count("connections", made.listener.listener.name, version) == 1
        assert made.count("streams", version) == 3
        assert made.count("sni_resolutions", HOST) == 1
        assert made.count("handshake_failures", "tcp", "closed") == 0
        assert made.meters.handshake_seconds.cell("tcp").counts[0] == 1
        await until(lambda: made.count("streams_open", version) == 0)
        assert made.backend.connections == 1


async def test_many_streams_at_once_on_one_connection(authority: Authority) -> None:
    async with edge(authority) as made, made.httpx(http2=True) as client:
        answers = await asyncio.gather(*(client.get(f"/{i}", extensions={"sni_hostname": HOST}) for i in range(80)))
        assert {answer.text for answer in answers} == {"hello"}
        assert made.count("streams", "HTTP/2") == 80


async def test_pipelined_requests_are_answered_in_order_without_starving_others(authority: Authority) -> None:
    count = 2000
    async with edge(authority) as made, made.h1() as client:
        client.send(b"GET /health HTTP/1.1\r\nhost: a.example.com\r\n\r\n" * count)
        for _ in range(count):
            assert await client.answer() == (200, b"OK")
        client.ask("/hints")
        assert (await client.head()).startswith(b"HTTP/1.1 103")
        assert await client.answer() == (200, b"hinted")


# Plain HTTP on the TLS port


async def test_plain_http_gets_health_and_a_redirect(authority: Authority) -> None:
    async with edge(authority) as made, made.h1(plain=True) as client:
        client.ask("/health")
        assert await client.answer() == (200, b"OK")
        client.ask("/x?y")
        head = await client.head()
        assert head.startswith(b"HTTP/1.1 308")
        assert b"location: https://a.example.com/x?y\r\n" in head


async def test_an_http_1_0_probe_without_a_host_gets_health_and_the_end(authority: Authority) -> None:
    async with edge(authority) as made, made.h1(plain=True, first=b"GET /health HTTP/1.0\r\n\r\n") as client:
        assert (await client.rest()).endswith(b"\r\n\r\nOK")
        client.writer.close()
        await until(lambda: not made.listener.connections)


async def test_what_is_neither_is_counted_and_cut(authority: Authority) -> None:
    async with edge(authority) as made, made.h1(plain=True, first=b"\x00\x01\x02") as client:
        with contextlib.suppress(ConnectionError):
            assert await client.rest() == b""
        assert made.count("handshake_failures", "tcp", "not_tls") == 1


# Handshakes that fail


async def handshake(made: Edge, context: ssl.SSLContext, host: str | None = HOST) -> Any:
    _, writer = await asyncio.open_connection("127.0.0.1", made.port, ssl=context, server_hostname=host)
    writer.transport.abort()
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        await writer.wait_closed()


async def refused(made: Edge, context: ssl.SSLContext, host: str, reason: str, says: str) -> None:
    with pytest.raises((ssl.SSLError, ConnectionError), match=says):
        await handshake(made, context, host)
    assert made.count("handshake_failures", "tcp", reason) == 1
    await until(lambda: not made.listener.connections)


async def test_an_unknown_name_is_refused_where_the_configuration_says_so(authority: Authority) -> None:
    async with edge(authority, refuse=True) as made:
        await refused(made, made.tls("h2"), "x.example.com", "unrecognized_name", "(?i)unrecognized")


async def test_an_unknown_name_gets_the_default_certificate_and_only_health(authority: Authority) -> None:
    async with edge(authority) as made:
        made.client_context.check_hostname = False
        async with made.h1(host="x.example.com") as client:
            client.send(b"GET / HTTP/1.1\r\nhost: x.example.com\r\n\r\n")
            assert (await client.answer())[0] == 421
            client.send(b"GET /health HTTP/1.1\r\nhost: x.example.com\r\n\r\n")
            assert await client.answer() == (200, b"OK")
        assert made.count("sni_resolutions", "default") == 1


async def test_tls_1_2_is_refused(authority: Authority) -> None:
    async with edge(authority) as made:
        context = made.tls("h2")
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        await refused(made, context, HOST, "unsupported_protocol", "(?i)version")


async def test_no_protocol_in_common_is_refused(authority: Authority) -> None:
    async with edge(authority, protocols=frozenset({"h2"})) as made:
        await refused(made, made.tls("http/1.1"), HOST, "no_application_protocol", "(?i)no.application.protocol")


async def test_a_client_that_does_not_trust_us_is_counted(authority: Authority, other_authority: Authority) -> None:
    async with edge(authority) as made:
        with pytest.raises(ssl.SSLCertVerificationError):
            await handshake(made, ssl.create_default_context(cadata=other_authority.pem.decode()))
        await until(lambda: not made.listener.connections)
        assert sum(cell.value for cell in made.meters.handshake_failures.cells.values()) == 1


async def test_a_client_that_leaves_within_the_handshake_is_counted_and_one_that_says_nothing_is_not(authority: Authority) -> None:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    async with edge(authority) as made:
        tls = made.tls("h2").wrap_bio(incoming, outgoing, server_hostname=HOST)
        with pytest.raises(ssl.SSLWantReadError):
            tls.do_handshake()
        async with made.h1(plain=True, first=outgoing.read()) as client:
            await client.reader.read(100)
        async with made.h1(plain=True):
            await until(lambda: made.listener.connections)
        await until(lambda: not made.listener.connections)
        assert made.count("handshake_failures", "tcp", "closed") == 1


# PROXY protocol

LOCAL = Networks(["127.0.0.0/8"])
V1 = b"PROXY TCP4 198.51.100.7 192.0.2.1 5000 443\r\n"
V2 = b"\r\n\r\n\x00\r\nQUIT\n" + struct.pack("!BBH4s4sHH", 0x21, 0x11, 12, bytes([198, 51, 100, 7]), bytes([192, 0, 2, 1]), 5000, 443)


@pytest.mark.parametrize("header", [V1, V2], ids=["v1", "v2"])
async def test_the_proxy_protocol_tells_the_client(authority: Authority, header: bytes) -> None:
    async with edge(authority, proxied=LOCAL) as made:
        request = b"GET /health HTTP/1.1\r\nhost: a.example.com\r\n\r\n"
        async with made.h1(plain=True, first=header[:9]) as client:
            await asyncio.sleep(0)
            client.send(header[9:] + request)
            assert await client.answer() == (200, b"OK")
            assert made.connection.peer == ("198.51.100.7", 5000)
        assert made.world.records[0].client_address == "198.51.100.7"


async def test_a_proxied_connection_without_addresses_counts_as_the_balancers_own(authority: Authority) -> None:
    async with edge(authority, proxied=LOCAL) as made, made.h1(plain=True, first=b"PROXY UNKNOWN\r\n") as client:
        client.ask("/health")
        assert await client.answer() == (200, b"OK")
        assert made.connection.peer[0] == "127.0.0.1"


@pytest.mark.parametrize("first", [b"GET / HTTP/1.1\r\n\r\n", b"PROXY TCP4 x y z w\r\n"], ids=["missing", "garbage"])
async def test_a_trusted_peer_that_does_not_begin_with_a_header_is_cut(authority: Authority, first: bytes) -> None:
    async with edge(authority, proxied=LOCAL) as made, made.h1(plain=True, first=first) as client:
        with contextlib.suppress(ConnectionError):
            assert await client.rest() == b""
        assert made.count("handshake_failures", "tcp", "proxy_protocol") == 1


async def test_a_peer_that_is_not_trusted_speaks_for_itself(authority: Authority) -> None:
    async with edge(authority, proxied=Networks(["192.0.2.0/24"])) as made, made.h1(plain=True, first=V1 + b"\r\n") as client:
        assert (await client.head()).startswith(b"HTTP/1.1 400")


# Limits


@pytest.mark.parametrize(
    ("limits", "name"),
    [
        (Limits(1, 0, 0, 0, EngineLimits()), "connections"),
        (Limits(0, 1, 0, 0, EngineLimits()), "connections_per_client"),
        (Limits(0, 0, 1, 0, EngineLimits()), "connection_rate"),
    ],
)
async def test_a_connection_over_a_limit_is_refused_and_counted(authority: Authority, limits: Limits, name: str) -> None:
    async with edge(authority, limits=limits) as made, made.h1() as client:
        client.ask("/")
        assert await client.answer() == (200, b"hello")
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await handshake(made, made.tls("h2"))
        hits = made.metrics.families["qproxy_limits_hit_total"]
        assert hits.cell(name).value == 1  # type: ignore[union-attr]
        client.ask("/")
        assert await client.answer() == (200, b"hello")
        assert made.limits.connections == 1


async def test_a_proxied_client_over_a_limit_is_refused(authority: Authority) -> None:
    limits = Limits(0, 1, 0, 0, EngineLimits())
    async with edge(authority, limits=limits, proxied=LOCAL) as made, made.h1(plain=True, first=V1) as client:
        client.ask("/health")
        assert await client.answer() == (200, b"OK")
        async with made.h1(plain=True, first=V1) as second:
            with contextlib.suppress(ConnectionError):
                assert len(await second.rest()) == 7  # the alert
        assert made.limits.connections == 1


# Time


async def test_a_handshake_that_does_not_end_is_cut(authority: Authority) -> None:
    async with edge(authority) as made, made.h1(plain=True, first=b"\x16\x03\x01") as client:
        await until(lambda: made.listener.connections)
        await made.pass_time(9)
        assert made.listener.connections
        await made.pass_time(2)
        with contextlib.suppress(ConnectionError):
            assert await client.rest() == b""
        assert made.count("handshake_failures", "tcp", "timeout") == 1


async def test_a_head_that_does_not_end_gets_408(authority: Authority) -> None:
    async with edge(authority) as made, made.h1() as client:
        client.ask("/")
        await client.answer()
        client.send(b"GET / HT")
        await until(lambda: made.connection._head_since)
        await made.pass_time(3)
        client.send(b"TP/1.1\r\n")
        await made.pass_time(1.5)
        assert made.count("rejected", "HTTP/1.1", "header_timeout") == 0
        await made.pass_time(1)
        assert (await client.rest()).startswith(b"HTTP/1.1 408")
        assert made.count("rejected", "HTTP/1.1", "header_timeout") == 1


async def test_a_head_that_begins_where_another_one_ended_has_its_own_time(authority: Authority) -> None:
    async with edge(authority) as made, made.h1() as client:
        client.send(b"GET /health HTTP/1.1\r\n")
        await until(lambda: made.connection._head_since)
        await made.pass_time(4)
        client.send(b"host: a.example.com\r\n\r\nGET /health HTTP/1.1\r\n")
        assert await client.answer() == (200, b"OK")
        await until(lambda: made.connection._head_since == made.world.now or not made.connection.exchanges)
        await made.pass_time(3)
        client.send(b"host: a.example.com\r\n\r\n")
        assert await client.answer() == (200, b"OK")


async def test_an_idle_connection_is_closed_and_a_busy_one_is_not(authority: Authority) -> None:
    async with edge(authority, route={"timeouts": Timeouts(5, 500, 500, 0)}) as made, made.h1() as client, made.h2() as other:
        client.ask("/hold")
        stream = other.ask("/")
        await other.read(lambda: other.ended(stream))
        await until(lambda: made.app.seen)
        await made.pass_time(66)
        await other.read(lambda: False)
        assert [event.error_code for event in other.of(h2.events.ConnectionTerminated)] == [0]
        made.app.release.set()
        assert await client.answer() == (200, b"held")


async def test_a_connection_that_asks_for_nothing_is_closed(authority: Authority) -> None:
    async with edge(authority) as made, made.h1() as client:
        await until(lambda: made.connection._engine is not None)
        await made.pass_time(62)
        assert await client.rest() == b""


# Clients that go away, stop or say too much


@pytest.mark.parametrize("http2", [False, True])
async def test_a_client_that_cuts_its_download_cuts_the_backends_work(authority: Authority, http2: bool) -> None:
    async with edge(authority) as made:
        if http2:
            async with made.h2() as client:
                stream = client.ask("/half")
                await client.read(lambda: client.body(stream))
                client.core.reset_stream(stream)
                client.flush()
                await asyncio.wait_for(made.app.cut.wait(), 5)
                other = client.ask("/")
                await client.read(lambda: client.ended(other))
                assert client.body(other) == 5
            assert made.count("stream_errors", "HTTP/2", "reset_by_client") == 1
        else:
            async with made.h1() as client:
                client.ask("/half")
                await client.head()
            await asyncio.wait_for(made.app.cut.wait(), 5)
        record = made.world.records[0]
        assert record.status == 200
        assert record.ended.startswith("client: ")


async def test_a_client_that_closed_its_side_gets_its_answer(authority: Authority) -> None:
    async with edge(authority) as made, made.h1(plain=True) as client:
        client.ask("/health")
        client.writer.write_eof()
        assert (await client.rest()).endswith(b"OK")
        await until(lambda: not made.listener.connections)


async def test_an_answer_to_a_request_that_is_not_read_to_its_end_reaches_the_client(authority: Authority) -> None:
    """To close with input unread resets the connection, and the client may lose the answer."""
    async with edge(authority, route={"body_bytes": 1000}) as made, made.h1(plain=False) as client:
        client.ask("/echo", "content-length: 50000000", method="POST")
        sending = asyncio.ensure_future(flood(client, 10_000_000))
        assert (await client.answer())[0] == 413
        assert await client.rest() == b""
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        assert made.count("limits_hit", "body_size") == 1


async def test_a_client_that_sends_on_after_the_end_is_cut_after_a_moment(authority: Authority) -> None:
    async with edge(authority) as made, made.h1(plain=True) as client:
        client.ask("/echo", "content-length: 5000", method="POST")
        assert (await client.answer())[0] == 308
        await until(lambda: made.connection._closing)
        await made.pass_time(1)
        assert made.listener.connections
        await asyncio.wait_for(passes(made), 5)
        assert made.world.now < 1000 + TIMEOUTS.idle


async def passes(made: Edge) -> None:
    """Time passes until no connection is left; the kernel's acknowledgements come in their own time."""
    while made.listener.connections:
        await made.pass_time(0.5)
        await asyncio.sleep(0.01)


async def flood(client: H1, size: int) -> None:
    with contextlib.suppress(ConnectionError):
        for _ in range(size // 100_000):
            client.send(bytes(100_000))
            await client.writer.drain()


async def test_an_answer_of_the_backend_before_the_end_of_the_request_reaches_the_client(authority: Authority) -> None:
    async with edge(authority) as made, made.h1() as client:
        client.ask("/no", "content-length: 50000000", method="POST")
        sending = asyncio.ensure_future(flood(client, 10_000_000))
        assert await client.answer() == (413, b"no")
        await asyncio.wait_for(made.app.cut.wait(), 5)
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)


async def test_a_body_whose_end_is_the_connections_is_cut_by_a_reset(authority: Authority) -> None:
    """An HTTP/1.0 client knows the end of such a body by the end of the connection only."""
    async with edge(authority) as made:
        raw = socket.socket()
        raw.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(raw, ("127.0.0.1", made.port))
        reader, writer = await asyncio.open_connection(sock=raw, ssl=made.tls("http/1.1"), server_hostname=HOST)
        client = H1(reader, writer)
        client.ask("/broken", version="1.0")
        assert b"content-length" not in await client.head()
        assert await asyncio.wait_for(reader.readexactly(4), 5) == b"part"
        made.app.release.set()
        with pytest.raises((ConnectionResetError, ssl.SSLError)):
            await read_until_reset(reader)
        writer.transport.abort()
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            await writer.wait_closed()
        assert made.world.records[0].ended == "upstream_closed"


async def read_until_reset(reader: asyncio.StreamReader) -> None:
    while await asyncio.wait_for(reader.read(100), 5):
        pass
    raise AssertionError("a clean end")


async def test_a_slow_reader_holds_its_own_stream_and_bounded_memory_and_nobody_else(authority: Authority) -> None:
    async with edge(authority) as made, made.h2() as client:
        slow = client.ask("/big")
        await client.read(lambda: client.body(slow) >= 65535, credit=lambda stream: stream != slow)
        client.core.increment_flow_control_window(1 << 20)
        for _ in range(5):
            quick = client.ask("/")
            await client.read(lambda quick=quick: client.ended(quick), credit=lambda stream: stream != slow)
            assert client.body(quick) == 5
        exchange = made.connection.exchanges[slow]
        assert exchange._response_pipe is not None
        await until(lambda: exchange._response_pipe is not None and exchange._response_pipe.stalled)
        assert exchange._response_pipe.moved < 6 * HIGH_WATER
        client.core.acknowledge_received_data(client.body(slow), slow)
        client.core.increment_flow_control_window(BIG, slow)
        client.flush()
        await client.read(lambda: client.ended(slow))
        assert client.body(slow) == BIG


async def test_a_client_that_reads_nothing_holds_bounded_memory_and_is_cut_in_the_end(authority: Authority) -> None:
    async with edge(authority) as made, made.h1() as client:
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        client.ask("/big")
        connection = made.connection if made.listener.connections else None
        await until(lambda: made.listener.connections and made.connection.exchanges)
        connection = made.connection
        await until(lambda: connection._write_paused or not connection.exchanges)
        assert connection._transport is not None
        assert connection._transport.get_write_buffer_size() < 4 * HIGH_WATER
        await made.pass_time(200)
        await until(lambda: not made.listener.connections)


def read_nothing(client: H1) -> None:
    """Nor let the kernel take more than a little: it would hold the whole of what is asked for here."""
    client.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
    client.writer.transport.pause_reading()  # type: ignore[attr-defined]


def _read_at_once() -> int:
    """Bytes that the loop reads from a backend at once, where so much has come: uvloop's and asyncio's own numbers."""
    return 64 * 1024 if "uvloop" in type(asyncio.get_running_loop()).__module__ else 256 * 1024


async def test_beyond_the_budget_a_connection_has_the_least_and_one_that_reads_goes_on(authority: Authority) -> None:
    async with edge(authority) as made:
        output = made.world.services.output
        output.replace(replace(LIMITS, output=1))
        async with made.h1() as stuck, made.h1() as reads, made.h2() as both:
            read_nothing(stuck)
            stuck.ask("/big")
            await until(lambda: any(connection._write_paused for connection in made.listener.connections))
            assert (output.over, output.bound) == (True, LOW_WATER)
            (connection,) = (connection for connection in made.listener.connections if connection._write_paused)
            assert connection._transport is not None
            assert connection._transport.get_write_buffer_size() < 2 * HIGH_WATER  # from before
            assert connection.output_bytes < 4 * HIGH_WATER
            reads.ask("/big")
            stream = both.ask("/big")
            status, body = await reads.answer()
            assert (status, len(body)) == (200, BIG)
            await both.read(lambda: both.ended(stream))
            assert both.body(stream) == BIG
            async with made.h1() as late:  # has the least from its beginning
                read_nothing(late)
                late.ask("/big")
                await until(lambda: sum(connection._write_paused for connection in made.listener.connections) == 2)
                (other,) = (one for one in made.listener.connections if one._write_paused and one is not connection)
                await until(lambda: made.listener.holds > 2)
                assert other._transport is not None
                assert LOW_WATER // 2 < other._transport.get_write_buffer_size() <= LOW_WATER + 1024
                assert other.output_bytes <= 2 * LOW_WATER + _read_at_once() + 1024
        await until(lambda: not made.listener.connections)
        for turn in range(10):
            output.turn(float(turn))
        assert not output.over
        assert made.count("limits_hit", "output") == made.listener.holds > 0
        async with made.h1() as client:
            client.ask("/big")
            await client.answer()


async def test_complete_answers_that_nobody_takes_are_cut_after_the_idle_timeout(authority: Authority) -> None:
    """Their exchanges are over, since the engine holds all of them: without a limit they would stay for ever."""
    async with edge(authority) as made, made.h2() as client:
        client.core.update_settings({4: 0})  # INITIAL_WINDOW_SIZE
        client.flush()
        stream = client.ask("/")
        await client.read(lambda: client.of(h2.events.ResponseReceived, stream))
        await until(lambda: not made.connection.exchanges)
        assert made.connection._engine is not None
        assert made.connection._engine.streams == 1
        for _ in range(5):
            await made.pass_time(25)
            client.core.ping(b"12345678")
            client.flush()
            await asyncio.sleep(0.01)
        await until(lambda: not made.listener.connections)
        assert made.count("connection_errors", "HTTP/2", "write_timeout") == 1


async def test_http2_faults_of_the_connection_are_counted(authority: Authority) -> None:
    async with edge(authority) as made, made.h2() as client:
        stream = client.ask("/hold")
        await until(lambda: made.app.seen)
        client.writer.write(b"\x00\x00\x00\x05\x00\x00\x00\x00\x01")  # PUSH_PROMISE
        await client.read(lambda: False)
        assert stream == 1
        assert {labels: cell.value for labels, cell in made.meters.connection_errors.cells.items()} == {("HTTP/2", "frame_size"): 1}


async def test_a_malformed_request_is_counted_and_answered(authority: Authority) -> None:
    async with edge(authority) as made, made.h1() as client:
        client.send(b"GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n")
        assert (await client.rest()).startswith(b"HTTP/1.1 400")
        assert sum(cell.value for cell in made.meters.rejected.cells.values()) == 1


async def test_broken_records_end_the_connection_and_are_counted(authority: Authority) -> None:
    async with edge(authority) as made, made.h1() as client:
        client.ask("/")
        await client.answer()
        made.connection.data_received(b"\x17\x03\x03\x00\x20" + bytes(32))
        assert made.count("connection_errors", "HTTP/1.1", "tls") == 1


# Faults of our own


@pytest.mark.replaces
@pytest.mark.parametrize("http2", [False, True])
async def test_a_fault_of_one_exchange_is_500_and_its_neighbours_live(authority: Authority, http2: bool) -> None:
    async with edge(authority) as made:
        route = made.world.route
        find = type(made.world.host.site.routes).find

        def poisoned(table: Any, method: bytes, path: bytes, headers: Any) -> Any:
            if path == b"/poison":
                raise RuntimeError("poison")
            return find(table, method, path, headers)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(made.world.host.site.routes), "find", poisoned)
            if http2:
                async with made.h2() as client:
                    held, bad = client.ask("/hold"), client.ask("/poison")
                    await client.read(lambda: client.ended(bad))
                    assert client.status(bad) == 500
                    made.app.release.set()
                    await client.read(lambda: client.ended(held))
                    assert (client.status(held), client.body(held)) == (200, 4)
            else:
                async with made.h1() as client:
                    client.ask("/poison")
                    assert (await client.answer())[0] == 500
                    client.ask("/")
                    assert await client.answer() == (200, b"hello")
        assert [event for event, _ in made.log.errors] == ["an exchange failed"]
        assert route is not None


async def test_a_fault_outside_of_any_exchange_costs_its_connection_only(authority: Authority) -> None:
    async with edge(authority) as made, made.h1() as victim, made.h1() as neighbour:
        victim.ask("/")
        await victim.answer()
        (connection,) = [one for one in made.listener.connections if one.admitted is not None]

        class Broken:
            def __getattr__(self, name: str) -> Any:
                raise RuntimeError(name)

        engine, connection._engine = connection._engine, Broken()  # type: ignore[assignment]
        victim.ask("/")
        with contextlib.suppress(ConnectionError):
            await victim.rest()
        await until(lambda: len(made.listener.connections) == 1)
        neighbour.ask("/")
        assert await neighbour.answer() == (200, b"hello")
        assert [event for event, _ in made.log.errors] == ["a connection failed"]
        assert engine is not None


@pytest.mark.replaces
@pytest.mark.parametrize("entry", ["on_deadline", "_scheduled_flush", "eof_received", "resume_writing"])
async def test_a_fault_in_a_callback_of_the_loop_costs_its_connection_only(authority: Authority, entry: str) -> None:
    async with edge(authority) as made, made.h1() as client:
        client.ask("/")
        await client.answer()
        connection = made.connection
        with pytest.MonkeyPatch.context() as patch:
            for name in ("_flush", "_check_time", "_ended"):
                patch.setattr(type(connection), name, _poison)
            getattr(connection, entry)(*([made.world.now] if entry == "on_deadline" else []))
        await until(lambda: not made.listener.connections)
        assert [event for event, _ in made.log.errors] == ["a connection failed"]


def _poison(*_: Any) -> None:
    raise RuntimeError("poison")


# Drain


async def test_drain_on_http_1_finishes_what_runs_and_says_so(authority: Authority) -> None:
    async with edge(authority) as made, made.h1() as client, made.h1() as idle:
        idle.ask("/")
        await idle.answer()
        client.ask("/hold")
        await until(lambda: made.app.seen[1:])
        made.world.services.draining = True
        made.listener.stop_accepting()
        made.listener.drain()
        await asyncio.sleep(0)
        made.listener.drain()
        assert await idle.rest() == b""
        made.app.release.set()
        head = await client.head()
        assert b"connection: close\r\n" in head
        assert await client.rest() == b"held"
        client.writer.close()
        idle.writer.close()
        await until(lambda: not made.listener.connections)


async def test_drain_on_http_2_finishes_what_runs_and_refuses_nothing(authority: Authority) -> None:
    async with edge(authority) as made, made.h2() as client:
        stream = client.ask("/hold")
        await until(lambda: made.app.seen)
        made.world.services.draining = True
        made.listener.drain()
        await client.read(lambda: client.of(h2.events.ConnectionTerminated))
        made.app.release.set()
        await client.read(lambda: client.ended(stream))
        assert client.body(stream) == 4
        await client.read(lambda: False)
        assert client.events[-1] == "eof"


async def test_drain_leaves_a_new_connection_its_first_request(authority: Authority) -> None:
    async with edge(authority) as made, made.h1() as client, made.h1(plain=True) as other:
        await until(lambda: len(made.listener.connections) == 2)
        await until(lambda: any(one._engine is not None for one in made.listener.connections))
        made.world.services.draining = True
        made.listener.drain()
        client.ask("/")
        head = await client.head()
        assert head.startswith(b"HTTP/1.1 200")
        assert b"connection: close\r\n" in head
        other.ask("/health")
        assert (await other.rest()).endswith(b"draining\n")
        async with made.h1() as late:  # while the listener still accepts
            late.ask("/")
            assert b"connection: close\r\n" in await late.head()


async def test_http_2_that_comes_while_the_server_drains_hears_of_it_behind_its_first_request(authority: Authority) -> None:
    async with edge(authority) as made:
        made.world.services.draining = True
        async with made.h2() as client:
            await client.read(lambda: client.of(h2.events.RemoteSettingsChanged))
            assert not client.of(h2.events.ConnectionTerminated)
            stream = client.ask("/")
            await client.read(lambda: client.ended(stream))
            await client.read(lambda: client.of(h2.events.ConnectionTerminated))
            assert client.body(stream) > 0


async def test_drain_does_not_wait_for_connections_that_ask_for_nothing(authority: Authority) -> None:
    async with edge(authority) as made, made.h1() as quiet, made.h1(plain=True) as silent:
        await until(lambda: len(made.listener.connections) == 2)
        await until(lambda: any(one._engine is not None for one in made.listener.connections))
        made.world.services.draining = True
        made.listener.drain()
        await asyncio.sleep(0.01)
        assert len(made.listener.connections) == 2
        made.listener.drain()
        assert await quiet.rest() == b""
        assert await silent.rest() == b""
        await until(lambda: not made.listener.connections)


async def test_a_slow_client_gets_the_rest_of_its_last_answer(authority: Authority) -> None:
    """After the last answer the connection closes; a client that goes on taking it is not cut, however long that is."""
    async with edge(authority) as made:
        with socket.socket() as raw:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
            raw.settimeout(5)
            client = await asyncio.to_thread(connect, raw, made.port, made.tls("http/1.1"))
            client.sendall(b"GET /big HTTP/1.1\r\nhost: a.example.com\r\nconnection: close\r\n\r\n")
            size = 0
            while piece := await asyncio.to_thread(client.recv, 1 << 20):
                size += len(piece)
                if size // (BIG // 100) > made.world.now // 2.5 - 400:
                    await made.pass_time(2.5)
            assert size > BIG
            client.close()


def connect(raw: socket.socket, port: int, context: ssl.SSLContext) -> ssl.SSLSocket:
    raw.connect(("127.0.0.1", port))
    return context.wrap_socket(raw, server_hostname=HOST)
