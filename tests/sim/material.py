"""Certificates for the simulator: made once for each run."""

import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID


@dataclass(frozen=True)
class Material:
    certificate: x509.Certificate
    key: Any

    @property
    def chain_pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def key_pem(self) -> bytes:
        return self.key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


KEYS: dict[str, Callable[[], Any]] = {
    "P-256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "P-384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "P-521": lambda: ec.generate_private_key(ec.SECP521R1()),
    "Ed25519": ed25519.Ed25519PrivateKey.generate,
    "RSA": lambda: rsa.generate_private_key(65537, 2048),
}


def material(name: str, issuer: str | None = None, *, ca: bool = False, client: bool = False, kind: str = "P-256") -> Material:
    """A certificate for *name* with a key of that *kind*: self-signed, or by the CA called *issuer*."""
    return _made(name, issuer, ca, client, kind)


@cache
def _made(name: str, issuer: str | None, ca: bool, client: bool, kind: str) -> Material:
    key = KEYS[kind]()
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    signer = material(issuer, ca=True) if issuer else None
    now = dt.datetime.now(dt.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(signer.certificate.subject if signer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=30))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
    )
    if not ca:
        use = ExtendedKeyUsageOID.CLIENT_AUTH if client else ExtendedKeyUsageOID.SERVER_AUTH
        builder = builder.add_extension(x509.ExtendedKeyUsage([use]), critical=False)
    by = signer.key if signer else key
    return Material(builder.sign(by, None if isinstance(by, ed25519.Ed25519PrivateKey) else hashes.SHA256()), key)


class Profile(SimpleNamespace):
    """Stands for a ``snapshot.TlsProfile``; hashed by identity, as that is."""

    __hash__ = object.__hash__


def profile(name: str, client_rule: object = None, *, early_data: bool = False, kinds: tuple[str, ...] = ("P-256",)) -> Profile:
    certificates = tuple(material(name, kind=kind) for kind in kinds)
    return Profile(certificates=certificates, client_rule=client_rule, domain=name, early_data=early_data)
