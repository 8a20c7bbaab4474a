"""A nameserver of the tests' own, on loopback, over UDP and TCP: it says what a test tells it to, and keeps count."""

import asyncio
import contextlib
import threading
from collections import Counter
from typing import Any, Self, cast

import dns.flags
import dns.message
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rrset

from harness.ports import free_port

SILENT = "silent"
"""As a zone's entry: no answer at all."""

UDP_BYTES = 512
"""Of an answer over UDP; what is longer is truncated, and asked for again over TCP (RFC 7766)."""


class Nameserver:
    """``zone`` maps names to ``{"A": [...], "AAAA": [...], "SRV": [...]}``, or to an error code (``SERVFAIL``), or to SILENT.

    A name that is not there is NXDOMAIN, a type that is not there no data. A test may change ``zone`` and ``ttl`` at any time.
    """

    def __init__(self, ttl: int = 1) -> None:
        self.ttl = ttl
        self.zone: dict[str, Any] = {}
        self.asked: Counter[tuple[str, str, str]] = Counter()
        """By name, type and transport."""
        self.port = free_port()
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def count(self, name: str, kind: str = "A") -> int:
        return sum(number for (who, what, _), number in self.asked.items() if (who, what) == (name, kind))

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    def _run(self) -> None:
        with contextlib.closing(self._loop):
            self._loop.run_until_complete(self._serve())

    async def _serve(self) -> None:
        self._stop = asyncio.Event()
        transport, _ = await self._loop.create_datagram_endpoint(lambda: _Udp(self), local_addr=("127.0.0.1", self.port))
        server = await asyncio.start_server(self._tcp, "127.0.0.1", self.port)
        self._ready.set()
        await self._stop.wait()
        transport.close()
        server.close()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()

    async def _tcp(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            while True:
                size = int.from_bytes(await reader.readexactly(2))
                answer = self.answer(await reader.readexactly(size), "tcp")
                if answer is not None:
                    writer.write(len(answer).to_bytes(2) + answer)
        writer.close()

    def answer(self, packet: bytes, transport: str) -> bytes | None:
        query = dns.message.from_wire(packet)
        (question,) = query.question
        name, kind = question.name.to_text(omit_final_dot=True).lower(), dns.rdatatype.to_text(question.rdtype)
        self.asked[name, kind, transport] += 1
        response = dns.message.make_response(query)
        response.flags |= dns.flags.AA | dns.flags.RA
        found = self.zone.get(name)
        if found == SILENT:
            return None
        if found is None:
            response.set_rcode(dns.rcode.NXDOMAIN)
        elif isinstance(found, str):
            response.set_rcode(dns.rcode.from_text(found))
        elif found.get(kind) == SILENT:
            return None
        elif found.get(kind):
            response.answer.append(dns.rrset.from_text_list(question.name, self.ttl, dns.rdataclass.IN, question.rdtype, found[kind]))
        whole = response.to_wire(max_size=65535)
        if transport == "udp" and len(whole) > UDP_BYTES:
            response.answer.clear()
            response.flags |= dns.flags.TC
            return response.to_wire()
        return whole


class _Udp(asyncio.DatagramProtocol):
    def __init__(self, owner: Nameserver) -> None:
        self._owner = owner

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        answer = self._owner.answer(data, "udp")
        if answer is not None:
            self._transport.sendto(answer, addr)
