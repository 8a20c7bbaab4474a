"""Runs a few programs as one: all live, or all end, and none stays behind.

Each child gets a session of its own, so that Ctrl-C reaches only us and we decide the order of the end; on Linux the kernel also ends it
should we die without a word (PR_SET_PDEATHSIG). Knows nothing of what it runs.
"""

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

PR_SET_PDEATHSIG = 1
"""From <linux/prctl.h>."""

GRACE = 10.0
"""Seconds that a child has to end after SIGTERM, before SIGKILL."""


@dataclass(frozen=True, slots=True)
class Program:
    """One child: its name in messages, and its command."""

    name: str
    command: Sequence[str]


class ChildEnded(Exception):  # noqa: N818  # an outcome that ends the whole, not always an error of ours
    """A child ended that was to go on. ``code`` as a shell would give it."""

    def __init__(self, name: str, code: int) -> None:
        super().__init__(f"{name} ended with exit code {code}")
        self.code = code


Child: TypeAlias = tuple[Program, asyncio.subprocess.Process]


async def run(programs: Sequence[Program], started: Callable[[int], Awaitable[None]], ready: Callable[[], None]) -> int:
    """Start *programs* in turn, awaiting ``started(index)`` after each; call *ready*; then wait for a signal or for the first to end.

    Then end all, the last started first; a second signal ends them at once. Returns 0 after a signal. Raises ChildEnded, OSError
    where a program can't be started, and what *started* raises.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, stop.set)
    children: list[Child] = []
    try:
        for index, program in enumerate(programs):
            children.append((program, await _start(program)))
            if not await _unless_ended(started(index), stop, children):
                return 0
        ready()
        await _unless_ended(stop.wait(), stop, children)
        return 0
    finally:
        stop.clear()
        for _, child in reversed(children):
            await _end(child, stop)


async def _unless_ended(work: Awaitable[object], stop: asyncio.Event, children: Sequence[Child]) -> bool:
    """Await *work*: True when it is done, False if *stop* comes first. Raises ChildEnded if a child ends before both."""
    working = asyncio.ensure_future(work)
    stopping = asyncio.ensure_future(stop.wait())
    ends = [(asyncio.ensure_future(child.wait()), program) for program, child in children]
    try:
        await asyncio.wait([working, stopping, *(end for end, _ in ends)], return_when=asyncio.FIRST_COMPLETED)
        if stopping.done():
            return False
        for end, program in ends:
            if end.done():
                code = end.result()
                raise ChildEnded(program.name, code if code >= 0 else 128 - code)
        await working
        return True
    finally:
        pending = [working, stopping, *(end for end, _ in ends)]
        for future in pending:
            future.cancel()
        await asyncio.gather(*pending, return_exceptions=True)


async def _start(program: Program) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *program.command, stdin=asyncio.subprocess.DEVNULL, start_new_session=True, preexec_fn=_die_with_parent
    )


_libc = ctypes.CDLL(None) if sys.platform == "linux" else None  # loaded here: nothing may be loaded between fork and exec


def _die_with_parent() -> None:
    if _libc is not None:
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


async def _end(child: asyncio.subprocess.Process, hurry: asyncio.Event) -> None:
    """SIGTERM, then SIGKILL after ``GRACE`` or as soon as *hurry* is set: to the whole session of the child."""
    if child.returncode is None:
        _signal(child, signal.SIGTERM)
        ending = asyncio.ensure_future(child.wait())
        hurrying = asyncio.ensure_future(hurry.wait())
        await asyncio.wait([ending, hurrying], timeout=GRACE, return_when=asyncio.FIRST_COMPLETED)
        hurrying.cancel()
        _signal(child, signal.SIGKILL)
        await ending
    else:
        _signal(child, signal.SIGKILL)  # what it may have started and left


def _signal(child: asyncio.subprocess.Process, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, number)
