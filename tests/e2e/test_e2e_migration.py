"""Clients by another maker (ngtcp2) that change their port or their address in the middle of a download, looked at on the way."""

import asyncio
import json

import pytest
from harness.clients import Gtlsclient
from harness.content import MIB, content, digest
from harness.relay import Relay

pytestmark = pytest.mark.speaks("HTTP/3")

ELSEWHERE = "127.0.0.2"
PIECE = 2000
WAYS = {"another port": (None, "rebinding"), "another address": (ELSEWHERE, "migration")}
CHANGES = 'qproxy_quic_path_changes_total{kind="%s"}'


class Looked:
    """What passed a relay: by the address that the client had towards the proxy, the start of the destination ID of each short packet."""

    def __init__(self, relay: Relay, host: str | None) -> None:
        self._relay, self._host = relay, host
        self.to_proxy: dict[tuple[str, int], set[bytes]] = {}
        self.to_client: dict[tuple[str, int], set[bytes]] = {}
        relay.look = self.look

    def look(self, data: bytes, outside: tuple[str, int], to_proxy: bool) -> None:
        if self._host is not None:
            self._relay.move_new(self._host)  # from the client's second address on
        way = self.to_proxy if to_proxy else self.to_client
        seen = way.setdefault(outside, set())
        if not data[0] & 0x80:
            seen.add(data[1:9])


def moved_once(proxy, kind):
    counts = {one: proxy.metrics()[CHANGES % one] for one in ("rebinding", "migration")}
    assert counts == {"rebinding": 0, "migration": 0} | {kind: 1}
    assert [json.loads(line)["kind"] for line in proxy.logs().splitlines() if '"path changed"' in line] == [kind]
    assert not [error for error in proxy.metrics() if error.startswith("qproxy_connection_errors_total")]


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
async def test_a_client_of_ngtcp2_that_moves_in_mid_download_gets_the_right_bytes(start_proxy, backends, tmp_path, way):
    """It knows that it moves: it has another connection ID of ours there, and gets one of its own (RFC 9000, section 9.5)."""
    host, kind = way
    body = b"".join(content(3 * MIB))
    proxy = start_proxy(backends=backends[:1], sites={"localhost": {}})
    name = f"move-{proxy.port}"
    given = 0

    def gives_until_it_moved():
        """Little by little: with nothing to acknowledge, the client tells nobody that it has moved."""
        nonlocal given
        backends[0].push(name, body[given : given + PIECE])
        given += PIECE
        return '"path changed"' in proxy.logs()

    with Relay(proxy.port) as relay:
        looked = Looked(relay, host)
        url = proxy.url(f"/stream/{name}", "localhost")
        with Gtlsclient(tmp_path, url, "--change-local-addr=300ms", port=relay.port) as client:
            await asyncio.to_thread(proxy.wait_for, gives_until_it_moved, "logged the change of the path", 30)
            await asyncio.to_thread(backends[0].push, name, body[given:], end=True)
            assert await asyncio.to_thread(client.body) == body
    moved_once(proxy, kind)
    old, new = looked.to_proxy  # in the order of time
    assert new[0] == (host or "127.0.0.1")
    assert not looked.to_proxy[old] & looked.to_proxy[new]
    assert not looked.to_client[old] & looked.to_client[new]


def test_a_client_of_ngtcp2_that_a_nat_moves_in_mid_upload_is_heard_to_the_end(start_proxy, tmp_path):
    """It does not know, and goes on with the connection IDs that there are."""
    size = 16 * MIB  # no relay takes that in 0.1 s
    proxy = start_proxy(sites={"localhost": {}})
    sent = tmp_path / "sent"
    sent.write_bytes(b"".join(content(size, 9)))
    with Relay(proxy.port) as relay:
        looked = Looked(relay, ELSEWHERE)
        options = ["--nat-rebinding", "--change-local-addr=100ms", "--http-method=POST", f"--data={sent}"]
        with Gtlsclient(tmp_path, proxy.url("/upload", "localhost"), *options, port=relay.port) as client:
            assert json.loads(client.body()) == {"sha256": digest(size, 9), "size": size}
    moved_once(proxy, "migration")
    _, new = looked.to_proxy
    assert new[0] == ELSEWHERE
