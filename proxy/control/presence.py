"""Whether other processes have the secret of the same state folder: what early data may be believed depends on it.

Each process holds a lock in a file of the folder as long as it lives, and adds a byte to it at its start. So who is there can be seen,
and that somebody was there meanwhile. Knows files; what follows is decided elsewhere. Processes that have a copy of the folder, on other
machines, are not seen.
"""

import fcntl
import os
import struct
from collections.abc import Callable
from math import inf
from pathlib import Path

_FLOCK = struct.Struct("hhqqi4x")  # struct flock of Linux on 64 bits: type, whence, start, length, pid
_FIRST_BYTE = (os.SEEK_SET, 0, 1, 0)


class Presence:
    """One process among those that use *folder*. *wall_clock* gives seconds since the epoch.

    Where the system or the folder allows no such file, nobody is ever known to be alone.
    """

    def __init__(self, folder: Path, wall_clock: Callable[[], float]) -> None:
        self._wall_clock = wall_clock
        self._since = inf
        self._starts = -1
        self._file = -1
        if not hasattr(fcntl, "F_OFD_SETLK"):
            return
        try:
            self._file = os.open(folder / "processes", os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            fcntl.fcntl(self._file, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_RDLCK, *_FIRST_BYTE))
            os.write(self._file, b".")
        except OSError:
            self.close()
        else:
            self.alone_since()

    def alone_since(self) -> float:
        """Seconds since the epoch since when no other process was here for sure; infinity: one may be. A few microseconds."""
        if self._file < 0:
            return inf
        try:
            found = _FLOCK.unpack(fcntl.fcntl(self._file, fcntl.F_OFD_GETLK, _FLOCK.pack(fcntl.F_WRLCK, *_FIRST_BYTE)))
            starts = os.fstat(self._file).st_size
        except OSError:
            return inf
        if found[0] != fcntl.F_UNLCK:
            self._since = inf
        elif starts != self._starts or self._since == inf:  # somebody was, between the last look and this one
            self._since = self._wall_clock()
        self._starts = starts
        return self._since

    def close(self) -> None:
        """Be there no more."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
