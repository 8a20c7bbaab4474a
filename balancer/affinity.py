"""Affinity keys: what a client is hashed by when no field of its requests says more.

Keyed hashes, because the client chooses the bytes: without the secret it cannot aim at a backend. Knows nothing of rings and pools.
"""

from hashlib import blake2b
from ipaddress import AddressValueError, IPv6Address

KEY_BYTES = 16
"""Length of an affinity key."""


def connection_key(secret: bytes, original_dcid: bytes) -> bytes:
    """The key of a QUIC connection, from the Destination Connection ID of the client's first Initial (RFC 9000, section 7.2).

    With a Retry, that is the one in the validated token. *secret*: at most 64 bytes. Fixed for the life of the connection.
    """
    return blake2b(original_dcid, digest_size=KEY_BYTES, key=secret, person=b"qproxy-conn").digest()


def address_key(secret: bytes, address: str) -> bytes:
    """The key of a client address (text without brackets): IPv6 by its /64, which is one site or host (RFC 6177), IPv4 whole.

    IPv4 in IPv6 (RFC 4291, section 2.5.5.2) counts as IPv4. Text that is no address is hashed as it stands: it never raises.
    """
    return blake2b(_significant(address), digest_size=KEY_BYTES, key=secret, person=b"qproxy-addr").digest()


def _significant(address: str) -> bytes:
    if ":" not in address:
        return address.encode("utf-8", "surrogatepass")
    try:
        parsed = IPv6Address(address)
    except AddressValueError:
        return address.encode("utf-8", "surrogatepass")
    mapped = parsed.ipv4_mapped
    return parsed.packed[:8] if mapped is None else str(mapped).encode()
