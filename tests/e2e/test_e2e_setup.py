"""What can be missing on a fresh machine is told in one sentence: scripts/venv and scripts/debian-packages."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from harness.backends import ROOT

TOOLS = ("sh", "grep", "tail", "env", "id")


@pytest.fixture
def machine(tmp_path):
    """A PATH with the barest tools, and a way to put a program into it."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for tool in TOOLS:
        found = next(path for path in (Path("/usr/bin") / tool, Path("/bin") / tool) if path.exists())
        (folder / tool).symlink_to(found)

    def put(name: str, script: str) -> None:
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)

    return put


def run(tmp_path: Path, script: str, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [str(ROOT / "scripts" / script), *arguments],
        env={"PATH": str(tmp_path / "bin"), "HOME": str(tmp_path)} | environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_no_python_or_an_old_one(machine, tmp_path):
    machine("python3", "exit 1")
    done = run(tmp_path, "venv", "venv", ".")
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("qproxy: Python 3.11 or later is needed")


def test_no_venv_module(machine, tmp_path):
    machine("python3", 'case "$*" in *ensurepip*) exit 1;; esac')
    done = run(tmp_path, "venv", "venv", ".")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "apt-get install python3-venv" in line


def test_no_network(machine, tmp_path):
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "x"\nversion = "0"\ndependencies = ["click"]\n')
    nowhere = {"PIP_INDEX_URL": "http://127.0.0.1:9/", "PIP_RETRIES": "1", "PIP_NO_CACHE_DIR": "1", "PIP_CONFIG_FILE": os.devnull}
    done = run(tmp_path, "venv", "venv", ".", PYTHON=sys.executable, **nowhere)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("qproxy: the package index can't be reached")


def test_programs_that_are_missing_are_named_to_those_who_are_not_root(machine, tmp_path):
    if (Path("/usr/sbin") / "nginx").exists():
        expected = (
            "chromium curl nghttp2-client ngtcp2-client openssl prometheus systemd util-linux"  # /usr/sbin is looked at, whatever PATH says
        )
    else:
        expected = "chromium curl nghttp2-client ngtcp2-client nginx-light openssl prometheus systemd util-linux"
    machine("apt-get", "exit 99")
    (tmp_path / "bin" / "id").unlink()
    machine("id", "echo 1000")
    done = run(tmp_path, "debian-packages")
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        f"qproxy: please install what the tests run: sudo apt-get install --no-install-recommends {expected}"
    ]


@pytest.mark.parametrize(
    ("environment", "code"), [({}, 0), ({"CI": "true"}, 2), ({"ENGINES": "all"}, 2), ({"ENGINES": "portable"}, 0)], ids=str
)
def test_tests_without_rust_do_without_the_native_engine_and_ci_does_not(machine, tmp_path, environment, code):
    for tool in ("make", "sed", "cut", "dirname", "sort", "head"):
        (tmp_path / "bin" / tool).symlink_to(Path("/usr/bin") / tool)
    for tool in ("cmake", "g++", "git", "patch"):
        machine(tool, "exit 0")
    done = subprocess.run(
        ["make", "-s", "-C", str(ROOT), "engines"],
        env={"PATH": str(tmp_path / "bin"), "HOME": str(tmp_path), "LIBCLANG_PATH": "/"} | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == code, done.stderr
    if environment.get("ENGINES") != "portable":
        assert done.stderr.startswith("qproxy: the native engine needs Rust ")
    assert ("only the engines that are installed" in done.stdout) == (environment == {})
