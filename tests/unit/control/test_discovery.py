"""Pools by SRV records, in virtual time: what a change of the answers does to a pool, and what it leaves."""

import asyncio
from typing import Any

import pytest

from balancer.pool import Member, Outcome, PoolSettings
from balancer.pool import Pool as BalancerPool
from proxy.control import discovery as discovery_module
from proxy.control.discovery import Discovery
from proxy.policy.key import KeySource
from proxy.snapshot import Pool, UpstreamConnections
from proxy.upstream.names import Answer, Service
from tests.unit.upstream.test_upstream_names import GONE, STALE, TTL, World, virtually

NAME = "_http._tcp.web.internal"
URL = f"srv+http://{NAME}"


class Zone:
    """A source, and a discovery that asks it."""

    def __init__(self, *hosts: str) -> None:
        self.world = World()
        self.say(*hosts)
        self.told: list[Pool] = []
        self.discovery = Discovery(self, self.world.means)
        self.discovery.changed.append(self.told.append)

    async def services(self, name: str) -> Answer[Service]:
        answer: Answer[Any] = await self.world.ask(name)
        return answer

    def say(self, *hosts: str) -> None:
        self.world.zone[NAME] = (tuple(Service(0, host, 80, 1) for host in hosts), TTL)


def make_pool(*written: str) -> Pool:
    balancer = BalancerPool("web", [], PoolSettings(policy="round_robin", passive_fall=1), b"s" * 32, 7)
    members = tuple(Member(url) for url in written)
    return Pool("web", balancer, {}, KeySource("connection"), False, None, UpstreamConnections(1, 1, 1), None, members)


def urls(pool: Pool) -> list[str]:
    assert [backend.identity for backend in pool.balancer.backends] == list(pool.endpoints)
    return [url.removeprefix("http://") for url in pool.endpoints]


@virtually
async def test_a_pool_follows_the_answers() -> None:
    zone = Zone("a", "b")
    pool = make_pool("http://static", URL)
    await zone.discovery.learn([NAME], 1)
    zone.discovery.follow({"web": pool})
    assert urls(pool) == ["static", "a", "b"]
    zone.say("b", "c")
    await asyncio.sleep(TTL + 1)
    assert urls(pool) == ["static", "b", "c"]
    assert zone.told == [pool, pool]
    zone.world.zone[NAME] = GONE
    await asyncio.sleep(STALE)
    assert urls(pool) == ["static", "b", "c"], "stale, and kept"
    await asyncio.sleep(2 * TTL)
    assert urls(pool) == ["static"]


@virtually
async def test_what_stays_is_the_same_backend_and_what_goes_gets_nothing_new() -> None:
    zone = Zone("a", "b", "c")
    pool = make_pool(URL)
    zone.discovery.follow({"web": pool})
    await asyncio.sleep(1)
    a, b, c = pool.balancer.backends
    pool.balancer.report(b, Outcome.CONNECT_FAILED, 1)
    pool.balancer.acquire(a)
    pool.balancer.acquire(c)
    begun = pool.balancer.candidates(b"key", 1)
    first = next(begun)
    zone.say("b", "c", "d")
    await asyncio.sleep(TTL)
    assert urls(pool) == ["b", "c", "d"]
    assert pool.balancer.backends[:2] == (b, c)
    assert (b.state, c.inflight) == ("down", 1)
    assert pool.balancer.find("http://a") is None
    assert a not in [backend for backend in begun if backend is not first], "a walk that had begun passes it over"
    pool.balancer.release(a, Outcome.SUCCESS, 2)
    assert a.inflight == 0
    assert pool.endpoint("http://a").host == "a", "an exchange that had chosen it may connect to it once more"
    assert "http://a" not in pool.endpoints


@virtually
async def test_the_memory_of_what_has_gone_is_bounded() -> None:
    before, discovery_module.MAX_DEPARTED = discovery_module.MAX_DEPARTED, 3
    try:
        zone = Zone("h0")
        pool = make_pool(URL)
        zone.discovery.follow({"web": pool})
        for number in range(1, 9):
            zone.say(f"h{number}")
            await asyncio.sleep(TTL)
        assert list(pool.departed) == ["http://h5", "http://h6", "http://h7"]
    finally:
        discovery_module.MAX_DEPARTED = before


@virtually
async def test_a_start_waits_for_first_answers_but_not_for_ever() -> None:
    zone = Zone("a")
    slow = "_slow._tcp.web.internal"
    zone.world.zone[slow] = 3600.0
    pool = make_pool(URL, f"srv+http://{slow}")
    await zone.discovery.learn([NAME, slow], 2)
    assert zone.world.clock() == 2
    zone.discovery.follow({"web": pool})
    assert urls(pool) == ["a"]
    assert zone.discovery.words(slow) == "is being looked up"
    assert zone.discovery.words("other") is None


@virtually
async def test_a_reload_is_of_the_same_backends_and_a_name_in_two_pools_is_asked_for_once() -> None:
    zone = Zone("a")
    old, other = make_pool(URL), make_pool(URL)
    other.name = "other"
    zone.discovery.follow({"web": old, "other": other})
    await asyncio.sleep(1)
    assert (urls(old), urls(other)) == (["a"], ["a"])
    assert old.balancer.backends != other.balancer.backends
    new = make_pool(URL)
    zone.discovery.follow({"web": new})
    assert urls(new) == ["a"], "it is populated with what is known"
    zone.say("b")
    await asyncio.sleep(TTL)
    assert (urls(new), urls(old)) == (["b"], ["a"]), "a pool that is gone is left alone"
    assert len(zone.world.times(NAME)) == 2


@pytest.mark.parametrize("policy", ["consistent_hash", "round_robin", "least_request", "random"])
def test_a_pool_may_be_empty_and_fill(policy: Any) -> None:
    empty = BalancerPool("web", [], PoolSettings(policy=policy), b"s" * 32, 7)
    assert list(empty.candidates(b"key", 0)) == []
    assert empty.explain(b"key", 0) == []
    full = empty.with_members([Member("http://a"), Member("http://b", 1, 1), Member("http://c", 1, 2)], 0)
    assert [backend.identity for backend in full.candidates(b"key", 0)] == ["http://a", "http://b", "http://c"]
    assert list(full.with_members([], 0).candidates(b"key", 0)) == []
    panicking = BalancerPool("web", [], PoolSettings(policy=policy, panic=True), b"s" * 32, 7)
    assert list(panicking.candidates(b"key", 0)) == []


def test_backups_stand_in_by_their_numbers() -> None:
    members = [Member("http://c", 1, 5), Member("http://a"), Member("http://b", 1, 2)]
    pool = BalancerPool("web", members, PoolSettings(passive_fall=1), b"s" * 32, 7)
    order = []
    for _ in members:
        backend = next(pool.candidates(b"key", 0))
        order.append(backend.identity)
        pool.report(backend, Outcome.CONNECT_FAILED, 0)
    assert order == ["http://a", "http://b", "http://c"]
