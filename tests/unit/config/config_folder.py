"""A folder to write configurations into, and certificates to name in them."""

import datetime as dt
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from proxy.config.load import ConfigError, Configuration, load

NOW = dt.datetime(2030, 6, 1, tzinfo=dt.UTC)

SITE = """\
site:
  hosts: [a.example.com]
  tls: {self_signed: true}
  routes: [{pool: web}]
  pools: {web: {endpoints: ["http://127.0.0.1:9001"]}}
"""


class Folder:
    """A configuration folder under a temporary one. Messages name its files without the way to them."""

    def __init__(self, root: Path) -> None:
        self.root = root / "conf.d"
        self.root.mkdir()

    def write(self, text: str | bytes, name: str = "qproxy.yaml") -> Path:
        file = self.root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(text.encode() if isinstance(text, str) else text)
        return file

    def load(self, environ: dict[str, str] | None = None) -> Configuration:
        return load(self.root, environ or {}, now=NOW.timestamp())

    def problems(self, *texts: str, environ: dict[str, str] | None = None) -> list[str]:
        """What is wrong with these files (one.yaml, two.yaml ...), as people see it."""
        for name, text in zip(("one.yaml", "two.yaml", "three.yaml"), texts, strict=False):
            self.write(text, name)
        with pytest.raises(ConfigError) as caught:
            self.load(environ)
        return [self.short(str(problem)) for problem in caught.value.problems]

    def warnings(self, text: str) -> list[str]:
        self.write(text, "one.yaml")
        return [self.short(str(warning)) for warning in self.load().warnings]

    def short(self, text: str) -> str:
        return text.replace(f"{self.root}/", "").replace(f"{self.root.parent}/", "")


Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


def make_certificate(
    names: list[str],
    *,
    key: Key | None = None,
    begin: dt.datetime = NOW - dt.timedelta(days=1),
    days: int = 90,
) -> tuple[bytes, bytes]:
    """A self-signed certificate and its key, both PEM. Without names it has no subjectAltName."""
    private = key or ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin + dt.timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), critical=False)
    certificate = builder.sign(private, hashes.SHA256())
    encoded = private.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return certificate.public_bytes(serialization.Encoding.PEM), encoded
