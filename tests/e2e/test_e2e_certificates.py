"""Certificates, from their files to the handshake: renewed while serving, chosen by SNI, asked of clients, refused where they don't fit."""

import asyncio
import json
import shutil
import socket
import ssl
import time

import pytest
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import ConnectionTerminated
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from harness import clients
from harness.authority import Authority
from harness.http3 import Http3, http3
from harness.inprocess import InProcess
from harness.load import Load

pytestmark = pytest.mark.workers(2)

VERSIONS = clients.VERSIONS
A, B = "a.example.com", "b.example.com"
SECONDS = 2.0  # in which a new certificate has to be in use
SLACK = 3.0  # for a machine that has other things to do


# What is shown


def shown_on_tcp(proxy, sni=A):
    """The serial number of the certificate that TCP shows."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    raw = socket.create_connection(("127.0.0.1", proxy.port), timeout=10)
    with context.wrap_socket(raw, server_hostname=sni) as secured:
        return x509.load_der_x509_certificate(secured.getpeercert(binary_form=True)).serial_number


async def shown_on_quic(authority, proxy, sni=A):
    """The same for QUIC."""
    async with http3(authority, proxy.port, sni=sni, verify_mode=ssl.CERT_NONE) as client:
        return client._quic.tls._peer_certificate.serial_number


def serial(file):
    return x509.load_pem_x509_certificate(file.read_bytes()).serial_number


async def wait_shown(authority, proxy, file, sni=A):
    """Both transports show the certificate of *file* in time."""
    wanted, began = serial(file), time.monotonic()
    while (await asyncio.to_thread(shown_on_tcp, proxy, sni), await shown_on_quic(authority, proxy, sni)) != (wanted, wanted):
        assert time.monotonic() - began < SECONDS + SLACK, "the new certificate is not in use"
        await asyncio.sleep(0.05)  # another process gives no event to wait for; bounded above


def events(proxy, text):
    """What the log says with *text* in it: one line at least, for which it waits."""
    proxy.wait_for(lambda: text in proxy.logs(), f"logged {text!r}")
    return [json.loads(line) for line in proxy.logs().splitlines() if text in line and line.startswith("{")]


# Renewal


@pytest.fixture
def proxy(start_proxy):
    return start_proxy()


def by_writing(new, place):
    for file in new:
        (place / f"{A}{file.suffix}").write_bytes(file.read_bytes())


def by_renaming(new, place):
    for file in new:
        file.rename(place / f"{A}{file.suffix}")


@pytest.mark.speaks("HTTP/2", "HTTP/3")
@pytest.mark.parametrize("way", [by_writing, by_renaming])
async def test_a_new_pair_serves_new_handshakes_and_the_connections_live_on(authority, proxy, tmp_path, way):
    old, _ = proxy.config / f"{A}.pem", proxy.config / f"{A}.key"
    assert await shown_on_quic(authority, proxy) == shown_on_tcp(proxy) == serial(old)
    other = shown_on_tcp(proxy, B)
    (tmp_path / "new").mkdir()
    new = authority.issue(A, f"*.{A}", folder=tmp_path / "new")
    wanted = serial(new[0])
    with Load(authority, proxy.port, clients=2, streams=2) as load:
        load.more(10)
        began = time.monotonic()
        way(new, proxy.config)
        assert serial(old) == wanted
        await wait_shown(authority, proxy, old)
        load.more(10)
        assert time.monotonic() - began < 30
    assert not load.lost, load.summary()
    assert len(load.backends()) == 6, "the connections that were there are there"
    assert shown_on_tcp(proxy, B) == other
    (told,) = events(proxy, f"Updated certificate for domain: {A}")
    assert told["level"] == "info"


async def symlinked(authority, start_proxy, tmp_path, turn, layout):
    """Start a proxy whose certificate is reached by symbolic links, turn them, and see the new one in use."""
    live = layout(authority, tmp_path)
    proxy = start_proxy(sites={A: {"tls": {"certificate": str(live / "tls.crt"), "key": str(live / "tls.key")}}})
    assert shown_on_tcp(proxy) == serial(live / "tls.crt")
    turn(authority, tmp_path)
    await wait_shown(authority, proxy, live / "tls.crt")
    assert events(proxy, f"Updated certificate for domain: {A}")


def issued(authority, folder):
    folder.mkdir(parents=True)
    chain, key = authority.issue(A, f"*.{A}", folder=folder)
    chain.rename(folder / "tls.crt")
    key.rename(folder / "tls.key")


@pytest.mark.speaks("HTTP/3")
async def test_kubernetes_turns_the_link_data(authority, start_proxy, tmp_path):
    volume = tmp_path / "volume"

    def layout(authority, _):
        issued(authority, volume / "..2026_01")
        (volume / "..data").symlink_to("..2026_01")
        for name in ("tls.crt", "tls.key"):
            (volume / name).symlink_to(f"..data/{name}")
        return volume

    def turn(authority, _):
        issued(authority, volume / "..2026_02")
        (volume / "..data_tmp").symlink_to("..2026_02")
        (volume / "..data_tmp").rename(volume / "..data")
        shutil.rmtree(volume / "..2026_01")

    await symlinked(authority, start_proxy, tmp_path, turn, layout)


@pytest.mark.speaks("HTTP/3")
async def test_certbot_turns_the_links_of_live(authority, start_proxy, tmp_path):
    archive, live = tmp_path / "archive" / A, tmp_path / "live" / A

    def layout(authority, _):
        issued(authority, archive / "1")
        live.mkdir(parents=True)
        for name in ("tls.crt", "tls.key"):
            (live / name).symlink_to(f"../../archive/{A}/1/{name}")
        return live

    def turn(authority, _):
        issued(authority, archive / "2")
        for name in ("tls.crt", "tls.key"):  # one after the other, as certbot does
            (live / name).unlink()
            (live / name).symlink_to(f"../../archive/{A}/2/{name}")

    await symlinked(authority, start_proxy, tmp_path, turn, layout)


@pytest.mark.speaks("HTTP/3")
async def test_a_broken_pair_leaves_the_present_one_with_one_line_and_a_metric(authority, proxy, tmp_path):
    chain, key = proxy.config / f"{A}.pem", proxy.config / f"{A}.key"
    present = serial(chain)
    (tmp_path / "other").mkdir()
    foreign = authority.issue("c.example.com", folder=tmp_path / "other")
    failures = f'qproxy_certificate_reload_failures_total{{domain="{A}"}}'

    def failed():
        return proxy.metrics().get(failures, 0)

    good = chain.read_bytes(), key.read_bytes()
    for number, (broken_chain, broken_key, word) in enumerate(
        [
            (b"-----BEGIN CERTIFICATE-----\nno\n", good[1], str(chain)),
            (good[0], foreign[1].read_bytes(), "key"),
            (foreign[0].read_bytes(), foreign[1].read_bytes(), f"does not cover {A}"),
        ],
        1,
    ):
        chain.write_bytes(broken_chain)
        key.write_bytes(broken_key)
        proxy.wait_for(lambda number=number: failed() >= number, "counts the broken pair")
        assert shown_on_tcp(proxy) == await shown_on_quic(authority, proxy) == present
        proxy.wait_for(lambda number=number: len(events(proxy, "certificate not updated")) == number, "logged the broken pair")
        last = events(proxy, "certificate not updated")[-1]
        assert last["level"] == "error"
        assert A in last["domains"]
        assert word in last["reason"]
    chain.unlink()
    proxy.wait_for(lambda: failed() >= 4, "counts the file that is gone")
    assert shown_on_tcp(proxy) == present
    proxy.wait_for(lambda: len(events(proxy, "certificate not updated")) == 4, "logged one line for each broken pair")
    lines = events(proxy, "certificate not updated")
    domains = len(lines[0]["domains"])
    assert (
        sum(value for name, value in proxy.metrics().items() if name.startswith("qproxy_certificate_reload_failures_total")) == 4 * domains
    )
    new = authority.issue(A, f"*.{A}", folder=tmp_path)
    by_renaming(new, proxy.config)
    await wait_shown(authority, proxy, chain)


def test_an_expired_certificate_at_start_is_a_warning(authority, start_proxy, tmp_path):
    chain, key = authority.issue(A, f"*.{A}", folder=tmp_path, days=-1)
    proxy = start_proxy(sites={A: {"tls": {"certificate": str(chain), "key": str(key)}}})
    (warning,) = [event for event in events(proxy, "expired") if event["level"] == "warning"]
    assert str(chain) in warning["problem"]


# SNI


@pytest.mark.speaks("HTTP/3")
async def test_unknown_sni_gets_the_default_certificate_and_only_health(authority, start_proxy, tmp_path):
    chain, key = authority.issue("default.example.org", folder=tmp_path)
    proxy = start_proxy(server={"tls": {"certificate": str(chain), "key": str(key)}})
    assert shown_on_tcp(proxy, "nobody.example.org") == await shown_on_quic(authority, proxy, "nobody.example.org") == serial(chain)
    async with http3(authority, proxy.port, sni="default.example.org") as client:
        assert (await client.get("/health", host="nobody.example.org")).body == b"OK"
        assert (await client.get("/", host="nobody.example.org")).status == 421
        assert (await client.get("/", host=A)).status == 421
    assert proxy.metrics()['sni_resolutions_total{domain="default"}'] >= 3
    assert not [name for name in proxy.metrics() if "nobody" in name], "no label comes from a client"


@pytest.mark.speaks("HTTP/3")
@pytest.mark.parametrize("sni", ["nobody.example.org", None])
async def test_unknown_sni_is_refused_where_it_shall_be(authority, start_proxy, sni):
    proxy = start_proxy(server={"tls": {"unknown_sni": "refuse"}}, answers=False)
    said = clients.s_client(proxy.port, sni=sni)
    assert "unrecognized name" in said, said
    assert "Cipher is (NONE)" in said
    assert await refusal(authority, proxy, sni=sni, verify_mode=ssl.CERT_NONE) == 0x100 + 112  # unrecognized_name (RFC 9001, section 4.8)
    failures = {name: value for name, value in proxy.metrics().items() if name.startswith("qproxy_handshake_failures_total")}
    assert failures['qproxy_handshake_failures_total{reason="unrecognized_name",transport="tcp"}'] == 1
    assert sum(value for name, value in failures.items() if 'transport="quic"' in name) == 1
    assert shown_on_tcp(proxy, A)


async def refusal(authority, proxy, **settings):
    """The error code with which a QUIC handshake is refused."""
    codes = []

    class Telling(Http3):
        def quic_event_received(self, event):
            if isinstance(event, ConnectionTerminated):
                codes.append(event.error_code)
            super().quic_event_received(event)

    with pytest.raises(ConnectionError):
        async with http3(authority, proxy.port, protocol=Telling, **settings) as client:
            await client.get("/", host=A)
    return codes[0]


# Which authority may come on which connection


def both_names(authority, tmp_path):
    """One certificate for a, and one for a and b together."""
    wide = authority.issue(A, B, file="wide", folder=tmp_path)
    return {"tls": {"certificate": str(wide[0]), "key": str(wide[1])}}


@pytest.mark.parametrize("version", ["HTTP/2", "HTTP/3"])
async def test_a_certificate_that_covers_both_names_carries_both(authority, start_proxy, tmp_path, version):
    wide = both_names(authority, tmp_path)
    proxy = start_proxy(sites={A: {"hosts": [A], **wide}, B: {"hosts": [B], **wide}})
    assert await on_one_connection(authority, proxy, version, A, B) == [200, 200, 200]


@pytest.mark.parametrize("version", ["HTTP/2", "HTTP/3"])
async def test_another_authority_than_the_certificate_covers_is_misdirected(authority, proxy, version):
    assert await on_one_connection(authority, proxy, version, A, B) == [200, 421, 200]


@pytest.mark.parametrize("version", ["HTTP/2", "HTTP/3"])
async def test_a_site_with_another_rule_for_client_certificates_is_misdirected(authority, start_proxy, tmp_path, version):
    wide = both_names(authority, tmp_path)
    guarded = {"tls": wide["tls"] | {"client_certificates": {"ca": str(authority.file)}}}
    proxy = start_proxy(sites={A: {"hosts": [A], **wide}, B: {"hosts": [B], **guarded}})
    assert await on_one_connection(authority, proxy, version, A, B) == [200, 421, 200]


async def on_one_connection(authority, proxy, version, first, second):
    """Statuses of requests for *first*, *second* and *first* again on a connection made to *first*."""
    if version == "HTTP/3":
        async with http3(authority, proxy.port, sni=first) as client:
            return [(await client.get("/hello", host=host)).status for host in (first, second, first)]
    with clients.httpx_client(authority, version) as client:
        url = proxy.url("/hello", first)
        answers = [client.get(url, headers={"host": host}) for host in (first, second, first)]
        assert len(client._transport._pool.connections) == 1
        return [answer.status_code for answer in answers]


# Client certificates


@pytest.fixture(scope="module")
def shows(authority, tmp_path_factory):
    """Client certificates: (chain, key) by kind."""
    folder = tmp_path_factory.mktemp("client-certificates")
    stranger = Authority(folder / "stranger", "Stranger")
    return {
        "good": authority.issue("client", client=True, file="good", folder=folder),
        "expired": authority.issue("client", client=True, file="expired", days=-1, folder=folder),
        "untrusted": stranger.issue("client", client=True, file="untrusted", folder=folder),
        "none": None,
    }


@pytest.fixture(scope="module", params=["require", "request"])
def asking(request, authority, make_proxy):
    """A proxy whose site a asks for client certificates."""
    rule = {"client_certificates": {"ca": str(authority.file), "mode": request.param}}
    return make_proxy(sites={A: {"tls": rule}}).start(), request.param


@pytest.mark.speaks("HTTP/2", "HTTP/3")
@pytest.mark.parametrize("kind", ["good", "none", "expired", "untrusted"])
async def test_client_certificates(authority, asking, shows, kind):
    """With ``require`` only a good one gets in, with ``request`` none does too; on TCP and on QUIC alike."""
    proxy, mode = asking
    welcome = kind == "good" or (kind == "none" and mode == "request")
    pair = shows[kind]
    for version in ("HTTP/1.1", "HTTP/2"):
        status = 0
        try:
            with clients.httpx_client(authority, version, client=pair) as client:
                status = client.get(proxy.url()).status_code
        except (clients.httpx.NetworkError, clients.httpx.RemoteProtocolError, ssl.SSLError):
            pass
        assert status == (200 if welcome else 0), version
    status = 0
    try:
        async with http3(authority, proxy.port, **quic_pair(pair)) as client:
            status = (await client.get("/", host=A, limit=20)).status
    except ConnectionError:
        pass
    assert status == (200 if welcome else 0), "HTTP/3"
    with clients.httpx_client(authority) as client:
        assert client.get(proxy.url(host=B)).status_code == 200, "the other site asks for none"


def quic_pair(pair):
    if pair is None:
        return {}
    configuration = QuicConfiguration()
    configuration.load_cert_chain(*pair)
    return {"certificate": configuration.certificate, "private_key": configuration.private_key}


def test_tls_1_2_is_refused_with_an_alert(proxy):
    said = clients.s_client(proxy.port, "-tls1_2", sni=A)
    assert "protocol version" in said, said
    assert proxy.metrics()['qproxy_handshake_failures_total{reason="unsupported_protocol",transport="tcp"}'] == 1


def test_the_chain_is_sent_whole(authority, proxy):
    said = clients.s_client(proxy.port, "-CAfile", str(authority.file), "-verify_return_error", sni=A)
    assert "Verify return code: 0 (ok)" in said
    pem = ssl.DER_cert_to_PEM_cert(x509.load_pem_x509_certificate((proxy.config / f"{A}.pem").read_bytes()).public_bytes(Encoding.DER))
    assert pem.strip() in said


# Towards backends


@pytest.fixture(scope="module")
def secure(authority, tmp_path_factory):
    """A backend on TLS for api.internal that asks for client certificates when *guarded*."""
    folder = tmp_path_factory.mktemp("secure")
    pair = authority.issue("api.internal", "127.0.0.1", file="api", folder=folder)
    stranger = Authority(folder / "stranger", "Stranger")
    strange = stranger.issue("api.internal", "127.0.0.1", file="api", folder=folder / "stranger")
    expired = authority.issue("127.0.0.1", file="expired", days=-1, folder=folder)
    running = {
        "good": InProcess("secure", tls=server_context(pair)),
        "untrusted": InProcess("strange", tls=server_context(strange)),
        "expired": InProcess("expired", tls=server_context(expired)),
        "guarded": InProcess("guarded", tls=server_context(pair, client_ca=authority.file)),
    }
    try:
        yield running
    finally:
        for backend in running.values():
            backend.close()


def server_context(pair, client_ca=None):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*pair)
    if client_ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(client_ca)
    return context


def through(start_proxy, backend, **tls):
    pool = {"endpoints": [backend.url], "tls": tls, "health": "off", "passive": "off"}
    return start_proxy(sites={A: {"pools": {"web": pool}}})


def answer(authority, proxy, version="HTTP/1.1"):
    with clients.curl_session(authority, proxy.port, version) as session:
        return session.get(proxy.url())


@pytest.mark.speaks("HTTP/2", "HTTP/3")
def test_an_https_backend_is_verified_by_address_and_by_name(authority, start_proxy, secure):
    proxy = through(start_proxy, secure["good"], ca=str(authority.file))
    for version in VERSIONS:
        assert answer(authority, proxy, version).headers["x-backend"] == "secure"
    proxy = through(start_proxy, secure["good"], ca=str(authority.file), server_name="api.internal")
    assert answer(authority, proxy).status_code == 200
    proxy = through(start_proxy, secure["good"], ca=str(authority.file), server_name="other.internal")
    refused = answer(authority, proxy)
    assert (refused.status_code, refused.headers["proxy-status"]) == (502, "qproxy; error=tls_certificate_error")


@pytest.mark.speaks("HTTP/2", "HTTP/3")
@pytest.mark.parametrize("kind", ["untrusted", "expired"])
def test_a_backend_that_can_t_be_trusted_is_502_and_says_so(authority, start_proxy, secure, kind):
    proxy = through(start_proxy, secure[kind], ca=str(authority.file))
    for version in VERSIONS:
        refused = answer(authority, proxy, version)
        assert (refused.status_code, refused.headers["proxy-status"]) == (502, "qproxy; error=tls_certificate_error")
    assert '"ended":"upstream_certificate"' in wait_line(proxy, '"ended":"upstream_certificate"')
    proxy = through(start_proxy, secure[kind], verify=False)
    assert answer(authority, proxy).status_code == 200


def wait_line(proxy, text):
    proxy.wait_for(lambda: text in proxy.logs(), f"logged {text}")
    return next(line for line in proxy.logs().splitlines() if text in line)


def test_a_client_certificate_is_shown_to_a_backend_that_asks(authority, start_proxy, secure, shows):
    chain, key = shows["good"]
    proxy = through(start_proxy, secure["guarded"], ca=str(authority.file), certificate=str(chain), key=str(key))
    assert answer(authority, proxy).headers["x-backend"] == "guarded"
    proxy = through(start_proxy, secure["guarded"], ca=str(authority.file))
    refused = answer(authority, proxy)
    assert refused.status_code == 502
    assert refused.headers["proxy-status"].startswith("qproxy; error=")


def test_probes_of_https_backends_verify_them_too(authority, start_proxy, secure):
    health = {"interval": "100ms", "rise": 1, "fall": 1}
    endpoints = [secure["good"].url, secure["untrusted"].url]
    proxy = start_proxy(sites={A: {"pools": {"web": {"endpoints": endpoints, "tls": {"ca": str(authority.file)}, "health": health}}}})
    up = "qproxy_backend_up"
    labels = [f'{up}{{backend="{url}",pool="{A}/web"}}' for url in endpoints]
    proxy.wait_for(lambda: [proxy.metrics()[label] for label in labels] == [1, 0], "finds the one up and the other down")
    proxy.wait_for(lambda: "certificate refused: " in proxy.logs(), "said why")
