"""Pydantic's errors in our words, each at the line and column where the mistake stands.

A message says which key, what is wrong, what was given, what was expected, and what was perhaps meant. A value that came from the
environment or from a file is named, not shown: it may be a secret.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from proxy.config.problem import Problem, perhaps, shown
from proxy.config.source import Document, Step

_TYPES = {
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing_size": "a whole number",
    "float_parsing": "a number",
    "float_type": "a number",
    "finite_number": "a number",
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "string_type": "a text",
    "list_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
}


def validate(model: type[BaseModel], document: Document) -> tuple[BaseModel | None, list[Problem]]:
    """The document as *model*, or its mistakes."""
    data = {} if document.data is None else document.data
    try:
        return model.model_validate(data), []
    except ValidationError as error:
        return None, [_problem(model, document, details) for details in error.errors(include_url=False)]


def _problem(model: type[BaseModel], document: Document, details: ErrorDetails) -> Problem:
    kind, context = details["type"], details.get("ctx", {})
    at_key = details["loc"][-1:] == ("[key]",)
    path = _path(document, details["loc"])
    if kind == "extra_forbidden":
        word = str(path[-1])
        known = _keys(model, path[:-1])
        near = perhaps(word, known)
        message = f"unknown key {shown(word)}" + (near or f"; expected one of {', '.join(known)}")
        return document.problem(path, message, at_key=True)
    if kind == "missing":
        where = f" in {_name(path)!r}" if path else ""
        return document.problem(path, f"key {str(details['loc'][-1])!r} is missing{where}; it is required")
    if kind == "says":
        target = [*path, *(int(step) if step.isdigit() else step for step in context["at"])]
        return document.problem(target, context["text"], at_key=bool(target) and not isinstance(target[-1], int))
    subject = "the file" if not path else repr(_name(path))
    given = document.find(path).origin if not at_key else ""
    got = f"the content of {given}" if given else shown(str(path[-1]) if at_key else _value(document, path))
    why, expected, suggestion = _explain(kind, context, details, got if not given else "")
    if given:
        why, suggestion = "is not valid", None
    message = f"{subject} {why}: got {got}, expected {expected}" + (f"; perhaps you meant {suggestion!r}" if suggestion else "")
    return document.problem(path, message, at_key=at_key)


def _explain(kind: str, context: Mapping[str, Any], details: ErrorDetails, got: str) -> tuple[str, str, str | None]:
    """What is wrong, what was expected, what was perhaps meant."""
    if kind == "wrong":
        return context["why"], context["expected"], context["suggestion"]
    if kind == "literal_error":
        words = [word.strip().strip("'") for word in context["expected"].replace(" or ", ", ").split(",")]
        near = perhaps(got.strip("'"), words)
        return "is not valid", f"one of {', '.join(words)}", near.partition("'")[2].rstrip("'") or None
    if kind in _TYPES:
        return "is not valid", _TYPES[kind], None
    bounds = {
        "greater_than_equal": ("is too small", "{ge} or more"),
        "less_than_equal": ("is too large", "{le} at most"),
        "too_short": ("is too short", "{min_length} at least"),
        "too_long": ("is too long", "{max_length} at most"),
        "string_too_short": ("is too short", "{min_length} characters at least"),
        "string_too_long": ("is too long", "{max_length} characters at most"),
    }
    if kind in bounds:
        why, expected = bounds[kind]
        return why, expected.format(**context), None
    return "is not valid", str(details["msg"]).removeprefix("Input should be "), None


def _path(document: Document, location: Sequence[Step]) -> list[Step]:
    """The part of pydantic's location that stands in the file: names of union members and the like are not steps."""
    node, path = document.root, list[Step]()
    for step in location:
        below = node.children.get(step)
        if below is not None:
            node = below
            path.append(step)
    return path


def _value(document: Document, path: Sequence[Step]) -> object:
    data: Any = document.data
    for step in path:
        data = data[step]
    return data


def _name(path: Sequence[Step]) -> str:
    """``routes[0].pool``, without what every path begins with."""
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}"
    return text.removeprefix(".")


def _keys(model: type[BaseModel], path: Sequence[Step]) -> list[str]:
    """The keys that are known at *path* of *model*."""
    kinds: list[Any] = [model]
    for step in path:
        kinds = [below for kind in kinds for below in _below(kind, step)]
    return [field.alias or name for kind in kinds if _is_model(kind) for name, field in kind.model_fields.items()]


def _below(kind: Any, step: Step) -> list[Any]:
    """The types that may stand at *step* of a value of the type *kind*."""
    if not _is_model(kind):
        arguments = getattr(kind, "__args__", ())
        return [member for argument in arguments[-1:] for member in _members(argument)]
    for name, field in kind.model_fields.items():
        if step == (field.alias or name):
            return _members(field.annotation)
    return []


def _members(kind: Any) -> list[Any]:
    """A union's members, else the type itself; without annotations."""
    if hasattr(kind, "__metadata__"):
        return _members(kind.__origin__)
    if type(kind).__name__ in ("UnionType", "_UnionGenericAlias", "Union"):
        return [part for member in kind.__args__ for part in _members(member)]
    return [kind]


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)
