"""Who stands in the network between tier and instances: what he copies, forges, swells or sends astray is counted, and does nothing."""

import asyncio
import socket
import struct

import pytest
from containers.fleet import wait_for
from harness.content import MIB, digest
from harness.http3 import http3

pytestmark = [pytest.mark.speaks("HTTP/3"), pytest.mark.timeout(240)]
HOST = "a.example.com"
SIZE = 16 * MIB
ENVELOPES = 8444
COPIED = 200
"""Envelopes that are taken out of the network; each comes again in six ways."""

ETH_P_ALL = 3
WHOLE = 1472
"""Bytes of what is one datagram for sure, and not several that the kernel has yet to cut apart."""


class Eavesdropper:
    """Hears what goes from the tier to instances, and sends at once what could be made of it."""

    def __init__(self, hosts):
        self._hosts = hosts
        self._loop = asyncio.get_running_loop()
        self._hears = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_ALL))
        self._hears.setblocking(False)
        self._sends = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.copied = {}
        """Who was meant, by envelope."""

    def __enter__(self):
        self._loop.add_reader(self._hears, self._heard)
        return self

    def __exit__(self, *_):
        self._loop.remove_reader(self._hears)
        self._hears.close()
        self._sends.close()

    def _heard(self):
        for _ in range(100):
            try:
                packet = self._hears.recv(65536)
            except BlockingIOError:
                return
            found = _envelope(packet)
            if found is not None and len(self.copied) < COPIED and found[1] not in self.copied:
                self._attack(*found)

    def _attack(self, host, envelope):
        self.copied[envelope] = host
        forged = envelope[:-1] + bytes([envelope[-1] ^ 1])
        for one in (envelope, envelope, forged, envelope[:60], envelope + bytes(60_000)):
            self._sends.sendto(one, (host, ENVELOPES))
        for other in self._hosts:
            if other != host:
                self._sends.sendto(envelope, (other, ENVELOPES))


def _envelope(packet):
    """To whom, and what: of an IPv4 packet that is the whole of a UDP datagram to the port of envelopes."""
    if len(packet) < 28 or packet[0] >> 4 != 4 or packet[9] != socket.IPPROTO_UDP or struct.unpack_from("!H", packet, 6)[0] & 0x3FFF:
        return None
    head = 4 * (packet[0] & 15)
    port, size = struct.unpack_from("!HH", packet, head + 2)
    payload = packet[head + 8 : head + size]
    if port != ENVELOPES or not 96 < len(payload) <= WHOLE:
        return None
    return socket.inet_ntoa(packet[16:20]), payload


@pytest.mark.parametrize("front", ["tier"], indirect=True)
async def test_what_an_eavesdropper_makes_of_envelopes_is_counted_and_does_nothing(authority, three, front):
    hosts = [instance.address for instance in three.instances]

    def refused(reason):
        return [three.metric(instance, f'qproxy_envelopes_refused_total{{reason="{reason}"}}', 0.0) for instance in three.instances]

    def looped():
        return [three.metric(instance, 'qproxy_misrouted_datagrams_total{result="looped"}') for instance in three.instances]

    def connections():
        return sum(three.metric(instance, "http3_connections_total") for instance in three.instances)

    before = {reason: sum(refused(reason)) for reason in ("replayed", "forged", "short")}
    looped_before = sum(looped())
    async with http3(authority, front.way.port, asks=True) as client:
        home = (await client.get("/hello", host=HOST)).headers["x-instance"]
        began = connections()
        with Eavesdropper(hosts) as eavesdropper:
            stream = client.open(f"/bytes/{SIZE}", host=HOST, keep=False)
            answer = await client.answer(stream, 120)
            assert (answer.status, answer.sha256) == (200, digest(SIZE))
            assert len(eavesdropper.copied) > COPIED // 2
            copied = [host for host in eavesdropper.copied.values() if host == three.instance(home).address]
        assert len(copied) > COPIED // 4
        assert (await client.get("/hello", host=HOST)).headers["x-instance"] == home
        assert client.terminated is None
        assert connections() == began
    # A few of so many may find a full buffer.
    wait_for(lambda: sum(refused("replayed")) - before["replayed"] > len(copied), "refused copies", 10)
    wait_for(lambda: sum(refused("forged")) - before["forged"] > len(copied), "refused what was changed, and what is too large", 10)
    wait_for(lambda: sum(refused("short")) - before["short"] > len(copied) // 2, "refused what was cut off", 10)
    wait_for(lambda: sum(looped()) - looped_before > len(copied), "counted what came to another instance, and sent it nowhere", 10)
