"""Names kept fresh, in virtual time: when they are asked for again, what is kept of them and for how long, and what is told of it."""

import asyncio
import functools
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from proxy.errors import Kind, ProxyError
from proxy.observe import Metrics, NullLog
from proxy.tasks import Tasks
from proxy.upstream.names import RETRY_MAX, TTL_CEILING, TTL_FLOOR, Answer, DnsError, Means, Names
from proxy.upstream.resolve import MAX_ADDRESSES, Resolver, in_order, is_address
from tests.unit import virtual

TTL = 10.0
STALE = 60.0
TIMEOUT = 5.0


class Log(NullLog):
    def __init__(self) -> None:
        self.said: list[tuple[str, str]] = []

    def info(self, event: str, **details: Any) -> None:
        self.said.append(("info", event))

    def warning(self, event: str, **details: Any) -> None:
        self.said.append(("warning", event))

    def error(self, event: str, **details: Any) -> None:
        raise AssertionError((event, details))


class World:
    """DNS as a test wants it: ``zone`` has answers, errors, or seconds of silence, and ``asked`` says when who was asked for."""

    def __init__(self, **zone: Any) -> None:
        self.zone: dict[str, Any] = zone
        self.asked: list[tuple[float, str]] = []
        self.changes: list[tuple[str, ...]] = []
        self.log = Log()
        self.metrics = Metrics()
        loop = asyncio.get_running_loop()
        self.clock = loop.time
        self.tasks = Tasks(self.log)
        self.means = Means(self.log, self.metrics, self.tasks, loop.time, TIMEOUT, STALE)
        self.names: Names[str] = Names("address", self.ask, self.means, lambda known: self.changes.append(known.records))

    async def addresses(self, host: str) -> Answer[str]:
        return await self.ask(host)

    async def close(self) -> None:
        pass

    async def ask(self, name: str) -> Answer[str]:
        self.asked.append((self.clock(), name))
        found = self.zone[name]
        if isinstance(found, float):
            await asyncio.sleep(found)
        if isinstance(found, Exception):
            raise found
        assert not isinstance(found, float)
        records, ttl = found if isinstance(found[0], tuple) else (found, TTL)
        return Answer(tuple(records), ttl)

    def counted(self, family: str, *labels: str) -> float:
        return self.metrics.families[family].cell("address", *labels).value

    def times(self, name: str = "web") -> list[float]:
        return [when for when, who in self.asked if who == name]

    def shown(self) -> dict[tuple[str, ...], float]:
        self.names.show()
        return {labels[1:]: cell.value for labels, cell in self.metrics.families["qproxy_dns_answer_age_seconds"].cells.items()}


GONE = DnsError("no_name", "domain name not found")


def virtually(test: Callable[[], Awaitable[None]]) -> Callable[[], None]:
    async def whole() -> None:
        before = asyncio.all_tasks()
        await test()
        for task in asyncio.all_tasks() - before:
            task.cancel()

    @functools.wraps(test)
    def run() -> None:
        virtual.run(whole())

    return run


@virtually
async def test_a_name_is_asked_for_again_as_its_ttl_is_over_and_no_sooner() -> None:
    world = World(web=("192.0.2.1",))
    world.names.follow(["web"])
    assert (await world.names.settled("web")).records == ("192.0.2.1",)
    await asyncio.sleep(2.5 * TTL)
    assert world.times() == [0, TTL, 2 * TTL]
    assert world.counted("qproxy_dns_lookups_total", "ok") == 3
    assert world.shown() == {("web",): TTL / 2}
    assert world.changes == [("192.0.2.1",)]
    assert world.log.said == []


@virtually
async def test_ttls_have_a_floor_and_a_ceiling() -> None:
    world = World(short=(("192.0.2.1",), 0.0), long=(("192.0.2.2",), 86400.0))
    world.names.follow(["short", "long"])
    await asyncio.sleep(3.5 * TTL_FLOOR)
    assert world.times("short") == [0, TTL_FLOOR, 2 * TTL_FLOOR, 3 * TTL_FLOOR]
    world.names.follow(["long"])
    await asyncio.sleep(1.5 * TTL_CEILING)
    assert world.times("long") == [0, TTL_CEILING]
    assert len(world.times("short")) == 4, "it is not followed any more"


@virtually
async def test_the_ceiling_can_be_lower() -> None:
    world = World(long=(("192.0.2.2",), 600.0))
    names: Names[str] = Names("address", world.ask, replace(world.means, max_ttl=5.0), lambda _: None)
    names.follow(["long"])
    await asyncio.sleep(12)
    names.follow([])
    assert world.times("long") == [0, 5, 10]


@virtually
async def test_a_change_is_told_once_and_another_order_is_none() -> None:
    world = World(web=("192.0.2.1", "192.0.2.2"))
    world.names.follow(["web"])
    await asyncio.sleep(TTL / 2)
    world.zone["web"] = ("192.0.2.2", "192.0.2.1")
    await asyncio.sleep(TTL)
    known = world.names.known("web")
    assert known is not None
    assert known.records == ("192.0.2.2", "192.0.2.1"), "the order is the last answer's all the same"
    world.zone["web"] = ("192.0.2.3",)
    await asyncio.sleep(2 * TTL)
    assert known.records == ("192.0.2.3",)
    assert world.changes == [("192.0.2.1", "192.0.2.2"), ("192.0.2.3",)]
    assert world.log.said == [("info", "web has changed in DNS")]
    assert world.counted("qproxy_dns_changes_total", "changed") == 1


@virtually
async def test_a_failure_keeps_the_last_answer_for_a_bounded_time_and_is_told_once() -> None:
    world = World(web=("192.0.2.1",))
    world.names.follow(["web"])
    await asyncio.sleep(1)
    known = world.names.known("web")
    assert known is not None
    world.zone["web"] = DnsError("server_failure", "the server failed")
    await asyncio.sleep(TTL)
    assert (known.state, known.records) == ("stale", ("192.0.2.1",))
    assert known.words(world.clock()) == "stale, answered 11 s ago with TTL 10 s: the server failed"
    await asyncio.sleep(STALE - 2)
    assert (known.state, known.records) == ("stale", ("192.0.2.1",)), "a second before its time"
    await asyncio.sleep(2)
    assert (known.state, known.records) == ("none", ())
    assert known.words(world.clock()) == "unknown: the server failed"
    assert world.shown() == {}
    world.zone["web"] = ("192.0.2.1",)
    await asyncio.sleep(RETRY_MAX)
    assert (known.state, known.records) == ("fresh", ("192.0.2.1",))
    assert world.changes == [("192.0.2.1",), (), ("192.0.2.1",)]
    assert world.log.said == [
        ("warning", "web does not get an answer from DNS: the last one is kept"),
        ("warning", "web has no answer from DNS any more: the last one is too old"),
        ("info", "web is answered again by DNS"),
    ]
    changes = {labels[1]: cell.value for labels, cell in world.metrics.families["qproxy_dns_changes_total"].cells.items()}
    assert changes == {"stale": 1, "expired": 1, "recovered": 1}


@virtually
async def test_failures_are_tried_again_sooner_at_first_and_then_at_a_steady_pace() -> None:
    world = World(web=GONE)
    world.names.follow(["web"])
    await asyncio.sleep(18)
    assert world.times() == [0, 1, 3, 7, 12, 17]
    assert world.counted("qproxy_dns_lookups_total", "no_name") == 6
    assert world.log.said == [("warning", "web has no answer from DNS")]
    world.zone["web"] = ("192.0.2.1",)
    await asyncio.sleep(5)
    world.zone["web"] = GONE
    await asyncio.sleep(TTL + 4)
    assert world.times()[6:] == [22, 32, 33, 35], "after an answer the pace begins anew"


@virtually
async def test_a_lookup_that_is_never_answered_fails_in_time() -> None:
    world = World(web=3600.0)
    world.names.follow(["web"])
    known = await world.names.settled("web")
    assert world.clock() == TIMEOUT
    assert (known.state, known.problem) == ("none", "no answer within 5 s")
    assert world.counted("qproxy_dns_lookups_total", "timeout") == 1


@virtually
async def test_whatever_a_library_raises_the_name_is_asked_for_again() -> None:
    world = World(web=ZeroDivisionError("oh"))
    world.names.follow(["web"])
    known = await world.names.settled("web")
    assert known.problem == "ZeroDivisionError: oh"
    world.zone["web"] = ("192.0.2.1",)
    await asyncio.sleep(1)
    assert known.records == ("192.0.2.1",)
    assert world.counted("qproxy_dns_lookups_total", "error") == 1


@virtually
async def test_many_names_are_looked_up_a_bounded_number_at_a_time() -> None:
    names = [f"name-{number}" for number in range(200)]
    world = World(**dict.fromkeys(names, 1.0))
    world.names.follow(names)
    await asyncio.sleep(0.5)
    assert len(world.asked) == 64


@virtually
async def test_the_names_that_a_reload_keeps_are_not_asked_for_anew_and_who_waits_for_one_that_it_drops_is_not_left_alone() -> None:
    world = World(stays=("192.0.2.1",), goes=2.0)
    world.names.follow(["stays", "goes"])
    await asyncio.sleep(1)
    waiting = asyncio.get_running_loop().create_task(world.names.settled("goes"))
    await asyncio.sleep(0)
    world.zone["goes"] = ("192.0.2.2",)
    world.names.follow(["stays"])
    assert (await waiting).records == ("192.0.2.2",)
    assert world.names.known("goes") is None
    assert world.times("stays") == [0]
    world.zone["goes"] = GONE
    assert (await world.names.settled("goes")).problem == "domain name not found"


@virtually
async def test_the_resolver_knows_at_once_what_was_answered_and_waits_only_for_a_first_answer() -> None:
    world = World(web=("2001:db8::1", "192.0.2.1"), gone=GONE)
    moved = []
    resolver = Resolver(world, world.means)
    resolver.moved.append(lambda *told: moved.append(told))
    resolver._names.follow(["web", "gone"])
    assert await resolver.of("web") == ["2001:db8::1", "192.0.2.1"]
    assert moved == [("web", ("2001:db8::1", "192.0.2.1"))]
    assert resolver.shown("web") == (("2001:db8::1", "192.0.2.1"), "fresh, answered 0 s ago with TTL 10 s")
    before = len(world.asked)
    with pytest.raises(StopIteration) as done:
        resolver.of("web").send(None)  # to its end in one go: no waiting, no task, nobody asked
    assert done.value.value == ["2001:db8::1", "192.0.2.1"]
    for address in ("192.0.2.7", "2001:db8::7"):
        assert await resolver.of(address) == (address,)
        assert resolver.shown(address) is None
    assert len(world.asked) == before
    with pytest.raises(ProxyError, match="gone: domain name not found") as refused:
        await resolver.of("gone")
    assert (refused.value.kind, refused.value.retry) == (Kind.DNS_ERROR, True)
    assert len(world.asked) == before, "a name that has just failed is not asked for by each request"
    assert resolver.shown("gone") == ((), "unknown: domain name not found")


@pytest.mark.parametrize(
    ("answer", "order"),
    [
        (["a:1", "a:2", "a:3", "1.1", "1.2"], ["a:1", "1.1", "a:2", "1.2", "a:3"]),
        (["1.1", "1.2", "a:1"], ["1.1", "a:1", "1.2"]),
        (["1.1", "1.2"], ["1.1", "1.2"]),
        ([f"1.{number}" for number in range(20)], [f"1.{number}" for number in range(MAX_ADDRESSES)]),
        ([*[f"1.{number}" for number in range(20)], "a:1"], ["1.0", "a:1", *[f"1.{number}" for number in range(1, MAX_ADDRESSES - 1)]]),
    ],
)
def test_families_are_tried_by_turns(answer: list[str], order: list[str]) -> None:
    assert in_order(answer) == order


def test_what_is_an_address() -> None:
    addresses = ["192.0.2.1", "2001:db8::1", "::1", "::ffff:192.0.2.1"]
    names = ["web", "web.example.com", "1.2.3", "192.0.2.256", "web1", "a.b.c.4", ""]
    assert [host for host in [*addresses, *names] if is_address(host)] == addresses
