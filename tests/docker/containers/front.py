"""What clients connect to, on loopback: the L4 tier, or a balancer that knows 4-tuples only; and how each sees the instances behind it."""

import json
import urllib.request
from collections.abc import Iterable
from typing import Protocol

from containers.balancer import DRAINING, GONE, UP, Balancer
from containers.fleet import ADMIN_PORT, TIER, Fleet

STATES = {"up": UP, "draining": DRAINING, "down": GONE}
"""Of backends, as ``/pools`` says them."""

CLIENTS = 16
"""Addresses that the NAT has."""


def outside(number: int) -> str:
    """One of them, in the containers' network and below those that it gives out."""
    return f"10.83.0.{16 + number}"


class Front(Protocol):
    """Either."""

    way: Balancer
    """Takes clients to it."""

    @property
    def port(self) -> int:
        """Of ``way``."""
        return self.way.port

    def state(self, address: str) -> str:
        """What it takes the instance at *address* to be."""

    def follow(self, addresses: Iterable[str]) -> None:
        """These are the instances from now on."""

    def deals(self, client: tuple[str, int]) -> str | None:
        """The instance to which it deals UDP datagrams by the client's address and port alone; None: it goes by more than these."""

    def told(self) -> str:
        """What it has to say of the instances, for people."""


class Tier(Front):
    """The tier of the project, behind a NAT: it sees other addresses than loopback's, and deals TCP by them."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        fleet.reach_from(map(outside, range(CLIENTS)))
        self.way = Balancer([TIER], checks=False, source=lambda client: outside(int(client.rpartition(".")[2]) % CLIENTS))

    def state(self, address: str) -> str:
        with urllib.request.urlopen(f"http://{TIER}:{ADMIN_PORT}/pools", timeout=10) as answer:
            [pool] = json.load(answer)["pools"]
        found = {backend["backend"]: STATES[backend["state"]] for backend in pool["backends"]}
        return next((state for identity, state in found.items() if f"//{address}:" in identity), GONE)

    def follow(self, addresses: Iterable[str]) -> None:
        """It asks DNS."""

    def deals(self, client: tuple[str, int]) -> str | None:
        return None

    def told(self) -> str:
        return "\n".join(line for line in self._fleet.logs("tier").splitlines() if " of pool " in line)


class FourTuples(Front):
    """See ``balancer``."""

    def __init__(self, fleet: Fleet) -> None:
        self.way = Balancer(instance.address for instance in fleet.instances)

    def state(self, address: str) -> str:
        return self.way.states[address]

    def follow(self, addresses: Iterable[str]) -> None:
        self.way.follow(addresses)

    def deals(self, client: tuple[str, int]) -> str | None:
        return self.way.pick(client)

    def told(self) -> str:
        return str(self.way.changes)
