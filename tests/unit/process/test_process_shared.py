"""Workers with a store of their own making for what instances share: nothing else has to know that it is no file."""

import base64
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import pytest
import yaml

from proxy.config.load import Configuration, load
from proxy.config.material import self_signed
from proxy.control.log import Logs, LogSettings
from proxy.keys import Key, KeySet, Purpose
from proxy.listen.bind import bind_udp
from proxy.message import Address
from proxy.observe import Metrics
from proxy.process.naming import Naming
from proxy.process.worker import Shared, Sockets, Worker
from tests.unit.listen.edge import until

LOOPBACK = "127.0.0.1"


class Store:
    """In memory, for all instances: who writes to it tells all of them."""

    def __init__(self) -> None:
        self.keys = KeySet((Key(1, 0.0, b"1" * 32),), b"r" * 32)
        self.peers: Sequence[Address] = []
        self.has_peers = True
        self.followed: list[Configuration] = []
        self._changed: list[Callable[[], None]] = []

    def keys_with(self, configuration: Configuration) -> KeySet:
        del configuration
        return self.keys

    def follow(self, configuration: Configuration) -> None:
        self.followed.append(configuration)

    def tell(self, changed: Callable[[], None]) -> None:
        self._changed.append(changed)

    def write(self, *, keys: KeySet | None = None, peers: Sequence[Address] | None = None) -> None:
        self.keys, self.peers = keys or self.keys, self.peers if peers is None else peers
        for changed in self._changed:
            changed()


@contextlib.asynccontextmanager
async def serving(folder: Path, server_id: str) -> AsyncIterator[tuple[Worker, Address]]:
    """A worker that serves HTTP/3 on loopback, and the address of its envelopes."""
    udp, envelopes = (bind_udp((LOOPBACK, 0)) for _ in range(2))
    hears = envelopes.getsockname()
    home = folder / server_id
    home.mkdir()
    server = {
        "listeners": [{"address": f"{LOOPBACK}:{udp.getsockname()[1]}", "protocols": ["h3"]}],
        "state": str(home / "state"),
        "cluster": {"key": f"9 2026-01-01T00:00:00Z {base64.b64encode(bytes(32)).decode()}", "address": f"{LOOPBACK}:{hears[1]}"},
        "quic": {"connection_ids": {"server_id": server_id}},
        "engines": {"quic": "aioquic"},
    }
    (home / "qproxy.yaml").write_text(yaml.safe_dump({"server": server}))
    configuration = load(home / "qproxy.yaml", {})
    metrics = Metrics()
    worker = Worker(
        configuration, Shared(b"s" * 32, self_signed(("localhost",))), metrics, Logs(LogSettings(access=False, level="error"), metrics)
    )
    async with contextlib.AsyncExitStack() as stack:
        await worker.open(stack, [Sockets(None, udp)], envelopes)
        yield worker, hears


async def test_a_worker_takes_keys_and_peers_from_whatever_store_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store()
    monkeypatch.setattr(Naming, "cluster", lambda *_: store)
    async with serving(tmp_path, "a1") as (one, its), serving(tmp_path, "b2") as (two, other):
        both = (one, two)
        assert len(store.followed) == 2

        def lives(worker: Worker, server_id: str) -> bool:
            assert worker._envelopes is not None
            return worker._envelopes.lives(bytes.fromhex(server_id))

        def heard(worker: Worker) -> float:
            """HELLOs of the other one so far."""
            return worker._services.meters.envelopes.cell("in", "hello").value

        assert [worker._epoch for worker in both] == [1, 1]
        assert not lives(one, "b2")
        store.write(peers=[its, other])
        await until(lambda: lives(one, "b2") and lives(two, "a1"))
        secrets = {worker._services.secret for worker in both}
        assert len(secrets) == 1

        store.write(keys=KeySet((*store.keys.keys, Key(2, time.time() - 1, b"2" * 32)), store.keys.ring))
        assert [worker._epoch for worker in both] == [2, 2]
        assert {worker._services.secret for worker in both} == {one._keys.derive(Purpose.HASH, 2)} != secrets
        before = [heard(worker) for worker in both]
        await until(lambda: all(heard(worker) > count for worker, count in zip(both, before, strict=True)))

        store.write(peers=[its])
        assert one._envelopes is not None
        assert [(peer.address, peer.unlisted) for peer in one._envelopes.peers.others()] == [(other, True)]
