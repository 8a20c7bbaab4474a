"""One YAML file: plain data, and where each piece of it stood.

Works on the parser's events and not on its objects, so that depth, aliases and size are bounded before anything is built. Scalars stay
text: what is a number or a switch is for the models to say, so that ``no`` and ``1.10`` mean what they look like. ``${NAME}``,
``${NAME:-default}`` and ``!file PATH`` are replaced here. Knows nothing of servers and sites.
"""

import contextlib
import hashlib
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

import yaml

from proxy.config.problem import Problem, perhaps

MAX_FILE = 16 * 1024 * 1024
"""Bytes of one YAML file, or of a file that ``!file`` names; a site has 340 in a large file of simple ones."""
MAX_DEPTH = 32
"""Mappings and sequences in each other; the language itself needs nine."""
MAX_NODES = 1_000_000
"""Values of one file with every alias counted in full: what stops a "billion laughs". A simple site has 40."""
MAX_TEXT = 32 * 1024 * 1024
"""Characters of all scalars of one file after replacement, aliases counted in full."""

Data: TypeAlias = "str | list[Data] | dict[str, Data] | None"
Step: TypeAlias = str | int
_STANDARD = "tag:yaml.org,2002:"
_NULLS = frozenset(("", "~", "null", "Null", "NULL"))
_SCALAR_TAGS = ("!", *(_STANDARD + name for name in ("str", "int", "float", "bool", "null")))
_VARIABLE = re.compile(r"\$\$\{|\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}|\$\{")
_READ: ContextVar[dict[Path, bytes] | None] = ContextVar("read", default=None)
_LOADER = getattr(yaml, "CBaseLoader", yaml.BaseLoader)


@dataclass(slots=True)
class Node:
    """Where a value stands (from 1), its keys' places, its children; ``origin``: what it was read from, when not from the file."""

    line: int
    column: int
    keys: dict[str, tuple[int, int]] = field(default_factory=dict)
    children: "dict[Step, Node]" = field(default_factory=dict)
    origin: str = ""
    """Names a variable or file; its content may be a secret and is never repeated in a message."""


@dataclass(slots=True)
class Document:
    """One file as read. ``complete`` is False when part of it could not be read."""

    file: Path
    name: str
    """As messages show it."""
    data: Data = None
    complete: bool = True
    _text: str | None = None
    _environ: Mapping[str, str] = field(default_factory=dict)
    _root: Node | None = None

    @property
    def root(self) -> Node:
        """Where everything stands: found by reading the text again, when a message first asks, so that a right file costs half."""
        if self._root is None:
            self._root = Node(1, 1) if self._text is None else _Reader(self, self._environ, places=True).read(self._text)[1]
        return self._root

    def find(self, path: Sequence[Step]) -> Node:
        """The node at *path*, or the nearest one above it."""
        node = self.root
        for step in path:
            below = node.children.get(step)
            if below is None:
                break
            node = below
        return node

    def problem(self, path: Sequence[Step], message: str, *, at_key: bool = False) -> Problem:
        """A problem placed at the value of *path* (or its key; or the nearest place above)."""
        node = self.find(path[:-1])
        if path and at_key and (place := node.keys.get(str(path[-1]))) is not None:
            return Problem(self.name, *place, message)
        node = self.find(path)
        return Problem(self.name, node.line, node.column, message)


def read_document(file: Path, name: str, environ: Mapping[str, str]) -> tuple[Document, list[Problem]]:
    """Read one YAML file. Never raises: what is wrong is in the list."""
    document = Document(file, name)
    text, reason = read_text(file)
    if text is None:
        document.complete = False
        return document, [Problem(name, 0, 0, reason)]
    reader = _Reader(document, environ, places=False)
    try:
        document.data, _ = reader.read(text)
        if not reader.problems:
            document._text, document._environ = text, environ  # noqa: SLF001
            return document, []
    except (_UnreadableError, yaml.YAMLError, ValueError):
        pass  # told by the second reading, with its place
    return document, _read_placed(document, text, environ)


def _read_placed(document: Document, text: str, environ: Mapping[str, str]) -> list[Problem]:
    """Read a text that has mistakes, and say where they stand."""
    name = document.name
    document.data = None
    document.complete = False
    reader = _Reader(document, environ, places=True)
    try:
        document.data, document._root = reader.read(text)  # noqa: SLF001
    except _UnreadableError as stop:
        return [*reader.problems, stop.problem]
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        begin = error.context_mark
        context = f" ({error.context})" if error.context else ""
        if error.context and begin and mark and (begin.line, begin.column) != (mark.line, mark.column):
            context = f" ({error.context} that begins at line {begin.line + 1}, column {begin.column + 1})"
        message = f"not valid YAML: {error.problem or 'syntax error'}{context}"
        line, column = (mark.line + 1, mark.column + 1) if mark else (0, 0)
        return [*reader.problems, Problem(name, line, column, message)]
    except (yaml.YAMLError, ValueError) as error:
        return [*reader.problems, Problem(name, 0, 0, f"not valid YAML: {str(error).splitlines()[0]}")]
    return reader.problems


def read_text(file: Path) -> tuple[str | None, str]:
    """The text of a regular file of at most ``MAX_FILE`` bytes; or None and why not."""
    data, reason = read_bytes(file)
    if data is None:
        return None, reason
    try:
        return data.decode("utf-8-sig"), ""
    except UnicodeDecodeError as error:
        return None, f"not UTF-8: byte {data[error.start]:#04x} at offset {error.start}; expected text in UTF-8"


def open_to_others(file: Path) -> bool:
    """Whether everybody on this machine may read it."""
    try:
        return bool(file.stat().st_mode & stat.S_IROTH)
    except OSError:
        return False


def digest(data: bytes | None, reason: str) -> bytes:
    """Tells contents apart, and a file that can't be read from one that can: of what ``read_bytes`` gave."""
    return hashlib.sha256(data).digest() if data is not None else b"!" + reason.encode()


@contextlib.contextmanager
def noted(read: dict[Path, bytes]) -> Iterator[None]:
    """Within it, each file that ``read_bytes`` reads is put into *read*, with its digest."""
    token = _READ.set(read)
    try:
        yield
    finally:
        _READ.reset(token)


def read_bytes(file: Path) -> tuple[bytes | None, str]:
    """The bytes of a regular file of at most ``MAX_FILE``; or None and why not. A pipe or device is refused, not waited for."""
    data, reason = _read_bytes(file)
    if (read := _READ.get()) is not None:
        read[file.absolute()] = digest(data, reason)
    return data, reason


def _read_bytes(file: Path) -> tuple[bytes | None, str]:
    try:
        descriptor = os.open(file, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    except (OSError, ValueError) as error:
        return None, f"can't be read: {getattr(error, 'strerror', None) or error}"
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            return None, "can't be read: not a regular file"
        data = os.read(descriptor, min(status.st_size, MAX_FILE) + 1)
        if len(data) != status.st_size:  # it grows, or has no size; to read MAX_FILE of every file would make a buffer of that each time
            with os.fdopen(descriptor, "rb", closefd=False) as stream:
                data += stream.read(MAX_FILE + 1 - len(data))
    except OSError as error:
        return None, f"can't be read: {error.strerror or error}"
    finally:
        os.close(descriptor)
    if len(data) > MAX_FILE:
        return None, f"too large; expected {MAX_FILE // 1024} KiB at most"
    return data, ""


class _UnreadableError(Exception):
    """Reading the file can't go on."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem


@dataclass(slots=True)
class _Built:
    """A value with its node and its size, kept for aliases."""

    data: Data
    node: Node
    nodes: int
    text: int


class _Reader:
    """Builds one document from parser events; *places*: and the nodes that say where everything stands.

    Built without, it still finds every mistake, but does not know where all of it stands.
    """

    def __init__(self, document: Document, environ: Mapping[str, str], *, places: bool) -> None:
        self.problems: list[Problem] = []
        self._document = document
        self._environ = environ
        self._places = places
        self._anchors: dict[str, _Built] = {}
        self._nodes = 0
        self._text = 0
        self._node = Node(1, 1)
        """Of the value that ``_build`` gave last; always the same one without *places*."""
        self._next: Callable[[], yaml.Event]

    def read(self, text: str) -> tuple[Data, Node]:
        loader = _LOADER(text)
        self._next = loader.get_event
        try:
            return self._document_of(), self._node
        finally:
            loader.dispose()

    def _document_of(self) -> Data:
        event = self._next()
        while isinstance(event, yaml.StreamStartEvent | yaml.DocumentStartEvent):
            event = self._next()
        if isinstance(event, yaml.StreamEndEvent):
            return None
        data = self._build(event, 0)
        after = self._next()
        if isinstance(after, yaml.DocumentEndEvent):
            after = self._next()
        if isinstance(after, yaml.DocumentStartEvent):
            self._stop(after, "a second YAML document begins here; expected one in a file: put it into a file of its own")
        return data

    def _stop(self, event: yaml.Event, message: str) -> NoReturn:
        raise _UnreadableError(self._problem(event, message))

    def _problem(self, event: yaml.Event, message: str) -> Problem:
        return Problem(self._document.name, *_place(event), message)

    def _count(self, event: yaml.Event, nodes: int, text: int) -> None:
        self._nodes += nodes
        self._text += text
        if self._nodes > MAX_NODES or self._text > MAX_TEXT:
            self._stop(event, f"too many values, aliases counted in full; expected {MAX_NODES} at most in one file")

    def _build(self, event: Any, depth: int) -> Data:
        """The value that begins with *event*. By exact types and in few calls: this runs for every value of every file."""
        kind = type(event)
        if kind is yaml.ScalarEvent:
            self._nodes += 1
            if self._places:
                self._node = Node(*_place(event))
            text: str = event.value
            if event.tag is None and event.anchor is None and "$" not in text:
                self._text += len(text)
                return None if text in _NULLS and not event.style else text
            return self._scalar(event, self._node)
        if kind is yaml.AliasEvent:
            return self._alias(event)
        if depth > MAX_DEPTH:
            self._stop(event, f"nested too deeply; expected {MAX_DEPTH} levels at most")
        nodes, length = self._nodes, self._text
        node = Node(*_place(event)) if self._places else self._node
        data: Data
        if kind is yaml.SequenceStartEvent:
            self._check_tag(event, "seq")
            data = self._sequence(node, depth)
            self._count(event, 1, 0)
        else:
            assert kind is yaml.MappingStartEvent
            self._check_tag(event, "map")
            data = self._mapping(node, depth)
            self._count(event, 1 + len(data), sum(map(len, data)))
        if event.anchor is not None:
            self._anchors[event.anchor] = _Built(data, node, self._nodes - nodes, self._text - length)
        self._node = node
        return data

    def _alias(self, event: Any) -> Data:
        anchor = event.anchor or ""
        known = self._anchors.get(anchor)
        if known is None:
            self._stop(event, f"alias *{anchor} comes before its anchor &{anchor} is complete{perhaps(anchor, self._anchors)}")
        self._count(event, known.nodes, known.text)
        self._node = known.node
        return known.data

    def _sequence(self, node: Node, depth: int) -> list[Data]:
        items: list[Data] = []
        following, places = self._next, self._places
        while type(event := following()) is not yaml.SequenceEndEvent:
            data = self._build(event, depth + 1)
            if places:
                node.children[len(items)] = self._node
            items.append(data)
        return items

    def _mapping(self, node: Node, depth: int) -> dict[str, Data]:
        entries: dict[str, Data] = {}
        merged: list[tuple[yaml.Event, Data, Node]] = []
        following, places = self._next, self._places
        while type(event := following()) is not yaml.MappingEndEvent:
            if type(event) is not yaml.ScalarEvent:
                self._stop(event, "a key is a list, a mapping or an alias; expected a text")
            key = event.value
            value_event = following()
            data = self._build(value_event, depth + 1)
            if key == "<<":
                merged.append((value_event, data, self._node))
            elif key in entries:
                line, column = node.keys.get(key, (0, 0))
                self.problems.append(self._problem(event, f"duplicate key {key!r}; it stands at line {line}, column {column} already"))
            else:
                entries[key] = data
                if places:
                    node.keys[key] = _place(event)
                    node.children[key] = self._node
        for value_event, data, place in merged:
            self._merge(value_event, data, place, entries, node)
        return entries

    def _merge(self, event: yaml.Event, value: Data, place: Node, entries: dict[str, Data], node: Node) -> None:
        """``<<: *defaults``: keys that the mapping has not itself (YAML 1.1, merge key)."""
        sources = [(value, place)]
        if isinstance(value, list):
            sources = [(item, place.children[index] if self._places else place) for index, item in enumerate(value)]
        for data, source in sources:
            if not isinstance(data, dict):
                self.problems.append(self._problem(event, "<< merges mappings only; expected an alias of a mapping"))
                continue
            for key, child in data.items():
                if key not in entries:
                    entries[key] = child
                    if self._places:
                        node.keys[key] = source.keys[key]
                        node.children[key] = source.children[key]

    def _check_tag(self, event: Any, kind: str) -> None:
        tag = event.tag
        if tag is not None and tag not in ("!", _STANDARD + kind):
            self.problems.append(self._problem(event, f"unknown tag {_tag(tag)}; expected none, or !file before the name of a file"))

    def _scalar(self, event: Any, node: Node) -> str | None:
        """A scalar with a tag, an anchor or perhaps a variable."""
        text: str = event.value
        tag = event.tag
        data: str | None = None
        if tag is not None or event.style or text not in _NULLS:
            data = _VARIABLE.sub(lambda found: self._expand(event, node, found), text)
            if tag == "!file":
                data = self._file(event, node, data)
            elif tag is not None and tag not in _SCALAR_TAGS:
                suggestion = perhaps(_tag(tag), ["!file"])
                self.problems.append(
                    self._problem(event, f"unknown tag {_tag(tag)}; expected none, or !file before the name of a file{suggestion}")
                )
        size = len(data) if data else 0
        self._count(event, 0, size)
        if event.anchor is not None:
            self._anchors[event.anchor] = _Built(data, node, 1, size)
        return data

    def _expand(self, event: yaml.ScalarEvent, node: Node, found: re.Match[str]) -> str:
        whole, (name, default) = found.group(), found.groups()
        if whole == "$${":
            return "${"
        if name is None:
            message = "${ without a variable's name and }; expected ${NAME} or ${NAME:-default}, and $${ for the characters themselves"
            self.problems.append(self._problem(event, message))
            return ""
        value = self._environ.get(name)
        if value:
            node.origin = f"${{{name}}}"
            if len(value) > MAX_FILE:
                self._stop(event, f"environment variable {name} is too long; expected {MAX_FILE} characters at most")
            self._count(event, 0, len(value))
            return value
        if default is not None:
            return str(default)
        if value is None:
            message = f"environment variable {name} is not set; expected a value, or a default as in ${{{name}:-default}}"
            self.problems.append(self._problem(event, message + perhaps(name, self._environ)))
        return ""

    def _file(self, event: yaml.ScalarEvent, node: Node, name: str) -> str:
        node.origin = f"!file {name}"
        text, reason = read_text(self._document.file.parent / name) if name else (None, "has no name")
        if text is None:
            self.problems.append(self._problem(event, f"!file {name}: {reason}"))
            return ""
        return text.removesuffix("\n").removesuffix("\r")


def _place(event: yaml.Event) -> tuple[int, int]:
    """Line and column, from 1."""
    mark = event.start_mark
    assert mark is not None
    return mark.line + 1, mark.column + 1


def _tag(tag: object) -> str:
    return str(tag).replace(_STANDARD, "!!")[:60]
