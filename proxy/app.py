"""The composition root: the only place that makes the parts and wires them, and their life from start to drain.

Order of a start: configuration, secret, snapshot, sockets, then everything that runs. Order of an end: health says 503, GOAWAY, no more
connections, what runs may finish until the deadline, then the rest is cut. A reload compiles a new snapshot beside the old one and
swaps one reference; what the new one shares with the old one (pools, connections to backends, certificates' contexts) stays.
"""

import asyncio
import contextlib
import gc
import itertools
import os
import resource
import secrets
import signal
import socket
import sys
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from balancer.pool import Pool as BalancerPool
from proxy import __version__
from proxy.config.collector import collector_paused
from proxy.config.compile import compile_snapshot, diff, with_port
from proxy.config.diff import outside
from proxy.config.load import ConfigError, Configuration, load
from proxy.config.material import self_signed
from proxy.control.admin import Admin, ConfigStatus, Views
from proxy.control.certificates import CertificateRefresher, with_certificates
from proxy.control.log import Logs, LogSettings
from proxy.control.metrics import Exposition
from proxy.control.presence import Presence
from proxy.control.probe import Prober
from proxy.control.qlog import TraceSettings, Tracing
from proxy.control.state import StateError, load_secret
from proxy.deadlines import TICK, Deadlines
from proxy.engine.choice import MakeQuic, choose
from proxy.engine.quic.ids import Routable
from proxy.engine.quic.settings import QuicSettings
from proxy.engine.quic.tickets import Tickets
from proxy.engine.seam import Endpoint, Handle
from proxy.listen.limits import AcceptLimits
from proxy.listen.tcp import TcpListener, bind_tcp
from proxy.listen.tls import ContextError, TlsContexts
from proxy.listen.udp import UdpListener
from proxy.listen.udp_socket import Buffers, bind_udp
from proxy.message import Address
from proxy.meters import ProxyMetrics
from proxy.observe import Log, Metrics
from proxy.policy.access import Networks
from proxy.services import Services
from proxy.snapshot import Listener, Snapshot
from proxy.sni import Certificate, TlsProfile
from proxy.tasks import Tasks
from proxy.upstream.pool import Upstreams

EXIT_OK, EXIT_FAILURE, EXIT_CONFIGURATION = 0, 1, 2

TCP_PROTOCOLS = frozenset({"http/1.1", "h2"})

EXPIRE_EVERY = 10
"""Ticks between looks at idle upstream connections, and at what QUIC listeners have to tell."""

SPARE_DESCRIPTORS = 128
"""For listeners, logs, probes, watches and the admin API."""

POLL = 0.05
"""Seconds between looks at what is left of a drain."""

DRAIN_STEP = 1.0
"""Seconds between the two words with which a drain ends a connection: for the first to arrive, and for what was sent before it did."""

CLOSE_GRACE = 0.5
"""Seconds for the last packets (CONNECTION_CLOSE, close_notify) to leave after a drain."""


def run(config: Path) -> int:
    """Serve the configuration at *config* until SIGTERM or SIGINT; gives the exit code. Says on stderr what is wrong."""
    gc.collect()  # what the imports left; a start makes no garbage in cycles, so that what stands at its end can be frozen as it is
    with collector_paused():  # ``_settle_memory`` lets it begin
        return _run(config)


def _run(config: Path) -> int:
    try:
        configuration = load(config, os.environ)
        secret = load_secret(configuration.state)
    except ConfigError as error:
        return _complain(str(error), EXIT_CONFIGURATION)
    except StateError as error:
        return _complain(f"qproxy: {error}", EXIT_FAILURE)
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            return runner.run(App(config, configuration, secret).run())
    except StartError as error:
        return _complain(f"qproxy: {error}", EXIT_FAILURE)


class StartError(Exception):
    """Something that is needed can't be had; the text says what."""


class App:
    """One running proxy."""

    def __init__(self, config: Path, configuration: Configuration, secret: bytes) -> None:
        self._config = config
        self._configuration = configuration
        self._metrics = Metrics()
        log = configuration.log
        self._logs = Logs(LogSettings(form=log.format, level=log.level, access=log.access), self._metrics)
        self._logs.adopt_standard_logging()
        self._log: Log = self._logs.events
        self._meters = ProxyMetrics(self._metrics)
        self._generations = itertools.count(1)
        self._seed = secrets.randbits(64)
        self._make_request_id = _request_ids()
        self._default_certificate = self_signed(("localhost",))
        self._tasks = Tasks(self._log)
        self._upstreams = Upstreams(self._meters, self._tasks, time.monotonic)
        self._secret = secret
        self._presence = Presence(configuration.state, time.time)
        self._tickets = Tickets(secret, time.time, os.urandom, self._presence.alone_since)
        snapshot = self._compile(configuration, None)
        self._services = Services(
            snapshot=snapshot,
            upstreams=self._upstreams,
            deadlines=Deadlines(time.monotonic()),
            meters=self._meters,
            access_log=self._logs.access,
            log=self._log,
            clock=time.monotonic,
            wall_clock=time.time,
            make_request_id=self._make_request_id,
            secret=secret,
        )
        self._contexts = TlsContexts()
        self._contexts.build(snapshot)
        self._limits = AcceptLimits(snapshot.limits, snapshot.trusted_proxies, self._metrics)
        self._prober = Prober(snapshot.pools, self._log, self._metrics, clock=time.monotonic)
        self._refresher = CertificateRefresher(configuration.certificate_files, self._publish_certificates, self._log, self._metrics)
        self._h2 = choose("h2", configuration.server.engines.h2)
        self._quic = choose("quic", configuration.server.engines.quic)
        self._tracing: Tracing | None = None
        self._tcp: list[TcpListener] = []
        self._udp: list[UdpListener] = []
        self._loaded_at = self._attempted_at = time.time()
        self._failed = False
        self._problems = [str(warning) for warning in configuration.warnings]
        self._reloading = self._reload_wanted = False
        self._stopping = asyncio.Event()
        self._hurry = asyncio.Event()

    # Start

    async def run(self) -> int:
        """From start to drain."""
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(self._logs.close)
            stack.callback(self._presence.close)
            stack.push_async_callback(self._tasks.close)
            stack.callback(self._upstreams.close)
            self._begin_tracing(stack)
            await self._listen(stack)
            await self._start_admin(stack)
            await self._prober.start()
            stack.push_async_callback(self._prober.stop)
            self._tasks.start("watch certificates", self._refresher.run())
            self._tasks.start("tick", self._tick())
            self._handle_signals()
            self._raise_descriptor_limit()
            self._settle_memory()
            self._meters.server_up.cell().value = 1
            self._meters.config_generation.cell().value = self._services.snapshot.generation
            self._log.info(
                "ready",
                version=__version__,
                loop=type(asyncio.get_running_loop()).__module__.partition(".")[0],
                h2=str(self._h2),
                quic=str(self._quic),
                listeners=[f"{listener.name} {' '.join(sorted(listener.protocols))}" for listener in self._services.snapshot.listeners],
                admin=_shown(self._services.snapshot.admin),
                sites=len(self._configuration.sites),
            )
            for warning in self._configuration.warnings:
                self._log.warning("configuration", problem=str(warning))
            await self._stopping.wait()
            await self._drain()
        return EXIT_OK

    def _begin_tracing(self, stack: contextlib.AsyncExitStack) -> None:
        qlog, folder = self._configuration.server.quic.qlog, self._configuration.qlog_folder
        if qlog is None or folder is None:
            return
        settings = TraceSettings(folder, qlog.share, Networks(qlog.clients), qlog.file_size, qlog.files)
        try:
            self._tracing = Tracing(settings, self._metrics, self._log)
        except OSError as error:
            msg = f"can't use {folder} for traces (server.quic.qlog): {error.strerror}"
            raise StartError(msg) from None
        stack.callback(self._tracing.close)

    async def _listen(self, stack: contextlib.AsyncExitStack) -> None:
        """Open every listener, all or none; port 0 of the configuration becomes the one that the system chose."""
        self._configured_listeners = self._services.snapshot.listeners
        quic = self._configuration.server.quic
        buffers, missed = Buffers(quic.receive_buffer, quic.send_buffer), dict[str, None]()
        bound = []
        for wanted in self._services.snapshot.listeners:
            listener = wanted
            if listener.protocols & TCP_PROTOCOLS:
                sock = _bound(bind_tcp, listener.address, "TCP")
                stack.callback(sock.close)
                listener = with_port(listener, sock.getsockname()[1])
                tcp = TcpListener(listener, self._services, self._contexts, self._h2.load(), self._limits)
                await tcp.start(sock)
                stack.callback(tcp.abort)
                stack.callback(tcp.stop_accepting)
                self._tcp.append(tcp)
            if "h3" in listener.protocols:
                sock = _bound(partial(bind_udp, buffers=buffers), listener.address, "UDP")
                stack.callback(sock.close)
                missed.update(dict.fromkeys(buffers.missed(sock)))
                listener = with_port(listener, sock.getsockname()[1])
                udp = UdpListener(listener, self._services, partial(self._endpoint, listener), self._limits, sock)
                udp.start()
                stack.callback(udp.close)
                self._metrics.before_read.append(udp.show)
                self._udp.append(udp)
            bound.append(listener)
        if missed:
            self._log.warning("; ".join(missed))
        self._services.snapshot = replace(self._services.snapshot, listeners=tuple(bound))

    def _endpoint(self, listener: Listener, admit: Callable[[Handle, Address], bool]) -> Endpoint:
        snapshot = self._services.snapshot
        quic = self._configuration.server.quic
        settings = QuicSettings(
            idle_timeout=self._configuration.server.quic_idle,
            handshake_timeout=snapshot.timeouts.handshake,
            handshakes=quic.handshakes,
            handshakes_per_network=quic.handshakes_per_network,
            retry=quic.retry,
            connections=snapshot.limits.connections,
            congestion_control=quic.congestion_control,
            max_datagram_size=quic.max_datagram_size,
            max_stream_window=quic.stream_window,
            max_connection_window=quic.connection_window,
            certificate_compression=None if quic.certificate_compression is None else tuple(quic.certificate_compression),
            migration=listener.migration,
            output=quic.output,
            keep_alive=quic.keep_alive.interval if quic.keep_alive is not None else 0.0,
            keep_alive_idle=quic.keep_alive is not None and quic.keep_alive.when == "always",
            routable=_routable(self._configuration),
        )
        make: MakeQuic = self._quic.load()
        return make(
            self._select,
            snapshot.limits.engine,
            settings,
            self._secret,
            random_bytes=os.urandom,
            admit=admit,
            tickets=self._tickets if quic.resumption else None,
            wall=time.time,
            trace=self._tracing,
        )

    def _select(self, sni: str | None) -> TlsProfile | None:
        return self._services.snapshot.sni.select(sni)

    async def _start_admin(self, stack: contextlib.AsyncExitStack) -> None:
        address = self._services.snapshot.admin
        if address is None:
            return
        self._metrics.before_read.append(self._meters.show_pools(self._balancers))
        views = Views(
            exposition=Exposition(self._metrics),
            draining=lambda: self._services.draining,
            pools=self._balancers,
            last_probe=self._prober.last_probe,
            config=self._status,
        )
        admin = Admin(address, views, self._log)
        try:
            await admin.start()
        except OSError as error:
            msg = f"can't open the admin API on {_shown(address)}: {error.strerror}"
            raise StartError(msg) from None
        stack.push_async_callback(admin.stop)

    def _handle_signals(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._stop)
        loop.add_signal_handler(signal.SIGINT, self._stop)
        loop.add_signal_handler(signal.SIGHUP, self._want_reload)

    def _raise_descriptor_limit(self) -> None:
        """Take as many descriptors as the system allows, and say so when they are fewer than the configured connections can need."""
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        with contextlib.suppress(OSError, ValueError):  # macOS allows less than it says
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        have, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        connections = self._services.snapshot.limits.connections
        wanted = 2 * connections + SPARE_DESCRIPTORS  # a client's connection and one to a backend
        if have != resource.RLIM_INFINITY and have < wanted:
            self._log.warning(
                "fewer file descriptors than the connections may need: raise the hard limit, or lower limits.connections",
                descriptors=have,
                connections=connections,
                wanted=wanted,
            )

    def _settle_memory(self) -> None:
        """What exists now lives to the end: the collector need not look at it again (docs/design)."""
        gc.freeze()
        gc.set_threshold(50_000, 20, 100)
        gc.enable()

    async def _tick(self) -> None:
        """One timer for everything that is coarse."""
        services = self._services
        for count in itertools.count(1):
            await asyncio.sleep(TICK)
            try:
                services.deadlines.turn(services.clock())
                self._logs.flush()
                if count % EXPIRE_EVERY == 0:
                    self._upstreams.expire(services.clock())
                    for udp in self._udp:
                        udp.look()
            except Exception:  # noqa: BLE001  # without its tick a process would keep everything for ever
                self._log.exception("a tick failed")

    def _balancers(self) -> list[BalancerPool]:
        return [pool.balancer for pool in self._services.snapshot.pools.values()]

    # Configuration

    def _compile(self, configuration: Configuration, previous: Snapshot | None) -> Snapshot:
        return compile_snapshot(
            configuration,
            metrics=self._metrics,
            secret=self._secret,
            seed=self._seed,
            generation=next(self._generations),
            make_request_id=self._make_request_id,
            default_certificate=self._default_certificate,
            previous=previous,
            now=time.monotonic(),
        )

    def _want_reload(self) -> None:
        """SIGHUP: reload once, and once more for all signals that come meanwhile."""
        self._reload_wanted = True
        if not self._reloading and not self._stopping.is_set():
            self._reloading = True
            self._tasks.start("reload", self._reload_while_wanted())

    async def _reload_while_wanted(self) -> None:
        try:
            while self._reload_wanted:
                self._reload_wanted = False
                await self._reload()
        finally:
            self._reloading = False

    async def _reload(self) -> None:
        """The new configuration, or the old one and a word about why. Files are read beside the loop, which serves meanwhile."""
        self._attempted_at = time.time()
        try:
            configuration = await asyncio.to_thread(load, self._config, os.environ)
            old = self._services.snapshot
            new = self._compile(configuration, old)
            self._contexts.build(new)
        except ConfigError as error:
            self._reload_failed([str(problem) for problem in error.problems])
            return
        except ContextError as error:
            self._reload_failed([str(error)])
            return
        except Exception:  # noqa: BLE001  # a fault of ours must not end what serves
            self._log.exception("the reload failed")
            self._reload_failed(["an internal error; the log has more"])
            return
        changes = diff(replace(old, listeners=self._configured_listeners), new) + outside(self._configuration, configuration)
        new = replace(new, listeners=old.listeners, admin=old.admin)
        self._configuration = configuration
        self._publish(new)
        for udp in self._udp:
            udp.change_connection_ids(_routable(configuration))
        self._refresher.replace(configuration.certificate_files)
        self._meters.reloads.cell("ok").value += 1
        self._problems = [str(warning) for warning in configuration.warnings]
        self._loaded_at = self._attempted_at
        self._failed = False
        self._log.info("configuration reloaded", generation=new.generation, changes=changes, warnings=self._problems)

    def _reload_failed(self, problems: list[str]) -> None:
        self._meters.reloads.cell("failed").value += 1
        self._failed = True
        self._problems = problems
        for problem in problems:
            self._log.error("the new configuration is wrong; the present one stays", problem=problem)

    def _status(self) -> ConfigStatus:
        return ConfigStatus(
            generation=self._services.snapshot.generation,
            loaded_at=self._loaded_at,
            last_result="failed" if self._failed else "ok",
            last_attempt_at=self._attempted_at,
            problems=tuple(self._problems),
        )

    def _publish_certificates(self, certificates: Mapping[str, Collection[Certificate]]) -> Collection[str]:
        """New certificates by domain; gives the domains where they differ. Raises ContextError, with nothing changed."""
        snapshot, changed = with_certificates(self._services.snapshot, certificates)
        if changed:
            self._contexts.build(snapshot)
            self._services.snapshot = snapshot
        return changed

    def _publish(self, snapshot: Snapshot) -> None:
        """From here on new requests and handshakes see *snapshot*, whose contexts are built; those in progress keep theirs."""
        self._services.snapshot = snapshot
        self._upstreams.replace(snapshot.pools)
        self._prober.replace(snapshot.pools)
        self._limits.replace(snapshot.limits, snapshot.trusted_proxies)
        self._meters.config_generation.cell().value = snapshot.generation

    # The end

    def _stop(self) -> None:
        """The first signal drains; a second one means now."""
        if self._stopping.is_set():
            self._hurry.set()
        self._stopping.set()

    async def _drain(self) -> None:
        services = self._services
        timeouts = services.snapshot.timeouts
        services.draining = True
        self._meters.server_up.cell().value = 0
        self._log.info("draining", exchanges=self._busy(), delay_seconds=timeouts.drain_delay, deadline_seconds=timeouts.drain)
        # Balancers in front see /health fail and look elsewhere, while new connections are still served.
        await self._wait(lambda: False, timeouts.drain_delay)
        for tcp in self._tcp:
            tcp.stop_accepting()
        until = time.monotonic() + timeouts.drain
        while self._connected() and not self._hurry.is_set() and (left := until - time.monotonic()) > 0:
            # The first word says that the end is near, the second refuses what comes then: nothing on its way is lost in between.
            for tcp in self._tcp:
                tcp.drain()
            for udp in self._udp:
                udp.drain()
            await self._wait(lambda: not self._connected(), min(DRAIN_STEP, left))
        cut = self._busy()
        for tcp in self._tcp:
            tcp.abort()
        for udp in self._udp:
            udp.abort()
        if cut:
            self._log.warning("stopped at the deadline", cut_exchanges=cut)
        else:
            self._log.info("stopped")
        if any(tcp.connections for tcp in self._tcp):
            await asyncio.sleep(CLOSE_GRACE)

    async def _wait(self, done: Callable[[], bool], seconds: float) -> None:
        """Until *done*, at most *seconds*, less when a second signal says so."""
        until = time.monotonic() + seconds
        while not done() and not self._hurry.is_set() and time.monotonic() < until:  # noqa: ASYNC110  # what is waited for is a count
            await asyncio.sleep(min(POLL, max(0.0, until - time.monotonic())))

    def _connected(self) -> bool:
        """Whether clients are there."""
        return any(tcp.connections for tcp in self._tcp) or any(udp.clients for udp in self._udp)

    def _busy(self) -> int:
        """Exchanges in progress."""
        return sum(len(connection.exchanges) for tcp in self._tcp for connection in tcp.connections) + sum(
            len(client.exchanges) for udp in self._udp for client in udp.clients.values()
        )


def _routable(configuration: Configuration) -> Routable | None:
    """The form of connection IDs, where a balancer in front routes by them."""
    ids = configuration.server.quic.connection_ids
    return ids.routable() if ids is not None else None


def _request_ids() -> Callable[[], bytes]:
    """Ids that are unique: a random part of the process and a running number."""
    prefix = secrets.token_hex(6).encode()
    numbers = itertools.count(1)
    return lambda: b"%b-%x" % (prefix, next(numbers))


def _bound(bind: Callable[[Address], socket.socket], address: Address, kind: str) -> socket.socket:
    try:
        return bind(address)
    except OSError as error:
        msg = f"can't listen on {_shown(address)} ({kind}): {error.strerror}"
        raise StartError(msg) from None


def _shown(address: Address | None) -> str:
    if address is None:
        return "off"
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Uvloop where it is installed, else asyncio's own."""
    try:
        import uvloop  # noqa: PLC0415  # optional on systems without it
    except ImportError:
        return None
    return uvloop.new_event_loop  # type: ignore[no-any-return,unused-ignore]


def _complain(text: str, code: int) -> int:
    sys.stderr.write(text + "\n")
    return code
