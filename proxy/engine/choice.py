"""Which engines there are, which of them are installed here, and which one serves.

Knows where each engine lives and what has to be installed for it. Imports an engine when it is asked for and not before: one whose
library is absent costs nothing and breaks nothing. Must not know how an engine works, nor who asks.
"""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from types import ModuleType
from typing import Any, Literal, Protocol, TypeAlias

from proxy.engine.quic.settings import CERTIFICATE_COMPRESSIONS, QuicSettings
from proxy.engine.quic.tickets import Tickets
from proxy.engine.seam import Connection, Endpoint, EngineLimits, Handle, Select, Tracer
from proxy.keys import Keyring
from proxy.message import Address

Kind: TypeAlias = Literal["h2", "quic"]
"""What an engine is for: the keys of ``server.engines``."""

KINDS: tuple[Kind, ...] = ("h2", "quic")

AUTO = "auto"

AUTO_H2 = ("ngh2", "h2")
"""What ``h2: auto`` takes, the first that is installed. How ngh2 earned its place: docs/design/2026-11-23-ngh2.md."""

AUTO_QUIC = ("native", "aioquic")
"""The same for ``quic: auto``."""


@dataclass(frozen=True, slots=True)
class Engine:
    """One engine. Its module may say in ``LIBRARIES`` (name to version) which libraries are built into it."""

    kind: Kind
    name: str
    module: str
    attribute: str
    """The class."""
    distributions: tuple[str, ...]
    """The installed packages that it is made of, for ``qproxy --version``."""
    install: str
    """What to do where it is missing."""
    congestion_controls: tuple[str, ...] = ()
    """Values of ``congestion_control`` besides auto; QUIC only."""
    certificate_compressions: tuple[str, ...] = ()
    """Values of ``certificate_compression``; QUIC only."""
    discovers_mtu: bool = False
    """It looks for the largest datagrams that a path carries; QUIC only."""

    def load(self) -> Any:
        """The class. Raises ImportError where it is not installed."""
        return getattr(self._module(), self.attribute)

    def why_missing(self) -> str | None:
        """None when it can be used, else what the import said."""
        try:
            self.load()
        except ImportError as error:
            return str(error)
        return None

    def versions(self) -> dict[str, str]:
        """Library to version. The engine must be installed."""
        return {name: _version(name) for name in self.distributions} | getattr(self._module(), "LIBRARIES", {})

    def _module(self) -> ModuleType:
        return importlib.import_module(self.module)

    def __str__(self) -> str:
        """``name (library version, ...)``."""
        return f"{self.name} ({', '.join(f'{name} {version}' for name, version in self.versions().items())})"


ENGINES = (
    Engine("h2", "h2", "proxy.engine.h2", "H2Connection", ("h2", "hpack"), "pip install h2"),
    Engine("h2", "ngh2", "proxy.engine.h2_ngh2", "Ngh2Connection", ("ngh2",), "pip install ngh2"),
    Engine("quic", "aioquic", "proxy.engine.quic.endpoint", "QuicEndpoint", ("aioquic",), "pip install aioquic", ("cubic", "reno")),
    Engine(
        "quic",
        "native",
        "proxy.engine.quic.native",
        "NativeEndpoint",
        ("qproxy-native",),
        "make native (in a clone), or install the wheel qproxy-native",
        ("bbr", "cubic", "reno"),
        CERTIFICATE_COMPRESSIONS,
        discovers_mtu=True,
    ),
)

MakeH2: TypeAlias = Callable[[EngineLimits], Connection]
"""Makes the engine of one HTTP/2 connection."""


class MakeQuic(Protocol):
    """Makes the QUIC engine of one listener; ``engine/quic/endpoint.py`` says what each argument is."""

    def __call__(  # noqa: PLR0913  # the signature that the engines share
        self,
        select: Select,
        limits: EngineLimits,
        settings: QuicSettings,
        keys: Keyring,
        *,
        random_bytes: Callable[[int], bytes],
        admit: Callable[[Handle, Address], bool] | None,
        tickets: Tickets | None,
        wall: Callable[[], float],
        trace: Tracer | None,
    ) -> Endpoint:
        """Make it."""


class NotInstalled(Exception):  # noqa: N818  # reads as what it says
    """The engine that was asked for can't be imported; the text says what to install."""


def choose(kind: Kind, wanted: str) -> Engine:
    """The engine called *wanted*, or with ``auto`` the first of the preferred that is installed. Raises NotInstalled."""
    if wanted == AUTO:
        names: Sequence[str] = AUTO_H2 if kind == "h2" else AUTO_QUIC
        for name in names:
            engine = find(kind, name)
            if engine.why_missing() is None:
                return engine
        wanted = names[-1]
    engine = find(kind, wanted)
    why = engine.why_missing()
    if why is not None:
        msg = f"engine {engine.name!r} is not installed here ({why}); expected auto, or first: {engine.install}"
        raise NotInstalled(msg)
    return engine


def find(kind: Kind, name: str) -> Engine:
    """The engine of that name. Raises KeyError."""
    for engine in ENGINES:
        if (engine.kind, engine.name) == (kind, name):
            return engine
    raise KeyError(name)


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:  # importable all the same: put on the path by hand
        return "of unknown version"
