"""What must agree between keys, between files, and with what is installed: what stands once, pools that exist, engines.

Works on the data as read and not on the models, so that these mistakes are told together with all others. Anything of the wrong shape
is passed over: the models complain about it.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field

from proxy.config.names import parse_address, parse_host
from proxy.config.problem import Problem, perhaps
from proxy.config.source import Data, Document, Step
from proxy.config.units import is_off
from proxy.engine import choice
from proxy.engine.quic.settings import CERTIFICATE_COMPRESSIONS, CONGESTION_CONTROLS, MIN_DATAGRAM
from proxy.snapshot import TCP_PROTOCOLS

Path = tuple[Step, ...]
_BOTH = frozenset({"tcp", "udp"})


def check_references(documents: list[Document]) -> tuple[list[Problem], list[Problem]]:
    """Problems and warnings."""
    checker = _Checker(documents)
    checker.servers()
    checker.l4()
    checker.hosts()
    checker.pools()
    checker.early_data()
    return checker.problems, checker.warnings


@dataclass(frozen=True, slots=True)
class _Feature:
    """What the configuration asks of an engine and not every engine of its kind has. All of them stand in ``_asked_of_engines``."""

    kind: choice.Kind
    path: Path
    """Where it is asked."""
    what: str
    has: Callable[[choice.Engine], bool]
    instead: Callable[[choice.Engine], str]
    """What an engine that lacks it has."""

    def refusal(self, engine: choice.Engine) -> str:
        """The message where *engine*, which serves here, lacks it: names the engine that has it, with what to do for that."""
        who = ""
        for other in choice.ENGINES:
            if other.kind == self.kind and self.has(other):
                who += f"; {other.name} has it" + (f", and is not installed here: {other.install}" if other.why_missing() else "")
        return f"the {_KINDS[self.kind]} engine in use here, {engine.name}, has no {self.what}{who}; expected {self.instead(engine)}"


_KINDS: Mapping[choice.Kind, str] = {"h2": "HTTP/2", "quic": "QUIC"}


def _asked_of_engines(document: Document) -> Iterator[_Feature]:
    control = _get(document.data, "server", "quic", "congestion_control")
    if control in CONGESTION_CONTROLS and control != choice.AUTO:
        yield _Feature(
            "quic",
            ("server", "quic", "congestion_control"),
            control,
            has=lambda engine: control in engine.congestion_controls,
            instead=lambda engine: f"one of {', '.join((choice.AUTO, *engine.congestion_controls))}",
        )
    size = _get(document.data, "server", "quic", "max_datagram_size")
    if str(size).isdecimal() and int(str(size)[:9]) > MIN_DATAGRAM:
        yield _Feature(
            "quic",
            ("server", "quic", "max_datagram_size"),
            f"path MTU discovery, to send more than {MIN_DATAGRAM} bytes",
            has=lambda engine: engine.discovers_mtu,
            instead=lambda _: f"{MIN_DATAGRAM}, or no 'max_datagram_size'",
        )
    for index, algorithm in enumerate(_list(_get(document.data, "server", "quic", "certificate_compression"))):
        if algorithm in CERTIFICATE_COMPRESSIONS:
            yield _Feature(
                "quic",
                ("server", "quic", "certificate_compression", index),
                f"certificate compression by {algorithm}",
                has=lambda engine, algorithm=algorithm: algorithm in engine.certificate_compressions,  # type: ignore[misc]
                instead=lambda engine: f"some of {', '.join(engine.certificate_compressions) or 'none: an empty list'}",
            )


@dataclass(slots=True)
class _Pools:
    """Pools under one roof: a site's own, or the shared ones."""

    places: dict[str, tuple[Document, Path]] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)


class _Checker:
    def __init__(self, documents: list[Document]) -> None:
        self._documents = documents
        self._whole = all(document.complete or document.data is not None for document in documents)
        """No pool can have been missed for what could not be read."""
        self.problems: list[Problem] = []
        self.warnings: list[Problem] = []

    def servers(self) -> None:
        """``server`` stands once; its listeners, the admin address and that for health checks don't meet."""
        first: Document | None = None
        for document in self._documents:
            if not isinstance(document.data, dict) or "server" not in document.data:
                continue
            if first is None:
                first = document
                self._listeners(document)
                self._engines(document)
            else:
                self._twice(document, ("server",), "'server'", (first, ("server",)))

    def _listeners(self, document: Document) -> None:
        taken: dict[tuple[object, str], Path] = {}
        listeners = _get(document.data, "server", "listeners")
        if listeners == [] and self._whole and not any(_list(_get(each.data, "l4")) for each in self._documents):
            message = "'server.listeners' is empty, and there is no 'l4'; expected one listener at least"
            self.problems.append(document.problem(("server", "listeners"), message, at_key=True))
        for index, listener in enumerate(_list(_get(document.data, "server", "listeners"))):
            path: Path = ("server", "listeners", index, "address")
            address = _address(_get(listener, "address"))
            if address is None or not address[1]:
                continue
            kinds = _kinds(_get(listener, "protocols"))
            clash = next((taken[address, kind] for kind in sorted(kinds) if (address, kind) in taken), None)
            if clash is not None:
                self._twice(document, path, f"address {_get(listener, 'address')}", (document, clash))
            taken.update({(address, kind): path for kind in kinds if (address, kind) not in taken})
        for name in ("admin", "health"):
            path = ("server", name, "address")
            given = _get(document.data, *path)
            address = _address(given)
            if address is None or not address[1]:
                continue
            if (clash := taken.get((address, "tcp"))) is not None:
                self._twice(document, path, f"address {given}", (document, clash))
            taken.setdefault((address, "tcp"), path)

    def l4(self) -> None:
        """Listeners of the tier stand on addresses of their own."""
        tiers = [document for document in self._documents if isinstance(document.data, dict) and "l4" in document.data]
        if not tiers:
            return
        taken: dict[tuple[object, str], tuple[Document, Path]] = {}
        for document in self._documents:
            for index, listener in enumerate(_list(_get(document.data, "server", "listeners"))):
                place: Path = ("server", "listeners", index, "address")
                kinds = _kinds(_get(listener, "protocols"))
                taken.update({(_address(_get(listener, "address")), kind): (document, place) for kind in kinds})
            for name, kind in (("admin", "tcp"), ("health", "tcp"), ("cluster", "udp")):
                place = ("server", name, "address")
                taken[_address(_get(document.data, *place)), kind] = (document, place)
        shared = any(_get(document.data, "server", "cluster") is not None for document in self._documents)
        for document in tiers:
            for index, listener in enumerate(_list(_get(document.data, "l4"))):
                place = ("l4", index, "address")
                if not shared and self._whole and isinstance(listener, dict) and "quic" in _list(listener.get("protocols", ["quic"])):
                    message = (
                        "QUIC travels in envelopes under keys that the instances have too; expected 'server.cluster', or protocols: [tcp]"
                    )
                    self.problems.append(document.problem(("l4", index), message))
                address = _address(_get(listener, "address"))
                if address is None or not address[1]:
                    continue
                protocols = _get(listener, "protocols")
                wanted = ("quic", "tcp") if not isinstance(protocols, list) else protocols
                kinds = {"udp" if name == "quic" else "tcp" for name in wanted}
                clash = next((taken[address, kind] for kind in sorted(kinds) if (address, kind) in taken), None)
                if clash is not None:
                    self._twice(document, place, f"address {_get(listener, 'address')}", clash)
                taken.update({(address, kind): (document, place) for kind in kinds if (address, kind) not in taken})

    def _engines(self, document: Document) -> None:
        """An engine that is named is installed here, and has what is asked of it."""
        asked = list(_asked_of_engines(document))
        for kind in choice.KINDS:
            wanted = _get(document.data, "server", "engines", kind)
            names = [engine.name for engine in choice.ENGINES if engine.kind == kind]
            features = [feature for feature in asked if feature.kind == kind]
            if wanted not in names and not (features and wanted in (None, choice.AUTO)):
                continue
            try:
                engine = choice.choose(kind, str(wanted or choice.AUTO))
            except choice.NotInstalled as error:
                self.problems.append(document.problem(("server", "engines", kind), str(error)))
                continue
            for feature in features:
                if not feature.has(engine):
                    self.problems.append(document.problem(feature.path, feature.refusal(engine)))

    def hosts(self) -> None:
        """A host belongs to one site."""
        seen: dict[str, tuple[Document, Path]] = {}
        for document, path, site in self._sites():
            for index, given in enumerate(_list(_get(site, "hosts"))):
                try:
                    host = parse_host(given)
                except ValueError:
                    continue
                place = (*path, "hosts", index)
                if host in seen:
                    self._twice(document, place, f"host {host!r}", seen[host])
                else:
                    seen[host] = (document, place)

    def pools(self) -> None:
        """Routes name pools that exist; a name means one pool."""
        shared = _Pools()
        for document in self._documents:
            for name in _dict(_get(document.data, "pools")):
                if name in shared.places:
                    self._twice(document, ("pools", name), f"pool {name!r}", shared.places[name])
                else:
                    shared.places[name] = (document, ("pools", name))
        for document, path, site in self._sites():
            own = _Pools()
            for name in _dict(_get(site, "pools")):
                place = (*path, "pools", name)
                own.places[name] = (document, place)
                if name in shared.places:
                    self._twice(document, place, f"pool {name!r}", shared.places[name])
            self._routes(document, path, site, own, shared)
            self._unused(own)
        self._unused(shared)

    def early_data(self) -> None:
        """Early data comes with session tickets, and is not believed where other instances may have seen it too."""
        if any(is_off(_get(document.data, "server", "quic", "resumption")) for document in self._documents):
            message = "'early_data' has no effect while server.quic.resumption is off: there are no tickets that it could come with"
        elif any(_get(document.data, "server", "cluster") is not None for document in self._documents):
            message = "'early_data' saves no round trip beside server.cluster: another instance may have the same request, so all wait"
        else:
            return
        for document, path, site in self._sites():
            given = _get(site, "early_data")
            if given is not None and not is_off(given):
                self.warnings.append(document.problem((*path, "early_data"), message, at_key=True))

    def _routes(self, document: Document, path: Path, site: Data, own: _Pools, shared: _Pools) -> None:
        seen: dict[str, int] = {}
        routes = _list(_get(site, "routes"))
        for index, route in enumerate(routes):
            if len(routes) > 1:
                match = repr(_plain(_get(route, "match")))
                if match in seen and isinstance(route, dict):
                    first = document.find((*path, "routes", seen[match]))
                    message = f"this route is never taken: the one at line {first.line} matches the same requests and stands before it"
                    self.warnings.append(document.problem((*path, "routes", index), message))
                seen.setdefault(match, index)
            name = _get(route, "pool")
            if not isinstance(name, str):
                continue
            if name in own.places:
                own.used.add(name)
            elif name in shared.places:
                shared.used.add(name)
            elif self._whole:
                known = [*own.places, *shared.places]
                near = perhaps(name, known) or (
                    f"; expected one of {', '.join(sorted(known)[:20])}" if known else "; expected one under 'pools'"
                )
                self.problems.append(document.problem((*path, "routes", index, "pool"), f"unknown pool {name!r}{near}"))

    def _unused(self, pools: _Pools) -> None:
        for name, (document, place) in pools.places.items():
            if name not in pools.used:
                self.warnings.append(document.problem(place, f"no route uses pool {name!r}", at_key=True))

    def _sites(self) -> Iterator[tuple[Document, Path, Data]]:
        for document in self._documents:
            if isinstance(site := _get(document.data, "site"), dict):
                yield document, ("site",), site
            for index, site in enumerate(_list(_get(document.data, "sites"))):
                yield document, ("sites", index), site

    def _twice(self, document: Document, path: Path, what: str, first: tuple[Document, Path]) -> None:
        at_key = isinstance(path[-1], str) and path[-1] != "address"
        place = first[0].problem(first[1], "", at_key=at_key)
        message = f"{what} stands twice; it is at {place.file}:{place.line}:{place.column} already"
        self.problems.append(document.problem(path, message, at_key=at_key))


def _get(data: Data, *steps: str) -> Data:
    for step in steps:
        data = data.get(step) if isinstance(data, dict) else None
    return data


def _kinds(protocols: Data) -> Collection[str]:
    """Of sockets, that a listener has with these."""
    if not isinstance(protocols, list):
        return _BOTH
    return {"tcp" if name in TCP_PROTOCOLS else "udp" for name in protocols if isinstance(name, str)}


def _list(data: Data) -> list[Data]:
    return data if isinstance(data, list) else []


def _dict(data: Data) -> dict[str, Data]:
    return data if isinstance(data, dict) else {}


def _address(data: Data) -> tuple[str, int] | None:
    try:
        return None if data is None or is_off(data) else parse_address(data)
    except ValueError:
        return None


def _plain(data: Data) -> object:
    """A match in one form, whatever the order of its keys; nothing given is the path ``/``."""
    if isinstance(data, dict):
        return sorted((key, _plain(value)) for key, value in data.items() if not (key == "path" and value == "/"))
    return data if data is not None else []
