"""``qproxy --version``: the version, what runs it, and for each kind of engine the one that ``auto`` takes here, and the others."""

import platform

import proxy.exchange
from proxy import __version__
from proxy.engine.choice import AUTO, ENGINES, KINDS, choose

TITLES = {"h2": "HTTP/2", "quic": "HTTP/3"}


def text() -> str:
    """Several lines. A missing engine is told with what to do about it."""
    compiled = "" if str(proxy.exchange.__file__).endswith(".py") else ", compiled"
    lines = [f"qproxy {__version__} ({platform.python_implementation()} {platform.python_version()}{compiled})"]
    for kind in KINDS:
        used = choose(kind, AUTO)
        lines.append(f"{TITLES[kind]}: {used}")
        for engine in ENGINES:
            if engine.kind == kind and engine != used:
                missing = engine.why_missing() is not None
                lines.append(f"  not in use: {engine.name}, not installed: {engine.install}" if missing else f"  not in use: {engine}")
    return "\n".join(lines)
