"""The part of a client's connection that all versions share: events to exchanges, faults contained, gauges right."""

from typing import Any

import pytest

from proxy.engine.events import ConnectionClosed, Drained, Rejected, RequestBody, RequestEnd, RequestHead, StreamReset
from proxy.listen.client import ClientStreams
from tests.unit.exchange_world import LISTENER, PROFILE, FakeClient, World
from tests.unit.listen.edge import Faults

pytestmark = pytest.mark.replaces


class Client(ClientStreams):
    """Writes down what is said on it."""

    def __init__(self, world: World) -> None:
        super().__init__(world.services, LISTENER, ("192.0.2.7", 5555))
        self.tls = PROFILE
        self.fake = FakeClient()
        self.speaks("HTTP/2")

    def respond(self, *values: Any) -> None:
        self.fake.respond(*values)

    def send_head(self, *values: Any, **named: Any) -> None:
        self.fake.send_head(*values, **named)

    def send_data(self, *values: Any, **named: Any) -> int:
        return self.fake.send_data(*values, **named)

    def send_trailers(self, *values: Any) -> None:
        self.fake.send_trailers(*values)

    def inform(self, *values: Any) -> None:
        self.fake.inform(*values)

    def consumed(self, *values: Any) -> None:
        self.fake.consumed(*values)

    def reset(self, *values: Any) -> None:
        self.fake.reset(*values)


@pytest.fixture
def world() -> World:
    made = World()
    made.services.log = Faults()
    return made


@pytest.fixture
def client(world: World) -> Client:
    return Client(world)


def head(stream: int, path: bytes = b"/", method: bytes = b"GET", *, end: bool = True) -> RequestHead:
    return RequestHead(stream, method, b"https", b"a.example.com", path, [], end)


def gauge(world: World) -> float:
    return world.meters.streams_open.cell("HTTP/2").value


def test_each_event_goes_to_its_streams_exchange(world: World, client: Client) -> None:
    client.deliver(head(1, method=b"PUT", end=False))
    client.deliver(head(3, b"/health"))
    assert list(client.exchanges) == [1]
    assert (gauge(world), world.meters.streams.cell("HTTP/2").value) == (1, 2)
    client.deliver(RequestBody(1, b"abc", 3))
    client.deliver(RequestEnd(1, []))
    client.deliver(Drained(1))
    (connection,) = world.connections
    assert [said[0] for said in connection.said] == ["begin", "data", "end"]
    client.deliver(StreamReset(1, "client: cancel"))
    assert connection.said[-1] == ("abort",)
    assert (client.exchanges, gauge(world), world.inflight) == ({}, 0, 0)
    assert world.meters.stream_errors.cell("HTTP/2", "reset_by_client").value == 1


def test_what_comes_for_a_stream_that_is_over_is_credited_and_forgotten(world: World, client: Client) -> None:
    for event in (RequestBody(5, b"late", 9), RequestEnd(5, []), Drained(5), StreamReset(5, "late")):
        client.deliver(event)
    assert client.fake.said == [("consumed", 5, 9)]
    client.exchange_done(5)
    assert gauge(world) == 0


def test_refusals_and_faults_of_the_connection_are_counted(world: World, client: Client) -> None:
    client.deliver(Rejected(1, 400, "path", "a space"))
    client.deliver(ConnectionClosed("protocol", "bad frame"))
    client.deliver(ConnectionClosed("", ""))
    assert world.meters.rejected.cell("HTTP/2", "path").value == 1
    assert {labels: cell.value for labels, cell in world.meters.connection_errors.cells.items()} == {("HTTP/2", "protocol"): 1}


def test_a_request_whose_rest_is_malformed_is_logged_as_such_and_not_as_cancelled(world: World, client: Client) -> None:
    client.deliver(head(1, method=b"PUT", end=False))
    client.deliver(Rejected(1, 431, "too_many_fields", "200 fields"))
    client.deliver(StreamReset(1, "too_many_fields"))
    (record,) = world.records
    assert (record.status, record.ended, record.error) == (431, "malformed", "200 fields")
    assert (client.exchanges, gauge(world), world.inflight) == ({}, 0, 0)
    assert world.connections[0].said[-1] == ("abort",)
    assert not world.meters.stream_errors.cells


@pytest.mark.parametrize("event", [RequestBody(1, b"x", 1), RequestEnd(1, []), Drained(1), StreamReset(1, "gone")])
def test_a_fault_in_an_exchange_is_answered_and_leaves_its_neighbour_alone(
    world: World, client: Client, event: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.deliver(head(1, method=b"PUT", end=False))
    client.deliver(head(3))
    monkeypatch.setattr(client, "_continue", lambda *values: 1 // 0)
    client.deliver(event)
    assert client.fake.said[-1][:3] == ("respond", 1, 500)
    assert list(client.exchanges) == [3]
    assert (gauge(world), world.inflight) == (1, 1)
    assert [text for text, _ in world.services.log.errors] == ["an exchange failed"]  # type: ignore[attr-defined]


def test_when_the_connection_is_lost_every_exchange_hears_of_it_though_one_is_broken(world: World, client: Client) -> None:
    for stream in (1, 3, 5):
        client.deliver(head(stream))
    client.exchanges[3]._connection = object()  # type: ignore[assignment]
    client.lose_exchanges("connection lost")
    assert (client.exchanges, gauge(world), world.inflight, len(world.deadlines)) == ({}, 0, 0, 0)
    assert sorted(record.ended for record in world.records) == ["client: connection lost", "client: connection lost", "internal"]
