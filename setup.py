"""The optional compiled build: with QPROXY_COMPILED=1 a wheel has the modules of ``[tool.qproxy] compiled`` as machine code, by mypyc.

Everything else about the package is in pyproject.toml. The sources stay in the wheel: what is compiled is a faster form of the very same
code. An editable installation is never compiled, so that no stale extension can stand beside a source that somebody edits.
"""

import os
import sys
import tomllib
from pathlib import Path

from setuptools import setup

EDITABLE = {"develop", "editable_wheel"}

if os.environ.get("QPROXY_COMPILED") == "1" and EDITABLE.isdisjoint(sys.argv):
    from mypyc.build import mypycify  # only here: nobody else needs it

    settings = tomllib.loads(Path("pyproject.toml").read_text())
    extensions = mypycify(settings["tool"]["qproxy"]["compiled"], opt_level="3", debug_level="0", strip_asserts=False)
else:
    extensions = []

setup(ext_modules=extensions)
