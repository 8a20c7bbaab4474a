"""Which instance gets a QUIC datagram. Pure: bytes, the client's address and the time in, an instance out.

In this order (draft-ietf-quic-load-balancers-21, section 4):

1. a connection ID that decodes, under any live configuration, to the server ID of a living instance;
2. for long headers, the client's address with the source connection ID: one handshake, whatever its destination IDs are;
3. the destination connection ID: those that clients began with, and those that instances gave and that can't be decoded;
4. for short headers, the client's address;
5. for what is new, a consistent hash among the instances that take new connections.

A living instance is one that is up or draining: draining ones keep what they have. Whoever learns of a server ID, of an answer or of an
instance that is gone tells this object; it asks nobody.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from balancer.affinity import address_key, connection_key
from balancer.backend import Backend
from balancer.condition import Condition
from balancer.pool import Pool
from balancer.quic_lb import Codec, NotRoutable
from proxy.l4.header import LEAST_CID, LEAST_SHORT, MAX_CID, read_long
from proxy.l4.tables import Table, TableSettings

InitialKey: TypeAlias = Literal["dcid", "client_address"]

RULES = ("connection_id", "handshake", "destination", "client", "hash")
"""By which a datagram was routed: the order above."""

DROPS = ("malformed", "oversized", "no_instance")
"""Why a datagram was not: it is none of QUIC's; it is larger than an envelope holds; nobody takes what is new."""

REMEMBERED_IDS = 65536
"""Connection IDs whose server ID is remembered, so that each is decrypted once; about 150 bytes each."""

LEAST_INITIAL = 1200
"""Bytes of a datagram that can begin a connection (RFC 9000, section 14.1). What is smaller is dealt and not remembered: it would fill the
tables for a tenth of the price."""

LINGER = 30.0
"""Seconds after its last answer that an instance is kept which the configuration no longer has, where nobody knows better (``keep``): its
flows go on meanwhile."""

_ALIVE = frozenset({Condition.UP, Condition.DRAINING})
_BY_ID, _BY_HANDSHAKE, _BY_DESTINATION, _BY_CLIENT, _BY_HASH = range(len(RULES))


@dataclass(frozen=True, slots=True)
class RoutingSettings:
    """How a listener routes."""

    initial_key: InitialKey = "dcid"
    """What new connections are hashed by: the destination connection ID that the client has made up, or its address (IPv6 by /64)."""
    tables: TableSettings = field(default_factory=TableSettings)


class Router:
    """Routes the datagrams of one listener, in one worker.

    *secret*, of at most 64 bytes, keys the hashes; routers that have it, and pools made with it too, agree on what is new.
    """

    def __init__(self, pool: Pool, settings: RoutingSettings, secret: bytes) -> None:
        self._pool = pool
        self._settings = settings
        self._secret = secret
        self._codecs: dict[int, tuple[Codec, ...]] = {}
        self._server_ids: dict[bytes, str] = {}
        self._owners: dict[bytes, Backend] = {}
        self._decoded: dict[bytes, bytes] = {}
        self._handshakes: Table[tuple[bytes, bytes], Backend] = Table(settings.tables)
        self._destinations: Table[bytes, Backend] = Table(settings.tables)
        self._clients: Table[bytes, Backend] = Table(settings.tables)
        self._lengths: tuple[int, ...] = ()
        self._known: set[Backend] = set()
        self._departed: dict[Backend, float] = {}
        self.routed = [0] * len(RULES)
        """Datagrams by rule, in the order of ``RULES``."""
        self.dropped = dict.fromkeys(DROPS, 0)
        self._reckon()

    # What it goes by

    def hash_with(self, secret: bytes) -> None:
        """Key the hashes with *secret* from now on, as the pool does that comes with it."""
        self._secret = secret

    def decode_with(self, codecs: Iterable[Codec]) -> None:
        """The live configurations of connection IDs: those that instances mint under, or did, or will."""
        by_config: dict[int, tuple[Codec, ...]] = {}
        for codec in codecs:
            config = codec.layout.config_id
            by_config[config] = (*by_config.get(config, ()), codec)
        self._codecs = by_config
        self._decoded.clear()

    def name_instances(self, server_ids: Mapping[bytes, str]) -> None:
        """Which instance, by its identity in the pool, has which server ID."""
        if server_ids != self._server_ids:
            self._server_ids = dict(server_ids)
            self._reckon()

    def replace(self, pool: Pool, settings: RoutingSettings, now: float) -> None:
        """Another pool, after a reload or a change in DNS. Instances that it has not keep their flows for as long as they answer."""
        gone = [backend for backend in self._pool.backends if pool.find(backend.identity) is not backend]
        self._pool, self._settings = pool, settings
        for table in (self._handshakes, self._destinations, self._clients):
            table.resize(settings.tables)
        self._departed = {backend: until for backend, until in self._departed.items() if until > now and not pool.find(backend.identity)}
        self._departed.update((backend, now + LINGER) for backend in gone if pool.find(backend.identity) is None)
        self._reckon()

    @property
    def departed(self) -> list[Backend]:
        """The instances that are kept although the pool no longer has them."""
        return list(self._departed)

    def keep(self, backend: Backend, until: float) -> None:
        """Keep one of ``departed`` until then (monotonic), and not for ``LINGER``."""
        self._departed[backend] = until

    def forget(self, now: float) -> bool:
        """Drop those of ``departed`` whose time is over; True where there were any."""
        over = [backend for backend, until in self._departed.items() if until <= now]
        for backend in over:
            del self._departed[backend]
        if over:
            self._reckon()
        return bool(over)

    def _reckon(self) -> None:
        self._known = {*self._pool.backends, *self._departed}
        by_identity = {backend.identity: backend for backend in self._known}
        self._owners = {server_id: by_identity[identity] for server_id, identity in self._server_ids.items() if identity in by_identity}
        self._decoded.clear()

    # Datagrams

    def route(self, data: bytes, client: bytes, host: str, now: float) -> Backend | None:
        """The instance for a datagram of one byte or more; None: it is dropped, which is counted.

        *client* is its source, address and port, in any form that is the same each time; *host* the address alone, as text. *now* is
        monotonic, in seconds.
        """
        if data[0] < 0x80:
            return self._route_short(data, client, host, now)
        header = read_long(data)
        if header is None:
            self.dropped["malformed"] += 1
            return None
        destination = header.destination
        found = self._owner(destination, now)
        if found is not None:
            self.routed[_BY_ID] += 1
            return found
        found = self._living(self._handshakes.get((client, header.source), now), now)
        if found is not None:
            self.routed[_BY_HANDSHAKE] += 1
            return found
        found = self._living(self._destinations.get(destination, now), now)
        if found is not None:
            self.routed[_BY_DESTINATION] += 1
            return found
        # Rule 4 is for short headers: a handshake that is not known is a new connection, whatever else its client has.
        key = connection_key(self._secret, destination) if self._settings.initial_key == "dcid" else address_key(self._secret, host)
        found = self._chosen(key, now)
        if found is not None and len(data) >= LEAST_INITIAL and len(destination) <= MAX_CID and len(header.source) <= MAX_CID:
            self._handshakes.put((client, header.source), found, now)
            self._destinations.put(destination, found, now)
            self._clients.put(client, found, now)
        return found

    def _route_short(self, data: bytes, client: bytes, host: str, now: float) -> Backend | None:
        if not data[0] & 0x40 or len(data) < LEAST_SHORT:
            self.dropped["malformed"] += 1
            return None
        found = self._owner(data[1 : 1 + MAX_CID], now)
        if found is not None:
            self.routed[_BY_ID] += 1
            return found
        for length in self._lengths:
            found = self._living(self._destinations.get(data[1 : 1 + length], now), now)
            if found is not None:
                self.routed[_BY_DESTINATION] += 1
                return found
        found = self._living(self._clients.get(client, now), now)
        if found is not None:
            self.routed[_BY_CLIENT] += 1
            return found
        by_address = self._settings.initial_key == "client_address"
        return self._chosen(address_key(self._secret, host) if by_address else connection_key(self._secret, client), now)

    def answered(self, data: bytes, backend: Backend, now: float) -> None:
        """An instance has sent *data* to a client: where that gives an ID which can't be decoded, packets with it go to who gave it."""
        if backend in self._departed:
            self._departed[backend] = max(self._departed[backend], now + LINGER)
        if not data or data[0] < 0x80:
            return
        header = read_long(data)
        if header is None or not header.version:
            return
        given = header.source
        if not LEAST_CID <= len(given) <= MAX_CID or self._owner(given, now) is backend:
            return
        if self._destinations.put(given, backend, now) and len(given) not in self._lengths:
            self._lengths = (*self._lengths, len(given))

    @property
    def entries(self) -> dict[str, int]:
        """Entries of each table, by the rule that it serves."""
        return {"handshake": len(self._handshakes), "destination": len(self._destinations), "client": len(self._clients)}

    @property
    def full(self) -> dict[str, int]:
        """Entries that each table had no room for so far."""
        return {"handshake": self._handshakes.full, "destination": self._destinations.full, "client": self._clients.full}

    def _owner(self, cid: bytes, now: float) -> Backend | None:
        """The living instance that a connection ID names, which may have more behind it."""
        codecs = self._codecs.get(cid[0] >> 5) if cid else None
        if codecs is None:
            return None
        for codec in codecs:
            own = cid[: codec.layout.cid_bytes]
            server_id = self._decoded.get(own)
            if server_id is None:
                try:
                    server_id = codec.decode(own).server_id
                except NotRoutable:
                    continue
                if server_id not in self._owners:
                    continue  # what a client has made up, as a rule: not worth remembering
                if len(self._decoded) >= REMEMBERED_IDS:
                    self._decoded.clear()
                self._decoded[own] = server_id
            found = self._living(self._owners[server_id], now)
            if found is not None:
                return found
        return None

    def _living(self, backend: Backend | None, now: float) -> Backend | None:
        """The same one, where it lives and is known still; one that has left and come back is another object."""
        if backend is not None and backend not in self._known:
            backend = self._pool.find(backend.identity)
        if backend is None or backend.condition not in _ALIVE:
            return None
        if self._departed and self._departed.get(backend, now + 1) <= now:
            return None
        return backend

    def _chosen(self, key: bytes, now: float) -> Backend | None:
        found = self._pool.choose(key, now)
        if found is None:
            self.dropped["no_instance"] += 1
        else:
            self.routed[_BY_HASH] += 1
        return found
