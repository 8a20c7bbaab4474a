"""An HTTP/3 load generator on qh3's engine (Rust under Python): closed loop, like h2load's default.

Prints one JSON object: requests, failures by reason, seconds, rate, latency quantiles, bytes, and the share of its core that it used
itself: near 1.0 it was the bottleneck, and the server could have done more.
"""

import argparse
import asyncio
import contextlib
import json
import socket
import ssl
import time
from collections import Counter

import uvloop
from qh3.h3.connection import H3Connection
from qh3.h3.events import DataReceived, HeadersReceived
from qh3.quic.configuration import QuicConfiguration
from qh3.quic.connection import QuicConnection
from qh3.quic.events import ConnectionTerminated, HandshakeCompleted, StreamReset

GRACE = 5.0  # seconds that requests under way have to finish after the time is up


class Run:
    """What all connections share."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.stop = asyncio.Event()
        self.started = self.finished = self.under_way = self.bytes = 0
        self.failures: Counter[str] = Counter()
        self.latencies: list[float] = []
        self.counting = False


class Client(asyncio.DatagramProtocol):
    """One connection that keeps ``streams`` requests under way."""

    def __init__(self, run: Run) -> None:
        self.run = run
        options = run.options
        configuration = QuicConfiguration(is_client=True, alpn_protocols=["h3"], server_name=options.sni, verify_mode=ssl.CERT_NONE)
        self.quic = QuicConnection(configuration=configuration)
        self.http: H3Connection | None = None
        self.peer = ("127.0.0.1", options.port)
        self.open: dict[int, float] = {}
        self.statuses: dict[int, bytes] = {}
        self.ready = asyncio.get_running_loop().create_future()
        self.timer: asyncio.TimerHandle | None = None
        self.timer_at: float | None = None
        self.closed = False
        authority = f"{options.sni}:{options.port}".encode()
        self.request = [(b":method", b"GET"), (b":scheme", b"https"), (b":authority", authority), (b":path", options.path.encode())]
        self.request.append((b"user-agent", b"qproxy-h3load"))

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:
        self.transport = transport
        self.loop = asyncio.get_running_loop()
        self.quic.connect(self.peer, now=self.loop.time())
        self.send()

    def datagram_received(self, data: bytes, peer: tuple[str, int]) -> None:
        del peer
        self.quic.receive_datagram(data, self.peer, now=self.loop.time())
        self.work()

    def error_received(self, error: Exception) -> None:
        self.run.failures[f"socket: {error}"] += 1

    def work(self) -> None:
        event = self.quic.next_event()
        while event is not None:
            if isinstance(event, HandshakeCompleted):
                self.http = H3Connection(self.quic)
                if not self.ready.done():
                    self.ready.set_result(None)
            elif isinstance(event, ConnectionTerminated):
                self.terminated(event)
            elif isinstance(event, StreamReset):
                self.done(event.stream_id, f"stream reset {event.error_code:#x}")
            if self.http is not None:
                for http_event in self.http.handle_event(event):
                    if isinstance(http_event, HeadersReceived):
                        self.statuses[http_event.stream_id] = dict(http_event.headers).get(b":status", b"")
                    elif isinstance(http_event, DataReceived):
                        self.run.bytes += len(http_event.data)
                    else:
                        continue
                    if http_event.stream_ended:
                        status = self.statuses.pop(http_event.stream_id, b"")
                        self.done(http_event.stream_id, "" if status == b"200" else f"status {status.decode()}")
            event = self.quic.next_event()
        self.send()

    def fill(self) -> None:
        run = self.run
        while run.counting and not self.closed and len(self.open) < run.options.streams:
            if run.options.requests and run.started >= run.options.requests:
                return
            stream = self.quic.get_next_available_stream_id()
            run.started += 1
            run.under_way += 1
            self.open[stream] = time.perf_counter()
            self.http.send_headers(stream, self.request, end_stream=True)

    def done(self, stream: int, failure: str) -> None:
        begun = self.open.pop(stream, None)
        if begun is None:
            return
        run = self.run
        run.finished += 1
        if failure:
            run.failures[failure] += 1
        else:
            run.latencies.append(time.perf_counter() - begun)
        run.under_way -= 1
        if (run.options.requests and run.finished >= run.options.requests) or (not run.counting and not run.under_way):
            run.stop.set()
        self.fill()

    def terminated(self, event: ConnectionTerminated) -> None:
        self.closed = True
        reason = f"connection ended {event.error_code:#x} {event.reason_phrase}"
        if not self.ready.done():
            self.ready.set_exception(ConnectionError(reason))
        for stream in list(self.open):
            self.done(stream, reason)

    def send(self) -> None:
        now = self.loop.time()
        for data, peer in self.quic.datagrams_to_send(now=now):
            self.transport.sendto(data, peer)
        at = self.quic.get_timer()
        if at != self.timer_at:
            if self.timer is not None:
                self.timer.cancel()
            self.timer_at = at
            self.timer = None if at is None else self.loop.call_at(at, self.tick)

    def tick(self) -> None:
        self.timer_at = self.timer = None
        self.quic.handle_timer(now=self.loop.time())
        self.work()

    def close(self) -> None:
        self.quic.close()
        self.send()
        self.transport.close()


async def main(options: argparse.Namespace) -> dict[str, object]:
    run = Run(options)
    loop = asyncio.get_running_loop()
    clients = []
    for _ in range(options.connections):
        receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 21)
        receiver.bind(("127.0.0.1", 0))
        _, client = await loop.create_datagram_endpoint(lambda: Client(run), sock=receiver)
        clients.append(client)
    await asyncio.wait_for(asyncio.gather(*(client.ready for client in clients)), 30)
    run.counting = True
    begun, cpu = time.perf_counter(), time.process_time()
    for client in clients:
        client.fill()
        client.send()
    try:
        await asyncio.wait_for(run.stop.wait(), options.seconds if not options.requests else options.limit)
    except TimeoutError:
        if options.requests:
            run.failures["no answer in time"] += options.requests - run.finished
    seconds, used = time.perf_counter() - begun, time.process_time() - cpu
    measured = run.finished
    if not options.requests:
        await _settle(run, clients)
    for client in clients:
        client.close()
    await asyncio.sleep(0)
    latencies = sorted(run.latencies)
    quantiles = {f"p{q}": latencies[min(len(latencies) - 1, len(latencies) * q // 100)] if latencies else None for q in (50, 90, 99)}
    return {
        "requests": measured,
        "failed": sum(run.failures.values()),
        "failures": run.failures,
        "seconds": seconds,
        "rate": measured / seconds,
        "bytes": run.bytes,
        "own_cpu": used / seconds,
        **quantiles,
    }


async def _settle(run: Run, clients: list[Client]) -> None:
    """Requests under way get their answers before the connections are closed; one without is a failure."""
    run.stop.clear()
    run.counting = False
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(run.stop.wait(), GRACE)
    run.failures["no answer in time"] += sum(len(client.open) for client in clients)
    run.failures += Counter()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--sni", default="a.example.com")
    parser.add_argument("--path", default="/")
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--streams", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--requests", type=int, default=0, help="this many in all, in place of --seconds")
    parser.add_argument("--limit", type=float, default=120, help="with --requests: seconds until the rest counts as failed")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        print(json.dumps(runner.run(main(parser.parse_args())), indent=1))
