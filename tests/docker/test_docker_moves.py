"""A client whose address changes in mid-transfer keeps its connection: through the tier, and behind one that knows 4-tuples only."""

import asyncio

import pytest
from harness.content import MIB, digest
from harness.http3 import http3
from harness.relay import Relay

pytestmark = [pytest.mark.speaks("HTTP/3"), pytest.mark.timeout(240)]
HOST = "a.example.com"
SIZE = 24 * MIB


def outside(relay):
    """The address that the relay's client has now."""
    (mapping,) = relay._mappings.values()
    return mapping.outside.getsockname()


async def test_aioquic_behind_a_nat_that_changes_its_port(authority, front):
    with Relay(front.port) as relay:
        async with http3(authority, relay.port, asks=True) as client:
            home = (await client.get("/hello", host=HOST)).headers["x-instance"]
            stream = client.open(f"/bytes/{SIZE}", host=HOST, keep=False)
            at = front.way.instance_of(outside(relay))
            moves = 0
            while await client.size(stream) < SIZE // 2:
                if await client.size(stream) > moves * MIB * 3:
                    relay.rebind()
                    moves += 1
                await asyncio.sleep(0.02)  # how much has come gives no event
            for _ in range(30):  # until it came to another instance, where the balancer deals by the port
                if not front.deals or front.way.instance_of(outside(relay)) not in {at, None}:
                    break
                relay.rebind()
                client._quic.send_ping(0)
                client.transmit()
                await asyncio.sleep(0.1)  # until the balancer has seen the PING
            if front.deals:
                assert front.way.instance_of(outside(relay)) != at, "the balancer has sent it elsewhere"
            answer = await client.answer(stream, 120)
            assert (answer.status, answer.sha256, moves > 0) == (200, digest(SIZE), True)
            assert (await client.get("/hello", host=HOST)).headers["x-instance"] == home
            assert client.terminated is None
