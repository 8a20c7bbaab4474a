"""What a client sees of connection IDs: the server's name for a balancer in front, and after a crash that their connection is gone."""

import asyncio
import time

import pytest
from curl_cffi.requests import exceptions
from harness.clients import Gtlsclient, curl_session
from harness.content import MIB, content, digest
from harness.http3 import http3
from harness.relay import Relay

from balancer.quic_lb import Codec, Layout, NotRoutable

pytestmark = pytest.mark.speaks("HTTP/3")
HOST = "a.example.com"
KEY = "8f95f09245765f80256934e50c66207f"
ENCRYPTED = {"server_id": "0x0011223344556677", "config": 2, "key": KEY}
FORMS = {
    "AWS": ({}, {"server_id": "base64:ABEiM0RVZnc=", "nonce": 10}, Layout(0, 8, 10, slot=True)),
    "encrypted": ({}, ENCRYPTED, Layout(2, 8, 8, slot=True, key=bytes.fromhex(KEY))),
    "without a slot": ({"workers": 1}, ENCRYPTED | {"slot": False}, Layout(2, 8, 8, key=bytes.fromhex(KEY))),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
async def test_every_connection_id_names_the_server_also_after_a_change_of_address(authority, start_proxy, form):
    more, connection_ids, layout = form
    proxy = start_proxy(server={"quic": {"connection_ids": connection_ids}} | more)
    seen = set()
    with Relay(proxy.port) as relay:
        for _ in range(3):
            async with http3(authority, relay.port) as client:
                before = await client.get("/hello", host=HOST)
                stream = client.open(f"/bytes/{MIB}", host=HOST, keep=False)
                relay.rebind()
                client._quic.change_connection_id()
                answer = await client.answer(stream)
                after = await client.get("/hello", host=HOST)
                seen |= {entry.cid for entry in (client._quic._peer_cid, *client._quic._peer_cid_available)}
            assert answer.sha256 == digest(MIB)
            assert before.headers["x-affinity-key"] == after.headers["x-affinity-key"]
    decoded = [Codec(layout).decode(cid) for cid in seen]
    assert len(decoded) >= 6
    assert {parts.server_id.hex() for parts in decoded} == {"0011223344556677"}
    assert len({parts.nonce for parts in decoded}) == len(decoded)
    assert {len(cid) for cid in seen} == {layout.cid_bytes}


# Config rotation

FIRST = {"server_id": "0x0011223344556677", "nonce": 10, "config": 0}
THEN = {
    "another key and length": (
        {"server_id": "0xaabb", "nonce": 6, "config": 1, "key": KEY},
        Layout(1, 2, 6, slot=True, key=bytes.fromhex(KEY)),
    ),
    "opaque": (None, None),
}
RENEWED = "qproxy_quic_connection_ids_renewed_total"
LISTENER_OLD = "qproxy_quic_connections_with_old_ids"


class Seen:
    """The destination connection IDs of what clients send behind short headers, as ``Relay.look`` sees them."""

    def __init__(self, relay):
        self.starts: list[bytes] = []
        relay.look = self.look

    def look(self, data, _outside, to_proxy):
        if to_proxy and not data[0] & 0x80:
            self.starts.append(data[1:21])


def of_first(start):
    try:
        return Codec(Layout(0, 8, 10, slot=True)).decode(start).server_id.hex() == "0011223344556677"
    except NotRoutable:
        return False


def renew(proxy, connection_ids, connections):
    """Reload with other connection IDs, and wait until every client has retired its old ones."""
    before = proxy.metrics().get(RENEWED, 0)
    proxy.server["quic"] = {"connection_ids": connection_ids} if connection_ids else {}
    proxy.write()
    proxy.reload(expect="configuration reloaded")
    proxy.wait_for(lambda: proxy.metrics().get(RENEWED, 0) == before + connections, "renewed the connection IDs", 30)
    assert sum(value for name, value in proxy.metrics().items() if name.startswith(LISTENER_OLD)) == 0


@pytest.mark.parametrize("form", THEN.values(), ids=THEN)
async def test_a_reload_renews_the_connection_ids_of_living_connections(authority, start_proxy, backends, tmp_path, form):
    """A client of aioquic and one of ngtcp2 are in the middle of a download, a third is idle."""
    connection_ids, layout = form
    body = b"".join(content(2 * MIB))
    proxy = start_proxy(
        backends=backends[:1], server={"quic": {"connection_ids": FIRST}, "log": {"level": "debug"}}, sites={"localhost": {}}
    )
    names = [f"renewal-{maker}-{'opaque' if layout is None else 'routable'}-{proxy.port}" for maker in ("aioquic", "ngtcp2")]
    with Relay(proxy.port) as relay:
        seen = Seen(relay)
        url = proxy.url(f"/stream/{names[1]}", "localhost")
        async with http3(authority, relay.port) as client, http3(authority, relay.port) as idle:
            assert (await idle.get("/hello", host=HOST)).status == 200
            stream = client.open(f"/stream/{names[0]}", host=HOST)
            with Gtlsclient(tmp_path, url, port=relay.port) as other:
                for name in names:
                    await asyncio.to_thread(backends[0].push, name, body[:MIB])
                while client.streams[stream].answer.size < MIB or not (other.file.exists() and other.file.stat().st_size >= MIB):
                    await asyncio.sleep(0.01)  # another process writes the file; bounded by the test's own limit
                assert seen.starts
                assert all(of_first(start) for start in seen.starts)
                await asyncio.to_thread(renew, proxy, connection_ids, 3)
                after = len(seen.starts)
                for name in names:
                    await asyncio.to_thread(backends[0].push, name, body[MIB:], end=True)
                answer = await client.answer(stream)
                assert await asyncio.to_thread(other.body) == body
            assert (await idle.get("/hello", host=HOST)).status == 200
    assert answer.body == body
    assert len(seen.starts) > after + 20
    if layout is not None:
        assert {Codec(layout).decode(start).server_id.hex() for start in seen.starts[after:]} == {"aabb"}
    else:
        assert not any(of_first(start) for start in seen.starts[after:])
    assert proxy.logs().count('"connection IDs renewed"') == 3
    assert "quic.connection_ids changed" in proxy.logs()
    assert proxy.metric("qproxy_quic_stateless_resets_total") == 0
    assert not [name for name in proxy.metrics() if name.startswith("qproxy_connection_errors_total")]


def test_a_client_is_served_at_once_after_a_crash(authority, start_proxy):
    proxy = start_proxy()
    with curl_session(authority, proxy.port) as session:
        assert session.get(proxy.url("/hello")).status_code == 200
        proxy.crash()
        proxy.start()
        began = time.monotonic()
        try:
            answer = session.get(proxy.url("/hello"))
        except exceptions.ConnectionError:  # the reset came while it wrote, and it leaves it to its user to ask again
            answer = session.get(proxy.url("/hello"))
        took = time.monotonic() - began
    assert answer.status_code == 200
    assert proxy.metric("qproxy_quic_stateless_resets_total") >= 1
    assert took < 10  # without the reset: curl's idle timeout
