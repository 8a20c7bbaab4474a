"""Clients that have to prove their address first: real ones do, and notice nothing; others don't get in. A flood makes it so by itself."""

import asyncio
import itertools
import os
import socket
import threading
import time
from contextlib import closing
from typing import Self

import pytest
from harness.byhand import ByHand
from harness.clients import curl_session, niquests_session
from harness.content import MIB, digest
from harness.http3 import http3
from harness.raw3 import initial

from balancer.affinity import connection_key
from proxy.engine.quic.retry import Tokens
from proxy.keys import Keyring

pytestmark = [pytest.mark.speaks("HTTP/3"), pytest.mark.workers(2)]
HOST = "a.example.com"
INVALID_TOKEN = 0xB  # RFC 9000, section 20.1
HANDSHAKES = 60  # so that Retry begins by itself at 15
SOURCES = 40
RATE = 1000  # spoofed packets a second


def found(proxy, result):
    """Tokens that were found to be so."""
    return proxy.metrics().get(f'qproxy_quic_retry_tokens_total{{result="{result}"}}', 0)


def secret(proxy):
    return (proxy.folder / "state" / "secret").read_bytes()


@pytest.fixture
def asking(start_proxy):
    return start_proxy(server={"quic": {"retry": "always"}})


# Real clients


async def test_a_client_is_served_and_keeps_its_backend(asking, authority):
    for number in range(3):
        async with http3(authority, asking.port) as client:
            answers = [await client.get("/headers", host=HOST) for _ in range(4)]
            told = await client.get("/hello", host=HOST)
            download = await client.get(f"/bytes/{MIB}", host=HOST, keep=False)
            original = client._quic.original_destination_connection_id
            assert client._quic._retry_count == 1
        assert {answer.status for answer in answers} == {200}
        assert len({answer.headers["x-backend"] for answer in answers}) == 1
        assert download.sha256 == digest(MIB)
        assert told.headers["x-affinity-key"] == connection_key(secret(asking), original).hex()
        assert (asking.metric("qproxy_quic_retries_total"), found(asking, "valid")) == (number + 1, number + 1)
    assert asking.metric("qproxy_quic_retry") == 1


def chrome_session(authority, port):
    """Its hello has a post-quantum key share, and takes two datagrams."""
    return curl_session(authority, port, impersonate="chrome")


@pytest.mark.parametrize("session", [curl_session, chrome_session, niquests_session], ids=["ngtcp2", "ngtcp2 as Chrome", "qh3"])
def test_independent_clients_are_served(asking, authority, session):
    with session(authority, asking.port) as client:
        for _ in range(3):
            assert client.get(asking.url("/hello")).status_code == 200
    assert asking.metric("qproxy_quic_retries_total") >= 1
    assert found(asking, "valid") == asking.metric("http3_connections_total") == 1


async def test_without_it_nobody_is_asked(start_proxy, authority):
    proxy = start_proxy(server={"quic": {"retry": "never"}})
    async with http3(authority, proxy.port) as client:
        assert (await client.get("/hello", host=HOST)).status == 200
        assert client._quic._retry_count == 0
    assert (proxy.metric("qproxy_quic_retry"), proxy.metric("qproxy_quic_retries_total")) == (0, 0)


# Tokens


def test_a_token_holds_for_the_port_that_it_was_given_to(asking, authority):
    with closing(ByHand(authority)) as client:
        client.run(asking.port, lambda client: client.retried)
        client.via.close()
        client.via = client.another_socket()
        client.run(asking.port, lambda client: client.ended is not None)
        assert client.ended == INVALID_TOKEN
    assert found(asking, "other_address") >= 1
    assert asking.metric("qproxy_quic_handshakes") == 0


def test_a_token_holds_for_a_short_time(asking, authority):
    source = os.urandom(8)
    for age, result in ((60, "expired"), (0, "valid")):
        with closing(ByHand(authority)) as unused:
            via = unused.via
            token = Tokens(Keyring.alone(secret(asking)), os.urandom).seal(via.getsockname(), b"original", source, time.time() - age)
            client = ByHand(authority, token=token, to=source)
            client.via.close()
            client.via = via
            client.run(asking.port, lambda client: client.ended is not None)
            assert (client.ended == INVALID_TOKEN) == (result == "expired")  # else: it saw no Retry, and dislikes what it hears of one
        assert found(asking, result) >= 1


def test_a_token_is_taken_by_another_process_with_the_same_secret(asking, start_proxy, authority):
    other = start_proxy(server={"state": str(asking.folder / "state"), "quic": {"retry": "always"}})
    with closing(ByHand(authority)) as client:
        client.run(asking.port, lambda client: client.retried)
        answer = client.get(other.port, "/hello")
    assert answer.status == 200
    assert answer.headers["x-affinity-key"] == connection_key(secret(asking), client.quic.original_destination_connection_id).hex()
    assert (found(asking, "valid"), found(other, "valid")) == (0, 1)
    assert (asking.metric("qproxy_quic_retries_total"), other.metric("qproxy_quic_retries_total")) == (1, 0)


def test_a_stranger_s_token_is_refused(asking, start_proxy, authority):
    other = start_proxy(server={"quic": {"retry": "always"}})
    with closing(ByHand(authority)) as client:
        client.run(asking.port, lambda client: client.retried)
        client.run(other.port, lambda client: client.ended is not None)
        assert client.ended == INVALID_TOKEN
    assert found(other, "forged") >= 1


# Floods


class Flood:
    """Clients that say hello and never answer, from many networks."""

    def __init__(self, authority, port: int) -> None:
        self._sockets = []
        for number in range(SOURCES):
            udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            udp.bind((f"127.77.{number}.1", 0))
            udp.connect(("127.0.0.1", port))
            self._sockets.append(udp)
        self._hellos = [initial(authority) for _ in range(5 * SOURCES)]
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.sent = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(10)
        assert not self._thread.is_alive()
        for udp in self._sockets:
            udp.close()

    def _run(self) -> None:
        for hello, udp in zip(itertools.cycle(self._hellos), itertools.cycle(self._sockets), strict=False):
            udp.send(hello)
            self.sent += 1
            if self.sent % 10 == 0 and self._over.wait(10 / RATE):
                return


async def test_under_a_flood_of_hellos_honest_clients_get_in_and_later_nobody_is_asked(start_proxy, authority):
    proxy = start_proxy(server={"workers": 1, "quic": {"handshakes": HANDSHAKES}, "timeouts": {"handshake": "2s"}})
    async with http3(authority, proxy.port) as client:
        assert (await client.get("/hello", host=HOST)).status == 200
        assert client._quic._retry_count == 0
    with Flood(authority, proxy.port) as flood:
        await asyncio.to_thread(proxy.wait_for, lambda: proxy.metric("qproxy_quic_retry") == 1, "asked for Retry")
        for _ in range(5):
            async with http3(authority, proxy.port) as client:
                assert (await client.get("/hello", host=HOST)).status == 200
                assert client._quic._retry_count == 1
            assert await asyncio.to_thread(proxy.metric, "qproxy_quic_handshakes") <= HANDSHAKES / 4 + 1
        with curl_session(authority, proxy.port) as session:
            assert (await asyncio.to_thread(session.get, proxy.url("/hello"))).status_code == 200
        assert await asyncio.to_thread(proxy.metric, "qproxy_quic_retry") == 1
    assert flood.sent > 500
    assert found(proxy, "valid") == 6
    assert proxy.metrics()['qproxy_limits_hit_total{limit="handshakes"}'] == 0
    proxy.wait_for(lambda: "need not prove their address any more" in proxy.logs(), "was done with Retry")
    assert proxy.logs().count("have to prove their address") == 1
    assert proxy.metric("qproxy_quic_retry") == 0
    async with http3(authority, proxy.port) as client:
        assert (await client.get("/hello", host=HOST)).status == 200
        assert client._quic._retry_count == 0


def test_handshakes_of_one_network_leave_room_for_others(start_proxy, authority):
    proxy = start_proxy(server={"workers": 1, "quic": {"retry": "never", "handshakes_per_network": 5}})
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.bind(("127.77.0.1", 0))
        for _ in range(20):
            udp.sendto(initial(authority), ("127.0.0.1", proxy.port))
        proxy.wait_for(lambda: proxy.metrics()['qproxy_limits_hit_total{limit="handshakes_per_network"}'] == 15, "dropped them")
        assert proxy.metric("qproxy_quic_handshakes") == 5
        with curl_session(authority, proxy.port) as session:
            assert session.get(proxy.url("/hello")).status_code == 200
