"""Certificates, keys and authorities: read from files, checked, or made.

Knows files and the ``cryptography`` library; nothing of YAML. ``MaterialError`` says which of the files is wrong, so that the loader
can point at the key that named it.
"""

import ipaddress
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from proxy.config.source import read_bytes
from proxy.listen.material import secret_file
from proxy.snapshot import UpstreamTls
from proxy.sni import Certificate

MIN_RSA_BITS = 2048
"""OpenSSL's security level 2 refuses less in a handshake."""
MAX_CHAIN = 20
"""Certificates of one file."""
SOON = timedelta(days=14)
"""Before its end, a certificate is warned of."""
SELF_SIGNED_DAYS = 397
"""Validity of what we make: the most that browsers take."""
BACKDATED = timedelta(hours=1)
"""How far back our own certificates begin, for clocks that are behind."""


class MaterialError(Exception):
    """A file that can't be used. The text begins with the file's name; ``part`` is ``certificate``, ``key`` or ``ca``."""

    def __init__(self, part: str, file: Path, reason: str) -> None:
        super().__init__(f"{file}: {reason}")
        self.part = part
        self.file = file


@dataclass(frozen=True, slots=True)
class CertificateFiles:
    """The files behind what one SNI gets: *domain* is a configured host, or ``default``."""

    domain: str
    certificate: Path
    key: Path


def load_certificate(certificate: Path, key: Path) -> Certificate:
    """A chain and its key from PEM files (which may be one file). Raises MaterialError."""
    chain_pem, chain = _read_chain("certificate", certificate)
    key_pem, private = _read_key(key)
    public = _public_bytes(private)
    leaf = chain[0]
    if _leaf_bytes(leaf, certificate) != public:
        if any(_leaf_bytes(other, certificate) == public for other in chain[1:]):
            raise MaterialError(
                "certificate", certificate, "the certificate of the key is not the first one; expected it before its issuers"
            )
        raise MaterialError("key", key, f"does not belong to the certificate in {certificate}")
    names = _names(leaf)
    if not names:
        raise MaterialError("certificate", certificate, "names no host; expected a subjectAltName extension")
    source = str(certificate) if key == certificate else f"{certificate}, {key}"
    return Certificate(names, chain_pem, key_pem, leaf.not_valid_after_utc.timestamp(), source, _kind(private))


def certificate_warnings(certificate: Certificate, now: float) -> list[str]:
    """What is worth knowing of a certificate that works; *now* in seconds since the epoch."""
    warnings = []
    chain = x509.load_pem_x509_certificates(certificate.chain_pem)
    at = datetime.fromtimestamp(now, UTC)
    end, begin = chain[0].not_valid_after_utc, chain[0].not_valid_before_utc
    if end <= at:
        warnings.append(f"{certificate.source}: expired on {end:%Y-%m-%d %H:%M} UTC; clients will refuse it")
    elif end - at < SOON:
        warnings.append(f"{certificate.source}: expires on {end:%Y-%m-%d %H:%M} UTC")
    if begin > at:
        warnings.append(f"{certificate.source}: not valid before {begin:%Y-%m-%d %H:%M} UTC; clients will refuse it")
    if any(lower.issuer != upper.subject for lower, upper in pairwise(chain)):
        warnings.append(f"{certificate.source}: the chain is out of order; expected each certificate before its issuer's")
    return warnings


def load_authorities(file: Path) -> bytes:
    """Certificates of authorities from a PEM file, as PEM. Raises MaterialError."""
    pem, authorities = _read_chain("ca", file, most=10_000)
    del pem
    return b"".join(authority.public_bytes(serialization.Encoding.PEM) for authority in authorities)


@dataclass(frozen=True, slots=True)
class UpstreamTlsSettings:
    """What a pool says of TLS towards its endpoints."""

    ca: Path | None
    certificate: Path | None
    key: Path | None
    server_name: str | None
    verify: bool
    minimum: ssl.TLSVersion


class UpstreamTlsMaterial(NamedTuple):
    """All that a context towards backends is made of: equal ones make equal contexts."""

    ca_pem: bytes | None
    chain_pem: bytes | None
    key_pem: bytes | None
    server_name: str | None
    verify: bool
    minimum: ssl.TLSVersion

    def __repr__(self) -> str:
        return f"UpstreamTlsMaterial(server_name={self.server_name!r})"  # a key is in it


def make_upstream_tls(settings: UpstreamTlsSettings) -> UpstreamTls:
    """The context for a pool's ``https://`` endpoints. Raises MaterialError."""
    ca_pem = load_authorities(settings.ca) if settings.ca is not None else None
    own: Certificate | None = None
    if settings.certificate is not None:
        own = _load_client_certificate(settings.certificate, settings.key or settings.certificate)
    chain, key = (own.chain_pem, own.key_pem) if own is not None else (None, None)
    try:
        return upstream_tls_of(UpstreamTlsMaterial(ca_pem, chain, key, settings.server_name, settings.verify, settings.minimum))
    except OSError as error:  # ssl.SSLError is one
        if settings.certificate is None:
            raise
        raise MaterialError("certificate", settings.certificate, f"can't be used: {error}") from None


def upstream_tls_of(material: UpstreamTlsMaterial) -> UpstreamTls:
    """The context that *material* makes. Raises OSError or ValueError where OpenSSL takes it not."""
    ca_pem = material.ca_pem
    context = ssl.create_default_context(cadata=ca_pem.decode("ascii") if ca_pem is not None else None)
    context.minimum_version = material.minimum
    context.set_alpn_protocols(["http/1.1"])
    if not material.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if material.chain_pem is not None and material.key_pem is not None:
        with secret_file(material.chain_pem) as chain, secret_file(material.key_pem) as key:
            context.load_cert_chain(chain, key, password=lambda: "")
    return UpstreamTls(context, material.server_name, material)


def self_signed(names: tuple[str, ...], now: float | None = None) -> Certificate:
    """A new certificate for *names* (hosts, wildcards or IP addresses), signed by its own P-256 key."""
    at = datetime.now(UTC) if now is None else datetime.fromtimestamp(now, UTC)
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0][:64])])
    public = key.public_key()
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(at - BACKDATED)
        .not_valid_after(at - BACKDATED + timedelta(days=SELF_SIGNED_DAYS))
        .add_extension(x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(key, hashes.SHA256())
    )
    key_pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    chain_pem = certificate.public_bytes(serialization.Encoding.PEM)
    return Certificate(_names(certificate), chain_pem, key_pem, certificate.not_valid_after_utc.timestamp(), "self-signed")


def _load_client_certificate(certificate: Path, key: Path) -> Certificate:
    """Like ``load_certificate``; a client's certificate need not name a host."""
    chain_pem, chain = _read_chain("certificate", certificate)
    key_pem, private = _read_key(key)
    if _leaf_bytes(chain[0], certificate) != _public_bytes(private):
        raise MaterialError("key", key, f"does not belong to the certificate in {certificate}")
    return Certificate((), chain_pem, key_pem, chain[0].not_valid_after_utc.timestamp(), str(certificate))


def _read(part: str, file: Path) -> bytes:
    data, reason = read_bytes(file)
    if data is None:
        raise MaterialError(part, file, reason)
    return data


def _read_chain(part: str, file: Path, most: int = MAX_CHAIN) -> tuple[bytes, list[x509.Certificate]]:
    data = _read(part, file)
    if b"-----BEGIN " not in data:
        raise MaterialError(part, file, "not PEM; expected -----BEGIN CERTIFICATE-----")
    try:
        chain = x509.load_pem_x509_certificates(data)
        for certificate in chain:
            _ = certificate.extensions  # parsed on demand: what is broken in them shows here
    except (ValueError, x509.UnsupportedGeneralNameType, x509.DuplicateExtension, UnsupportedAlgorithm) as error:
        if b"-----BEGIN CERTIFICATE-----" not in data:
            raise MaterialError(part, file, "holds no certificate; expected -----BEGIN CERTIFICATE-----") from None
        raise MaterialError(part, file, f"holds a certificate that can't be read ({_first_line(error)})") from None
    if len(chain) > most:
        raise MaterialError(part, file, f"holds {len(chain)} certificates; expected {most} at most")
    return b"".join(certificate.public_bytes(serialization.Encoding.PEM) for certificate in chain), chain


def _read_key(file: Path) -> tuple[bytes, PrivateKeyTypes]:
    data = _read("key", file)
    begin = data.find(b"-----BEGIN ")
    if begin < 0:
        raise MaterialError("key", file, "not PEM; expected -----BEGIN PRIVATE KEY-----")
    block = _key_block(data)
    if block is None:
        raise MaterialError("key", file, "holds no private key; expected -----BEGIN PRIVATE KEY-----")
    try:
        key = serialization.load_pem_private_key(block, password=None)
    except TypeError:
        raise MaterialError("key", file, "is encrypted; expected a key without a password") from None
    except (ValueError, UnsupportedAlgorithm) as error:
        raise MaterialError("key", file, f"holds a private key that can't be read ({_first_line(error)})") from None
    if isinstance(key, rsa.RSAPrivateKey):
        if key.key_size < MIN_RSA_BITS:
            raise MaterialError("key", file, f"is an RSA key of {key.key_size} bits; expected {MIN_RSA_BITS} at least")
    elif not isinstance(key, ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey):
        raise MaterialError("key", file, "is of a kind that can't sign for TLS 1.3; expected ECDSA, RSA or Ed25519")
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return pem, key


def _kind(key: PrivateKeyTypes) -> str:
    """One of ``sni.KINDS``."""
    if isinstance(key, rsa.RSAPrivateKey):
        return "RSA"
    return "Ed25519" if isinstance(key, ed25519.Ed25519PrivateKey) else "ECDSA"


def _key_block(data: bytes) -> bytes | None:
    """The first private key among the PEM blocks of *data*."""
    at = 0
    while (begin := data.find(b"-----BEGIN ", at)) >= 0:
        label = data[begin + 11 : data.find(b"-----", begin + 11)]
        end_mark = b"-----END " + label + b"-----"
        end = data.find(end_mark, begin)
        if end < 0:
            return data[begin:] if label.endswith(b"PRIVATE KEY") else None
        if label.endswith(b"PRIVATE KEY"):
            return data[begin : end + len(end_mark)] + b"\n"
        at = end + len(end_mark)
    return None


def _public_bytes(key: PrivateKeyTypes) -> bytes:
    return key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def _leaf_bytes(certificate: x509.Certificate, file: Path) -> bytes:
    try:
        public = certificate.public_key()
    except (ValueError, UnsupportedAlgorithm) as error:
        raise MaterialError("certificate", file, f"holds a public key that can't be read ({_first_line(error)})") from None
    return public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def _names(certificate: x509.Certificate) -> tuple[str, ...]:
    try:
        san = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    names = [name.lower() for name in san.get_values_for_type(x509.DNSName)]
    names += [str(address) for address in san.get_values_for_type(x509.IPAddress)]
    return tuple(dict.fromkeys(names))


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:120]
