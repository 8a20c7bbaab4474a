"""TCP through the L4 tier: by name and by the client's address, as it was, with the client's address told to the instance."""

import json
import re
import socket
import ssl
import threading
import time
from contextlib import closing

import pytest
from harness.cli import qproxy
from harness.clients import curl, httpx_client, trusting
from harness.content import MIB, content, digest
from harness.ports import free_port

from proxy.listen.proxy_protocol import Reader

HOST = "a.example.com"
QUICK = {"path": "/health", "interval": "100ms", "timeout": "1s", "rise": 1, "fall": 2}


@pytest.fixture
def instances(start_proxy):
    """Three instances on addresses of their own, that take PROXY protocol from everybody on loopback."""

    def start(number, **server):
        port = free_port()
        listener = {"address": f"127.0.0.{number}:{port}", "protocols": ["http/1.1", "h2"], "proxy_protocol": {"from": ["127.0.0.0/8"]}}
        routes = [{"match": {"path": "/"}, "pool": "web", "headers": {"response": {"set": {"X-Instance": str(number)}}}}]
        sites = {host: {"routes": routes} for host in (HOST, "b.example.com")}
        proxy = start_proxy(server={"listeners": [listener]} | server, sites=sites, answers=False)
        proxy.at = f"127.0.0.{number}:{port}"
        return proxy

    return start


def of(instances, **more):
    return {"protocols": ["tcp"], "instances": {"endpoints": [proxy.at for proxy in instances], "health": QUICK} | more}


def tls(tier, authority, host=HOST, source="127.0.0.1"):
    raw = socket.create_connection(("127.0.0.1", tier.port), timeout=20, source_address=(source, 0))
    return trusting(authority).wrap_socket(raw, server_hostname=host)


def get(tier, authority, path="/headers", host=HOST, source="127.0.0.1"):
    """Status, fields and body of a request over a connection of its own."""
    with closing(tls(tier, authority, host, source)) as secured:
        secured.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        answer = b"".join(iter(lambda: secured.recv(65536), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    return int(lines[0].split()[1]), dict(line.lower().split(": ", 1) for line in lines[1:]), body


@pytest.mark.speaks("HTTP/2")
def test_the_backend_hears_the_clients_address_whichever_the_version(authority, instances, start_tier):
    tier = start_tier([of([instances(41), instances(42)])])
    for version in ("HTTP/1.1", "HTTP/2"):
        with httpx_client(authority, version) as client:
            answer = client.get(f"https://{HOST}:{tier.port}/headers")
        assert answer.http_version == version
        fields = dict(map(tuple, answer.json()["headers"]))
        assert fields["x-forwarded-for"] == "127.0.0.1"
    _, _, body = get(tier, authority, source="127.0.0.77")
    assert dict(map(tuple, json.loads(body)["headers"]))["x-forwarded-for"] == "127.0.0.77"


def test_a_client_keeps_its_instance_and_clients_are_spread(authority, instances, start_tier):
    tier = start_tier([of([instances(number) for number in (41, 42, 43)])])
    found = {}
    for number in range(1, 40):
        source = f"127.0.3.{number}"
        found[source] = get(tier, authority, source=source)[1]["x-instance"]
    assert set(found.values()) == {"41", "42", "43"}
    for source in list(found)[:10]:
        assert get(tier, authority, source=source)[1]["x-instance"] == found[source]


def test_explain_names_the_instance_that_then_answers(authority, instances, start_tier):
    one, two, three = (instances(number) for number in (41, 42, 43))
    own = {"sni": ["b.example.com"], "instances": {"endpoints": [three.at], "health": QUICK}}
    tier = start_tier([of([one, two]) | {"routes": [own]}])
    for number in range(1, 7):
        for host in (HOST, "b.example.com"):
            source = f"127.0.4.{number}"
            ran = qproxy("explain", "-c", tier.config, "--client", source, f"https://{host}:{tier.port}/")
            assert f"told by the qproxy that runs at 127.0.0.1:{tier.admin_port}" in ran.out
            (chosen,) = re.findall(r"\* \d+\. tcp://127\.0\.0\.(\d+):\d+ \(up\)", ran.out)
            assert get(tier, authority, host=host, source=source)[1]["x-instance"] == chosen
    one.crash()
    tier.wait_state(one.at, "down")
    ran = qproxy("explain", "-c", tier.config, f"http://{HOST}:{tier.port}/")
    assert f"tcp://{one.at} (down)" in ran.out
    assert re.search(rf"\* \d\. tcp://{two.at} \(up\)", ran.out)
    ran = qproxy("explain", "-c", tier.config, "--protocol", "h3", f"https://{HOST}:{tier.port}/")
    assert f"listener     none speaks h3: there are 127.0.0.1:{tier.port} (tcp)" in ran.out


def test_names_lead_to_instances_of_their_own(authority, instances, start_tier):
    first, second, third = instances(41), instances(42), instances(43)
    listener = of([first])
    listener["routes"] = [
        {"sni": ["b.example.com"], "instances": of([second])["instances"]},
        {"sni": ["*.b.example.com"], "instances": of([third])["instances"]},
    ]
    tier = start_tier([listener])
    wanted = {"b.example.com": "42", "x.b.example.com": "43", HOST: "41", "x.a.example.com": "41"}
    assert {name: get(tier, authority, host=name)[1]["x-instance"] for name in wanted} == wanted


def test_plain_http_goes_the_same_way(authority, instances, start_tier):
    tier = start_tier([of([instances(41)])])
    answer = curl(authority, f"http://{HOST}:{tier.port}/health")
    assert (answer.status, answer.body) == (200, b"OK")


def test_a_client_that_speaks_first_in_many_pieces_is_understood(authority, instances, start_tier):
    """The ClientHello one byte at a time."""
    tier = start_tier([of([instances(41)])])
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = trusting(authority).wrap_bio(incoming, outgoing, server_hostname=HOST)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    hello = outgoing.read()
    with socket.create_connection(("127.0.0.1", tier.port), timeout=20) as raw:
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for at in range(len(hello)):
            raw.sendall(hello[at : at + 1])
        assert raw.recv(3)[:2] == b"\x16\x03"


@pytest.mark.parametrize("first", [b"\0\1\2\3", b"\x16\x03\x01\x00\x05\x02\0\0\1\0", b"\xff" * 40])
def test_what_is_neither_tls_nor_http_is_turned_away_and_counted(authority, instances, start_tier, first):
    tier = start_tier([of([instances(41)])])
    with socket.create_connection(("127.0.0.1", tier.port), timeout=20) as raw:
        raw.sendall(first)
        assert raw.recv(100) in {b"", b"\x15\x03\x03\x00\x02\x02\x32", b"\x15\x03\x01\x00\x02\x02\x32"}
        assert raw.recv(100) == b""
    name = f'qproxy_l4_connections_total{{listener="127.0.0.1:{tier.port}",result="malformed"}}'
    assert tier.metrics()[name] == 1


def test_a_client_that_says_nothing_is_cut(instances, start_tier):
    tier = start_tier([of([instances(41)])], server={"timeouts": {"handshake": "300ms"}})
    with socket.create_connection(("127.0.0.1", tier.port), timeout=20) as raw:
        assert raw.recv(100) == b""
    assert tier.metrics()[f'qproxy_l4_connections_total{{listener="127.0.0.1:{tier.port}",result="timeout"}}'] == 1
    tier.wait_for(lambda: tier.metric("qproxy_l4_connections_open") == 0, "forgot the connection")


def test_a_drained_instance_gets_nothing_new_and_keeps_what_it_has(authority, instances, start_tier):
    first, second = instances(41, timeouts={"drain_delay": "20s", "drain": "20s"}), instances(42)
    tier = start_tier([of([first, second])])
    sources = [f"127.0.3.{number}" for number in range(1, 30)]
    at_first = [source for source in sources if get(tier, authority, source=source)[1]["x-instance"] == "41"]
    assert 0 < len(at_first) < len(sources)
    with closing(tls(tier, authority, source=at_first[0])) as kept:
        kept.sendall(f"GET /hello HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
        assert kept.recv(65536).startswith(b"HTTP/1.1 200")
        first.process.terminate()
        tier.wait_state(first.at, "draining")
        kept.sendall(f"GET /hello HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
        assert kept.recv(65536).startswith(b"HTTP/1.1 200")
        assert {get(tier, authority, source=source)[1]["x-instance"] for source in at_first} == {"42"}
    first.process.kill()
    first.wait()


def test_an_instance_that_is_gone_costs_no_new_connection(authority, instances, start_tier):
    first, second = instances(41), instances(42)
    listener = of([first, second])
    listener["instances"]["health"] = QUICK | {"interval": "60s"}
    tier = start_tier([listener])
    sources = [f"127.0.3.{number}" for number in range(1, 20)]
    assert {get(tier, authority, source=source)[1]["x-instance"] for source in sources} == {"41", "42"}
    first.crash()  # the tier does not know yet
    assert {get(tier, authority, source=source)[1]["x-instance"] for source in sources} == {"42"}
    assert tier.metric("qproxy_l4_connect_failures_total") > 0


def test_probes_find_instances_that_go_and_come(authority, instances, start_tier):
    first, second = instances(41), instances(42)
    tier = start_tier([of([first, second])])
    first.crash()
    tier.wait_state(first.at, "down")
    before = tier.metric("qproxy_l4_connect_failures_total")
    assert {get(tier, authority, source=f"127.0.3.{number}")[1]["x-instance"] for number in range(1, 20)} == {"42"}
    assert tier.metric("qproxy_l4_connect_failures_total") == before
    second.crash()
    tier.wait_state(second.at, "down")
    with pytest.raises((ConnectionError, ssl.SSLError)):
        tls(tier, authority)
    first.start()
    tier.wait_state(first.at, "up")
    assert get(tier, authority)[0] == 200


def test_a_reload_adds_and_removes_instances_and_cuts_nothing(authority, instances, start_tier):
    first, second = instances(41), instances(42)
    tier = start_tier([of([first])])
    with closing(tls(tier, authority)) as kept:
        kept.sendall(f"GET /hello HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
        assert kept.recv(65536).startswith(b"HTTP/1.1 200")
        tier.l4[0]["instances"]["endpoints"] = [second.at]
        tier.write()
        tier.reload(expect="configuration reloaded")
        assert f"added tcp://{second.at}" in tier.logs()
        assert get(tier, authority)[1]["x-instance"] == "42"
        kept.sendall(f"GET /hello HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
        assert b"x-instance: 41" in kept.recv(65536).lower()


def test_large_bodies_pass_whole_both_ways(authority, instances, start_tier):
    tier = start_tier([of([instances(41)])])
    with httpx_client(authority, "HTTP/1.1") as client:
        answer = client.get(f"https://{HOST}:{tier.port}/bytes/{32 * MIB}")
        assert len(answer.content) == 32 * MIB
        sent = client.post(f"https://{HOST}:{tier.port}/upload", content=content(16 * MIB, 5), headers={"Content-Length": str(16 * MIB)})
    assert sent.json() == {"sha256": digest(16 * MIB, 5), "size": 16 * MIB}
    metrics = tier.metrics()
    name = f"127.0.0.1:{tier.port}"
    assert metrics[f'qproxy_l4_bytes_total{{direction="out",listener="{name}"}}'] > 32 * MIB
    assert metrics[f'qproxy_l4_bytes_total{{direction="in",listener="{name}"}}'] > 16 * MIB


class Listening:
    """An instance made by hand: hands over the first connection that speaks, with what its PROXY protocol header says."""

    def __init__(self):
        self.sock = socket.create_server(("127.0.0.1", 0))
        self.at = "{}:{}".format(*self.sock.getsockname())

    def accept(self):
        """A connection, the header, and what came behind it. Probes are answered on the way."""
        while True:
            accepted, _ = self.sock.accept()
            accepted.settimeout(20)
            reader = Reader()
            header = None
            while header is None:
                header = reader.feed(accepted.recv(65536))
            if header.source is None:
                accepted.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
                accepted.close()
                continue
            return accepted, header, reader.rest


@pytest.fixture
def listening():
    made = Listening()
    yield made
    made.sock.close()


def hand_made(listening, **more):
    health = QUICK | {"interval": "60s"}
    return [{"protocols": ["tcp"], "instances": {"endpoints": [listening.at], "health": health}} | more]


def test_the_header_tells_both_addresses_and_the_bytes_are_as_they_were(listening, start_tier):
    tier = start_tier(hand_made(listening))
    with socket.create_connection(("127.0.0.1", tier.port), timeout=20, source_address=("127.0.0.8", 0)) as client:
        client.sendall(b"GET / HTTP/1.1\r\nanything \0 at all")
        instance, header, rest = listening.accept()
        assert (header.source, header.destination) == (client.getsockname(), ("127.0.0.1", tier.port))
        while len(rest) < 33:
            rest += instance.recv(100)
        assert rest == b"GET / HTTP/1.1\r\nanything \0 at all"
        instance.sendall(b"back")
        assert client.recv(100) == b"back"
        instance.close()
        assert client.recv(100) == b""


@pytest.mark.parametrize("first", ["client", "instance"])
def test_half_of_a_connection_may_end_before_the_other(listening, start_tier, first):
    tier = start_tier(hand_made(listening))
    with socket.create_connection(("127.0.0.1", tier.port), timeout=20) as client:
        client.sendall(b"A")
        instance, _, _ = listening.accept()
        one, other = (client, instance) if first == "client" else (instance, client)
        one.sendall(b"last words")
        one.shutdown(socket.SHUT_WR)
        assert b"".join(iter(lambda: other.recv(100), b"")).endswith(b"last words")
        other.sendall(b"and an answer to them")
        other.shutdown(socket.SHUT_WR)
        assert b"".join(iter(lambda: one.recv(100), b"")) == b"and an answer to them"
        instance.close()
    tier.wait_for(lambda: tier.metric("qproxy_l4_connections_open") == 0, "forgot the connection")


def test_a_side_that_does_not_read_has_the_other_one_wait(listening, start_tier):
    tier = start_tier(hand_made(listening))
    with socket.create_connection(("127.0.0.1", tier.port), timeout=20) as client:
        client.sendall(b"A")
        instance, _, _ = listening.accept()
        instance.setblocking(False)
        before = tier.rss()
        piece, sent, quiet = b"x" * 65536, 0, time.monotonic()
        while time.monotonic() - quiet < 1.0:
            try:
                sent += instance.send(piece)
                quiet = time.monotonic()
            except BlockingIOError:
                time.sleep(0.01)
            assert sent < 64 * MIB, "nobody holds the instance back"
        assert tier.rss() - before < 8 * MIB
        instance.setblocking(True)
        threading.Thread(target=lambda: (instance.sendall(b"end"), instance.close())).start()
        received = bytearray()
        while data := client.recv(1 << 20):
            received += data
        assert len(received) == sent + 3


def test_a_connection_where_nothing_moves_is_cut(listening, start_tier):
    tier = start_tier(hand_made(listening, timeouts={"idle": "400ms"}))
    with socket.create_connection(("127.0.0.1", tier.port), timeout=20) as client:
        client.sendall(b"A")
        instance, _, _ = listening.accept()
        for _ in range(8):
            time.sleep(0.1)
            instance.sendall(b".")  # this is how long it lives
        assert client.recv(100)
        began = time.monotonic()
        while not _ends(client):
            pass
        assert time.monotonic() - began < 5
        instance.close()
    assert tier.metric("qproxy_l4_connections_idle_total") == 1


def _ends(sock):
    try:
        return sock.recv(10) == b""
    except ConnectionResetError:
        return True


def test_limits_at_accept_hold_for_the_tier_too(listening, start_tier):
    tier = start_tier(hand_made(listening), server={"limits": {"connections_per_client": 1}})
    with socket.create_connection(("127.0.0.1", tier.port), timeout=20) as client:
        client.sendall(b"A")
        instance, _, _ = listening.accept()
        with socket.create_connection(("127.0.0.1", tier.port), timeout=20) as other:
            assert _ends(other)
        instance.close()
    metrics = tier.metrics()
    assert metrics['qproxy_limits_hit_total{limit="connections_per_client"}'] == 1
    assert metrics[f'qproxy_l4_connections_total{{listener="127.0.0.1:{tier.port}",result="limit"}}'] == 1


def test_a_drain_lets_connections_finish_and_takes_no_new_ones(listening, start_tier):
    tier = start_tier(hand_made(listening), server={"timeouts": {"drain": "20s"}})
    with socket.create_connection(("127.0.0.1", tier.port), timeout=20) as client:
        client.sendall(b"A")
        instance, _, _ = listening.accept()
        tier.process.terminate()
        tier.wait_for(lambda: '"draining"' in tier.logs(), "began to drain")
        end = time.monotonic() + 10
        while time.monotonic() < end:
            try:
                socket.create_connection(("127.0.0.1", tier.port), timeout=1).close()
                time.sleep(0.02)
            except OSError:
                break
        instance.sendall(b"still here")
        assert client.recv(100) == b"still here"
        instance.close()
        assert client.recv(100) == b""
    assert tier.wait() == 0


def test_several_workers_share_the_port_and_a_dead_one_is_replaced(authority, instances, start_tier):
    tier = start_tier([of([instances(41), instances(42)])], server={"workers": 2})
    assert {get(tier, authority, source=f"127.0.3.{number}")[0] for number in range(1, 20)} == {200}
    assert tier.metric("qproxy_l4_connections_total") == 19
