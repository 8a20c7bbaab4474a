"""Asks DNS by c-ares (aiodns), which reads what the system has on it: resolv.conf, nsswitch.conf, the hosts file, search domains.

Knows the library and translates its errors. It is loaded with the first lookup: a configuration without names costs nothing.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from proxy.upstream.names import Answer, DnsError

if TYPE_CHECKING:
    from aiodns import DNSResolver

TRIES = 3
"""Tries of one lookup, each with the next nameserver and more time."""

MAX_RECORDS = 64
"""Addresses of one answer that are kept; an answer over TCP may have thousands."""

_RESULTS = {
    "ARES_ENOTFOUND": "no_name",
    "ARES_ENODATA": "no_data",
    "ARES_ETIMEOUT": "timeout",
    "ARES_EREFUSED": "refused",
    "ARES_ECONNREFUSED": "refused",
    "ARES_ESERVFAIL": "server_failure",
}


class Ares:
    """One resolver of a process. *nameservers* (``address`` or ``address:port``) stand in for the system's; *timeout* in seconds."""

    def __init__(self, nameservers: Sequence[str], timeout: float) -> None:
        self._nameservers = nameservers
        self._timeout = timeout
        self._made: DNSResolver | None = None

    async def addresses(self, host: str) -> Answer[str]:
        """The addresses of *host*, IPv6 and IPv4, sorted as RFC 6724 has it. Raises DnsError."""
        import aiodns  # noqa: PLC0415  # see above

        try:
            found = await self._resolver().getaddrinfo(host)
        except aiodns.error.DNSError as error:
            raise _failure(error) from None
        addresses = dict.fromkeys(node.addr[0].decode() for node in found.nodes[:MAX_RECORDS])
        if not addresses:
            raise DnsError("no_data", "it has no address")
        return Answer(tuple(addresses), min([node.ttl for node in found.nodes] + [cname.ttl for cname in found.cnames]))

    async def close(self) -> None:
        """End what is being asked."""
        made, self._made = self._made, None
        if made is not None:
            await made.close()

    def _resolver(self) -> "DNSResolver":
        if self._made is None:
            import aiodns  # noqa: PLC0415  # see above

            # The whole lookup has its limit elsewhere; c-ares doubles the time of each further try.
            self._made = aiodns.DNSResolver(nameservers=self._nameservers or None, timeout=self._timeout / (2**TRIES - 1), tries=TRIES)
        return self._made


def _failure(error: Exception) -> DnsError:
    import pycares  # noqa: PLC0415  # as above

    number, words = error.args
    return DnsError(_RESULTS.get(pycares.errno.errorcode.get(number, ""), "error"), f"{words[:1].lower()}{words[1:]}")
