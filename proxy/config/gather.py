"""Reads the certificates, keys and authorities that a configuration names; mistakes point at the keys that name them."""

import ssl
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path

from proxy.config.kept import kept_self_signed
from proxy.config.material import (
    CertificateFiles,
    MaterialError,
    UpstreamTlsSettings,
    certificate_warnings,
    load_authorities,
    load_certificate,
    make_upstream_tls,
)
from proxy.config.model_pool import Pool, PoolTls
from proxy.config.model_server import File, Server, ServerTls
from proxy.config.model_site import Site, SiteTls
from proxy.config.names import SRV
from proxy.config.own_address import own_address, server_id_of
from proxy.config.problem import Problem
from proxy.config.source import Document, Step, open_to_others, read_text
from proxy.keys import KeyFileError, KeySet, parse
from proxy.snapshot import UpstreamTls
from proxy.sni import KINDS, Certificate, ClientCertificateRule

Where = tuple[Step, ...]
_Files = tuple[Path, Path]


@dataclass(frozen=True, slots=True)
class SiteMaterial:
    """What a site's TLS needs."""

    certificates: tuple[Certificate, ...]
    """One, or several with keys of different kinds."""
    client_rule: ClientCertificateRule | None
    self_signed: bool


@dataclass(slots=True)
class Material:
    """Everything that was read, and what was wrong with it."""

    default: Certificate | None = None
    keys: KeySet | None = None
    server_id: bytes | None = None
    sites: list[SiteMaterial] = field(default_factory=list)
    upstream_tls: dict[str, UpstreamTls] = field(default_factory=dict)
    files: list[CertificateFiles] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)


def gather_material(files: list[tuple[Document, File]], server: Server, state: Path, now: float, *, keep: bool) -> Material:
    """Read all that *files* name. Never raises: look at ``problems``."""
    gatherer = _Gatherer(state, now, keep=keep)
    for document, model in files:
        if model.server is server:
            gatherer.default(document, server.tls)
            gatherer.cluster(document, server)
            gatherer.server_id(document, server)
    for document, model in files:
        for path, site in _sites(model):
            gatherer.site(document, path, site, server.tls)
            for name, pool in site.pools.items():
                gatherer.pool(document, (*path, "pools", name), f"{site.hosts[0]}/{name}", pool)
        for name, pool in model.pools.items():
            gatherer.pool(document, ("pools", name), name, pool)
    return gatherer.material


def _sites(model: File) -> Iterator[tuple[Where, Site]]:
    if model.site is not None:
        yield ("site",), model.site
    for index, site in enumerate(model.sites):
        yield ("sites", index), site


class _Gatherer:
    def __init__(self, state: Path, now: float, *, keep: bool) -> None:
        self.material = Material()
        self._state = state
        self._now = now
        self._keep = keep
        self._default_files: tuple[Path, Path] | None = None
        self._default_broken = False
        self._contexts: dict[UpstreamTlsSettings, UpstreamTls] = {}
        self._loaded: dict[tuple[Path, Path], tuple[Certificate | MaterialError, list[str]]] = {}
        """By the files: many sites may name the same."""

    def default(self, document: Document, tls: ServerTls) -> None:
        """The certificate of ``server.tls``."""
        if tls.certificate is None:
            return
        files = _files(document, tls.certificate, tls.key)
        self.material.default = self._load(document, ("server", "tls"), *files)
        self._default_broken = self.material.default is None
        self._default_files = files
        self.material.files.append(CertificateFiles("default", *files))

    def cluster(self, document: Document, server: Server) -> None:
        """The keys that instances share."""
        cluster = server.cluster
        if cluster is None:
            return
        where: Where = ("server", "cluster", "key_file" if cluster.key is None else "key")
        text, name = cluster.key, ""
        if cluster.key_file is not None:
            file = document.file.parent / cluster.key_file
            text, reason = read_text(file)
            name = str(file)
            if text is None:
                self.material.problems.append(document.problem(where, f"{file}: {reason}"))
                return
            if open_to_others(file):
                message = f"{file}: can be read by everybody; expected by its owner only, since who has these keys can read early data"
                self.material.warnings.append(document.problem(where, message + " and play this server to clients with a ticket"))
        assert text is not None
        try:
            self.material.keys = parse(text, name or document.find(where).origin or "key")
        except KeyFileError as error:
            self.material.problems += [document.problem(where, problem) for problem in error.problems]

    def server_id(self, document: Document, server: Server) -> None:
        """What names this server in its connection IDs."""
        ids = server.quic.connection_ids
        if ids is None:
            return
        where: Where = ("server", "quic", "connection_ids", "server_id")
        given = ids.server_id
        if given == "address":
            heard = server.cluster.address if server.cluster is not None else None
            address = heard[0] if heard is not None and not ip_address(heard[0]).is_unspecified else own_address()
            if address is None:
                message = (
                    "this machine has no route to others, so none of its addresses is known for its own; expected the server ID itself"
                )
                self.material.problems.append(document.problem(where, message))
                return
            given = server_id_of(address)
            try:
                ids.layout(len(given))
            except ValueError as error:
                self.material.problems.append(document.problem(where, f"this machine's address is {address}, and {error}"))
                return
        self.material.server_id = given

    def site(self, document: Document, path: Where, site: Site, server_tls: ServerTls) -> None:
        """A site's certificate and its rule for clients."""
        tls = site.tls or SiteTls()
        hosts = tuple(dict.fromkeys(site.hosts))
        rule = self._rule(document, path, tls)
        certificate: Certificate | None
        alternatives: list[Certificate] = []
        files: list[_Files] = []
        if tls.certificate is not None:
            files.append(_files(document, tls.certificate, tls.key))
            certificate = self._load(document, (*path, "tls"), *files[0])
            if certificate is not None:
                self._check_cover(document, (*path, "tls", "certificate"), certificate, hosts)
            for index, pair in enumerate(tls.alternatives):
                files.append(_files(document, pair.certificate, pair.key))
                where = (*path, "tls", "alternatives", index)
                alternative = self._load(document, where, *files[-1])
                if alternative is not None:
                    self._check_cover(document, (*where, "certificate"), alternative, hosts)
                    self._check_kind(document, (*where, "certificate"), alternative, [certificate, *alternatives])
                    alternatives.append(alternative)
        elif tls.self_signed:
            certificate, reason = kept_self_signed(self._state, hosts, self._now, keep=self._keep)
            if reason:
                self.material.warnings.append(document.problem((*path, "tls", "self_signed"), reason))
        else:
            certificate = self.material.default
            files = [self._default_files] if self._default_files is not None else []
            self._check_default(document, path, hosts, server_tls)
        if certificate is not None:
            self.material.sites.append(SiteMaterial((certificate, *alternatives), rule, tls.self_signed))
            self.material.files += [CertificateFiles(host, *pair) for pair in files for host in hosts]

    def pool(self, document: Document, path: Where, name: str, pool: Pool) -> None:
        """TLS towards the endpoints of a pool."""
        if not any(endpoint.url.startswith(("https:", SRV + "https:")) for endpoint in pool.endpoints):
            return
        tls = pool.tls
        if not tls.verify:
            message = "'verify: false': whoever stands in between can read and change what goes to this pool"
            self.material.warnings.append(document.problem((*path, "tls", "verify"), message))
        settings = _settings(document, tls)
        try:
            if settings not in self._contexts:
                self._contexts[settings] = make_upstream_tls(settings)
        except MaterialError as error:
            self._error(document, (*path, "tls"), error)
        except (ssl.SSLError, ValueError) as error:
            self.material.problems.append(document.problem((*path, "tls"), f"TLS towards the pool can't be set up: {error}"))
        else:
            self.material.upstream_tls[name] = self._contexts[settings]

    def _rule(self, document: Document, path: Where, tls: SiteTls) -> ClientCertificateRule | None:
        clients = tls.client_certificates
        if clients is None:
            return None
        try:
            authorities = load_authorities(document.file.parent / clients.ca)
        except MaterialError as error:
            self._error(document, (*path, "tls", "client_certificates"), error)
            return None
        return ClientCertificateRule(authorities, required=clients.mode == "require")

    def _load(self, document: Document, path: Where, certificate: Path, key: Path) -> Certificate | None:
        found = self._loaded.get((certificate, key))
        if found is None:
            try:
                loaded = load_certificate(certificate, key)
                found = (loaded, certificate_warnings(loaded, self._now))
            except MaterialError as error:
                found = (error, [])
            self._loaded[certificate, key] = found
        result, warnings = found
        for text in warnings:
            self.material.warnings.append(document.problem((*path, "certificate"), text))
        if isinstance(result, MaterialError):
            self._error(document, path, result)
            return None
        return result

    def _check_cover(self, document: Document, path: Where, certificate: Certificate, hosts: tuple[str, ...]) -> None:
        missing = [host for host in hosts if not certificate.covers(host)]
        if missing:
            names = ", ".join(certificate.names[:20])
            message = f"{certificate.source}: does not cover {', '.join(missing[:20])}: got a certificate for {names}"
            message += ", expected one for all hosts of the site"
            self.material.problems.append(document.problem(path, message))

    def _check_kind(self, document: Document, path: Where, certificate: Certificate, others: Iterable[Certificate | None]) -> None:
        """Each of several certificates has a key of a kind of its own: else one of them would never be shown."""
        if any(other is not None and other.kind == certificate.kind for other in others):
            missing = " or ".join(kind for kind in KINDS if kind != certificate.kind)
            message = f"{certificate.source}: an {certificate.kind} key, as another certificate here has; expected {missing}"
            self.material.problems.append(document.problem(path, message))

    def _check_default(self, document: Document, path: Where, hosts: tuple[str, ...], tls: ServerTls) -> None:
        """A site without a certificate lives on that of ``server.tls``."""
        expected = "expected 'tls: {certificate: FILE, key: FILE}', or 'tls: {self_signed: true}' for tests"
        default = self.material.default
        if self._default_broken:
            return
        if default is None:
            why = "server.tls has none either" if tls.certificate is None else "server.tls can't be read"
            self.material.problems.append(document.problem(path, f"the site has no certificate, and {why}; {expected}"))
            return
        missing = [host for host in hosts if not default.covers(host)]
        if missing:
            message = f"the site has no certificate, and that of server.tls does not cover {', '.join(missing[:20])}; {expected}"
            self.material.problems.append(document.problem(path, message))

    def _error(self, document: Document, path: Where, error: MaterialError) -> None:
        """At the key that names the file; the key's own is the certificate's when it names both."""
        steps = (*path, error.part)
        if error.part not in document.find(path).children:
            steps = (*path, "certificate")
        self.material.problems.append(document.problem(steps, str(error)))


def _files(document: Document, certificate: str, key: str | None) -> tuple[Path, Path]:
    home = document.file.parent
    return home / certificate, home / (key if key is not None else certificate)


def _settings(document: Document, tls: PoolTls) -> UpstreamTlsSettings:
    home = document.file.parent
    return UpstreamTlsSettings(
        ca=home / tls.ca if tls.ca is not None else None,
        certificate=home / tls.certificate if tls.certificate is not None else None,
        key=home / tls.key if tls.key is not None else None,
        server_name=tls.server_name,
        verify=tls.verify,
        minimum=ssl.TLSVersion.TLSv1_2 if tls.minimum == "1.2" else ssl.TLSVersion.TLSv1_3,
    )
