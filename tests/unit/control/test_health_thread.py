"""The plain port in a thread of its own: it answers while the loop that serves is really blocked, and goes with it.

``asked`` blocks: in an async test it is what keeps the loop from turning, until the port has answered.
"""

import asyncio
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from contextlib import asynccontextmanager, suppress

import pytest

from proxy.answers import DRAINING, HANGS, OVERLOADED, POOLS_DOWN, READY
from proxy.control import health_thread
from proxy.control.health_port import Page
from proxy.control.health_thread import HealthThread
from proxy.observe import NullLog
from tests.unit.few_descriptors import few_descriptors


class Shown:
    """What there is to see; ``answer`` may be a fault."""

    def __init__(self):
        self.path, self.answer = b"/health", READY
        self.looked_at_in = set()

    def page(self):
        return Page(lambda: self.path, self._look)

    def _look(self):
        self.looked_at_in.add(threading.current_thread())
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def asked(port, path="/health"):
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://127.0.0.1:{port.address[1]}{path}", timeout=10) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def said(answer):
    return answer.status, answer.body


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "health port"]


@asynccontextmanager
async def serving(shown):
    port = HealthThread(("127.0.0.1", 0), shown.page(), NullLog())
    await port.start()
    try:
        yield port
    finally:
        await port.stop()
        assert not threads()


async def becomes(port, answer):
    async with asyncio.timeout(10):
        while asked(port) != said(answer):
            await asyncio.sleep(0.01)


async def test_it_answers_while_the_loop_is_blocked_with_what_was_said_last():
    shown = Shown()
    async with serving(shown) as port:
        assert [asked(port) for _ in range(20)] == [said(READY)] * 20
        assert asked(port, "/")[0] == 404
        shown.answer = DRAINING
        assert asked(port) == said(READY), "the loop has not turned since"
        assert shown.looked_at_in == {threading.current_thread()}, "nothing of the loop's is looked at in the thread"


async def test_what_the_loop_sees_is_said_by_itself_and_at_once_on_a_word(monkeypatch):
    monkeypatch.setattr(health_thread, "SAY_EVERY", 0.01)
    shown = Shown()
    async with serving(shown) as port:
        shown.answer = OVERLOADED
        await becomes(port, OVERLOADED)
        shown.answer = POOLS_DOWN
        port.say()
        assert asked(port) == said(POOLS_DOWN)
        shown.path = None
        port.say()
        assert asked(port)[0] == 404


async def test_a_loop_that_hangs_is_told_of_until_it_turns_again(monkeypatch):
    monkeypatch.setattr(health_thread, "HANGS_AFTER", 1.0)
    async with serving(Shown()) as port:
        assert asked(port) == said(READY)
        end = time.monotonic() + 10
        while (answer := asked(port)) == said(READY) and time.monotonic() < end:
            time.sleep(0.02)
        assert answer == said(HANGS)
        assert answer[0] == 503
        await becomes(port, READY)


async def test_a_fault_of_ours_is_told_and_ends_nothing(monkeypatch):
    monkeypatch.setattr(health_thread, "SAY_EVERY", 0.01)

    class Remembering(NullLog):
        told = asyncio.Event()

        def exception(self, event, **details):
            self.told.set()

    shown, log = Shown(), Remembering()
    port = HealthThread(("127.0.0.1", 0), shown.page(), log)
    await port.start()
    shown.answer = ValueError()
    async with asyncio.timeout(10):
        await log.told.wait()
    assert asked(port) == said(READY)
    shown.answer = DRAINING
    await becomes(port, DRAINING)
    await port.stop()


async def test_silent_connections_don_t_keep_it_from_ending():
    async with serving(Shown()) as port:
        reader, writer = await asyncio.open_connection(*port.address)
        assert asked(port) == said(READY)
    with pytest.raises(OSError, match="refused"):
        asked(port)
    async with asyncio.timeout(10):
        with suppress(ConnectionError):
            assert await reader.read() == b""
    writer.close()
    await port.stop()


async def test_a_start_that_fails_says_why_leaves_nothing_and_can_be_tried_again():
    async with serving(Shown()) as other:
        port = HealthThread(other.address, Shown().page(), NullLog())
        for _ in range(2):
            with pytest.raises(OSError, match="in use"):
                await port.start()
            assert len(threads()) == 1, "of the other one"
        await port.stop()
    await port.start()
    assert asked(port) == said(READY)
    await port.stop()


async def test_where_the_loop_takes_the_last_descriptors_it_does_not_start():
    port = HealthThread(("127.0.0.1", 0), Shown().page(), NullLog())
    with few_descriptors(3), pytest.raises(OSError, match="Too many open files"):
        await port.start()
    assert not threads()


def test_a_loop_that_closes_leaves_no_thread():
    port = HealthThread(("127.0.0.1", 0), Shown().page(), NullLog())

    async def begin():
        await port.start()
        await asyncio.sleep(0)

    asyncio.run(begin())
    assert not threads()


PROGRAM = """
import asyncio, sys
from proxy.answers import READY
from proxy.control.health_port import Page
from proxy.control.health_thread import HealthThread
from proxy.observe import NullLog

async def main():
    port = HealthThread(("127.0.0.1", 0), Page(lambda: b"/health", lambda: READY), NullLog())
    await port.start()
    reader, writer = await asyncio.open_connection(*port.address)
    writer.write(b"GET /health HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n")
    print(await reader.readuntil(b"OK"))
    writer.close()
    {end}

asyncio.run(main())
"""


@pytest.mark.parametrize(("end", "code"), [("await port.stop()", 0), ("return", 0), ("sys.exit(3)", 3)])
def test_a_process_that_ends_says_nothing_of_it(end, code):
    ended = subprocess.run([sys.executable, "-c", PROGRAM.replace("{end}", end)], capture_output=True, timeout=30, check=False)
    assert (ended.returncode, ended.stderr) == (code, b"")
    assert b" 200 " in ended.stdout
