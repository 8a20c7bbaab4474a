"""A view of the file system in which everybody may reach what a proxy needs, also where it stands in a folder that is root's own.

By mounts in a namespace of the process's own (unshare(1)): nothing changes for anybody else.
"""

import os
import shlex
import subprocess
import sys
from pathlib import Path

from harness.backends import ROOT

STASH = "/mnt"
"""A folder that nobody needs, there."""


def refused() -> str:
    """Why there can't be such a view; empty where there can."""
    if os.geteuid() != 0:
        return "only root can become somebody else"
    tried = subprocess.run(["unshare", "--mount", "true"], capture_output=True, text=True, check=False)
    return tried.stderr.strip() if tried.returncode else ""


def opened(*paths: Path) -> list[str]:
    """What to put in front of a command, so that it sees *paths*, the interpreter and the sources in folders that are open to all.

    What is in them keeps its own modes.
    """
    needed = {Path(path).resolve() for path in (*paths, ROOT, sys.prefix, sys.base_prefix)}
    closed = {path: folder for path in needed if (folder := _closed(path)) is not None}
    steps = ["set -e", "mount --make-rprivate /", f"mount -t tmpfs tmpfs {STASH}"]
    for number, path in enumerate(closed):
        steps += [f"mkdir {STASH}/{number}", f"mount --bind {shlex.quote(str(path))} {STASH}/{number}"]
    steps += [f"mount -t tmpfs -o mode=755 tmpfs {shlex.quote(str(folder))}" for folder in sorted(set(closed.values()))]
    for number, path in enumerate(closed):
        steps += [f"mkdir -p {shlex.quote(str(path))}", f"mount --bind {STASH}/{number} {shlex.quote(str(path))}"]
    return ["unshare", "--mount", "sh", "-c", "\n".join([*steps, f"cd {shlex.quote(str(ROOT))}", 'exec "$@"']), "sh"]


def _closed(path: Path) -> Path | None:
    """The outermost folder on the way to it that others can't pass."""
    return next((folder for folder in reversed(path.parents) if not folder.stat().st_mode & 0o001), None)
