"""Fixtures of the tests in containers: an image of this tree, and a fleet of its instances. Everything is removed at the end.

QPROXY_TEST_IMAGE names an image to test instead, which stays. Needs Docker, and root's right to it; with CI=true their absence is an error.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from containers import build, fleet
from containers.balancer import UP
from containers.fleet import COMPOSE, ROOT, Fleet, wait_for
from containers.front import FourTuples, Front, Tier
from harness.authority import Authority

HOSTS = ("a.example.com", "b.example.com")
CONFIGURATION = ROOT / "deploy" / "compose" / "conf.d"
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
    """What the instances have in common, with certificates of the tests' authority: the service ``setup`` leaves them as they are.

    Their configuration is in there too, with a site more: ngtcp2's client asks addresses for localhost only.
    """
    folder = tmp_path_factory.mktemp("shared")
    shutil.copytree(CONFIGURATION, folder / "conf.d")
    site = (CONFIGURATION / "sites" / f"{HOSTS[0]}.yaml").read_text()
    (folder / "conf.d" / "sites" / "localhost.yaml").write_text(site.replace(HOSTS[0], "localhost"))
    for host in (*HOSTS, "localhost"):
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


@pytest.fixture(params=["tier", "4-tuples"])
def front(request: pytest.FixtureRequest, three: Fleet) -> Iterator[Front]:
    """The L4 tier, through a NAT; and a balancer that knows 4-tuples only. Behind each of them three healthy instances."""
    made = Tier(three) if request.param == "tier" else FourTuples(three)
    with made.way:
        wait_for(lambda: all(made.state(instance.address) == UP for instance in three.instances), f"knew all three: {made.told()}")
        yield made
