"""What is shared, in virtual time: keys as configured; addresses as they stand, and those of names as DNS has them."""

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

from proxy.config.load import Configuration
from proxy.control.cluster import Cluster, ConfiguredCluster
from proxy.keys import Key, KeySet
from proxy.message import Address
from proxy.upstream.names import Answer
from tests.unit.upstream.test_upstream_names import GONE, STALE, TTL, World, virtually

NAME = "instances.internal"
SECRET = b"s" * 32
KEYS = KeySet((Key(3, 0.0, b"k" * 32),), b"r" * 32)


def configured(*places: Address, keys: KeySet | None = None) -> Configuration:
    """What of a configuration is for this."""
    cluster = SimpleNamespace(peers=list(places)) if places or keys else None
    return cast("Configuration", SimpleNamespace(server=SimpleNamespace(cluster=cluster), keys=keys))


class Zone:
    """A source, and a cluster whose peers are looked for there."""

    def __init__(self, *addresses: str) -> None:
        self.world = World()
        self.say(*addresses)
        self.told: list[Sequence[Address]] = []
        self.cluster: Cluster = ConfiguredCluster(configured(), SECRET, self, self.world.means)
        self.cluster.tell(lambda: self.told.append(self.cluster.peers))

    async def addresses(self, host: str) -> Answer[str]:
        answer: Answer[Any] = await self.world.ask(host)
        return answer

    def say(self, *addresses: str) -> None:
        self.world.zone[NAME] = (addresses, TTL)


@virtually
async def test_a_name_stands_for_all_of_its_addresses_and_is_asked_again() -> None:
    zone = Zone("10.0.0.11", "2001:db8::12")
    assert not zone.cluster.has_peers
    zone.cluster.follow(configured(("10.0.0.9", 1), (NAME, 8444)))
    assert zone.cluster.has_peers
    assert zone.told == [[("10.0.0.9", 1)]]
    await asyncio.sleep(1)
    assert zone.told[1:] == [[("10.0.0.9", 1), ("10.0.0.11", 8444), ("2001:db8::12", 8444)]]
    zone.say("10.0.0.13")
    await asyncio.sleep(TTL + 1)
    assert zone.told[2:] == [[("10.0.0.9", 1), ("10.0.0.13", 8444)]]
    zone.world.zone[NAME] = GONE
    await asyncio.sleep(STALE)
    assert len(zone.told) == 3, "stale, and kept"
    await asyncio.sleep(2 * TTL)
    assert zone.told[3:] == [[("10.0.0.9", 1)]]


@virtually
async def test_there_are_to_be_peers_before_a_name_is_known() -> None:
    zone = Zone("10.0.0.11")
    zone.cluster.follow(configured((NAME, 8444)))
    assert (zone.cluster.has_peers, zone.cluster.peers) == (True, [])


@virtually
async def test_a_reload_may_have_other_places() -> None:
    zone = Zone("10.0.0.11")
    zone.cluster.follow(configured((NAME, 8444)))
    await asyncio.sleep(1)
    zone.cluster.follow(configured((NAME, 9444)))
    assert zone.told[-1] == [("10.0.0.11", 9444)]
    zone.cluster.follow(configured())
    zone.say("10.0.0.12")
    await asyncio.sleep(3 * TTL)
    assert zone.told[-1] == []


@virtually
async def test_keys_are_those_of_the_configuration_that_is_followed_and_else_the_secret() -> None:
    zone = Zone()
    assert zone.cluster.keys == KeySet.alone(SECRET)
    new = configured(keys=KEYS)
    assert zone.cluster.keys_with(new) == KEYS
    assert zone.cluster.keys == KeySet.alone(SECRET), "it is not followed yet"
    zone.cluster.follow(new)
    assert zone.cluster.keys == KEYS
    assert len(zone.told) == 1
