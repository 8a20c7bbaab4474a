"""What clients of several makers settle in a handshake: the certificate that they can verify, its size on the wire, the group."""

import re
import ssl

import pytest
from curl_cffi import CurlOpt
from harness import clients
from harness.cli import qproxy
from harness.http3 import Http3, http3
from harness.relay import Relay

HOST = "a.example.com"
ECDSA, RSA = 0x0403, 0x0804


# One name with several certificates


@pytest.fixture
def pairs(authority, tmp_path):
    """An RSA certificate, and an ECDSA one beside it; configured in this order."""
    return [authority.issue(HOST, file=name, folder=tmp_path, rsa_key=name == "rsa") for name in ("rsa", "ecdsa")]


def site(pairs):
    (rsa, rsa_key), (ecdsa, ecdsa_key) = pairs
    other = {"certificate": str(ecdsa), "key": str(ecdsa_key)}
    return {HOST: {"hosts": [HOST], "tls": {"certificate": str(rsa), "key": str(rsa_key), "alternatives": [other]}}}


async def kind_on_quic(authority, proxy, *algorithms):
    """The kind of key that a client is shown which verifies by *algorithms*."""

    class Verifying(Http3):
        def __init__(self, *args, **more):
            super().__init__(*args, **more)
            begin = self._quic._initialize

            def initialize(peer_cid):
                begin(peer_cid)
                self._quic.tls._signature_algorithms = list(algorithms)

            self._quic._initialize = initialize

    async with http3(authority, proxy.port, verify_mode=ssl.CERT_NONE, protocol=Verifying) as client:
        assert (await client.get("/", host=HOST)).status == 200
        return type(client._quic.tls._peer_certificate.public_key()).__name__


def kind_on_tcp(proxy, algorithms):
    said = clients.s_client(proxy.port, "-sigalgs", algorithms, sni=HOST)
    return re.search(r"Peer signature type: (\S+)", said)[1]


@pytest.mark.speaks("HTTP/3")
async def test_each_client_gets_the_certificate_that_it_can_verify(authority, start_proxy, pairs, tmp_path):
    proxy = start_proxy(sites=site(pairs))
    for _ in range(2):
        assert await kind_on_quic(authority, proxy, RSA) == "RSAPublicKey"
        assert await kind_on_quic(authority, proxy, RSA, ECDSA) == "ECPublicKey"
        assert kind_on_tcp(proxy, "RSA-PSS+SHA256") == "RSA-PSS"
        assert kind_on_tcp(proxy, "RSA-PSS+SHA256:ECDSA+SHA256") == "ECDSA"
    gauge = f'qproxy_certificate_not_after_seconds{{domain="{HOST}"}}'
    before = proxy.metrics()[gauge]
    for file in authority.issue(HOST, file="rsa", folder=tmp_path, rsa_key=True, days=20):
        assert file.exists()
    proxy.wait_for(lambda: proxy.metrics()[gauge] != before, "read the new RSA certificate")
    assert await kind_on_quic(authority, proxy, RSA) == "RSAPublicKey"
    assert await kind_on_quic(authority, proxy, ECDSA) == "ECPublicKey"
    assert "can't verify ECDSA" in qproxy("explain", "-c", proxy.config, f"https://{HOST}/").out


def test_two_keys_of_one_kind_are_a_mistake(authority, start_proxy, pairs, tmp_path):
    proxy = start_proxy(sites=site(pairs))
    again = authority.issue(HOST, file="ecdsa", folder=tmp_path, rsa_key=True)
    told = qproxy("check", "-c", proxy.config)
    assert told.code == 2
    assert f"{again[0]}, {again[1]}: an RSA key, as another certificate here has; expected ECDSA or Ed25519" in told.err
    proxy.wait_for(lambda: "has the same kind of key" in proxy.logs(), "said why it keeps the present certificate")
    assert kind_on_tcp(proxy, "ECDSA+SHA256") == "ECDSA"


# Certificates in fewer bytes


@pytest.mark.speaks("HTTP/3")
def test_chrome_gets_its_certificate_by_brotli(authority, start_proxy, differs, tmp_path):
    """By the bytes on the wire: those of a handshake with a long chain, and with certificates as they are."""
    chain, key = authority.issue(HOST, folder=tmp_path)
    chain.write_bytes(chain.read_bytes() * 10)
    sites = {HOST: {"hosts": [HOST], "tls": {"certificate": str(chain), "key": str(key)}}}
    sizes = []
    for quic in ({}, {"certificate_compression": []}):
        proxy = start_proxy(sites=sites, server={"quic": quic})
        with Relay(proxy.port) as relay, clients.curl_session(authority, relay.port, impersonate="chrome") as session:
            answer = session.get(f"https://{HOST}:{relay.port}/", verify=False)
            assert (answer.status_code, clients.SPOKEN[answer.http_version]) == (200, "HTTP/3")
            sizes.append(relay.bytes_to_clients)
        proxy.metrics()  # which has it told
        name = 'qproxy_quic_certificates_compressed_total{algorithm="brotli"}'
        assert proxy.metrics().get(name, 0) == int(differs("certificate compression") and not quic)
    if differs("certificate compression"):
        assert sizes[1] - sizes[0] > 3000, sizes


def test_compression_is_refused_of_an_engine_that_has_none(start_proxy, differs):
    proxy = start_proxy()
    proxy.server["quic"] = {"certificate_compression": ["zlib"]}
    proxy.write()
    told = qproxy("check", "-c", proxy.config)
    if differs("certificate compression"):
        assert told.code == 0, told.err
    else:
        assert told.code == 2
        assert "aioquic, has no certificate compression by zlib; native has it" in told.err


# HelloRetryRequest


@pytest.mark.speaks("HTTP/3")
def test_gnutls_with_a_share_of_another_group_is_asked_for_one_of_ours(start_proxy, tmp_path):
    proxy = start_proxy(sites={"localhost": {}})
    groups = "--groups=-GROUP-ALL:+GROUP-SECP521R1:+GROUP-SECP256R1"
    # Once: with a ticket for early data, ngtcp2 itself trips over being asked (an assertion in ngtcp2_conn_install_early_key).
    assert b'"headers"' in clients.gtlsclient(tmp_path, proxy.url("/headers", "localhost"), groups)


@pytest.mark.speaks("HTTP/3")
@pytest.mark.parametrize("groups", ["P-521:P-256", "P-521:X25519"])
def test_boringssl_with_a_share_of_another_group_is_asked_for_one_of_ours(authority, start_proxy, groups):
    proxy = start_proxy()
    with clients.curl_session(authority, proxy.port) as session:
        session.curl_options[CurlOpt.SSL_EC_CURVES] = groups
        answer = session.get(proxy.url("/", HOST))
    assert (answer.status_code, clients.SPOKEN[answer.http_version]) == (200, "HTTP/3")
