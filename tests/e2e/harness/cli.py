"""The qproxy command as its users run it, to its end."""

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from harness.backends import ROOT


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str


def qproxy(*arguments: str | Path, environment: Mapping[str, str] | None = None, folder: Path | None = None, limit: float = 60) -> Ran:
    """Run ``qproxy ARGUMENTS``; it must not show a traceback, whatever it is told."""
    keep = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "LD_LIBRARY_PATH")}
    run = subprocess.run(
        [sys.executable, "-W", "error::RuntimeWarning", "-m", "proxy", *map(str, arguments)],
        capture_output=True,
        check=False,
        stdin=subprocess.DEVNULL,
        env=keep | {"PYTHONPATH": str(ROOT), "COLUMNS": "200"} | dict(environment or {}),
        cwd=folder,
        timeout=limit,
    )
    ran = Ran(run.returncode, run.stdout.decode(), run.stderr.decode())
    assert "Traceback" not in ran.out + ran.err, ran.err
    return ran
