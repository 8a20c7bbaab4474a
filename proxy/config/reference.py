"""The language described by itself: the reference page and the JSON Schema, made from the models and their docstrings."""

import types
from collections.abc import Iterator
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from proxy.config.diff import LIVE, NEEDS_RESTART
from proxy.config.model_server import File, Quic, Server
from proxy.config.units import shown_default

HEAD = """# Configuration reference

Made from the source by `qproxy schema --markdown`: do not edit.

`qproxy -c DIR` reads every `*.yaml` and `*.yml` file under `DIR`, in sorted order, as one configuration. `qproxy check -c DIR` says all
that is wrong with it, each with file, line and column. An unknown key is an error.

- **Durations** carry a unit: `500ms`, `30s`, `5m`, `1h`, `1d`. **Sizes** do too: `512B`, `64KiB`, `10MB`.
- **`${NAME}`** in a value is the environment variable NAME, and it is an error when that is not set; **`${NAME:-text}`** has a default;
  `$${` stands for the characters `${`. **`!file PATH`** is the content of a file without its last line break. Messages never show
  what came from either.
- **File names** are relative to the YAML file that they stand in.
- Anchors, aliases and `<<` work. Values are text until a key says otherwise: `no` is a word where a word is expected.
- **Variables** in header values and redirects: `{method}`, `{scheme}`, `{host}`, `{path}` (with its query), `{version}`,
  `{client_address}`, `{request_id}`, `{affinity_key}`, `{sni}`, `{backend}`; `{{` and `}}` are braces.
"""

EXTRA_SCHEMA = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "qproxy configuration file"}


def json_schema() -> dict[str, Any]:
    """The JSON Schema of one file. Aliases and values from ``${}`` are for the editor to resolve."""
    schema = File.model_json_schema(by_alias=True)
    definitions = schema.get("$defs", {})
    for model in models():
        shape = schema if model is File else definitions.get(model.__name__, {})
        for name, field in model.model_fields.items():
            entry = shape.get("properties", {}).get(field.alias or name)
            if entry is None:
                continue
            entry.pop("title", None)
            entry.pop("default", None)
            entry["description"] = " ".join((field.description or "").split())
            default = shown_default(field)
            if default is not None:
                entry["default"] = default
    _shorthands(definitions)
    return EXTRA_SCHEMA | schema | {"title": EXTRA_SCHEMA["title"]}


def _shorthands(definitions: dict[str, Any]) -> None:
    """Forms that the models take besides a mapping: a text for an endpoint or a redirect, ``off`` and nothing for a switch."""
    off = {"enum": [False, "off"]}
    nothing = {"type": "null"}
    forms: dict[str, list[dict[str, Any]]] = {
        "Endpoint": [{"type": "string"}],
        "Redirect": [{"type": "string"}],
        "HealthCheck": [off, nothing],
        "Passive": [off],
        "Health": [off, nothing],
        "ServerHealth": [off, nothing],
        "Admin": [off, nothing],
    }
    for name, more in forms.items():
        shape = definitions[name]
        description = shape.pop("description", "")
        definitions[name] = {"description": description, "anyOf": [shape, *more]}


def models() -> list[type[BaseModel]]:
    """All models, each once, in the order in which they are first met."""
    found: list[type[BaseModel]] = [File]
    for model in found:
        for field in model.model_fields.values():
            found.extend(below for below in _models_in(field.annotation) if below not in found)
    return found


def markdown() -> str:
    """The reference page."""
    parts = [HEAD]
    restart = needing_restart()
    for model in models():
        title = "A file" if model is File else model.__name__
        parts.append(f"\n## {title}\n\n{_text(model.__doc__)}\n\n| key | value | default | |\n|---|---|---|---|\n")
        parts += [_row(field.alias or name, field, restart=(model, name) in restart) for name, field in model.model_fields.items()]
    return "".join(parts)


def needing_restart() -> set[tuple[type[BaseModel], str]]:
    """Models and their keys of which a change takes effect with a restart only."""
    found: set[tuple[type[BaseModel], str]] = {(Server, name) for name in NEEDS_RESTART}
    wanted = [model for name in NEEDS_RESTART for model in _models_in(Server.model_fields[name].annotation)]
    for model in wanted:
        for name, field in model.model_fields.items():
            if (model, name) != (Quic, LIVE):
                found.add((model, name))
                wanted.extend(_models_in(field.annotation))
    return found


def _row(name: str, field: FieldInfo, *, restart: bool) -> str:
    default = "required" if field.is_required() else ""
    text = _text(field.description)
    if restart and "needs a restart" not in text:
        text += " A change needs a restart."
    shown = shown_default(field)
    if shown not in (None, {}, [], ""):
        default = f"`{_plain(shown)}`"
    return f"| `{name}` | {_kind(field)} | {default} | {text} |\n"


def _plain(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return f"[{', '.join(map(_plain, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_plain(item)}" for key, item in value.items()) + "}"
    return str(value)


def _kind(field: FieldInfo) -> str:
    """What may stand there, in words."""
    unit = next((item for item in field.metadata if isinstance(item, str)), None)
    text = unit or _type_name(field.annotation)
    low = next((item.ge for item in field.metadata if hasattr(item, "ge")), None)
    high = next((item.le for item in field.metadata if hasattr(item, "le")), None)
    if unit is None and low is not None and high is not None:
        text += f", {low} to {high}"
    return text


def _type_name(kind: Any) -> str:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        return " or ".join(f"`{argument}`" for argument in arguments)
    if origin in (Union, types.UnionType):
        names = [_type_name(argument) for argument in arguments if argument is not type(None)]
        return " or ".join(dict.fromkeys(names))
    if hasattr(kind, "__metadata__"):
        named = next((item for item in kind.__metadata__ if isinstance(item, str)), None)
        return named or _type_name(arguments[0])
    if origin is list:
        return f"list of {_type_name(arguments[0])}"
    if origin is dict:
        return f"mapping of {_type_name(arguments[0])} to {_type_name(arguments[1])}"
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return f"[{kind.__name__}](#{kind.__name__.lower()})"
    return {int: "whole number", float: "number", bool: "`true` or `false`", str: "text"}.get(kind, "text")


def _models_in(kind: Any) -> Iterator[type[BaseModel]]:
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        yield kind
    for argument in get_args(kind):
        yield from _models_in(argument)


def _text(text: str | None) -> str:
    """A docstring on one line, its code in Markdown's marks."""
    return " ".join((text or "").split()).replace("``", "`").replace("|", "\\|")
