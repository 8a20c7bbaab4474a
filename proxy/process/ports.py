"""The sockets of all listeners, for every worker that there may be: bound once and kept open. Standard library only.

A TCP listener has a socket for each position in a crew, a UDP listener one for each slot of both banks, in the order of slots: closing one
of a group would move another into its place, and the kernel's steering with it. So none is ever closed. Besides, what the workers share:
ends for datagrams that came to the wrong one, and the table of connections; and what one has from the one that died before it: the sockets
to which a tier's instances answer.
"""

import contextlib
import os
import secrets
import socket
from collections.abc import Collection, Iterator, Mapping
from typing import Any, TypeAlias

from proxy.listen.bind import Buffers, bind_relay, bind_tcp, bind_udp, pair_for_strays, prepare_tcp, prepare_udp
from proxy.listen.shared_counts import SharedCounts
from proxy.listen.steering import Steering, attach, by_source_program

BANKS = 2

Address: TypeAlias = tuple[str, int]
Inherited: TypeAlias = dict[tuple[str, str, int], socket.socket]
Wanted: TypeAlias = Mapping[str, Any]
"""A listener: ``host``, ``port``, whether ``tcp`` and ``udp``, whether it is of the L4 tier (``l4``), and whether it is the port of
``envelopes`` rather than for clients."""


class Ports:
    """All sockets. *inherited* are those that systemd has bound."""

    def __init__(self, inherited: Inherited) -> None:
        self._inherited = inherited
        self._tcp: dict[Address, list[socket.socket]] = {}
        self._udp: dict[Address, list[socket.socket]] = {}
        self._envelopes: set[Address] = set()
        """UDP addresses of envelopes between instances: steered by what they say, and otherwise like a listener's."""
        self._strays: dict[Address, list[tuple[socket.socket, socket.socket]]] = {}
        """For each UDP address, a receiving and a sending end for each slot."""
        self._by_source: set[Address] = set()
        """UDP addresses whose datagrams go by the client's address, as those of the tier do: any worker can take any of them."""
        self._relays: list[list[socket.socket]] = []
        """For each slot, those from which a tier's worker sends envelopes; none where there is no tier for QUIC."""
        self._counts: SharedCounts | None = None
        self._key = secrets.randbits(32)
        self._lengths: dict[int, int] = {}
        self.bank_size = 0
        """Workers of one crew, at most."""

    def open(self, listeners: Collection[Wanted], bank_size: int, connections: int, buffers: Buffers) -> None:
        """Bind what is not bound yet. The first call says how large a bank is. Raises OSError whose text names the address."""
        self.bank_size = self.bank_size or bank_size
        if self._counts is None:
            self._counts = SharedCounts.create(BANKS * self.bank_size, connections)
        for listener in listeners:
            address = (listener["host"], listener["port"])
            if listener["tcp"] and address not in self._tcp:
                self._tcp[address] = self._bound("TCP", *address, self.bank_size, buffers)
            if listener.get("envelopes"):
                self._envelopes.add(address)
            if listener["udp"] and address not in self._udp:
                self._udp[address] = self._bound("UDP", *address, BANKS * self.bank_size, buffers)
                if listener.get("l4"):
                    self._by_source.add(address)
                    self._relays = self._relays or [_relays(buffers) for _ in range(BANKS * self.bank_size)]
                else:
                    self._strays[address] = [pair_for_strays() for _ in range(BANKS * self.bank_size)]

    def unused(self) -> list[str]:
        """Sockets from systemd that no listener has named."""
        return [f"{_shown(host, port)} ({kind})" for kind, host, port in self._inherited]

    def numbers(self, listeners: Collection[Wanted]) -> list[tuple[int, int]]:
        """Of each listener, the ports that TCP and UDP have; 0 for what it does not speak."""
        found = []
        for listener in listeners:
            address = (listener["host"], listener["port"])
            tcp = self._tcp[address][0].getsockname()[1] if listener["tcp"] else 0
            found.append((tcp, self._udp[address][0].getsockname()[1] if listener["udp"] else 0))
        return found

    def of_worker(self, listener: Wanted, position: int, slot: int) -> tuple[int | None, int | None]:
        """Descriptors for TCP and UDP."""
        address = (listener["host"], listener["port"])
        tcp = self._tcp[address][position].fileno() if listener["tcp"] else None
        return tcp, self._udp[address][slot].fileno() if listener["udp"] else None

    def strays_of(self, listener: Wanted, slot: int) -> tuple[list[int], list[int]]:
        """Descriptors at which a worker receives what others hand over, and sends to each other slot; and those slots."""
        pairs = self._strays[listener["host"], listener["port"]]
        others = [other for other in range(len(pairs)) if other != slot]
        return [pairs[slot][0].fileno(), *(pairs[other][1].fileno() for other in others)], others

    def relays_of(self, slot: int) -> list[int]:
        """Descriptors of the sockets from which a tier's worker sends envelopes; none where this began with code that kept none."""
        return [sock.fileno() for sock in self._relays[slot]] if self._relays else []

    def counts_for(self, slot: int) -> int:
        """The table of connections, in which the row of a worker to be started is empty."""
        assert self._counts is not None
        self._counts.clear(slot)
        return self._counts.descriptor

    def connections_of(self, slot: int) -> int:
        """So many connections its worker has."""
        return self._counts.connections_of(slot) if self._counts is not None else 0

    def know_lengths(self, lengths: Mapping[int, int]) -> None:
        """Connection IDs with a slot have these, by configuration ID (``Steering.lengths``)."""
        self._lengths = dict(lengths)

    def steer(self, live: Collection[int], accepting: Collection[int]) -> None:
        """Have the kernel give each worker its datagrams: slots of those that serve, and of those that take what is new.

        Raises OSError whose text says what would help.
        """
        if self._udp:
            steering = Steering({slot: slot for slot in live}, accepting, self._key, self._lengths)
            program, of_envelopes = steering.program(), steering.envelope_program() if self._envelopes else b""
            by_source = by_source_program(sorted(accepting), self._key) if self._by_source else b""
            for address, group in self._udp.items():
                of_listener = by_source if address in self._by_source else program
                try:
                    attach(group[0], of_envelopes if address in self._envelopes else of_listener)
                except OSError as error:
                    msg = f"the kernel can't give each worker its datagrams (SO_ATTACH_REUSEPORT_CBPF: {error.strerror})"
                    msg += "; it takes Linux 4.5, or 'workers: 1'"
                    raise OSError(error.errno, msg) from None

    def close(self) -> None:
        """Let go of everything: the end."""
        pairs = (pair for pairs in self._strays.values() for pair in pairs)
        for group in (*self._tcp.values(), *self._udp.values(), *pairs, *self._relays, self._inherited.values()):
            for sock in group:
                sock.close()
        if self._counts is not None:
            self._counts.close()

    # Over an upgrade

    def descriptors(self) -> Iterator[int]:
        """All that the code after an upgrade needs."""
        pairs = (pair for pairs in self._strays.values() for pair in pairs)
        for group in (*self._tcp.values(), *self._udp.values(), *pairs, *self._relays):
            yield from (sock.fileno() for sock in group)
        if self._counts is not None:
            yield self._counts.descriptor

    def known(self) -> dict[str, Any]:
        """What it needs to know of them."""
        return {
            "bank_size": self.bank_size,
            "counts": self._counts.descriptor if self._counts is not None else None,
            "key": self._key,
            "lengths": self._lengths,
            "tcp": [[*address, [sock.fileno() for sock in group]] for address, group in self._tcp.items()],
            "udp": [[*address, [sock.fileno() for sock in group]] for address, group in self._udp.items()],
            "by_source": [list(address) for address in self._by_source],
            "envelopes": [list(address) for address in self._envelopes],
            "strays": [[*address, [[end.fileno() for end in pair] for pair in pairs]] for address, pairs in self._strays.items()],
            "relays": [[sock.fileno() for sock in group] for group in self._relays],
        }

    def take_over(self, known: Mapping[str, Any]) -> None:
        """Go on with what ``known`` told before the upgrade."""
        self.bank_size, self._key = known["bank_size"], known["key"]
        self._lengths = {int(config): length for config, length in known["lengths"].items()}
        if known["counts"] is not None:
            os.set_inheritable(known["counts"], False)
            self._counts = SharedCounts.of(known["counts"])
        for group, name in ((self._tcp, "tcp"), (self._udp, "udp")):
            for host, port, descriptors in known[name]:
                group[host, port] = [_kept_socket(descriptor) for descriptor in descriptors]
        self._by_source = {(host, port) for host, port in known.get("by_source", [])}
        self._envelopes = {(host, port) for host, port in known.get("envelopes", ())}
        for host, port, pairs in known["strays"]:
            self._strays[host, port] = [(_kept_socket(receiving), _kept_socket(sending)) for receiving, sending in pairs]
        self._relays = [[_kept_socket(descriptor) for descriptor in group] for group in known.get("relays", ())]

    def _bound(self, kind: str, host: str, port: int, count: int, buffers: Buffers) -> list[socket.socket]:
        given = self._inherited.pop((kind, host, port), None)
        try:
            if given is not None:
                return _given_group(kind, given, count, buffers)
            return _group(kind, host, port, count, buffers)
        except OSError as error:
            msg = f"can't listen on {_shown(host, port)} ({kind}): {error.strerror or error}"
            raise OSError(error.errno, msg) from None


def _relays(buffers: Buffers) -> list[socket.socket]:
    """For one slot: of each family that this machine has."""
    found = []
    for family in (socket.AF_INET, socket.AF_INET6):
        with contextlib.suppress(OSError):
            found.append(bind_relay(family, buffers))
    return found


def _kept_socket(descriptor: int) -> socket.socket:
    """One of before an upgrade."""
    sock = socket.socket(fileno=descriptor)
    sock.setblocking(False)
    sock.set_inheritable(False)
    return sock


def _bind(kind: str, address: Address, buffers: Buffers, *, shared: bool) -> socket.socket:
    return bind_tcp(address, shared=shared) if kind == "TCP" else bind_udp(address, buffers, shared=shared)


def _group(kind: str, host: str, port: int, count: int, buffers: Buffers) -> list[socket.socket]:
    """So many sockets on one address, in order. Port 0: one that is free."""
    if port:
        _bind(kind, (host, port), buffers, shared=False).close()  # a group is shared with a stranger of the same user without a word
    group: list[socket.socket] = []
    try:
        while len(group) < count:
            group.append(_bind(kind, (host, port), buffers, shared=True))
            port = group[0].getsockname()[1]
    except BaseException:
        for sock in group:
            sock.close()
        raise
    return group


def _given_group(kind: str, given: socket.socket, count: int, buffers: Buffers) -> list[socket.socket]:
    """The socket from systemd and as many more on its address; of TCP, where it can't be shared so, that one for everybody."""
    address = given.getsockname()[:2]
    alone = not given.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT)
    if kind == "TCP":
        prepare_tcp(given)
    else:
        prepare_udp(given, buffers)
        if alone and count > BANKS:
            msg = "the socket from systemd can't be shared by several workers: its unit needs ReusePort=yes"
            raise OSError(msg)
    if alone:
        return [given, *(given.dup() for _ in range(count - 1))]
    return [given, *(_bind(kind, address, buffers, shared=True) for _ in range(count - 1))]


def _shown(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
