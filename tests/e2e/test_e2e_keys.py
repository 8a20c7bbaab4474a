"""Instances that share keys: what one gives to a client, any other takes, also while keys change; and what must not be shared is not."""

import asyncio
import random
import shutil
import time
from pathlib import Path

import pytest
from curl_cffi import CurlOpt
from curl_cffi.requests import exceptions
from harness.cli import qproxy
from harness.clients import curl_session
from harness.http3 import http3
from harness.relay import Relay

from balancer.quic_lb import Codec, Layout, config_id_of
from proxy.keys import Keyring, config_id, parse, shown_time

pytestmark = pytest.mark.speaks("HTTP/3")
HOST = "a.example.com"
RESUMED = "qproxy_quic_resumed_total"
RESETS = "qproxy_quic_stateless_resets_total"
VALID = 'qproxy_quic_retry_tokens_total{result="valid"}'
NONCE = 10
CLIENTS = 4
RELOADED = "configuration reloaded"
SEALS = '"another key of the cluster seals"'
SPAN = 25.0
"""Seconds from the writing of a key to its begin: three reloads in it, on a busy machine."""


class Fleet:
    """Instances with a copy of one key file each, and state folders of their own."""

    def __init__(self, start_proxy, folder):
        self._start, self._folder = start_proxy, folder
        self.master = folder / "cluster.key"
        assert qproxy("keygen", self.master).code == 0
        self.instances = []

    def start(self, server_id=None, *, retry="always", **more):
        """Another instance; its server ID is its number, unless it is said."""
        number = len(self.instances) + 1
        copy = self._folder / f"copy-{number}.key"
        shutil.copy(self.master, copy)
        ids = {"server_id": server_id or f"{number:02x}", "nonce": NONCE, "slot": True}
        server = {"cluster": {"key_file": str(copy)}, "quic": {"retry": retry, "connection_ids": ids}}
        proxy = self._start(server=server | more.pop("server", {}), **more)
        self.instances.append(proxy)
        return proxy

    def bring(self, proxy):
        """The present file, and a reload."""
        copy = Path(proxy.server["cluster"]["key_file"])
        new = copy.with_suffix(".new")
        shutil.copy(self.master, new)
        new.replace(copy)
        proxy.reload(expect=RELOADED)

    @property
    def keys(self):
        return parse(self.master.read_text(), "f").keys


class Visitor:
    """A client that comes back again and again, to any instance, with the last ticket that it was given."""

    def __init__(self, authority, fleet, seed):
        self._authority, self._fleet, self._chances = authority, fleet, random.Random(seed)
        self.tickets = []
        self.giver = None
        self.affinity = set()
        self.resumed = []
        """For each visit: whether it was resumed, at another instance than the ticket's, under which epoch, by Retry."""
        self.cids = []

    async def visit(self, proxy=None):
        proxy = proxy or self._chances.choice(self._fleet.instances)
        ticket = self.tickets[-1] if self.tickets else None
        got = []
        async with http3(self._authority, proxy.port, tickets=got, session_ticket=ticket) as client:
            answer = await client.get("/hello", host=HOST)
            assert answer.status == 200
            assert client._quic._retry_count == 1
            resumed = client._quic.tls.session_resumed
            self.cids.append(client._quic._peer_cid.cid)
        self.affinity.add(answer.headers["x-affinity-key"])
        self.resumed.append((resumed, self.giver not in (None, proxy), ticket.ticket[0] if ticket else None))
        self.tickets, self.giver = got, proxy

    async def keep_visiting(self, enough):
        while not enough.is_set():
            await self.visit()


async def test_keys_change_while_clients_resume_at_any_instance_and_no_handshake_fails(authority, start_proxy, tmp_path):
    """Three instances, one with two workers; Retry always; reloads in any order; a key begins by itself, and then the old one goes."""
    fleet = Fleet(start_proxy, tmp_path)
    for number in range(3):
        fleet.start(server={"workers": 2 if number == 2 else 1})
    visitors = [Visitor(authority, fleet, seed) for seed in range(CLIENTS)]
    enough = asyncio.Event()
    visits = [asyncio.create_task(visitor.keep_visiting(enough)) for visitor in visitors]

    async def every_client_comes_again(times=4):
        so_far = [len(visitor.resumed) for visitor in visitors]
        while any(len(visitor.resumed) < before + times for visitor, before in zip(visitors, so_far, strict=True)):
            await asyncio.wait(visits, timeout=0.1)
            for visit in visits:
                if visit.done():
                    visit.result()

    await every_client_comes_again()
    begin = time.time() + SPAN
    added = await asyncio.to_thread(qproxy, "keygen", "--add", fleet.master, "--begin", shown_time(begin))
    assert added.code == 0, added.err
    order = random.Random(7).sample(fleet.instances, 3)
    for proxy in order:
        await asyncio.to_thread(fleet.bring, proxy)
        await every_client_comes_again(1)
    assert time.time() < begin, "the machine is too slow for this"
    for proxy in order:
        await asyncio.to_thread(proxy.wait_for, lambda proxy=proxy: SEALS in proxy.logs(), "sealed with the next key", SPAN + 10)
    await every_client_comes_again(8)
    first, second = fleet.keys
    fleet.master.write_text("\n".join(line for line in fleet.master.read_text().splitlines() if line != first.line()))
    for proxy in reversed(order):
        await asyncio.to_thread(fleet.bring, proxy)
        await every_client_comes_again(1)
    await every_client_comes_again()
    enough.set()
    await asyncio.gather(*visits)

    for visitor in visitors:
        assert [resumed for resumed, _, _ in visitor.resumed] == [False] + [True] * (len(visitor.resumed) - 1)
        assert len(visitor.affinity) == 1
    seen = [visit for visitor in visitors for visit in visitor.resumed]
    assert {epoch for resumed, elsewhere, epoch in seen if resumed and elsewhere} == {first.epoch, second.epoch}
    for proxy in fleet.instances:
        assert proxy.logs().count(RELOADED) == 2
        assert not [name for name in proxy.metrics() if name.startswith("qproxy_connection_errors_total")]
    assert sum(proxy.metric(RESUMED) for proxy in fleet.instances) == len(seen) - CLIENTS
    assert sum(proxy.metrics()[VALID] for proxy in fleet.instances) == len(seen)
    for visitor in visitors:
        assert config_id_of(visitor.cids[0]) == config_id(first.epoch)
        assert config_id_of(visitor.cids[-1]) == config_id(second.epoch)
    layout = Layout(config_id(second.epoch), 1, NONCE, slot=True, key=_cid_key(fleet, second.epoch))
    named = {Codec(layout).decode(cid).server_id for visitor in visitors for cid in visitor.cids if config_id_of(cid) == layout.config_id}
    assert named == {b"\x01", b"\x02", b"\x03"}


def _cid_key(fleet, epoch):
    return Keyring(parse(fleet.master.read_text(), "f"), b"").cid_key(epoch)


async def test_a_retry_of_one_instance_is_answered_to_another(authority, start_proxy, tmp_path):
    fleet = Fleet(start_proxy, tmp_path)
    one, other = fleet.start(), fleet.start()
    with Relay(one.port) as relay:

        def look(data, _outside, to_proxy):
            if not to_proxy and data[0] & 0xF0 == 0xF0:  # a Retry packet (RFC 9000, section 17.2.5)
                relay.lead_to(other.port)

        relay.look = look
        async with http3(authority, relay.port) as client:
            assert (await client.get("/hello", host=HOST)).status == 200
            assert client._quic._retry_count == 1
    assert (one.metric("qproxy_quic_retries_total"), other.metrics()[VALID]) == (1, 1)
    assert (one.metric("http3_connections_total"), other.metric("http3_connections_total")) == (0, 1)


def test_curl_resumes_at_another_instance_and_meets_the_same_backend(authority, start_proxy, tmp_path):
    fleet = Fleet(start_proxy, tmp_path)
    one, two = (fleet.start(retry="never") for _ in range(2))
    with Relay(one.port) as relay, curl_session(authority, relay.port) as session:
        session.curl_options[CurlOpt.FRESH_CONNECT] = 1
        answers = []
        for proxy in (one, two, one, two):
            relay.lead_to(proxy.port)
            answers.append(session.get(f"https://{HOST}:{relay.port}/hello"))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.headers["x-affinity-key"] for answer in answers}) == 1
    assert len({answer.headers["x-backend"] for answer in answers}) == 1
    assert (one.metric(RESUMED), two.metric(RESUMED)) == (1, 2)


@pytest.mark.parametrize("same", [True, False], ids=["in its place", "another server"])
def test_a_client_of_an_instance_that_is_gone_believes_the_reset_of_the_one_in_its_place(authority, start_proxy, tmp_path, same):
    """On another machine: the key file and the server ID are all that they have in common. Another server's connections it leaves alone."""
    fleet = Fleet(start_proxy, tmp_path)
    gone = fleet.start("a1", retry="never")
    successor = fleet.start("a1" if same else "b2", retry="never")
    with Relay(gone.port) as relay, curl_session(authority, relay.port, timeout=4 if not same else 30) as session:
        url = f"https://{HOST}:{relay.port}/hello"
        assert session.get(url).status_code == 200
        gone.crash()
        relay.lead_to(successor.port)
        began = time.monotonic()
        if not same:
            with pytest.raises(exceptions.RequestException):
                session.get(url)
        else:
            try:
                answer = session.get(url)
            except exceptions.ConnectionError:  # the reset came while it wrote, and it leaves it to its user to ask again
                answer = session.get(url)
            assert answer.status_code == 200
            assert time.monotonic() - began < 10  # without the reset: curl's idle timeout
    assert (successor.metric(RESETS) >= 1) == same


def test_a_file_that_is_watched_needs_no_reload(start_proxy, tmp_path):
    fleet = Fleet(start_proxy, tmp_path)
    proxy = fleet.start(server={"watch": True})
    qproxy("keygen", "--add", fleet.master)
    copy = Path(proxy.server["cluster"]["key_file"])
    shutil.copy(fleet.master, copy)
    proxy.wait_for(lambda: "cluster.keys: epochs 0 -> epochs 0, 1" in proxy.logs(), "took the new key", 20)
    checked = qproxy("check", "-c", proxy.config)
    begin = shown_time(fleet.keys[1].begin)
    assert f"cluster: the key of epoch 0 seals until {begin}, then that of 1; opens 1 too" in checked.out
    copy.write_text("0 never\n")
    proxy.wait_for(lambda: "the new configuration is wrong" in proxy.logs(), "told of the mistake", 20)
    assert f"{copy}:1: 2 words; expected three: EPOCH BEGIN KEY" in proxy.logs()
    assert proxy.health() == 200
