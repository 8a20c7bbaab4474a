"""Certificates from files: what is taken, what is refused and in which words."""

import datetime as dt
import ssl

import pytest
from config_folder import NOW, make_certificate
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, rsa

from proxy.config import gather
from proxy.config.kept import RENEW_BEFORE, kept_self_signed
from proxy.config.material import (
    MaterialError,
    UpstreamTlsSettings,
    certificate_warnings,
    load_authorities,
    load_certificate,
    make_upstream_tls,
    self_signed,
)


def refusal(certificate, key):
    with pytest.raises(MaterialError) as caught:
        load_certificate(certificate, key)
    return caught.value.part, str(caught.value)


def test_a_pair_is_read(make_pair):
    certificate, key = make_pair("a", ["A.example.com", "*.a.example.com"])
    loaded = load_certificate(certificate, key)
    assert loaded.names == ("a.example.com", "*.a.example.com")
    assert loaded.chain_pem == certificate.read_bytes()
    assert loaded.key_pem == key.read_bytes()
    assert loaded.not_after == (NOW + dt.timedelta(days=89)).timestamp()
    assert loaded.source == f"{certificate}, {key}"
    assert "PRIVATE" not in repr(loaded)


def test_one_file_may_hold_both_in_any_order(folder, make_pair):
    certificate, key = make_pair("a", ["a.example.com"])
    for name, parts in (("ck", (certificate, key)), ("kc", (key, certificate))):
        both = folder.write(b"some words\n" + b"".join(part.read_bytes() for part in parts), f"{name}.pem")
        loaded = load_certificate(both, both)
        assert (loaded.names, loaded.source) == (("a.example.com",), str(both))
        assert loaded.chain_pem == certificate.read_bytes()


def test_older_key_forms_and_kinds_are_taken(folder):
    for key in (rsa.generate_private_key(65537, 2048), ec.generate_private_key(ec.SECP384R1())):
        certificate, _ = make_certificate(["a.example.com"], key=key)
        encoded = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
        )
        loaded = load_certificate(folder.write(certificate, "x.pem"), folder.write(encoded, "x.key"))
        assert loaded.key_pem.startswith(b"-----BEGIN PRIVATE KEY-----")


def test_what_is_no_certificate(folder, make_pair):
    certificate, key = make_pair("a", ["a.example.com"])
    words = folder.write("words", "words.pem")
    broken = folder.write(certificate.read_bytes().replace(b"\n", b"\nAAAA", 2), "broken.pem")
    assert refusal(folder.root / "no.pem", key) == ("certificate", f"{folder.root}/no.pem: can't be read: No such file or directory")
    assert refusal(words, key) == ("certificate", f"{words}: not PEM; expected -----BEGIN CERTIFICATE-----")
    assert refusal(key, key) == ("certificate", f"{key}: holds no certificate; expected -----BEGIN CERTIFICATE-----")
    part, text = refusal(broken, key)
    assert part == "certificate"
    assert text.startswith(f"{broken}: holds a certificate that can't be read (")
    assert refusal(folder.root, key) == ("certificate", f"{folder.root}: can't be read: not a regular file")


def test_what_is_no_key(folder, make_pair):
    certificate, key = make_pair("a", ["a.example.com"])
    assert refusal(certificate, folder.root / "no.key")[1] == f"{folder.root}/no.key: can't be read: No such file or directory"
    words = folder.write("words", "words.key")
    assert refusal(certificate, words) == ("key", f"{words}: not PEM; expected -----BEGIN PRIVATE KEY-----")
    assert refusal(certificate, certificate) == ("key", f"{certificate}: holds no private key; expected -----BEGIN PRIVATE KEY-----")
    cut = folder.write(key.read_bytes()[:80], "cut.key")
    part, text = refusal(certificate, cut)
    assert part == "key"
    assert text.startswith(f"{cut}: holds a private key that can't be read (")


def test_keys_that_can_not_serve(folder, make_pair):
    certificate, _ = make_pair("a", ["a.example.com"])

    def written(name, key, encryption=None):
        pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption or serialization.NoEncryption())
        return folder.write(pem, name)

    secret = written("secret.key", ec.generate_private_key(ec.SECP256R1()), serialization.BestAvailableEncryption(b"x"))
    assert refusal(certificate, secret) == ("key", f"{secret}: is encrypted; expected a key without a password")
    weak = written("weak.key", rsa.generate_private_key(65537, 1024))
    assert refusal(certificate, weak) == ("key", f"{weak}: is an RSA key of 1024 bits; expected 2048 at least")
    other = written("other.key", ed448.Ed448PrivateKey.generate())
    assert refusal(certificate, other) == ("key", f"{other}: is of a kind that can't sign for TLS 1.3; expected ECDSA, RSA or Ed25519")


def test_a_key_of_another_certificate(folder, make_pair):
    certificate, _ = make_pair("a", ["a.example.com"])
    other, key = make_pair("b", ["b.example.com"])
    assert refusal(certificate, key) == ("key", f"{key}: does not belong to the certificate in {certificate}")
    chain = folder.write(certificate.read_bytes() + other.read_bytes(), "chain.pem")
    assert refusal(chain, key) == (
        "certificate",
        f"{chain}: the certificate of the key is not the first one; expected it before its issuers",
    )


def test_a_certificate_without_names(make_pair):
    certificate, key = make_pair("a", [])
    assert refusal(certificate, key) == ("certificate", f"{certificate}: names no host; expected a subjectAltName extension")


def test_a_chain_has_a_bound(folder, make_pair):
    certificate, key = make_pair("a", ["a.example.com"])
    chain = folder.write(certificate.read_bytes() * 21, "chain.pem")
    assert refusal(chain, key) == ("certificate", f"{chain}: holds 21 certificates; expected 20 at most")


def test_warnings_of_time(make_pair):
    pair = make_pair("a", ["a.example.com"])
    loaded = load_certificate(*pair)
    source = loaded.source

    def at(days):
        return certificate_warnings(loaded, (NOW + dt.timedelta(days=days)).timestamp())

    assert at(0) == []
    assert at(80) == [f"{source}: expires on 2030-08-29 00:00 UTC"]
    assert at(89) == [f"{source}: expired on 2030-08-29 00:00 UTC; clients will refuse it"]
    assert at(-2) == [f"{source}: not valid before 2030-05-31 00:00 UTC; clients will refuse it"]


def test_an_expired_certificate_is_a_warning_and_not_a_mistake(folder, make_pair):
    make_pair("old", ["a.example.com"], begin=NOW - dt.timedelta(days=100), days=90)
    text = """\
site:
  hosts: [a.example.com]
  tls: {certificate: old.pem, key: old.key}
  routes: [{respond: {body: x}}]
"""
    (warning,) = folder.warnings(text)
    assert warning == "one.yaml:3:22: old.pem, old.key: expired on 2030-05-22 00:00 UTC; clients will refuse it"


def test_material_mistakes_point_at_the_key_that_names_the_file(folder, make_pair):
    make_pair("a", ["a.example.com"])
    make_pair("b", ["b.example.com"])
    text = """\
server:
  tls: {certificate: a.pem, key: b.key}
sites:
  - hosts: [a.example.com, c.example.com]
    tls:
      certificate: a.pem
      key: a.key
      client_certificates: {ca: a.key}
    routes: [{respond: {}}]
  - hosts: [b.example.com]
    routes: [{respond: {}}]
  - hosts: [d.example.com]
    tls: {certificate: b.pem}
    routes: [{respond: {}}]
pools:
  secure: {endpoints: ["https://x"], tls: {certificate: a.pem, key: b.key}}
"""
    assert folder.problems(text) == [
        "one.yaml:2:34: b.key: does not belong to the certificate in a.pem",
        (
            "one.yaml:6:20: a.pem, a.key: does not cover c.example.com: got a certificate for a.example.com, expected one for all hosts "
            "of the site"
        ),
        "one.yaml:8:33: a.key: holds no certificate; expected -----BEGIN CERTIFICATE-----",
        "one.yaml:13:24: b.pem: holds no private key; expected -----BEGIN PRIVATE KEY-----",
        "one.yaml:16:69: b.key: does not belong to the certificate in a.pem",
    ]


def test_a_site_may_live_on_the_certificate_of_the_server(folder, make_pair):
    certificate, key = make_pair("a", ["*.example.com"])
    sites = "site:\n  hosts: [{}]\n  routes: [{{respond: {{}}}}]\nserver:\n  tls: {{certificate: a.pem, key: a.key}}\n"
    folder.write(sites.format("a.example.com"), "one.yaml")
    configuration = folder.load()
    assert configuration.materials[0].certificates == (configuration.default_certificate,)
    assert [(files.domain, files.certificate, files.key) for files in configuration.certificate_files] == [
        ("default", certificate, key),
        ("a.example.com", certificate, key),
    ]
    assert folder.problems(sites.format("a.b.example.com")) == [
        (
            "one.yaml:2:3: the site has no certificate, and that of server.tls does not cover a.b.example.com; expected "
            "'tls: {certificate: FILE, key: FILE}', or 'tls: {self_signed: true}' for tests"
        )
    ]


def test_authorities(folder, make_pair):
    one, two = make_pair("a", ["a"])[0], make_pair("b", ["b"])[0]
    bundle = folder.write(b"# one\n" + one.read_bytes() + b"# two\n" + two.read_bytes(), "bundle.pem")
    assert load_authorities(bundle) == one.read_bytes() + two.read_bytes()


def test_tls_towards_a_pool(make_pair):
    certificate, key = make_pair("a", ["a"])
    plain = UpstreamTlsSettings(None, None, None, None, verify=True, minimum=ssl.TLSVersion.TLSv1_2)
    tls = make_upstream_tls(plain)
    assert (tls.context.verify_mode, tls.context.check_hostname) == (ssl.CERT_REQUIRED, True)
    assert tls.context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert make_upstream_tls(plain).fingerprint == tls.fingerprint
    full = make_upstream_tls(UpstreamTlsSettings(certificate, certificate, key, "x", verify=True, minimum=ssl.TLSVersion.TLSv1_3))
    assert full.context.get_ca_certs()[0]["subject"] == ((("commonName", "test"),),)
    assert full.context.minimum_version == ssl.TLSVersion.TLSv1_3
    assert full.fingerprint != tls.fingerprint
    trusting = make_upstream_tls(UpstreamTlsSettings(None, None, None, None, verify=False, minimum=ssl.TLSVersion.TLSv1_2))
    assert (trusting.context.verify_mode, trusting.context.check_hostname) == (ssl.CERT_NONE, False)


def test_self_signed_covers_names_and_addresses_and_loads_in_openssl(tmp_path):
    made = self_signed(("localhost", "*.example.com", "127.0.0.1", "::1"), NOW.timestamp())
    assert made.names == ("localhost", "*.example.com", "127.0.0.1", "::1")
    assert made.source == "self-signed"
    assert NOW.timestamp() + 90 * 86400 < made.not_after < NOW.timestamp() + 398 * 86400
    assert certificate_warnings(made, NOW.timestamp()) == []
    file = tmp_path / "x.pem"
    file.write_bytes(made.chain_pem + made.key_pem)
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(file)


def test_a_self_signed_certificate_is_kept(tmp_path):
    hosts, now = ("a.example.com",), NOW.timestamp()
    made, reason = kept_self_signed(tmp_path / "state", hosts, now, keep=True)
    assert reason == ""
    assert kept_self_signed(tmp_path / "state", hosts, now, keep=True) == (made, "")
    (file,) = (tmp_path / "state" / "self-signed").iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    later, _ = kept_self_signed(tmp_path / "state", hosts, made.not_after - RENEW_BEFORE + 1, keep=True)
    assert later.not_after > made.not_after
    other, _ = kept_self_signed(tmp_path / "state", ("b.example.com",), now, keep=False)
    assert other.names == ("b.example.com",)
    assert len(list(file.parent.iterdir())) == 1


def test_a_state_folder_that_can_not_be_written_costs_a_warning_only(tmp_path):
    (tmp_path / "state").write_text("a file")
    made, reason = kept_self_signed(tmp_path / "state", ("a.example.com",), NOW.timestamp(), keep=True)
    assert made.names == ("a.example.com",)
    assert reason.endswith("the self-signed certificate can't be kept, and a restart will make another one")


def test_a_pair_that_many_sites_name_is_read_once_and_told_of_at_each(folder, make_pair, monkeypatch):
    certificate, _ = make_pair("own", ["a.example.com", "b.example.com"], begin=NOW - dt.timedelta(days=100), days=90)
    read = []
    monkeypatch.setattr(gather, "load_certificate", lambda *files, load=gather.load_certificate: read.append(files) or load(*files))
    for host in "ab":
        text = f"hosts: [{host}.example.com]\n  tls: {{certificate: own.pem, key: own.key}}\n  routes: [{{respond: {{}}}}]\n"
        folder.write(f"site:\n  {text}", f"{host}.yaml")
    warnings = [folder.short(str(warning)) for warning in folder.load().warnings]
    assert [warning.partition(" expired on ")[0] for warning in warnings] == [
        "a.yaml:3:22: own.pem, own.key:",
        "b.yaml:3:22: own.pem, own.key:",
    ]
    assert len(read) == 1
    assert certificate == read[0][0]
