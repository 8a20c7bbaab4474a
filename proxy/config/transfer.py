"""A checked configuration as bytes, for another process of the same proxy: what was read once is neither read nor checked again.

Only for a channel between processes that trust each other: it is a pickle, and holds private keys. Contexts of TLS can't be sent; they are
made anew there from what they were made of.
"""

import io
import pickle
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from proxy.config.load import Configuration
from proxy.config.material import UpstreamTlsMaterial, upstream_tls_of
from proxy.snapshot import UpstreamTls


def pack(configuration: Configuration) -> bytes:
    """The bytes; some milliseconds for each thousand sites."""
    buffer = io.BytesIO()
    _Pickler(buffer, pickle.HIGHEST_PROTOCOL).dump(replace(configuration, read={}))
    return buffer.getvalue()


def unpack(data: bytes) -> Configuration:
    """What ``pack`` was given."""
    configuration = pickle.loads(data)  # noqa: S301  # from our own process
    assert isinstance(configuration, Configuration)
    return configuration


class _Pickler(pickle.Pickler):
    def reducer_override(self, obj: object) -> Any:
        if isinstance(obj, UpstreamTls):
            assert isinstance(obj.fingerprint, UpstreamTlsMaterial)
            made: Callable[..., UpstreamTls] = upstream_tls_of
            return made, (obj.fingerprint,)
        return NotImplemented
