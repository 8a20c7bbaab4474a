"""Opens a connection to an endpoint: TCP, TLS or a unix socket, and says in the proxy's own terms what went wrong.

Resolves names, tries each address in turn within one time limit, sets nodelay, and TCP Fast Open where the kernel has it.
"""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable
from typing import TypeVar

from proxy.errors import Kind, ProxyError
from proxy.snapshot import Endpoint, UpstreamTls

TCP_FASTOPEN_CONNECT = getattr(
    socket, "TCP_FASTOPEN_CONNECT", 30 if hasattr(socket, "SO_REUSEPORT") and hasattr(socket, "AF_PACKET") else 0
)
"""The Linux socket option (since 4.11) that sends the first bytes with the SYN; Python names it from 3.15 on. 0: not this system."""

MAX_ADDRESSES = 8
"""Addresses of one name that are tried."""

ProtocolT = TypeVar("ProtocolT", bound=asyncio.BaseProtocol)


async def connect(
    make: Callable[[], ProtocolT],
    endpoint: Endpoint,
    tls: UpstreamTls | None,
    timeout: float,  # noqa: ASYNC109  # one limit over several steps, translated below
    *,
    fast_open: bool = True,
) -> ProtocolT:
    """Connect within *timeout* seconds and give the protocol made.

    *fast_open*: the first bytes may travel with the SYN, which the network may deliver twice (RFC 7413, section 6.2).
    Raises ProxyError, with ``retry`` set: no byte of a request was sent.
    """
    try:
        async with asyncio.timeout(timeout):
            return await _connect(make, endpoint, tls if endpoint.secure else None, timeout, fast_open=fast_open)
    except TimeoutError:
        raise ProxyError(Kind.CONNECT_TIMEOUT, f"no connection to {endpoint.url} within {timeout:g} s", retry=True) from None
    except ssl.SSLCertVerificationError as error:
        raise ProxyError(Kind.UPSTREAM_CERTIFICATE, f"{endpoint.url}: {error.verify_message}", retry=True) from None
    except ssl.SSLError as error:
        raise ProxyError(Kind.UPSTREAM_TLS, f"{endpoint.url}: {error.reason or error}", retry=True) from None
    except OSError as error:
        raise ProxyError(Kind.CONNECT_REFUSED, f"{endpoint.url}: {error.strerror or error}", retry=True) from None
    except ValueError as error:  # a name that can't be one: of a host (UnicodeError), or to verify
        raise ProxyError(Kind.CONNECT_REFUSED, f"{endpoint.url}: {error}", retry=True) from None


async def _connect(
    make: Callable[[], ProtocolT],
    endpoint: Endpoint,
    tls: UpstreamTls | None,
    timeout: float,  # noqa: ASYNC109  # shared out between addresses
    *,
    fast_open: bool,
) -> ProtocolT:
    loop = asyncio.get_running_loop()
    context = tls.context if tls is not None else None
    name = (tls.server_name or endpoint.host) if tls is not None else None
    if context is not None:
        context.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_hostname=name)  # ValueError now, not with a socket in the loop's hands
    if endpoint.unix_path is not None:
        _, protocol = await loop.create_unix_connection(make, endpoint.unix_path, ssl=context, server_hostname=name)
        return protocol
    found = await loop.getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_STREAM)
    addresses = found[:MAX_ADDRESSES]
    failure: OSError | None = None
    for family, kind, protocol_number, _, address in addresses:
        sock = socket.socket(family, kind, protocol_number)
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if TCP_FASTOPEN_CONNECT and fast_open:
                with contextlib.suppress(OSError):
                    sock.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1)
            # an address that swallows packets must not take the time of the others
            async with asyncio.timeout(timeout / len(addresses)):
                await loop.sock_connect(sock, address)
        except OSError as error:
            sock.close()
            failure = error
        except BaseException:
            sock.close()
            raise
        else:
            return await _begin(make, endpoint, sock, context, name)
    raise failure or OSError(f"{endpoint.host} has no address")


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
