"""How much an envelope may hold on the way to an address, so that the first link need not cut it apart.

The system knows: the MTU of the route, less where ICMP has told of a narrower link. It is asked once a minute for each address.
"""

from proxy.listen.bind import mtu_to
from proxy.message import Address

LEAST_MTU = 1280
"""Of any way (RFC 8200, section 5); also where the system does not tell."""

LARGEST_MTU = 65535
"""Of IP, whatever a loopback interface says."""

HEADERS_IPV4, HEADERS_IPV6 = 28, 48
"""Bytes of the headers of IP and UDP."""

KEPT = 60.0
"""Seconds for which an answer is good."""

MOST = 1024
"""Addresses that are remembered."""


class Ways:
    """What is known of the ways to some addresses, for payloads with *overhead* bytes in the same datagram."""

    def __init__(self, overhead: int) -> None:
        self._overhead = overhead
        self._known: dict[Address, tuple[int, float]] = {}

    def room(self, address: Address, now: float) -> int:
        """Bytes that a payload to *address* may have. *now* is monotonic, in seconds."""
        found = self._known.get(address)
        if found is None or found[1] <= now:
            if found is None and len(self._known) >= MOST:
                self._known.clear()
            mtu = max(LEAST_MTU, min(LARGEST_MTU, mtu_to(address) or LEAST_MTU))
            headers = HEADERS_IPV6 if ":" in address[0] else HEADERS_IPV4
            found = self._known[address] = (mtu - headers - self._overhead, now + KEPT)
        return found[0]
