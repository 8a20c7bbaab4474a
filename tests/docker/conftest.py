"""Fixtures of the tests in containers: an image of this tree, and a fleet of its instances. Everything is removed at the end.

QPROXY_TEST_IMAGE names an image to test instead, which stays. Needs Docker, and root's right to it; with CI=true their absence is an error.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from containers import build, fleet
from containers.balancer import Balancer
from containers.fleet import COMPOSE, TIER, Fleet
from harness.authority import Authority

HOSTS = ("a.example.com", "b.example.com")
USER = 10001
"""Of the containers."""


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "speaks(*versions): the same word as in tests/e2e; here the image says which engines serve")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    problem = _missing()
    if problem and os.environ.get("CI") == "true":
        raise pytest.UsageError(problem)
    for item in items if problem else ():
        item.add_marker(pytest.mark.skip(reason=problem))


def _missing() -> str:
    if not COMPOSE.exists():
        return f"{COMPOSE} is not there: make test-docker installs it"
    if shutil.which("docker") is None or subprocess.run(["docker", "info"], capture_output=True, check=False).returncode:
        return "no Docker Engine answers here: tests/docker needs one, and the right to use it"
    return ""


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    given = os.environ.get("QPROXY_TEST_IMAGE")
    if given:
        yield given
        return
    try:
        yield build.build(tmp_path_factory.mktemp("context"))
    finally:
        build.clean()


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> Path:
    """What the instances have in common, with certificates of the tests' authority: the service ``setup`` leaves them as they are."""
    folder = tmp_path_factory.mktemp("shared")
    for host in HOSTS:
        chain, key = authority.issue(host, f"*.{host}")
        (folder / f"{host}.pem").write_bytes(chain.read_bytes() + key.read_bytes())
        os.chown(folder / f"{host}.pem", USER, USER)
    os.chown(folder, USER, USER)
    for parent in folder.parents[:-1]:
        if parent.stat().st_uid == os.getuid() and parent != Path(parent.anchor):
            parent.chmod(parent.stat().st_mode | 0o011)  # pytest's folders are for their owner only
    return folder


@pytest.fixture(scope="session")
def stand(image: str, shared: Path) -> Iterator[Fleet]:
    made = Fleet(image, shared)
    made.down()  # what an earlier run may have left
    try:
        yield made
    finally:
        made.down()
        fleet.run("rm", "-rf", shared)  # partly the containers' user's


@pytest.fixture
def three(stand: Fleet) -> Fleet:
    """A fleet of three healthy instances."""
    stand.up(3)
    return stand


@dataclass(frozen=True, slots=True)
class Front:
    """What clients connect to, on loopback, and who watches the instances behind it."""

    way: Balancer
    watch: Balancer

    @property
    def port(self) -> int:
        return self.way.port

    @property
    def deals(self) -> bool:
        """Whether it deals clients to the instances by itself."""
        return self.way is self.watch


@pytest.fixture(params=["tier", "4-tuples"])
def front(request: pytest.FixtureRequest, balancer: Balancer) -> Iterator[Front]:
    """The L4 tier, through a NAT; and a balancer that knows 4-tuples only."""
    if request.param == "tier":
        with Balancer([TIER], checks=False) as nat:
            yield Front(nat, balancer)
    else:
        yield Front(balancer, balancer)


@pytest.fixture
def balancer(three: Fleet) -> Iterator[Balancer]:
    """One that knows 4-tuples only, before the three."""
    with Balancer(instance.address for instance in three.instances) as made:
        yield made
