"""An address book for tests: hosts and their addresses; an address is its own, and ``localhost`` is IPv4 only."""

from collections.abc import Sequence

from proxy.errors import Kind, ProxyError
from proxy.upstream.resolve import in_order, is_address


class Book(dict[str, Sequence[str]]):
    async def of(self, host: str) -> Sequence[str]:
        if is_address(host):
            return (host,)
        found = self.get(host, ("127.0.0.1",) if host == "localhost" else ())
        if not found:
            raise ProxyError(Kind.DNS_ERROR, f"{host}: domain name not found", retry=True)
        return in_order(found)
