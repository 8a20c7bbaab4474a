"""Who may: networks by CIDR, and the allow and deny lists of a route.

Knows addresses as text and nothing of requests. IPv4-mapped IPv6 addresses count as IPv4, on both sides of a comparison.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

MEMO = 4096
"""Addresses whose verdict is remembered, at most; then the memory starts anew. Parsing one costs two microseconds."""

_MAPPED = IPv6Network("::ffff:0:0/96")


class Networks:
    """A set of networks. ``address in networks`` takes an IP address as text; what is no address is in none."""

    __slots__ = ("_memo", "_v4", "_v6", "cidrs")

    def __init__(self, cidrs: Iterable[str]) -> None:
        """Take CIDR blocks or single addresses; ValueError names the first that is neither, or has host bits set."""
        networks = [_unmapped(ip_network(cidr)) for cidr in cidrs]
        self.cidrs = tuple(str(network) for network in networks)
        """The networks, normalised, in the order given."""
        self._v4 = _by_length(network for network in networks if network.version == 4)
        self._v6 = _by_length(network for network in networks if network.version == 6)
        self._memo: dict[str, bool | None] = {}

    def __contains__(self, address: str) -> bool:
        return self.covers(address) is True

    def __bool__(self) -> bool:
        return bool(self.cidrs)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Networks) and self.cidrs == other.cidrs

    def __hash__(self) -> int:
        return hash(self.cidrs)

    def __repr__(self) -> str:
        return f"Networks({list(self.cidrs)})"

    def covers(self, address: str) -> bool | None:
        """Whether the address is in one of the networks; None: it is no address."""
        try:
            return self._memo[address]
        except KeyError:
            pass
        if len(self._memo) >= MEMO:
            self._memo.clear()
        verdict = self._memo[address[:64]] = self._judge(address)
        return verdict

    def _judge(self, address: str) -> bool | None:
        try:
            parsed = ip_address(address)
        except ValueError:
            return None
        if isinstance(parsed, IPv6Address):
            if parsed.ipv4_mapped is None:
                return any(int(parsed) >> shift in blocks for shift, blocks in self._v6)
            parsed = parsed.ipv4_mapped
        return any(int(parsed) >> shift in blocks for shift, blocks in self._v4)


@dataclass(frozen=True, slots=True)
class Access:
    """The rule of a route: *deny* wins; with *allow*, only those. What is no address passes no rule."""

    allow: Networks | None = None
    deny: Networks | None = None

    def permits(self, address: str) -> bool:
        """Whether a client with this address may go on."""
        if self.deny is not None and self.deny.covers(address) is not False:
            return False
        return self.allow is None or address in self.allow


def plain_address(address: str) -> str:
    """An address as text, normalised: compressed, without scope, an IPv4-mapped one as IPv4. ValueError when it is none."""
    parsed = ip_address(address.partition("%")[0])
    if isinstance(parsed, IPv6Address) and parsed.ipv4_mapped is not None:
        parsed = parsed.ipv4_mapped
    return str(parsed)


def _unmapped(network: IPv4Network | IPv6Network) -> IPv4Network | IPv6Network:
    if isinstance(network, IPv6Network) and network.subnet_of(_MAPPED):
        return IPv4Network((int(network.network_address) & 0xFFFFFFFF, network.prefixlen - 96))
    return network


def _by_length(networks: Iterable[IPv4Network | IPv6Network]) -> tuple[tuple[int, frozenset[int]], ...]:
    """Networks as sets of leading bits, by how far an address is to be shifted: one set lookup for each prefix length."""
    blocks: dict[int, set[int]] = {}
    for network in networks:
        shift = network.max_prefixlen - network.prefixlen
        blocks.setdefault(shift, set()).add(int(network.network_address) >> shift)
    return tuple((shift, frozenset(blocks[shift])) for shift in sorted(blocks))
