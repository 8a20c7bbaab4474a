"""What is wrong with a configuration, and where: the only error that reading one may raise."""

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches

SHOWN = 60
"""Characters of a wrong value that a message repeats, at most."""


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """One mistake, or one thing to be warned of. Line and column count from 1; 0 when the whole file or folder is meant."""

    file: str
    line: int
    column: int
    message: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}:{self.column}" if self.line else self.file
        return f"{place}: {self.message}"


class ConfigError(Exception):
    """All mistakes of a configuration, in the order of files and lines."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = sorted(set(problems))
        super().__init__("\n".join(map(str, self.problems)))


def perhaps(word: str, known: Iterable[str]) -> str:
    """``; perhaps you meant 'x'`` for the nearest known word, or nothing."""
    near = get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; perhaps you meant {near[0]!r}" if near else ""


def shown(value: object) -> str:
    """A wrong value as messages repeat it: bounded, and nothing in it reaches a terminal raw."""
    if value is None:
        return "nothing"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    text = str(value)
    return repr(text) if len(text) <= SHOWN else f"{text[:SHOWN]!r}..."
