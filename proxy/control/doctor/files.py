"""The files that the configuration names, and the state folder: what can be told beyond that they could be loaded.

The configuration was loaded, so certificates are readable, fit their keys and name their hosts. Reads only.
"""

import os
import shlex
import ssl
import stat
import warnings
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from math import inf
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from proxy.config.load import Configuration
from proxy.config.material import SOON, CertificateFiles, MaterialError, load_certificate
from proxy.control.doctor.finding import Finding
from proxy.control.state import StateError, read_secret
from proxy.keys import shown_time

MAX_AUTHORITIES = 2000
"""Authorities of a system that are looked at."""

MIN_FREE = 16 * 1024 * 1024
"""Bytes that the state folder's disk has to spare at least."""


def examine_certificates(configuration: Configuration, authorities: Callable[[], set[bytes]], now: float) -> Iterator[Finding]:
    """The pairs of files, each once. *authorities*: the subjects (DER) that this system trusts; *now* in seconds since the epoch."""
    domains: dict[tuple[Path, Path], list[str]] = {}
    for files in configuration.certificate_files:
        domains.setdefault((files.certificate, files.key), []).append(files.domain)
    trusted = authorities() if domains else set()
    for (certificate, key), names in domains.items():
        yield from _certificate(CertificateFiles(", ".join(names), certificate, key), names, trusted, now)


def system_authorities() -> set[bytes]:
    """The subjects of the authorities that this system trusts, in DER."""
    found = ssl.create_default_context().get_ca_certs(binary_form=True)
    subjects = {subject for der in found if (subject := _subject(x509.load_der_x509_certificate, der))}
    folder = ssl.get_default_verify_paths().capath
    if not subjects and folder is not None:  # OpenSSL reads those of a folder one by one, as it needs them
        files = sorted(Path(folder).glob("*.[0-9]"))[:MAX_AUTHORITIES]
        subjects = {subject for file in files if (subject := _subject(x509.load_pem_x509_certificate, file.read_bytes()))}
    return subjects


def _subject(load: Callable[[bytes], x509.Certificate], data: bytes) -> bytes:
    """Of a certificate; empty for one that can't be read."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of old roots there are some with numbers that RFC 5280 does not allow
        try:
            return load(data).subject.public_bytes()
        except ValueError:
            return b""


def _certificate(files: CertificateFiles, names: Sequence[str], trusted: set[bytes], now: float) -> Iterator[Finding]:
    what = str(files.certificate)
    try:
        loaded = load_certificate(files.certificate, files.key)
        chain = x509.load_pem_x509_certificates(loaded.chain_pem)
    except (MaterialError, ValueError) as error:  # it has changed since the configuration was read
        yield Finding(
            "failure", "certificate", what, str(error), "a certificate with its key", f"openssl x509 -in {shlex.quote(what)} -text"
        )
        return
    if missing := [name for name in names if name != "default" and not loaded.covers(name)]:
        found = f"names {', '.join(loaded.names[:10])}, and not {', '.join(missing[:10])}"
        yield Finding("failure", "certificate", what, found, "every host of the site among its names", "have it issued for these hosts too")
    else:
        yield Finding("ok", "certificate", what, f"fits its key, for {files.domain}")
    yield _validity(what, chain[0], now)
    yield _chain(what, chain, trusted)
    yield from _secrecy(files.key)


def _validity(what: str, leaf: x509.Certificate, now: float) -> Finding:
    begin, end, at = leaf.not_valid_before_utc, leaf.not_valid_after_utc, datetime.fromtimestamp(now, UTC)
    days = (end - at).days
    if end <= at:
        found = f"expired on {end:%Y-%m-%d %H:%M} UTC"
    elif begin > at:
        found = f"not valid before {begin:%Y-%m-%d %H:%M} UTC"
    elif end - at < SOON:
        found = f"expires on {end:%Y-%m-%d %H:%M} UTC, in {days} days"
        return Finding(
            "warning", "certificate", what, found, f"{SOON.days} days left or more", "renew it: qproxy takes the new file by itself"
        )
    else:
        return Finding("ok", "certificate", what, f"valid until {end:%Y-%m-%d}, {days} days more")
    return Finding(
        "failure", "certificate", what, found, "a certificate that is valid now", "renew it: qproxy takes the new file by itself"
    )


def _chain(what: str, chain: Sequence[x509.Certificate], trusted: set[bytes]) -> Finding:
    """Whether clients that have the roots only can follow it."""
    length = f"a chain of {len(chain)}"
    for lower, upper in pairwise(chain):
        try:
            lower.verify_directly_issued_by(upper)
        except (ValueError, TypeError, InvalidSignature):
            found = f"{length}, in which {_name(lower.subject)} is not signed by {_name(upper.subject)} behind it"
            return Finding(
                "failure", "certificate", what, found, "each certificate before its issuer's", "cat leaf.pem intermediate.pem > chain.pem"
            )
    last = chain[-1]
    if last.issuer == last.subject:
        own = " (self-signed: clients have to trust it by name)" if len(chain) == 1 else ", up to its root"
        return Finding("ok", "certificate", what, length + own)
    if last.issuer.public_bytes() in trusted:
        return Finding("ok", "certificate", what, f"{length}, complete: this system trusts {_name(last.issuer)}")
    found = f"{length}, whose last issuer, {_name(last.issuer)}, is no authority that this system trusts"
    expected = "a chain up to an authority of the clients; a private one is well where they have it"
    return Finding("warning", "certificate", what, found, expected, "append the intermediate certificates of the issuer to the file")


def examine_keys(configuration: Configuration, now: float) -> Iterator[Finding]:
    """The keys that instances share: who can read them, which seals, and whether there is another one to come."""
    keys = configuration.keys
    if keys is None:
        return
    what = str(configuration.key_file or "server.cluster.key")
    if configuration.key_file is not None:
        yield from _secrecy(configuration.key_file, "keys")
    sealing, until = keys.sealing(now), keys.next_begin(now)
    if sealing.begin > now:
        found = f"no key has begun; the first, of epoch {sealing.epoch}, begins at {shown_time(sealing.begin)}"
        yield Finding("warning", "keys", what, found, "a key that has begun", "timedatectl   # is this machine's clock right?")
    else:
        then = "none comes after it" if until == inf else f"until {shown_time(until)}"
        yield Finding("ok", "keys", what, f"the key of epoch {sealing.epoch} seals, {then}")


def _secrecy(key: Path, area: str = "certificate") -> Iterator[Finding]:
    try:
        mode = stat.S_IMODE(key.stat().st_mode)
    except OSError:
        return
    if mode & stat.S_IROTH:
        yield Finding(
            "warning",
            area,
            str(key),
            f"the key can be read by everybody ({mode:o})",
            "by its owner only",
            f"chmod 600 {shlex.quote(str(key))}",
        )


def _name(name: x509.Name) -> str:
    return name.rfc4514_string() or "(no name)"


def examine_state(folder: Path) -> Iterator[Finding]:
    """The state folder: there, ours, nobody else's, with a secret and some room."""
    what, quoted = str(folder), shlex.quote(str(folder))
    try:
        found = folder.stat()
    except FileNotFoundError:
        parent = next(parent for parent in folder.parents if parent.exists())
        if os.access(parent, os.W_OK | os.X_OK):
            yield Finding("ok", "state", what, "is not there; it is made at the first start")
        else:
            yield Finding(
                "failure",
                "state",
                what,
                f"is not there, and {parent} can't be written to",
                "a folder of qproxy's own",
                f"install -d -m 700 {quoted}",
            )
        return
    except OSError as error:
        yield Finding("failure", "state", what, f"{error.strerror}", "a folder of qproxy's own", f"ls -ld {quoted}")
        return
    if not stat.S_ISDIR(found.st_mode):
        yield Finding("failure", "state", what, "is no folder", "a folder of qproxy's own", f"rm {quoted} && install -d -m 700 {quoted}")
        return
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        yield Finding("failure", "state", what, "this user can't write to it", "a folder of qproxy's own", f"chown $(id -u) {quoted}")
        return
    yield from _room(folder)
    mode = stat.S_IMODE(found.st_mode)
    if mode & 0o077:
        yield Finding(
            "warning", "state", what, f"others may look into it ({mode:o})", "700: its secrets are qproxy's", f"chmod 700 {quoted}"
        )
    try:
        secret = read_secret(folder)
    except StateError as error:
        yield Finding(
            "failure", "state", f"{what}/secret", str(error), "32 bytes", f"rm {shlex.quote(what + '/secret')}   # a new one is made"
        )
    else:
        yield Finding("ok", "state", what, "has its secret" if secret is not None else "has no secret yet; it is made at the first start")


def _room(folder: Path) -> Iterator[Finding]:
    try:
        disk = os.statvfs(folder)
    except OSError:
        return
    free = disk.f_bavail * disk.f_frsize
    if free < MIN_FREE:
        found = f"{free // 1024} KiB are free on its disk"
        yield Finding(
            "warning", "state", str(folder), found, f"{MIN_FREE // 1024 // 1024} MiB or more", f"df -h {shlex.quote(str(folder))}"
        )
