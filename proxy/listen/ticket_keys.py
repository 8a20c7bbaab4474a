"""Gives OpenSSL the keys of session tickets over TCP: the ``ssl`` module has no call for it, so its context is reached into by ctypes.

Without such keys OpenSSL makes them at random for each context, and a client resumes only at the process that it was at. The call itself
is an old and public one of OpenSSL's (SSL_CTX_set_tlsext_ticket_keys(3)); only where an ``SSLContext`` keeps its ``SSL_CTX`` is CPython's
own affair: behind the head of the object, in every version so far. So ``reach`` proves it first, with contexts of its own, by what can be
read without harm, and where anything is not as expected nothing is touched. This is the only place that knows of it.
"""

import ctypes
import os
import ssl
import sys
from collections.abc import Callable
from functools import cache
from hashlib import sha256
from typing import TypeAlias

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

KEY_BYTES = 80
"""A name, an HMAC key and an AES-256 key: 16, 32 and 32 bytes (OpenSSL 1.1.0 and later)."""

GET_KEYS, SET_KEYS = 58, 59
"""OpenSSL's numbers of the two calls (SSL_CTRL_GET_TLSEXT_TICKET_KEYS, ssl.h)."""

LOOKED_AT = 1024
"""Bytes that are read to see whether there is memory at all: more than stands before the field that is asked for."""

GiveKeys: TypeAlias = Callable[[ssl.SSLContext, bytes], bool]


class Unreachable(Exception):  # noqa: N818  # it says what is, and nobody did wrong
    """The contexts of this interpreter can't be given keys: says why."""


def ticket_keys(secret: bytes, content: bytes) -> bytes:
    """The keys of the context that *content* describes: HKDF-SHA256 (RFC 5869) of *secret*, 80 bytes.

    Contexts with another certificate or domain have others, so that no ticket passes from one to the other.
    """
    return HKDF(SHA256(), KEY_BYTES, salt=None, info=b"qproxy tickets of tls " + sha256(content).digest()).derive(secret)


@cache
def reach() -> GiveKeys:
    """What gives a context its keys, and tells whether it took them. Raises Unreachable, each time the same."""
    if sys.implementation.name != "cpython" or not ssl.OPENSSL_VERSION.startswith("OpenSSL ") or ssl.OPENSSL_VERSION_INFO < (1, 1, 1):
        msg = f"known of CPython with OpenSSL 1.1.1 or later; this is {sys.implementation.name} with {ssl.OPENSSL_VERSION}"
        raise Unreachable(msg)
    library = _library()

    def give(context: ssl.SSLContext, keys: bytes) -> bool:
        held = ctypes.create_string_buffer(KEY_BYTES)
        pointer = _pointer(context)
        return bool(
            library.SSL_CTX_ctrl(pointer, SET_KEYS, KEY_BYTES, keys) == 1
            and library.SSL_CTX_ctrl(pointer, GET_KEYS, KEY_BYTES, held) == 1
            and held.raw == keys
        )

    for options in (ssl.OP_NO_COMPRESSION, ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_TICKET | ssl.OP_CIPHER_SERVER_PREFERENCE):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.options |= options
        if not _is_memory(_pointer(context)) or library.SSL_CTX_get_options(_pointer(context)) != context.options:
            msg = "its contexts are laid out in a way that is not known here"
            raise Unreachable(msg)
    if not give(context, os.urandom(KEY_BYTES)):
        msg = "its OpenSSL takes no ticket keys"
        raise Unreachable(msg)
    return give


def _library() -> ctypes.CDLL:
    """The OpenSSL that ``ssl`` itself has. Raises Unreachable."""
    import _ssl  # noqa: PLC0415  # it may be missing, or a part of the interpreter

    try:
        library = ctypes.CDLL(getattr(_ssl, "__file__", None))
        control, options = library.SSL_CTX_ctrl, library.SSL_CTX_get_options
    except (AttributeError, OSError) as error:
        msg = "its OpenSSL shows no functions"
        raise Unreachable(msg) from error
    control.argtypes, control.restype = [ctypes.c_void_p, ctypes.c_int, ctypes.c_long, ctypes.c_char_p], ctypes.c_long
    options.argtypes, options.restype = [ctypes.c_void_p], ctypes.c_uint64
    return library


def _pointer(context: ssl.SSLContext) -> int:
    """What stands behind the head of the object."""
    return ctypes.c_size_t.from_address(id(context) + object.__basicsize__).value


def _is_memory(pointer: int) -> bool:
    """Whether there is something to read: the kernel is asked to, which fails where a read of our own would end the process."""
    if not pointer:
        return False
    reading, writing = os.pipe()
    try:
        write = ctypes.CDLL(None).write
        write.argtypes, write.restype = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t], ctypes.c_ssize_t
        return bool(write(writing, pointer, LOOKED_AT) == LOOKED_AT)
    finally:
        os.close(reading)
        os.close(writing)
