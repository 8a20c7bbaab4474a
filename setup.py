"""The compiled build: with QPROXY_COMPILED=1 a wheel has the modules of ``[tool.qproxy] compiled`` as machine code, by mypyc.

Everything else about the package is in pyproject.toml. The sources stay in the wheel: what is compiled is a faster form of the very same
code. An editable installation is never compiled, so that no stale extension can stand beside a source that somebody edits.
"""

import os
import sys
import tomllib
from pathlib import Path

from setuptools import setup

UNCOMPILED = {"develop", "editable_wheel", "egg_info", "dist_info", "sdist"}
"""Commands that build nothing, and those of an editable installation."""

settings = tomllib.loads(Path("pyproject.toml").read_text())["tool"]["qproxy"]
wanted = os.environ.get("QPROXY_COMPILED") == "1"
if wanted and UNCOMPILED.isdisjoint(sys.argv):
    from mypyc.build import mypycify  # only here: nobody else needs it

    # The types of dependencies are not needed for it, and an isolated build has none of them; `make types` is what checks.
    options = ["--ignore-missing-imports", "--no-warn-return-any", "--no-warn-unused-ignores", "--allow-subclassing-any"]
    options += ["--allow-untyped-decorators"]
    level = os.environ.get("QPROXY_OPTIMIZE", "3")  # 0 compiles in half the time, for tests
    extensions = mypycify([*options, *settings["compiled"]], opt_level=level, debug_level="0", strip_asserts=False)
else:
    extensions = []

setup(ext_modules=extensions, setup_requires=settings["compiler"] if wanted else [])
