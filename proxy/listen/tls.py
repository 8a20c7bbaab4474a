"""TLS 1.3 on TCP, up to the session: what a ClientHello is refused for, and one context per certificate and rule.

Knows OpenSSL through the standard ``ssl`` module. All that can be refused by the ClientHello alone is refused before OpenSSL is asked.
The certificate is chosen by SNI before the session is made, and never changed afterwards. ``tls_session.py`` has the connection's part.
"""

import ssl
from collections.abc import Iterable
from typing import TypeAlias

from proxy.listen.material import secret_file
from proxy.listen.peek import ClientHello
from proxy.listen.ticket_keys import Unreachable, reach, ticket_keys
from proxy.listen.tls_session import FAILURES, TlsFailure, TlsSession
from proxy.snapshot import TCP_PROTOCOLS, Snapshot
from proxy.sni import ClientCertificateRule, TlsProfile

__all__ = [
    "DECODE_ERROR_ALERT",
    "FAILURES",
    "INTERNAL_ERROR_ALERT",
    "NO_APPLICATION_PROTOCOL_ALERT",
    "UNRECOGNIZED_NAME_ALERT",
    "ContextError",
    "TlsContexts",
    "TlsFailure",
    "TlsSession",
    "alert",
    "check_hello",
]


def alert(description: int) -> bytes:
    """A record with a fatal alert in clear, for a client that has no keys yet (RFC 8446, section 6)."""
    return bytes((0x15, 3, 3, 0, 2, 2, description))


DECODE_ERROR_ALERT = alert(50)
INTERNAL_ERROR_ALERT = alert(80)
UNRECOGNIZED_NAME_ALERT = alert(112)
"""For an SNI that is to be refused (RFC 6066, section 3)."""
NO_APPLICATION_PROTOCOL_ALERT = alert(120)


PRIORITIZE_CHACHA = 1 << 21
"""SSL_OP_PRIORITIZE_CHACHA, which Python does not name: ChaCha20 for clients that have it first, since they have no AES instructions."""

MADE_AHEAD = 256
"""Contexts that are made before the first handshake asks for them."""


class ContextError(Exception):
    """OpenSSL refuses the certificate, the key or the CA of a profile: says which and why."""


class TlsContexts:
    """The contexts of all profiles: made once, at publication, and kept over a reload where nothing that matters changed.

    Each context has ticket keys of its own, so a ticket of one site opens no other, and none outlives a changed certificate or rule. They
    follow from *secret*, so that whoever has the same secret and the same site takes the same tickets; without one, OpenSSL makes them
    at random. Contexts that ask for client certificates give no tickets at all: a resumed session would pass with a certificate that has
    expired since, whose holder need not show it again.
    """

    def __init__(self, secret: bytes | None = None) -> None:
        self._by_profile: dict[tuple[TlsProfile, frozenset[str]], ssl.SSLContext] = {}
        self._by_content: dict[_Content, ssl.SSLContext] = {}
        self._secret = secret
        self.unshared = ""
        """Why this interpreter's OpenSSL can't be given keys; empty where it can."""
        try:
            self._give_keys = reach() if secret is not None else None
        except Unreachable as unreachable:
            self._give_keys, self.unshared = None, str(unreachable)

    def use(self, secret: bytes) -> None:
        """Ticket keys follow from *secret* from now on: those who have tickets of before have a full handshake, and get others."""
        if secret != self._secret:
            self._secret = secret
            for content, context in self._by_content.items():
                self._key(context, content)

    def _new(self, content: "_Content", profile: TlsProfile, protocols: frozenset[str]) -> ssl.SSLContext:
        context = _make(profile, protocols)
        self._key(context, content)
        return context

    def _key(self, context: ssl.SSLContext, content: "_Content") -> None:
        if self._give_keys is not None and self._secret is not None and context.num_tickets:
            self._give_keys(context, ticket_keys(self._secret, _described(content)))

    def build(self, snapshot: Snapshot) -> None:
        """Make ready for *snapshot*, so that no handshake waits, and forget what it no longer has.

        Of more than ``MADE_AHEAD``, the rest are made by the first handshake of each, which waits a millisecond for it: a thousand cost a
        second and 20 MB, and of ten thousand sites few are asked for at once. Call it before publishing. Raises ContextError, and then
        changes nothing.
        """
        tcp = {protocols for listener in snapshot.listeners if (protocols := _over_tcp(listener.protocols))}
        sni = snapshot.sni
        profiles = dict.fromkeys((sni.default, *sni.wildcard.values(), *sni.exact.values()))
        by_profile: dict[tuple[TlsProfile, frozenset[str]], ssl.SSLContext] = {}
        by_content: dict[_Content, ssl.SSLContext] = {}
        for protocols in tcp:
            for profile in profiles:
                content = _content(profile, protocols)
                context = by_content.get(content) or self._by_content.get(content)
                if context is None:
                    if len(by_content) >= MADE_AHEAD:
                        continue
                    context = self._new(content, profile, protocols)
                by_profile[profile, protocols] = by_content[content] = context
        self._by_profile, self._by_content = by_profile, by_content

    def get(self, profile: TlsProfile, protocols: frozenset[str]) -> ssl.SSLContext:
        """The context for *profile* on a listener with *protocols*; made now when ``build`` did not. Raises ContextError."""
        found = self._by_profile.get((profile, protocols))
        if found is None:
            over_tcp = _over_tcp(protocols)
            found = self._by_profile.get((profile, over_tcp))
            if found is None:
                content = _content(profile, over_tcp)
                found = self._by_content.get(content) or self._new(content, profile, over_tcp)
                self._by_content[content] = self._by_profile[profile, over_tcp] = found
            self._by_profile[profile, protocols] = found
        return found


_Content: TypeAlias = tuple[str, tuple[tuple[bytes, bytes], ...], ClientCertificateRule | None, frozenset[str]]


def _over_tcp(protocols: Iterable[str]) -> frozenset[str]:
    return frozenset(TCP_PROTOCOLS).intersection(protocols)


def _content(profile: TlsProfile, protocols: frozenset[str]) -> _Content:
    """All that a context is made of; the domain too, so that sites with one certificate don't take each other's tickets."""
    pairs = tuple((certificate.chain_pem, certificate.key_pem) for certificate in profile.certificates)
    return (profile.domain, pairs, profile.client_rule, protocols)


def _described(content: _Content) -> bytes:
    """The same for the same content, in every process; no key of a certificate, which its chain stands for."""
    domain, pairs, _, protocols = content
    parts = [domain.encode(), *(chain for chain, _ in pairs), *sorted(name.encode() for name in protocols)]
    return b"".join(len(part).to_bytes(4) + part for part in parts)


def _make(profile: TlsProfile, protocols: frozenset[str]) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE | PRIORITIZE_CHACHA
    context.set_alpn_protocols([offer.decode() for offer, name in _OFFERS.items() if name in protocols])
    certificate, rule = profile.certificate, profile.client_rule
    if len({each.kind for each in profile.certificates}) < len(profile.certificates):
        msg = (
            f"TLS for {profile.domain} (certificate from {certificate.source}): an alternative has the same kind of key, {certificate.kind}"
        )
        raise ContextError(msg)
    try:
        # OpenSSL has a place for each kind of key, and shows what the client can verify, in the order of ``sni.KINDS`` by itself.
        for certificate in profile.certificates:
            with secret_file(certificate.chain_pem) as chain, secret_file(certificate.key_pem) as key:
                context.load_cert_chain(chain, key, password=_no_password)
        context.num_tickets = 2 if rule is None else 0
        if rule is not None:
            context.verify_mode = ssl.CERT_REQUIRED if rule.required else ssl.CERT_OPTIONAL
            context.load_verify_locations(cadata=rule.ca_pem.decode("ascii"))
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        reason = getattr(error, "reason", None)
        detail = reason.lower().replace("_", " ") if reason else str(error)
        msg = f"TLS for {profile.domain} (certificate from {certificate.source}): {detail}"
        raise ContextError(msg) from error
    return context


def _no_password() -> str:
    """Keep OpenSSL from asking at the terminal for an encrypted key's password."""
    msg = "the private key is encrypted"
    raise ValueError(msg)


def check_hello(hello: ClientHello, protocols: frozenset[str]) -> None:
    """Refuse what can't come to a connection with a listener that speaks *protocols*, at no cost in cryptography.

    OpenSSL itself would go on without ALPN where a client's offer has nothing in common with ours: RFC 7301, section 3.2 asks for an
    alert. A client that offers no ALPN is taken to speak HTTP/1.1. Raises TlsFailure.
    """
    if not hello.offers_tls13:
        raise TlsFailure("unsupported_protocol", "TLS 1.3 is not offered", alert(70))
    if hello.finite_field:
        raise TlsFailure("no_shared_group", "a finite-field key exchange is offered", alert(40))
    if hello.alpn:
        for name in hello.alpn:
            if _OFFERS.get(name) in protocols:
                return
        raise TlsFailure("no_application_protocol", "no protocol in common", NO_APPLICATION_PROTOCOL_ALERT)
    if "http/1.1" not in protocols:
        raise TlsFailure("no_application_protocol", "ALPN is not offered", NO_APPLICATION_PROTOCOL_ALERT)


_OFFERS = {**{name.encode(): name for name in TCP_PROTOCOLS}, b"http/1.0": "http/1.1"}
"""The protocol that serves each ALPN offer: one engine speaks both 1.x versions, and old health probes offer HTTP/1.0 alone."""
