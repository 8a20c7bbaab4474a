"""Several instances behind a balancer that knows only addresses and ports: a client that changes its own keeps its connection.

Each instance is a proxy with an address of its own; the balancer leads each address and port of a client to one of them, by a hash.
"""

import asyncio
import base64
import json
import random
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import pytest
from harness.bulk import Curled
from harness.content import MIB, digest
from harness.dns import Nameserver
from harness.http3 import http3
from harness.load import Polite
from harness.ports import free_port
from harness.proxy import Proxy
from harness.relay import Balancer

from balancer.quic_lb import Codec, Layout
from proxy.cluster.envelope import ANSWER, DATAGRAM, HELLO, Sealer, packed
from proxy.cluster.peers import ASK_EVERY, IN_VAIN, UNANSWERED
from proxy.keys import Keyring, Purpose, parse

pytestmark = pytest.mark.speaks("HTTP/3")

HOST = "a.example.com"
FILE = f"0 2020-01-01T00:00:00Z {base64.b64encode(bytes(range(32))).decode()}"
FORWARDED = 'qproxy_misrouted_datagrams_total{result="forwarded"}'
PASSED_ON = 'qproxy_misrouted_datagrams_total{result="passed_on"}'
ARRIVED = 'qproxy_datagrams_total{direction="in"}'
REFUSED = "qproxy_envelopes_refused_total"


@dataclass
class Cluster:
    """Instances that know each other: those of ``peers``, else of a list of ``count``."""

    make: Callable[..., Proxy]
    server: dict[str, Any]
    count: int
    clients: int = field(default_factory=free_port)
    """The UDP port for clients, at each one's own address."""
    envelopes: int = field(default_factory=free_port)
    instances: list[Proxy] = field(default_factory=list)

    def address(self, number: int) -> tuple[str, int]:
        return host_of(number), self.clients

    @property
    def addresses(self) -> list[tuple[str, int]]:
        return [self.address(number) for number in range(len(self.instances))]

    def at(self, address: tuple[str, int]) -> Proxy:
        return self.instances[self.addresses.index(address)]

    def add(self, name: str = "") -> Proxy:
        """One more, whose peers are those of *name*."""
        number = len(self.instances)
        peers = [name] if name else [host_of(other) for other in range(self.count)]
        proxy = self.make(
            server={
                **self.server,
                "cluster": {
                    "key": FILE,
                    "address": f"{host_of(number)}:{self.envelopes}",
                    "peers": [f"{host}:{self.envelopes}" for host in peers],
                },
                "quic": {"connection_ids": {"server_id": f"{number + 1:08x}", "slot": "on"}},
            }
        )
        proxy.server["listeners"] = [
            {"address": f"127.0.0.1:{proxy.port}", "protocols": ["http/1.1", "h2"]},
            {"address": f"{host_of(number)}:{self.clients}", "protocols": ["h3"]},
        ]
        proxy.write()
        self.instances.append(proxy)
        return proxy.start()

    def knows(self, proxy: Proxy, state: str = "") -> int:
        """How many others it sees in *state*, or in any."""
        found = {name for name, value in proxy.metrics().items() if name.startswith("qproxy_peers{") and value}
        return len([name for name in found if f'state="{state}' in name])

    def acquainted(self, count: int) -> None:
        """Wait until each knows so many others that are ready, and nobody else."""
        for proxy in self.instances:
            proxy.wait_for(lambda proxy=proxy: self.knows(proxy, "ready") == self.knows(proxy) == count, f"knows {count} others")


def host_of(number: int) -> str:
    return f"127.0.9.{number + 1}"


@pytest.fixture
def cluster(make_proxy: Callable[..., Proxy]) -> Iterator[Callable[..., Cluster]]:
    """Instances that know each other, until the end of the test; those of *name*, where one is given."""
    made: list[Cluster] = []

    def start(count: int = 3, *, name: str = "", **server: object) -> Cluster:
        found = Cluster(make_proxy, server, count)
        made.append(found)
        for _ in range(count):
            found.add(name)
        found.acquainted(count - 1)
        return found

    yield start
    for each in made:
        for proxy in each.instances:
            proxy.close()


@pytest.mark.parametrize("workers", [1, 2])
def test_curl_s_address_changes_and_its_download_goes_on_at_its_instance(authority, cluster, workers):
    """Twice: to a second instance, and then to another one or back; with a port more each time, and another address the second time."""
    instances = cluster(workers=workers)
    size = 6 * MIB
    with (
        Balancer(instances.addresses) as balancer,
        closing(Curled(authority, instances.instances[0], "HTTP/3", port=balancer.port)) as client,
    ):
        assert client.download("/bytes/1000").size == 1000
        home = instances.at(balancer.leads_to())
        elsewhere = []

        def move(host: str | None = None) -> None:
            balancer.move_elsewhere(host)
            elsewhere.append(balancer.leads_to())

        for count, host in enumerate((None, "127.0.0.77"), 1):
            moved = client.download(f"/bytes/{size}", at={2 * MIB: lambda host=host: move(host)})
            assert (moved.status, moved.size, moved.sha256) == (200, size, digest(size))
            # A second change before the first one is validated would be one change.
            home.wait_for(lambda count=count: home.logs().count('"path changed"') == count, "validated the path")
        assert client.download("/bytes/1001").size == 1001
    first = instances.at(elsewhere[0])
    assert first is not home
    assert first.metrics()[FORWARDED] > 10
    assert first.metrics()[PASSED_ON] > 100
    home.wait_for(lambda: '"/bytes/1001"' in home.logs(), "logged the request after that")
    [line] = [json.loads(line) for line in home.logs().splitlines() if '"/bytes/1001"' in line]
    assert line["client_address"] == "127.0.0.77"
    for other in instances.instances:
        assert f'"/bytes/{size}"' not in other.logs() or other is home
        assert other.metric("qproxy_quic_stateless_resets_total") == 0
        refused = {name for name, value in other.metrics().items() if name.startswith(REFUSED) and value}
        assert refused <= {f'{REFUSED}{{reason="unasked"}}'}, "an answer that came before the kernel knew the worker that had asked"


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_client_of_aioquic_keeps_its_connection_wherever_its_datagrams_come_to(authority, cluster, workers):
    instances = cluster(workers=workers)
    size = 4 * MIB
    with Balancer(instances.addresses) as balancer:
        async with http3(authority, balancer.port, asks=True) as client:
            key = (await client.get("/hello", host=HOST)).headers["x-affinity-key"]
            home = instances.at(balancer.leads_to())
            stream = client.open(f"/bytes/{size}", host=HOST)
            for part in (1, 2, 3):
                while client.streams[stream].answer.size < part * size // 5:
                    client.streams[stream].changed.clear()
                    await asyncio.wait_for(client.streams[stream].changed.wait(), 20)
                await asyncio.to_thread(balancer.move_elsewhere)
            answer = await client.answer(stream)
            after = await client.get("/hello", host=HOST)
    assert (answer.status, answer.size, answer.sha256) == (200, size, digest(size))
    assert after.headers["x-affinity-key"] == key
    assert sum(instance.metrics()[FORWARDED] for instance in instances.instances) > 10
    assert home.metrics().get(FORWARDED, 0) == 0
    assert all(instance.metric("qproxy_quic_stateless_resets_total") == 0 for instance in instances.instances)


def test_instances_join_and_leave_by_dns_alone(authority, cluster):
    """The one that leaves has left its name before it ends, as where only who is ready has a name: nobody takes it for gone meanwhile.

    Nor does who comes after that, and has never heard of it by the name.
    """
    name, size = "instances.internal", 8 * MIB
    with Nameserver() as nameserver:
        nameserver.zone[name] = {"A": [host_of(0), host_of(1)]}
        instances = cluster(2, name=name, dns={"nameservers": [nameserver.address]}, timeouts={"drain": "60s"})
        third = instances.add(name)
        nameserver.zone[name] = {"A": [host_of(0), host_of(1), host_of(2)]}
        instances.acquainted(2)
        others = instances.instances[:2]

        def leave() -> None:
            nameserver.zone[name] = {"A": [host_of(0), host_of(1)]}
            before = nameserver.count(name)
            third.wait_for(lambda: nameserver.count(name) >= before + 6, "and the others have asked for the name")
            third.process.terminate()
            for proxy in others:
                proxy.wait_for(lambda proxy=proxy: instances.knows(proxy, "draining") == 1, "knows that one drains")

        def join() -> None:
            nameserver.zone[name] = {"A": [host_of(0), host_of(1), host_of(3)]}
            fourth = instances.add(name)
            others.append(fourth)
            fourth.wait_for(lambda: instances.knows(fourth, "draining") == 1, "knows that one drains")
            balancer.spread(instances.addresses[3:])
            balancer.move_elsewhere()

        with (
            Balancer(instances.addresses[2:]) as balancer,
            closing(Curled(authority, third, "HTTP/3", port=balancer.port)) as client,
        ):
            assert client.download("/bytes/1000").size == 1000
            balancer.spread(instances.addresses[:2])
            at = {MIB: balancer.move_elsewhere, 3 * MIB: leave, 5 * MIB: balancer.move_elsewhere, 6 * MIB: join}
            moved = client.download(f"/bytes/{size}", at=at)
        assert (moved.status, moved.size, moved.sha256) == (200, size, digest(size))
        assert third.wait() == 0
        assert f'"/bytes/{size}"' in third.logs()
        instances.instances.remove(third)
        assert all(proxy.metrics()[FORWARDED] > 10 for proxy in others)
        assert all(proxy.metric("qproxy_quic_stateless_resets_total") == 0 for proxy in others)
        instances.acquainted(2)
        assert all(proxy.metric("qproxy_config_generation") == 1 for proxy in others)


async def test_a_client_whose_instance_is_gone_hears_so_from_whoever_it_comes_to(authority, cluster):
    instances = cluster()
    with Balancer(instances.addresses) as balancer:
        async with http3(authority, balancer.port, protocol=Polite) as client:
            await client.get("/hello", host=HOST)
            home = instances.at(balancer.leads_to())
            home.crash()
            await asyncio.to_thread(balancer.move_elsewhere)
            other = instances.at(balancer.leads_to())
            await asyncio.to_thread(other.wait_for, lambda: instances.knows(other, "dead") == 1, "knows that one is gone")
            assert client.terminated is None
            began = time.monotonic()
            client._quic.send_ping(1)
            client.transmit()
            while client.terminated is None:
                assert time.monotonic() < began + 2 + IN_VAIN * ASK_EVERY
                await asyncio.sleep(0.01)
            assert client.terminated.reason_phrase == "stateless reset"
    assert other.metric("qproxy_quic_stateless_resets_total") >= 1


@pytest.mark.parametrize("workers", [1, 2])
async def test_an_instance_that_was_stopped_takes_nobody_for_dead(authority, cluster, workers):
    """Datagrams of a connection elsewhere wait in its socket meanwhile, for longer than any instance may be silent."""
    instances = cluster(2, workers=workers)
    with Balancer(instances.addresses) as balancer:
        async with http3(authority, balancer.port, protocol=Polite) as client:
            key = (await client.get("/hello", host=HOST)).headers["x-affinity-key"]
            home = instances.at(balancer.leads_to())
            [other] = [proxy for proxy in instances.instances if proxy is not home]
            with other.stopped():
                began = time.monotonic()
                await asyncio.to_thread(balancer.move_elsewhere)
                passed = balancer.passed
                client._quic.send_ping(1)
                client.transmit()
                await asyncio.to_thread(home.wait_for, lambda: balancer.passed > passed, "was not asked")
                await asyncio.to_thread(home.wait_for, lambda: instances.knows(home, "dead") == 1, "knows that one is silent")
                long_enough = began + UNANSWERED * ASK_EVERY + 1
                await asyncio.to_thread(home.wait_for, lambda: time.monotonic() > long_enough, "waited")
            answer = await client.get("/hello", host=HOST)
    assert (answer.status, answer.headers["x-affinity-key"]) == (200, key)
    assert other.metrics()[FORWARDED] > 0
    assert all(proxy.metric("qproxy_quic_stateless_resets_total") == 0 for proxy in instances.instances)


async def test_who_was_silent_is_asked_once_more_before_its_clients_are_told(authority, cluster):
    """It may be back, or whoever takes it for dead was off the network itself."""
    instances = cluster(2)
    with Balancer(instances.addresses) as balancer:
        async with http3(authority, balancer.port, protocol=Polite) as client:
            key = (await client.get("/hello", host=HOST)).headers["x-affinity-key"]
            home = instances.at(balancer.leads_to())
            [other] = [proxy for proxy in instances.instances if proxy is not home]
            with home.stopped():
                await asyncio.to_thread(other.wait_for, lambda: instances.knows(other, "dead") == 1, "knows that one is silent")
                await asyncio.to_thread(balancer.move_elsewhere)
                asked = other.metrics()[ARRIVED]
                client._quic.send_ping(1)
                client.transmit()
                await asyncio.to_thread(other.wait_for, lambda: other.metrics()[ARRIVED] > asked, "had the client's datagram")
            answer = await client.get("/hello", host=HOST)
    assert (answer.status, answer.headers["x-affinity-key"]) == (200, key)
    assert all(proxy.metric("qproxy_quic_stateless_resets_total") == 0 for proxy in instances.instances)


def test_what_attacks_the_port_of_envelopes_is_counted_and_does_nothing(authority, cluster):
    instances = cluster(2)
    victim, other = instances.instances
    keys = Keyring(parse(FILE, "keys"), b"")
    sealer = Sealer(0, keys.derive(Purpose.ENVELOPE, 0), lambda size: bytes([7]) * size)
    strange = Sealer(0, bytes(32), bytes)
    now, client = time.time(), packed(("192.0.2.9", 4433))
    good = sealer.seal(HELLO, bytes(10), now)
    of_other = b"\x41" + Codec(Layout(0, 4, 8, slot=True, key=keys.cid_key(0))).encode(b"\0\0\0\2", bytes(8)) + bytes(60)

    def sealed(kind: int, payload: bytes, at: float = now, **more: Any) -> bytes:
        return sealer.seal(kind, payload, at, client=client, **{"port": instances.clients, **more})

    attacks = {
        "short": [b"", b"x", good[:50], bytes(95)],
        "version": [b"\x09" + good[1:]],
        "epoch": [b"\x01\x05" + good[2:]],
        "forged": [good[:-1] + b"x", strange.seal(DATAGRAM, b"x" * 1200, now), b"\x01\x00" + bytes(60_000)],
        "replayed": [good, good, good],  # the first is none
        "stale": [sealed(DATAGRAM, of_other, now - 60), sealed(DATAGRAM, of_other, now + 60)],
        "malformed": [sealed(9, b"x"), sealed(DATAGRAM, b""), sealed(HELLO, b"x")],
        "listener": [sealed(DATAGRAM, of_other, port=1), sealed(ANSWER, of_other, local=packed(("192.0.2.1", 1)))],
        "unasked": [sealed(HELLO, (1).to_bytes(8) + bytes(2))],
        "looped": [sealed(DATAGRAM, of_other), sealed(DATAGRAM, b"\xe0\0\0\0\1\x0e" + of_other[1:])],
    }
    expected = {reason: len(datagrams) for reason, datagrams in attacks.items()} | {"replayed": 2}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for datagrams in attacks.values():
            for datagram in datagrams:
                sock.sendto(datagram, (host_of(0), instances.envelopes))
        for _ in range(100):  # garbage from nobody, and what one of us said, to all of them
            sock.sendto(random.Random(1).randbytes(1300), (host_of(1), instances.envelopes))

    def counted() -> dict[str, float]:
        found = victim.metrics()
        refused = {reason: found.get(f'{REFUSED}{{reason="{reason}"}}', 0.0) for reason in expected}
        return refused | {"looped": found['qproxy_misrouted_datagrams_total{result="looped"}']}

    victim.wait_for(lambda: counted() == expected, f"counted {expected}")
    other.wait_for(lambda: other.metric(REFUSED) == 100, "counted the garbage")
    with Balancer(instances.addresses[:1]) as balancer, closing(Curled(authority, victim, "HTTP/3", port=balancer.port)) as asks:
        answer = asks.download(f"/bytes/{MIB}")
    assert (answer.status, answer.sha256) == (200, digest(MIB))
    for instance in instances.instances:
        assert instance.metrics().get(FORWARDED, 0) == 0
        assert instances.knows(instance, "ready") == 1
        clients = sum(
            value for name, value in instance.metrics().items() if name.startswith("qproxy_connections_total") and "HTTP/3" in name
        )
        assert clients == (instance is victim)
