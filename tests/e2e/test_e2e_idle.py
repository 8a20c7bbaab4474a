"""How long connections live: PINGs keep silent clients that wait for an answer; an age ends connections, and no request with them."""

import asyncio

import pytest
from harness import clients
from harness.http3 import http3
from harness.load import Load, Polite

HOST = "a.example.com"
SHORT = {"idle_timeout": "2s"}


@pytest.mark.speaks("HTTP/3")
async def test_a_client_that_waits_longer_than_the_idle_timeout_is_kept_by_pings(authority, start_proxy):
    proxy = start_proxy(server={"quic": SHORT | {"keep_alive": {"interval": "1s"}}})
    async with http3(authority, proxy.port) as client:
        assert (await client.get("/slow?seconds=5", host=HOST)).status == 200
        await asyncio.wait_for(client.wait_closed(), 20)  # nothing is in progress now
        assert client.terminated.reason_phrase == "Idle timeout" or client.terminated.error_code in (0, 0x100)


@pytest.mark.speaks("HTTP/3")
async def test_without_pings_it_is_not(authority, start_proxy):
    proxy = start_proxy(server={"quic": SHORT})
    async with http3(authority, proxy.port) as client:
        with pytest.raises(ConnectionError):
            await client.get("/slow?seconds=5", host=HOST)


@pytest.mark.parametrize("version", clients.VERSIONS)
def test_connections_end_by_their_age_and_no_request_is_lost(authority, start_proxy, version):
    proxy = start_proxy(server={"timeouts": {"connection_age": "1s"}})
    aged = f'qproxy_connections_aged_total{{version="{version}"}}'
    with Load(authority, proxy.port, versions=[version], clients=4, streams=2) as load:
        load.more(50)
        proxy.wait_for(lambda: proxy.metrics().get(aged, 0) >= 8, "has ended eight connections by their age", 30)
        load.more(50)
    assert not load.lost, load.summary()
    assert not proxy.metrics().get(f'qproxy_connection_errors_total{{version="{version}"}}')


@pytest.mark.speaks("HTTP/3")
async def test_an_old_http3_connection_hears_goaway_and_closes_without_an_error(authority, start_proxy):
    proxy = start_proxy(server={"timeouts": {"connection_age": "1s"}})
    async with http3(authority, proxy.port, protocol=Polite) as client:
        assert (await client.get("/slow?seconds=3", host=HOST)).status == 200
        await asyncio.wait_for(client.wait_closed(), 20)
        assert client.http.leaving
        assert client.terminated.error_code == 0x100  # H3_NO_ERROR
