"""A listening socket for the process's own pages.

It accepts as listeners do, behind a gate of its own: who comes while there are no file descriptors waits in the kernel's queue until there
are some again. Knows protocols only as what it makes.
"""

import asyncio
from collections.abc import Callable

from proxy.counters import Cell
from proxy.listen.accept import Acceptor, Protocols
from proxy.listen.bind import bind_tcp
from proxy.listen.descriptors import REASON
from proxy.listen.gate import Gate
from proxy.message import Address
from proxy.observe import Log

PAUSE = 0.5
"""Seconds without accepting once there was no descriptor."""


class Port:
    """One socket. ``address`` is the bound one after ``open``."""

    def __init__(self, address: Address, make: Callable[[], asyncio.BaseProtocol], log: Log) -> None:
        """*make* gives the protocol of each connection."""
        self.address = address
        self._make = make
        self._log = log
        self._gate = Gate(Cell())
        self._acceptor: Acceptor | None = None
        self._protocols: Protocols | None = None
        self._paused: asyncio.TimerHandle | None = None
        self._out = False

    def open(self) -> None:
        """Bind and accept. Raises OSError."""
        sock = bind_tcp(self.address)
        try:
            protocols = Protocols(self._accepted, self._log)
            acceptor = Acceptor(self._gate, protocols.take, self._pause)
            acceptor.start(sock)
        except BaseException:
            sock.close()
            raise
        self._acceptor, self._protocols = acceptor, protocols
        self.address = sock.getsockname()[:2]

    async def close(self) -> None:
        """Accept no more."""
        acceptor, self._acceptor = self._acceptor, None
        if acceptor is not None and self._protocols is not None:
            acceptor.stop()
            await self._protocols.settle()
        if self._paused is not None:
            self._paused.cancel()

    def _accepted(self) -> asyncio.BaseProtocol:
        self._out = False
        return self._make()

    def _pause(self) -> None:
        self._gate.shut(REASON)
        self._paused = asyncio.get_running_loop().call_later(PAUSE, self._gate.take_back, REASON)
        if not self._out:
            self._out = True
            self._log.warning("out of file descriptors: who connects waits", address=f"{self.address[0]}:{self.address[1]}")
