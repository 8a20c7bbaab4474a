"""Durations and sizes, and what all parsers of values share.

A parser takes what YAML gave and returns the parsed value, or raises the error that ``wrong`` makes: it says what was expected and what was
perhaps meant. What was given is added by ``translate``, which knows whether it may be shown.
"""

import re
from collections.abc import Callable
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, WithJsonSchema
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError, PydanticUndefined

SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
BYTES = {"B": 1, "kB": 1000, "KB": 1000, "MB": 1000**2, "GB": 1000**3, "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3}
MAX_SECONDS = 366 * 86400.0
MAX_BYTES = 2**50

_AMOUNT = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,6})?) ?([A-Za-z]*)")
_OFF = ("off", "false", "no")


def wrong(expected: str, *, why: str = "is not valid", suggestion: str | None = None) -> PydanticCustomError:
    """A wrong value: *why* continues the sentence that begins with its key."""
    return PydanticCustomError("wrong", "{why}: expected {expected}", {"why": why, "expected": expected, "suggestion": suggestion})


def says(text: str, *at: str) -> PydanticCustomError:
    """A mistake in how keys go together; *at* is the path, from here, of the key to point at."""
    return PydanticCustomError("says", "{text}", {"text": text, "at": list(at)})


def is_off(value: object) -> bool:
    """Whether a key says ``off``. YAML 1.1 readers make a boolean of it; ours keeps the text."""
    return value is False or (isinstance(value, str) and value.lower() in _OFF)


def text_of(value: object, expected: str) -> str:
    """*value*, which must be text."""
    if not isinstance(value, str):
        raise wrong(expected)
    return value


def parse_duration(value: object) -> float:
    """``30s``, ``500ms``, ``5m``, ``2h``, ``1d`` in seconds."""
    expected = "a duration such as 500ms, 30s, 5m or 1h"
    found = _AMOUNT.fullmatch(text_of(value, expected))
    if found is None:
        raise wrong(expected)
    amount, unit = found.groups()
    if unit not in SECONDS:
        near = {"sec": "s", "seconds": "s", "second": "s", "min": "m", "minutes": "m", "hours": "h", "": "s"}.get(unit.lower())
        near = near or (unit.lower() if unit.lower() in SECONDS else None)
        why = "has no unit" if not unit else "has an unknown unit"
        raise wrong(expected, why=why, suggestion=f"{amount}{near}" if near else None)
    seconds = float(amount) * SECONDS[unit]
    if seconds > MAX_SECONDS:
        raise wrong("a duration of 366d at most", why="is too long")
    return seconds


def parse_positive_duration(value: object) -> float:
    """A duration above zero."""
    seconds = parse_duration(value)
    if seconds <= 0:
        raise wrong("a duration above zero")
    return seconds


def parse_duration_or_off(value: object) -> float:
    """A duration above zero, or ``off`` as 0."""
    return 0.0 if is_off(value) or value == "0" else parse_positive_duration(value)


def parse_size(value: object) -> int:
    """``512B``, ``64KiB``, ``10MB`` in bytes; a bare ``0``."""
    expected = "a size such as 512B, 64KiB or 10MB"
    if value == "0":
        return 0
    found = _AMOUNT.fullmatch(text_of(value, expected))
    if found is None:
        raise wrong(expected)
    amount, unit = found.groups()
    if unit not in BYTES:
        near = next((name for name in BYTES if unit and name.lower() in (unit.lower(), unit.lower() + "b", unit.lower() + "ib")), None)
        raise wrong(
            expected,
            why="has no unit" if not unit else "has an unknown unit",
            suggestion=f"{amount}{near or 'B'}" if near or not unit else None,
        )
    size = int(float(amount) * BYTES[unit])
    if size > MAX_BYTES:
        raise wrong("a size of 1048576GiB at most", why="is too large")
    return size


def parse_size_or_off(value: object) -> int:
    """A size, or ``off`` as 0."""
    return 0 if is_off(value) else parse_size(value)


def as_text(parse: Callable[[object], Any], kind: str, **more: object) -> tuple[BeforeValidator, WithJsonSchema, str]:
    """The annotations of a value that is written as text; *kind* names it in the reference."""
    return BeforeValidator(parse), WithJsonSchema({"type": "string", **more}), kind


def shown_default(field: FieldInfo) -> Any:
    """A field's default as one would write it; None when there is none to show."""
    value = field.get_default(call_default_factory=True, validated_data={})
    if value is PydanticUndefined or value is None or (isinstance(value, BaseModel) and not value.model_fields_set):
        return None
    kind = next((item for item in field.metadata if isinstance(item, str)), "")
    if kind.endswith("off") and value == 0:
        return "off"
    if kind.startswith("duration"):
        return next((f"{value / size:g}{unit}" for unit, size in reversed(SECONDS.items()) if value % size == 0), f"{value:g}s")
    if kind.startswith("size"):
        return next(f"{value // size}{unit}" for unit, size in reversed(BYTES.items()) if value % size == 0)
    return _written(value)


def _written(value: Any) -> Any:
    if isinstance(value, list):
        return [_written(item) for item in value]
    if isinstance(value, BaseModel):
        return {name: _written(getattr(value, name)) for name in sorted(value.model_fields_set)}
    if isinstance(value, tuple):
        first, second = value
        return f"{first}:{second}" if isinstance(first, str) else f"{first}-{second}"
    return value


_DURATION = r"^[0-9]+(\.[0-9]+)? ?(ms|s|m|h|d)$"
_SIZE = r"^([0-9]+(\.[0-9]+)? ?(B|kB|KB|MB|GB|KiB|MiB|GiB)|0)$"
_SIZES_OR_OFF = {"anyOf": [{"type": "string", "pattern": _SIZE}, {"enum": [0, False, "off"]}]}
_DURATIONS_OR_OFF = {"anyOf": [{"type": "string", "pattern": _DURATION}, {"enum": [0, False, "off"]}]}

Duration = Annotated[float, *as_text(parse_positive_duration, "duration", pattern=_DURATION)]
DurationOrOff = Annotated[float, BeforeValidator(parse_duration_or_off), WithJsonSchema(_DURATIONS_OR_OFF), "duration or off"]
Size = Annotated[int, *as_text(parse_size, "size", pattern=_SIZE)]
SizeOrOff = Annotated[int, BeforeValidator(parse_size_or_off), WithJsonSchema(_SIZES_OR_OFF), "size or off"]
