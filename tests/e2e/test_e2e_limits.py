"""What a client may take at most: each limit with the answer that it gives and the metric that counts it, on every version."""

import asyncio
import contextlib
import socket
import ssl

import h2.config
import h2.connection
import h2.events
import pytest
from aioquic.quic.events import ConnectionTerminated
from harness import clients
from harness.content import content, digest
from harness.http3 import Http3, http3
from harness.load import Load

pytestmark = pytest.mark.workers(2)

VERSIONS = clients.VERSIONS
A = "a.example.com"
REFUSED = 0x2  # CONNECTION_REFUSED (RFC 9000, section 20.1)


def limited(start_proxy, **limits):
    return start_proxy(server={"limits": limits}, answers=False)


def hits(proxy, limit):
    return proxy.metrics().get(f'qproxy_limits_hit_total{{limit="{limit}"}}', 0)


class Open(contextlib.ExitStack):
    """Connections that are held open; each is given back by ``tcp`` or closed with the block."""

    def __init__(self, authority, proxy):
        super().__init__()
        self._authority, self._proxy = authority, proxy

    def tcp(self, source="127.0.0.1"):
        """A TLS connection from *source*; raises OSError or ssl.SSLError where it is refused."""
        raw = socket.create_connection(("127.0.0.1", self._proxy.port), timeout=20, source_address=(source, 0))
        try:
            secured = clients.trusting(self._authority).wrap_socket(raw, server_hostname=A)
        except BaseException:
            raw.close()
            raise
        return self.enter_context(secured)


async def quic_error(authority, proxy):
    """The error with which a QUIC connection is refused; None where it is served."""
    codes = []

    class Telling(Http3):
        def quic_event_received(self, event):
            if isinstance(event, ConnectionTerminated):
                codes.append(event.error_code)
            super().quic_event_received(event)

    try:
        async with http3(authority, proxy.port, protocol=Telling) as client:
            assert (await client.get("/health", host=A)).status == 200
    except ConnectionError:
        return codes[0]
    return None


@pytest.mark.speaks("HTTP/3")
async def test_connections_in_all(authority, start_proxy):
    proxy = limited(start_proxy, connections=4)
    with Open(authority, proxy) as held:
        async with http3(authority, proxy.port) as client:
            assert (await client.get("/health", host=A)).status == 200
            first, *_ = [await asyncio.to_thread(held.tcp, f"127.0.7.{number}") for number in (1, 2, 3)]
            with pytest.raises((ssl.SSLError, OSError)):
                await asyncio.to_thread(held.tcp, "127.0.7.4")
            assert hits(proxy, "connections") == 1
            assert await quic_error(authority, proxy) == REFUSED
            assert hits(proxy, "connections") == 2
            assert (await client.get("/hello", host=A)).status == 200, "those that are in are served"
            await asyncio.to_thread(first.close)
            proxy.wait_for(lambda: proxy.metrics().get('qproxy_connections_open{version="HTTP/1.1"}') == 2, "lost one connection")
            await asyncio.to_thread(held.tcp, "127.0.7.4")


@pytest.mark.speaks("HTTP/3")
async def test_connections_of_one_client(authority, start_proxy):
    proxy = start_proxy(server={"limits": {"connections_per_client": 2}, "trusted_proxies": ["127.0.9.0/24"]})
    with Open(authority, proxy) as held:
        for source in ("127.0.7.1", "127.0.0.1"):
            await asyncio.to_thread(held.tcp, source)
            await asyncio.to_thread(held.tcp, source)
            with pytest.raises((ssl.SSLError, OSError)):
                await asyncio.to_thread(held.tcp, source)
        assert hits(proxy, "connections_per_client") == 2
        assert await quic_error(authority, proxy) == REFUSED, "TCP and QUIC are counted together"
        assert hits(proxy, "connections_per_client") == 3
        for _ in range(4):
            await asyncio.to_thread(held.tcp, "127.0.9.1")  # trusted proxies speak for many
        await asyncio.to_thread(held.tcp, "127.0.7.3")
    proxy.wait_for(lambda: proxy.metric("qproxy_connections_open") == 0, "lost all connections")
    assert await quic_error(authority, proxy) is None


@pytest.mark.speaks("HTTP/3")
async def test_new_connections_a_second(authority, start_proxy):
    proxy = limited(start_proxy, connection_rate=0.01)  # the next one in 100 s
    with Open(authority, proxy) as held:
        connection = held.tcp()
        with pytest.raises((ssl.SSLError, OSError)):
            held.tcp()
        assert await quic_error(authority, proxy) == REFUSED
        assert hits(proxy, "connection_rate") == 2
        connection.sendall(f"GET /hello HTTP/1.1\r\nhost: {A}\r\n\r\n".encode())
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")


def test_limits_change_with_a_reload(authority, start_proxy):
    proxy = start_proxy()
    with Open(authority, proxy) as held:
        held.tcp("127.0.7.1")
        held.tcp("127.0.7.1")
        proxy.server["limits"] = {"connections_per_client": 1}
        proxy.write()
        proxy.reload(expect="configuration reloaded")
        with pytest.raises((ssl.SSLError, OSError)):
            held.tcp("127.0.7.1")
        proxy.server["limits"] = {}
        proxy.write()
        proxy.reload(expect="configuration reloaded")
        held.tcp("127.0.7.1")


# Streams


@pytest.mark.speaks("HTTP/2")
def test_streams_of_an_http2_connection(authority, start_proxy, backends):
    proxy = start_proxy(server={"limits": {"streams_per_connection": 3}})
    connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding="utf-8"))
    connection.initiate_connection()
    with clients.tls_socket(authority, proxy.port, alpn=["h2"]) as wire:
        head = [(":method", "GET"), (":scheme", "https"), (":authority", A)]
        for number in (1, 3, 5, 7, 9):  # before it has seen the server's SETTINGS
            connection.send_headers(number, [*head, (":path", f"/stream/h2-{proxy.port}-{number}")], end_stream=True)
        refused, ended, statuses = {}, set(), {}

        def read():
            wire.sendall(connection.data_to_send())
            for event in connection.receive_data(wire.recv(65536)):
                if isinstance(event, h2.events.StreamReset):
                    refused[event.stream_id] = event.error_code
                elif isinstance(event, h2.events.ResponseReceived):
                    statuses[event.stream_id] = dict(event.headers)[":status"]
                elif isinstance(event, h2.events.StreamEnded):
                    ended.add(event.stream_id)

        while len(refused) < 2 or len(statuses) < 3:
            read()
        assert refused == {7: 7, 9: 7}  # REFUSED_STREAM: a client may send it again
        assert connection.remote_settings.max_concurrent_streams == 3
        assert hits(proxy, "streams_per_connection") == 2
        for number in (1, 3, 5):
            for backend in backends:
                backend.push(f"h2-{proxy.port}-{number}", b"end", end=True)
        while len(ended) < 3:
            read()
        connection.send_headers(11, [*head, (":path", "/hello")], end_stream=True)
        while 11 not in ended:
            read()
    assert statuses == {1: "200", 3: "200", 5: "200", 11: "200"}


@pytest.mark.speaks("HTTP/3")
async def test_streams_of_an_http3_connection(authority, start_proxy, backends):
    """QUIC's own limit: a client can't open more, and goes on as soon as one is done."""
    proxy = start_proxy(server={"limits": {"streams_per_connection": 3}})
    async with http3(authority, proxy.port) as client:
        asked = [client.open(f"/stream/h3-{proxy.port}-{number}", host=A) for number in range(5)]
        await asyncio.to_thread(proxy.wait_for, lambda: proxy.metric("qproxy_streams_open") == 3, "has three streams")
        for number in range(5):
            for backend in backends:
                await asyncio.to_thread(backend.push, f"h3-{proxy.port}-{number}", b"end", end=True)
        answers = [await client.answer(stream) for stream in asked]
        assert [answer.status for answer in answers] == [200] * 5
        assert proxy.metric("qproxy_streams_open") == 0


# Heads


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("limits", "headers"),
    [
        ({"header_count": 20}, {f"x-{number}": "1" for number in range(30)}),
        ({"header_size": "2KiB"}, {"x-large": "y" * 3000}),
        ({"header_size": "2KiB"}, {f"x-{number}": "z" * 100 for number in range(20)}),
    ],
    ids=["fields", "one large field", "fields together"],
)
def test_a_head_beyond_its_limits_is_431(authority, header_limits, version, limits, headers):
    proxy = header_limits(limits)
    (limit,) = limits
    before = hits(proxy, limit)
    with clients.curl_session(authority, proxy.port, version) as session:
        assert session.get(proxy.url(), headers=headers).status_code == 431
        assert session.get(proxy.url()).status_code == 200
    assert hits(proxy, limit) == before + 1


@pytest.fixture(scope="module")
def header_limits(make_proxy):
    """Proxies by limits, started when they are first asked for."""
    running = {}

    def proxy(limits):
        key = str(limits)
        if key not in running:
            running[key] = make_proxy(server={"limits": limits}).start()
        return running[key]

    return proxy


# Bodies


@pytest.fixture(scope="module")
def small(make_proxy):
    """A proxy with bodies of 100 KiB at most, but for /large."""
    routes = [
        {"match": {"path": "/upload/large"}, "pool": "web", "limits": {"body_size": "off"}},
        {"match": {"path": "/"}, "pool": "web"},
    ]
    return make_proxy(server={"limits": {"body_size": "100KiB"}}, sites={A: {"routes": routes}}).start()


def body(size, *, told):
    """A body that is announced by its length, or not."""
    return b"".join(content(size)) if told else content(size)


@pytest.mark.parametrize("told", [True, False], ids=["content-length", "streamed"])
@pytest.mark.parametrize("version", VERSIONS[:2])
def test_a_body_beyond_its_limit_is_413(authority, small, version, told):
    before = hits(small, "body_size")
    with clients.httpx_client(authority, version) as client:
        assert client.post(small.url("/upload"), content=body(100 * 1024, told=told)).json()["sha256"] == digest(100 * 1024)
        refused = client.post(small.url("/upload"), content=body(100 * 1024 + 1, told=told))
        assert (refused.status_code, refused.headers["proxy-status"]) == (413, "qproxy; error=http_request_error")
        assert client.post(small.url("/upload/large"), content=body(300 * 1024, told=told)).json()["sha256"] == digest(300 * 1024)
    assert hits(small, "body_size") == before + 1


@pytest.mark.speaks("HTTP/3")
@pytest.mark.parametrize("told", [True, False], ids=["content-length", "streamed"])
async def test_a_body_beyond_its_limit_is_413_on_http3(authority, small, told):
    before = hits(small, "body_size")

    def length(size):
        return [("content-length", str(size))] if told else []

    async with http3(authority, small.port) as client:
        size = 100 * 1024
        assert (await client.upload("/upload", content(size), host=A, headers=length(size))).status == 200
        refused = await client.upload("/upload", content(size + 1), host=A, headers=length(size + 1))
        assert (refused.status, refused.headers["proxy-status"]) == (413, "qproxy; error=http_request_error")
        size = 300 * 1024
        assert (await client.upload("/upload/large", content(size), host=A, headers=length(size))).status == 200
    assert hits(small, "body_size") == before + 1


def test_who_expects_a_continue_is_refused_before_the_body(authority, small):
    with clients.tls_socket(authority, small.port) as connection:
        connection.sendall(f"POST /upload HTTP/1.1\r\nhost: {A}\r\ncontent-length: 999999\r\nexpect: 100-continue\r\n\r\n".encode())
        assert connection.recv(65536).startswith(b"HTTP/1.1 413 ")


@pytest.mark.speaks("HTTP/2", "HTTP/3")
def test_whoever_hits_a_limit_costs_its_neighbours_nothing(authority, small):
    with Load(authority, small.port, clients=1, streams=2) as load:
        load.more(10)
        for version in VERSIONS:
            with clients.curl_session(authority, small.port, version) as session:
                for _ in range(5):
                    assert session.post(small.url("/upload"), data=b"x" * 200_000).status_code == 413
                    assert session.get(small.url(), headers={f"x-{number}": "1" for number in range(120)}).status_code == 431
        load.more(10)
    assert not load.lost, load.summary()
