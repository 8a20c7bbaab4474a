"""Fixtures of the end-to-end tests: everything is a real process or a real client, on loopback, without root."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from harness.authority import Authority
from harness.backends import Backend
from harness.proxy import Proxy


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def backends() -> Iterator[list[Backend]]:
    """Three backends, shared by the tests of a module; a test that kills one starts it again."""
    running: list[Backend] = []
    try:
        running.extend(Backend(f"backend-{number}") for number in (1, 2, 3))
        yield running
    finally:
        for backend in running:
            backend.kill()


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory, authority: Authority, backends: list[Backend]) -> Iterator[Proxy]:
    """A proxy with the default configuration, shared by the tests of a module."""
    running = Proxy(tmp_path_factory.mktemp("proxy"), authority, backends)
    try:
        yield running.start()
        running.assert_sound()
    finally:
        running.close()


@pytest.fixture
def start_proxy(tmp_path: Path, authority: Authority, backends: list[Backend]) -> Iterator[Callable[..., Proxy]]:
    """Start proxies of one's own: ``start_proxy(server={...}, sites={...}, backends=[...])``."""
    running: list[Proxy] = []

    def start(**more: Any) -> Proxy:
        proxy = Proxy(tmp_path / f"proxy-{len(running)}", authority, more.pop("backends", backends), **more)
        running.append(proxy)
        return proxy.start()

    try:
        yield start
        for proxy in running:
            proxy.assert_sound()
    finally:
        for proxy in running:
            proxy.close()
