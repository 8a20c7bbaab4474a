"""Figures that a test has measured, for whoever runs it with ``-s`` (pytest shows them beside a failure as well)."""

import sys


def report(text: str) -> None:
    sys.stdout.write(f"{text}\n")
