"""The TLS session of a handshake: the profile that its SNI selects, the ticket that it resumes, and the tickets that it gives.

Both engines ask here, so that what a ticket is bound to, and what a resumed connection gets again, is decided once. Knows no packets and
no TLS library.
"""

from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Any, Protocol

from balancer.affinity import connection_key
from proxy.engine.events import ConnectionReady
from proxy.engine.quic.settings import QuicSettings
from proxy.engine.quic.tickets import Opened, Tickets
from proxy.engine.seam import EngineLimits, Select
from proxy.keys import Keyring, Purpose
from proxy.message import Address

ALPN = "h3"

_FORM = 1
"""To be raised with the form of a ticket's state, and with whatever a client remembers that is a constant of an engine."""


class CertificateMaterial(Protocol):
    """What is needed of ``snapshot.Certificate``."""

    @property
    def chain_pem(self) -> bytes:
        """See there."""

    @property
    def key_pem(self) -> bytes:
        """See there."""


class ClientRule(Protocol):
    """What is needed of ``snapshot.ClientCertificateRule``."""

    @property
    def ca_pem(self) -> bytes:
        """See there."""

    @property
    def required(self) -> bool:
        """See there."""


class Profile(Protocol):
    """What is needed of ``snapshot.TlsProfile``, which this layer may not import."""

    @property
    def certificates(self) -> Sequence[CertificateMaterial]:
        """See there."""

    @property
    def client_rule(self) -> ClientRule | None:
        """See there."""

    @property
    def early_data(self) -> bool:
        """See there."""


class Session:
    """The session of one handshake, from the ClientHello on.

    It has tickets where the listener gives them and the profile asks for no client certificate: one that was shown once must not count
    for ever, and its rule may change.
    """

    __slots__ = ("_affinity", "_opened", "_terms", "_tickets", "profile", "sni")

    def __init__(self, sni: str | None, profile: Profile, affinity: bytes, tickets: Tickets | None, terms: bytes) -> None:
        self.sni = sni
        self.profile = profile
        self._affinity = affinity
        self._tickets = tickets if profile.client_rule is None else None
        self._terms = terms
        self._opened: Opened | None = None

    @property
    def tickets(self) -> Tickets | None:
        """Who makes the tickets of this session; None where it has none."""
        return self._tickets

    def open(self, ticket: bytes) -> bytes | None:
        """The TLS library's state out of a ticket that may be resumed, else None."""
        opened = self._opened = self._tickets.open(self._terms, ticket) if self._tickets is not None else None
        return opened.state if opened is not None else None

    def seal(self, state: bytes, *, resumed: bool) -> bytes:
        """A ticket that holds the TLS library's *state*; empty: none is to be given."""
        return self._tickets.seal(self._terms, self._key(resumed=resumed), state) if self._tickets is not None else b""

    @property
    def early_data(self) -> bool:
        """Whether early data is offered with the tickets, and taken."""
        return self._tickets is not None and self.profile.early_data

    @property
    def age(self) -> float:
        """Seconds since the ticket that was opened was sealed."""
        return self._opened.age if self._opened is not None else 0.0

    def ready(self, peer: Address, *, resumed: bool, early: bytes = b"") -> ConnectionReady:
        """The event that tells of it. *resumed*: the ticket that was opened is what the connection's keys come from.

        *early*: the handshake is not complete, and early data was taken; the ClientHello's random.
        """
        vouched = bool(early) and self._tickets is not None and self._opened is not None and self._tickets.vouch(self._opened, early)
        return ConnectionReady(self.sni, ALPN, peer, self._key(resumed=resumed), self.profile, resumed, bool(early), vouched)

    def _key(self, *, resumed: bool) -> bytes:
        """The affinity key. A ticket's counts once TLS has proven that it is this client's: anybody can read one off the wire."""
        return self._opened.affinity if resumed and self._opened is not None else self._affinity


class Sessions:
    """Begins the sessions of one endpoint, which has that configuration *epoch*. *wall*: the time of day, in seconds since 1970."""

    def __init__(self, select: Select, keys: Keyring, wall: Callable[[], float], tickets: Tickets | None, epoch: bytes) -> None:
        self._select = select
        self._keys = keys
        self._wall = wall
        self._tickets = tickets
        self._epoch = epoch

    def begin(self, sni: str | None, original_destination_cid: bytes) -> Session | None:
        """The session of a client that asks for *sni* (lower case) and made up that connection ID; None: it is to be refused."""
        profile: Any = self._select(sni)
        if profile is None:
            return None
        terms = _packed(self._epoch, b"" if sni is None else b"=" + sni.encode(), ALPN.encode())
        secret = self._keys.derive(Purpose.HASH, self._keys.sealing(self._wall()))
        return Session(sni, profile, connection_key(secret, original_destination_cid), self._tickets, terms)


def configuration_epoch(engine: str, limits: EngineLimits, settings: QuicSettings) -> bytes:
    """Stands for what a client remembers of us with a ticket (RFC 9000, section 7.4.1; RFC 9114, section 7.2.4.2).

    Equal in all processes of one configuration, and another one as soon as it changes: then old tickets resume nothing. *engine* names
    the TLS library's form of state, which no other reads.
    """
    windows = (limits.stream_window, limits.connection_window)
    remembered = (limits.streams, limits.header_bytes, windows, settings.idle_timeout, settings.migration)
    return blake2b(repr((_FORM, engine, remembered)).encode(), digest_size=16, person=b"quic ticket").digest()


def _packed(*parts: bytes) -> bytes:
    return b"".join(len(part).to_bytes(4) + part for part in parts)
