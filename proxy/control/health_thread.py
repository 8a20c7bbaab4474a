"""The plain port for health checks in a thread of its own, for a process whose event loop serves requests as well.

A loop that is busy would keep those waiting who check. So it only says what there is to see, some times a second, as one value that never
changes; the thread answers with the last one, and nothing else is shared. Where nothing was said for long, the loop hangs: no request is
served then, and whoever checks is told so.
"""

import asyncio
import contextlib
import time
from concurrent.futures import Future
from dataclasses import dataclass
from threading import Thread

from proxy.answers import HANGS
from proxy.control.health_port import HealthPort, Page
from proxy.message import Address
from proxy.observe import Log
from proxy.policy.answer import Respond
from proxy.tasks import Tasks

SAY_EVERY = 0.25
"""Seconds: no answer is older, unless the loop is busy. To count ten thousand pools takes 12 ms of it."""

HANGS_AFTER = 5.0
"""Seconds after which what was said counts no more. A reload of thousands of sites keeps the loop for less."""


@dataclass(frozen=True, slots=True)
class _Said:
    path: bytes | None
    answer: Respond
    at: float
    """Monotonic seconds."""


class HealthThread:
    """A ``HealthPort`` that no other work keeps waiting. Its *page* is asked in the loop that starts it, and *log* in the thread too."""

    def __init__(self, address: Address, page: Page, log: Log) -> None:
        self._page = page
        self._log = log
        self._said = _Said(None, HANGS, 0.0)
        self._port = HealthPort(address, Page(lambda: self._said.path, self._answer), log)
        self._tasks = Tasks(log)
        self._thread: Thread | None = None
        self._loop: asyncio.AbstractEventLoop
        self._ending: asyncio.Event

    @property
    def address(self) -> Address:
        """The bound one after ``start``."""
        return self._port.address

    async def start(self) -> None:
        """Bind and serve; OSError when the address can't be had."""
        self.say()
        self._loop, self._ending = asyncio.SelectorEventLoop(), asyncio.Event()
        started: Future[None] = Future()
        self._thread = Thread(target=self._run, args=(started,), name="health port", daemon=True)
        self._thread.start()
        try:
            started.result()  # to bind takes no time; and a wait that could be cancelled might leave the thread behind
        except BaseException:
            self._end()
            raise
        self._tasks.start("health answer", self._say_often())

    async def stop(self) -> None:
        """Stop listening, close what is open, and end the thread."""
        await self._tasks.close()
        self._end()

    def say(self) -> None:
        """What there is to see now is the answer from here on."""
        self._said = _Said(self._page.path(), self._page.answer(), time.monotonic())

    async def _say_often(self) -> None:
        try:
            while True:
                await asyncio.sleep(SAY_EVERY)
                try:
                    self.say()
                except Exception:  # noqa: BLE001  # a fault of ours; what was said before it counts until it is too old
                    self._log.exception("no health answer could be made")
        finally:
            self._end()  # a loop that closes cancels its tasks, and there is nobody left to say anything

    def _end(self) -> None:
        thread, self._thread = self._thread, None
        if thread is not None:
            with contextlib.suppress(RuntimeError):  # closed already, where it could not start
                self._loop.call_soon_threadsafe(self._ending.set)
            thread.join()

    # In the thread

    def _run(self, started: "Future[None]") -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
                runner.run(self._serve(started))
        except BaseException as error:
            if started.done():
                raise
            started.set_exception(error)

    async def _serve(self, started: "Future[None]") -> None:
        await self._port.start()
        started.set_result(None)
        await self._ending.wait()
        await self._port.stop()

    def _answer(self) -> Respond:
        said = self._said
        return said.answer if time.monotonic() < said.at + HANGS_AFTER else HANGS
