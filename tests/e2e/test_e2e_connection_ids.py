"""What a client sees of connection IDs: the server's name for a balancer in front, and after a crash that their connection is gone."""

import time

import pytest
from curl_cffi.requests import exceptions
from harness.clients import curl_session
from harness.content import MIB, digest
from harness.http3 import http3
from harness.relay import Relay

from balancer.quic_lb import Codec, Layout

pytestmark = pytest.mark.speaks("HTTP/3")
HOST = "a.example.com"
KEY = "8f95f09245765f80256934e50c66207f"
FORMS = {
    "AWS": ({"server_id": "base64:ABEiM0RVZnc=", "nonce": 10, "slot": True}, Layout(0, 8, 10, slot=True)),
    "encrypted": ({"server_id": "0x0011223344556677", "config": 2, "key": KEY}, Layout(2, 8, 8, key=bytes.fromhex(KEY))),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
async def test_every_connection_id_names_the_server_also_after_a_change_of_address(authority, start_proxy, form):
    connection_ids, layout = form
    proxy = start_proxy(server={"quic": {"connection_ids": connection_ids}})
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
