"""Several workers at their worst: under load on all versions, reloaded each second, upgraded, killed; nobody loses what was not killed."""

import asyncio
import itertools
import os
import re
import signal
import socket
import threading
import time
from collections import defaultdict
from dataclasses import dataclass, field

import pytest
from harness.clients import trusting
from harness.content import MIB, digest
from harness.engines import FAST, PORTABLE, missing
from harness.figures import report
from harness.http3 import http3
from harness.load import Load, Polite, Result
from harness.processes import connections, gone, holder, kill, serving, workers

HOST = "a.example.com"
ALL = pytest.mark.speaks("HTTP/2", "HTTP/3")
LIMIT = 10.0  # seconds for one request
RELOADS, KILLS = 1.0, 5.0  # seconds between two
LAST_WORDS = 0.3
"""Seconds in which a client may read what a worker said before its end; its successor does not serve so soon."""

DOWNLOADS = 4
DRAIN = 120  # seconds, which no download needs: its reader may be late
NAMED = {"headers": {"response": {"set": {"X-Worker": "{request_id}", "X-Generation": "0"}}}}


def of(request_id: str) -> str:
    """The part of a request id that is the process's own."""
    return request_id.partition("-")[0]


@pytest.fixture
def once(engines, soaking):
    """In short runs one set of engines is enough."""
    if not soaking and engines == PORTABLE and not missing(FAST):
        pytest.skip("with --soak only: the fast engines show it")


@pytest.fixture
def start_team(start_proxy, once):
    def start(count, **more):
        timeouts = {"drain": f"{DRAIN}s"}
        proxy = start_proxy(sites={HOST: NAMED}, server={"workers": count, "timeouts": timeouts, **more})
        serving(proxy, count)
        return proxy

    return start


@dataclass
class Downloaded:
    """A long download, and who served it."""

    worker: str
    status: int
    sha256: str
    error: str
    at: float


class Downloads(threading.Thread):
    """Downloads over QUIC, each so slow that it takes *seconds*; one that was lost is not begun again."""

    def __init__(self, authority, port: int, size: int, seconds: float) -> None:
        super().__init__(daemon=True)
        self._authority, self._port, self._size, self._seconds = authority, port, size, seconds
        self.results: list[Downloaded] = []

    def run(self) -> None:
        async def all_of_them() -> None:
            await asyncio.gather(*(self._one() for _ in range(DOWNLOADS)))

        asyncio.run(all_of_them())

    async def _one(self) -> None:
        async with http3(self._authority, self._port, protocol=Polite) as client:
            number = client.open(f"/bytes/{self._size}", host=HOST, keep=False)
            stream, began = client.streams[number], time.monotonic()
            error = ""
            try:
                while not stream.done.done():
                    due = self._size * (time.monotonic() - began) / self._seconds
                    await (client.pause if stream.answer.size > due else client.resume)(number)
                    await asyncio.sleep(0.05)  # the pace of the download: its reader is slow on purpose
                await client.answer(number)
            except ConnectionError as lost:
                error = repr(lost)
            answer = stream.answer
            self.results.append(Downloaded(of(answer.headers.get("x-worker", "")), answer.status, answer.sha256, error, time.monotonic()))


@dataclass(frozen=True)
class Killed:
    """A worker, and what it had."""

    name: str
    """Its part of the request ids."""
    slot: int
    stopped: float
    """When it did the last thing; monotonic."""
    gone: float
    clients: frozenset[tuple[str, int]]
    """Addresses of its TCP connections; who has not been accepted waits for its successor, and loses nothing."""

    def had(self, lost: Result) -> bool:
        """Whether it had the connection of what was lost, on which it had not answered yet."""
        end = lost.end
        if lost.version == "HTTP/3":
            return end.slot == self.slot and end.heard <= self.gone + LAST_WORDS and self.stopped <= lost.at
        return end.address in self.clients and end.began <= self.gone and self.stopped <= lost.at


@dataclass
class Chaos:
    """What was done."""

    reloads: int = 0
    killed: list[Killed] = field(default_factory=list)


def victim(proxy, authority) -> tuple[str, int]:
    """A worker that takes new connections: its part of the request ids, and its process id."""
    with (
        socket.create_connection(("127.0.0.1", proxy.port), timeout=LIMIT) as raw,
        trusting(authority).wrap_socket(raw, server_hostname=HOST) as client,
    ):
        client.sendall(f"GET /hello HTTP/1.1\r\nhost: {HOST}\r\n\r\n".encode())
        head = b""
        while b"\r\n\r\n" not in head:
            piece = client.recv(65536)
            assert piece, head
            head += piece
        (name,) = (line.split(b": ")[1].decode() for line in head.lower().split(b"\r\n") if line.startswith(b"x-worker: "))
        return of(name), holder(proxy, client.getsockname())


def killed(proxy, authority) -> Killed:
    """Kill a worker, and say what it had: it is stopped first, so that this can be told."""
    name, pid = victim(proxy, authority)
    os.kill(pid, signal.SIGSTOP)
    stopped, clients = time.monotonic(), frozenset(connections(proxy, pid))
    kill(pid)
    gone_at = time.monotonic()
    told = re.compile(rf'"event":"worker (\d+) ended(?: while it drained|; it is started again)","pid":{pid},')
    proxy.wait_for(lambda: told.search(proxy.logs()), "tells of the dead worker")
    return Killed(name, int(told.search(proxy.logs())[1]), stopped, gone_at, clients)


def do_all_of_it(proxy, authority, seconds: float, *, kills: bool) -> Chaos:
    """A reload each second, an upgrade in the middle, and where *kills* is true a worker killed every five."""
    chaos, upgraded = Chaos(), '"event":"upgraded"'
    began = time.monotonic()
    reload_at, kill_at, upgrade_at = began, began + KILLS / 5, began + seconds / 2
    while (now := time.monotonic()) < began + seconds:
        under_way = upgrade_at == float("inf") and upgraded not in proxy.logs()
        if now >= reload_at:
            reload_at += RELOADS
            chaos.reloads += 1
            proxy.sites[HOST]["headers"]["response"]["set"]["X-Generation"] = str(chaos.reloads)
            proxy.write()
            proxy.process.send_signal(signal.SIGHUP)
        if kills and now >= kill_at and not under_way:  # a death among those that come ends an upgrade, and rightly
            kill_at += KILLS
            chaos.killed.append(killed(proxy, authority))
        if now >= upgrade_at:
            upgrade_at = float("inf")
            proxy.process.send_signal(signal.SIGUSR2)
        time.sleep(0.02)
    proxy.wait_for(lambda: upgraded in proxy.logs(), "was upgraded", 30)
    return chaos


def unaccounted(load, chaos):
    """Requests that were lost, and on no connection of a worker that had been killed."""
    served = defaultdict(set)
    for result in load.results:
        if result.status == 200:
            served[result.connection].add(of(result.worker))
    assert all(len(names) == 1 for names in served.values()), "a connection has one worker"
    for lost in load.lost:
        names = served.get(lost.connection)
        if not any(one.had(lost) if names is None else one.name in names and one.stopped <= lost.at for one in chaos.killed):
            yield lost


@ALL
@pytest.mark.soak
@pytest.mark.timeout(420)
@pytest.mark.parametrize(("count", "kills"), [(2, True), (4, False), (4, True), (2, False)])
def test_what_is_lost_was_a_killed_workers(authority, start_team, soaking, count, kills):
    if not soaking and (count, kills) not in {(2, True), (4, False)}:
        pytest.skip("with --soak only")
    seconds, size = (120.0, 64 * MIB) if soaking else (8.0, 16 * MIB)
    team = start_team(count)
    before = workers(team)
    downloads = Downloads(authority, team.port, size, seconds * 0.7)
    with Load(authority, team.port, clients=2 * count, streams=2, limit=LIMIT) as load:
        load.more(10)
        downloads.start()
        chaos = do_all_of_it(team, authority, seconds, kills=kills)
        load.more(10)
    downloads.join(DRAIN)
    assert not downloads.is_alive()
    for pid in before:
        gone(pid, DRAIN + 30)
    report(f"{count} workers, {len(chaos.killed)} killed, {chaos.reloads} reloads: {load.answered()}, lost: {len(load.lost)}")
    assert not list(unaccounted(load, chaos)), chaos.killed
    assert bool(chaos.killed) == kills
    assert kills or not load.lost, load.summary()
    for each in downloads.results:
        if each.worker not in {one.name for one in chaos.killed}:
            assert (each.status, each.sha256) == (200, digest(size)), each
    assert len(downloads.results) == DOWNLOADS
    serving(team, count)
    team.sites[HOST]["headers"]["response"]["set"]["X-Generation"] = "last"
    team.write()
    team.reload(expect='"event":"configuration reloaded"')
    with Load(authority, team.port, clients=4) as load:
        load.more(10)
    assert not load.lost, load.summary()


@ALL
def test_signals_that_come_while_the_code_is_replaced_are_kept(authority, start_team):
    """A process that has just become another program handles none yet, and by default SIGHUP is its end."""
    team = start_team(2)
    with Load(authority, team.port, clients=2) as load:
        load.more(10)
        team.process.send_signal(signal.SIGUSR2)
        for _ in itertools.takewhile(lambda _: '"event":"upgraded"' not in team.logs(), range(400)):
            team.process.send_signal(signal.SIGHUP)
            time.sleep(0.05)
        team.wait_for(lambda: '"event":"upgraded"' in team.logs(), "was upgraded", 30)
        load.more(10)
    assert not load.lost, load.summary()
