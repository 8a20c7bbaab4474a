"""Clients whose address changes in mid-transfer keep their connection: through the tier, and behind one that knows 4-tuples only."""

import asyncio
import json

import pytest
from containers.fleet import wait_for
from harness.clients import Gtlsclient
from harness.content import MIB, content, digest
from harness.http3 import http3
from harness.relay import Relay

pytestmark = [pytest.mark.speaks("HTTP/3"), pytest.mark.timeout(240)]
HOST = "a.example.com"
SIZE = 24 * MIB
BEGUN = 500
"""Datagrams both ways, by which a transfer has begun and is far from its end."""


class Nat(Relay):
    """Gives ports of which each leads to another instance than the one before, where that is all the balancer goes by."""

    def __init__(self, front):
        super().__init__(front.port)
        self._front = front
        self.led = []

    def _open(self):
        while True:
            outside = super()._open()
            instance = self._front.deals(outside.getsockname())
            if instance is None or self.led[-1:] != [instance]:
                self.led.append(instance)
                return outside
            outside.close()


def counted(three, name):
    return sum(three.metric(instance, name) for instance in three.instances)


def moved(three):
    return sum(counted(three, f'qproxy_quic_path_changes_total{{kind="{kind}"}}') for kind in ("rebinding", "migration"))


def forwarded(three):
    return counted(three, 'qproxy_misrouted_datagrams_total{result="forwarded"}')


async def test_aioquic_behind_a_nat_that_changes_its_port(authority, three, front):
    with Nat(front) as nat:
        async with http3(authority, nat.port, asks=True) as client:
            home = (await client.get("/hello", host=HOST)).headers["x-instance"]
            stream = client.open(f"/bytes/{SIZE}", host=HOST, keep=False)
            moves = 0
            while await client.size(stream) < SIZE // 2 or nat.led[-1] == nat.led[0] is not None:
                if await client.size(stream) > moves * MIB * 3:
                    nat.rebind()
                    moves += 1
                await asyncio.sleep(0.02)  # how much has come gives no event
            answer = await client.answer(stream, 120)
            assert (answer.status, answer.sha256, moves > 0) == (200, digest(SIZE), True)
            assert (await client.get("/hello", host=HOST)).headers["x-instance"] == home
            assert client.terminated is None


@pytest.mark.parametrize("knows", ["by itself", "behind a NAT"])
def test_ngtcp2_uploads_on_while_its_address_changes(three, front, tmp_path, knows):
    """By itself: it has another socket, and names its connection by another ID there. Behind a NAT it does not know."""
    sent = tmp_path / "sent"
    sent.write_bytes(b"".join(content(SIZE, 9)))
    moves, sent_on = moved(three), forwarded(three)
    with Nat(front) as nat:
        options = ["--http-method=POST", f"--data={sent}", *(["--change-local-addr=300ms"] if knows == "by itself" else [])]
        with Gtlsclient(tmp_path, f"https://localhost:{front.port}/upload", *options, port=nat.port) as client:
            if knows == "behind a NAT":
                wait_for(lambda: nat.passed > BEGUN, "was in mid-transfer")
                nat.rebind()
            assert json.loads(client.body()) == {"sha256": digest(SIZE, 9), "size": SIZE}
    assert len(nat.led) == 2
    assert moved(three) == moves + 1
    assert (forwarded(three) > sent_on) == (front.deals(("", 0)) is not None)


def test_ngtcp2_downloads_on_while_its_address_changes(three, front, tmp_path):
    moves = moved(three)
    with Nat(front) as nat:
        url = f"https://localhost:{front.port}/bytes/{SIZE}"
        with Gtlsclient(tmp_path, url, "--change-local-addr=300ms", port=nat.port) as client:
            assert client.body() == b"".join(content(SIZE))
    assert len(nat.led) == 2
    assert moved(three) == moves + 1
