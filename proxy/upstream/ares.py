"""Asks DNS by c-ares (aiodns), which reads what the system has on it: resolv.conf, nsswitch.conf, the hosts file, search domains.

Knows the library and translates its errors. It is loaded with the first lookup: a configuration without names costs nothing.
"""

import contextlib
import re
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING

from proxy.upstream.names import Answer, DnsError, Service

if TYPE_CHECKING:
    from aiodns import DNSResolver

TRIES = 3
"""Tries of one lookup, each with the next nameserver and more time."""

MAX_RECORDS = 64
"""Addresses of one answer that are kept; an answer over TCP may have thousands."""

MAX_SERVICES = 1000
"""Records of an SRV answer that are looked at."""

_HOST = re.compile(r"[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63}){0,126}")
"""What a target may be: it goes into Host fields, URLs and log lines."""

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
        self._asking: set[DNSResolver] = set()

    async def addresses(self, host: str) -> Answer[str]:
        """The addresses of *host*, IPv6 and IPv4, sorted as RFC 6724 has it. Raises DnsError."""
        import aiodns  # noqa: PLC0415  # see above

        try:
            async with self._resolver() as resolver:
                found = await resolver.getaddrinfo(host)
        except aiodns.error.DNSError as error:
            raise _failure(error) from None
        addresses = dict.fromkeys(node.addr[0].decode() for node in found.nodes[:MAX_RECORDS])
        if not addresses:
            raise DnsError("no_data", "it has no address")
        return Answer(tuple(addresses), min([node.ttl for node in found.nodes] + [cname.ttl for cname in found.cnames]))

    async def services(self, name: str) -> Answer[Service]:
        """The SRV records of *name*, which is whole: no search domain is added. Raises DnsError.

        Of a name with a port, ``host:port``, one record for each address; where there are both kinds, of the kind that is preferred: the
        other one leads to the same machines.
        """
        host, colon, port = name.partition(":")
        if colon:
            answer = await self.addresses(host)
            ipv6 = ":" in answer.records[0]
            records = (Service(0, address, int(port), 1) for address in answer.records if (":" in address) is ipv6)
            return Answer(tuple(sorted(records)), answer.ttl)
        import aiodns  # noqa: PLC0415  # see above
        import pycares  # noqa: PLC0415

        try:
            async with self._resolver() as resolver:
                found = await resolver.query_dns(name, "SRV")
        except aiodns.error.DNSError as error:
            raise _failure(error) from None
        services = []
        for record in found.answer[:MAX_SERVICES]:
            data = record.data
            if isinstance(data, pycares.SRVRecordData) and data.port:
                target = data.target.lower().removesuffix(".")
                if _HOST.fullmatch(target):
                    services.append(Service(data.priority, target, data.port, data.weight))
        if not services:
            raise DnsError("no_data", "it has no service")  # so says also a target of "." (RFC 2782)
        return Answer(tuple(sorted(services)), min(record.ttl for record in found.answer))

    async def close(self) -> None:
        """End what is being asked."""
        for resolver in list(self._asking):
            await resolver.close()

    @contextlib.asynccontextmanager
    async def _resolver(self) -> AsyncIterator["DNSResolver"]:
        """One for each lookup: c-ares keeps answers for as long as DNS says, also that there is none, and can't be told not to.

        When to ask again is for ``names`` to say.
        """
        import aiodns  # noqa: PLC0415  # see above

        # The whole lookup has its limit elsewhere; c-ares doubles the time of each further try.
        resolver = aiodns.DNSResolver(nameservers=self._nameservers or None, timeout=self._timeout / (2**TRIES - 1), tries=TRIES)
        self._asking.add(resolver)
        try:
            yield resolver
        finally:
            self._asking.discard(resolver)
            await resolver.close()


def _failure(error: Exception) -> DnsError:
    import pycares  # noqa: PLC0415  # as above

    number, words = error.args
    return DnsError(_RESULTS.get(pycares.errno.errorcode.get(number, ""), "error"), f"{words[:1].lower()}{words[1:]}")
