"""The address of this machine, by which its instance can be told from others. Sends nothing."""

import contextlib
import socket
from ipaddress import ip_address

_BEYOND = ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1"))
"""Addresses that are nobody's (RFC 5737, RFC 3849), so that the default route leads there."""


def own_address() -> str | None:
    """The address that this machine has on the way to others, IPv4 before IPv6; None where it has no default route."""
    for family, beyond in _BEYOND:
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.connect((beyond, 9))
            return str(sock.getsockname()[0])
    return None


def server_id_of(address: str) -> bytes:
    """What stands for *address* in connection IDs: all of an IPv4 one; of IPv6 the last 8 bytes, which tell the hosts of a network apart.

    All 16 would leave no room for a nonce.
    """
    packed = ip_address(address).packed
    return packed if len(packed) == 4 else packed[8:]
