"""The demo's certificates: made once, kept, made anew near their end or when they are broken, and never readable by others."""

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509

from proxy.demo import certificates

NOW = datetime(2026, 1, 1, tzinfo=UTC)
HOST = "a.example.com"


def test_a_certificate_covers_the_host_and_its_subdomains(tmp_path):
    path = certificates.ensure(tmp_path / "new" / "folder", HOST, NOW)
    certificate = x509.load_pem_x509_certificate(path.read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value.get_values_for_type(x509.DNSName)
    assert names == [HOST, f"*.{HOST}"]
    assert certificate.not_valid_before_utc < NOW < certificate.not_valid_after_utc
    assert path.stat().st_mode & 0o077 == 0


def test_it_is_kept_until_near_its_end(tmp_path):
    first = certificates.ensure(tmp_path, HOST, NOW).read_bytes()
    just_before = NOW + certificates.LIFETIME - certificates.RENEW_BEFORE - timedelta(minutes=1)
    assert certificates.ensure(tmp_path, HOST, just_before).read_bytes() == first
    assert certificates.ensure(tmp_path, HOST, just_before + timedelta(minutes=2)).read_bytes() != first


@pytest.mark.parametrize("damage", [lambda pem: b"", lambda pem: pem[: len(pem) // 2], lambda pem: b"\x00" * 100])
def test_a_broken_file_is_replaced(tmp_path, damage):
    path = certificates.ensure(tmp_path, HOST, NOW)
    path.write_bytes(damage(path.read_bytes()))
    certificates.ensure(tmp_path, HOST, NOW)
    assert x509.load_pem_x509_certificate(path.read_bytes())
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_key_of_another_certificate_is_replaced(tmp_path):
    path = certificates.ensure(tmp_path, HOST, NOW)
    chain, _, _ = path.read_bytes().partition(b"-----BEGIN PRIVATE KEY")
    other = certificates.make(HOST, NOW)
    mixed = chain + other[other.index(b"-----BEGIN PRIVATE KEY") :]
    path.write_bytes(mixed)
    assert certificates.ensure(tmp_path, HOST, NOW).read_bytes() != mixed


def test_the_command_makes_one_for_each_host_and_says_why_it_can_t(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["certificates", str(tmp_path), HOST, "b.example.com"])
    certificates.main()
    assert sorted(file.name for file in tmp_path.iterdir()) == [f"{HOST}.pem", "b.example.com.pem"]
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("sys.argv", ["certificates", str(tmp_path / "file"), HOST])
    with pytest.raises(SystemExit) as exited:
        certificates.main()
    assert exited.value.code == 1
    assert "Traceback" not in (told := capsys.readouterr().err)
    assert told.startswith(str(tmp_path / "file"))
