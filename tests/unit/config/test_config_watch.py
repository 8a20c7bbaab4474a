"""Changes of files are seen however they are made: on real files, each with a deadline."""

import asyncio
from contextlib import aclosing
from pathlib import Path
from typing import Self

import pytest

from proxy.config.watch import folders_of, watch_files

SECONDS = 10.0
"""Deadline of one wait. What is asked for is two seconds; a laden machine may take longer without being wrong."""


class Watcher:
    """Takes what the watch says, one word after the other."""

    def __init__(self, *files: Path) -> None:
        self._words = watch_files(files)
        self._next: asyncio.Task[frozenset[Path]] | None = None

    async def __aenter__(self) -> Self:
        self._start()
        await asyncio.sleep(0)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._next is not None
        self._next.cancel()
        await asyncio.gather(self._next, return_exceptions=True)
        async with aclosing(self._words):
            pass

    def _start(self) -> None:
        self._next = asyncio.create_task(anext(self._words))  # type: ignore[arg-type]

    async def changed(self) -> set[str]:
        assert self._next is not None
        async with asyncio.timeout(SECONDS):
            files = await self._next
        self._start()
        return {file.name for file in files}


async def settled(watcher: Watcher, canary: Path) -> None:
    """Until the watch is at work: touches a file of its own until it is told of it."""
    number = 0
    told = asyncio.create_task(watcher.changed())
    while not told.done():
        number += 1
        canary.write_text(str(number))
        await asyncio.wait({told}, timeout=0.3)
    await told


@pytest.fixture
async def watched(tmp_path):
    """A certificate in a folder, watched and at work; the canary stands in a folder of its own."""
    folder, canary = tmp_path / "certs", tmp_path / "canary" / "c"
    folder.mkdir()
    canary.parent.mkdir()
    canary.write_text("0")
    file = folder / "a.pem"
    file.write_text("one")
    async with Watcher(file, canary) as watcher:
        await settled(watcher, canary)
        yield watcher, file


async def told_of(watcher: Watcher, name: str) -> None:
    """Skips late words of the canary."""
    while name not in await watcher.changed():
        pass


async def test_the_first_word_says_from_when_on_changes_are_told(tmp_path):
    file = tmp_path / "a.pem"
    file.write_text("one")
    async with Watcher(file) as watcher:
        assert await watcher.changed() == set()
        file.write_text("two")
        assert await watcher.changed() == {"a.pem"}


async def test_a_file_that_is_written_over(watched):
    watcher, file = watched
    file.write_text("two")
    await told_of(watcher, "a.pem")


async def test_a_file_that_takes_the_place_of_the_other(watched):
    watcher, file = watched
    fresh = file.with_suffix(".new")
    fresh.write_text("two")
    fresh.replace(file)
    await told_of(watcher, "a.pem")


async def test_a_file_that_goes_and_comes_back(watched):
    watcher, file = watched
    file.unlink()
    await told_of(watcher, "a.pem")
    file.write_text("three")
    await told_of(watcher, "a.pem")


async def test_a_folder_that_takes_the_place_of_the_other(watched, tmp_path):
    watcher, file = watched
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "a.pem").write_text("two")
    file.parent.rename(tmp_path / "old")
    (tmp_path / "new").rename(file.parent)
    while True:
        await told_of(watcher, "a.pem")
        if file.read_text() == "two":
            break
    file.write_text("three")
    await told_of(watcher, "a.pem")


async def test_the_same_content_is_no_change(watched):
    watcher, file = watched
    before = file.stat().st_ino
    fresh = file.with_suffix(".new")
    fresh.write_text("one")
    fresh.replace(file)
    assert file.stat().st_ino != before
    other = file.parent.parent / "canary" / "c"
    other.write_text("later")
    words: set[str] = set()
    while other.name not in words:
        words |= await watcher.changed()
    assert "a.pem" not in words


async def test_the_turned_link_of_kubernetes(tmp_path):
    """``tls.crt -> ..data/tls.crt``, ``..data -> ..one``; an update turns ``..data`` by a rename."""
    canary = tmp_path / "canary" / "c"
    canary.parent.mkdir()
    canary.write_text("0")
    mount = tmp_path / "mount"
    for name in ("..one", "..two", "..three"):
        (mount / name).mkdir(parents=True)
        (mount / name / "tls.crt").write_text(name)
    (mount / "..data").symlink_to("..one")
    (mount / "tls.crt").symlink_to("..data/tls.crt")
    async with Watcher(mount / "tls.crt", canary) as watcher:
        await settled(watcher, canary)
        for name in ("..two", "..three"):
            (mount / "..data_tmp").symlink_to(name)
            (mount / "..data_tmp").replace(mount / "..data")
            await told_of(watcher, "tls.crt")
            assert (mount / "tls.crt").read_text() == name


async def test_a_link_of_certbot_and_a_file_behind_it(tmp_path):
    """``live/a/cert.pem -> ../../archive/a/cert1.pem``, turned to ``cert2.pem``, which is then written over."""
    canary = tmp_path / "canary" / "c"
    live, archive = tmp_path / "live" / "a", tmp_path / "archive" / "a"
    for folder in (live, archive, canary.parent):
        folder.mkdir(parents=True)
    canary.write_text("0")
    (archive / "cert1.pem").write_text("1")
    (archive / "cert2.pem").write_text("2")
    link = live / "cert.pem"
    link.symlink_to("../../archive/a/cert1.pem")
    async with Watcher(link, canary) as watcher:
        await settled(watcher, canary)
        link.unlink()
        link.symlink_to("../../archive/a/cert2.pem")
        while True:
            await told_of(watcher, "cert.pem")
            if link.exists():
                break
        (archive / "cert2.pem").write_text("3")
        await told_of(watcher, "cert.pem")


async def test_a_file_whose_folder_comes_later(tmp_path):
    canary = tmp_path / "canary" / "c"
    canary.parent.mkdir()
    canary.write_text("0")
    file = tmp_path / "later" / "still" / "a.pem"
    async with Watcher(file, canary) as watcher:
        await settled(watcher, canary)
        file.parent.mkdir(parents=True)
        file.write_text("one")
        await told_of(watcher, "a.pem")


def test_the_folders_where_something_can_happen(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "links").mkdir()
    (tmp_path / "real" / "a.pem").write_text("x")
    (tmp_path / "links" / "folder").symlink_to(tmp_path / "real")
    through = tmp_path / "links" / "folder" / "a.pem"
    assert folders_of([tmp_path / "real" / "a.pem"]) == [tmp_path / "real"]
    assert folders_of([through]) == [tmp_path / "links", tmp_path / "real"]
    assert folders_of([tmp_path / "no" / "such" / "a.pem"]) == [tmp_path]
    assert folders_of([tmp_path / "links" / ".." / "real" / "a.pem"]) == [tmp_path / "real"]


def test_links_in_a_circle_end(tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    assert folders_of([tmp_path / "a"]) == [tmp_path]
