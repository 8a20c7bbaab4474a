"""Self-signed certificates for the example's sites, kept in a folder between runs.

Knows nothing of the configuration: the file names, `HOST.pem` with chain and key in one, are the agreement between the two.
`python -m proxy.demo.certificates FOLDER HOST...` makes them, for docker-compose.yml.
"""

import argparse
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

LIFETIME = timedelta(days=90)
"""How long a certificate is valid."""

RENEW_BEFORE = timedelta(days=7)
"""A certificate that ends sooner than this is made anew."""


def ensure(folder: Path, host: str, now: datetime | None = None) -> Path:
    """The file with a certificate for *host* and ``*.host`` and its key, made if it is missing, unreadable or near its end.

    Raises OSError where the folder can't be written.
    """
    now = now or datetime.now(UTC)
    path = folder / f"{host}.pem"
    if not _still_good(path, now):
        folder.mkdir(parents=True, exist_ok=True)
        _write_private(path, make(host, now))
    return path


def make(host: str, now: datetime) -> bytes:
    """A new P-256 key and a self-signed certificate, as PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + LIFETIME)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host), x509.DNSName(f"*.{host}")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    return certificate.public_bytes(serialization.Encoding.PEM) + key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _still_good(path: Path, now: datetime) -> bool:
    try:
        data = path.read_bytes()
        certificate = x509.load_pem_x509_certificate(data)
        key = serialization.load_pem_private_key(data, password=None)
    except (OSError, ValueError):
        return False
    return certificate.not_valid_after_utc - now > RENEW_BEFORE and certificate.public_key() == key.public_key()


def _write_private(path: Path, data: bytes) -> None:
    """Whole or not at all, and readable by the owner only."""
    temporary = path.with_suffix(".new")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
    temporary.replace(path)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m proxy.demo.certificates", description="Self-signed certificates for a demonstration.")
    parser.add_argument("folder", type=Path, help="where they are kept")
    parser.add_argument("hosts", nargs="+", metavar="host", help="for which host, and all below it")
    options = parser.parse_args()
    try:
        for host in options.hosts:
            ensure(options.folder, host)
    except OSError as error:
        parser.exit(1, f"{options.folder}: {error.strerror}\n")


if __name__ == "__main__":
    main()
