"""Opens a connection to an endpoint: TCP, TLS or a unix socket, and says in the proxy's own terms what went wrong.

One time limit covers all of it: the name's first answer where there is none yet, the addresses (``race``), the TLS handshake.
"""

import asyncio
import socket
import ssl
from collections.abc import Callable
from typing import TypeVar

from proxy.errors import OUT_OF_DESCRIPTORS, Kind, ProxyError
from proxy.snapshot import Endpoint, UpstreamTls
from proxy.upstream.race import race
from proxy.upstream.resolve import Addresses

ProtocolT = TypeVar("ProtocolT", bound=asyncio.BaseProtocol)


async def connect(  # noqa: PLR0913  # all that a connection is made of
    make: Callable[[], ProtocolT],
    endpoint: Endpoint,
    tls: UpstreamTls | None,
    timeout: float,  # noqa: ASYNC109  # one limit over several steps, translated below
    *,
    addresses: Addresses,
    fast_open: bool = True,
) -> ProtocolT:
    """Connect within *timeout* seconds and give the protocol made. *addresses* tells where the endpoint's host is.

    *fast_open*: the first bytes may travel with the SYN, which the network may deliver twice (RFC 7413, section 6.2).
    Raises ProxyError, with ``retry`` set: no byte of a request was sent.
    """
    try:
        async with asyncio.timeout(timeout):
            return await _connect(make, endpoint, tls if endpoint.secure else None, addresses, fast_open=fast_open)
    except TimeoutError:
        raise ProxyError(Kind.CONNECT_TIMEOUT, f"no connection to {endpoint.url} within {timeout:g} s", retry=True) from None
    except ssl.SSLCertVerificationError as error:
        raise ProxyError(Kind.UPSTREAM_CERTIFICATE, f"{endpoint.url}: {error.verify_message}", retry=True) from None
    except ssl.SSLError as error:
        raise ProxyError(Kind.UPSTREAM_TLS, f"{endpoint.url}: {error.reason or error}", retry=True) from None
    except OSError as error:
        kind = Kind.OVERLOADED if error.errno in OUT_OF_DESCRIPTORS else Kind.CONNECT_REFUSED
        raise ProxyError(kind, f"{endpoint.url}: {error.strerror or error}", retry=True) from None
    except ValueError as error:  # a name that can't be one: of a host (UnicodeError), or to verify
        raise ProxyError(Kind.CONNECT_REFUSED, f"{endpoint.url}: {error}", retry=True) from None


async def _connect(
    make: Callable[[], ProtocolT],
    endpoint: Endpoint,
    tls: UpstreamTls | None,
    addresses: Addresses,
    *,
    fast_open: bool,
) -> ProtocolT:
    context = tls.context if tls is not None else None
    name = (tls.server_name or endpoint.tls_name or endpoint.host) if tls is not None else None
    if context is not None:
        context.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_hostname=name)  # ValueError now, not with a socket in the loop's hands
    if endpoint.unix_path is not None:
        loop = asyncio.get_running_loop()
        _, protocol = await loop.create_unix_connection(make, endpoint.unix_path, ssl=context, server_hostname=name)
        return protocol
    sock = await race(await addresses.of(endpoint.host), endpoint.port, fast_open=fast_open)
    return await _begin(make, endpoint, sock, context, name)


async def _begin(
    make: Callable[[], ProtocolT], endpoint: Endpoint, sock: socket.socket, context: ssl.SSLContext | None, name: str | None
) -> ProtocolT:
    """TLS, where there is any, on a connected socket. The socket is the transport's from here on, which closes it."""
    try:
        _, protocol = await asyncio.get_running_loop().create_connection(make, sock=sock, ssl=context, server_hostname=name)
    except ConnectionError as error:
        if context is None:
            raise
        raise ProxyError(Kind.UPSTREAM_TLS, f"{endpoint.url}: closed within the handshake", retry=True) from error
    return protocol
