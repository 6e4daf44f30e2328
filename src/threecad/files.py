"""The one way in which files are written: whole, or not at all.

A file is written inside a hidden folder beside its place, brought to the disk, and renamed. Whoever reads the place
finds the file of before or the new one, never a half; a killed process leaves at most a folder `.threecad-…`, which
`sweep` removes.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from threecad.errors import FileError, ThreeCADError

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError
    from torch import Tensor

_PREFIX = ".threecad-"

Record = TypeVar("Record", bound="BaseModel")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """A block in which a refused write becomes a FileError that names `path`."""
    try:
        yield
    except OSError as error:
        raise FileError(
            f"cannot write {path}: {error.strerror or error}; is the folder writable, and is there room?"
        ) from None


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file to write to, which takes the place of `path` when the block ends well.

    Its folder is made where it is missing. The file is as readable as any other that the user makes.

    Raises:
        FileError: it cannot be written.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=_PREFIX) as folder:
            temporary = Path(folder) / f"new{path.suffix}"  # some writers take no odd name, and need the suffix
            temporary.touch()
            mode = temporary.stat().st_mode  # what the umask grants; some writers make files for their owner only
            yield temporary
            temporary.chmod(mode)
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.replace(path)


@contextmanager
def appearing(folder: Path) -> Iterator[Path]:
    """A folder to write into, which becomes `folder` when the block ends well and is gone when it does not.

    Where `folder` is there already it is empty.

    Raises:
        FileError: it cannot be written.
    """
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=_PREFIX) as beside:
            building = Path(beside) / folder.name
            building.mkdir()
            yield building
            if folder.exists():
                folder.rmdir()
            building.rename(folder)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text; what is none, in the name of a file, stands as `\\udcXX`."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")


def as_text(name: str) -> str:
    """A file's name as text that any encoding takes: odd bytes of a name that is no UTF-8 stand as `\\udcXX`."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def write_json(path: Path, content: object) -> None:
    """Write indented JSON.

    Raises:
        ValueError: a number that JSON does not have.
    """
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def write_tensors(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file of tensors by name, with text about them."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with replacing(path) as temporary:
        try:
            save_file(dict(tensors), temporary, metadata=dict(about or {}))
        except SafetensorError as error:  # how that library reports a full disk
            raise OSError(str(error)) from None


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors of a safetensors file by name, and the text that was saved with them.

    Raises:
        FileError: it is missing, damaged, or of another kind.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise FileError(f"{path} is not a readable safetensors file: {error}") from None


def read_json(path: Path) -> Any:
    """Content of a JSON file.

    Raises:
        FileError: it is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FileError(f"{path} is not readable JSON: {error}") from None


def read_record(
    path: Path, kind: type[Record], *, what: str, version: int, error: type[ThreeCADError], otherwise: str
) -> Record:
    """The record that a JSON file with a number `format` holds.

    Args:
        what: of whose record it is: "run".
        version: the only format that is read.
        otherwise: what to do with a file of an older one: "fit it again".

    Raises:
        FileNotFoundError: there is no such file.
        ThreeCADError: as `error`, which names the file: not readable, not ours, of another version, or damaged.
    """
    from pydantic import ValidationError

    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as fault:
        raise error(f"{path} is not readable: {fault}") from None
    found = content.get("format") if isinstance(content, dict) else None
    if not isinstance(found, int):
        raise error(f"{path}: expected a {what} of ThreeCAD, found something else")
    if found != version:
        remedy = "update this one" if found > version else otherwise
        by = f" by ThreeCAD {content['version']}" if "version" in content else ""
        raise error(f"{path} was written{by}: expected {what} format {version}, found {found}; {remedy}")
    try:
        return kind.model_validate(content)
    except ValidationError as fault:
        raise error(f"{path} is damaged: {first_fault(fault)}") from None


def first_fault(error: ValidationError) -> str:
    """Where the first fault of a record is, and what: `images.0.score: Field required`."""
    first = error.errors()[0]
    where = ".".join(str(key) for key in first["loc"])
    return f"{where or 'the file'}: {first['msg']}"


def file_sha256(path: Path) -> str:
    """Hash of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def link_or_copy(source: Path, target: Path) -> None:
    """A hard link where the file system has them, else a copy: a backbone of a hundred runs lies on disk once."""
    if target.exists():
        return
    try:
        os.link(source, target)
    except OSError:
        with replacing(target) as temporary:
            shutil.copyfile(source, temporary)


def is_leftover(entry: Path) -> bool:
    """Whether this is a folder in which a killed process was writing a file."""
    return entry.name.startswith(_PREFIX) and entry.is_dir()


def whole_files(folder: Path, suffix: str) -> list[Path]:
    """Files of a suffix in a folder and below, sorted; what a killed process left half-written is none of them."""
    files = folder.rglob(f"*{suffix}")
    return sorted(file for file in files if not file.parent.name.startswith(_PREFIX))


def sweep(folder: Path, older_than_s: float = 0.0, *, at_any_depth: bool = False) -> None:
    """Remove what killed processes left half-written in a folder, and in those below it if asked for."""
    for leftover in (folder.rglob if at_any_depth else folder.glob)(f"{_PREFIX}*"):
        try:
            if is_leftover(leftover) and time.time() - leftover.stat().st_mtime >= older_than_s:
                shutil.rmtree(leftover, ignore_errors=True)
        except OSError:
            continue  # another process has just removed it
