"""Traces of QUIC connections: a named client's connection has its file, in which its requests' packets are; others have none."""

import json
import stat

import pytest
from harness.http3 import http3

pytestmark = pytest.mark.speaks("HTTP/3")
HOST = "a.example.com"


def traces(proxy):
    return sorted((proxy.config / "traces").glob("*.sqlog"))


async def test_a_named_client_s_connection_is_traced(authority, start_proxy):
    proxy = start_proxy(server={"quic": {"qlog": {"folder": "traces", "clients": ["127.0.0.1"]}}})
    async with http3(authority, proxy.port) as client:
        assert (await client.get("/bytes/100000", host=HOST)).size == 100_000
        original = client._quic.original_destination_connection_id.hex()
    proxy.wait_for(lambda: proxy.metrics()['qproxy_connections_open{version="HTTP/3"}'] == 0, "has closed the connection")
    assert proxy.terminate() == 0
    (file,) = traces(proxy)
    assert original in file.name
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    head, *events = [json.loads(record) for record in file.read_bytes().split(b"\x1e")[1:]]
    assert head["trace"]["vantage_point"]["type"] == "server"
    frames = [frame for event in events if event["name"].endswith(":packet_sent") for frame in event["data"]["frames"]]
    assert sum(frame["frame_type"] == "stream" for frame in frames) >= 5
    assert "/bytes/100000" not in file.read_text()


async def test_others_are_not(authority, start_proxy):
    proxy = start_proxy(server={"quic": {"qlog": {"folder": "traces", "clients": ["192.0.2.0/24"]}}})
    async with http3(authority, proxy.port) as client:
        assert (await client.get("/hello", host=HOST)).status == 200
    assert proxy.metrics()["qproxy_qlog_traces_total"] == 0
    assert proxy.terminate() == 0
    assert traces(proxy) == []


async def test_a_share_of_all_of_them_is_all_of_them(authority, start_proxy):
    proxy = start_proxy(server={"quic": {"qlog": {"folder": "traces", "share": 1, "files": 3}}})
    for _ in range(5):
        async with http3(authority, proxy.port) as client:
            assert (await client.get("/hello", host=HOST)).status == 200
    assert proxy.metrics()["qproxy_qlog_traces_total"] == 5
    assert proxy.terminate() == 0
    assert len(traces(proxy)) == 3
