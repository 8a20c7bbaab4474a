"""Giving up root once the sockets are bound. Standard library only."""

import os
import pwd
from pathlib import Path


class PrivilegeError(Exception):
    """The user can't be had; the text says why."""


def drop(user: str) -> None:
    """Become *user*, with its groups, for good. Nothing happens to whoever is that user already. Raises PrivilegeError."""
    entry = _entry(user)
    if os.getuid() == os.geteuid() == entry.pw_uid:
        return
    if os.geteuid() != 0:
        msg = f"only root can become the user {user} (server.user); expected to be started by root or by {user}"
        raise PrivilegeError(msg)
    os.initgroups(user, entry.pw_gid)
    os.setresgid(entry.pw_gid, entry.pw_gid, entry.pw_gid)
    os.setresuid(entry.pw_uid, entry.pw_uid, entry.pw_uid)


def hand_over(folder: Path, user: str) -> None:
    """Give what root has put into the state *folder* to *user*, who goes on with it. Others' files stay theirs. Raises PrivilegeError."""
    entry = _entry(user)
    if os.geteuid() != 0 or entry.pw_uid == 0:
        return
    try:
        for path in (folder, *folder.rglob("*")):
            if path.lstat().st_uid == 0:
                os.chown(path, entry.pw_uid, entry.pw_gid, follow_symlinks=False)
    except OSError as error:
        msg = f"{error.filename or folder}: {error.strerror}: the state folder can't be given to the user {user} (server.user)"
        raise PrivilegeError(msg) from None


def _entry(user: str) -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(user)
    except KeyError:
        msg = f"there is no user {user} (server.user)"
        raise PrivilegeError(msg) from None
