"""Settings: four tables, merged in order, and the nearest name for every typing mistake."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
import tomli_w
from pydantic import ValidationError

from threecad.errors import SettingsError
from threecad.methods import METHODS
from threecad.methods.cfrg import CFRGConfig
from threecad.methods.realnet import RealNetConfig
from threecad.presets import build, resolve_settings
from threecad.settings import EMBEDDED_BACKBONE, EMBEDDED_TRANSFORMER, DataSettings, TrainingSettings
from threecad.settings_layers import merge, parse_pairs, read_settings, read_toml, validate


@pytest.mark.parametrize(
    ("pair", "value"),
    [
        ("training.steps=500", 500),
        ("method.learning_rate=1e-3", 1e-3),
        ("method.push=false", False),
        ("method.image_size=[256, 320]", [256, 320]),
        ("method.weights=random", "random"),
        ("method.backbone=resnet18.tv_in1k", "resnet18.tv_in1k"),
        ('method.weights="5"', "5"),
        ("data.textures=../shared/data/a=b", "../shared/data/a=b"),
    ],
)
def test_a_value_is_toml_if_it_parses_else_a_string(pair: str, value: object) -> None:
    table, _, rest = pair.partition(".")
    assert parse_pairs([pair]) == {table: {rest.partition("=")[0]: value}}


@pytest.mark.parametrize("pair", ["steps=5", "training.steps", "training.=5", "nothing"])
def test_a_pair_of_another_form_is_refused(pair: str) -> None:
    with pytest.raises(SettingsError, match=r"expected TABLE\.KEY=VALUE, such as training\.steps=500, found"):
        parse_pairs([pair])


def test_later_layers_win_and_leave_other_keys_alone() -> None:
    below, above = {"method": {"epochs": 1, "push": True}}, {"method": {"epochs": 2}, "training": {"seed": 3}}
    assert merge(below, above) == {"method": {"epochs": 2, "push": True}, "training": {"seed": 3}}
    assert below == {"method": {"epochs": 1, "push": True}}


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"trainig": {}}, "unknown settings table [trainig]; did you mean 'training'?"),
        ({"training": {"step": 5}}, "unknown setting 'training.step'; did you mean 'steps'?"),
        ({"method": {"epoch": 5}}, "unknown setting 'method.epoch'; did you mean 'epochs'?"),
        (
            {"training": {"preset": "fast"}},
            "setting 'training.preset': Input should be 'paper' or 'quick'; found 'fast'",
        ),
        (
            {"method": {"image_size": 100}},
            "setting 'method.image_size': expected multiples of 32 px; the next size is 128×128; found 100",
        ),
        (
            {"method": {"image_size": 16}},
            "setting 'method.image_size': expected a height and a width between 32 and 4096 px; found 16",
        ),
        ({"training": {"steps": 0}}, "setting 'training.steps': Input should be greater than or equal to 1; found 0"),
        ({"data": {"holdout": 1.0}}, "setting 'data.holdout': Input should be less than 1; found 1.0"),
        (
            {"evaluation": {"size": 0}},
            "setting 'evaluation.size': expected a height and a width between 16 and 4096 px; found 0",
        ),
        (
            {"evaluation": {"size": [0, 64]}},
            "setting 'evaluation.size': expected a height and a width between 16 and 4096 px; found [0, 64]",
        ),
    ],
)
def test_a_mistake_is_named_with_what_would_be_right(tables: dict[str, dict[str, object]], message: str) -> None:
    with pytest.raises(SettingsError) as refused:
        validate(tables, CFRGConfig)
    assert str(refused.value) == message


@pytest.mark.parametrize(
    ("table", "key", "value"),
    [
        ("data", "holdout", -0.1),
        ("data", "holdout", float("nan")),
        ("data", "max_pixels", 0),
        ("data", "max_pixels", 10**12),
        ("data", "bits", 8),
        ("data", "bits", 17),
        ("training", "steps", 10**12),
        ("training", "batch", 0),
        ("training", "batch", 10**9),
        ("training", "devices", 0),
        ("training", "devices", 10**6),
        ("training", "seed", -1),
        ("training", "seed", 2**63),
        ("training", "checkpoint_s", 0),
        ("training", "checkpoint_s", float("inf")),
        ("training", "steps", True),
        ("evaluation", "size", True),
        ("evaluation", "size", -5),
        ("evaluation", "size", 10_000),
    ],
)
def test_a_value_out_of_its_bounds_is_refused_before_a_fit(table: str, key: str, value: object) -> None:
    with pytest.raises(SettingsError, match=f"setting '{table}.{key}'"):
        validate({table: {key: value}}, CFRGConfig)


def test_every_number_of_the_shared_tables_has_a_lower_and_an_upper_bound() -> None:
    for model in (DataSettings, TrainingSettings):
        for name, field in model.model_fields.items():
            kinds = {field.annotation, *get_args(field.annotation)}
            bounds = {kind for limit in field.metadata for kind in ("ge", "gt", "le", "lt") if hasattr(limit, kind)}
            if kinds & {int, float}:
                assert bounds & {"ge", "gt"} and bounds & {"le", "lt"}, name


def test_one_number_is_a_square() -> None:
    settings = validate({"method": {"image_size": 64}, "evaluation": {"size": 128}}, CFRGConfig)
    assert (settings.method.image_size, settings.evaluation.size) == ((64, 64), (128, 128))


def test_settings_cannot_be_changed_once_resolved() -> None:
    settings = validate({}, CFRGConfig)
    with pytest.raises(ValidationError, match="frozen"):
        settings.training.seed = 1


def test_embedded_names_the_backbone_and_where_its_weights_lie() -> None:
    assert (CFRGConfig(backbone="embedded").backbone, CFRGConfig(backbone="embedded").weights) == (
        EMBEDDED_BACKBONE,
        "embedded",
    )
    transformer = CFRGConfig(backbone="embedded-vit")
    assert (transformer.backbone, transformer.weights) == (EMBEDDED_TRANSFORMER, "embedded")
    assert CFRGConfig(backbone="embedded", weights="random").weights == "random"
    assert CFRGConfig().weights == "imagenet"


@pytest.mark.parametrize("name", METHODS)
def test_what_is_written_beside_a_result_gives_the_same_settings_again(name: str, tmp_path: Path) -> None:
    for preset in ("paper", "quick"):
        settings = resolve_settings(name, {"training": {"preset": preset}})
        file = tmp_path / "settings.toml"
        file.write_text(tomli_w.dumps(settings.as_tables()), encoding="utf-8")
        again = resolve_settings(name, read_settings(file, METHODS[name].Config))
        assert again == settings


def test_the_quick_preset_lies_between_the_methods_defaults_and_what_is_asked() -> None:
    paper = resolve_settings("cfrg")
    quick = resolve_settings("cfrg", {"training": {"preset": "quick"}})
    asked = resolve_settings("cfrg", {"training": {"preset": "quick"}}, {"training": {"batch": 3}})
    assert paper.training.steps is None and paper.data.holdout == 0
    assert quick.training.steps == METHODS["cfrg"].quick.training["steps"] and quick.data.holdout is None
    assert asked.training.batch == 3 and asked.training.steps == quick.training.steps


def test_a_preset_that_does_not_exist_is_named() -> None:
    with pytest.raises(SettingsError, match=r"training\.preset.*'paper' or 'quick'; found 'slow'"):
        resolve_settings("cfrg", {"training": {"preset": "slow"}})


def test_a_settings_file_that_is_missing_or_broken_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"expected a settings file at .*absent\.toml, found none"):
        read_toml(tmp_path / "absent.toml")
    file = tmp_path / "broken.toml"
    file.write_text("[training\nsteps = 5")
    with pytest.raises(SettingsError, match=r"broken\.toml is not a readable TOML file: .*line 1"):
        read_toml(file)


def test_paths_in_a_settings_file_start_at_the_file_and_others_at_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    file = tmp_path / "own" / "settings.toml"
    file.parent.mkdir()
    file.write_text(
        '[data]\nexclude = "bad.txt"\ntextures = "../dtd"\n[method]\nweights = "wrn.pth"\nsdas_dir = "/sdas"\n'
    )
    read = read_settings(Path("../own/settings.toml"), RealNetConfig)
    settings = resolve_settings("realnet", read)
    assert settings.data.exclude is not None and settings.data.exclude.resolve() == tmp_path / "own" / "bad.txt"
    assert isinstance(settings.data.textures, Path) and settings.data.textures.resolve() == tmp_path / "dtd"
    assert Path(settings.method.weights).resolve() == tmp_path / "own" / "wrn.pth"
    assert settings.method.sdas_dir == Path("/sdas")

    named = resolve_settings("realnet", read, parse_pairs(["data.exclude=bad.txt", "data.textures=procedural"]))
    assert named.data.exclude == tmp_path / "here" / "bad.txt"
    assert named.data.textures == "procedural"


def test_words_in_a_settings_file_are_no_paths(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text('[data]\ntextures = "procedural"\n[method]\nweights = "random"\nbackbone = "embedded"\n')
    tables = {"data": {"textures": "procedural"}, "method": {"weights": "random", "backbone": "embedded"}}
    assert read_settings(file, CFRGConfig) == tables


def test_settings_written_beside_a_result_name_their_files_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = resolve_settings("cfrg", {"data": {"exclude": "bad.txt"}, "method": {"weights": "own.safetensors"}})
    file = tmp_path / "run" / "settings.toml"
    file.parent.mkdir()
    file.write_text(tomli_w.dumps(settings.as_tables()), encoding="utf-8")
    monkeypatch.chdir("/")
    assert resolve_settings("cfrg", read_settings(file, CFRGConfig)) == settings


def test_a_settings_file_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    file = tmp_path / "notepad.toml"
    file.write_text("[training]\nseed = 3\n", encoding="utf-8-sig")
    assert read_toml(file) == {"training": {"seed": 3}}


def test_a_value_where_a_table_belongs_is_named() -> None:
    with pytest.raises(SettingsError, match=r"expected a table \[training\], found the value 5"):
        resolve_settings("cfrg", {"training": 5})  # type: ignore[dict-item]


def test_build_takes_the_methods_settings_as_keywords() -> None:
    detector = build("padim", backbone="resnet10t.c3_in1k", weights="random", image_size=64, features=12)
    assert detector.config.features == 12 and detector.config.image_size == (64, 64)
    with pytest.raises(SettingsError, match=r"unknown setting 'method\.feature'; did you mean 'features'\?"):
        build("padim", feature=12)
