"""What the doctor says of certificate files and of the state folder."""

import os
import time
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from proxy.config.material import CertificateFiles
from proxy.control.doctor.files import examine_certificates, examine_keys, examine_state, system_authorities
from proxy.keys import Key, KeySet, shown_time

NOW = time.time()


class Signer:
    """An authority, or what it signs."""

    def __init__(self, name, issuer=None, hosts=(), days=(-1, 90)):
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        begin, end = (datetime.now(UTC) + timedelta(days=day) for day in days)
        builder = x509.CertificateBuilder().subject_name(self.name).issuer_name((issuer or self).name).public_key(self.key.public_key())
        builder = builder.serial_number(x509.random_serial_number()).not_valid_before(begin).not_valid_after(end)
        if hosts:
            builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(host) for host in hosts]), critical=False)
        self.certificate = builder.sign((issuer or self).key, hashes.SHA256())

    @property
    def pem(self):
        return self.certificate.public_bytes(serialization.Encoding.PEM)


ROOT = Signer("Root")
MIDDLE = Signer("Middle", ROOT)
TRUSTED = {ROOT.name.public_bytes()}


@pytest.fixture
def examined(tmp_path):
    """Examine a chain of certificates, the first of which has its key."""

    def examined(*chain, domain="a.example.com", mode=0o600):
        certificate, key = tmp_path / "chain.pem", tmp_path / "key.pem"
        certificate.write_bytes(b"".join(link.pem for link in chain))
        form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        key.write_bytes(chain[0].key.private_bytes(*form))
        key.chmod(mode)
        configuration = SimpleNamespace(certificate_files=[CertificateFiles(domain, certificate, key)])
        return list(examine_certificates(configuration, lambda: TRUSTED, NOW))

    return examined


def leaf(issuer=MIDDLE, **more):
    return Signer("a.example.com", issuer, hosts=["a.example.com", "b.example.com"], **more)


def wrong(findings):
    return [(finding.verdict, finding.found) for finding in findings if finding.verdict != "ok"]


def test_a_certificate_that_is_well(examined):
    findings = examined(leaf(), MIDDLE)
    assert not wrong(findings)
    assert [finding.found for finding in findings][::2] == [
        "fits its key, for a.example.com",
        "a chain of 2, complete: this system trusts CN=Root",
    ]
    assert [finding.found for finding in examined(leaf(), MIDDLE, ROOT)][2] == "a chain of 3, up to its root"
    alone = Signer("a.example.com", hosts=["a.example.com"])
    assert [finding.found for finding in examined(alone)][2] == "a chain of 1 (self-signed: clients have to trust it by name)"


@pytest.mark.parametrize(
    ("days", "verdict", "words"),
    [((-90, -1), "failure", "expired on "), ((-90, 5), "warning", "expires on "), ((1, 90), "failure", "not valid before ")],
)
def test_a_certificate_out_of_its_time(examined, days, verdict, words):
    ((found, told),) = wrong(examined(leaf(days=days), MIDDLE))
    assert (found, told[: len(words)]) == (verdict, words)


def test_a_chain_with_a_link_missing_or_out_of_order(examined):
    assert wrong(examined(leaf())) == [("warning", "a chain of 1, whose last issuer, CN=Middle, is no authority that this system trusts")]
    stranger = Signer("Middle", ROOT)  # of that name, and with another key
    assert wrong(examined(leaf(), stranger)) == [
        ("failure", "a chain of 2, in which CN=a.example.com is not signed by CN=Middle behind it")
    ]
    assert wrong(examined(leaf(), ROOT, MIDDLE))[0][0] == "failure"


def test_a_host_that_is_not_covered_and_a_key_for_everybody(examined):
    assert wrong(examined(leaf(), MIDDLE, domain="c.example.com")) == [
        ("failure", "names a.example.com, b.example.com, and not c.example.com")
    ]
    (finding,) = (finding for finding in examined(leaf(), MIDDLE, mode=0o644) if finding.verdict != "ok")
    assert (finding.found, finding.mend) == ("the key can be read by everybody (644)", f"chmod 600 {finding.what}")


def test_a_file_that_has_gone_since(tmp_path):
    configuration = SimpleNamespace(certificate_files=[CertificateFiles("a", tmp_path / "x.pem", tmp_path / "y.pem")])
    (finding,) = examine_certificates(configuration, set, NOW)
    assert finding.verdict == "failure"
    assert "No such file" in finding.found


def test_the_authorities_of_this_system_are_read():
    assert all(isinstance(subject, bytes) for subject in system_authorities())


def test_the_keys_of_a_cluster(tmp_path):
    file = tmp_path / "cluster.key"
    file.touch(0o600)
    first, second = (Key(epoch, int(NOW) + epoch * 3600, bytes([epoch]) * 32) for epoch in (1, 2))
    begin = shown_time(second.begin)

    def found(at, *keys, key_file=file):
        configuration = SimpleNamespace(keys=KeySet(keys, b"") if keys else None, key_file=key_file)
        return [(finding.verdict, finding.what, finding.found) for finding in examine_keys(configuration, at)]

    assert found(NOW) == []
    assert found(first.begin, first, second) == [("ok", str(file), f"the key of epoch 1 seals, until {begin}")]
    assert found(second.begin, first, second, key_file=None) == [
        ("ok", "server.cluster.key", "the key of epoch 2 seals, none comes after it")
    ]
    file.chmod(0o644)
    assert found(NOW, first) == [
        ("warning", str(file), "the key can be read by everybody (644)"),
        ("warning", str(file), f"no key has begun; the first, of epoch 1, begins at {shown_time(first.begin)}"),
    ]


def state(folder):
    return [(finding.verdict, finding.found) for finding in examine_state(folder)]


def test_a_state_folder(tmp_path):
    folder = tmp_path / "state"
    assert state(folder) == [("ok", "is not there; it is made at the first start")]
    assert state(folder / "deeper" / "still") == [("ok", "is not there; it is made at the first start")]
    folder.mkdir(mode=0o700)
    assert state(folder) == [("ok", "has no secret yet; it is made at the first start")]
    (folder / "secret").write_bytes(bytes(32))
    assert state(folder) == [("ok", "has its secret")]
    folder.chmod(0o755)
    assert state(folder) == [("warning", "others may look into it (755)"), ("ok", "has its secret")]
    folder.chmod(0o700)
    (folder / "secret").write_bytes(b"short")
    ((verdict, found),) = state(folder)
    assert (verdict, "5 bytes where 32 were expected" in found) == ("failure", True)
    (tmp_path / "file").write_text("")
    assert state(tmp_path / "file")[0] == ("failure", "is no folder")
    assert state(tmp_path / "file" / "below")[0][0] == "failure"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_state_folder_that_can_not_be_written_to(tmp_path):
    tmp_path.chmod(0o500)
    assert state(tmp_path / "state")[0][0] == "failure"
    assert state(tmp_path)[0][0] == "failure"
    tmp_path.chmod(0o700)


def test_nothing_is_written(tmp_path):
    list(examine_state(tmp_path / "state"))
    assert list(tmp_path.iterdir()) == []
