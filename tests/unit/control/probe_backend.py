"""A backend for tests of probes: answers as it is told, and tells what it was asked."""

import asyncio
import contextlib

DEADLINE = 10.0
"""Seconds that a test waits for what must come; reached only by a failing one."""


def answer(status=200, body=b"OK", *, fields=b""):
    return b"HTTP/1.1 %d X\r\ncontent-length: %d\r\n%s\r\n%s" % (status, len(body), fields, body)


class ProbeBackend:
    """Serves on loopback or a unix socket. ``reply`` is bytes, or a coroutine function of the writer."""

    def __init__(self, reply=None):
        self.reply = answer() if reply is None else reply
        self.requests = []
        self.open = 0
        self.most_open = 0
        self._changed = asyncio.Condition()

    @classmethod
    @contextlib.asynccontextmanager
    async def serve(cls, reply=None, *, host="127.0.0.1", port=0, unix=None, tls=None):
        self = cls(reply)
        if unix is not None:
            server = await asyncio.start_unix_server(self._serve, unix, ssl=tls)
            self.url = f"unix:{unix}"
        else:
            server = await asyncio.start_server(self._serve, host, port, ssl=tls)
            self.port = server.sockets[0].getsockname()[1]
            self.url = f"{'https' if tls else 'http'}://{host}:{self.port}"
        self._tasks = set()
        try:
            yield self
        finally:
            server.close()
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await server.wait_closed()

    async def asked(self, count):
        """Wait until so many requests have come."""
        await self.until(lambda: len(self.requests) >= count)

    async def until(self, holds):
        async with asyncio.timeout(DEADLINE), self._changed:
            await self._changed.wait_for(holds)

    async def _serve(self, reader, writer):
        self._tasks.add(asyncio.current_task())
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            self.requests.append(head.decode())
            await self._count(1)
            try:
                if callable(self.reply):
                    await self.reply(writer)
                else:
                    writer.write(self.reply)
                    await writer.drain()
            finally:
                await self._count(-1)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self._tasks.discard(asyncio.current_task())
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _count(self, change):
        async with self._changed:
            self.open += change
            self.most_open = max(self.most_open, self.open)
            self._changed.notify_all()


def header(request, name):
    """The values of a field in a request's head."""
    return [line.partition(":")[2].strip() for line in request.split("\r\n")[1:] if line.lower().startswith(name + ":")]
