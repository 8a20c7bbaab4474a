"""Clients that come back: session tickets that one process gives and another takes, and the backend that they meet again."""

import pytest
from harness.clients import curl_session
from harness.http3 import http3

pytestmark = [pytest.mark.speaks("HTTP/3"), pytest.mark.workers(2)]
HOST = "a.example.com"
METRIC = "qproxy_quic_resumed_total"


async def visit(authority, proxy, tickets, ticket=None):
    """Who answered, the affinity key, and whether the handshake was a resumed one."""
    async with http3(authority, proxy.port, tickets=tickets, session_ticket=ticket) as client:
        answer = await client.get("/hello", host=HOST)
        return answer.headers["x-backend"], answer.headers["x-affinity-key"], client._quic.tls.session_resumed


async def test_a_ticket_of_one_process_resumes_at_another_and_meets_the_same_backend(authority, start_proxy, tmp_path):
    one, two = (start_proxy(server={"state": str(tmp_path / "state")}) for _ in range(2))
    seen = set()
    for _ in range(8):
        tickets = []
        first = await visit(authority, one, tickets)
        again = await visit(authority, two, tickets, tickets[0])
        back = await visit(authority, one, tickets, tickets[-1])
        assert (first[2], again[2], back[2]) == (False, True, True)
        assert first[:2] == again[:2] == back[:2]
        seen.add(first[0])
    assert len(seen) > 1  # not all clients meet the same one
    assert (one.metric(METRIC), two.metric(METRIC)) == (8, 8)


async def test_without_the_secret_or_with_resumption_off_it_is_a_new_client(authority, start_proxy, tmp_path):
    tickets = []
    here = {"state": str(tmp_path / "state")}
    first = await visit(authority, start_proxy(server=here), tickets)
    for server in ({"state": str(tmp_path / "other")}, here | {"quic": {"resumption": False}}):
        proxy = start_proxy(server=server)
        more = []
        again = await visit(authority, proxy, more, tickets[0])
        assert not again[2]
        assert again[1] != first[1]
        assert bool(more) == ("quic" not in server)
        assert proxy.metric(METRIC) == 0


async def test_a_ticket_is_for_one_host(authority, start_proxy):
    proxy = start_proxy()
    tickets = []
    await visit(authority, proxy, tickets)
    tickets[0].server_name = "b.example.com"
    async with http3(authority, proxy.port, sni="b.example.com", session_ticket=tickets[0]) as client:
        assert (await client.get("/hello", host="b.example.com")).status == 200
        assert not client._quic.tls.session_resumed
    assert proxy.metric(METRIC) == 0


def test_curl_resumes_after_a_restart_and_meets_the_same_backend(authority, start_proxy):
    proxy = start_proxy()
    with curl_session(authority, proxy.port) as session:
        first = session.get(proxy.url("/hello"))
        proxy.crash()
        proxy.start()
        again = session.get(proxy.url("/hello"))
    assert first.headers["x-affinity-key"] == again.headers["x-affinity-key"]
    assert first.headers["x-backend"] == again.headers["x-backend"]
    assert proxy.metric(METRIC) == 1
