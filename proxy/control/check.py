"""One health check: a GET to one endpoint, and whether its answer says that the endpoint is well.

Knows HTTP (by httpx) and a pool's ``HealthCheck``; not when to check, nor what becomes of the verdict. Each check opens a connection of
its own: one that was kept would go on answering for a process that no longer accepts new ones.
"""

import asyncio
import os
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx

from proxy import __version__
from proxy.errors import OUT_OF_DESCRIPTORS
from proxy.listen.proxy_protocol import LOCAL_HEADER
from proxy.snapshot import Endpoint, HealthCheck, UpstreamTls
from proxy.upstream.resolve import Addresses

BODY_BYTES = 64 * 1024
"""How much of a body is searched for the wanted text."""

REASON_LENGTH = 200
"""Characters of a reason, parts of which a backend may have written."""

TURNS = 20
"""Turns of our own loop that a check has at least, however long they take: more than an exchange over TLS needs."""

_CAUSES = 10
"""Exceptions behind an exception that are looked at."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a check found."""

    healthy: bool
    words: str
    """The status, or what is wrong."""
    draining: bool = False
    """Whether the endpoint takes nothing new, and is well besides."""
    ours: bool = False
    """Whether it says nothing of the endpoint, as we have no file descriptor left to ask it."""


class Checker:
    """Checks the endpoints of one pool. Nothing is sent through proxies of the environment, and redirects are not followed."""

    def __init__(self, health: HealthCheck, tls: UpstreamTls | None, addresses: Addresses) -> None:
        self._health = health
        self._addresses = addresses
        self._tls = tls
        self._text = None if health.body is None else health.body.encode()
        self._clients: dict[str | None, httpx.AsyncClient] = {}
        """By unix socket; None for TCP."""

    async def check(self, endpoint: Endpoint) -> Verdict:
        """Check one endpoint within the pool's timeout. Raises nothing: whatever goes wrong is the verdict."""
        timeout = self._health.timeout
        try:
            async with asyncio.timeout(None) as limit:
                patience = _Patience(limit, timeout)
                try:
                    return await self._ask(endpoint)
                finally:
                    patience.end()
        except TimeoutError:
            return Verdict(healthy=False, words=f"no answer within {timeout:g} s")
        except Exception as error:  # noqa: BLE001  # a backend may make a library raise anything; its probes have to go on
            return Verdict(healthy=False, words=_reason(error), ours=_errno(error) in OUT_OF_DESCRIPTORS)

    async def close(self) -> None:
        """Close what is open."""
        clients = list(self._clients.values())
        self._clients.clear()
        for client in clients:
            await client.aclose()

    async def _ask(self, endpoint: Endpoint) -> Verdict:
        """Ask at the addresses that requests would go to, one after the other until one can be connected to."""
        if endpoint.unix_path is not None:
            return await self._ask_at(endpoint, endpoint.host, [], None)
        addresses = await self._addresses.of(endpoint.host)
        share = self._health.timeout / len(addresses) if len(addresses) > 1 else None
        for address in addresses[:-1]:
            connected: list[Any] = []
            try:
                return await self._ask_at(endpoint, address, connected, share)
            except httpx.TransportError:
                if connected:
                    raise
        return await self._ask_at(endpoint, addresses[-1], [], share)

    async def _ask_at(self, endpoint: Endpoint, address: str, connected: list[Any], patience: float | None) -> Verdict:
        """Ask at one *address*. The connection is put into *connected*; *patience* is the time to make it, in seconds."""
        health = self._health
        port = health.port or endpoint.port
        url = httpx.URL(scheme="https" if endpoint.secure else "http", host=address, port=port, raw_path=health.path.encode())
        headers = {
            "host": endpoint.authority.decode() if health.host is None else health.host,
            "user-agent": f"qproxy-probe/{__version__}",
            "accept": "*/*",
            "accept-encoding": "identity",
            "connection": "close",
        }

        async def trace(event: str, details: dict[str, Any]) -> None:
            if event in {"connection.connect_tcp.complete", "connection.connect_unix_socket.complete"}:
                connected.append(details["return_value"])
                if health.proxy_protocol:
                    await details["return_value"].write(LOCAL_HEADER)

        extensions: dict[str, Any] = {"trace": trace, "timeout": {"connect": patience}}
        if self._tls is not None and endpoint.secure:
            extensions["sni_hostname"] = self._tls.server_name or endpoint.tls_name or endpoint.host
        try:
            async with self._client(endpoint.unix_path).stream("GET", url, headers=headers, extensions=extensions) as response:
                return await self._judge(response)
        finally:
            # httpcore leaves the socket open when it is cancelled in a TLS handshake, and the loop would keep it for good
            for stream in connected:
                await stream.aclose()

    async def _judge(self, response: httpx.Response) -> Verdict:
        status = response.status_code
        if status in self._health.draining:
            return Verdict(healthy=True, words=f"status {status}: it takes nothing new", draining=True)
        if not any(low <= status <= high for low, high in self._health.statuses):
            return Verdict(healthy=False, words=f"status {status}")
        if self._text is not None and not await _contains(response, self._text):
            return Verdict(healthy=False, words=f"status {status}, but the wanted text is not in the first {BODY_BYTES} bytes")
        return Verdict(healthy=True, words=f"status {status}")

    def _client(self, unix_path: str | None) -> httpx.AsyncClient:
        client = self._clients.get(unix_path)
        if client is None:
            # httpx sets ALPN http/1.1 on the context, which is what all of this pool's connections speak
            verify: ssl.SSLContext | bool = self._tls.context if self._tls is not None else False  # False: the pool has no https at all
            limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
            transport = httpx.AsyncHTTPTransport(verify=verify, http1=True, http2=False, trust_env=False, uds=unix_path, limits=limits)
            client = httpx.AsyncClient(transport=transport, trust_env=False, follow_redirects=False, timeout=None)  # noqa: S113  # ``check`` limits the whole
            self._clients[unix_path] = client
        return client


class _Patience:
    """Ends *limit* after *seconds*, in slices that each take one turn of the loop or more.

    Under full load a turn may last a tenth of a second, and a check takes several. By the clock alone a proxy that is slow itself would
    find all of its backends down at once, and answer 503 to everybody.
    """

    def __init__(self, limit: asyncio.Timeout, seconds: float) -> None:
        self._limit = limit
        self._loop = asyncio.get_running_loop()
        self._slice = seconds / TURNS
        self._left = TURNS
        self._timer = self._loop.call_later(self._slice, self._tick)

    def end(self) -> None:
        self._timer.cancel()

    def _tick(self) -> None:
        self._left -= 1
        if self._left:
            self._timer = self._loop.call_later(self._slice, self._tick)
        else:
            self._limit.reschedule(self._loop.time())


async def _contains(response: httpx.Response, text: bytes) -> bool:
    """Whether *text* is in the first part of the body; reads no further than needed."""
    seen = bytearray()
    async for piece in response.aiter_raw():
        start = max(0, len(seen) - len(text) + 1)
        seen += piece[: BODY_BYTES - len(seen)]
        if seen.find(text, start) >= 0:
            return True
        if len(seen) >= BODY_BYTES:
            break
    return not text


def _reason(error: BaseException) -> str:
    """What went wrong in one line: the operating system's or TLS's own word, which httpx wraps several times, if there is one."""
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return _short(f"certificate refused: {cause.verify_message}")
        if isinstance(cause, ssl.SSLError):
            return _short(f"TLS failed: {cause.reason or cause}")
        if isinstance(cause, OSError) and cause.errno is not None and cause.errno > 0:
            return os.strerror(cause.errno).lower()
    return _short(str(error) or type(error).__name__)


def _errno(error: BaseException) -> int | None:
    """The operating system's first word."""
    return next((cause.errno for cause in _causes(error) if isinstance(cause, OSError) and cause.errno is not None), None)


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    for _ in range(_CAUSES):
        if cause is None:
            return
        yield cause
        cause = cause.exceptions[0] if isinstance(cause, BaseExceptionGroup) else cause.__cause__ or cause.__context__


def _short(text: str) -> str:
    return text if len(text) <= REASON_LENGTH else text[: REASON_LENGTH - 1] + "…"
