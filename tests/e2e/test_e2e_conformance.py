"""One suite over both QUIC engines: each fault of a client, the exact code that it hears, what counts it, and that others are served on."""

from contextlib import closing, suppress
from pathlib import Path

import pytest
from harness import engines as engine_sets
from harness.byhand import ByHand
from harness.conformance import TABLES, page
from harness.conformance.case import Alert, Case, Code, Quic
from harness.conformance.http3 import request
from harness.conformance.transport import stream
from harness.guard import Guard, rejected, sample
from harness.raw3 import Raw3, head, raw3

from proxy.engine.seam import EngineLimits

pytestmark = pytest.mark.speaks("HTTP/3")
HELLO = b"Hello from a.example.com (HTTP/3)!\n"
CASES = {f"{table}: {case.name}": case for table, cases in TABLES.items() for case in cases}


@pytest.fixture(scope="module")
def watch(authority, proxy, backends):
    guard = Guard(authority, proxy, backends)
    yield guard
    guard.check()


@pytest.fixture(scope="module")
def bystander(authority, proxy):
    """A connection that is there before and after every case."""
    with closing(ByHand(authority)) as client:
        assert client.get(proxy.port, "/hello").status == 200
        yield client
        assert client.ended is None


async def served(client: Raw3) -> None:
    answer = await client.answer(client.stream(head(request()), end=True))
    assert (answer.status, answer.body) == (200, HELLO)


def counted(case: Case, code: Code | None) -> tuple[str, ...]:
    """The samples of which one must grow."""
    if case.rejected:
        return (rejected("HTTP/3", case.rejected),)
    if case.stream or code is None:
        return ()
    name = "tls_alert" if isinstance(code, Alert) else code.name.lower().removeprefix("h3_")
    if case.hello or case.silent:
        return tuple(sample("qproxy_handshake_failures_total", transport="quic", reason=reason) for reason in (name, "excessive_load"))
    return (sample("qproxy_connection_errors_total", version="HTTP/3", error=name),)


async def provoke(case: Case, client: Raw3) -> object:
    """Do it, until the end of the connection comes if it is to come; what the last doing of it gave."""
    subject = None
    for _ in range(case.rounds):
        subject = case.act(client)
        if hasattr(subject, "__await__"):
            subject = await subject
        client.transmit()
        if case.rounds > 1:
            with suppress(ConnectionError):
                await client.ping()
        if client.terminated:
            break
    return subject


@pytest.fixture
def engine(engines):
    """The QUIC engine of this test."""
    return engine_sets.configured(engines)["quic"]


@pytest.mark.parametrize("name", CASES)
async def test_a_fault_gets_its_code_and_others_are_served_on(watch, bystander, engine, name):
    case, authority, proxy = CASES[name], watch.authority, watch.proxy
    expected = case.expected(engine)
    samples = counted(case, expected)
    before = watch.metrics() if samples else {}
    async with raw3(authority, proxy.port, control=case.control, hello=case.hello, silent=case.silent) as client:
        subject = await provoke(case, client)
        if case.stream:
            answer = await client.answer(subject)
            assert (answer.status, answer.reset) == (0, expected)
            await served(client)
        elif expected is None:
            if case.silent or case.hello:
                client.transmit()
                await client.wait_connected()
            await served(client)
        else:
            heard = await client.end()
            said = client.terminated
            assert heard == expected, f"{heard:#x}, {said}"
            assert (said.frame_type is None) == (not isinstance(expected, Quic | Alert))
    assert bystander.get(proxy.port, "/hello").status == 200
    if samples:
        watch.wait_for(lambda: any(watch.metrics().get(one, 0) > before.get(one, 0) for one in samples), f"counted one of {samples}")
    watch.check_log()


async def test_fragments_take_a_small_multiple_of_the_window_at_most(authority, proxy, bystander):
    """64 bytes at every other place, as far as the windows allow: too large to be counted as a flood of fragments, on the native engine."""
    limits = EngineLimits()
    before = proxy.rss()
    async with raw3(authority, proxy.port) as client:
        await served(client)
        for _ in range(4):
            if client.terminated:
                break
            first = client.stream(b"\1")
            for offset in range(1, limits.stream_window * 3 // 4 - 1200, 128 * 15):
                client.packet(b"".join(stream(first, offset + 128 * piece, bytes(64)) for piece in range(15)))
            with suppress(ConnectionError):
                await client.ping()
        assert proxy.rss() - before < 8 * limits.connection_window
    assert bystander.get(proxy.port, "/hello").status == 200


def test_the_page_is_up_to_date():
    path = Path(__file__).parents[2] / "docs" / "reference" / "conformance.md"
    assert path.read_text() == page.markdown(), "run: make conformance"
