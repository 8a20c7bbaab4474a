"""What may be written about the server as a whole, and the shape of a file."""

from typing import Annotated, Any, Literal

from pydantic import Field, Tag, model_validator

from balancer.quic_lb import KEY_BYTES, Layout
from proxy.config.model_base import SWITCH, Model
from proxy.config.model_l4 import L4Listener
from proxy.config.model_pool import Pool
from proxy.config.model_site import Health, Site, health_switch
from proxy.config.names import CidKey, FieldName, FileName, KeyText, Name, Nameserver, Network, Place, ServerId, SocketAddress
from proxy.config.units import Duration, DurationOrOff, Size, SizeOrOff, is_off, says


class ProxyProtocol(Model):
    """PROXY protocol, versions 1 and 2, on TCP."""

    from_: list[Network] = Field(alias="from", min_length=1, max_length=1000)
    """Peers that must begin each TCP connection with its header. From others a header is no valid beginning."""


class Listener(Model):
    """One address to listen on."""

    address: SocketAddress
    """IP address and port; ``[::]:8443`` for IPv6."""
    protocols: list[Literal["http/1.1", "h2", "h3"]] = Field(default=["http/1.1", "h2", "h3"], min_length=1)
    """``http/1.1`` and ``h2`` on TCP, ``h3`` on UDP; default all three."""
    public_port: int | None = Field(default=None, ge=1, le=65535)
    """The port that clients see, for Alt-Svc and redirects; default: the address's."""
    proxy_protocol: ProxyProtocol | None = None
    """PROXY protocol from some peers."""
    migration: bool = True
    """Whether HTTP/3 clients may go on from another address (RFC 9000, section 9). ``off`` asks them not to, and drops what comes from
    another address all the same: such a client begins a new connection. A new port of the same address, as a NAT gives it, is no
    migration and always works."""

    @model_validator(mode="after")
    def _quic(self) -> "Listener":
        if not self.migration and "h3" not in self.protocols:
            raise says("'migration' has no effect without h3: connections over TCP can't move", "migration")
        return self

    @model_validator(mode="after")
    def _tcp(self) -> "Listener":
        if self.proxy_protocol is not None and set(self.protocols) == {"h3"}:
            raise says("'proxy_protocol' has no effect without http/1.1 or h2: it works on TCP", "proxy_protocol")
        return self


class Admin(Model):
    """The admin listener: /metrics, /health, /pools, /peers and /config."""

    address: SocketAddress = ("127.0.0.1", 9090)
    """IP address and port. Whoever reaches it may read how the proxy runs, and nothing else."""


AdminOrOff = Annotated[Annotated[Admin, Tag("on")] | Annotated[Literal["off"], Tag("off")], SWITCH]


class ServerTls(Model):
    """The certificate for unknown or absent SNI, and for sites without one of their own."""

    certificate: FileName | None = None
    """PEM file with the certificate and its chain; default: one for ``localhost``, made at start."""
    key: FileName | None = None
    """PEM file with the private key; default: the certificate's file."""
    unknown_sni: Literal["default", "refuse"] = "default"
    """``default``: unknown or absent SNI gets the default certificate, and only the health answer there; ``refuse``: no handshake."""

    @model_validator(mode="after")
    def _whole(self) -> "ServerTls":
        if self.key is not None and self.certificate is None:
            raise says("'key' stands without 'certificate'; expected both, or none", "key")
        return self


class Limits(Model):
    """Bounds on what clients may take."""

    connections: int = Field(default=10_000, ge=1, le=10_000_000)
    """Connections in all."""
    connections_per_client: int = Field(default=0, ge=0, le=10_000_000)
    """Connections of one client address (IPv6 by /64); 0 is off. Trusted proxies are exempt."""
    connection_rate: float = Field(default=0, ge=0, le=10_000_000)
    """New connections a second, of all clients; 0 is off."""
    streams_per_connection: int = Field(default=100, ge=1, le=10_000)
    """Concurrent requests of one HTTP/2 or HTTP/3 connection."""
    header_count: int = Field(default=100, ge=10, le=10_000)
    """Fields of one header section."""
    header_size: Size = Field(default=32 * 1024, ge=1024, le=1024 * 1024)
    """Bytes of one header section."""
    body_size: SizeOrOff = 0
    """Largest request body; default off: bodies are streamed, not kept."""
    output: Size = Field(default=256 * 1024 * 1024, ge=1024 * 1024, le=1024 * 1024 * 1024 * 1024)
    """Bytes of answers that wait in a process, of all connections, since clients take them slower than backends give them. Beyond, each
    connection gets as little as lets its requests go on, 96 KiB for each, and 32 KiB more over TCP, until a quarter of this is free.
    See docs/explanation/memory-of-a-connection.md."""
    output_per_connection: Size = Field(default=4 * 1024 * 1024, ge=64 * 1024, le=1024 * 1024 * 1024)
    """The same for one connection. Beyond, backends are read on for a stream only while less than 32 KiB of it wait. So one connection
    has at most this, and 96 KiB for each request in progress (``streams_per_connection``): 4 MiB and 100 times 96 KiB are 13.4 MiB."""


class Overload(Model):
    """How much a worker may have to do before it turns new requests away, with 503 and Retry-After, by the class of their route.

    Its load is the largest share of one of these limits. From the limit on, it turns away more and more of class ``low``, then of
    ``normal``, until it is below; never ``high``, nor its own health answer and the admin API. See docs/explanation/overload.md.
    """

    lag: DurationOrOff = 0.0
    """How late its loop may come to its work: a fifth of a second is much. Default off."""
    memory: SizeOrOff | None = None
    """Resident memory, of each worker. From nine tenths of it on, requests are turned away; at the limit all of them are, whatever class,
    the health answer is 503, and no connection is accepted until there is less. Default: nine tenths of what the control group
    (container) may have, shared among the workers; off where that has no limit."""
    exchanges: int = Field(default=0, ge=0, le=10_000_000)
    """Requests in progress, of each worker; 0 is off."""
    header: FieldName | None = None
    """Field by which a request may name its class itself: ``low``, ``normal`` or ``high``. Anybody may lower that of the route;
    ``trusted_proxies`` may raise it as well."""


class Engines(Model):
    """Which protocol engines serve. ``auto`` takes the fast one where it is installed; ``qproxy --version`` tells which that is."""

    h2: Literal["auto", "h2", "ngh2"] = "auto"
    """HTTP/2: ``h2`` (in Python, everywhere), ``ngh2`` (nghttp2)."""
    quic: Literal["auto", "aioquic", "native"] = "auto"
    """QUIC and HTTP/3: ``aioquic`` (in Python, everywhere), ``native`` (quiche; the package qproxy-native)."""


_ADDRESS_BYTES = 4


class Cluster(Model):
    """What instances share: keys, so that each takes what another gave.

    From them follow those of session tickets, Retry tokens, connection IDs and their reset tokens, and of the choice of backends. A reload
    takes keys that have changed, and a key begins at its time by itself. See docs/how-to/share-keys.md.
    """

    key_file: FileName | None = None
    """File with the keys, as ``qproxy keygen`` writes it."""
    key: KeyText | None = Field(default=None, repr=False)
    """The same text, in the place of a file: ``${CLUSTER_KEY}``."""

    address: SocketAddress | None = None
    """Where this instance hears the others, and an L4 tier in front: an IP address and a UDP port of its own, which no client needs to
    reach. Default: nowhere. A change needs a restart."""
    peers: list[Place] = Field(default_factory=list, max_length=1000)
    """The ``address`` of each other instance, so that a client's datagram which came to the wrong one goes to the right one. A host name
    stands for all of its addresses and is looked up again, as ``dns`` says; this instance may be among them. It takes
    ``quic.connection_ids``, by which instances know whose it is. See docs/explanation/how-datagrams-find-their-instance.md."""
    forward_rate: int = Field(default=10_000, ge=1, le=10_000_000)
    """Datagrams a second that each worker sends on to a peer at most; the rest is dropped."""

    @model_validator(mode="after")
    def _heard(self) -> "Cluster":
        if self.peers and self.address is None:
            raise says("'peers' stands without 'address'; expected both: what they answer has to come somewhere", "peers")
        if self.address is not None and not self.address[1]:
            raise says("port 0 would be another one at each start; expected a port that the others know", "address")
        return self

    @model_validator(mode="after")
    def _one(self) -> "Cluster":
        if self.key_file is None and self.key is None:
            raise says("neither 'key_file' nor 'key'; expected one of them")
        if self.key_file is not None and self.key is not None:
            raise says("'key' stands beside 'key_file'; expected one of them", "key")
        return self


class ConnectionIds(Model):
    """Connection IDs that name this server, for a load balancer in front to route by: QUIC-LB (draft-ietf-quic-load-balancers-21).

    A reload that changes them renews those of living connections: each client is given IDs of the new form and retires the old ones, which
    lead to its connection until then. Teach the balancers the new form first, under a ``config`` of its own.
    """

    server_id: ServerId
    """1 to 15 bytes that no other server behind the balancer has: hexadecimal digits, or ``base64:`` and its text. ``address`` takes that
    of ``cluster.address``, or where that names none the address that this machine has on its way to others: an IPv4 address is 4 bytes, of
    an IPv6 address the last 8 serve. It needs an encrypted form."""
    nonce: int = Field(default=8, ge=4, le=18)
    """Bytes that make each one different. With 4, they are used up after 4 billion, or 16 million of each worker where there are several;
    then they name no server any more."""
    key: CidKey | None = Field(default=None, repr=False)
    """16 bytes, shared with the balancers, to encrypt server ID and nonce; best taken from a file: ``!file PATH``. Default: it follows from
    the keys of ``server.cluster``; without them, in clear. ``off``: in clear in any case, for a balancer that has no key."""
    config: int = Field(default=0, ge=0, le=6)
    """Configuration ID (config rotation codepoint): balancers may know several, during a change. Under the keys of ``server.cluster`` it is
    the epoch of the key modulo 7, and can't be chosen."""
    slot: bool = True
    """Whether a byte in clear stands at the end, for the number of the worker (the form of AWS: server ID 8, nonce 10, slot on): by it the
    kernel finds whose datagram it is. ``off`` is for ``workers: 1``."""
    length_in_first_octet: bool = True
    """Whether the first octet tells the length, as some hardware needs; else those bits are random."""

    @model_validator(mode="after")
    def _fits(self) -> "ConnectionIds":
        length = _ADDRESS_BYTES if self.server_id == "address" else len(self.server_id)
        try:
            self.layout(length)
        except ValueError as error:
            wrong_key = isinstance(self.key, bytes) and len(self.key) != KEY_BYTES
            raise says(str(error), "key" if wrong_key else "server_id") from None
        return self

    def suit_keys(self, *, shared: bool) -> None:
        """Raise a mistake, for a validator of ``Server``, where these don't go together with the keys of a cluster, or with none."""
        at = ("quic", "connection_ids")
        if shared and isinstance(self.key, bytes):
            text = "'key' stands beside server.cluster, from whose keys it follows; expected none, or 'key: off' for IDs in clear"
            raise says(text, *at, "key")
        if shared and not self.in_clear and "config" in self.model_fields_set:
            text = "'config' stands beside server.cluster, from whose epochs it follows; expected none, or 'key: off' for IDs in clear"
            raise says(text, *at, "config")
        if self.server_id == "address" and not isinstance(self.key, bytes) and (self.in_clear or not shared):
            text = "'server_id: address' in clear would show this machine's address to every client; expected server.cluster, or a 'key'"
            raise says(text, *at, "server_id")

    @property
    def in_clear(self) -> bool:
        """Whether they are to be so, whatever keys there are."""
        return self.key == "off"

    def suit(self, workers: int | str) -> None:
        """Raise a mistake, for a validator of ``Server``, where its *workers* can't share a port with these."""
        if workers != 1 and not self.slot:
            text = f"'slot' is off, and 'workers' is {workers}; expected 'slot: on', by which the kernel finds whose datagram it is, or one"
            raise says(text, "quic", "connection_ids")

    def layout(self, server_id_bytes: int, config: int | None = None, key: bytes | None = None) -> Layout:
        """Of IDs whose server ID has that length, with *config* and *key* where they follow from a cluster's keys.

        Raises ValueError for what QUIC-LB does not allow.
        """
        own = self.key if isinstance(self.key, bytes) else None
        config = self.config if config is None else config
        return Layout(config, server_id_bytes, self.nonce, self.slot, key or own, self.length_in_first_octet)


class ServerHealth(Health):
    """The proxy's own health answer, for a load balancer in front: where it is, and what it depends on."""

    address: SocketAddress | None = None
    """IP address and port of a listener for it alone, in plain HTTP/1.1: who checks there is answered also when the other listeners are
    full. Default: none. A change needs a restart."""
    pools_up: float = Field(default=0, ge=0, le=1)
    """Share of the pools that have to be up for 200; below, the answer is 503. Default 0: it does not depend on backends. Where several
    proxies have the same backends, all of them turn 503 at once."""
    backends_up: float = Field(default=0, ge=0, le=1)
    """Share of its backends that have to be up for a pool to count as up, and one at least."""

    @model_validator(mode="after")
    def _counts(self) -> "ServerHealth":
        if self.backends_up and not self.pools_up:
            raise says("'backends_up' has no effect without 'pools_up'; expected both, or none", "backends_up")
        return self


ServerHealthOrOff = Annotated[Annotated[ServerHealth, Tag("on")] | Annotated[Literal["off"], Tag("off")], SWITCH]


class KeepAlive(Model):
    """PINGs to an HTTP/3 client from which nothing comes, so that its connection does not time out, nor a NAT on the way forget it.

    A client that is gone is kept no longer than ``idle_timeout`` from the first PING that it did not answer.
    """

    interval: Duration = Field(ge=1)
    """Without a packet from the client before it is sent a PING; less than the idle timeout."""
    when: Literal["requests", "always"] = "requests"
    """``requests``: while a request is in progress (an answer that takes long to come, a stream of events with pauses); ``always``:
    between requests as well, so that only the client, its absence or ``timeouts.connection_age`` ends a connection."""


class Qlog(Model):
    """Traces of QUIC connections (qlog), a file for each: packets, frames, losses, the congestion window; for qvis and its like.

    They hold no contents, but tell who was connected when, and with their connection IDs and reset tokens a connection could be ended: only
    the proxy's user can read them. They are written beside the requests, and what the disk does not take is left out and counted.
    """

    folder: FileName
    """Where they go, relative to this file: ``*.sqlog``, named by time and original destination connection ID. Made where there is none."""
    share: float = Field(default=0, ge=0, le=1)
    """Share of all connections that are traced, by chance: ``0.01`` is one of a hundred."""
    clients: list[Network] = Field(default_factory=list, max_length=1000)
    """Clients whose connections are traced always."""
    file_size: Size = Field(default=10 * 1024 * 1024, ge=64 * 1024)
    """Of one trace, which ends there."""
    files: int = Field(default=1000, ge=1, le=1_000_000)
    """Traces in the folder; for a new one, the oldest goes."""

    @model_validator(mode="after")
    def _of_somebody(self) -> "Qlog":
        if not self.share and not self.clients:
            raise says("'qlog' traces nobody: expected a share above 0, or clients", "share")
        return self


class Quic(Model):
    """The QUIC transport."""

    connection_ids: ConnectionIds | None = None
    """Connection IDs for a load balancer in front; default: opaque ones of 8 bytes."""

    congestion_control: Literal["auto", "bbr", "cubic", "reno"] = "auto"
    """How fast it sends; ``auto`` is cubic. ``bbr``, of the native engine, is far ahead where packets are lost without the path being full,
    and keeps queues short."""
    certificate_compression: list[Literal["brotli", "zlib"]] | None = Field(default=None, max_length=2)
    """Algorithms by which certificates go compressed to clients that take one of them, best first (RFC 8879): fewer bytes, and with a long
    chain a round trip less. Each certificate is compressed once. Empty: none do. Default: both, where the engine has them; ``aioquic``
    has none."""
    max_datagram_size: Annotated[int, Field(ge=1200, le=65527)] | None = None
    """Largest UDP payload sent, in bytes. The native engine begins with 1200, which every path carries, and looks for more (RFC 8899), up
    to this; default: as far as the link goes. ``aioquic`` always sends 1200."""
    stream_window: Size = Field(default=1024 * 1024, ge=256 * 1024, le=1024 * 1024 * 1024)
    """Bytes of one request's body that a client may have sent and nobody has taken yet, at most. It begins with 256 KiB, and doubles while
    the client uses it up within a round trip or two: a long path needs more than a short one."""
    connection_window: Size = Field(default=2 * 1024 * 1024, ge=1024 * 1024, le=4 * 1024 * 1024 * 1024)
    """The same for all requests of a connection, from 1 MiB on. What a connection can keep of memory, at most."""
    receive_buffer: Size = Field(default=4 * 1024 * 1024, ge=64 * 1024, le=1024 * 1024 * 1024)
    """Of each listener's UDP socket. Where root starts the proxy (CAP_NET_ADMIN), it has as much; else as far as the kernel allows
    (``net.core.rmem_max``), and the log has a warning where it does not."""
    send_buffer: Size = Field(default=4 * 1024 * 1024, ge=64 * 1024, le=1024 * 1024 * 1024)
    """The same for what is sent (``net.core.wmem_max``)."""
    resumption: bool = True
    """Whether clients get session tickets, for a shorter handshake and the same backend when they come back within a day. Their keys
    follow from the secret in the state folder, or from ``server.cluster``. Hosts with client certificates give none."""

    idle_timeout: Duration | None = None
    """Without a packet from the client before its connection ends, requests in progress or not; the client may ask for less
    (RFC 9000, section 10.1). Default: ``timeouts.idle``."""
    keep_alive: KeepAlive | None = None
    """PINGs to clients from which nothing comes; default: none are sent."""
    qlog: Qlog | None = None
    """Traces of connections; default: none."""
    retry: Literal["auto", "always", "never"] = "auto"
    """Whether a new client first has to prove its address, by a round trip more (Retry): against floods from addresses that are not the
    sender's own. ``auto``: while many handshakes are in progress or fail, a quarter of one of the two bounds below."""
    handshakes: int = Field(default=1000, ge=1, le=1_000_000)
    """Handshakes in progress at any time, on a listener in each worker. What comes beyond is dropped; clients try again by themselves."""
    handshakes_per_network: int = Field(default=250, ge=1, le=1_000_000)
    """The same for the clients of one network, an IPv4 /24 or an IPv6 /48. Where a load balancer in front hides their addresses, all of
    them are of one."""


class ServerTimeouts(Model):
    """Time limits on the listener side."""

    handshake: Duration = 10.0
    """For the TLS or QUIC handshake."""
    header: Duration = 10.0
    """From the first byte of a request to the end of its head."""
    idle: Duration = 75.0
    """Between two requests of a connection."""
    connection_age: DurationOrOff = 0.0
    """From the handshake to the end of a connection, default off. Each has up to a tenth more or less, so that they don't all go at
    once. Nothing is cut: HTTP/2 and HTTP/3 clients hear GOAWAY, an HTTP/1.1 client has ``Connection: close`` with its next answer, and
    what is in progress is finished."""
    drain: Duration = 30.0
    """From the end of accepting to the end of what still runs."""
    drain_delay: DurationOrOff = 0.0
    """From SIGTERM to the end of accepting, while the health answer is 503 already: time for balancers in front to look
    elsewhere; default off."""


class Dns(Model):
    """How the names of endpoints are looked up: beside the requests, and again whenever the TTL of an answer is over.

    The TTL counts as one second at least and as ``max_ttl`` at most. The hosts file, search domains and ``localhost`` mean what they do for
    other programs.
    """

    nameservers: list[Nameserver] = Field(default_factory=list, max_length=8)
    """Nameservers to ask, IP addresses with or without a port; default: those of the system (``/etc/resolv.conf``)."""
    timeout: Duration = 5.0
    """For one lookup, with all its tries."""
    max_ttl: Duration = Field(default=3600.0, ge=1, le=86400)
    """How long an answer is used at most before the name is looked up again, whatever its TTL: where addresses come and go sooner than the
    TTL says. Docker's DNS says ten minutes for containers."""
    stale: DurationOrOff = 3600.0
    """How long an answer is used beyond its TTL while there is no new one, whatever the reason: nameservers that don't answer, and a name
    that is gone. ``off`` uses none beyond its TTL."""


class Log(Model):
    """What is logged: accesses to standard output, events to standard error."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """Least weight of events that are logged."""
    access: bool = True
    """Whether there is a line for each exchange."""
    format: Literal["auto", "json", "text"] = "auto"
    """``auto``: text on a terminal, else JSON."""


MAX_WORKERS = 64
"""Two crews of them have 128 slots, of the 256 that a connection ID can name."""

EVERYWHERE = Listener.model_validate({"address": "0.0.0.0:8443"})


class Server(Model):
    """The server as a whole; once in all files."""

    workers: Annotated[int, Field(ge=1, le=MAX_WORKERS)] | Literal["auto"] = "auto"
    """Processes that serve, each with all listeners: ``auto`` is one for each core that the proxy may use, the quota of its control group
    included. A supervisor starts them, again where one dies, and anew in an upgrade. ``1`` is something else: the proxy is one process,
    which nobody starts again and which can't be upgraded; without Linux, ``auto`` is that. A reload changes the number, up to that of the
    cores, or what it was at the start if that was more; more than that, and several where there was one process, needs a restart."""
    pin_workers: bool = False
    """Whether each worker stays on a core of its own, as far as there are some. A change needs a restart."""
    user: Name | None = None
    """The user that the proxy becomes once its sockets are bound, where root starts it: all of its processes, with that user's groups. It
    is given what root has put into the state folder, and has to be able to read the configuration's files, for reloads, and the
    program's. Default: none. A change needs a restart."""
    listeners: list[Listener] = Field(default=[EVERYWHERE], max_length=100)
    """Where clients connect; default ``0.0.0.0:8443``, TCP and UDP, or nowhere beside ``l4``."""
    admin: AdminOrOff = Admin()
    """The admin listener, or ``off``."""
    state: FileName | None = None
    """Folder for secrets and made certificates; default: ``$STATE_DIRECTORY`` when it is set (systemd), else ``.state`` beside the folder
    of the configuration."""
    cluster: Cluster | None = None
    """What this instance shares with others; default: nothing, and its keys follow from the secret in the state folder."""
    tls: ServerTls = ServerTls()
    """The default certificate."""
    limits: Limits = Limits()
    """Bounds on what clients may take."""
    overload: Overload = Overload()
    """When a worker has too much to do, and turns requests away."""
    watch: bool = False
    """Whether a change of these files, or of one that they name, is a reload by itself. Certificates are watched in any case."""
    trusted_proxies: list[Network] = Field(default_factory=list, max_length=1000)
    """Peers whose Forwarded, X-Forwarded-* and X-Request-Id fields are believed."""
    timeouts: ServerTimeouts = ServerTimeouts()
    """Time limits on the listener side."""
    health: ServerHealthOrOff = ServerHealth()
    """The proxy's own health answer on every listener, and on a plain port; or ``off``."""
    dns: Dns = Dns()
    """How the names of endpoints are looked up; a change needs a restart."""
    log: Log = Log()
    """What is logged."""
    engines: Engines = Engines()
    """Which protocol engines serve; a change needs a restart."""
    quic: Quic = Quic()
    """The QUIC transport; a change needs a restart."""

    @model_validator(mode="before")
    @classmethod
    def _switches(cls, value: Any) -> Any:
        value = health_switch(value)
        if isinstance(value, dict) and "admin" in value:
            given = value["admin"]
            if is_off(given):
                return {**value, "admin": "off"}
            if given is None:
                return {**value, "admin": {}}
        return value

    @model_validator(mode="after")
    def _shares_ports(self) -> "Server":
        if self.quic.connection_ids is not None:
            self.quic.connection_ids.suit(self.workers)
            self.quic.connection_ids.suit_keys(shared=self.cluster is not None)
        return self

    @model_validator(mode="after")
    def _finds_peers(self) -> "Server":
        cluster = self.cluster
        if cluster is None or cluster.address is None:
            return self
        if cluster.peers and self.quic.connection_ids is None:
            text = "'peers' has no effect without server.quic.connection_ids, which name the instance that a datagram is for"
            raise says(text, "cluster", "peers")
        if any("h3" in listener.protocols and listener.address[1] == cluster.address[1] for listener in self.listeners):
            raise says("a listener has this UDP port; expected another one, that no client needs to reach", "cluster", "address")
        return self

    @model_validator(mode="after")
    def _keeps_alive_in_time(self) -> "Server":
        keep_alive = self.quic.keep_alive
        if keep_alive is not None and keep_alive.interval >= self.quic_idle:
            text = f"'interval' is not less than the idle timeout of QUIC connections ({self.quic_idle:g}s), which comes first"
            raise says(text, "quic", "keep_alive", "interval")
        return self

    @property
    def quic_idle(self) -> float:
        """Seconds without a packet from a QUIC client that end its connection."""
        return self.quic.idle_timeout or self.timeouts.idle


class File(Model):
    """A configuration file. All files of the folder count as one configuration."""

    server: Server | None = None
    """The server as a whole; once in all files."""
    site: Site | None = None
    """One site."""
    sites: list[Site] = Field(default_factory=list, max_length=10_000)
    """Several sites."""
    pools: dict[Name, Pool] = Field(default_factory=dict)
    """Pools that all sites share by name."""
    l4: list[L4Listener] = Field(default_factory=list, max_length=100)
    """Listeners that pass connections on to instances and terminate nothing."""
