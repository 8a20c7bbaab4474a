"""The product's engines by name, with its defaults and no more: what a floor stands on.

The names are those of ``server: {engines: ...}``, and ``h1`` for the only one that HTTP/1.1 has.
"""

import os
import ssl
from collections.abc import Callable
from pathlib import Path

from proxy.engine.choice import ENGINES, choose
from proxy.engine.h1 import H1Connection
from proxy.engine.quic.settings import QuicSettings
from proxy.engine.seam import Connection, Endpoint, EngineLimits
from proxy.keys import Keyring
from proxy.listen.tls import TlsContexts
from proxy.sni import Certificate, TlsProfile

NAMES = ("h1", *(engine.name for engine in ENGINES))


def connection(name: str) -> Callable[[], Connection]:
    """Makes a connection's engine. Raises NotInstalled."""
    limits = EngineLimits()
    make = H1Connection if name == "h1" else choose("h2", name).load()
    return lambda: make(limits)


def endpoint(name: str, certificate: Path) -> Endpoint:
    """A QUIC endpoint. Raises NotInstalled."""
    profile = _profile(certificate)
    made: Endpoint = choose("quic", name).load()(
        lambda _: profile, EngineLimits(), QuicSettings(), Keyring.alone(bytes(32)), random_bytes=os.urandom, admit=None
    )
    return made


def contexts(certificate: Path, version: str) -> ssl.SSLContext:
    """The product's TLS for *version* on TCP."""
    return TlsContexts().get(_profile(certificate), frozenset({"h2" if version == "h2" else "http/1.1"}))


def _profile(certificate: Path) -> TlsProfile:
    chain, begin, key = certificate.read_bytes().partition(b"-----BEGIN PRIVATE KEY")
    return TlsProfile(
        Certificate(("example.com", "*.example.com"), chain, begin + key, float("inf"), str(certificate)), None, "example.com"
    )
