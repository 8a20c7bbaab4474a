"""Whatever order client, backends and time act in: an exchange ends once, leaves nothing behind, and invents no byte."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.engine.events import Informational, RequestBody, ResponseHead
from proxy.errors import Kind, ProxyError
from proxy.snapshot import Retry, Timeouts
from tests.unit.exchange_world import FakeAttempt, FakeClient, FakeConnection, World

ACTIONS = st.sampled_from(
    [
        "connect",
        "refuse",
        "fail",
        "stale",
        "fast open refused",
        "inform",
        "head",
        "only head",
        "body",
        "end",
        "request body",
        "request end",
        "client full",
        "client drained",
        "backend full",
        "backend drained",
        "time",
        "reset",
    ]
)


class Play:
    """Gives an exchange only what could come: nothing of a connection that was dropped or whose answer is complete."""

    def __init__(self, world: World, method: bytes, *, end: bool) -> None:
        self.world = world
        self.client = FakeClient()
        self.sent = bytearray()
        self.request_open = not end
        self.over: set[int] = set()
        self.headed: set[int] = set()
        self.exchange = world.request(self.client, method, end=end)

    @property
    def done(self) -> bool:
        return bool(self.client.done)

    @property
    def connection(self) -> FakeConnection | None:
        for connection in self.world.connections:
            if id(connection) not in self.over and ("abort",) not in connection.said:
                return connection
        return None

    @property
    def attempt(self) -> FakeAttempt | None:
        for endpoint in self.world.upstreams.endpoints.values():
            for attempt in endpoint.attempts:
                if attempt.waiter is not None and id(attempt) not in self.over:
                    return attempt
        return None

    def act(self, action: str) -> None:
        if action == "time":
            self.world.pass_time(3)
        elif action in {"connect", "refuse"}:
            self._connecting(action)
        elif action in {"request body", "request end"}:
            self._request(action)
        elif action == "client full":
            self.client.queued = 1 << 20
        elif action == "client drained":
            self.client.queued = 0
            if not self.done:
                self.exchange.on_drained()
        elif action == "reset":
            self.exchange.on_client_reset("test")
        elif (connection := self.connection) is not None:
            self._backend(action, connection)

    def _connecting(self, action: str) -> None:
        attempt = self.attempt
        if attempt is None or attempt.waiter is None:
            return
        self.over.add(id(attempt))
        if action == "refuse":
            attempt.waiter.on_connect_failed(ProxyError(Kind.CONNECT_REFUSED, "refused", retry=True))
            return
        endpoint = next(e for e in self.world.upstreams.endpoints.values() if attempt in e.attempts)
        connection: Any = endpoint._make()
        attempt.waiter.on_connected(connection)

    def _request(self, action: str) -> None:
        if not self.request_open or self.done:
            return
        if action == "request end":
            self.request_open = False
            self.exchange.on_request_end([])
            return
        data = b"%d," % len(self.sent)
        self.sent += data
        self.exchange.on_request_body(RequestBody(1, data, len(data)))

    def _backend(self, action: str, connection: FakeConnection) -> None:
        exchange = self.exchange
        headed = id(connection) in self.headed
        if action in {"fail", "stale", "fast open refused"}:
            self.over.add(id(connection))
            kind = Kind.CONNECT_REFUSED if action == "fast open refused" else Kind.UPSTREAM_CLOSED
            stale = action == "stale" and not headed
            exchange.on_upstream_error(ProxyError(kind, "gone", retry=kind is Kind.CONNECT_REFUSED), stale=stale)
        elif action == "inform" and not headed:
            exchange.on_informational(Informational(103, []))
        elif action in {"head", "only head"} and not headed:
            self.headed.add(id(connection))
            if action == "only head":
                self.over.add(id(connection))
            exchange.on_response_head(ResponseHead(200, [], end=action == "only head"), self.world.now)
        elif action == "body" and headed:
            exchange.on_response_body(b"answer", self.world.now)
        elif action == "end" and headed:
            self.over.add(id(connection))
            exchange.on_response_end([], self.world.now)
        elif action == "backend full":
            connection.full = True
        elif action == "backend drained":
            connection.full = False
            exchange.on_upstream_drained()


@settings(max_examples=300, deadline=None)
@given(
    actions=st.lists(ACTIONS, max_size=25),
    idle=st.integers(0, 2),
    backends=st.integers(1, 3),
    method=st.sampled_from([b"GET", b"POST", b"PUT"]),
    end=st.booleans(),
    keep=st.sampled_from([0, 4, 1000]),
    attempts=st.integers(1, 3),
)
def test_every_order(*, actions: list[str], idle: int, backends: int, method: bytes, end: bool, keep: int, attempts: int) -> None:
    timeouts = Timeouts(connect=5, response=7, body_idle=10, total=40)
    world = World(idle=idle, backends=backends, retry=Retry(attempts, keep), timeouts=timeouts)
    play = Play(world, method, end=end)
    for action in actions:
        play.act(action)
        assert len(play.client.done) <= 1
        assert world.inflight == (0 if play.done else 1)
        assert len(world.deadlines) == (0 if play.done else 1)
        assert sum(said[2] for said in play.client.said if said[0] == "consumed") <= len(play.sent)
        for connection in world.connections:
            got = b"".join(said[1] for said in connection.said if said[0] == "data")
            assert play.sent.startswith(got)
            live = play.connection is connection and not play.done
            if live and id(connection) not in play.headed:
                assert got == play.sent, "the present backend has everything that came"
                assert (("end", []) in connection.said) == (not play.request_open and not end)
    if not play.done:
        world.pass_time(45)  # time alone ends it
    assert play.done
    assert len(world.records) == 1
    assert (world.inflight, len(world.deadlines)) == (0, 0)
    answers = [said for said in play.client.said if said[0] in {"respond", "head"}]
    assert len(answers) <= 1
    unsafe = method == b"POST"
    if unsafe:
        begun = [connection for connection in world.connections if connection.said]
        refused = actions.count("fast open refused")
        assert len(begun) <= 1 + refused, "a POST is sent twice only where the first was provably not taken"
