"""The prober against real servers: when it asks, whom it tells, and what a reload changes."""

import asyncio
import contextlib
import ssl
import time

import pytest

from balancer.pool import Member, PoolSettings
from balancer.pool import Pool as BalancerPool
from proxy.control import probe
from proxy.control.probe import Prober
from proxy.observe import Metrics
from proxy.policy.key import KeySource
from proxy.snapshot import Endpoint, HealthCheck, Pool, UpstreamConnections, UpstreamTls
from tests.unit.control.probe_backend import DEADLINE, ProbeBackend, answer
from tests.unit.few_descriptors import few_descriptors
from tests.unit.upstream.book import Book

FOREVER = 1000.0
"""An interval of which no test sees the end."""


class Log:
    """Keeps what was said, and wakes who waits for it."""

    def __init__(self):
        self.lines = []
        self._news = asyncio.Event()

    def info(self, event, **details):
        self._say("info", event, details)

    def warning(self, event, **details):
        self._say("warning", event, details)

    error = debug = warning

    def _say(self, level, event, details):
        self.lines.append((level, event, details))
        self._news.set()

    async def said(self, words):
        """Wait for a line with these words, and give it."""
        async with asyncio.timeout(DEADLINE):
            while True:
                for line in self.lines:
                    if words in line[1]:
                        return line
                self._news.clear()
                await self._news.wait()


def rules(**changes):
    wanted = {"path": "/health", "host": None, "interval": FOREVER, "jitter": 0.0, "timeout": 5.0, "statuses": ((200, 299),), "body": None}
    return HealthCheck(**(wanted | changes))


def make_pool(*backends, name="web", health=None, tls=None, previous=None, **settings):
    endpoints = {
        backend.url: Endpoint(backend.url, secure=tls is not None, host="127.0.0.1", port=backend.port, unix_path=None)
        for backend in backends
    }
    wanted = PoolSettings(**({"rise": 1, "fall": 1, "probed": True} | settings))
    balancer = BalancerPool(name, [Member(url) for url in endpoints], wanted, b"secret", 1)
    if previous is not None:
        balancer.adopt(previous.balancer, time.monotonic())
    return Pool(
        name,
        balancer,
        endpoints,
        KeySource("connection"),
        pins=True,
        tls=tls,
        connections=UpstreamConnections(1, 1.0, 1.0),
        health=rules() if health is None else health,
    )


@contextlib.asynccontextmanager
async def probing(*pools, **options):
    log, metrics = Log(), Metrics()
    prober = Prober({pool.name: pool for pool in pools}, log, metrics, Book(), **options)
    prober.log, prober.metrics = log, metrics
    await prober.start()
    try:
        yield prober
    finally:
        await prober.stop()
        assert not [task for task in asyncio.all_tasks() if "probe" in task.get_name() and task is not asyncio.current_task()]


def counts(prober):
    return {labels: cell.value for labels, cell in prober.metrics.families["qproxy_probes_total"].cells.items()}


async def reported(prober, pool, backend):
    """Wait until the first probe of a backend is told: the next turn of the loop after its answer, or the one after that."""
    async with asyncio.timeout(DEADLINE):
        while prober.last_probe(pool.name, backend.url) is None:
            await asyncio.sleep(0)
    return prober.last_probe(pool.name, backend.url)


async def test_the_first_probe_goes_out_at_once_to_everybody():
    async with ProbeBackend.serve() as one, ProbeBackend.serve() as two, ProbeBackend.serve() as other:
        web, api = make_pool(one, two), make_pool(other, name="api")
        async with probing(web, api) as prober:
            assert prober.last_probe("web", one.url) is None
            for pool, backend in ((web, one), (web, two), (api, other)):
                assert await reported(prober, pool, backend) == "ok: status 200"
            assert counts(prober) == {("web", "ok"): 2, ("web", "failed"): 0, ("api", "ok"): 1, ("api", "failed"): 0}
            assert sum(prober.metrics.families["qproxy_probe_seconds"].cell("web").counts) == 2
            assert prober.log.lines == []
            assert prober.last_probe("web", "nobody") is None
            assert prober.last_probe("nowhere", one.url) is None


async def test_changes_of_state_are_told_and_logged():
    async with ProbeBackend.serve(answer(503)) as backend:
        pool = make_pool(backend, health=rules(interval=0.001))
        async with probing(pool) as prober:
            line = await prober.log.said("is down")
            assert line == (
                "warning",
                f"backend {backend.url} of pool web is down: status 503",
                {"pool": "web", "backend": backend.url, "state": "down"},
            )
            assert list(pool.balancer.candidates(b"key", 0.0)) == []
            backend.reply = answer(200)
            level, event, _ = await prober.log.said("is up")
            assert (level, event) == ("info", f"backend {backend.url} of pool web is up: status 200")
            assert len(list(pool.balancer.candidates(b"key", 0.0))) == 1
            assert len(prober.log.lines) == 2, "only changes are logged"


async def test_rise_and_fall_count():
    async with ProbeBackend.serve() as backend:
        pool = make_pool(backend, health=rules(interval=0.001), fall=4, rise=3)
        async with probing(pool) as prober:
            await reported(prober, pool, backend)
            failures_before = counts(prober)["web", "failed"]
            backend.reply = answer(500)
            await prober.log.said("is down")
            assert counts(prober)["web", "failed"] - failures_before == 4
            successes_before = counts(prober)["web", "ok"]
            backend.reply = answer(200)
            await prober.log.said("is up")
            assert counts(prober)["web", "ok"] - successes_before == 3


async def test_a_slow_endpoint_delays_no_other_and_is_not_asked_twice_at_a_time():
    gate = asyncio.Event()

    async def hang(_):
        await gate.wait()

    async with (
        ProbeBackend.serve(hang) as slow,
        ProbeBackend.serve() as quick,
        probing(make_pool(slow, quick, health=rules(interval=0.001, timeout=60.0))),
    ):
        await quick.asked(20)
        assert len(slow.requests) == 1
        slow.reply = answer()
        gate.set()
        await slow.asked(5)
        assert slow.most_open == 1


async def test_no_more_than_the_bound_at_a_time(monkeypatch):
    monkeypatch.setattr(probe, "PARALLEL", 2)
    gate = asyncio.Event()
    asked = []

    async def hang(writer):
        asked.append(writer)
        await gate.wait()
        writer.write(answer())

    async with contextlib.AsyncExitStack() as stack:
        backends = [await stack.enter_async_context(ProbeBackend.serve(hang)) for _ in range(5)]
        pool = make_pool(*backends)
        async with probing(pool) as prober:
            for backend in backends[:2]:
                await backend.asked(1)
            assert len(asked) == 2
            gate.set()
            for backend in backends:
                await reported(prober, pool, backend)
            assert len(asked) == 5


async def test_a_probe_that_times_out_is_a_failure():
    async def hang(_):
        await asyncio.Event().wait()

    async with ProbeBackend.serve(hang) as backend, probing(make_pool(backend, health=rules(timeout=0.05))) as prober:
        assert "no answer within 0.05 s" in (await prober.log.said("is down"))[1]


@pytest.mark.parametrize(("drawn", "share"), [(0.0, 0.5), (0.5, 1.0), (1.0, 1.5)])
async def test_jitter_moves_each_probe_by_its_share(drawn, share, monkeypatch):
    pauses = []
    sleep = asyncio.sleep

    async def note(seconds):
        if seconds > 1:  # the prober's own; the test's and the libraries' turns of the loop are none
            pauses.append(seconds)
            seconds = FOREVER
        await sleep(seconds)

    monkeypatch.setattr(probe.asyncio, "sleep", note)
    async with ProbeBackend.serve() as backend:
        pool = make_pool(backend, health=rules(interval=100.0, jitter=0.5))
        async with probing(pool, random=lambda: drawn, clock=lambda: 7.0) as prober:
            await reported(prober, pool, backend)
            await sleep(0)
            assert pauses == [100.0 * share]


async def test_the_time_of_a_probe_counts_towards_its_interval(monkeypatch):
    ticks = iter([0.0, 30.0])
    pauses = []
    sleep = asyncio.sleep

    async def note(seconds):
        if seconds > 1:
            pauses.append(seconds)
        await sleep(seconds)

    monkeypatch.setattr(probe.asyncio, "sleep", note)
    async with ProbeBackend.serve() as backend:
        pool = make_pool(backend, health=rules(interval=100.0))
        async with probing(pool, clock=lambda: next(ticks)) as prober:
            await reported(prober, pool, backend)
            await sleep(0)
            assert pauses == [70.0]


async def test_a_pool_without_health_check_is_not_probed():
    async with ProbeBackend.serve() as backend, ProbeBackend.serve() as other:
        silent = make_pool(backend, name="silent")
        silent.health = None
        web = make_pool(other)
        async with probing(silent, web) as prober:
            await reported(prober, web, other)
            assert backend.requests == []
            assert ("silent", "ok") not in counts(prober)


async def test_over_a_reload_probes_go_on_and_tell_the_new_pool():
    async with ProbeBackend.serve() as kept, ProbeBackend.serve() as gone, ProbeBackend.serve() as added:
        old = make_pool(kept, gone)
        async with probing(old) as prober:
            await reported(prober, old, kept)
            await reported(prober, old, gone)
            new = make_pool(kept, added, previous=old)
            prober.replace({"web": new})
            assert prober.last_probe("web", kept.url) == "ok: status 200", "what was known is still known"
            await reported(prober, new, added)
            assert len(kept.requests) == 1, "its interval goes on, nothing begins anew"
            assert prober.last_probe("web", gone.url) is None
            await task_gone(f"probe {gone.url} of pool web")


async def task_gone(name):
    async with asyncio.timeout(DEADLINE):
        while any(task.get_name() == name for task in asyncio.all_tasks()):
            await asyncio.sleep(0)


async def test_after_a_reload_the_new_pools_rules_count():
    async with ProbeBackend.serve() as backend:
        old = make_pool(backend, health=rules(interval=0.001), fall=1_000_000)
        async with probing(old) as prober:
            await reported(prober, old, backend)
            new = make_pool(backend, health=rules(interval=0.001), fall=2, previous=old)
            prober.replace({"web": new})
            backend.reply = answer(500)
            await prober.log.said("is down")
            assert new.balancer.backends[0].state == "down"


async def test_a_changed_check_begins_at_once():
    async with ProbeBackend.serve() as backend:
        old = make_pool(backend)
        async with probing(old) as prober:
            await backend.asked(1)
            prober.replace({"web": make_pool(backend, health=rules(path="/other"), previous=old)})
            await backend.asked(2)
            assert [request.split()[1] for request in backend.requests] == ["/health", "/other"]


@pytest.mark.parametrize(
    ("before", "after", "same"),
    [
        ((None, ("ca",)), (None, ("ca",)), True),
        ((None, ("ca",)), (None, ("new",)), False),
        (("a", ()), ("b", ()), False),
        (("a", ()), None, False),
    ],
)
async def test_a_change_of_tls_begins_at_once(before, after, same):
    """Told by the fingerprint and the name, for a reload makes a new context in any case. The backend speaks no TLS: each probe fails."""
    tls = [None if terms is None else UpstreamTls(ssl.create_default_context(), *terms) for terms in (before, after)]
    asked = asyncio.Queue()
    server = await asyncio.start_server(lambda _, writer: (asked.put_nowait(1), writer.close()), "127.0.0.1", 0)
    async with server, ProbeBackend.serve() as other:
        port = server.sockets[0].getsockname()[1]
        backend = ProbeBackend()
        backend.url, backend.port = f"https://127.0.0.1:{port}", port
        async with asyncio.timeout(DEADLINE), probing(make_pool(backend, tls=tls[0])) as prober:
            await asked.get()
            await prober.log.said("is down")
            marker = make_pool(other, name="marker")
            prober.replace({"web": make_pool(backend, tls=tls[1]), "marker": marker})
            await reported(prober, marker, other)
            if not same:
                await asked.get()
            assert asked.empty()


async def test_a_pool_that_goes_takes_its_counts_and_probes_along():
    gate = asyncio.Event()

    async def hang(_):
        await gate.wait()

    async with ProbeBackend.serve(hang) as backend, ProbeBackend.serve() as other:
        web, api = make_pool(backend), make_pool(other, name="api")
        async with probing(web, api) as prober:
            await backend.asked(1)
            prober.replace({"api": api})
            await task_gone(f"probe {backend.url} of pool web")
            await task_gone("close probes of pool web")
            assert set(counts(prober)) == {("api", "ok"), ("api", "failed")}
            assert prober.last_probe("web", backend.url) is None
            gate.set()


async def test_a_health_check_may_come_and_go():
    async with ProbeBackend.serve() as backend:
        pool = make_pool(backend)
        without = make_pool(backend, previous=pool)
        without.health = None
        async with probing(without) as prober:
            prober.replace({"web": pool})
            await reported(prober, pool, backend)
            prober.replace({"web": without})
            assert prober.last_probe("web", backend.url) is None


async def test_before_start_and_after_stop_nothing_is_asked():
    async with ProbeBackend.serve() as backend:
        pool = make_pool(backend)
        prober = Prober({}, Log(), Metrics(), Book())
        prober.replace({"web": pool})
        assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("probe ")]
        await prober.start()
        await reported(prober, pool, backend)
        await prober.stop()
        prober.replace({"web": pool})
        assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("probe ")]
        assert len(backend.requests) == 1


async def test_stop_ends_a_probe_in_its_middle_and_closes_its_connection():
    asked, closed = asyncio.Event(), asyncio.Event()

    async def serve(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        asked.set()
        await reader.read()
        closed.set()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    backend = ProbeBackend()
    backend.port = server.sockets[0].getsockname()[1]
    backend.url = f"http://127.0.0.1:{backend.port}"
    async with server, asyncio.timeout(DEADLINE):
        async with probing(make_pool(backend)):
            await asked.wait()
        await closed.wait()


async def test_a_drained_backend_is_probed_but_stays_drained():
    async with ProbeBackend.serve(answer(500)) as backend:
        pool = make_pool(backend)
        (drained,) = pool.balancer.backends
        pool.balancer.drain(drained, 0.0)
        async with probing(pool) as prober:
            assert await reported(prober, pool, backend) == "failed: status 500"
            assert drained.state == "draining"
            assert prober.log.lines == []
            pool.balancer.restore(drained, 1.0)
            assert drained.state == "down"


async def test_a_probe_that_has_no_file_descriptor_blames_nobody():
    async with ProbeBackend.serve() as backend:
        pool = make_pool(backend, health=rules(interval=0.001))
        async with probing(pool) as prober:
            await reported(prober, pool, backend)
            with few_descriptors(0):
                async with asyncio.timeout(DEADLINE):
                    while counts(prober)["web", "failed"] < 3:
                        await asyncio.sleep(0.001)
                assert prober.last_probe("web", backend.url) == "failed: too many open files"
            assert next(iter(pool.balancer.backends)).state == "up"
            assert prober.log.lines == []
