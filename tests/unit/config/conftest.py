"""Fixtures of the configuration's tests."""

from collections.abc import Callable
from pathlib import Path

import pytest
from config_folder import Folder, make_certificate


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


@pytest.fixture
def make_pair(folder: Folder) -> Callable[..., tuple[Path, Path]]:
    """Writes NAME.pem and NAME.key into the folder."""

    def make(name: str, names: list[str], **options: object) -> tuple[Path, Path]:
        certificate, key = make_certificate(names, **options)
        return folder.write(certificate, f"{name}.pem"), folder.write(key, f"{name}.key")

    return make
