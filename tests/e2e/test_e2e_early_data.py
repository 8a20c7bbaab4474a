"""Early data (0-RTT): answered within the first round trip, executed once whoever sends the same first flight again and wherever."""

import itertools
import json
import socket
import time

import pytest
from harness.cli import qproxy
from harness.clients import gtlsclient
from harness.http3 import http3

pytestmark = pytest.mark.speaks("HTTP/3")
HOST = "a.example.com"
NUMBERS = itertools.count(1)
OUTCOMES = 'qproxy_early_requests_total{outcome="%s"}'
SERVER = {"timeouts": {"handshake": "1s"}}
SITES = {HOST: {"early_data": True}}


def replay(flight, *proxies, times=1):
    """Send the datagrams of a first flight again, from an address of nobody's."""
    for _ in range(times):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            for proxy in proxies:
                for datagram in flight:
                    sock.sendto(datagram, ("127.0.0.1", proxy.port))


def path():
    """One that is asked for once, so that it can be counted."""
    return f"/headers/{next(NUMBERS)}"


def executed(backends, wanted):
    return sum(backend.counts().get(wanted, 0) for backend in backends)


def given_up(proxy):
    """Handshakes of connections that took early data and were never completed."""
    return proxy.metric("qproxy_connection_errors_total")


def replay_in_vain(flight, *proxies):
    """Send a flight again until each of the proxies has waited for its handshake and given it up: what can come of it has come by then.

    More than once, since the closing period of the first connection may still be on; then the datagrams are its own.
    """
    for proxy in proxies:
        before = given_up(proxy)

        def waited_and_gave_up(proxy=proxy, before=before):
            replay(flight, proxy)
            time.sleep(0.3)  # it is let wait, and that is all
            return given_up(proxy) > before

        proxy.wait_for(waited_and_gave_up, "gave up a handshake", limit=20)


def outcomes(proxy):
    found = proxy.metrics()
    return {name: found[OUTCOMES % name] for name in ("sent", "waited", "repeated") if OUTCOMES % name in found}


async def visit(authority, proxy):
    """A ticket, and the affinity key that comes with it."""
    tickets = []
    async with http3(authority, proxy.port, tickets=tickets) as client:
        answer = await client.get("/hello", host=HOST)
    return tickets[0], answer.headers["x-affinity-key"]


def fields(answer):
    return fields_of(answer.body)


def fields_of(body):
    return dict(json.loads(body)["headers"])


async def test_a_request_of_the_first_flight_is_answered_and_the_backend_told(authority, start_proxy, backends):
    proxy = start_proxy(sites=SITES)
    ticket, key = await visit(authority, proxy)
    wanted = path()
    async with http3(authority, proxy.port, early=True, session_ticket=ticket) as client:
        answer = await client.get(wanted, host=HOST)
        later = await client.get(path(), host=HOST)
        assert client._quic.tls.early_data_accepted
    assert answer.status == 200
    assert fields(answer)["early-data"] == "1"
    assert fields(answer)["x-affinity-key"] == fields(later)["x-affinity-key"] == key
    assert "early-data" not in fields(later)
    assert executed(backends, wanted) == 1
    assert outcomes(proxy) == {"sent": 1}


@pytest.mark.parametrize("alive", [True, False], ids=["while the client is there", "after it left"])
async def test_a_flight_that_is_sent_again_to_the_same_process_is_executed_once(authority, start_proxy, backends, alive):
    proxy = start_proxy(server=SERVER, sites=SITES)
    ticket, _ = await visit(authority, proxy)
    wanted = path()
    async with http3(authority, proxy.port, early=True, session_ticket=ticket) as client:
        assert (await client.get(wanted, host=HOST)).status == 200
        if alive:
            replay(client.flight, proxy, times=5)
            await client.get(path(), host=HOST)
        flight = client.flight
    if not alive:
        replay_in_vain(flight, proxy)
        assert outcomes(proxy)["sent"] == 1
        assert outcomes(proxy)["waited"] >= 1
    assert executed(backends, wanted) == 1


@pytest.fixture(params=["a state folder", "a key file"])
def sharing(request, tmp_path):
    """What processes share that take each other's tickets. With a key file each has its own state folder: they don't see each other."""
    if request.param == "a state folder":
        return SERVER | {"state": str(tmp_path / "state")}
    assert qproxy("keygen", tmp_path / "cluster.key").code == 0
    return SERVER | {"cluster": {"key_file": str(tmp_path / "cluster.key")}}


@pytest.mark.parametrize("order", ["the client first", "the replays first"])
async def test_a_flight_that_is_sent_to_two_processes_is_executed_once(authority, start_proxy, backends, sharing, order):
    """Either process may have given the ticket, and the client comes to the other one."""
    one, two = (start_proxy(server=sharing, sites=SITES) for _ in range(2))
    for here, there in ((one, two), (two, one)):
        ticket, key = await visit(authority, here)
        wanted = path()
        async with http3(authority, there.port, early=True, session_ticket=ticket) as client:
            client.held = order == "the replays first"
            stream = client.open(wanted, host=HOST)
            if client.held:
                replay_in_vain(client.flight, here)
                assert executed(backends, wanted) == 0
                client.let_go()
            answer = await client.answer(stream)
            assert client._quic.tls.early_data_accepted
            flight = client.flight
        assert answer.status == 200
        assert fields(answer)["x-affinity-key"] == key
        assert "early-data" not in fields(answer)  # it went on once the handshake was complete
        replay_in_vain(flight, here, there)
        assert executed(backends, wanted) == 1
    for proxy in (one, two):
        assert "sent" not in outcomes(proxy)
        assert outcomes(proxy)["waited"] >= 3


async def test_what_is_not_safe_waits_for_the_end_of_the_handshake(authority, start_proxy, backends):
    proxy = start_proxy(server=SERVER, sites=SITES)
    ticket, _ = await visit(authority, proxy)
    wanted = path()
    async with http3(authority, proxy.port, early=True, session_ticket=ticket) as client:
        client.held = True
        stream = client.open(wanted, method="POST", host=HOST, end=False)
        client.http.send_data(stream, b"body", end_stream=True)
        client.transmit()
        replay_in_vain(client.flight, proxy)
        assert executed(backends, wanted) == 0
    ticket, _ = await visit(authority, proxy)
    async with http3(authority, proxy.port, early=True, session_ticket=ticket) as client:
        stream = client.open(wanted, method="POST", host=HOST, end=False)
        client.http.send_data(stream, b"body", end_stream=True)
        client.transmit()
        answer = await client.answer(stream)
        assert client._quic.tls.early_data_accepted
    told = json.loads(answer.body)
    assert (told["method"], told["body"]) == ("POST", 4)
    assert "early-data" not in fields(answer)
    assert executed(backends, wanted) == 1


async def test_it_is_off_unless_the_site_says_so(authority, start_proxy):
    proxy = start_proxy(sites=SITES)
    ticket, _ = await visit(authority, proxy)
    proxy.sites[HOST]["early_data"] = False
    proxy.write()
    proxy.reload()
    async with http3(authority, proxy.port, early=True, session_ticket=ticket) as client:
        answer = await client.get(path(), host=HOST)
        assert client._quic.tls.session_resumed
        assert not client._quic.tls.early_data_accepted
    assert "early-data" not in fields(answer)
    assert outcomes(proxy) == {}
    ticket, _ = await visit(authority, proxy)
    assert ticket.max_early_data_size is None


async def test_a_site_that_is_reached_by_the_name_of_another_decides_for_itself(authority, start_proxy, tmp_path):
    chain, key = authority.issue(HOST, f"*.{HOST}", "b.example.com", "*.b.example.com", file="both", folder=tmp_path)
    tls = {"certificate": str(chain), "key": str(key)}
    proxy = start_proxy(sites={HOST: {"early_data": True, "tls": tls}, "b.example.com": {"tls": tls}})
    ticket, _ = await visit(authority, proxy)
    async with http3(authority, proxy.port, early=True, session_ticket=ticket) as client:
        answer = await client.get(path(), host="b.example.com")
    assert answer.status == 200
    assert "early-data" not in fields(answer)
    assert outcomes(proxy) == {"waited": 1}


async def test_a_backend_that_finds_it_too_early_is_asked_again_after_the_handshake(authority, start_proxy):
    proxy = start_proxy(sites=SITES)
    ticket, _ = await visit(authority, proxy)
    async with http3(authority, proxy.port, early=True, session_ticket=ticket) as client:
        answer = await client.get("/too-early", host=HOST)
    assert (answer.status, answer.body) == (200, b"in time\n")
    assert outcomes(proxy)["sent"] == 1
    ticket, _ = await visit(authority, proxy)
    async with http3(authority, proxy.port, early=True, session_ticket=ticket) as client:
        answer = await client.get("/too-early", host=HOST, headers=[("early-data", "1")])
    assert (answer.status, answer.body) == (425, b"too early\n")


@pytest.mark.parametrize("retry", ["never", "always"])
def test_another_maker_s_client_is_early_from_its_second_visit_on(start_proxy, tmp_path, retry):
    """Also where it has to prove its address first, and sends the flight again."""
    proxy = start_proxy(server={"quic": {"retry": retry}}, sites={"localhost": {"early_data": True}})
    seen = [fields_of(gtlsclient(tmp_path, proxy.url(path(), "localhost"))) for _ in range(3)]
    assert [told.get("early-data") for told in seen] == [None, "1", "1"]
    assert len({told["x-affinity-key"] for told in seen}) == 1
    assert outcomes(proxy) == {"sent": 2}
    assert proxy.metric("qproxy_quic_resumed_total") == 2
    assert (proxy.metric("qproxy_quic_retries_total") > 0) == (retry == "always")


def test_explain_tells_what_becomes_of_an_early_request(start_proxy):
    proxy = start_proxy(sites=SITES)

    def said(*options, host=HOST):
        return qproxy("explain", "-c", proxy.config, "--protocol", "h3", *options, proxy.url("/hello", host)).out

    assert "goes on at once where its flight can't be a copy" in said()
    assert "waits for the end of the handshake: only GET, HEAD and OPTIONS" in said("-X", "POST")
    assert "early data" not in said(host="b.example.com")
    assert "early data" not in said("--protocol", "h2")
