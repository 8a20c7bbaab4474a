"""What an SNI selects: a certificate, and the rule for client certificates.

A part of the snapshot, in a module of its own, since QUIC engines keep what they parsed for as long as a profile lives: a weak reference,
which instances of compiled classes have none.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

KINDS = ("ECDSA", "Ed25519", "RSA")
"""Kinds of keys in the order in which certificates are shown: to each client the first that it can verify. Smaller comes first."""


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate chain with its key, read and checked once."""

    names: tuple[str, ...]
    """DNS names and IP addresses that it covers, lower case; wildcards as they stand."""
    chain_pem: bytes
    key_pem: bytes = field(repr=False)
    not_after: float
    """Seconds since the epoch."""
    source: str
    """Where it came from, for messages: file names, or ``self-signed``."""
    kind: str = "ECDSA"
    """Of its key, one of ``KINDS``."""

    def covers(self, host: str) -> bool:
        """Whether *host* (lower case, no port) is one of the names, a wildcard standing for one label (RFC 9525, section 6.3)."""
        if host in self.names:
            return True
        _, dot, parent = host.partition(".")
        return bool(dot) and "*." + parent in self.names


@dataclass(frozen=True, slots=True)
class ClientCertificateRule:
    """Whether clients of a site show a certificate. Compared by value: sites with different rules share no connection."""

    ca_pem: bytes
    required: bool
    """False: asked for, verified when given."""


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class TlsProfile:
    """What one SNI selects: compared by identity, since listeners keep their contexts by it."""

    certificate: Certificate
    client_rule: ClientCertificateRule | None
    domain: str
    """The configured host that matched, or ``default``: the label of sni_resolutions_total."""
    is_default: bool = False
    early_data: bool = False
    """Whether QUIC clients that resume may send requests before the end of the handshake."""
    alternatives: tuple[Certificate, ...] = ()
    """For clients that can't verify the first one's kind of key; each of a kind of its own, in the order of ``KINDS``."""

    @property
    def certificates(self) -> tuple[Certificate, ...]:
        """All, the one that is shown to most clients first (RFC 8446, section 4.4.2.2, has the client say what it can verify)."""
        return (self.certificate, *self.alternatives)

    def covers(self, host: str) -> bool:
        """Whether each of them covers *host*, whichever was shown."""
        return all(certificate.covers(host) for certificate in self.certificates)

    def showing(self, certificates: Iterable[Certificate]) -> "TlsProfile":
        """The same with other certificates, which are put in order."""
        first, *others = in_order(certificates)
        return replace(self, certificate=first, alternatives=tuple(others))


def in_order(certificates: Iterable[Certificate]) -> list[Certificate]:
    """By the kinds of their keys, as ``KINDS`` has them."""
    return sorted(certificates, key=lambda certificate: KINDS.index(certificate.kind))


@dataclass(frozen=True, slots=True)
class SniTable:
    """SNI to profile: exact, then wildcard (one label), then default."""

    exact: Mapping[str, TlsProfile]
    wildcard: Mapping[str, TlsProfile]
    """Key: the part behind ``*.``."""
    default: TlsProfile
    refuse_unknown: bool

    def select(self, sni: str | None) -> TlsProfile | None:
        """The profile for a lower-case SNI, or None where the handshake is to be refused (``unknown_sni: refuse``)."""
        if sni is not None:
            found = self.exact.get(sni) or self.wildcard.get(sni.partition(".")[2])
            if found is not None:
                return found
        return None if self.refuse_unknown else self.default
