"""Early requests: which go on at once, what the others wait in, and what follows when a backend says that it is too early."""

from dataclasses import replace

import pytest

from proxy.early import HELD_BYTES, EarlyRequests, why_wait
from proxy.engine.events import Event, Rejected, RequestBody, RequestEnd, RequestHead, ResponseHead, StreamReset
from proxy.policy.access import Access, Networks
from proxy.policy.headers import HeaderEdit
from proxy.policy.template import Template
from proxy.route.match import Match
from tests.unit.exchange_world import FakeClient, FakeConnection, World

PEER = ("192.0.2.7", 5555)


def head(method: bytes = b"GET", *, stream: int = 0, authority: bytes = b"a.example.com:8443", end: bool = True) -> RequestHead:
    return RequestHead(stream, method, b"https", authority, b"/", [], end, early=True)


def why(world: World, request: RequestHead, peer: tuple[str, int] = PEER) -> str:
    snapshot = world.services.snapshot
    return why_wait(snapshot, snapshot.find_host(request.authority.partition(b":")[0]), request, peer)


def requests(world: World, *, vouched: bool = True, client: FakeClient | None = None) -> EarlyRequests:
    return EarlyRequests(world.services, client or FakeClient(), vouched=vouched)


def outcomes(world: World) -> dict[str, int]:
    return {labels[0]: cell.value for labels, cell in world.meters.early_requests.cells.items()}


@pytest.mark.parametrize("method", [b"GET", b"HEAD", b"OPTIONS"])
def test_safe_requests_without_a_body_may_go(method: bytes) -> None:
    assert why(World(early_data=True), head(method)) == ""


@pytest.mark.parametrize("method", [b"POST", b"PUT", b"DELETE", b"PATCH", b"TRACE", b"CONNECT", b"get"])
def test_other_methods_wait(method: bytes) -> None:
    assert why(World(early_data=True), head(method))


def test_a_safe_request_with_a_body_waits() -> None:
    assert why(World(early_data=True), head(end=False))


def test_what_early_data_is_off_for_waits_whatever_the_connection_is_for() -> None:
    assert "off" in why(World(), head())
    assert "off" in why(World(early_data=True), head(authority=b"b.example.com"))


def test_where_an_address_counts_it_has_to_be_validated_first() -> None:
    world = World(early_data=True, access=Access(None, Networks(["10.0.0.0/8"])))
    assert "address" in why(world, head())
    world = World(early_data=True)
    world.services.snapshot = replace(world.services.snapshot, trusted_proxies=Networks(["192.0.2.0/24"]))
    assert "address" in why(world, head())
    assert why(world, head(), ("198.51.100.1", 1)) == ""


def test_only_what_is_vouched_for_goes() -> None:
    world = World(early_data=True)
    assert not requests(world).holds(head())
    assert requests(world, vouched=False).holds(head())
    assert requests(world).holds(head(b"POST"))
    assert outcomes(world) == {"sent": 1, "waited": 2}


def test_what_waits_comes_out_as_it_came_in_and_is_early_no_more() -> None:
    early = requests(World(early_data=True))
    post, end = head(b"POST", stream=4, end=False), RequestEnd(4, [(b"a", b"b")])
    events: list[Event] = [
        head(b"POST", stream=0),
        post,
        RequestBody(4, b"one ", 5),
        head(b"PUT", stream=8, end=False),
        RequestBody(4, b"two", 3),
        RequestBody(8, b"never", 5),
        end,
        StreamReset(8, "reset"),
    ]
    assert [early.holds(event) for event in events] == [True] * 7 + [False]
    released = list(early.release())
    assert released == [head(b"POST", stream=0), post, RequestBody(4, b"one two", 8), end]
    assert not any(event.early for event in released if isinstance(event, RequestHead))


def test_the_rest_of_a_request_that_went_on_is_not_held() -> None:
    early = requests(World(early_data=True))
    early.holds(head())
    for event in (RequestBody(0, b"x", 1), RequestEnd(0, []), Rejected(0, 400, "body_length", ""), StreamReset(0, "")):
        assert not early.holds(event)
    assert list(early.release()) == []


def test_a_request_that_turns_out_malformed_waits_no_longer() -> None:
    early = requests(World(early_data=True))
    early.holds(head(b"POST", end=False))
    assert not early.holds(Rejected(0, 400, "body_length", "more body than content-length says"))
    assert list(early.release()) == []


@pytest.mark.parametrize("what", ["a body", "heads"])
def test_what_would_be_too_much_to_keep_is_declined(what: str) -> None:
    world, client = World(early_data=True), FakeClient()
    early = requests(world, client=client)
    count = 0
    if what == "a body":
        early.holds(head(b"POST", end=False))
        while not client.said:
            assert early.holds(RequestBody(0, bytes(1000), 1000))
            count += 1000
        assert not early.holds(RequestBody(0, b"the rest", 8))
        assert not early.holds(RequestEnd(0, []))
    else:
        while not client.said:
            big = head(stream=4 * count, authority=b"b.example.com")
            big.headers.append((b"x-big", bytes(8000)))
            assert early.holds(big)
            count += 1
        assert count == HELD_BYTES // 8000 + 1
    ((verb, _, status, _, _),) = client.said
    assert (verb, status) == ("respond", 425)
    assert outcomes(world)["declined"] == 1
    assert len(list(early.release())) == (0 if what == "a body" else count - 1)


# At the exchange


def sent(connection: FakeConnection) -> list[bytes]:
    """The values of Early-Data in what a backend was sent last."""
    headers = next(said[3] for said in reversed(connection.said) if said[0] == "begin")
    return [value for name, value in headers if name == b"early-data"]


def test_the_backend_is_told_of_an_early_request_and_of_no_other() -> None:
    for early, values in ((True, [b"1"]), (False, [])):
        world = World(early_data=True)
        world.request(FakeClient(), early=early)
        assert sent(world.connections[0]) == values


def test_it_is_told_once_where_the_client_says_so_as_well_and_behind_every_edit() -> None:
    world = World(early_data=True)
    world.request(FakeClient(), early=True, headers=[(b"early-data", b"1")])
    assert sent(world.connections[0]) == [b"1"]
    edit = HeaderEdit(((b"x-more", Template.compile("1")),), frozenset())
    world = World(early_data=True, request_headers=edit)
    world.request(FakeClient(), early=True)
    assert sent(world.connections[0]) == [b"1"]


@pytest.mark.parametrize("end", [True, False])
def test_a_425_is_no_answer_but_a_wish_to_be_asked_after_the_handshake(end: bool) -> None:
    world, client = World(early_data=True), FakeClient(awaiting=[])
    exchange = world.request(client, early=True)
    (first,) = world.connections
    exchange.on_response_head(ResponseHead(425, [], end=end, body=b"too early" if end else b""), world.now)
    assert (client.said, client.awaiting) == ([], [1])
    assert first.said[1:] == ([] if end else [("abort",)])
    assert world.inflight == 0
    world.pass_time(5)
    exchange.on_handshake_completed()
    (again,) = [connection for connection in world.connections if connection is not first]
    assert again.identity == first.identity
    assert sent(again) == []
    exchange.on_response_head(ResponseHead(425, [], end=True), world.now)  # that is its answer now
    assert client.status == 425
    assert client.done == [1]
    assert world.inflight == 0
    assert world.records[0].attempts == 1


def test_when_the_handshake_is_complete_meanwhile_it_is_asked_at_once() -> None:
    world, client = World(early_data=True), FakeClient()
    exchange = world.request(client, early=True)
    exchange.on_response_head(ResponseHead(425, [], end=True), world.now)
    assert [sent(connection) for connection in world.connections] == [[b"1"], []]
    exchange.on_response_head(ResponseHead(200, [], end=True), world.now)
    assert client.status == 200


def test_a_425_is_passed_on_where_the_client_said_early_itself_or_nothing_was_early() -> None:
    for early, headers in ((True, [(b"early-data", b"1")]), (False, []), (False, [(b"early-data", b"1")])):
        world, client = World(early_data=True), FakeClient(awaiting=[])
        exchange = world.request(client, early=early, headers=headers)
        exchange.on_response_head(ResponseHead(425, [], end=True), world.now)
        assert (client.status, client.awaiting) == (425, [])


def test_a_client_that_leaves_while_its_request_waits_is_asked_for_no_more() -> None:
    world, client = World(early_data=True), FakeClient(awaiting=[])
    exchange = world.request(client, early=True)
    exchange.on_response_head(ResponseHead(425, [], end=True), world.now)
    exchange.on_client_reset("gone")
    exchange.on_handshake_completed()
    assert len(world.connections) == 1
    assert client.done == [1]
    assert len(world.deadlines) == 0


def test_a_route_of_its_own_rule_waits_and_its_neighbour_does_not() -> None:
    world = World(early_data=True, match=Match(prefix=b"/inner"), access=Access(None, Networks(["10.0.0.0/8"])))
    inner = head()
    inner.path = b"/inner/x"
    assert why(world, inner)
    assert why(world, head()) == ""
