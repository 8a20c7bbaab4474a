"""Names for secrets: readable inside the block, gone after it, on Linux and elsewhere."""

import os
import tempfile
from pathlib import Path

import pytest

from proxy.listen.material import secret_file


@pytest.fixture(params=["memory", "no memfd", "no proc"])
def kind(request, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    if request.param == "no memfd":
        monkeypatch.delattr(os, "memfd_create", raising=False)
    elif request.param == "no proc":
        monkeypatch.setattr("proxy.listen.material.Path.exists", lambda _: False)
    elif not hasattr(os, "memfd_create"):
        pytest.skip("no memfd_create here")
    return request.param


@pytest.mark.parametrize("content", [b"", b"secret", b"x" * 200_000])
def test_the_content_is_readable_inside_and_gone_after(kind, tmp_path, content):
    with secret_file(content) as name:
        assert Path(name).read_bytes() == content
        on_disk = [path.name for path in tmp_path.iterdir()]
        assert len(on_disk) == (0 if kind == "memory" else 1)
        assert all((tmp_path / each).stat().st_mode & 0o077 == 0 for each in on_disk)
    assert list(tmp_path.iterdir()) == []


def test_an_error_inside_leaves_nothing(kind, tmp_path):
    with pytest.raises(KeyError), secret_file(b"secret"):
        raise KeyError
    assert list(tmp_path.iterdir()) == []
