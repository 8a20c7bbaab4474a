"""What a request costs between its bytes and its answer's bytes: the whole path in one process, on transports that do nothing.

    python bench/micro/path.py                       microseconds of CPU and calls for one request, by path and head
    python bench/micro/path.py --against TREE        the same for this tree and another one, in turn, with the ratio
    python bench/micro/path.py --instructions        machine instructions for one request (valgrind; a minute for each path)

``tls`` is a client's connection from ciphertext to ciphertext, ``h1`` the same without TLS, ``policy`` what every version pays above its
engine: from the RequestHead event to the verbs of the answer. All three have the way to the backend in them. No system calls anywhere.
The machine may be busy: what counts are CPU time, the best of several rounds, and ratios within one run.
"""
# ruff: noqa: ARG002  # verbs that do nothing with their arguments

import argparse
import contextlib
import gc
import inspect
import itertools
import json
import os
import re
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from pathlib import Path
from types import SimpleNamespace

CLIENTS = 32
HOST = b"a.example.com"
SITE = """
server: {admin: null}
site:
  hosts: [a.example.com]
  tls: {self_signed: true}
  routes: [{match: {path: /}, pool: web}]
  pools: {web: {endpoints: ["http://127.0.0.1:9001"]}}
"""
HEADS = {
    "small": [(b"host", HOST), (b"user-agent", b"h2load nghttp2/1.52.0")],
    "browser": [
        (b"host", HOST),
        (b"user-agent", b"Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0"),
        (b"accept", b"text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"),
        (b"accept-language", b"en-GB,en;q=0.5"),
        (b"accept-encoding", b"gzip, deflate, br, zstd"),
        (b"referer", b"https://a.example.com/catalogue/42"),
        (b"cookie", b"session=0123456789abcdef0123456789abcdef; theme=dark"),
        (b"sec-fetch-dest", b"empty"),
        (b"sec-fetch-mode", b"cors"),
        (b"sec-fetch-site", b"same-origin"),
        (b"if-none-match", b'"5f0c-61a2b3c4d5e6f"'),
    ],
}
ANSWER = (
    b"HTTP/1.1 200 OK\r\nServer: nginx/1.22.1\r\nDate: Mon, 23 Nov 2026 03:00:00 GMT\r\nContent-Type: text/plain\r\n"
    b"Content-Length: 1024\r\nLast-Modified: Mon, 23 Nov 2026 02:00:00 GMT\r\nConnection: keep-alive\r\n"
    b'ETag: "6560a1b2-400"\r\nAccept-Ranges: bytes\r\n\r\n' + b"x" * 1024
)


class Transport:
    """Takes everything at once and counts it."""

    def __init__(self, wrote):
        self.wrote = wrote

    def write(self, data):
        self.wrote(data)

    def get_extra_info(self, name):
        return ("127.0.0.1", 4000) if name == "peername" else None

    def set_write_buffer_limits(self, high, low):
        pass

    def get_write_buffer_size(self):
        return 0

    def is_closing(self):
        return False

    def pause_reading(self):
        pass

    resume_reading = abort = close = pause_reading


class World:
    """A worker without sockets: CLIENTS connections, and a backend that answers each request in one piece."""

    def __init__(self):
        from balancer.affinity import address_key  # noqa: PLC0415  # of the tree that is measured
        from proxy.config.compile import compile_snapshot  # noqa: PLC0415
        from proxy.config.load import load  # noqa: PLC0415
        from proxy.config.material import self_signed  # noqa: PLC0415
        from proxy.deadlines import Deadlines  # noqa: PLC0415
        from proxy.listen.limits import AcceptLimits  # noqa: PLC0415
        from proxy.listen.tls import TlsContexts  # noqa: PLC0415
        from proxy.meters import ProxyMetrics  # noqa: PLC0415
        from proxy.observe import Metrics, NullLog  # noqa: PLC0415
        from proxy.services import Services  # noqa: PLC0415
        from proxy.tasks import Tasks  # noqa: PLC0415
        from proxy.upstream.pool import Upstreams  # noqa: PLC0415

        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "qproxy.yaml").write_text(SITE)
            configuration = load(Path(folder), {"HOME": folder}, keep=False)
        metrics = Metrics()
        meters = ProxyMetrics(metrics)
        ids = itertools.count(1)

        def make_request_id():
            return b"%b-%x" % (b"0123456789ab", next(ids))

        snapshot = compile_snapshot(
            configuration,
            metrics=metrics,
            secret=b"s" * 32,
            seed=1,
            generation=1,
            make_request_id=make_request_id,
            default_certificate=self_signed(("localhost",)),
        )
        log = NullLog()
        tasks = Tasks(log)
        self.services = Services(
            snapshot=snapshot,
            upstreams=Upstreams(*[meters, tasks, time.monotonic, None][: len(inspect.signature(Upstreams).parameters)]),
            deadlines=Deadlines(time.monotonic()),
            meters=meters,
            access_log=None,
            log=log,
            clock=time.monotonic,
            wall_clock=time.time,
            make_request_id=make_request_id,
            secret=b"s" * 32,
        )
        self.ready = deque()
        contexts = TlsContexts()
        contexts.build(snapshot)
        self.owner = SimpleNamespace(
            services=self.services,
            listener=snapshot.listeners[0],
            limits=AcceptLimits(snapshot.limits, snapshot.trusted_proxies, metrics),
            contexts=contexts,
            buffer=memoryview(bytearray(256 * 1024)),  # of a tree that reads into one
            connections=set(),
            call_soon=self.ready.append,
        )
        self.profile = snapshot.sni.select(HOST.decode())
        self.key = address_key(b"s" * 32, "127.0.0.1")
        self.asked = []
        self.out = 0
        pool = next(iter(snapshot.pools.values()))
        for _ in range(CLIENTS):
            self._connect_backend(pool)

    def _connect_backend(self, pool):
        from proxy.upstream.h1 import UpstreamConnection  # noqa: PLC0415

        endpoint = self.services.upstreams.of(pool, next(iter(pool.endpoints)))
        connection = UpstreamConnection(endpoint, time.monotonic())
        asked = self.asked
        connection.connection_made(Transport(lambda data: asked.append(connection)))  # noqa: ARG005
        if len(inspect.signature(endpoint.give_back).parameters) > 1:
            endpoint.give_back(connection, time.monotonic())
        else:  # of an older tree
            endpoint.give_back(connection)

    def turn(self):
        """One turn of the loop: every backend that was asked answers, then what was put off."""
        asked, self.asked[:] = self.asked[:], []
        for connection in asked:
            connection.get_buffer(-1)[: len(ANSWER)] = ANSWER
            connection.buffer_updated(len(ANSWER))
        ready = self.ready
        while ready:
            ready.popleft()()

    def count(self, data):
        self.out += len(data)


def receive(client, data):
    """As the event loop does it, for either kind of protocol: another tree may have the other."""
    if hasattr(client, "data_received"):
        client.data_received(data)
    else:
        client.get_buffer(-1)[: len(data)] = data
        client.buffer_updated(len(data))


def clear(world, head):
    """HTTP/1.1 without TLS, on connections that believe they have it."""
    from proxy.engine.h1 import H1Connection  # noqa: PLC0415
    from proxy.listen.tcp_connection import TcpConnection  # noqa: PLC0415

    request = b"GET /1k HTTP/1.1\r\n" + b"".join([b"%b: %b\r\n" % field for field in head]) + b"\r\n"
    clients = [TcpConnection(world.owner) for _ in range(CLIENTS)]
    for client in clients:
        client.connection_made(Transport(world.count))
        client.tls = world.profile
        client._begin_engine(H1Connection(world.services.snapshot.limits.engine))  # noqa: SLF001  # as after a handshake

    def play(rounds):
        for _ in range(rounds):
            for client in clients:
                receive(client, request)
            world.turn()

    return play


def encrypted(world, head):
    """HTTP/1.1 with TLS. The clients encrypt their requests beforehand, out of the measured time."""
    from proxy.listen.tcp_connection import TcpConnection  # noqa: PLC0415

    request = b"GET /1k HTTP/1.1\r\n" + b"".join([b"%b: %b\r\n" % field for field in head]) + b"\r\n"
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["http/1.1"])
    pairs = []
    for _ in range(CLIENTS):
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = context.wrap_bio(incoming, outgoing, server_hostname=HOST.decode())
        client = TcpConnection(world.owner)
        transport = Transport(incoming.write)
        client.connection_made(transport)
        for _ in range(4):
            with contextlib.suppress(ssl.SSLWantReadError):
                tls.do_handshake()
            flight = outgoing.read()
            if flight:
                receive(client, flight)
        transport.wrote = world.count
        pairs.append((client, tls, outgoing))

    def prepare(rounds):
        batches = []
        for client, tls, outgoing in pairs:
            records = []
            for _ in range(rounds):
                tls.write(request)
                records.append(outgoing.read())
            batches.append((client, records))
        return batches

    def play(rounds, batches):
        for number in range(rounds):
            for client, records in batches:
                receive(client, records[number])
            world.turn()

    play.prepare = prepare
    return play


def policy(world, head):
    """Above the engines: from the event to the verbs."""
    from proxy.engine.events import RequestHead  # noqa: PLC0415
    from proxy.listen.client import ClientStreams  # noqa: PLC0415

    class Client(ClientStreams):
        def respond(self, stream, status, headers, body):
            world.out += len(body)

        def send_head(self, stream, status, headers, end):
            pass

        def send_data(self, stream, data, end):
            world.out += len(data)
            return 0

        def send_trailers(self, stream, headers):
            pass

        inform = consumed = reset = send_trailers

    clients = []
    for number in range(CLIENTS):
        client = Client(world.services, world.owner.listener, ("127.0.0.1", number))
        client.tls, client.affinity_key = world.profile, world.key
        client.speaks("HTTP/2")
        clients.append(client)
    fields = [field for field in head if field[0] != b"host"]
    told = {"plain": True} if hasattr(RequestHead, "plain") else {}  # older trees don't tell

    def play(rounds):
        for number in range(rounds):
            stream = 2 * number + 1
            for client in clients:
                client.deliver(RequestHead(stream, b"GET", b"https", HOST, b"/1k", fields, True, **told))
            world.turn()

    return play


PATHS = {"policy": policy, "h1": clear, "tls": encrypted}


def calls_of(play, rounds):
    """Calls for one request: of Python functions, and of functions written in C."""
    counts = {"call": 0, "c_call": 0}

    def note(frame, event, argument):  # noqa: ARG001
        if event in counts:
            counts[event] += 1

    arguments = [play.prepare(rounds)] if hasattr(play, "prepare") else []
    sys.setprofile(note)
    play(rounds, *arguments)
    sys.setprofile(None)
    return counts["call"] / rounds / CLIENTS, counts["c_call"] / rounds / CLIENTS


def measure(name, head, requests, rounds):
    """Microseconds of CPU for one request in each round, and its calls."""
    world = World()
    play = PATHS[name](world, HEADS[head])
    turns = max(1, requests // CLIENTS)
    prepare = getattr(play, "prepare", None)

    def once(count):
        arguments = [prepare(count)] if prepare is not None else []
        began = time.process_time()
        play(count, *arguments)
        return time.process_time() - began

    once(20)
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
    before = world.out
    spent = [once(turns) / turns / CLIENTS * 1e6 for _ in range(rounds)]
    answered = (world.out - before) / rounds / turns / CLIENTS
    assert answered >= 1024, f"not every request was answered: {answered} bytes for each"
    return {"microseconds": spent, "calls": calls_of(play, 10) if rounds else (0, 0)}


def child(tree, arguments):
    """Measure in a process of its own, with the sources of *tree*."""
    environ = {**os.environ, "PYTHONPATH": str(tree), "PYTHONHASHSEED": "0"}
    command = [sys.executable, __file__, "--child", *arguments]
    done = subprocess.run(command, env=environ, cwd=tree, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout)


def instructions(tree, name, head):
    """Instructions for one request: the difference between a long run and a short one under callgrind."""
    counts = []
    sizes = (20, 120)
    for turns in sizes:
        environ = {**os.environ, "PYTHONPATH": str(tree), "PYTHONHASHSEED": "0"}
        command = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", sys.executable, __file__, "--child", name, head]
        command += ["--requests", str(turns * CLIENTS), "--rounds", "0", "--turns", str(turns)]
        done = subprocess.run(command, env=environ, cwd=tree, capture_output=True, text=True, check=True)
        counts.append(int(re.search(r"Collected : (\d+)", done.stderr)[1]))
    return (counts[1] - counts[0]) / (sizes[1] - sizes[0]) / CLIENTS


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--paths", nargs="+", choices=PATHS, default=list(PATHS))
    parser.add_argument("--heads", nargs="+", choices=HEADS, default=list(HEADS))
    parser.add_argument("--requests", type=int, default=6400, help="of one round")
    parser.add_argument("--rounds", type=int, default=5, help="of one process")
    parser.add_argument("--processes", type=int, default=3, help="for each tree, in turn")
    parser.add_argument("--against", type=Path, help="root of another work tree, measured in the same run")
    parser.add_argument("--instructions", action="store_true", help="count machine instructions instead of time")
    parser.add_argument("--turns", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--child", nargs=2, metavar=("PATH", "HEAD"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        if options.turns:
            world = World()
            play = PATHS[options.child[0]](world, HEADS[options.child[1]])
            play(options.turns, *([play.prepare(options.turns)] if hasattr(play, "prepare") else []))
        else:
            print(json.dumps(measure(*options.child, options.requests, options.rounds)))
        return
    here = Path(__file__).resolve().parents[2]
    trees = [here] if options.against is None else [here, options.against.resolve()]
    for name, head in itertools.product(options.paths, options.heads):
        line = f"{name:7} {head:8}"
        if options.instructions:
            found = [instructions(tree, name, head) for tree in trees]
            line += "".join(f"{one / 1000:9.1f} thousand instructions" for one in found)
            print(line + (f"   ratio {found[1] / found[0]:.3f}" if len(found) > 1 else ""), flush=True)
            continue
        sizes = ["--requests", str(options.requests), "--rounds", str(options.rounds)]
        told = [[child(tree, [name, head, *sizes]) for tree in trees] for _ in range(options.processes)]
        best = [min(min(run[place]["microseconds"]) for run in told) for place in range(len(trees))]
        middle = [statistics.median(t for run in told for t in run[place]["microseconds"]) for place in range(len(trees))]
        for place in range(len(trees)):
            calls = told[0][place]["calls"]
            line += f"   {best[place]:6.2f} us (median {middle[place]:6.2f}), {calls[0]:.0f} + {calls[1]:.0f} calls"
        print(line + (f"   speed-up {best[1] / best[0]:.2f}" if len(trees) > 1 else ""), flush=True)


if __name__ == "__main__":
    main()
