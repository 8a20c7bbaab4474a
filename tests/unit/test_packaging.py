"""What is built is whole: setuptools takes only folders that are packages, and only what pyproject.toml lists."""

import tomllib
from pathlib import Path

from setuptools import find_packages

import proxy
from proxy.cli import COMMANDS, main

ROOT = Path(__file__).parents[2]


def test_every_folder_of_sources_is_in_the_wheel():
    include = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]["include"]
    packaged = {ROOT / name.replace(".", "/") for name in find_packages(str(ROOT), include=include)}
    sources = {file.parent for top in ("proxy", "balancer") for file in (ROOT / top).rglob("*.py")}
    assert sources == packaged


def test_what_is_compiled_is_there_and_stands_once_in_order():
    compiled = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["qproxy"]["compiled"]
    assert compiled == sorted(set(compiled))
    assert not [name for name in compiled if not (ROOT / name).exists()]


def test_the_console_script_is_the_command_line():
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts == {"qproxy": "proxy.cli:main"}
    assert proxy.__version__


def test_every_command_of_the_overview_can_be_called():
    for name in COMMANDS:
        command = main.get_command(None, name)
        assert command is not None
        assert command.name == name
        assert command.help
