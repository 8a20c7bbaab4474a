"""The state folder: what must outlive a restart. For now the secret that keys hashes of connection ids and addresses.

Knows files; the secret's uses are elsewhere.
"""

import os
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
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            secret = path.read_bytes()
        else:
            secret = os.urandom(SECRET_BYTES)
            with os.fdopen(descriptor, "wb") as file:
                file.write(secret)
    except OSError as error:
        msg = f"{error.filename or path}: {error.strerror}: the state folder has to be writable (server: {{state: FOLDER}})"
        raise StateError(msg) from None
    return _checked(path, secret)


def _checked(path: Path, secret: bytes) -> bytes:
    if len(secret) != SECRET_BYTES:
        msg = f"{path}: {len(secret)} bytes where {SECRET_BYTES} were expected: remove it to have a new one made"
        raise StateError(msg)
    return secret
