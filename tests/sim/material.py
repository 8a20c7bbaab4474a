"""Certificates for the simulator: made once for each run, on P-256."""

import datetime as dt
from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID


@dataclass(frozen=True)
class Material:
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def chain_pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def key_pem(self) -> bytes:
        return self.key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


@cache
def material(name: str, issuer: str | None = None, *, ca: bool = False, client: bool = False) -> Material:
    """A certificate for *name*: self-signed, or by the CA called *issuer*."""
    key = ec.generate_private_key(ec.SECP256R1())
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
    return Material(builder.sign(signer.key if signer else key, hashes.SHA256()), key)


class Profile(SimpleNamespace):
    """Stands for a ``snapshot.TlsProfile``; hashed by identity, as that is."""

    __hash__ = object.__hash__


def profile(name: str, client_rule: object = None, *, early_data: bool = False) -> Profile:
    return Profile(certificate=material(name), client_rule=client_rule, domain=name, early_data=early_data)
