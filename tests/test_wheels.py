"""The wheels that travel with a bundle: of the versions here, enough to install, and nothing that is for training."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from threecad.errors import BundleError
from threecad.export.wheels import gather_wheels, installed_for
from threecad.files import file_sha256
from threecad.runtime.bundle import Backend


def empty_wheel(folder: Path, name: str, version: str) -> None:
    """A wheel that installs nothing, for a package index without internet."""
    stem = f"{name.replace('-', '_')}-{version}"
    about = {
        "METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        "WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "RECORD": "",
    }
    with zipfile.ZipFile(folder / f"{stem}-py3-none-any.whl", "w") as archive:
        for file, text in about.items():
            archive.writestr(f"{stem}.dist-info/{file}", text)


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes for its only package index."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return folder


@pytest.mark.parametrize(("backend", "library"), [("onnx", "onnxruntime"), ("openvino", "openvino")])
def test_a_line_pc_gets_its_backend_and_nothing_of_the_training(backend: Backend, library: str) -> None:
    found = set(installed_for(backend))
    assert {library, "numpy", "pillow", "pydantic", "scipy", "typer"} <= found
    assert not found & {"torch", "timm", "lightning-fabric", "safetensors", "onnx", "setuptools"}


@pytest.mark.slow
def test_the_folder_installs_without_an_index(index: Path, tmp_path: Path) -> None:
    needed = installed_for("onnx")
    for name, version in needed.items():
        empty_wheel(index, name, version)
    wheels = tmp_path / "wheels"
    gather_wheels("onnx", wheels)
    files = {file.name for file in wheels.glob("*.whl")}
    assert len(files) == len(needed) + 1 and any(name.startswith("threecad-") for name in files)
    listed = (wheels / "requirements.txt").read_text()
    assert all(file_sha256(wheels / name) in listed for name in files)
    line = (wheels / "INSTALL.txt").read_text().splitlines()[-1]
    assert line.startswith("python -m pip install --no-index")
    command = [sys.executable, *line.split()[1:], "--target", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=wheels, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site" / "threecad" / "runtime" / "__init__.py").is_file()


@pytest.mark.usefixtures("index")
def test_what_pip_cannot_find_is_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"^--with-wheels: pip download failed: ERROR: .*$"):
        gather_wheels("onnx", tmp_path / "wheels")
