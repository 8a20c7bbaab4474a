"""TLS 1.3 inside QUIC: the certificate by SNI, client certificates, and the limits of a handshake.

Knows aioquic's TLS context and what a TLS profile looks like. Knows no packets. Tickets and 0-RTT are not offered.
"""

from dataclasses import dataclass
from typing import Any, Protocol
from weakref import WeakKeyDictionary

from aioquic import tls
from aioquic._buffer import Buffer, BufferReadError, BufferWriteError
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from proxy.engine.seam import Select

CIPHERS = [
    tls.CipherSuite.AES_128_GCM_SHA256,
    tls.CipherSuite.AES_256_GCM_SHA384,
    tls.CipherSuite.CHACHA20_POLY1305_SHA256,
]
"""In the server's order: every processor that serves has AES instructions, and 128 bits are enough (RFC 9325, section 4.2)."""

ALPN = ["h3"]

MAX_CHAIN = 8
"""Certificates in a client's chain."""

_CLIENT_USES = (ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE)
_UNRECOGNIZED_NAME = 112  # RFC 8446, section 6; aioquic's enumeration has both, as plain numbers here for the reader
_CERTIFICATE_REQUIRED = 116


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
    def certificate(self) -> CertificateMaterial:
        """See there."""

    @property
    def client_rule(self) -> ClientRule | None:
        """See there."""


@dataclass(frozen=True, slots=True)
class Identity:
    """A parsed certificate with its chain and key."""

    certificate: x509.Certificate
    chain: list[x509.Certificate]
    key: Any
    client_rule: ClientRule | None


class Identities:
    """Chooses a profile by SNI; parses its PEM once, for as long as the profile lives."""

    def __init__(self, select: Select) -> None:
        self._select = select
        self._parsed: WeakKeyDictionary[Any, Identity] = WeakKeyDictionary()

    def choose(self, sni: str | None) -> tuple[Profile, Identity] | None:
        """The profile for a lower-case SNI and its identity, or None where the handshake is to be refused."""
        profile: Any = self._select(sni)
        if profile is None:
            return None
        identity = self._parsed.get(profile)
        if identity is None:
            identity = self._parsed[profile] = _parse(profile)
        return profile, identity


class ServerContext(tls.Context):
    """aioquic's server side with our choices. Put in place of ``tls.Context`` once that was made: see ``Transport._initialize``."""

    identities: Identities
    profile: Profile | None
    sni: str | None
    client_rule: ClientRule | None

    def adopt(self, identities: Identities) -> None:
        """Initialise what this class adds (the instance was made as its base class)."""
        self.identities = identities
        self.profile = self.sni = self.client_rule = None

    def handle_message(self, input_data: bytes, output_buf: dict[tls.Epoch, Buffer]) -> None:
        """As the base class, but whatever the library trips over in a client's bytes becomes an alert."""
        try:
            super().handle_message(input_data, output_buf)
        except (AssertionError, BufferReadError, IndexError, UnicodeError) as error:
            raise tls.AlertDecodeError(str(error)) from error
        except BufferWriteError as error:
            raise _alert(tls.AlertDescription.internal_error, "the certificate chain is too long for a handshake") from error

    def _server_handle_hello(self, input_buf: Buffer, initial_buf: Buffer, handshake_buf: Buffer) -> None:
        name = tls.pull_client_hello(input_buf).server_name
        input_buf.seek(0)
        self.sni = name.lower().removesuffix(".") if name else None
        chosen = self.identities.choose(self.sni)
        if chosen is None:
            raise _alert(_UNRECOGNIZED_NAME, "no site has this name")
        self.profile, identity = chosen
        self.certificate = identity.certificate
        self.certificate_chain = identity.chain
        self.certificate_private_key = identity.key
        self.client_rule = identity.client_rule
        self._request_client_certificate = identity.client_rule is not None
        super()._server_handle_hello(input_buf, initial_buf, handshake_buf)

    def _server_handle_certificate(self, input_buf: Buffer) -> None:
        super()._server_handle_certificate(input_buf)
        rule = self.client_rule
        assert rule is not None
        leaf = self._peer_certificate
        if leaf is None:
            if rule.required:
                raise _alert(_CERTIFICATE_REQUIRED, "a client certificate is required")
            return
        if len(self._peer_certificate_chain) > MAX_CHAIN:
            raise _alert(tls.AlertDescription.bad_certificate, "the chain is too long")
        _check_client_use(leaf)
        tls.verify_certificate(leaf, self._peer_certificate_chain, cadata=rule.ca_pem)


def _alert(description: int, reason: str) -> tls.Alert:
    alert = tls.Alert(reason)
    alert.description = tls.AlertDescription(description)
    return alert


def _parse(profile: Profile) -> Identity:
    certificates = tls.load_pem_x509_certificates(profile.certificate.chain_pem)
    return Identity(certificates[0], certificates[1:], tls.load_pem_private_key(profile.certificate.key_pem), profile.client_rule)


def _check_client_use(leaf: x509.Certificate) -> None:
    """Key usage for a TLS client (RFC 5280, sections 4.2.1.3 and 4.2.1.12), as OpenSSL judges it: absent extensions permit."""
    try:
        extensions = leaf.extensions
    except ValueError as error:
        raise _alert(tls.AlertDescription.bad_certificate, "extensions could not be parsed") from error
    for extension in extensions:
        value = extension.value
        if isinstance(value, x509.ExtendedKeyUsage) and not any(use in value for use in _CLIENT_USES):
            raise _alert(tls.AlertDescription.bad_certificate, "the certificate is not for clients")
        if isinstance(value, x509.KeyUsage) and not (value.digital_signature or value.key_agreement):
            raise _alert(tls.AlertDescription.bad_certificate, "the certificate's key may not sign")
