"""systemd takes the units, and finds the service well closed off."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[3] / "deploy" / "systemd"


@pytest.fixture
def units(tmp_path):
    """Copies whose program is there."""
    for file in FOLDER.iterdir():
        text = file.read_text().replace("/opt/qproxy/bin/qproxy", str(Path(sys.executable).parent / "qproxy"))
        (tmp_path / file.name).write_text(text)
    return tmp_path


def analyzed(*arguments):
    done = subprocess.run(
        ["systemd-analyze", *arguments], capture_output=True, text=True, timeout=60, check=False, env=os.environ | {"LANG": "C"}
    )
    return done.returncode, done.stdout + done.stderr


def test_systemd_understands_every_line(units):
    code, said = analyzed("verify", str(units / "qproxy.service"), str(units / "qproxy.socket"))
    about_ours = [line for line in said.splitlines() if "qproxy" in line]
    assert (code, about_ours) == (0, [])


@pytest.mark.parametrize(("drop_in", "most"), [(False, 20), (True, 25)])
def test_the_service_is_closed_off(units, drop_in, most):
    """systemd's measure goes from 0 (nothing is open) to 100; 96 is a service without any setting."""
    if drop_in:
        text = (units / "qproxy.service").read_text()
        more = (units / "workers.conf").read_text().partition("[Service]\n")[2]
        (units / "qproxy.service").write_text(text.replace("\n[Install]", f"\n{more}\n[Install]"))
    code, said = analyzed("security", "--offline=true", f"--threshold={most}", str(units / "qproxy.service"))
    assert code == 0, said.splitlines()[-1]


def test_both_units_and_the_drop_in_are_spoken_of():
    readme = (FOLDER.parent / "README.md").read_text()
    assert {file.name for file in FOLDER.iterdir()} == {"qproxy.service", "qproxy.socket", "workers.conf"}
    assert all(word in readme for word in ("qproxy.socket", "qproxy.service", "workers.conf"))
