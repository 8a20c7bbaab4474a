"""Where the other instances are, in virtual time: addresses as they stand, and those of names as DNS has them."""

import asyncio
from typing import Any

from proxy.control.instances import Instances
from proxy.message import Address
from proxy.upstream.names import Answer
from tests.unit.upstream.test_upstream_names import GONE, STALE, TTL, World, virtually

NAME = "instances.internal"


class Zone:
    """A source, and instances that are looked for there."""

    def __init__(self, *addresses: str) -> None:
        self.world = World()
        self.say(*addresses)
        self.told: list[list[Address]] = []
        self.instances = Instances(self, self.world.means)
        self.instances.changed = self.told.append

    async def addresses(self, host: str) -> Answer[str]:
        answer: Answer[Any] = await self.world.ask(host)
        return answer

    def say(self, *addresses: str) -> None:
        self.world.zone[NAME] = (addresses, TTL)


@virtually
async def test_a_name_stands_for_all_of_its_addresses_and_is_asked_again() -> None:
    zone = Zone("10.0.0.11", "2001:db8::12")
    zone.instances.follow([("10.0.0.9", 1), (NAME, 8444)])
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
async def test_a_reload_may_have_other_places() -> None:
    zone = Zone("10.0.0.11")
    zone.instances.follow([(NAME, 8444)])
    await asyncio.sleep(1)
    zone.instances.follow([(NAME, 9444)])
    assert zone.told[-1] == [("10.0.0.11", 9444)]
    zone.instances.follow([])
    zone.say("10.0.0.12")
    await asyncio.sleep(3 * TTL)
    assert zone.told[-1] == []
