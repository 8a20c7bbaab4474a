"""A certificate authority made for the run, and what it signs."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from proxy.sni import Certificate

DAY = timedelta(days=1)


@dataclass
class Signed:
    """A certificate with its key, as PEM."""

    names: tuple[str, ...]
    chain: bytes
    key: bytes
    not_after: datetime

    def certificate(self) -> Certificate:
        return Certificate(self.names, self.chain, self.key, self.not_after.timestamp(), "made for the test")


class Authority:
    def __init__(self, name: str) -> None:
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._key = ec.generate_private_key(ec.SECP256R1())
        now = datetime.now(UTC)
        ca = x509.BasicConstraints(ca=True, path_length=0)
        builder = self._builder(self.name, self._key.public_key(), now - DAY, now + 10 * DAY).add_extension(ca, critical=True)
        self.pem = builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    def sign(self, *names: str, expired: bool = False) -> Signed:
        key = ec.generate_private_key(ec.SECP256R1())
        now = datetime.now(UTC)
        not_after = now - timedelta(hours=1) if expired else now + 5 * DAY
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])])
        alternatives = x509.SubjectAlternativeName([x509.DNSName(name) for name in names])
        builder = self._builder(subject, key.public_key(), now - DAY, not_after).add_extension(alternatives, critical=False)
        certificate = builder.sign(self._key, hashes.SHA256())
        secret = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        return Signed(names, certificate.public_bytes(serialization.Encoding.PEM), secret, not_after)

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePublicKey, begin: datetime, end: datetime) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(begin)
            .not_valid_after(end)
        )


@pytest.hookimpl(optionalhook=True)
def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Both loops: they differ in what a closing transport does."""
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


@pytest.fixture(scope="session")
def authority() -> Authority:
    return Authority("Test CA")


@pytest.fixture(scope="session")
def other_authority() -> Authority:
    return Authority("Other CA")
