"""What may be written about the L4 tier: listeners that pass connections on to instances, and the instances."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from balancer.quic_lb import MAX_BYTES
from proxy.config.model_base import Model
from proxy.config.model_pool import MAX_ENDPOINTS, MAX_WEIGHT
from proxy.config.names import DNS, HexBytes, HostName, InstanceAddress, ProbePath, ServerName, SocketAddress
from proxy.config.units import Duration, DurationOrOff, says

Port = Annotated[int, Field(ge=1, le=65535)]

MAX_SERVER_ID = 15
"""Bytes of a server ID at most (draft-ietf-quic-load-balancers-21, section 3)."""


class Instance(Model):
    """One instance, or all that a name stands for. A text alone is its ``address``."""

    address: InstanceAddress
    """Where it takes TCP and QUIC: an IP address and a port. A host name with a port stands for as many instances as the name has
    addresses, which come and go with the answers of DNS."""
    server_id: HexBytes | None = Field(default=None, min_length=1, max_length=MAX_SERVER_ID)
    """What its connection IDs name it by; default: what it says itself (HELLO)."""
    weight: int = Field(default=1, ge=1, le=MAX_WEIGHT)
    """Its share of what is new, against the other instances' weights."""
    envelope_port: Port | None = None
    """The port of its ``server.cluster.address``; default: that of all instances."""

    @model_validator(mode="before")
    @classmethod
    def _shorthand(cls, value: Any) -> Any:
        return {"address": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _one(self) -> "Instance":
        if self.server_id is not None and self.address.startswith(DNS):
            raise says("'server_id' stands beside a name, which may stand for several instances; expected an IP address", "server_id")
        return self


class InstanceHealth(Model):
    """How instances are asked how they are.

    An answer with a status of 200 to 299 says that an instance is up. 503 says that it drains: it gets nothing new, and keeps what it has.
    Anything else, or no answer, says that it is gone.
    """

    path: ProbePath = "/health"
    """Path that is asked for, by GET over HTTP."""
    port: Port | None = None
    """Where it is asked for; default: the instance's own port, with a PROXY protocol header of ours where connections there have one."""
    host: ServerName | None = None
    """Host sent with the probe; default: the instance's address."""
    interval: Duration = 2.0
    """Time between two probes of one instance."""
    jitter: float = Field(default=0.1, ge=0, le=1)
    """Share of the interval by which each probe is moved at random."""
    timeout: Duration = 1.0
    """A probe that takes longer has failed."""
    rise: int = Field(default=2, ge=1, le=100)
    """Successful probes in a row that bring an instance up."""
    fall: int = Field(default=3, ge=1, le=100)
    """Failed probes in a row after which it is gone."""


class Instances(Model):
    """Instances that serve the same sites."""

    endpoints: list[Instance] = Field(min_length=1, max_length=MAX_ENDPOINTS)
    """The instances, each an address or ``{address, server_id, weight, envelope_port}``."""
    envelope_port: Port | None = None
    """The port of the instances' ``server.cluster.address``; QUIC needs it."""
    nonce: int = Field(default=8, ge=4, le=18)
    """``nonce`` of the instances' ``connection_ids``."""
    health: InstanceHealth = InstanceHealth()
    """How they are asked how they are."""
    slow_start: DurationOrOff = 0.0
    """Time in which an instance that came up, or was added, comes by its whole share of what is new; default off."""

    @model_validator(mode="after")
    def _distinct(self) -> "Instances":
        seen, named = set[str](), set[bytes]()
        for index, endpoint in enumerate(self.endpoints):
            if endpoint.address in seen:
                text = f"instance {endpoint.address.rpartition('//')[2]} stands twice; expected each once (use weight)"
                raise says(text, "endpoints", str(index))
            if endpoint.server_id is not None and endpoint.server_id in named:
                text = f"server ID {endpoint.server_id.hex()} stands twice; expected one for each instance"
                raise says(text, "endpoints", str(index), "server_id")
            seen.add(endpoint.address)
            named.update([] if endpoint.server_id is None else [endpoint.server_id])
        return self


class SniRoute(Model):
    """Connections over TCP of some names, for instances of their own."""

    sni: list[HostName] = Field(min_length=1, max_length=1000)
    """Names of the ClientHello; ``*.example.com`` stands for one label more."""
    instances: Instances
    """Who gets them."""


class Tables(Model):
    """Tables of QUIC flows whose connection IDs name no instance: handshakes, connection IDs and client addresses.

    Each worker has its own. When one is full, what is new goes by the hash, which is counted, and what is in it stays.
    """

    size: int = Field(default=65536, ge=1, le=10_000_000)
    """Entries of each of the three tables; one takes about 200 bytes, all three of a worker 40 MB when they are full."""
    lifetime: Duration = 120.0
    """Time that an entry is kept without being used, at least; twice that at most."""


class L4Timeouts(Model):
    """Time limits of connections over TCP. For the ClientHello it is ``server.timeouts.handshake``."""

    connect: Duration = 5.0
    """For a connection to one instance."""
    idle: Duration = 3600.0
    """Without a byte either way before a connection is cut. Instances have shorter ones of their own, as a rule."""


class L4Listener(Model):
    """A listener that terminates nothing: it passes QUIC and TCP on to instances. See docs/how-to/run-the-l4-tier.md."""

    address: SocketAddress
    """IP address and port; ``[::]:443`` for IPv6. A change needs a restart."""
    protocols: list[Literal["quic", "tcp"]] = Field(default=["quic", "tcp"], min_length=1, max_length=2)
    """``quic`` on UDP, ``tcp`` for TLS and HTTP over TCP; default both. A change needs a restart."""
    initial_key: Literal["dcid", "client_address"] = "dcid"
    """What new QUIC connections are dealt by: ``dcid``, the connection ID that the client has made up, which spreads them evenly;
    ``client_address`` (IPv6 by /64), so that all connections of a client, over TCP too, go to one instance. TCP is dealt by the client's
    address in any case."""
    instances: Instances
    """Who gets connections."""
    routes: list[SniRoute] = Field(default_factory=list, max_length=1000)
    """Other instances for some names, over TCP: the name of a QUIC connection is not looked at."""
    tables: Tables = Tables()
    """Tables of QUIC flows."""
    timeouts: L4Timeouts = L4Timeouts()
    """Time limits of connections over TCP."""

    @model_validator(mode="after")
    def _together(self) -> "L4Listener":
        endpoints = self.instances.endpoints
        if "quic" in self.protocols:
            if self.instances.envelope_port is None and any(endpoint.envelope_port is None for endpoint in endpoints):
                text = (
                    "'envelope_port' is missing, and QUIC travels in envelopes; expected the port of the instances' server.cluster.address"
                )
                raise says(text, "instances")
            longest = max((len(endpoint.server_id) for endpoint in endpoints if endpoint.server_id is not None), default=0)
            if (both := longest + (nonce := self.instances.nonce)) > MAX_BYTES:
                text = f"server IDs of {longest} bytes and a nonce of {nonce} are {both} bytes together"
                raise says(f"{text}, and a connection ID has room for {MAX_BYTES}", "instances", "endpoints")
            if len({len(endpoint.server_id) for endpoint in endpoints if endpoint.server_id is not None}) > 1:
                text = "server IDs of several lengths; expected one length, since connection IDs don't tell it"
                raise says(text, "instances", "endpoints")
        if self.routes and "tcp" not in self.protocols:
            raise says("'routes' has no effect without tcp: the name of a QUIC connection is not looked at", "routes")
        seen: dict[str, int] = {}
        for index, route in enumerate(self.routes):
            for number, name in enumerate(route.sni):
                if name in seen:
                    raise says(f"name {name!r} stands twice, in route {seen[name] + 1} already", "routes", str(index), "sni", str(number))
                seen[name] = index
        return self
