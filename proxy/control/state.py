"""The state folder: what must outlive a restart. For now the secret that keys hashes of connection ids and addresses.

Knows files; the secret's uses are elsewhere.
"""

import contextlib
import os
import tempfile
from pathlib import Path

SECRET_BYTES = 32


class StateError(Exception):
    """The state folder can't be used; the text says which file and why."""


def read_secret(folder: Path) -> bytes | None:
    """The secret of the folder, or None where none was made yet; writes nothing. Raises StateError."""
    path = folder / "secret"
    try:
        return _checked(path, path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        msg = f"{path}: {error.strerror}: keys can't be told without the secret that they are hashed with"
        raise StateError(msg) from None


def load_secret(folder: Path) -> bytes:
    """The secret of the folder, made at the first call. Raises StateError.

    Keeping it means that keys, and so the choice of backends, are the same after a restart.
    """
    path = folder / "secret"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not path.exists():
            _make(path)
        secret = path.read_bytes()
    except OSError as error:
        msg = f"{error.filename or path}: {error.strerror}: the state folder has to be writable (server: {{state: FOLDER}})"
        raise StateError(msg) from None
    return _checked(path, secret)


def _make(path: Path) -> None:
    """Write a new secret whole or not at all; another process may be doing the same, and the first one's counts."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".secret-")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(os.urandom(SECRET_BYTES))
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(name, path)
    finally:
        Path(name).unlink()


def _checked(path: Path, secret: bytes) -> bytes:
    if len(secret) != SECRET_BYTES:
        msg = f"{path}: {len(secret)} bytes where {SECRET_BYTES} were expected: remove it to have a new one made"
        raise StateError(msg)
    return secret
