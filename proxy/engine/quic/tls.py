"""TLS 1.3 inside QUIC: the certificate by SNI and by what the client can verify, tickets, client certificates, early data, and bounds.

Knows aioquic's TLS context and what a TLS profile looks like. Knows no packets.
"""

import struct
from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from weakref import WeakKeyDictionary

from aioquic import tls
from aioquic._buffer import Buffer, BufferReadError, BufferWriteError
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from proxy.engine.quic.hello_retry import HelloRetry, group_to_ask
from proxy.engine.quic.sessions import CertificateMaterial, ClientRule, Session, Sessions
from proxy.engine.quic.tickets import AGE_SKEW, LIFETIME, TICKETS

CIPHERS = [
    tls.CipherSuite.AES_128_GCM_SHA256,
    tls.CipherSuite.AES_256_GCM_SHA384,
    tls.CipherSuite.CHACHA20_POLY1305_SHA256,
]
"""In the server's order: every processor that serves has AES instructions, and 128 bits are enough (RFC 9325, section 4.2)."""

CHACHA_FIRST = [tls.CipherSuite.CHACHA20_POLY1305_SHA256, *CIPHERS[:2]]
"""For clients that prefer it: their processors have none."""

MAX_CHAIN = 8
"""Certificates in a client's chain."""

_CLIENT_USES = (ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE)
_MAX_EARLY_DATA = 0xFFFFFFFF  # what QUIC has there (RFC 9001, section 4.6.1)
_STATE = struct.Struct(">HI")  # the cipher suite and age_add; the rest of a ticket's state is the secret
_BEGINNING, _END = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
_UNRECOGNIZED_NAME = 112  # RFC 8446, section 6; aioquic's enumeration has both, as plain numbers here for the reader
_CERTIFICATE_REQUIRED = 116


@dataclass(frozen=True, slots=True)
class Identity:
    """A parsed certificate with its chain and key."""

    certificate: x509.Certificate
    chain: list[x509.Certificate]
    key: Any


class Identities:
    """Begins sessions with the identity of their profile; its PEM is parsed once, for as long as the profile lives."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions
        self._parsed: WeakKeyDictionary[Any, list[Identity]] = WeakKeyDictionary()

    def begin(self, sni: str | None, original_destination_cid: bytes) -> tuple[Session, list[Identity]] | None:
        """As ``Sessions.begin``, with the identities of which one is to be shown, best first."""
        session = self._sessions.begin(sni, original_destination_cid)
        if session is None:
            return None
        identities = self._parsed.get(session.profile)
        if identities is None:
            identities = self._parsed[session.profile] = [_parse(certificate) for certificate in session.profile.certificates]
        return session, identities


class ServerContext(tls.Context):
    """aioquic's server side with our choices. Put in place of ``tls.Context`` once that was made: see ``Transport._initialize``."""

    identities: Identities
    original_destination_cid: bytes
    session: Session | None
    client_rule: ClientRule | None
    told_age: int
    fresh: bool
    retry: HelloRetry | None

    def adopt(self, identities: Identities, original_destination_cid: bytes) -> None:
        """Initialise what this class adds (the instance was made as its base class)."""
        self.identities = identities
        self.original_destination_cid = original_destination_cid
        self.session = self.client_rule = self.retry = None
        self.told_age = 0
        self.fresh = False

    def handle_message(self, input_data: bytes, output_buf: dict[tls.Epoch, Buffer]) -> None:
        """As the base class, but whatever the library trips over in a client's bytes becomes an alert."""
        try:
            super().handle_message(input_data, output_buf)
        except (AssertionError, BufferReadError, IndexError, UnicodeError) as error:
            raise tls.AlertDecodeError(str(error)) from error
        except BufferWriteError as error:
            raise _alert(tls.AlertDescription.internal_error, "the certificate chain is too long for a handshake") from error

    def _server_handle_hello(self, input_buf: Buffer, initial_buf: Buffer, handshake_buf: Buffer) -> None:
        hello = tls.pull_client_hello(input_buf)
        name = hello.server_name
        input_buf.seek(0)
        begun = self.identities.begin(name.lower().removesuffix(".") if name else None, self.original_destination_cid)
        if begun is None:
            raise _alert(_UNRECOGNIZED_NAME, "no site has this name")
        session, identities = begun
        self.session = session
        self._show(identities, hello.signature_algorithms or ())
        self.client_rule = session.profile.client_rule
        self._request_client_certificate = self.client_rule is not None
        if next((cipher for cipher in hello.cipher_suites if cipher in CIPHERS), None) == CHACHA_FIRST[0]:
            self._cipher_suites = CHACHA_FIRST
        if self.retry is not None:  # nothing is resumed: binders would be over another transcript than the library's
            self.retry.check(hello, _negotiated(self._cipher_suites, hello))
            self.get_session_ticket_cb = None
            super()._server_handle_hello(self.retry.retold(input_buf), initial_buf, handshake_buf)
            return
        group = group_to_ask(hello, self._supported_groups)
        if group is not None:
            input_buf.seek(input_buf.capacity)
            self.retry = HelloRetry(input_buf.data, group, _negotiated(self._cipher_suites, hello))
            self.retry.write(hello, initial_buf)
            return
        if session.tickets is not None:
            self.get_session_ticket_cb = self._resume
            offered = hello.pre_shared_key
            self.told_age = offered.identities[0][1] if offered is not None and offered.identities else 0
        super()._server_handle_hello(input_buf, initial_buf, handshake_buf)

    def _show(self, identities: list[Identity], verifiable: Collection[int]) -> None:
        """Take the first identity that can sign by an algorithm of the client's (RFC 8446, section 4.4.2.2)."""
        for identity in (*identities, identities[0]):  # the library refuses the first when there is none
            self.certificate = identity.certificate
            self.certificate_chain = identity.chain
            self.certificate_private_key = identity.key
            if any(algorithm in verifiable for algorithm in self._signature_algorithms_for_private_key()):
                return

    def _signature_algorithms_for_private_key(self) -> list[tls.SignatureAlgorithm]:
        """As the base class, which can sign with a key on P-521 and does not say so."""
        key = self.certificate_private_key
        if isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, ec.SECP521R1):
            return [tls.SignatureAlgorithm.ECDSA_SECP521R1_SHA512]
        return super()._signature_algorithms_for_private_key()

    def _resume(self, ticket: bytes) -> tls.SessionTicket | None:
        """The session of a client's ticket, whose age and terms were judged; the library compares the cipher."""
        assert self.session is not None
        state = self.session.open(ticket)
        if state is None:
            return None
        cipher, age_add = _STATE.unpack_from(state)
        told_age = (self.told_age - age_add) % (1 << 32) / 1000
        self.fresh = abs(told_age - self.session.age) <= AGE_SKEW
        return tls.SessionTicket(
            age_add=0,
            cipher_suite=tls.CipherSuite(cipher),
            not_valid_before=_BEGINNING,
            not_valid_after=_END,
            resumption_secret=state[_STATE.size :],
            server_name="",
            ticket=ticket,
        )

    def takes_early_data(self) -> bool:
        """Whether what the client sends under its ticket's keys is read."""
        return self.fresh and self.session is not None and self.session.early_data

    def _server_handle_finished(self, input_buf: Buffer, output_buf: Buffer) -> None:
        super()._server_handle_finished(input_buf, output_buf)
        session = self.session
        assert session is not None
        if session.tickets is None or self._psk_key_exchange_mode is None:
            return
        early_data = _MAX_EARLY_DATA if session.early_data else None
        for number in range(TICKETS):
            age_add = int.from_bytes(session.tickets.random_bytes(4))
            message = tls.NewSessionTicket(LIFETIME, age_add, bytes([number]), max_early_data_size=early_data)
            made = self._build_session_ticket(message, [])
            message.ticket = session.seal(_STATE.pack(made.cipher_suite, age_add) + made.resumption_secret, resumed=self.session_resumed)
            tls.push_new_session_ticket(output_buf, message)

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


def _negotiated(ciphers: list[tls.CipherSuite], hello: tls.ClientHello) -> tls.CipherSuite:
    return tls.negotiate(ciphers, hello.cipher_suites, tls.AlertHandshakeFailure("No supported cipher suite"))


def _alert(description: int, reason: str) -> tls.Alert:
    alert = tls.Alert(reason)
    alert.description = tls.AlertDescription(description)
    return alert


def _parse(certificate: CertificateMaterial) -> Identity:
    chain = tls.load_pem_x509_certificates(certificate.chain_pem)
    return Identity(chain[0], chain[1:], tls.load_pem_private_key(certificate.key_pem))


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
