"""The state folder's secret."""

from pathlib import Path

import pytest

from proxy.control.state import SECRET_BYTES, StateError, load_secret, read_secret


def test_the_secret_is_made_once_and_kept_private(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "state"
    first = load_secret(folder)
    assert len(first) == SECRET_BYTES
    assert load_secret(folder) == first
    assert (folder / "secret").stat().st_mode & 0o777 == 0o600
    assert folder.stat().st_mode & 0o777 == 0o700


def test_a_damaged_secret_is_refused_with_its_file(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"short")
    with pytest.raises(StateError, match=r"secret: 5 bytes where 32 were expected"):
        load_secret(tmp_path)


def test_a_folder_that_is_a_file_is_refused_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StateError, match=r"the state folder has to be writable"):
        load_secret(tmp_path / "file")


def test_reading_makes_nothing_and_gives_what_is_kept(tmp_path):
    assert read_secret(tmp_path / "state") is None
    assert not (tmp_path / "state").exists()
    assert load_secret(tmp_path / "state") == read_secret(tmp_path / "state")
    (tmp_path / "state" / "secret").write_bytes(b"short")
    with pytest.raises(StateError, match="5 bytes where 32 were expected"):
        read_secret(tmp_path / "state")
    (tmp_path / "other" / "secret").mkdir(parents=True)
    with pytest.raises(StateError, match="Is a directory"):
        read_secret(tmp_path / "other")


def test_whoever_comes_second_takes_the_first_ones_secret_and_nothing_is_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load_secret(tmp_path)
    monkeypatch.setattr(Path, "exists", lambda _: False)  # as for a process that looked a moment earlier
    assert load_secret(tmp_path) == first
    assert [path.name for path in tmp_path.iterdir()] == ["secret"]
