"""Self-signed certificates of sites, kept in the state folder: who has told a browser to trust one need not do so after every restart."""

import hashlib
import os
import tempfile
from dataclasses import replace
from pathlib import Path

from proxy.config.material import MaterialError, load_certificate, self_signed
from proxy.sni import Certificate

RENEW_BEFORE = 30 * 86400
"""Seconds before its end at which a kept certificate is made anew."""


def kept_self_signed(state: Path, hosts: tuple[str, ...], now: float, *, keep: bool) -> tuple[Certificate, str]:
    """The certificate for *hosts* that the state folder has, or a new one; with *keep* it is put there.

    The second value says why it could not be kept, or is empty. Never raises: such a certificate serves for this run all the same.
    """
    name = hashlib.sha256("\n".join(hosts).encode()).hexdigest()[:16]
    file = state / "self-signed" / f"{name}.pem"
    try:
        found = load_certificate(file, file)
        if set(found.names) == set(hosts) and found.not_after - now > RENEW_BEFORE:
            return replace(found, source="self-signed"), ""
    except MaterialError:
        pass
    made = self_signed(hosts, now)
    if not keep:
        return made, ""
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _write(file, made.chain_pem + made.key_pem)
    except OSError as error:
        return (
            made,
            f"{error.filename or file}: {error.strerror}: the self-signed certificate can't be kept, and a restart will make another one",
        )
    return made, ""


def _write(file: Path, data: bytes) -> None:
    """Put the whole file there at once, readable for its owner only."""
    descriptor, temporary = tempfile.mkstemp(dir=file.parent)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
        Path(temporary).replace(file)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
