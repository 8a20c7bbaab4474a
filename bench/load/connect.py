"""What a connection costs its server: processor time for a new one, memory for an idle one."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench import processes
from bench.load.h2load import LoadError
from bench.servers.place import Place, Running, module

SETTLE = 1.0
"""Seconds for a server to come to rest before its memory is looked at."""


def new(place: Place, server: Running, version: str, count: int, *, resume: bool) -> dict[str, float]:
    """*count* connections, one after the other, each with one GET of 1 KiB.

    ``cpu`` is the server's microseconds for each, ``rate`` how many of them fit a second of one core.
    """
    with _client(place, server, version, count, "--resume" if resume else "") as client:
        before = sum(processes.cpu_seconds(server.pids))
        told = _go(client)
        used = sum(processes.cpu_seconds(server.pids)) - before
    if resume and told["resumed"] < told["made"] * 0.9:
        msg = f"it resumes no session ({told['resumed']} of {told['made']})"
        raise LoadError(msg)
    figures = {"failed": float(told["failed"]), "connections": float(told["made"])}
    if told["made"] and used:
        figures |= {"cpu": used / told["made"] * 1e6, "rate": told["made"] / used}
    return figures


def idle(place: Place, server: Running, version: str, count: int) -> dict[str, float]:
    """*count* connections that stay, each after one GET of 1 KiB; ``bytes`` is the growth of the server's memory for each.

    At the end each is asked once more: one that has no answer has failed.
    """
    with _client(place, server, version, count, "--keep") as client:
        time.sleep(SETTLE)
        before = processes.memory_bytes(server.pids)
        told = _go(client)
        time.sleep(SETTLE)
        grown = processes.memory_bytes(server.pids) - before
        served = _go(client)["served"]
    if not told["made"]:
        msg = "no connection could be made"
        raise LoadError(msg)
    failed = told["failed"] + told["made"] - served
    return {"failed": float(failed), "connections": float(told["made"]), "bytes": grown / told["made"]}


@contextmanager
def _client(place: Place, server: Running, version: str, count: int, option: str) -> Iterator["subprocess.Popen[str]"]:
    command = [*place.pin(place.load_core), *module(Path(sys.executable), "bench.load.connections"), version]
    command += ["--port", str(server.ports[version]), "--count", str(count), *([option] if option else [])]
    client = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert client.stdout is not None
        if client.stdout.readline().strip() != "ready":
            _, errors = client.communicate()
            msg = f"the client of {version} connections failed: {errors.strip()[-200:]}"
            raise LoadError(msg)
        yield client
    finally:
        client.kill()
        client.communicate()


def _go(client: "subprocess.Popen[str]") -> dict[str, int]:
    assert client.stdin is not None
    assert client.stdout is not None
    client.stdin.write("\n")
    client.stdin.flush()
    line = client.stdout.readline()
    if not line:
        msg = "the client of connections ended early"
        raise LoadError(msg)
    told: dict[str, int] = json.loads(line)
    return told
