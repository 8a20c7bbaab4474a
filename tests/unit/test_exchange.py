"""The life of a request as a dialogue: no sockets, a clock that is set by hand."""

from dataclasses import replace
from typing import Any

import pytest

from balancer.pool import Outcome
from proxy.engine.events import Informational, RequestBody, ResponseHead
from proxy.errors import Kind, ProxyError, Reset
from proxy.policy.access import Access, Networks
from proxy.policy.answer import Redirect, Respond
from proxy.policy.headers import HeaderEdit
from proxy.policy.key import KeySource
from proxy.policy.rewrite import PathRewrite
from proxy.policy.template import Template
from proxy.snapshot import Retry, Timeouts
from tests.unit.exchange_world import DEFAULT_PROFILE, FakeClient, World

CLOSED = ProxyError(Kind.UPSTREAM_CLOSED, "gone")
REFUSED = ProxyError(Kind.CONNECT_REFUSED, "refused", retry=True)
DATE = (b"date", b"Tue, 14 Nov 2023 22:13:20 GMT")
"""The world's clock stands still."""
ALT_SVC = (b"alt-svc", b'h3=":8443"; ma=86400')


def fields(headers: list[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    return dict(headers)


def test_a_get_goes_through_without_waiting_when_a_connection_is_idle() -> None:
    world, client = World(), FakeClient()
    exchange = world.request(client, path=b"/x?y", headers=[(b"accept", b"*/*"), (b"connection", b"x-drop"), (b"x-drop", b"1")])
    (connection,) = world.connections
    (verb, method, target, headers, end) = connection.said[0]
    assert (verb, method, target, end) == ("begin", b"GET", b"/x?y", True)
    assert headers[0] == (b"host", b"a.example.com")
    sent = fields(headers)
    assert sent[b"x-forwarded-for"] == b"192.0.2.7"
    assert sent[b"via"] == b"2 qproxy"
    assert sent[b"x-request-id"] == b"id-1"
    assert b"x-drop" not in sent
    assert b"connection" not in sent
    exchange.on_response_head(ResponseHead(200, [(b"content-length", b"2"), (b"keep-alive", b"5")], end=False, content_length=2), world.now)
    exchange.on_response_body(b"hi", world.now)
    exchange.on_response_end([], world.now)
    assert client.said == [
        ("head", 1, 200, [(b"content-length", b"2"), DATE, ALT_SVC], False),
        ("data", 1, b"hi", False),
        ("data", 1, b"", True),
    ]
    assert connection.said[1:] == [("credit", 2)]
    assert client.done == [1]
    (record,) = world.records
    assert (record.status, record.ended, record.bytes_out, record.attempts) == (200, "complete", 2, 1)
    assert record.backend == connection.identity
    assert world.route.counters.statuses[2].value == 1
    assert world.inflight == 0
    assert len(world.deadlines) == 0


def test_a_backends_own_date_stays() -> None:
    world, client = World(), FakeClient(version="HTTP/3")
    world.request(client).on_response_head(ResponseHead(204, [(b"date", b"theirs")], end=True, dated=True), world.now)
    assert client.said == [("head", 1, 204, [(b"date", b"theirs")], True)]


def test_bytes_of_the_proxys_own_answers_are_counted_but_not_for_head() -> None:
    for method, size in ((b"GET", 3), (b"HEAD", 0)):
        world, client = World(action=Respond(200, (), b"tea")), FakeClient()
        world.request(client, method)
        assert world.records[0].bytes_out == world.route.counters.bytes_out.value == size
    world, client = World(access=Access(None, Networks(["192.0.2.0/24"]))), FakeClient()
    world.request(client)
    assert world.records[0].bytes_out == len(client.said[0][4]) > 0


def test_an_absolute_name_is_the_same_host() -> None:
    world, client = World(), FakeClient()
    world.request(client, authority=b"A.example.com.:8443").on_response_head(ResponseHead(204, [], end=True), world.now)
    assert client.status == 204


def test_a_small_answer_goes_out_in_one_piece() -> None:
    world, client = World(), FakeClient()
    exchange = world.request(client)
    exchange.on_response_head(ResponseHead(200, [(b"content-length", b"2")], end=True, content_length=2, body=b"hi"), world.now)
    assert client.said == [("respond", 1, 200, [(b"content-length", b"2"), DATE, ALT_SVC], b"hi")]
    (record,) = world.records
    assert (record.status, record.ended, record.bytes_out, world.inflight, len(world.deadlines)) == (200, "complete", 2, 0, 0)


def test_the_choice_is_pinned_to_the_connection_and_survives_a_ring_that_would_say_otherwise() -> None:
    world, client = World(), FakeClient()
    exchange = world.request(client)
    exchange.on_response_head(ResponseHead(204, [], end=True), world.now)
    first = world.connections[0].identity
    client.affinity_key = b"another key entirely"
    world.request(client, stream=3).on_response_head(ResponseHead(204, [], end=True), world.now)
    assert {connection.identity for connection in world.connections} == {first}
    assert client.pins["web"].identity == first


def test_what_was_admitted_once_holds_for_this_authority_path_and_snapshot_only() -> None:
    world, client = World(), FakeClient()

    def told(name: bytes, **values: Any) -> bytes:
        world.request(client, **values)
        return dict(world.connections[-1].said[0][3])[name]  # of one key, so of one endpoint

    assert told(b"forwarded") == b"for=192.0.2.7;host=a.example.com;proto=https"
    first = client.admitted
    assert told(b"x-request-id", stream=3) == b"id-2"
    assert client.admitted is first
    assert told(b"x-forwarded-host", stream=5, authority=b"a.example.com:8443") == b"a.example.com:8443"
    assert told(b"x-forwarded-host", stream=7) == b"a.example.com"
    client.peer = ("192.0.2.8", 5555)
    assert told(b"x-forwarded-for", stream=9) == b"192.0.2.8"
    world.services.snapshot = replace(world.services.snapshot, exact_hosts={})
    world.request(client, stream=11)
    assert client.said[-1][:3] == ("respond", 11, 421)


def test_a_request_on_a_pinned_connection_walks_on_when_its_backend_fails() -> None:
    world, client = World(), FakeClient()
    world.request(client).on_response_head(ResponseHead(204, [], end=True), world.now)
    pinned = client.pins["web"].identity
    exchange = world.request(client, stream=3)
    exchange.on_upstream_error(ProxyError(Kind.UPSTREAM_CLOSED, "reset"), stale=False)
    asked = [connection.identity for connection in world.connections]
    assert asked.count(pinned) == 2
    assert len(asked) == 3
    exchange.on_response_head(ResponseHead(204, [], end=True), world.now)
    assert client.pins["web"].identity != pinned


def test_fields_that_a_stranger_may_not_send_are_taken_out_told_or_not() -> None:
    for plain, sent, passed in (
        (False, [(b"x-real-ip", b"1.1.1.1"), (b"accept", b"*/*")], [(b"accept", b"*/*")]),
        (True, [(b"accept", b"*/*")], [(b"accept", b"*/*")]),
    ):
        world = World()
        world.request(FakeClient(), headers=sent, plain=plain)
        assert world.connections[0].said[0][3][1:2] == passed
        assert (b"x-real-ip", b"1.1.1.1") not in world.connections[0].said[0][3]


def test_http3_answers_carry_no_alt_svc() -> None:
    world, client = World(), FakeClient(version="HTTP/3")
    world.request(client).on_response_head(ResponseHead(204, [], end=True), world.now)
    assert client.said == [("head", 1, 204, [DATE], True)]
    assert world.host.requests["HTTP/3"].value == 1


@pytest.mark.parametrize("path", [b"/health", b"/health?probe=1"])
@pytest.mark.parametrize("profile", ["site", "default"])
def test_health_is_answered_for_any_sni(path: bytes, profile: str) -> None:
    world = World()
    client = FakeClient() if profile == "site" else FakeClient(tls=DEFAULT_PROFILE, sni=None)
    world.request(client, path=path, authority=b"10.1.2.3" if profile == "default" else b"a.example.com")
    assert client.said[0][2] == 200
    assert client.said[0][4] == b"OK"
    assert world.connections == []


@pytest.mark.parametrize("method", [b"POST", b"OPTIONS", b"DELETE"])
def test_health_takes_get_and_head_only(method: bytes) -> None:
    world, client = World(), FakeClient()
    world.request(client, path=b"/health", method=method)
    assert client.status == 405
    assert fields(client.said[0][3])[b"allow"] == b"GET, HEAD"
    assert world.connections == []


def test_health_says_503_while_draining() -> None:
    world, client = World(), FakeClient()
    world.services.draining = True
    world.request(client, path=b"/health")
    assert client.status == 503


@pytest.mark.parametrize(
    ("client", "authority"),
    [
        (FakeClient(tls=DEFAULT_PROFILE, sni=None), b"a.example.com"),
        (FakeClient(), b"b.example.com"),
        (FakeClient(), b""),
    ],
    ids=["default certificate", "not our host", "no authority"],
)
def test_a_connection_that_may_not_carry_the_authority_gets_421(client: FakeClient, authority: bytes) -> None:
    client.said.clear()
    world = World()
    world.request(client, authority=authority)
    assert client.status == 421
    assert fields(client.said[0][3])[b"proxy-status"] == b"qproxy; error=http_request_error"
    assert world.records[0].ended == "misdirected"


def test_plain_http_is_sent_to_https_at_the_public_port() -> None:
    world, client = World(), FakeClient(version="HTTP/1.1", tls=None)
    world.request(client, path=b"/a?b")
    assert client.status == 308
    assert fields(client.said[0][3])[b"location"] == b"https://a.example.com:8443/a?b"


def test_plain_http_for_health_is_answered() -> None:
    world, client = World(), FakeClient(version="HTTP/1.1", tls=None)
    world.request(client, path=b"/health", authority=b"anything")
    assert client.said[0][4] == b"OK"


def test_access_rules_refuse_with_403() -> None:
    world, client = World(access=Access(None, Networks(["192.0.2.0/24"]))), FakeClient()
    world.request(client)
    assert client.status == 403


def test_redirects_and_fixed_answers() -> None:
    world, client = World(action=Redirect(302, Template.compile("https://new.example{path}"))), FakeClient()
    world.request(client, path=b"/p?q")
    assert client.status == 302
    assert fields(client.said[0][3])[b"location"] == b"https://new.example/p?q"
    world, client = World(action=Respond(418, ((b"x-a", b"1"),), b"tea")), FakeClient()
    world.request(client)
    assert (client.said[0][2], client.said[0][4]) == (418, b"tea")
    assert fields(client.said[0][3])[b"x-a"] == b"1"


def test_header_edits_rewrites_and_the_upstream_host() -> None:
    world = World(
        request_headers=HeaderEdit(((b"x-key", Template.compile("{affinity_key}/{client_address}")),), frozenset({b"accept"})),
        response_headers=HeaderEdit((), frozenset({b"server"})),
        forward=(PathRewrite(b"/api", b""), b""),
    )
    client = FakeClient()
    exchange = world.request(client, path=b"/api/v1", headers=[(b"accept", b"x")])
    begin = world.connections[0].said[0]
    assert begin[2] == b"/v1"
    sent = fields(begin[3])
    assert sent[b"host"] == world.connections[0].identity.removeprefix("http://").encode()
    assert sent[b"x-key"] == (b"k" * 16).hex().encode() + b"/192.0.2.7"
    assert b"accept" not in sent
    exchange.on_response_head(ResponseHead(204, [(b"server", b"x")], end=True), world.now)
    assert client.said == [("head", 1, 204, [DATE, ALT_SVC], True)]


def test_a_body_that_comes_before_the_connection_is_kept_and_credited_once_it_is_sent() -> None:
    world, client = World(idle=0), FakeClient()
    exchange = world.request(client, b"POST", end=False, content_length=5)
    exchange.on_request_body(RequestBody(1, b"he", 2))
    exchange.on_request_body(RequestBody(1, b"llo", 4))
    assert client.said == []
    connection = world.attempts[0].connect()
    assert connection.said[1:] == [("data", b"he"), ("data", b"llo"), ("data", b"")]
    assert ("consumed", 1, 6) in client.said
    exchange.on_request_end([(b"x-sum", b"1")])
    assert connection.said[-1] == ("end", [(b"x-sum", b"1")])


def test_a_backend_that_does_not_read_stops_the_client() -> None:
    world, client = World(), FakeClient()
    exchange = world.request(client, b"POST", end=False)
    (connection,) = world.connections
    connection.full = True
    exchange.on_request_body(RequestBody(1, b"x" * 10, 10))
    assert ("consumed", 1, 10) not in client.said
    connection.full = False
    exchange.on_upstream_drained()
    assert ("consumed", 1, 10) in client.said


def test_a_client_that_does_not_read_stops_the_backend() -> None:
    world, client = World(), FakeClient()
    exchange = world.request(client)
    (connection,) = world.connections
    exchange.on_response_head(ResponseHead(200, [], end=False), world.now)
    client.queued = 10**9
    exchange.on_response_body(b"x" * 10, world.now)
    assert ("credit", 10) not in connection.said
    client.queued = 0
    exchange.on_drained()
    assert ("credit", 10) in connection.said


def test_expect_100_continue_is_answered_once_a_backend_takes_the_request() -> None:
    world, client = World(idle=0), FakeClient()
    world.request(client, b"POST", end=False, expect_continue=True)
    assert client.said == []
    world.attempts[0].connect()
    assert client.said == [("inform", 1, 100, [])]


def test_informational_answers_pass_but_not_the_backends_100() -> None:
    world, client = World(), FakeClient()
    exchange = world.request(client)
    exchange.on_informational(Informational(100, []))
    exchange.on_informational(Informational(103, [(b"link", b"</a>"), (b"connection", b"x")]))
    assert client.said == [("inform", 1, 103, [(b"link", b"</a>")])]


def test_trailers_pass_both_ways() -> None:
    world, client = World(), FakeClient()
    exchange = world.request(client)
    exchange.on_response_head(ResponseHead(200, [], end=False), world.now)
    exchange.on_response_end([(b"x-t", b"1")], world.now)
    assert client.said[-1] == ("trailers", 1, [(b"x-t", b"1")])


def test_connect_failures_walk_on_at_once_whatever_the_method_and_attempts() -> None:
    world, client = World(idle=0, retry=Retry(1, 0)), FakeClient()
    world.request(client, b"POST", end=False)
    seen = []
    for _ in range(2):
        endpoint = next(e for e in world.attempts if e.identity not in seen)
        seen.append(endpoint.identity)
        endpoint.refuse(REFUSED)
    last = next(e for e in world.attempts if e.identity not in seen)
    last.connect()
    assert client.said == []
    assert world.inflight == 1
    assert world.meters.upstream_retries.cell("web").value == 2


@pytest.mark.parametrize(("method", "early"), [(b"GET", True), (b"PUT", True), (b"POST", False), (b"PATCH", False)])
def test_only_what_may_arrive_twice_travels_with_the_syn(method: bytes, early: bool) -> None:
    world = World(idle=0)
    world.request(FakeClient(), method)
    assert world.attempts[0].fast_open is early


def test_when_every_candidate_refuses_the_client_gets_502_with_a_reason() -> None:
    world, client = World(idle=0), FakeClient()
    world.request(client)
    for _ in range(3):
        world.upstreams.endpoints[list(world.upstreams.endpoints)[-1]].refuse(REFUSED)
    assert client.status == 502
    assert fields(client.said[0][3])[b"proxy-status"] == b"qproxy; error=connection_refused"
    assert world.inflight == 0


def test_a_dead_backend_costs_an_idempotent_request_a_retry_and_not_an_error() -> None:
    world, client = World(), FakeClient()
    exchange = world.request(client)
    (first,) = world.connections
    exchange.on_upstream_error(CLOSED, stale=False)
    second = next(c for c in world.connections if c is not first)
    assert second.identity != first.identity
    exchange.on_response_head(ResponseHead(204, [], end=True), world.now)
    assert client.status == 204
    assert (world.records[0].attempts, world.inflight) == (2, 0)


def test_a_post_is_not_sent_twice() -> None:
    world, client = World(), FakeClient()
    exchange = world.request(client, b"POST", end=False)
    exchange.on_request_body(RequestBody(1, b"x", 1))
    exchange.on_upstream_error(CLOSED, stale=False)
    assert client.status == 502
    assert len(world.connections) == 1


def test_a_put_is_sent_again_with_its_whole_body() -> None:
    world, client = World(), FakeClient()
    exchange = world.request(client, b"PUT", end=False)
    exchange.on_request_body(RequestBody(1, b"one", 3))
    (first,) = world.connections
    exchange.on_upstream_error(CLOSED, stale=False)
    second = next(c for c in world.connections if c is not first)
    exchange.on_request_body(RequestBody(1, b"two", 3))
    exchange.on_request_end([])
    assert [said for said in second.said if said[0] != "begin"] == [("data", b"one"), ("data", b"two"), ("end", [])]


def test_a_body_over_the_bound_is_not_kept_and_so_not_tried_again() -> None:
    world, client = World(retry=Retry(3, 4)), FakeClient()
    exchange = world.request(client, b"PUT", end=False)
    exchange.on_request_body(RequestBody(1, b"12345", 5))
    exchange.on_upstream_error(CLOSED, stale=False)
    assert client.status == 502


def test_attempts_are_bounded() -> None:
    world, client = World(retry=Retry(2, 0)), FakeClient()
    exchange = world.request(client)
    exchange.on_upstream_error(CLOSED, stale=False)
    exchange.on_upstream_error(CLOSED, stale=False)
    assert client.status == 502
    assert len(world.connections) == 2


def test_a_connection_that_closed_while_idle_is_replaced_unseen_on_the_same_backend() -> None:
    world, client = World(retry=Retry(1, 0)), FakeClient()
    exchange = world.request(client)
    (first,) = world.connections
    exchange.on_upstream_error(CLOSED, stale=True)
    (endpoint,) = world.attempts  # a new connection, although idle ones are at hand: they may be as stale
    second = endpoint.connect()
    assert second.identity == first.identity
    exchange.on_response_head(ResponseHead(204, [], end=True), world.now)
    assert (world.records[0].attempts, world.balancer.backends[0].state) == (1, "up")


def test_all_down_is_503_with_retry_after() -> None:
    world, client = World(backends=1), FakeClient()
    backend = world.balancer.backends[0]
    for _ in range(3):
        world.balancer.report(backend, Outcome.PROBE_FAILED, world.now)
    world.request(client)
    assert client.status == 503
    assert fields(client.said[0][3])[b"retry-after"] == b"1"


def test_a_failure_within_the_answer_cuts_the_stream() -> None:
    world, client = World(), FakeClient()
    exchange = world.request(client)
    exchange.on_response_head(ResponseHead(200, [], end=False), world.now)
    exchange.on_upstream_error(CLOSED, stale=False)
    assert client.said[-1] == ("reset", 1, Reset.INTERNAL)
    assert world.records[0].ended == "upstream_closed"


def test_a_client_that_goes_away_stops_the_backend() -> None:
    world, client = World(), FakeClient()
    exchange = world.request(client)
    exchange.on_client_reset("cancel")
    assert world.connections[0].said[-1] == ("abort",)
    assert (world.records[0].status, world.records[0].ended) == (499, "client: cancel")
    assert (world.inflight, len(world.deadlines)) == (0, 0)


def test_a_client_that_goes_away_while_connecting_leaves_the_attempt_alone() -> None:
    world, client = World(idle=0), FakeClient()
    exchange = world.request(client)
    exchange.on_client_reset("cancel")
    assert world.attempts[0].attempts[0].waiter is None
    assert world.inflight == 0


TIMES = Timeouts(connect=5, response=3, body_idle=2, total=0)


def test_a_backend_that_does_not_answer_is_504() -> None:
    world, client = World(timeouts=TIMES), FakeClient()
    world.request(client)
    world.pass_time(2.8)
    assert client.said == []
    world.pass_time(0.5)
    assert client.status == 504
    assert fields(client.said[0][3])[b"proxy-status"] == b"qproxy; error=http_response_timeout"
    assert world.connections[0].said[-1] == ("abort",)
    assert world.inflight == 0


def test_the_response_timeout_counts_from_the_end_of_the_request() -> None:
    world, client = World(timeouts=TIMES), FakeClient()
    exchange = world.request(client, b"POST", end=False)
    for _ in range(4):
        world.pass_time(1.5)
        exchange.on_request_body(RequestBody(1, b"x", 1))
    exchange.on_request_end([])
    world.pass_time(2.8)
    assert all(said[0] == "consumed" for said in client.said)
    world.pass_time(0.5)
    assert client.status == 504


def test_a_client_that_stops_within_its_body_gets_408() -> None:
    world, client = World(timeouts=TIMES), FakeClient()
    world.request(client, b"POST", end=False)
    world.pass_time(2.3)
    assert client.status == 408


def test_a_backend_that_stops_within_its_answer_is_cut() -> None:
    world, client = World(timeouts=TIMES), FakeClient()
    exchange = world.request(client)
    exchange.on_response_head(ResponseHead(200, [], end=False), world.now)
    world.pass_time(1.5)
    exchange.on_response_body(b"x", world.now)
    world.pass_time(1.5)
    assert client.said[-1] == ("data", 1, b"x", False)
    world.pass_time(1.0)
    assert client.said[-1] == ("reset", 1, Reset.INTERNAL)
    assert world.records[0].ended == "read_timeout"


def test_the_total_timeout_ends_what_still_moves() -> None:
    world, client = World(timeouts=Timeouts(5, 30, 60, 4)), FakeClient()
    exchange = world.request(client)
    exchange.on_response_head(ResponseHead(200, [], end=False), world.now)
    for _ in range(3):
        world.pass_time(1.0)
        exchange.on_response_body(b"x", world.now)
    world.pass_time(1.3)
    assert world.records[0].ended == "total_timeout"


@pytest.mark.parametrize("declared", [True, False])
def test_a_body_over_the_limit_is_413(declared: bool) -> None:
    world, client = World(body_bytes=4), FakeClient()
    values: dict[str, Any] = {"content_length": 5} if declared else {}
    exchange = world.request(client, b"POST", end=False, **values)
    if not declared:
        exchange.on_request_body(RequestBody(1, b"12345", 5))
    assert client.status == 413
    assert world.meters.limits_hit.cell("body_size").value == 1


def test_a_fault_of_our_own_is_500_and_says_nothing_of_the_inside() -> None:
    world, client = World(), FakeClient()
    exchange = world.request(client)
    exchange.on_internal_error(RuntimeError("secret"))
    assert client.status == 500
    assert b"secret" not in client.said[0][4]
    assert world.inflight == 0


def test_nothing_is_said_after_the_end() -> None:
    world, client = World(), FakeClient()
    exchange = world.request(client)
    exchange.on_response_head(ResponseHead(204, [], end=True), world.now)
    said = list(client.said)
    exchange.on_client_reset("late")
    exchange.on_internal_error(RuntimeError())
    assert (client.said, len(world.records)) == (said, 1)


def test_the_response_timeout_is_kept_where_the_body_may_idle_for_longer() -> None:
    world, client = World(timeouts=Timeouts(connect=5, response=5, body_idle=60, total=0)), FakeClient()
    exchange = world.request(client, b"POST", end=False)
    world.pass_time(5.5)
    exchange.on_request_end([])
    world.pass_time(4.5)
    assert client.said == []
    world.pass_time(0.8)
    assert client.status == 504


def test_the_idle_timeout_is_kept_where_the_response_may_take_longer() -> None:
    world, client = World(timeouts=Timeouts(connect=5, response=60, body_idle=5, total=0)), FakeClient()
    exchange = world.request(client)
    world.pass_time(1)
    exchange.on_response_head(ResponseHead(200, [], end=False), world.now)
    world.pass_time(5.3)
    assert client.said[-1] == ("reset", 1, Reset.INTERNAL)


@pytest.mark.parametrize("end", [True, False])
def test_a_slow_connect_is_not_the_clients_silence(end: bool) -> None:
    world, client = World(idle=0, timeouts=Timeouts(connect=60, response=5, body_idle=5, total=0)), FakeClient()
    world.request(client, b"PUT", end=end)
    world.pass_time(30)
    assert client.said == []
    (endpoint,) = world.attempts
    connection = endpoint.connect()
    assert connection.said[0][0] == "begin"
    world.pass_time(4.5)
    assert client.said == []
    world.pass_time(1)
    assert client.status == (504 if end else 408)


def test_credit_that_a_failed_backend_owed_is_given_once_the_next_one_takes_the_body() -> None:
    world, client = World(retry=Retry(2, 1 << 20)), FakeClient()
    exchange = world.request(client, b"PUT", end=False)
    (first,) = world.connections
    first.full = True
    exchange.on_request_body(RequestBody(1, b"abc", 5))
    assert client.said == []
    exchange.on_upstream_error(CLOSED, stale=False)
    second = next(connection for connection in world.connections if connection is not first)
    assert [said for said in second.said if said[0] == "data" and said[1]] == [("data", b"abc")]
    assert client.said == [("consumed", 1, 5)]


def test_an_answer_that_begins_before_the_request_ended_counts_no_negative_time() -> None:
    world, client = World(), FakeClient()
    exchange = world.request(client, b"POST", end=False)
    world.now += 1
    exchange.on_response_head(ResponseHead(200, [], end=False), world.now)
    world.now += 5
    exchange.on_request_end([])
    exchange.on_response_end([], world.now)
    assert world.meters.upstream_seconds.cell("web").sum == 1
    (record,) = world.records
    assert (record.seconds_connect, record.seconds_first_byte, record.seconds) == (0, 1, 6)


def test_a_connection_that_closed_while_idle_costs_one_replacement_and_then_it_is_a_failure() -> None:
    world, client = World(backends=1, retry=Retry(1, 0)), FakeClient()
    exchange = world.request(client)
    exchange.on_upstream_error(CLOSED, stale=True)
    (endpoint,) = world.attempts
    endpoint.connect()
    exchange.on_upstream_error(CLOSED, stale=False)
    assert client.status == 502
    assert world.inflight == 0


def test_a_post_that_fast_open_could_not_deliver_walks_on() -> None:
    """The kernel tells a refused connection with the first write: nothing of the request has arrived anywhere."""
    world, client = World(retry=Retry(1, 64)), FakeClient()
    exchange = world.request(client, b"POST", end=False)
    exchange.on_request_body(RequestBody(1, b"abc", 3))
    (first,) = world.connections
    exchange.on_upstream_error(REFUSED, stale=False)
    second = next(connection for connection in world.connections if connection is not first)
    assert [said[0] for said in second.said] == ["begin", "data"]
    exchange.on_request_body(RequestBody(1, bytes(99), 99))
    exchange.on_upstream_error(REFUSED, stale=False)  # the body is not at hand any more
    assert client.status == 502
    assert world.inflight == 0


class Poisoned(FakeClient):
    def respond(self, *values: Any) -> None:
        raise RuntimeError("poison")


def test_an_exchange_that_can_not_even_be_answered_ends_all_the_same() -> None:
    world, client = World(), Poisoned()
    exchange = world.request(client)
    exchange.on_internal_error(RuntimeError("first"))
    assert client.done[0] == 1
    assert (len(world.records), world.inflight, len(world.deadlines)) == (1, 0, 0)


def test_a_fault_of_our_own_on_a_deadline_does_not_stop_the_wheel() -> None:
    world, poisoned, sound = World(), Poisoned(), FakeClient()
    world.request(poisoned)
    world.request(sound)
    world.pass_time(31)
    assert sound.status == 504
    assert (len(world.records), world.inflight, len(world.deadlines)) == (2, 0, 0)


def test_a_fault_within_the_end_leaves_no_exchange_behind() -> None:
    world, client = World(), FakeClient()
    exchange = world.request(client)

    def fail(record: Any) -> None:
        raise RuntimeError("no log")

    world.services.access_log = type("Log", (), {"append": staticmethod(fail)})()
    with pytest.raises(RuntimeError, match="no log"):
        exchange.on_response_head(ResponseHead(204, [], end=True), world.now)
    exchange.on_internal_error(RuntimeError("no log"))
    assert client.done == [1]
    assert (world.inflight, len(world.deadlines)) == (0, 0)


def test_body_and_end_that_come_after_the_answer_are_taken_and_forgotten() -> None:
    world, client = World(), FakeClient()
    exchange = world.request(client, b"POST", end=False)
    exchange.on_response_head(ResponseHead(204, [], end=True), world.now)
    exchange.on_request_body(RequestBody(1, b"late", 4))
    exchange.on_request_end([])
    exchange.on_upstream_drained()
    exchange.on_drained()
    exchange.on_client_reset("late")
    assert exchange.on_deadline(world.now + 99) is None
    assert client.said[-1] == ("consumed", 1, 4)
    assert len(world.records) == 1


def test_no_more_candidates_are_asked_than_the_bound() -> None:
    world, client = World(idle=0, backends=12), FakeClient()
    world.request(client)
    asked = 0
    while not client.said:
        endpoint = next(e for e in world.upstreams.endpoints.values() if e.attempts and e.attempts[-1].waiter is not None and not e.made)
        waiter = endpoint.attempts[-1].waiter
        endpoint.attempts.clear()
        asked += 1
        assert waiter is not None
        waiter.on_connect_failed(REFUSED)
    assert (client.status, asked) == (502, 8)


def test_the_client_key_and_the_retry_budget() -> None:
    world, client = World(), FakeClient()
    world.pool.key = KeySource("client_address")
    exchange = world.request(client)
    for _ in range(20):
        world.balancer.allow_retry(world.now)
    exchange.on_upstream_error(CLOSED, stale=False)
    assert client.status == 502
    assert world.records[0].key != client.affinity_key


def test_without_a_file_descriptor_the_same_backend_is_tried_again_with_one_of_the_reserve() -> None:
    world, client = World(idle=0), FakeClient()
    asked: list[str] = []
    world.services.relieve = lambda: asked.append("relieve")
    world.request(client)
    (endpoint,) = world.upstreams.endpoints.values()
    endpoint.refuse(ProxyError(Kind.OVERLOADED, "too many open files", retry=True))
    assert asked == ["relieve"]
    assert len(endpoint.attempts) == 2
    endpoint.connect()
    assert list(world.upstreams.endpoints.values()) == [endpoint]
    assert not client.said


def test_with_none_in_reserve_either_the_client_hears_503_and_no_backend_is_blamed() -> None:
    world, client = World(idle=0), FakeClient()
    world.request(client)
    (endpoint,) = world.upstreams.endpoints.values()
    for _ in range(2):
        endpoint.refuse(ProxyError(Kind.OVERLOADED, "too many open files", retry=True))
    assert client.status == 503
    assert (b"retry-after", b"5") in client.said[0][3]
    assert list(world.upstreams.endpoints.values()) == [endpoint]
    assert world.inflight == 0
    assert all(backend.state == "up" for backend in world.balancer.backends)
    assert world.records[0].ended == "overloaded"
