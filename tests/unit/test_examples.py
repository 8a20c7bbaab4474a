"""The configurations that people read first are right: the README's, and conf.d/ with the certificates that the demo makes."""

import re
import shutil
from pathlib import Path

import pytest

from proxy.cli import demo
from proxy.config.load import load
from proxy.demo import certificates

ROOT = Path(__file__).parents[2]


def test_the_readme_s_examples_load_together(tmp_path):
    blocks = re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len(blocks) == 2
    folder = tmp_path / "conf.d"
    folder.mkdir()
    for number, block in enumerate(blocks):
        (folder / f"{number}.yaml").write_text(block)
    configuration = load(folder, {})
    assert [site.hosts for site in configuration.sites] == [["www.example.com"]]
    assert configuration.server.listeners[0].public_port == 443
    assert configuration.warnings == ()


@pytest.fixture
def example(tmp_path):
    """conf.d/ in a folder of its own, with certificates where `qproxy demo` puts them."""
    shutil.copytree(ROOT / "conf.d", tmp_path / "conf.d")
    for host in demo.HOSTS:
        certificates.ensure(tmp_path / ".state" / "demo", host)
    return load(tmp_path / "conf.d", {})


def test_the_example_loads_without_a_warning(example):
    assert [site.hosts[0] for site in example.sites] == list(demo.HOSTS)
    assert example.warnings == ()


def test_the_example_listens_and_balances_where_the_readme_says(example):
    addresses = demo.plan(example)
    assert (addresses.public, addresses.admin, addresses.backends) == (("0.0.0.0", 8443), ("127.0.0.1", 9090), (9001, 9002, 9003))
