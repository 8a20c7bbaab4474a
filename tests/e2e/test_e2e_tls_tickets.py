"""Session tickets over TCP: any worker, a process after a restart, and any instance with the same keys takes them; nobody else does."""

import pytest
from curl_cffi import CurlOpt
from harness.cli import qproxy
from harness.clients import curl_session, s_client

HOST = "a.example.com"
METRIC = "qproxy_tls_resumed_total"
GET = f"GET /hello HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n".encode()

pytestmark = pytest.mark.workers(2)


@pytest.fixture
def shared(authority, start_proxy, tmp_path):
    """Makes instances of one site, with one certificate and with a cluster's keys in the file *keys*."""
    chain, key = authority.issue(HOST, f"*.{HOST}", file="one", folder=tmp_path)

    def start(keys):
        file = tmp_path / keys
        if not file.exists():
            assert qproxy("keygen", file).code == 0
        site = {"tls": {"certificate": str(chain), "key": str(key)}}
        return start_proxy(server={"cluster": {"key_file": str(file)}}, sites={HOST: site})

    return start


def visit(proxy, folder, *options, data=GET):
    """Whether the handshake resumed; the ticket for the next one is in *folder* then."""
    said = s_client(proxy.port, "-ign_eof", "-sess_out", str(folder / "session"), *options, sni=HOST, data=data)
    assert "200 OK" in said, said
    (kind,) = {line.split(",")[0] for line in said.splitlines() if ", TLSv1.3, Cipher is" in line}
    return {"New": False, "Reused": True}[kind]


def again(proxy, folder):
    """The same with the ticket that is there."""
    return visit(proxy, folder, "-sess_in", str(folder / "session"))


def test_any_worker_takes_what_another_gave(start_proxy, tmp_path):
    """A new connection each time: the kernel deals them to the workers by their ports."""
    proxy = start_proxy(server={"workers": 2})
    assert not visit(proxy, tmp_path)
    assert all(again(proxy, tmp_path) for _ in range(12))
    assert proxy.metric(METRIC) == 12


def test_a_process_takes_what_it_gave_before_a_restart(start_proxy, tmp_path):
    proxy = start_proxy()
    assert not visit(proxy, tmp_path)
    proxy.crash()
    proxy.start()
    assert again(proxy, tmp_path)
    assert proxy.metric(METRIC) == 1


def test_instances_with_the_same_keys_take_each_others_and_no_stranger_does(shared, tmp_path):
    one, two, stranger = shared("cluster.key"), shared("cluster.key"), shared("other.key")
    assert not visit(one, tmp_path)
    assert again(two, tmp_path)
    assert again(one, tmp_path)
    assert not again(stranger, tmp_path)
    assert not again(one, tmp_path), "what the stranger gave"


@pytest.mark.speaks("HTTP/2")
def test_curl_resumes_at_any_worker_over_http2(authority, start_proxy):
    proxy = start_proxy(server={"workers": 2})
    with curl_session(authority, proxy.port, "HTTP/2") as session:
        session.curl_options[CurlOpt.FRESH_CONNECT] = 1
        assert {session.get(proxy.url("/hello")).status_code for _ in range(8)} == {200}
    assert proxy.metric(METRIC) == 7


def test_a_new_key_ends_the_tickets_of_the_old_one_and_no_handshake(shared, tmp_path):
    proxy = shared("cluster.key")
    assert not visit(proxy, tmp_path)
    (tmp_path / "cluster.key").unlink()
    assert qproxy("keygen", tmp_path / "cluster.key").code == 0
    proxy.reload()
    assert not again(proxy, tmp_path)
    assert again(proxy, tmp_path)
