"""The way back to clients that came through a relay, as an address that an engine can have for its own side of a path. Pure.

An engine knows a path by both its ends. The client's is real; ours is made of the relay, in the prefix 100::/64 that nobody is behind (RFC
6666): by a hash, so that all workers of an instance call one relay by one name. What is sent from such an address goes to the relay.
"""

from hashlib import blake2b
from ipaddress import IPv6Address
from typing import NamedTuple

from proxy.message import Address

PREFIX = "100::"
"""What all of these addresses begin with, and no other of ours."""

MAX_RELAYS = 4096
"""Known at once: each address of a relay that clients send to, and each of its workers, is one. The oldest is forgotten for a new one."""


class Relay(NamedTuple):
    """Who has a client's address in hand."""

    address: Address
    """Where its envelopes come from, and go to."""
    local: bytes
    """Its own address that the client sends to, ``envelope.packed``."""
    back: int
    """Steer of what goes to it."""


class Relays:
    """Those from whom datagrams came."""

    def __init__(self) -> None:
        self._hosts: dict[Relay, str] = {}
        self._relays: dict[str, Relay] = {}

    def __len__(self) -> int:
        """How many are known."""
        return len(self._hosts)

    def host_of(self, relay: Relay) -> str:
        """The address that stands for *relay*."""
        host = self._hosts.get(relay)
        if host is None:
            if len(self._hosts) >= MAX_RELAYS:
                oldest = next(iter(self._hosts))
                del self._relays[self._hosts.pop(oldest)]
            host = self._hosts[relay] = _host(relay)
            self._relays[host] = relay
        return host

    def relay_of(self, host: str) -> Relay | None:
        """The relay that *host* stands for; None where it was forgotten."""
        return self._relays.get(host)


def is_relayed(local: Address) -> bool:
    """Whether what has this address on our side goes to a relay."""
    return local[0].startswith(PREFIX)


def _host(relay: Relay) -> str:
    (host, port), local, back = relay
    digest = blake2b(b"%b %d %d " % (host.encode(), port, back) + local, digest_size=8).digest()
    return str(IPv6Address(b"\x01" + bytes(7) + digest))
