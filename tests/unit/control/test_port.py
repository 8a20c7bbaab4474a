"""A listening socket of the process's own pages, also where there are no file descriptors left."""

import asyncio
import socket

import pytest

from proxy.control import port as port_module
from proxy.control.port import Port
from proxy.observe import NullLog
from tests.unit.few_descriptors import few_descriptors


class Greeter(asyncio.Protocol):
    def connection_made(self, transport):
        transport.write(b"hello")
        transport.close()


class Remembering(NullLog):
    def __init__(self):
        self.warnings = []

    def warning(self, event, **details):
        self.warnings.append((event, details))


async def greeted(address):
    reader, writer = await asyncio.open_connection(*address)
    async with asyncio.timeout(10):
        said = await reader.read()
    writer.close()
    return said


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_those_who_come_are_served_until_it_closes(host):
    port = Port((host, 0), Greeter, NullLog())
    port.open()
    assert [await greeted(port.address) for _ in range(40)] == [b"hello"] * 40
    await port.close()
    await port.close()
    with pytest.raises(ConnectionRefusedError):
        await greeted(port.address)


async def test_an_address_that_is_in_use_is_an_os_error():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(OSError, match="in use"):
            Port(taken.getsockname(), Greeter, NullLog()).open()


async def test_without_descriptors_those_who_come_wait_and_the_loop_rests(monkeypatch):
    monkeypatch.setattr(port_module, "PAUSE", 0.05)
    log = Remembering()
    port = Port(("127.0.0.1", 0), Greeter, log)
    tries = []
    pause = port._pause
    monkeypatch.setattr(port, "_pause", lambda: (tries.append(1), pause()))
    port.open()
    clients = [socket.socket() for _ in range(3)]
    for client in clients:
        client.setblocking(False)
    with few_descriptors(0):
        for client in clients:
            await asyncio.get_running_loop().sock_connect(client, port.address)
        await asyncio.sleep(0.5)
        assert 2 <= len(tries) <= 12, "it tries again now and then, and does not spin"
        assert log.warnings == [("out of file descriptors: who connects waits", {"address": f"127.0.0.1:{port.address[1]}"})]
    async with asyncio.timeout(10):
        assert [await asyncio.get_running_loop().sock_recv(client, 9) for client in clients] == [b"hello"] * 3
    for client in clients:
        client.close()
    await port.close()
