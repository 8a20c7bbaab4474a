"""The parts of the request path, each alone: what the microbenchmarks time, and what the guard of the tests counts.

A part is made once and then played: each play is one request through it, on connections that stay open, without a system call. It may be
played any number of times and keeps nothing.
"""

import importlib.util
import itertools
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from aioquic.quic.events import StreamDataReceived
from hpack import Encoder

from balancer.pool import Member, Pool, PoolSettings
from balancer.ring import Ring
from bench.micro import path
from proxy.config.compile import compile_snapshot
from proxy.config.load import load
from proxy.config.material import self_signed
from proxy.engine.events import UpstreamRequest
from proxy.engine.h1 import H1Connection
from proxy.engine.h1_client import H1Client
from proxy.engine.h2 import H2Connection
from proxy.engine.h3 import H3Connection
from proxy.engine.h3_frames import FieldSections
from proxy.engine.seam import EngineLimits
from proxy.engine.validate import pseudo_request
from proxy.listen.tcp_connection import TcpConnection
from proxy.observe import Metrics
from proxy.route.match import Match
from proxy.route.table import RouteTable
from proxy.snapshot import Host, Site

Play = Callable[[], None]

LIMITS = EngineLimits()
BODY = b"x" * 1024
ANSWER = [(b"server", b"nginx"), (b"content-type", b"text/plain"), (b"etag", b'"6560a1b2-400"'), (b"content-length", b"1024")]
BROWSER = path.HEADS["browser"]
PSEUDO = [(b":method", b"GET"), (b":scheme", b"https"), (b":authority", path.HOST), (b":path", b"/1k")]
FIELDS = PSEUDO + BROWSER[1:]
KEY = b"0123456789abcdef"
WINDOW = 2**31 - 1
STREAMS = 2_000_000
"""Streams of one HTTP/2 connection before a new one is made: its window would be used up by then."""


def h1(*others: tuple[bytes, bytes]) -> Play:
    """The HTTP/1.1 engine: a browser's GET in, an answer of 1 KiB out. In turn with requests that have another field more, if any."""
    engine = H1Connection(LIMITS)
    lines = b"GET /1k HTTP/1.1\r\n" + b"".join([b"%b: %b\r\n" % field for field in BROWSER])
    requests = itertools.cycle([lines + b"\r\n", *(lines + b"%b: %b\r\n\r\n" % other for other in others)])

    def play() -> None:
        head = engine.receive(next(requests), 0.0)[0]
        engine.respond(head.stream, 200, ANSWER, BODY)
        engine.take_output(65536)

    return play


def h2(make=H2Connection) -> Play:
    """The HTTP/2 engine on h2: the same, all fields by index as from the second request of a connection on."""
    engine = encoder = None
    stream = STREAMS

    def begin():
        nonlocal engine, encoder
        engine, encoder = make(LIMITS), Encoder()
        opening = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\6\4\0\0\0\0\0" + b"\0\4" + WINDOW.to_bytes(4, "big")
        opening += b"\0\0\4\x08\0\0\0\0\0" + (WINDOW - 65535).to_bytes(4, "big")
        engine.receive(opening, 0.0)
        engine.take_output(65536)
        engine.receive(b"\0\0\0\4\1\0\0\0\0", 0.0)
        encoder.encode(FIELDS)

    def ask(block: bytes) -> None:
        nonlocal stream
        engine.receive(len(block).to_bytes(3, "big") + b"\1\5" + stream.to_bytes(4, "big") + block, float(stream))
        engine.respond(stream, 200, ANSWER, BODY)
        assert len(engine.take_output(65536)) > len(BODY)
        stream += 2

    def play() -> None:
        nonlocal stream, indexed
        if stream >= STREAMS:
            begin()
            stream = 1
            ask(Encoder().encode(FIELDS))
            indexed = encoder.encode(FIELDS)
        ask(indexed)

    indexed = b""
    return play


def ngh2() -> Play:
    """The HTTP/2 engine on ngh2: the same."""
    from proxy.engine.h2_ngh2 import Ngh2Connection  # noqa: PLC0415  # optional

    return h2(Ngh2Connection)


# ruff: noqa: ARG002  # a transport that does nothing with its arguments


class _Transport:
    """The QUIC connection as HTTP/3 sees it, when all goes well: takes everything."""

    unsent_bytes = 0

    def send(self, stream_id, data, *, end=False):
        return True

    def open_stream(self, data):
        return 3

    def unsent(self, stream_id):
        return 0

    def room(self):
        return 65536

    def credit(self, stream_id, count):
        pass

    def spend_control(self):
        return True


def h3() -> Play:
    """HTTP/3 above aioquic's transport: the same."""
    sections = FieldSections()
    engine = H3Connection(_Transport(), LIMITS, sections)
    request = sections.encode(FIELDS)
    stream = 0

    def play() -> None:
        nonlocal stream
        engine.handle(StreamDataReceived(request, True, stream))
        engine.respond(stream, 200, ANSWER, BODY)
        engine.events.clear()
        stream += 4

    return play


def upstream() -> Play:
    """The HTTP/1.1 engine towards backends: a request out, nginx's answer of 1 KiB in."""
    engine = H1Client()
    headers = [*BROWSER[1:], (b"x-forwarded-for", b"127.0.0.1"), (b"x-forwarded-proto", b"https")]
    request = UpstreamRequest(b"GET", b"/1k", path.HOST, headers, None, end=True)

    def play() -> None:
        engine.start(request)
        engine.receive(path.ANSWER)

    return play


def validator() -> Play:
    """A browser's header section of HTTP/2 or HTTP/3, checked and parted."""

    def play() -> None:
        pseudo_request(1, FIELDS, LIMITS, end=True)

    return play


def policy() -> Play:
    """What every version pays above its engine, the way to the backend included: 32 requests a play (``PER_PLAY``)."""
    turn = path.policy(path.World(), BROWSER)
    return lambda: turn(1)


def whole_h1() -> Play:
    """HTTP/1.1 from bytes to bytes with all that is above the engine: 32 requests a play (``PER_PLAY``)."""
    turn = path.clear(path.World(), BROWSER)
    return lambda: turn(1)


class _Route:
    def __init__(self, match: Match) -> None:
        self.match = match


def route(sites: int) -> Play:
    """Host and route of a request, in a configuration of so many sites of four routes."""
    matches = [Match(prefix=b"/"), Match(prefix=b"/api/"), Match(prefix=b"/static/"), Match(exact=b"/about")]
    hosts = {}
    for number in range(sites):
        name = f"site-{number}.example.com"
        table = RouteTable([_Route(match) for match in matches])
        hosts[name.encode()] = Host(name, Site(name, (name,), table, None, None), {})
    snapshot = replace(path.World().services.snapshot, exact_hosts=hosts)
    asked = b"site-%d.example.com" % (sites // 2)

    def play() -> None:
        host = snapshot.find_host(asked)
        assert host is not None
        host.site.routes.find(b"GET", b"/api/things/1?page=2", BROWSER)

    return play


def ring(backends: int) -> Play:
    """The owner of a key."""
    made = Ring(tuple((f"http://10.0.{number >> 8}.{number & 255}:80", 1) for number in range(backends)), b"secret")

    def play() -> None:
        _ = made.owners[made.position(KEY)]

    return play


def candidate(backends: int) -> Play:
    """The first candidate of a pool with consistent hashing."""
    members = [Member(f"http://10.0.{number >> 8}.{number & 255}:80") for number in range(backends)]
    pool = Pool("bench", members, PoolSettings(), b"secret", 1)

    def play() -> None:
        next(pool.candidates(KEY, 1.0))

    return play


def site() -> Play:
    """A site of a configuration, from its file to what serves it: ten a play (``PER_PLAY``)."""
    folder = tempfile.TemporaryDirectory()  # gone with the part
    certificate = self_signed(("*.example.com",))
    (Path(folder.name) / "a.pem").write_bytes(certificate.chain_pem + certificate.key_pem)
    (Path(folder.name) / "qproxy.yaml").write_text("server: {tls: {certificate: a.pem}}")
    for number in range(SITES):
        (Path(folder.name) / f"{number}.yaml").write_text(SITE.format(number=number))

    def play() -> None:
        configuration = load(Path(folder.name), {}, keep=False)
        compile_snapshot(
            configuration,
            metrics=Metrics(),
            secret=b"s" * 32,
            seed=1,
            generation=1,
            make_request_id=bytes,
            default_certificate=certificate,
        )

    return play


SITES = 10
SITE = """site:
  hosts: [h{number}.example.com]
  routes:
  - {{match: {{path: /api/}}, pool: api, timeouts: {{response: 30s}}}}
  - {{match: {{path: /}}, pool: web}}
  pools:
    api: {{endpoints: ["http://127.0.0.1:9001"]}}
    web: {{endpoints: ["http://127.0.0.1:9001", "http://127.0.0.1:9002"], balance: {{policy: consistent_hash, key: connection}}}}
"""


def tcp_connection() -> Callable[[], object]:
    """A client's connection over TCP, without its TLS session and its engine."""
    world = path.World()

    def make() -> object:
        made = TcpConnection(world.owner)
        made.connection_made(path.Transport(world.count))
        return made

    return make


def h2_connection(make=H2Connection) -> Callable[[], object]:
    """An HTTP/2 engine that has served a request."""
    opening = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
    block = Encoder().encode(FIELDS)
    opening += len(block).to_bytes(3, "big") + b"\1\5\0\0\0\1" + block

    def one() -> object:
        engine = make(LIMITS)
        engine.receive(opening, 0.0)
        engine.respond(1, 200, ANSWER, BODY)
        assert len(engine.take_output(65536)) > len(BODY)
        return engine

    return one


def h1_connection() -> Callable[[], object]:
    """An HTTP/1.1 engine that has served a request."""
    request = b"GET /1k HTTP/1.1\r\n" + b"".join([b"%b: %b\r\n" % field for field in BROWSER]) + b"\r\n"

    def one() -> object:
        engine = H1Connection(LIMITS)
        engine.receive(request, 0.0)
        engine.respond(1, 200, ANSWER, BODY)
        assert len(engine.take_output(65536)) > len(BODY)
        return engine

    return one


HELD: dict[str, Callable[[], Callable[[], object]]] = {"tcp": tcp_connection, "h1": h1_connection, "h2": h2_connection}
"""What is held for each idle connection, as far as Python allocates it."""

PER_PLAY = {"policy": path.CLIENTS, "whole-h1": path.CLIENTS, "site": SITES}
"""Requests of one play (or sites), where it is not one."""

PARTS: dict[str, Callable[[], Play]] = {
    "h1": h1,
    "h1-changing": lambda: h1((b"range", b"bytes=0-1")),
    "h2": h2,
    **({"ngh2": ngh2} if importlib.util.find_spec("ngh2") and importlib.util.find_spec("proxy.engine.h2_ngh2") else {}),
    "h3": h3,
    "upstream": upstream,
    "validator": validator,
    "policy": policy,
    "whole-h1": whole_h1,
    **{f"route-{sites}": lambda sites=sites: route(sites) for sites in (10, 1000, 10_000)},
    **{f"ring-{backends}": lambda backends=backends: ring(backends) for backends in (3, 1000)},
    **{f"candidate-{backends}": lambda backends=backends: candidate(backends) for backends in (3, 1000)},
    "site": site,
}
"""By name. What is made says in its docstring what it is."""
