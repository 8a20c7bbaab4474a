"""Tells when files change: also by a rename, by a symbolic link that is turned elsewhere, in a folder that comes later.

Folders are watched and not files, since a renewal puts a new file in the place of the old one (certbot turns links, Kubernetes turns the
link ``..data`` in the folder). What a word from the system is worth, the files' stamps and contents say; they are compared once a
second besides, so that a lost word costs a second. What a change means is for ``control.certificates``.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Iterable, Mapping
from contextlib import aclosing
from pathlib import Path
from typing import TypeAlias

import watchfiles
from watchfiles._rust_notify import WatchfilesRustInternalError

from proxy.config.source import digest, read_bytes

DEBOUNCE_MS = 200
"""For how long changes that follow each other are gathered: certificate and key are two files."""
LOOK_MS = 1000
"""Between two looks at the files' stamps without a word from the system."""
MAX_LINKS = 40
"""Symbolic links followed on the way to one file: as many as Linux does."""

_Stamp: TypeAlias = tuple[int, ...] | None


async def watch_read(folders: Callable[[], Iterable[Path]], files: Callable[[], Iterable[Path]]) -> AsyncIterator[Mapping[Path, bytes]]:
    """What stands in *files* now, as digests, at first and whenever it may have changed: a word in one of *folders*, or none for a second.

    Both are asked each time, beside the loop. Ends only when it is cancelled or closed. Raises OSError where the system can't watch.
    """
    seen: dict[Path, tuple[_Stamp, bytes]] = {}
    while True:
        watched = await asyncio.to_thread(lambda: _existing(folders()))
        words = _words(watched)
        try:
            async with aclosing(words):
                async for _ in words:
                    seen = await asyncio.to_thread(_look_at, files, seen)
                    yield {file: content for file, (_, content) in seen.items()}
                    if await asyncio.to_thread(lambda: _existing(folders())) != watched:
                        break
        except FileNotFoundError:
            await asyncio.sleep(DEBOUNCE_MS / 1000)  # a folder went between the look and the watch
        except WatchfilesRustInternalError as error:
            raise OSError(str(error)) from None


def _look_at(files: Callable[[], Iterable[Path]], seen: dict[Path, tuple[_Stamp, bytes]]) -> dict[Path, tuple[_Stamp, bytes]]:
    return _look([file.absolute() for file in files()], seen)


def _existing(folders: Iterable[Path]) -> list[Path]:
    return sorted({folder for folder in folders if folder.is_dir()})


def _words(folders: Collection[Path]) -> AsyncGenerator[object]:
    """One whenever something happens in *folders*, and one each second."""
    return watchfiles.awatch(
        *folders,
        watch_filter=None,
        debounce=DEBOUNCE_MS,
        step=DEBOUNCE_MS // 4,
        rust_timeout=LOOK_MS,
        yield_on_timeout=True,
        recursive=False,
        ignore_permission_denied=True,
    )


async def watch_files(files: Collection[Path]) -> AsyncIterator[frozenset[Path]]:
    """The files of *files* whose content has changed, each time that some has; a file that is gone has changed too.

    First comes an empty set: changes are told from then on. Whoever read the files before has to look again, once.

    Ends only when it is cancelled or closed. Raises OSError where the system can't watch (its limit is reached).
    """
    watched = await asyncio.to_thread(lambda: [file.absolute() for file in files])
    seen = await asyncio.to_thread(_look, watched, {})
    yield frozenset()
    while True:
        folders = await asyncio.to_thread(folders_of, watched)
        words = _words(folders)
        try:
            async with aclosing(words):
                async for _ in words:
                    now = await asyncio.to_thread(_look, watched, seen)
                    changed = frozenset(file for file in watched if now[file][1] != seen[file][1])
                    seen = now
                    if changed:
                        yield changed
                    if await asyncio.to_thread(folders_of, watched) != folders:
                        break
        except FileNotFoundError:
            await asyncio.sleep(DEBOUNCE_MS / 1000)  # a folder went between the look and the watch
        except WatchfilesRustInternalError as error:
            raise OSError(str(error)) from None


def folders_of(files: Collection[Path]) -> list[Path]:
    """The folders where something can happen to *files*: theirs, and those of every symbolic link on the way to them.

    Of a folder that is not there, the nearest one above it.
    """
    found: set[Path] = set()
    for file in files:
        _follow(file.absolute(), found)
    return sorted(found)


def _follow(file: Path, found: set[Path]) -> None:
    """Walk along a path from the root, as the system does."""
    rest = list(reversed(file.parts[1:]))
    at, links = Path(file.anchor), 0
    while rest:
        part = rest.pop()
        if part == "..":
            at = at.parent
            continue
        step = at / part
        try:
            target = step.readlink()
        except OSError:
            target = None
        if target is not None:
            found.add(at)
            links += 1
            if links > MAX_LINKS:
                return
            if target.is_absolute():
                at = Path(target.anchor)
            rest += reversed(target.parts[1:] if target.is_absolute() else target.parts)
        elif rest and not step.is_dir():
            found.add(at)
            return
        else:
            if not rest:
                found.add(at)
            at = step


def _look(files: list[Path], seen: dict[Path, tuple[_Stamp, bytes]]) -> dict[Path, tuple[_Stamp, bytes]]:
    """Stamp and digest of each file; a file whose stamp is the same is not read again."""
    now: dict[Path, tuple[_Stamp, bytes]] = {}
    for file in files:
        stamp = _stamp(file)
        old = seen.get(file)
        now[file] = old if old is not None and old[0] == stamp and stamp is not None else (stamp, _digest(file))
    return now


def _stamp(file: Path) -> _Stamp:
    try:
        stat = file.stat()
    except OSError:
        return None
    return (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


def _digest(file: Path) -> bytes:
    return digest(*read_bytes(file))
