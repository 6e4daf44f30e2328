"""Everything that a bundle's PC has to install, in one folder: for a place without internet.

They are wheels of the versions installed here, with which the proof was made, for this machine's system and Python.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import shutil
import subprocess
import sys
import tempfile
import urllib.parse
import urllib.request
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from threecad.errors import BundleError
from threecad.files import file_sha256, write_text
from threecad.runtime.bundle import Backend

SOURCE = ("pyproject.toml", "README.md", "LICENSE", "NOTICE", "src")
"""What ThreeCAD's own wheel is built from."""


def gather_wheels(backend: Backend, folder: Path) -> None:
    """Fill `folder` with wheels, their hashes in `requirements.txt`, and the line that installs them in `INSTALL.txt`.

    Asks the package index that pip is set up for.

    Raises:
        BundleError: pip cannot find or build one; says its last line.
    """
    folder.mkdir()
    wanted = [f"{name}=={version}" for name, version in installed_for(backend).items()]
    _pip("download", "--no-deps", "--only-binary", ":all:", "--dest", str(folder), *wanted)
    _build_own(folder)
    wheels = sorted(folder.glob("*.whl"))
    lines = [f"{'=='.join(wheel.name.split('-')[:2])} --hash=sha256:{file_sha256(wheel)}\n" for wheel in wheels]
    write_text(folder / "requirements.txt", "".join(lines))
    write_text(
        folder / "INSTALL.txt",
        f"For Python {'.'.join(platform.python_version_tuple()[:2])} on {platform.system()} {platform.machine()}, "
        "without internet; in this folder:\n\n"
        "python -m pip install --no-index --find-links . --no-deps --require-hashes -r requirements.txt\n",
    )


def installed_for(backend: Backend) -> dict[str, str]:
    """Versions of all packages that `threecad[backend]` needs, by name, as they are installed here; without ThreeCAD.

    Raises:
        BundleError: one is not installed.
    """
    found: dict[str, str] = {}
    todo = _needed_by("threecad", backend)
    while todo:
        name = todo.pop()
        if name in found:
            continue
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            raise BundleError(f"--with-wheels: {name} is not installed here; pip install 'threecad[train]'") from None
        todo += _needed_by(name, "")
    return dict(sorted(found.items()))


def _needed_by(name: str, extra: str) -> list[str]:
    needed = [Requirement(text) for text in importlib.metadata.requires(name) or []]
    return [
        canonicalize_name(one.name) for one in needed if one.marker is None or one.marker.evaluate({"extra": extra})
    ]


def _build_own(folder: Path) -> None:
    """ThreeCAD's wheel: from its source where it was installed from there, else from the package index."""
    described = importlib.metadata.distribution("threecad").read_text("direct_url.json")
    url = urllib.parse.urlparse(json.loads(described)["url"] if described else "")
    if url.scheme != "file":
        _pip("download", "--no-deps", "--dest", str(folder), f"threecad=={importlib.metadata.version('threecad')}")
        return
    source = Path(urllib.request.url2pathname(url.path))
    with tempfile.TemporaryDirectory() as temporary:  # a build leaves files in its source
        for name in SOURCE:
            if (source / name).is_dir():
                shutil.copytree(source / name, Path(temporary) / name)
            elif (source / name).exists():
                shutil.copyfile(source / name, Path(temporary) / name)
        _pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), temporary)


def _pip(*arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["it said nothing"]
        raise BundleError(f"--with-wheels: pip {arguments[0]} failed: {lines[-1]}")
