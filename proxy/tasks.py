"""The only place that starts tasks: each is named, owned, awaited at the end, and its failure is logged.

A bare ``asyncio.create_task`` may be collected while it runs, and its exception is shown to nobody.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any

from proxy.observe import Log


class Tasks:
    """The tasks of one owner."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._running: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._running)

    def start(self, name: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run *work* until it ends or the owner closes."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._running.add(task)
        task.add_done_callback(self._ended)
        return task

    async def close(self) -> None:
        """Cancel what still runs and wait for it."""
        running = list(self._running)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._log.error("a task failed", task=task.get_name(), exc_info=error)
