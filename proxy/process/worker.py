"""The path of requests in one process: listeners, exchanges and connections to backends, on one snapshot of the configuration.

Knows neither where its configuration comes from nor who else serves: it is given sockets, and checked configurations one after the other
(``prepare``, then ``commit``). What a new snapshot shares with the old one (pools, connections to backends, certificates' contexts) stays.
"""

import asyncio
import contextlib
import itertools
import os
import secrets
import socket
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from proxy.cluster.envelope import HASHED
from proxy.cluster.peers import Peers
from proxy.config.compile import adopt, compile_snapshot, with_port
from proxy.config.connection_ids import connection_id_forms
from proxy.config.load import Configuration
from proxy.control.certificates import with_certificates
from proxy.control.log import Logs
from proxy.control.presence import Presence
from proxy.control.qlog import TraceSettings, Tracing
from proxy.deadlines import TICK, Deadlines
from proxy.engine.choice import MakeQuic, choose
from proxy.engine.quic.settings import QuicSettings
from proxy.engine.quic.tickets import Tickets
from proxy.engine.seam import Endpoint, Handle
from proxy.key_meters import KeyMeters
from proxy.keys import Keyring, Purpose
from proxy.listen.bind import Buffers
from proxy.listen.descriptors import Descriptors
from proxy.listen.envelopes import Envelopes
from proxy.listen.handover import Handover
from proxy.listen.limits import AcceptLimits
from proxy.listen.shared_counts import SharedCounts
from proxy.listen.tcp import TcpListener
from proxy.listen.tls import TlsContexts
from proxy.listen.udp import UdpListener
from proxy.message import Address
from proxy.meters import ProxyMetrics
from proxy.observe import Log, Metrics
from proxy.policy.access import Networks
from proxy.process.naming import make_naming
from proxy.process.pressure import GROUP_SHARE, Pressure, group_memory
from proxy.process.setup import workers_of
from proxy.services import Services
from proxy.snapshot import Listener, Pool, Snapshot
from proxy.sni import Certificate, TlsProfile
from proxy.tasks import Tasks
from proxy.upstream.pool import Upstreams

if TYPE_CHECKING:
    from proxy.l4.tier import Tier

EXPIRE_EVERY = 10
"""Ticks between looks at idle upstream connections, and at what QUIC listeners have to tell."""

POLL = 0.05
"""Seconds between looks at what is left of a drain."""

DRAIN_STEP = 1.0
"""Seconds between the two words with which a drain ends a connection: for the first to arrive, and for what was sent before it did."""

LAST_ARRIVALS = 0.2
"""Seconds in which a worker that has a successor takes what the kernel gave it before."""

CLOSE_GRACE = 0.5
"""Seconds for the last packets (CONNECTION_CLOSE, close_notify) to leave after a drain."""


class StartError(Exception):
    """Something that is needed can't be had; the text says what."""


@dataclass(frozen=True, slots=True)
class Shared:
    """What all workers of a proxy have in common."""

    secret: bytes
    default_certificate: Certificate
    """Where ``server.tls`` has none."""
    generation: int = 1
    """Number of the configuration that they begin with."""


@dataclass(frozen=True, slots=True)
class Place:
    """One worker's, among several."""

    slot: int
    """In the groups of UDP sockets, and in connection IDs."""
    position: int
    """Among the workers of its crew."""
    counts: SharedCounts
    """What the workers count together."""


@dataclass(frozen=True, slots=True)
class Sockets:
    """A listener's sockets, bound; None for what it does not speak."""

    tcp: socket.socket | None
    udp: socket.socket | None

    @property
    def port(self) -> int:
        """The one that they have."""
        sock = self.tcp or self.udp
        assert sock is not None
        return int(sock.getsockname()[1])

    def close(self) -> None:
        """Let go of them."""
        for sock in (self.tcp, self.udp):
            if sock is not None:
                sock.close()


class Worker:
    """One worker. Made from a checked configuration; *metrics* and *logs* are its process's."""

    def __init__(self, configuration: Configuration, shared: Shared, metrics: Metrics, logs: Logs, place: Place | None = None) -> None:
        self._configuration = configuration
        self._shared = shared
        self._place = place
        self._metrics = metrics
        self._logs = logs
        self._log: Log = logs.events
        self.meters = ProxyMetrics(metrics)
        self._seed = secrets.randbits(64)
        self._make_request_id = _request_ids()
        self._tasks = Tasks(self._log)
        self.naming = make_naming(configuration.server.dns, self._log, metrics, self._tasks)
        self._upstreams = Upstreams(self.meters, self._tasks, time.monotonic, self.naming.resolver)
        self.naming.resolver.moved.append(self._upstreams.move)
        self.naming.discovery.changed.append(self._repopulated)
        self._presence = Presence(configuration.state, time.time)
        self._cluster = self.naming.cluster(configuration, shared.secret)
        self._keys = Keyring(self._cluster.keys, shared.secret)
        metrics.before_read.append(KeyMeters(metrics, self._keys, time.time).show)
        self._epoch = self._keys.sealing(time.time())
        self._tickets = Tickets(self._keys, time.time, os.urandom, self._presence.alone_since)
        snapshot = self._compile(configuration, None, shared.generation)
        self._services = Services(
            snapshot=snapshot,
            upstreams=self._upstreams,
            deadlines=Deadlines(time.monotonic()),
            meters=self.meters,
            access_log=logs.access,
            log=self._log,
            clock=time.monotonic,
            wall_clock=time.time,
            make_request_id=self._make_request_id,
            secret=self._keys.derive(Purpose.HASH, self._epoch),
        )
        self._contexts = TlsContexts(self._keys.derive(Purpose.TICKET, self._epoch))
        if self._contexts.unshared:
            self._log.info("session tickets over TCP are good at the process that gave them", reason=self._contexts.unshared)
        self._contexts.build(snapshot)
        self._limits = AcceptLimits(snapshot.limits, snapshot.trusted_proxies, metrics, place.counts if place is not None else None)
        self._descriptors = Descriptors(self._limits.gate, self.meters, self._log, self._upstreams.close_idle)
        self._services.relieve = lambda: self._descriptors.relieve(time.monotonic())
        self._pressure = Pressure(self._services, self._limits, self._share_of_memory(configuration))
        self.h2 = choose("h2", configuration.server.engines.h2)
        self.quic = choose("quic", configuration.server.engines.quic)
        self._tracing: Tracing | None = None
        self._tcp: list[TcpListener] = []
        self._own_tcp = 0
        """How many of them are its own, and none that it was lent."""
        self._lent: dict[int, list[TcpListener]] = {}
        """By position in the crew."""
        self._udp: list[UdpListener] = []
        self._tier: Tier | None = None
        self._envelopes: Envelopes | None = None
        self.hurry = asyncio.Event()
        """Set: a drain is to end now."""

    def _share_of_memory(self, configuration: Configuration) -> int:
        """Of what the control group may have, for this one of its workers."""
        return int(GROUP_SHARE * group_memory() / (workers_of(configuration) if self._place is not None else 1))

    def replace_when_memory_stays(self, ask: Callable[[], None]) -> None:
        """Call *ask* while the memory is at its limit and does not go down, though nothing new is served."""
        self._pressure.memory_stays = ask

    @property
    def snapshot(self) -> Snapshot:
        """What new requests see."""
        return self._services.snapshot

    @property
    def draining(self) -> bool:
        """Whether it is on its way to its end."""
        return self._services.draining

    @property
    def accepting(self) -> bool:
        """Whether new connections come in: neither memory nor descriptors are used up."""
        return self._limits.gate.is_open

    # Start

    async def open(
        self,
        stack: contextlib.AsyncExitStack,
        sockets: Iterable[Sockets],
        envelopes: socket.socket | None = None,
        relays: Iterable[socket.socket] = (),
    ) -> None:
        """Serve on *sockets*, one for each listener of the configuration, in its order; *stack* closes everything. Raises StartError.

        *envelopes* is the one of ``server.cluster.address``; *relays* are those of its slot for a tier (``l4.relay.Relay``).
        """
        stack.callback(self._presence.close)
        stack.push_async_callback(self.naming.close)
        stack.push_async_callback(self._tasks.close)
        stack.callback(self._upstreams.close)
        await self.naming.begin(self.snapshot.pools)
        self._begin_tracing(stack)
        bound = []
        each = iter(sockets)
        for wanted, given in zip(self.snapshot.listeners, each, strict=False):
            listener = wanted
            stack.callback(given.close)
            if given.tcp is not None:
                listener = with_port(listener, given.tcp.getsockname()[1])
                tcp = TcpListener(listener, self._services, self._contexts, self.h2.load(), self._limits)
                await tcp.start(given.tcp)
                stack.callback(tcp.abort)
                stack.callback(tcp.stop_accepting)
                self._tcp.append(tcp)
            if given.udp is not None:
                listener = with_port(listener, given.udp.getsockname()[1])
                udp = UdpListener(listener, self._services, partial(self._endpoint, listener), self._limits, given.udp)
                udp.start()
                stack.callback(udp.close)
                self._metrics.before_read.append(udp.show)
                self._udp.append(udp)
            bound.append(listener)
        self._open_tier(stack, each, relays)
        if envelopes is not None:
            stack.callback(envelopes.close)
            self._begin_envelopes(stack, envelopes)
        self._cluster.tell(self._take_shared)
        self._cluster.follow(self._configuration)
        if self._envelopes is not None:
            self._envelopes.start(self._udp)
        self._own_tcp = len(self._tcp)
        stack.callback(self._close_lent)
        self._metrics.before_read.append(self._services.output.show)
        self._services.snapshot = replace(self.snapshot, listeners=tuple(bound))
        stack.callback(self._descriptors.close)
        self._tasks.start("tick", self._tick())
        self.meters.server_up.cell().value = 1
        self.meters.config_generation.cell().value = self.snapshot.generation

    def _open_tier(self, stack: contextlib.AsyncExitStack, sockets: Iterable[Sockets], relays: Iterable[socket.socket]) -> None:
        """The L4 tier on what is left of the sockets."""
        wanted, given = self.snapshot.l4, list(sockets)
        if not wanted:
            return
        from proxy.l4.means import Means  # noqa: PLC0415  # most proxies have no tier
        from proxy.l4.tier import Tier  # noqa: PLC0415

        for each in given:
            stack.callback(each.close)
        bound = [
            listener if listener.address[1] else replace(listener, address=(listener.address[0], each.port))
            for listener, each in zip(wanted, given, strict=True)
        ]
        self._services.snapshot = replace(self.snapshot, l4=tuple(bound))
        means = Means(
            keys=self._keys,
            log=self._log,
            metrics=self._metrics,
            limits=self._limits,
            addresses=self.naming.resolver,
            relieve=lambda: self._services.relieve(),  # noqa: PLW0108  # another one from now and then
            handshake_timeout=lambda: self.snapshot.timeouts.handshake,
            buffers=udp_buffers(self._configuration),
            deadlines=self._services.deadlines,
            clock=time.monotonic,
            wall=time.time,
            random_bytes=os.urandom,
            slot=self._place.slot if self._place is not None else HASHED,
        )
        self._tier = Tier(means)
        self._tier.open(stack, [(listener, each.tcp, each.udp) for listener, each in zip(bound, given, strict=True)], relays)

    def _begin_envelopes(self, stack: contextlib.AsyncExitStack, sock: socket.socket) -> None:
        cluster = self._configuration.server.cluster
        assert cluster is not None
        assert cluster.address is not None
        slot = self._place.slot if self._place is not None else None
        peers = Peers(self._configuration.server_id or b"", cluster.forward_rate)
        opened = self._keys.opened[Purpose.ENVELOPE]
        envelopes = self._envelopes = Envelopes(
            sock, cluster.address, self._services, peers, self._envelope_keys(), epoch=self._epoch, slot=slot, opened=opened
        )
        stack.callback(envelopes.close)
        self._metrics.before_read.append(envelopes.show)

    def _take_shared(self) -> None:
        """Have the keys and peers that the cluster has now."""
        if self._cluster.keys != self._keys.keys:
            self._keys.replace(self._cluster.keys)
        self._seal_anew()
        if self._tier is not None:
            self._tier.take_keys()
        if self._envelopes is None:
            return
        cluster, peers = self._configuration.server.cluster, self._envelopes.peers
        peers.own, peers.wanted = self._configuration.server_id or b"", self._cluster.has_peers
        peers.rate = cluster.forward_rate if cluster is not None else peers.rate
        self._envelopes.know(self._cluster.peers)
        for udp in self._udp:
            udp.join(self._envelopes)

    def _envelope_keys(self) -> dict[int, bytes]:
        return {key.epoch: self._keys.derive(Purpose.ENVELOPE, key.epoch) for key in self._keys.keys.keys}

    def _close_lent(self) -> None:
        for tcp in self._tcp[self._own_tcp :]:
            tcp.stop_accepting()
            tcp.abort()

    def keep_descriptors(self, limit: int) -> None:
        """Hold some in reserve, of the *limit* that the process may have."""
        self._descriptors.keep(limit)

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

    def _endpoint(self, listener: Listener, admit: Callable[[Handle, Address], bool]) -> Endpoint:
        snapshot = self.snapshot
        quic = self._configuration.server.quic
        forms = connection_id_forms(self._configuration, self._keys, time.time())
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
            keep_alive=quic.keep_alive.interval if quic.keep_alive is not None else 0.0,
            keep_alive_idle=quic.keep_alive is not None and quic.keep_alive.when == "always",
            routable=forms.present,
            known=forms.others,
            slot=self._place.slot if self._place is not None else None,
        )
        make: MakeQuic = self.quic.load()
        return make(
            self._select,
            snapshot.limits.engine,
            settings,
            self._keys,
            random_bytes=os.urandom,
            admit=admit,
            tickets=self._tickets if quic.resumption else None,
            wall=time.time,
            trace=self._tracing,
        )

    def _select(self, sni: str | None) -> TlsProfile | None:
        return self.snapshot.sni.select(sni)

    async def lend(self, positions: Mapping[int, Iterable[socket.socket]]) -> None:
        """Accept for other positions of the crew that nobody serves now, and no longer for those that are not among them.

        By position: a socket for each TCP listener, in its order. What was accepted stays.
        """
        for position in [position for position in self._lent if position not in positions]:
            for tcp in self._lent.pop(position):
                tcp.stop_accepting()
            if self._tier is not None:
                self._tier.give_back(position)
        listeners = [tcp.listener for tcp in self._tcp[: self._own_tcp]]
        for position, sockets in positions.items():
            if position in self._lent or self.draining:
                for sock in sockets:
                    sock.close()
                continue
            lent = self._lent[position] = []
            each = iter(sockets)
            for listener, sock in zip(listeners, each, strict=False):
                tcp = TcpListener(listener, self._services, self._contexts, self.h2.load(), self._limits)
                lent.append(tcp)
                self._tcp.append(tcp)
                await tcp.start(sock)
            if self._tier is not None:
                self._tier.lend(position, each)

    def share(self, handovers: Iterable[Handover], siblings: frozenset[int]) -> None:
        """Hand over what is for other workers of the ports, and take what they hand over.

        There is one of *handovers* for each UDP listener, and behind them one for the port of envelopes.
        """
        rest = list(handovers)
        if self._envelopes is not None:
            self._envelopes.share(rest.pop())
        for udp, handover in zip(self._udp, rest, strict=True):
            udp.share(handover, siblings)

    def know(self, siblings: frozenset[int]) -> None:
        """The slots of the others that live."""
        for udp in self._udp:
            udp.know(siblings)

    async def _tick(self) -> None:
        """One timer for everything that is coarse."""
        services = self._services
        for count in itertools.count(1):
            due = services.clock() + TICK
            await asyncio.sleep(TICK)
            try:
                now = services.clock()
                self._pressure.look(now - due, now)
                services.deadlines.turn(services.clock())
                self._descriptors.look(services.clock())
                if self._keys.sealing(services.wall_clock()) != self._epoch:
                    self._seal_anew()
                self._logs.flush()
                if self._tier is not None:
                    self._tier.tick()
                if count % EXPIRE_EVERY == 0:
                    self._upstreams.expire(services.clock())
                    services.output.turn(services.clock())
                    for udp in self._udp:
                        udp.look()
            except Exception:  # noqa: BLE001  # without its tick a process would keep everything for ever
                self._log.exception("a tick failed")

    def _seal_anew(self) -> None:
        """Another key seals: by its time, or by a reload."""
        now = time.time()
        before, self._epoch = self._epoch, self._keys.sealing(now)
        if before != self._epoch:
            self._log.info("another key of the cluster seals", epoch=self._epoch, before=before)
        self._services.secret = self._keys.derive(Purpose.HASH, self._epoch)
        self._contexts.use(self._keys.derive(Purpose.TICKET, self._epoch))
        if self._envelopes is not None:
            self._envelopes.use(self._envelope_keys(), self._epoch)
        forms = connection_id_forms(self._configuration, self._keys, now)
        for udp in self._udp:
            udp.change_connection_ids(forms.present, forms.others)

    # Configuration

    def compiled(self, configuration: Configuration) -> Snapshot:
        """What *configuration* says, to compare with: it shares nothing with what serves, and is never served."""
        return self._compile(configuration, None, 0, Metrics())

    def prepare(self, configuration: Configuration, generation: int) -> Snapshot:
        """Everything that *configuration* needs before it can serve; nothing sees it yet. Raises ContextError."""
        snapshot = self._compile(configuration, self.snapshot, generation)
        self._contexts.build(snapshot)
        return snapshot

    def abandon(self) -> None:
        """What was prepared is not to serve: forget it."""
        self.naming.follow(self.snapshot.pools)
        self._contexts.build(self.snapshot)

    def commit(self, configuration: Configuration, snapshot: Snapshot) -> None:
        """From here on new requests and handshakes see *snapshot*, which was prepared; those in progress keep theirs."""
        old = self.snapshot
        adopt(snapshot, old, time.monotonic())
        self._configuration = configuration
        bound = tuple(replace(new, address=before.address) for new, before in zip(snapshot.l4, old.l4, strict=True))
        self._services.snapshot = replace(snapshot, listeners=old.listeners, admin=old.admin, l4=bound)
        if self._tier is not None:
            self._tier.replace(self._services.snapshot)
        self.naming.follow(snapshot.pools)
        self._upstreams.replace(snapshot.pools)
        self._pressure.replace(snapshot, self._share_of_memory(configuration))
        self._limits.replace(snapshot.limits, snapshot.trusted_proxies)
        self._services.output.replace(snapshot.limits)
        self.meters.config_generation.cell().value = snapshot.generation
        self._cluster.follow(configuration)

    def _repopulated(self, pool: Pool) -> None:
        """DNS has other backends for *pool*: the hosts of new ones are looked up, connections to old ones let go."""
        self.naming.resolver.follow(self.snapshot.pools)
        self._upstreams.shrink(pool)
        if self._tier is not None:
            self._tier.repopulated(pool)

    def publish_certificates(self, certificates: Mapping[str, Collection[Certificate]]) -> Collection[str]:
        """New certificates by domain; gives the domains where they differ. Raises ContextError, with nothing changed."""
        snapshot, changed = with_certificates(self.snapshot, certificates)
        if changed:
            self._contexts.build(snapshot)
            self._services.snapshot = snapshot
        return changed

    def _compile(
        self, configuration: Configuration, previous: Snapshot | None, generation: int, metrics: Metrics | None = None
    ) -> Snapshot:
        return compile_snapshot(
            configuration,
            metrics=metrics or self._metrics,
            secret=self._cluster.keys_with(configuration).ring_key,
            seed=self._seed,
            generation=generation,
            make_request_id=self._make_request_id,
            default_certificate=self._shared.default_certificate,
            previous=previous,
            services=self.naming.discovery.services,
            now=None,
        )

    # The end

    @property
    def succeeded(self) -> bool:
        """Whether others serve new clients already while this one drains: then all is well for whoever asks."""
        return self._services.succeeded

    @succeeded.setter
    def succeeded(self, value: bool) -> None:
        self._services.succeeded = value

    async def drain(self) -> int:
        """Let what runs finish, as long as the configuration grants; gives the exchanges that had to be cut."""
        services = self._services
        timeouts = self.snapshot.timeouts
        services.draining = True
        self.meters.server_up.cell().value = 0
        self._log.info("draining", exchanges=self._busy(), delay_seconds=timeouts.drain_delay, deadline_seconds=timeouts.drain)
        # Balancers in front see /health fail and look elsewhere, while new connections are still served.
        # And where successors take what is new, some of it may have come here just before.
        await self._wait(lambda: False, LAST_ARRIVALS if self.succeeded else timeouts.drain_delay)
        for tcp in self._tcp:
            tcp.stop_accepting()
        if self._tier is not None:
            self._tier.stop_accepting()
        until = time.monotonic() + timeouts.drain
        while self._connected() and not self.hurry.is_set() and (left := until - time.monotonic()) > 0:
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
        if self._tier is not None:
            self._tier.abort()
        if cut:
            self._log.warning("stopped at the deadline", cut_exchanges=cut)
        else:
            self._log.info("stopped")
        if any(tcp.connections for tcp in self._tcp):
            await asyncio.sleep(CLOSE_GRACE)
        return cut

    async def _wait(self, done: Callable[[], bool], seconds: float) -> None:
        """Until *done*, at most *seconds*, less when there is hurry."""
        until = time.monotonic() + seconds
        while not done() and not self.hurry.is_set() and time.monotonic() < until:  # noqa: ASYNC110  # what is waited for is a count
            await asyncio.sleep(min(POLL, max(0.0, until - time.monotonic())))

    def _connected(self) -> bool:
        """Whether clients are there."""
        if self._tier is not None and (self._tier.busy or (self.succeeded and self._tier.relayed)):
            return True
        return any(tcp.connections or tcp.accepting for tcp in self._tcp) or any(udp.clients for udp in self._udp)

    def _busy(self) -> int:
        """Exchanges in progress."""
        return sum(len(connection.exchanges) for tcp in self._tcp for connection in tcp.connections) + sum(
            len(client.exchanges) for udp in self._udp for client in udp.clients.values()
        )


def udp_buffers(configuration: Configuration) -> Buffers:
    """Of the sockets for QUIC."""
    quic = configuration.server.quic
    return Buffers(quic.receive_buffer, quic.send_buffer)


def _request_ids() -> Callable[[], bytes]:
    """Ids that are unique: a random part of the process and a running number."""
    prefix = secrets.token_hex(6).encode()
    numbers = itertools.count(1)
    return lambda: b"%b-%x" % (prefix, next(numbers))
