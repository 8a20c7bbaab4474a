"""The admin API: metrics, health, pools and configuration of this process, to read only.

Knows aiohttp and callbacks; state belongs to others. Meant for loopback or a private network: it has no passwords. A web page in an
operator's browser can't read it either: a Host that could be somebody's domain is refused (DNS rebinding).
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from ipaddress import ip_address
from typing import Any

import orjson
from aiohttp import web

from proxy.config.diff import Changes
from proxy.config.load import ConfigError
from proxy.control.metrics import Exposition, Reading
from proxy.control.port import Port
from proxy.message import Address
from proxy.meters import BackendState, PoolState
from proxy.observe import Log

MAX_CONNECTIONS = 64
"""Open connections to the admin API, at most: further ones are closed at once."""

IDLE_SECONDS = 60.0
"""How long a connection may wait between requests."""

_HEADERS = {"Server": "qproxy", "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}


@dataclass(frozen=True, slots=True)
class ConfigStatus:
    """What became of the configuration."""

    generation: int
    """Of the configuration in use, counted from 1 at start."""
    loaded_at: float
    """When that one came into use: seconds since the epoch."""
    last_result: str
    """``ok`` or ``failed``: of the last attempt to load."""
    last_attempt_at: float
    problems: tuple[str, ...] = ()
    """Why the last attempt failed; warnings, where it did not."""


@dataclass(frozen=True, slots=True)
class Found:
    """What DNS has for a backend's host."""

    addresses: tuple[str, ...]
    """In use, in the order in which they are tried."""
    words: str
    """How old the answer is, or why there is none."""


@dataclass(frozen=True, slots=True)
class Views:
    """Where the pages get what they show: called on the event loop, once for each request."""

    readings: Callable[[], Awaitable[list[Reading]]]
    exposition: Exposition
    draining: Callable[[], bool]
    pools: Callable[[], Iterable[PoolState]]
    last_probe: Callable[[str, str], str | None]
    """Pool and backend to the outcome of its last probe, in words; None: not probed."""
    addresses: Callable[[str, str], Found | None]
    """Pool and backend to where its host is; None: it has no name that is looked up."""
    services: Callable[[str], dict[str, str]]
    """Pool to the endpoints that stand for SRV records, and how old the answers are."""
    config: Callable[[], ConfigStatus]
    changes: Callable[[], Awaitable[Changes]]
    """What the files say now, against what is in use. Raises ConfigError."""


class Admin:
    """The server. ``address`` is the bound one after ``start``."""

    def __init__(self, address: Address, views: Views, log: Log) -> None:
        self.address = address
        self._names = frozenset({"localhost", address[0].lower()})
        self._views = views
        self._log = log
        self._rendering = asyncio.Lock()
        self._runner: web.AppRunner | None = None
        self._port: Port | None = None

    async def start(self) -> None:
        """Bind and serve; OSError when the address can't be had."""
        app = web.Application(middlewares=[self._guard], client_max_size=1024)
        pages = {
            "/metrics": self._metrics,
            "/health": self._health,
            "/pools": self._pools,
            "/peers": self._peers,
            "/config": self._config,
            "/config/changes": self._changes,
        }
        for path, page in pages.items():
            app.router.add_get(path, page)
        runner = web.AppRunner(app, access_log=None, handle_signals=False, keepalive_timeout=IDLE_SECONDS, shutdown_timeout=2.0)
        await runner.setup()
        self._runner = runner
        port = Port(self.address, self._accept, self._log)
        try:
            port.open()
        except OSError:
            await self.stop()
            raise
        self._port = port
        self.address = port.address

    async def stop(self) -> None:
        """Stop listening, let requests in progress end (two seconds at most), close."""
        port, self._port = self._port, None
        runner, self._runner = self._runner, None
        if port is not None:
            await port.close()
        if runner is not None:
            await runner.cleanup()

    def _accept(self) -> asyncio.Protocol:
        server = self._runner.server if self._runner is not None else None
        if server is None or len(server.connections) >= MAX_CONNECTIONS:
            return _Refusal()
        return server()

    @web.middleware
    async def _guard(self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> web.StreamResponse:
        """Refuse foreign hosts; turn every error into JSON."""
        host = request.headers.get("Host")
        if host is not None and not self._may_name(host):
            return _error(403, "the Host of an admin request must be an IP address, localhost or the configured name")
        try:
            return await handler(request)
        except web.HTTPNotFound:
            return _error(404, "there are /metrics, /health, /pools, /peers, /config and /config/changes")
        except web.HTTPMethodNotAllowed as refusal:
            return _error(405, "the admin API can only be read", {"Allow": ", ".join(sorted(refusal.allowed_methods))})
        except web.HTTPException as refusal:
            return _error(refusal.status, refusal.reason)
        except Exception as error:  # noqa: BLE001  # one page's fault is logged and told, the server lives
            self._log.error("an admin page failed", path=request.path, exc_info=error)
            return _error(500, "an internal error; the log has more")

    def _may_name(self, host: str) -> bool:
        """Whether a request may call us so. A name without a dot is nobody's domain: container networks use such names."""
        name = host.strip().lower()
        if name.startswith("["):
            name = name[1:].partition("]")[0]
        elif name.count(":") == 1:
            name = name.partition(":")[0]
        if name in self._names or (name and not set(name) & set(".:")):
            return True
        try:
            ip_address(name)
        except ValueError:
            return False
        return True

    async def _metrics(self, request: web.Request) -> web.Response:
        exposition = self._views.exposition
        async with self._rendering:
            readings = await self._views.readings()
            content_type, page = await asyncio.to_thread(exposition.format, readings, request.headers.get("Accept", ""))
        return web.Response(body=page, headers={"Content-Type": content_type, **_HEADERS})

    async def _health(self, _request: web.Request) -> web.Response:
        if self._views.draining():
            return web.Response(status=503, text="draining\n", headers=_HEADERS)
        return web.Response(text="OK\n", headers=_HEADERS)

    async def _pools(self, _request: web.Request) -> web.Response:
        pools = [
            {
                "pool": pool.name,
                "services": self._views.services(pool.name),
                "backends": [self._backend(pool.name, backend) for backend in pool.backends],
            }
            for pool in self._views.pools()
        ]
        return _json({"pools": pools})

    def _backend(self, pool: str, backend: BackendState) -> dict[str, object]:
        found = self._views.addresses(pool, backend.identity)
        return {
            "backend": backend.identity,
            "state": backend.state,
            "reason": backend.reason,
            "weight": backend.weight,
            "backup": bool(backend.backup),
            "rank": backend.backup,
            "inflight": backend.inflight,
            "last_probe": self._views.last_probe(pool, backend.identity),
            "addresses": None if found is None else found.addresses,
            "dns": None if found is None else found.words,
        }

    async def _peers(self, _request: web.Request) -> web.Response:
        """As the workers' metrics have it: each of them finds out for itself."""
        known = {reading.name: reading.values for reading in await self._views.readings()}
        trips = dict(known.get("qproxy_peer_round_trip_seconds", ()))
        peers: dict[str, dict[str, Any]] = {}
        for (address, server_id, state), workers in known.get("qproxy_peers", ()):
            if not workers:
                continue
            peer = peers.setdefault(address, {"peer": address, "server_id": "", "workers": {}, "round_trip": trips.get((address,))})
            peer["server_id"] = server_id or peer["server_id"]
            peer["workers"][state] = int(workers)  # type: ignore[arg-type]  # a gauge has numbers
        return _json({"peers": [peers[address] for address in sorted(peers)]})

    async def _config(self, _request: web.Request) -> web.Response:
        status = self._views.config()
        return _json(
            {
                "generation": status.generation,
                "loaded_at": _time(status.loaded_at),
                "last_reload": {"result": status.last_result, "at": _time(status.last_attempt_at), "problems": list(status.problems)},
            }
        )

    async def _changes(self, _request: web.Request) -> web.Response:
        try:
            changes = await self._views.changes()
        except ConfigError as error:
            return _json({"reload": [], "restart": [], "problems": [str(problem) for problem in error.problems]})
        return _json({"reload": changes.reload, "restart": changes.restart, "problems": []})


class _Refusal(asyncio.Protocol):
    """A connection too many."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.close()


def _json(content: dict[str, Any], status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    body = orjson.dumps(content, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
    return web.Response(status=status, body=body, content_type="application/json", headers=_HEADERS | (headers or {}))


def _error(status: int, message: str, headers: dict[str, str] | None = None) -> web.Response:
    return _json({"error": message}, status, headers)


def _time(epoch: float) -> str:
    """RFC 3339, UTC."""
    return datetime.fromtimestamp(epoch, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
