"""From a folder of YAML files to one checked ``Configuration``; or all that is wrong with them, at once.

Reads files; opens no socket. What several files must agree on (hosts, pools, listeners) is ``references``' affair, certificates are
``material``'s.
"""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from proxy.config.collector import collector_paused
from proxy.config.gather import SiteMaterial, gather_material
from proxy.config.material import CertificateFiles
from proxy.config.model_l4 import L4Listener
from proxy.config.model_pool import Pool
from proxy.config.model_server import File, Log, Server
from proxy.config.model_site import Site
from proxy.config.problem import ConfigError, Problem
from proxy.config.references import check_references
from proxy.config.source import Document, noted, read_document
from proxy.config.translate import validate
from proxy.keys import KeySet
from proxy.snapshot import UpstreamTls
from proxy.sni import Certificate

__all__ = ["MAX_FILES", "ConfigError", "Configuration", "Problem", "load"]

MAX_FILES = 100_000
"""YAML files of one configuration."""
SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True, slots=True)
class Configuration:
    """Everything that the files say, checked, with certificates read."""

    source: Path
    """The folder or file that it was read from."""
    server: Server
    sites: tuple[Site, ...]
    """In the order of files; a site's name is its first host."""
    pools: Mapping[str, Pool]
    """The shared ones."""
    l4: tuple[L4Listener, ...]
    """Listeners of the L4 tier."""
    materials: tuple[SiteMaterial, ...]
    """One for each of ``sites``."""
    upstream_tls: Mapping[str, UpstreamTls]
    """By the pool's full name; pools with an ``https://`` endpoint only."""
    default_certificate: Certificate | None
    """That of ``server.tls``."""
    certificate_files: tuple[CertificateFiles, ...]
    """What to watch."""
    state: Path
    """The folder for secrets."""
    keys: KeySet | None
    """Those that ``server.cluster`` shares."""
    key_file: Path | None
    """Where they stand, if in a file."""
    server_id: bytes | None
    """That of ``server.quic.connection_ids``."""
    qlog_folder: Path | None
    """The folder for traces, where there are to be any."""
    warnings: tuple[Problem, ...]
    read: Mapping[Path, bytes]
    """Every file that was read, with its digest."""

    @property
    def log(self) -> Log:
        """What is logged, and how."""
        return self.server.log


def load(
    directory: Path, environ: Mapping[str, str], *, now: float | None = None, keep: bool = True, read: dict[Path, bytes] | None = None
) -> Configuration:
    """Read every ``*.yaml`` and ``*.yml`` under *directory* (or the one file that it names), in sorted order.

    *now* in seconds since the epoch judges certificates; *keep* lets self-signed certificates be put into the state folder. *read* gets
    every file that was read, with its digest (``source.digest``). Raises ConfigError, and nothing else.
    """
    read = {} if read is None else read
    with noted(read):
        return _load(directory, environ, now, read, keep=keep)


@collector_paused()
def _load(directory: Path, environ: Mapping[str, str], now: float | None, read: Mapping[Path, bytes], *, keep: bool) -> Configuration:
    documents: list[Document] = []
    files: list[tuple[Document, File]] = []
    problems: list[Problem] = []
    for file, name in _find(directory):
        document, found = read_document(file, name, environ)
        documents.append(document)
        problems += found
        if document.data is None and not found:
            continue
        if document.data is not None:
            model, found = validate(File, document)
            problems += found
            if isinstance(model, File):
                files.append((document, model))
            else:
                document.complete = False
    found, warnings = check_references(documents)
    problems += found
    server = next((model.server for _, model in files if model.server is not None), None) or Server()
    state = _state(directory, server, files, environ)
    at = time.time() if now is None else now
    material = gather_material(files, server, state, at, keep=keep and not problems)
    problems += material.problems
    if problems:
        raise ConfigError(problems)
    sites = tuple(site for _, model in files for site in sites_of(model))
    l4 = tuple(listener for _, model in files for listener in model.l4)
    if l4 and "listeners" not in server.model_fields_set:
        server = server.model_copy(update={"listeners": []})
    if not sites and not l4:
        warnings.append(Problem(str(directory), 0, 0, "no site is configured: only the health answer is served"))
    pools = {name: pool for _, model in files for name, pool in model.pools.items()}
    return Configuration(
        source=directory,
        server=server,
        sites=sites,
        pools=pools,
        l4=l4,
        materials=tuple(material.sites),
        upstream_tls=material.upstream_tls,
        default_certificate=material.default,
        certificate_files=tuple(material.files),
        state=state,
        keys=material.keys,
        key_file=_home(files) / server.cluster.key_file if server.cluster is not None and server.cluster.key_file is not None else None,
        server_id=material.server_id,
        qlog_folder=_home(files) / server.quic.qlog.folder if server.quic.qlog is not None else None,
        warnings=tuple(sorted({*warnings, *material.warnings})),
        read=read,
    )


def sites_of(model: File) -> list[Site]:
    """All sites of a file."""
    return [*([model.site] if model.site is not None else []), *model.sites]


def files_of(directory: Path) -> list[Path]:
    """The YAML files of a configuration, as ``load`` would read them now; none where that can't be seen."""
    try:
        return [file for file, _ in _find(directory)]
    except ConfigError:
        return []


def configuration_folders(directory: Path) -> list[Path]:
    """The folders in which a file of it may come or go."""
    if not directory.is_dir():
        return [directory.absolute().parent]
    found = [directory.absolute()]
    for folder, folders, _ in os.walk(found[0]):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(folder) / name for name in folders]
    return found


def _find(directory: Path) -> list[tuple[Path, str]]:
    """The files to read, each with the name that messages show."""
    try:
        if not directory.exists():
            raise ConfigError([Problem(str(directory), 0, 0, "does not exist; expected a folder with *.yaml files, or one such file")])
        if not directory.is_dir():
            return [(directory, str(directory))]
        found: list[Path] = []
        unreadable: list[OSError] = []
        for folder, folders, names in os.walk(directory, onerror=unreadable.append):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            found += [Path(folder) / name for name in names if name.endswith(SUFFIXES) and not name.startswith(".")]
            if len(found) > MAX_FILES:
                raise ConfigError([Problem(str(directory), 0, 0, f"holds too many files; expected {MAX_FILES} at most")])
    except (OSError, ValueError) as error:
        raise ConfigError([Problem(str(directory), 0, 0, f"can't be read: {getattr(error, 'strerror', None) or error}")]) from None
    if unreadable:
        raise ConfigError(Problem(str(error.filename), 0, 0, f"can't be read: {error.strerror}") for error in unreadable)
    if not found:
        raise ConfigError([Problem(str(directory), 0, 0, "holds no *.yaml or *.yml file; expected one at least")])
    return [(file, str(file)) for file in sorted(found, key=lambda file: file.parts)]


def _state(directory: Path, server: Server, files: list[tuple[Document, File]], environ: Mapping[str, str]) -> Path:
    """The state folder: as configured (relative to that file), from systemd, or beside the configuration."""
    if server.state is not None:
        return _home(files) / server.state
    given = environ.get("STATE_DIRECTORY", "").partition(":")[0]
    if given:
        return Path(given)
    resolved = Path(os.path.abspath(directory))  # noqa: PTH100  # resolve() would follow a symlink to the folder
    return resolved.parent / ".state"


def _home(files: list[tuple[Document, File]]) -> Path:
    """The folder of the file with ``server``, which there must be."""
    return next(document.file.parent for document, model in files if model.server is not None)
