"""`threecad settings`: every setting of a method as a file that can be edited and used."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from threecad.errors import SettingsError
from threecad.methods import METHODS
from threecad.presets import resolve_settings
from threecad.settings import TABLES, read_settings, tables_of
from threecad.settings_file import settings_file


@pytest.mark.parametrize("preset", ["paper", "quick"])
@pytest.mark.parametrize("name", METHODS)
def test_what_is_printed_gives_the_same_settings_again(name: str, preset: str, tmp_path: Path) -> None:
    file = tmp_path / "own.toml"
    file.write_text(settings_file(name, preset), encoding="utf-8")
    again = resolve_settings(name, read_settings(file, METHODS[name].Config))
    assert again == resolve_settings(name, {"training": {"preset": preset}})


@pytest.mark.parametrize("name", METHODS)
def test_every_setting_is_there_with_its_help_and_unset_ones_are_commented_out(name: str) -> None:
    text = settings_file(name)
    content, plain = tomllib.loads(text), " ".join(text.replace("\n# ", " ").split())
    assert list(content) == list(TABLES)
    for table, model in tables_of(METHODS[name].Config).items():
        for key, field in model.model_fields.items():
            assert (key in content[table]) != (f"\n# {key} =\n" in text), key
            assert " ".join(str(field.description).split()) in plain, key


def test_default_bounds_and_what_the_preset_changes_stand_above_a_setting() -> None:
    lines = settings_file("cfrg", "quick").splitlines()
    assert "# unset by default; at least 0.0; below 1.0" in lines[lines.index("# holdout =") - 1]
    steps = METHODS["cfrg"].quick.training["steps"]
    assert f"# unset by default; `quick` sets {steps}; at least 1" in lines[lines.index(f"steps = {steps}") - 1]
    paper = settings_file("cfrg", "paper").splitlines()
    assert "`paper` sets 0.0" in paper[paper.index("holdout = 0.0") - 1]


def test_an_edited_line_is_obeyed(tmp_path: Path) -> None:
    file = tmp_path / "own.toml"
    text = settings_file("padim").replace("# exclude =", 'exclude = "bad.txt"').replace("seed = 0", "seed = 7")
    file.write_text(text, encoding="utf-8")
    settings = resolve_settings("padim", read_settings(file, METHODS["padim"].Config))
    assert (settings.data.exclude, settings.training.seed) == (tmp_path / "bad.txt", 7)


def test_an_unknown_method_or_preset_is_named() -> None:
    with pytest.raises(SettingsError, match="did you mean 'padim'"):
        settings_file("padin")
    with pytest.raises(SettingsError, match="found 'slow'"):
        settings_file("padim", "slow")
