"""The L4 tier in one worker: its listeners, the envelopes that they share, and who is behind which server ID.

Tables of flows belong to a worker, as its sockets do: the kernel gives a client's datagrams to the worker that its address and port are
hashed to, for as long as the number of workers is the same. What can be decoded needs no table, and any worker routes it.
"""

import contextlib
import math
import socket
from collections.abc import Iterable

from balancer.backend import Backend
from balancer.quic_lb import Codec, Layout
from proxy.cluster.envelope import HELLO, Envelope, Opener, Sealer
from proxy.cluster.hello import Hello, decode
from proxy.cluster.peers import ASK_EVERY, MAX_PEERS, Peers
from proxy.keys import Keyring, KeySet, Purpose, config_id
from proxy.l4.means import Means
from proxy.l4.meters import TierMeters
from proxy.l4.relay import Relay
from proxy.l4.routing import DROPS, RULES, Router, RoutingSettings
from proxy.l4.tables import TableSettings
from proxy.l4.tcp import TcpTier
from proxy.l4.udp import Target, UdpTier
from proxy.message import Address
from proxy.snapshot import Instances, L4Listener, Pool, Snapshot


class Tier:
    """The tier of one worker. ``open`` begins it; all else goes on by ``tick``."""

    def __init__(self, means: Means) -> None:
        self._means = means
        self._meters = TierMeters(means.metrics)
        self._listeners: list[_Listener] = []
        self._relay: Relay | None = None
        self._peers = Peers(b"", 0)
        self._asked_at = float("-inf")
        self._sealing = -1
        self._keys: KeySet | None = None
        """Those that are in use."""

    @property
    def busy(self) -> bool:
        """Whether there are connections over TCP; of QUIC it knows no ends."""
        return any(each.tcp is not None and each.tcp.busy for each in self._listeners)

    @property
    def relayed(self) -> bool:
        """Whether datagrams of clients came by here: answers to them come here too, until another worker has more of the same client."""
        return any(own.udp is not None and own.udp.received > 0 for own in self._listeners)

    def open(
        self,
        stack: contextlib.AsyncExitStack,
        listeners: Iterable[tuple[L4Listener, socket.socket | None, socket.socket | None]],
        relays: Iterable[socket.socket] = (),
    ) -> None:
        """Serve: listeners with their bound addresses, TCP and UDP sockets; *stack* closes everything.

        *relays* are sockets for envelopes that are there already (``relay.Relay``).
        """
        means = self._means
        for listener, tcp, udp in listeners:
            own = _Listener(listener)
            self._listeners.append(own)
            if tcp is not None:
                own.tcp = TcpTier(listener, means, self._meters.of_listener(listener.name))
                stack.push_async_callback(own.tcp.close)
                stack.callback(own.tcp.stop_accepting)
                own.tcp.start(tcp)
            if udp is not None:
                self._meters.prepare(listener.name)
                relay = self._relay or self._make_relay(stack, relays)
                own.router = Router(listener.instances.pool.balancer, _routing(listener), means.keys.ring_key)
                own.udp = UdpTier(udp, listener.address, own.router, relay, {})
                stack.callback(own.udp.close)
        if self._relay is not None:
            self._relay.takers = {each.udp.answers_for: each.udp for each in self._listeners if each.udp is not None}
            self.take_keys()
            self._aim()
            means.metrics.before_read.append(self._show)
        for each in self._listeners:
            if each.udp is not None:
                each.udp.start()

    def _make_relay(self, stack: contextlib.AsyncExitStack, sockets: Iterable[socket.socket]) -> Relay:
        means = self._means
        epoch = self._sealing = means.keys.sealing(means.wall())
        sealer = Sealer(epoch, means.keys.derive(Purpose.ENVELOPE, epoch), means.random_bytes)
        opener = Opener({}, means.keys.opened[Purpose.ENVELOPE])
        relay = self._relay = Relay(sealer, opener, means.wall, means.buffers, sockets=sockets, back=means.slot)
        relay.heard = self._heard
        stack.callback(relay.close)
        return relay

    def replace(self, snapshot: Snapshot) -> None:
        """Another snapshot, whose listeners are on the same addresses. Living flows stay where they are."""
        for own, listener in zip(self._listeners, snapshot.l4, strict=True):
            own.listener = listener
            if own.tcp is not None:
                own.tcp.listener = listener
            if own.router is not None:
                own.router.replace(listener.instances.pool.balancer, _routing(listener), self._means.clock())
        self._aim()

    def repopulated(self, pool: Pool) -> None:
        """DNS has other instances for *pool*."""
        for own in self._listeners:
            if own.router is not None and own.listener.instances.pool is pool:
                own.router.replace(pool.balancer, _routing(own.listener), self._means.clock())
                self._aim()

    def tick(self) -> None:
        """Ten times a second: ask instances who they are, and seal with the key of the day."""
        relay, now = self._relay, self._means.clock()
        if relay is None or now < self._asked_at + ASK_EVERY:
            return
        self._asked_at = now
        self._seal_anew()
        wall = self._means.wall()
        for peer in self._peers.begin_round():
            peer.ask(int(wall * 1e6))
            relay.put_sealed(peer.address, relay.sealer.seal(HELLO, Hello(b"", "ready", ()).encode(), wall, back=self._means.slot))
        relay.flush()
        self._judge_departed(now)

    def _judge_departed(self, now: float) -> None:
        """Nobody probes instances that DNS or the configuration no longer has: they live for as long as they say who they are."""
        peers = {peer.address: peer for peer in self._peers.to_ask()}
        lapsed = False
        for own in self._listeners:
            if own.udp is None or own.router is None:
                continue
            for backend in own.router.departed:
                target = own.udp.targets.get(backend.identity)
                peer = peers.get(target.envelopes) if target is not None else None
                if peer is not None and peer.server_id:
                    own.router.keep(backend, math.inf if peer.lives else now)
            lapsed = own.router.forget(now) or lapsed
        if lapsed:
            self._aim()

    def lend(self, position: int, sockets: Iterable[socket.socket]) -> None:
        """Accept for another position of the crew too: a socket for each listener over TCP."""
        for each, sock in zip((each.tcp for each in self._listeners if each.tcp is not None), sockets, strict=True):
            each.lend(position, sock)

    def give_back(self, position: int) -> None:
        """Accept no longer for that one. What was accepted stays."""
        for each in self._listeners:
            if each.tcp is not None:
                each.tcp.give_back(position)

    def stop_accepting(self) -> None:
        """Take no new connections over TCP. Datagrams are passed on to the end."""
        for each in self._listeners:
            if each.tcp is not None:
                each.tcp.stop_accepting()

    def abort(self) -> None:
        """Cut what is left over TCP."""
        for each in self._listeners:
            if each.tcp is not None:
                each.tcp.abort()

    # Instances

    def _aim(self) -> None:
        """Where the instances are."""
        wanted: dict[Address, None] = {}
        for own in self._listeners:
            if own.udp is None or own.router is None:
                continue
            instances, targets, sources = own.listener.instances, dict[str, Target](), dict[Address, Backend]()
            pool = instances.pool
            for identity, endpoint in {**(pool.departed or {}), **pool.endpoints}.items():
                target = Target((endpoint.host, _envelope_port(instances, identity)), endpoint.port)
                targets[identity] = target
                backend = pool.balancer.find(identity)
                if backend is not None:
                    sources[target.envelopes] = backend
                    wanted[target.envelopes] = None
            # Those that are gone have flows still, for as long as they answer.
            own.udp.targets = {**{name: own.udp.targets[name] for name in list(own.udp.targets)[-MAX_PEERS:]}, **targets}
            own.udp.sources = {**{at: own.udp.sources[at] for at in list(own.udp.sources)[-MAX_PEERS:]}, **sources}
        self._peers.replace(wanted)
        self._name()

    def _name(self) -> None:
        """Who has which server ID: as the configuration says, else as they say themselves."""
        told = {peer.address: peer.server_id for peer in self._peers.to_ask() if peer.server_id}
        for own in self._listeners:
            if own.udp is None or own.router is None:
                continue
            server_ids = {told[target.envelopes]: identity for identity, target in own.udp.targets.items() if target.envelopes in told}
            told_theirs = set(server_ids.values())
            for server_id, identity in own.named.items():
                if identity in own.udp.targets and identity not in told_theirs:
                    server_ids.setdefault(server_id, identity)  # perhaps of an instance that was removed, and has flows
            own.named = server_ids = {**server_ids, **own.listener.instances.server_ids}
            own.router.name_instances(server_ids)
            lengths = {len(server_id) for server_id in server_ids}
            own.router.decode_with(_codecs(self._means.keys, lengths, own.listener.instances.nonce))
            self._meters.server_ids.cell(own.listener.name).value = len(server_ids)

    def _heard(self, envelope: Envelope, source: Address) -> None:
        """A HELLO: the answer to one of ours, or somebody's own, which is for instances to answer."""
        hello = decode(envelope.payload)
        if hello is None or not hello.answers:
            return
        known = {peer.address: peer.server_id for peer in self._peers.to_ask()}
        if self._peers.heard(source, hello, int(self._means.wall() * 1e6)) is not None and known.get(source) != hello.server_id:
            self._name()

    # Keys

    def take_keys(self) -> None:
        """Go by the keys that the keyring has now."""
        relay, keys = self._relay, self._means.keys
        if relay is None or keys.keys == self._keys:
            return
        self._keys = keys.keys
        relay.opener.use({key.epoch: keys.derive(Purpose.ENVELOPE, key.epoch) for key in self._keys.keys})
        for own in self._listeners:
            if own.router is not None:
                own.router.hash_with(keys.ring_key)
        self._sealing = -1
        self._seal_anew()
        self._name()

    def _seal_anew(self) -> None:
        """With the key of this moment."""
        relay, keys = self._relay, self._means.keys
        assert relay is not None
        sealing = keys.sealing(self._means.wall())
        if sealing != self._sealing:
            self._sealing = sealing
            relay.sealer.use(sealing, keys.derive(Purpose.ENVELOPE, sealing))

    # Numbers

    def _show(self) -> None:
        meters, relay = self._meters, self._relay
        assert relay is not None
        for own in self._listeners:
            if own.udp is None or own.router is None:
                continue
            name, router = own.listener.name, own.router
            for rule, count in zip(RULES, router.routed, strict=True):
                meters.routed.cell(name, rule).value = count
            for reason in DROPS:
                meters.dropped.cell(name, reason).value = router.dropped[reason]
            meters.dropped.cell(name, "answer_unsent").value = own.udp.dropped
            meters.answered.cell(name).value = own.udp.answered
            for table, entries in router.entries.items():
                meters.entries.cell(name, table).value = entries
            for table, count in router.full.items():
                meters.full.cell(name, table).value = count
        meters.envelopes.cell("out").value = relay.sent
        meters.envelopes.cell("in").value = relay.received
        for reason, count in relay.opener.refused.items():
            meters.refused.cell(reason).value = count
        meters.refused.cell("unsent").value = relay.dropped
        meters.refused.cell("nobodys").value = relay.nobodys


class _Listener:
    """One listener, with what it has here."""

    def __init__(self, listener: L4Listener) -> None:
        self.listener = listener
        self.tcp: TcpTier | None = None
        self.udp: UdpTier | None = None
        self.router: Router | None = None
        self.named: dict[bytes, str] = {}


def _routing(listener: L4Listener) -> RoutingSettings:
    return RoutingSettings(listener.initial_key, TableSettings(listener.table_size, listener.table_lifetime))


def _envelope_port(instances: Instances, identity: str) -> int:
    return instances.envelope_ports.get(identity, instances.envelope_port)


def _codecs(keys: Keyring, lengths: Iterable[int], nonce: int) -> list[Codec]:
    """For the connection IDs of instances: of every epoch, and every length that a server ID has."""
    return [
        Codec(Layout(config_id(key.epoch), length, nonce, key=keys.cid_key(key.epoch)))
        for key in keys.keys.keys
        for length in sorted(lengths)
        if length + nonce <= 19
    ]
