"""Fixtures of the end-to-end tests: everything is a real process or a real client, on loopback, without root."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from harness import engines as engine_sets
from harness.authority import Authority
from harness.backends import Backend
from harness.fleet import Fleet
from harness.proxy import Proxy
from harness.spoken import NOTED
from harness.tier import Tier

from proxy.engine.differences import DIFFERENCES

MakeProxy: TypeAlias = Callable[..., Proxy]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "speaks(*versions): versions above HTTP/1.1 that the test speaks; it runs on each engine of theirs")
    config.addinivalue_line("markers", "workers(count): of a module, proxies have so many workers where nothing else is said (else one)")
    config.addinivalue_line("markers", "soak: takes minutes with --soak, and is shortened without")
    problems = [text for name in _wanted(config) for text in engine_sets.missing(name).values()]
    if problems and (config.getoption("engines") is not None or os.environ.get("CI") == "true"):
        msg = "\n".join(problems)
        raise pytest.UsageError(msg)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "engines" in metafunc.fixturenames:
        metafunc.parametrize("engines", _wanted(metafunc.config), indirect=True, scope="module")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    items[:], dropped = engine_sets.select(items, _wanted(config))
    config.hook.pytest_deselected(items=dropped)


def _wanted(config: pytest.Config) -> tuple[str, ...]:
    option = config.getoption("engines") or "all"
    return (engine_sets.PORTABLE, engine_sets.FAST) if option == "all" else (option,)


@pytest.fixture(scope="module")
def engines(request: pytest.FixtureRequest) -> str:
    """Which engines the proxies of this test have: ``portable`` or ``fast``."""
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def workers_per_proxy(request: pytest.FixtureRequest) -> int:
    """Workers of proxies for which the test says nothing else."""
    mark = request.node.get_closest_marker("workers")
    option: int | None = request.config.getoption("workers_per_proxy")
    return option or (mark.args[0] if mark is not None else 1)


@pytest.fixture
def differs(engines: str) -> Callable[[str], bool]:
    """Whether the engine of this test rightly does something in another way than the portable one (``engine/differences.py``)."""
    configured = engine_sets.configured(engines)
    portable = engine_sets.SETS[engine_sets.PORTABLE]

    def differs(name: str) -> bool:
        difference = DIFFERENCES[name]
        return difference.does[configured[difference.kind]] != difference.does[portable[difference.kind]]

    return differs


@pytest.fixture(scope="session")
def soaking(pytestconfig: pytest.Config) -> bool:
    """Whether the long tests run at their full length."""
    return bool(pytestconfig.getoption("soak"))


@pytest.fixture(autouse=True)
def _tells_what_it_speaks(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test that speaks HTTP/2 or HTTP/3 runs on every engine: nobody forgets to say so."""
    NOTED.clear()
    yield
    if "engines" in request.fixturenames and (forgotten := engine_sets.forgotten(request.node)):
        pytest.fail(f"this test speaks {' and '.join(sorted(forgotten))}; mark it with @pytest.mark.speaks(...)")


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


@contextmanager
def _proxies(folder: Callable[[], Path], authority: Authority, backends: list[Backend], server: dict[str, Any]) -> Iterator[MakeProxy]:
    """What makes proxies; those that were started are closed at the end, and nothing of ours went wrong in them."""
    with ExitStack() as stack:
        made: list[Proxy] = []

        def make(**more: Any) -> Proxy:
            more["server"] = server | dict(more.get("server") or {})
            proxy = Proxy(folder(), authority, more.pop("backends", backends), **more)
            stack.callback(proxy.close)
            made.append(proxy)
            return proxy

        yield make
        for proxy in made:
            proxy.assert_sound()


@pytest.fixture(scope="module")
def server_defaults(engines: str, workers_per_proxy: int) -> dict[str, Any]:
    """What the configuration of each proxy says of the server, below what the test says."""
    return {"engines": engine_sets.configured(engines), "workers": workers_per_proxy}


@pytest.fixture(scope="module")
def make_proxy(
    tmp_path_factory: pytest.TempPathFactory, authority: Authority, backends: list[Backend], server_defaults: dict[str, Any]
) -> Iterator[MakeProxy]:
    """Make proxies that the tests of a module share: ``make_proxy(server={...}, sites={...}, backends=[...]).start()``."""
    with _proxies(lambda: tmp_path_factory.mktemp("proxy"), authority, backends, server_defaults) as make:
        yield make


@pytest.fixture(scope="module")
def proxy(make_proxy: MakeProxy) -> Proxy:
    """A proxy with the default configuration, shared by the tests of a module."""
    return make_proxy().start()


@pytest.fixture
def start_proxy(
    tmp_path_factory: pytest.TempPathFactory, authority: Authority, backends: list[Backend], server_defaults: dict[str, Any]
) -> Iterator[MakeProxy]:
    """Start proxies of one's own, as ``make_proxy`` makes them."""
    with _proxies(lambda: tmp_path_factory.mktemp("proxy"), authority, backends, server_defaults) as make:
        yield lambda **more: make(**more).start()


@pytest.fixture
def start_tier(tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> Iterator[Callable[..., Tier]]:
    """Start tiers: ``start_tier([{...}], server={...})``; those that were started are closed at the end, and nothing went wrong in them."""
    with ExitStack() as stack:

        def start(l4: list[dict[str, Any]], **more: Any) -> Tier:
            tier = Tier(tmp_path_factory.mktemp("tier"), authority, l4, **more)
            stack.callback(tier.assert_sound)
            stack.callback(tier.close)
            return tier.start()

        yield start


@pytest.fixture
def fleet(make_proxy: MakeProxy, tmp_path: Path) -> Iterator[Fleet]:
    """Instances for a tier to stand in front of: ``fleet.start(51)``, and what it says of them."""
    made = Fleet(make_proxy, tmp_path)
    yield made
    made.close()
