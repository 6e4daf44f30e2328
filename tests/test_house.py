"""The house itself: floors, light imports, and a registry that agrees with what it names."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from importlinter.cli import lint_imports

import threecad
from threecad.detector import Detector
from threecad.errors import SettingsError
from threecad.methods import METHODS
from threecad.settings import MethodConfig

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "torchvision", "timm", "lightning_fabric", "scipy", "PIL")


def loaded_by(statements: str) -> set[str]:
    """Which of the heavy packages a fresh interpreter holds after `statements`."""
    code = f"{statements}\nimport sys; print(*(name for name in {HEAVY!r} if name in sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(result.stdout.split())


def test_files_import_from_floors_below_their_own_only(capfd: pytest.CaptureFixture[str]) -> None:
    status = lint_imports(config_filename=str(ROOT / "pyproject.toml"), no_cache=True, no_logo=True)
    assert status == 0, capfd.readouterr().out


@pytest.mark.parametrize(
    "statements",
    [
        "import threecad",
        "from threecad import METHODS; [METHODS.paper(name) for name in METHODS]",
        "import threecad.settings, threecad.errors, threecad.records",
    ],
)
def test_names_and_papers_come_without_torch(statements: str) -> None:
    assert loaded_by(statements) == set()


def test_metrics_come_without_torch() -> None:
    assert "torch" not in loaded_by("import threecad; threecad.metrics.pixel_scores")


def test_every_public_name_is_there_and_an_unknown_one_is_not() -> None:
    assert threecad.__all__ == dir(threecad)
    assert all(hasattr(threecad, name) for name in threecad.__all__)
    assert not hasattr(threecad, "Trainer")


def test_every_method_file_is_in_the_registry_and_the_other_way_round() -> None:
    files = {file.stem for file in (ROOT / "src/threecad/methods").glob("*.py")} - {"__init__"}
    assert files == set(METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_the_table_and_the_class_agree(name: str) -> None:
    method = METHODS[name]
    assert issubclass(method, Detector)
    assert method.paper is METHODS.paper(name)
    assert issubclass(method.Config, MethodConfig)
    assert method.__module__ == f"threecad.methods.{name}"
    needs_backbone = "backbone" in method.Config.model_fields
    assert ("backbone" in method.paper.needs) == needs_backbone


@pytest.mark.parametrize("name", METHODS)
def test_a_method_file_opens_with_idea_how_it_works_equations_and_differences(name: str) -> None:
    text = sys.modules[METHODS[name].__module__].__doc__ or ""
    idea, headings = text.splitlines()[0], ("How it works", "Where each ", "Differences")
    assert ": " in idea and idea.endswith(".")
    places = [text.find(f"\n{heading}") for heading in headings]
    assert -1 not in places and places == sorted(places)


@pytest.mark.parametrize("name", METHODS)
def test_defaults_are_valid_and_every_setting_says_what_it_is(name: str) -> None:
    config = METHODS[name].Config
    config(**config().model_dump(mode="json"))
    assert [key for key, field in config.model_fields.items() if not field.description] == []


@pytest.mark.parametrize("name", METHODS)
def test_the_tiny_configuration_needs_nothing_and_has_a_grid_of_eight_by_eight_or_more(name: str) -> None:
    tiny = METHODS[name].Config.tiny()
    assert tiny.weights == "random"
    assert min(tiny.image_size) >= 8


def test_an_unknown_method_names_the_nearest() -> None:
    with pytest.raises(SettingsError, match=r"unknown method 'simplnet'; did you mean 'simplenet'\?"):
        METHODS["simplnet"]
    assert "simplnet" not in METHODS


def test_a_file_that_is_no_utils() -> None:
    forbidden = {"utils", "helpers", "common", "misc", "base", "toolbox"}
    names = {path.stem for path in (ROOT / "src/threecad").rglob("*")}
    assert not names & forbidden
