"""``qproxy keygen``: what it writes is what the configuration reads, and no key is lost by it."""

import re
import stat
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from proxy.cli import keygen as command
from proxy.cli import main
from proxy.keys import Key, parse, shown_time

DAY = 24 * 3600.0


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "cluster.key"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["keygen", *map(str, arguments)])


def epochs(file: Path) -> list[int]:
    return [key.epoch for key in parse(file.read_text(), "f").keys]


def test_a_first_key_seals_from_now_on_and_only_its_owner_reads_it(file: Path) -> None:
    result = run(file)
    assert result.exit_code == 0, result.output
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    keys = parse(file.read_text(), "f")
    (key,) = keys.keys
    assert (key.epoch, time.time() - key.begin < 60) == (0, True)
    assert keys.ring != key.secret
    assert not re.search(r"[A-Za-z0-9+/]{43}=", result.output)


def test_without_a_file_it_is_printed_and_each_is_another_one() -> None:
    one, other = (parse(run().output, "f") for _ in range(2))
    assert one.keys[0].secret != other.keys[0].secret
    assert one.ring != other.ring


def test_nothing_is_written_over(file: Path) -> None:
    file.write_text("mine")
    result = run(file)
    assert result.exit_code == 1
    assert "is there already, and no key is written over" in result.output
    assert file.read_text() == "mine"


def test_the_next_key_is_added_and_begins_in_an_hour(file: Path) -> None:
    run(file)
    file.chmod(0o640)
    before = file.read_text()
    result = run("--add", file)
    assert result.exit_code == 0, result.output
    assert file.read_text().startswith(before)
    keys = parse(file.read_text(), "f").keys
    assert [key.epoch for key in keys] == [0, 1]
    assert 3500 < keys[1].begin - time.time() < 3700
    assert shown_time(keys[1].begin) in result.output
    assert stat.S_IMODE(file.stat().st_mode) == 0o640  # as it was: a group may have to read it
    assert [path.name for path in file.parent.iterdir()] == ["cluster.key"]


@pytest.mark.parametrize(("begin", "seconds"), [("2h", 7200), (shown_time(4_000_000_000), None)])
def test_the_begin_may_be_said(file: Path, begin: str, seconds: float | None) -> None:
    run(file)
    assert run("--add", file, "--begin", begin).exit_code == 0
    added = parse(file.read_text(), "f").keys[1].begin
    assert added == 4_000_000_000 if seconds is None else abs(added - time.time() - seconds) < 60


def test_a_key_that_has_begun_already_is_warned_of(file: Path) -> None:
    file.write_text(Key(3, time.time() - DAY, b"k" * 32).line())
    result = run("--add", file, "--begin", shown_time(time.time()))
    assert result.exit_code == 0
    assert "warning: it has begun" in result.output


def test_what_serves_for_the_ring_stays_when_a_line_for_it_is_added(file: Path) -> None:
    file.write_text(Key(3, time.time() - DAY, b"k" * 32).line())
    before = parse(file.read_text(), "f")
    run("--add", file)
    after = parse(file.read_text(), "f")
    assert "\nring " in file.read_text()
    assert after.ring_key == before.ring_key


def full(file: Path, first: int, second_began: float) -> None:
    """Four keys, of which the second began so many seconds ago."""
    now = float(int(time.time()))
    begins = [now - second_began - DAY, now - second_began, now - second_began + 60, now - second_began + 120]
    keys = [Key((first + number) % 256, begin, bytes([number + 1]) * 32) for number, begin in enumerate(begins)]
    file.write_text("# ours\n" + "\n".join(key.line() for key in keys) + "\n")


def test_of_four_the_oldest_goes_when_its_tickets_are_over(file: Path) -> None:
    full(file, 254, second_began=DAY + 60)
    before = parse(file.read_text(), "f")
    result = run("--add", file)
    assert result.exit_code == 0, result.output
    assert "the key of epoch 254 is dropped" in result.output
    assert epochs(file) == [255, 0, 1, 2]
    assert file.read_text().startswith("# ours\n")
    assert parse(file.read_text(), "f").ring_key == before.ring_key


def test_one_that_goes_may_be_written_with_zeros(file: Path) -> None:
    full(file, 7, second_began=DAY + 60)
    file.write_text(file.read_text().replace("\n7 ", "\n007 "))
    result = run("--add", file)
    assert result.exit_code == 0, result.output
    assert epochs(file) == [8, 9, 10, 11]


def test_of_four_none_goes_while_its_tickets_are_good(file: Path) -> None:
    full(file, 0, second_began=DAY - 600)
    before = file.read_text()
    result = run("--add", file)
    assert result.exit_code == 1
    assert "tickets of the oldest, epoch 0, are good until" in result.output
    assert file.read_text() == before


def test_an_epoch_whose_connection_ids_would_look_alike_is_passed_over(file: Path) -> None:
    now = float(int(time.time()))
    keys = [Key(epoch, now - DAY * 9 + number, bytes([number + 1]) * 32) for number, epoch in enumerate((8, 5, 7))]
    file.write_text("\n".join(key.line() for key in keys))
    assert run("--add", file).exit_code == 0
    assert epochs(file) == [8, 5, 7, 9]
    assert command._next_epoch(7, keys) == 9


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--add"], 2, "--add needs the FILE to add a key to"),
        (["--add", "FILE"], 1, "can't be read: No such file or directory"),
        (["/nowhere/at/all"], 1, "/nowhere/at/all: No such file or directory"),
        (["FILE", "--begin", "noon"], 2, "'noon' is no time; expected one like 2026-11-23T20:00:00Z, or a duration from now like 2h"),
    ],
)
def test_what_is_wrong_is_told(file: Path, arguments: list[str], code: int, said: str) -> None:
    result = run(*[str(file) if argument == "FILE" else argument for argument in arguments])
    assert (result.exit_code, said in result.output) == (code, True), result.output


def test_a_file_that_is_wrong_is_left_alone(file: Path) -> None:
    file.write_text("0 now secret\n")
    result = run("--add", file)
    assert result.exit_code == 2
    assert f"{file}:1: the begin is 'now'; expected a time in UTC" in result.output
    assert file.read_text() == "0 now secret\n"


def test_a_begin_before_the_last_one_is_refused(file: Path) -> None:
    run(file)
    run("--add", file, "--begin", "3h")
    result = run("--add", file, "--begin", "2h")
    assert result.exit_code == 1
    assert "the key of epoch 1 begins at" in result.output
    assert epochs(file) == [0, 1]
