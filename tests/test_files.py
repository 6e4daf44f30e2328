"""The one writer: whole or not at all, as readable as any other file, with one sentence where it is refused."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from threecad.errors import FileError
from threecad.files import read_json, read_tensors, sweep, write_json, write_tensors, write_text
from threecad.images import write_png, write_tiff

WRITERS: dict[str, Callable[[Path], None]] = {
    "a.txt": lambda path: write_text(path, "x"),
    "a.json": lambda path: write_json(path, {"x": 1}),
    "a.safetensors": lambda path: write_tensors(path, {"x": torch.ones(2)}),
    "a.png": lambda path: write_png(path, np.zeros((4, 4, 3), np.uint8)),
    "a.tiff": lambda path: write_tiff(path, np.zeros((4, 4), np.float32)),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_write_that_is_refused_names_the_file_and_leaves_nothing(tmp_path: Path, name: str) -> None:
    blocked = tmp_path / "run"
    blocked.write_text("a file where a folder should be")
    with pytest.raises(FileError, match=rf"cannot write .*{name}: .*is the folder writable, and is there room\?"):
        WRITERS[name](blocked / name)
    assert list(tmp_path.iterdir()) == [blocked]


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_is_as_readable_as_the_umask_allows(tmp_path: Path, name: str) -> None:
    before = os.umask(0o022)
    try:
        WRITERS[name](tmp_path / name)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o644


def test_the_file_before_stays_whole_where_another_fails(tmp_path: Path) -> None:
    file = tmp_path / "detector.safetensors"
    write_tensors(file, {"t": torch.ones(2)})
    with pytest.raises(ValueError, match="non contiguous"):
        write_tensors(file, {"t": torch.rand(3, 4).T})
    assert torch.equal(read_tensors(file)[0]["t"], torch.ones(2))
    assert list(tmp_path.iterdir()) == [file]


def test_a_number_that_json_does_not_have_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"score": float("nan")})
    assert not list(tmp_path.iterdir())


def test_a_name_as_long_as_the_file_system_allows_can_be_written(tmp_path: Path) -> None:
    name = "n" * 251 + ".txt"
    write_text(tmp_path / name, "x")
    assert (tmp_path / name).read_text() == "x"


def test_leftovers_are_swept_once_they_are_old_and_nothing_else_is(tmp_path: Path) -> None:
    for name in (".threecad-a", ".threecad-b", ".tmpdir"):
        (tmp_path / name).mkdir()
    (tmp_path / ".threecad-notes").write_text("a file of somebody's")
    os.utime(tmp_path / ".threecad-a", (time.time() - 100, time.time() - 100))
    sweep(tmp_path, older_than_s=50)
    assert {path.name for path in tmp_path.iterdir()} == {".threecad-b", ".tmpdir", ".threecad-notes"}
    sweep(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {".tmpdir", ".threecad-notes"}


def test_what_cannot_be_read_is_an_error_with_the_files_name(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{")
    (tmp_path / "a.safetensors").write_bytes(b"x")
    with pytest.raises(FileError, match=r"a\.json is not readable JSON"):
        read_json(tmp_path / "a.json")
    with pytest.raises(FileError, match=r"a\.safetensors is not a readable safetensors file"):
        read_tensors(tmp_path / "a.safetensors")
