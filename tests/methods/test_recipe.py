"""What the presets mean, what a fit needs before it starts, and how rows are called; for every method."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from threecad import allocation
from threecad.detector import GradientPhase
from threecad.errors import DataError, SettingsError
from threecad.fit_plan import plan_fit
from threecad.fitting import fit
from threecad.methods import METHODS, padim, row_name
from threecad.methods.realnet import RealNet, RealNetConfig
from threecad.presets import resolve_settings
from threecad.records import Batch
from threecad.settings import TrainingSettings
from threecad.synthesis import textures
from threecad.synthesis.textures import ProceduralTextures, texture_source
from threecad.tensors import seed_everything

TINY_DRAEM = {"image_size": 64, "reconstruction_widths": [8] * 5, "discriminator_widths": [8] * 6}


@pytest.mark.parametrize("name", METHODS)
def test_the_paper_preset_computes_as_the_published_code_does(name: str) -> None:
    expected = "auto" if name == "cfrg" else "float32"
    assert resolve_settings(name).training.precision == expected
    assert resolve_settings(name, {"training": {"precision": "bf16"}}).training.precision == "bf16"
    assert resolve_settings(name, {"training": {"preset": "quick"}}).training.precision == "auto"


def test_the_quick_preset_records_that_its_textures_are_procedural_and_takes_others() -> None:
    quick = {"training": {"preset": "quick"}}
    assert str(resolve_settings("draem", quick).data.textures) == "procedural"
    assert resolve_settings("draem", quick, {"data": {"textures": "dtd"}}).data.textures.name == "dtd"


@pytest.mark.parametrize("name", METHODS)
def test_a_method_with_synthetic_textures_does_not_start_without_a_source_and_others_never_ask(name: str) -> None:
    detector = METHODS[name](METHODS[name].Config.tiny())
    if "textures" in METHODS.paper(name).needs:
        with pytest.raises(SettingsError, match=r"data\.textures"):
            plan_fit(detector, texture_source(None), TrainingSettings(), images=8)
    else:
        assert plan_fit(detector, texture_source(None), TrainingSettings(), images=8).textures is None
    plan_fit(detector, texture_source("procedural"), TrainingSettings(), images=8)


def test_without_textures_a_fit_with_the_papers_preset_ends_before_there_is_a_run_folder(
    tree: Path, tmp_path: Path
) -> None:
    with pytest.raises(SettingsError, match=r'data\.textures = "procedural"'):
        fit("draem", tree, tmp_path / "run", settings={"method": TINY_DRAEM})
    assert not (tmp_path / "run").exists()


def test_steps_that_a_quick_destseg_records_are_those_that_run() -> None:
    settings = resolve_settings("destseg", {"training": {"preset": "quick"}})
    detector = METHODS["destseg"](
        METHODS["destseg"]
        .Config.tiny()
        .model_copy(update={key: getattr(settings.method, key) for key in ("student_steps", "segmenter_steps")})
    )
    plan = plan_fit(detector, ProceduralTextures(), settings.training, images=100)
    assert plan.steps == (settings.method.student_steps, settings.method.segmenter_steps)


@pytest.mark.parametrize(("images", "batch", "error"), [(1, None, DataError), (8, 1, SettingsError)])
def test_destseg_does_not_start_with_one_image_a_step(
    tree: Path, tmp_path: Path, images: int, batch: int | None, error: type[Exception]
) -> None:
    for file in sorted((tree / "plate" / "train" / "good").iterdir())[images:]:
        file.unlink()
    method = METHODS["destseg"].Config.tiny().model_dump(exclude_defaults=True)
    training = {} if batch is None else {"batch": batch}
    settings: dict[str, dict[str, Any]] = {
        "method": method,
        "training": training,
        "data": {"textures": "procedural", "holdout": 0},
    }
    with pytest.raises(error, match=r"expected at least 2 .*DeSTSeg"):
        fit("destseg", tree, tmp_path / "run", settings=settings)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", METHODS)
def test_every_method_learns_from_the_least_batch_that_it_names(name: str) -> None:
    """At its smallest image, where coarse grids have a single position."""
    config = METHODS[name].Config
    changes: dict[str, Any] = {"window": 1} if name == "uniad" else {}
    side = next(side for side in (32, 64, 128) if side % config.grid == 0)
    settings = config.tiny().model_dump() | {"image_size": (side, side)} | changes
    seed_everything((0,), torch.device("cpu"))
    detector = METHODS[name](config(**settings)).eval()
    image = torch.rand(detector.least_batch, 3, side, side)
    for phase in detector.phases(ProceduralTextures()):
        if not isinstance(phase, GradientPhase):
            continue
        for part in phase.trains:
            part.train()
        altered = ProceduralTextures().sample(len(image), (side, side), torch.Generator().manual_seed(0))
        mask = torch.zeros(len(image), 1, side, side)
        mask[..., : side // 2] = 1
        batch = Batch(image, torch.where(mask > 0, altered, image), mask)
        assert all(term.isfinite() for term in phase.losses(batch).values())
        detector.eval()


def test_gaussians_that_do_not_fit_into_memory_are_refused_before_they_are_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = padim.PaDiMConfig.tiny()
    needed = 16 * 16 * 12**2
    for free in (2 * needed, 6 * needed):  # 4 bytes a number for the detector, 8 for the sums of a fit
        monkeypatch.setattr(padim, "available_bytes", lambda free=free: free)
        with pytest.raises(SettingsError, match=r"GB of memory for Σ.*\n.*method\.features = \d+ or fewer"):
            list(padim.PaDiM(config).phases(ProceduralTextures()))
    monkeypatch.setattr(padim, "available_bytes", lambda: 9 * needed)
    list(padim.PaDiM(config).phases(ProceduralTextures()))


def test_memory_that_is_left_is_a_number_of_bytes() -> None:
    assert allocation.available_bytes() > 1e6


def test_the_plan_makes_no_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    detector = padim.PaDiM(padim.PaDiMConfig.tiny())
    monkeypatch.setattr(detector.gaussians, "empty_sums", lambda: pytest.fail("the plan made the sums"))
    assert plan_fit(detector, ProceduralTextures(), TrainingSettings(), images=8).steps == (1,)


def test_generated_pictures_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "part.png")
    read: list[Path] = []
    fingerprint = textures._fingerprint
    monkeypatch.setattr(
        textures, "_fingerprint", lambda folder, files: read.append(folder) or fingerprint(folder, files)
    )
    detector = RealNet(RealNetConfig.tiny().model_copy(update={"sdas_dir": tmp_path}))
    for _ in range(2):
        plan_fit(detector, texture_source(None), TrainingSettings(), images=8)
    assert read == [tmp_path]


def test_realnets_anomalies_stay_on_the_part_if_asked() -> None:
    dark = torch.full((4, 3, 128, 128), 0.1)
    dark[..., 32:96, 32:96] = 0.8
    for foreground in (True, False):
        detector = RealNet(RealNetConfig.tiny().model_copy(update={"foreground": foreground}))
        selection, joint = detector.phases(ProceduralTextures())
        outside = 0.0
        for phase in (selection, joint):
            mask = phase.synthesizer(dark.repeat(8, 1, 1, 1), torch.Generator().manual_seed(0)).mask
            outside += float(mask.sum() - mask[..., 32:96, 32:96].sum())
        assert (outside == 0) is foreground


@pytest.mark.parametrize("name", METHODS)
def test_what_is_ours_is_a_switch_that_is_off_in_the_paper_and_named_in_the_row(name: str) -> None:
    defaults = METHODS[name].Config().model_dump()
    assert row_name(name, defaults) == row_name(name, {}) == METHODS.paper(name).name
    ours = METHODS.entry(name).ours
    assert all(defaults[key] is False for key in ours)
    assert {"calibrated", "standardised"} & defaults.keys() <= set(ours)
    for key in ours:
        assert row_name(name, defaults | {key: True}) == f"{METHODS.paper(name).name}, {key}"


def test_the_calibrated_cfrg_is_another_row() -> None:
    assert row_name("cfrg", {"calibrated": False}) == "CFRG"
    assert row_name("cfrg", resolve_settings("cfrg", {"training": {"preset": "quick"}}).method.model_dump()) == (
        "CFRG, calibrated"
    )


HEADS = {
    "cfrg": "segmenter.head",
    "draem": "discriminator.head",
    "destseg": "segmenter.head.2",
    "realnet": "discriminator.head",
    "simplenet": "discriminator.3",
}
"""The last layer before logits, of which neighbours may differ by less than bf16 can tell."""


@pytest.mark.parametrize("name", HEADS)
def test_logits_that_lie_close_are_made_in_float32(name: str) -> None:
    detector = METHODS[name](METHODS[name].Config.tiny()).eval()
    made: list[torch.dtype] = []
    detector.get_submodule(HEADS[name]).register_forward_hook(lambda module, inputs, output: made.append(output.dtype))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        detector(torch.rand(2, 3, *detector.config.image_size))
    assert set(made) == {torch.float32}


def test_draems_reconstruction_is_finer_than_grey_levels_in_bf16() -> None:
    detector = METHODS["draem"](METHODS["draem"].Config.tiny()).eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        reconstructed = detector.reconstruction(torch.rand(2, 3, 64, 64))
    assert reconstructed.dtype == torch.float32
    assert not torch.equal(reconstructed, reconstructed.bfloat16().float())


def test_simplenets_discriminator_sees_noise_that_bf16_would_round_away() -> None:
    detector = METHODS["simplenet"](METHODS["simplenet"].Config.tiny()).eval()
    vectors = 2 + torch.rand(64, detector.patches.values)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        moved = detector._discriminate(vectors + 1e-3) - detector._discriminate(vectors)
    with torch.no_grad():
        expected = detector.discriminator(vectors + 1e-3) - detector.discriminator(vectors)
    torch.testing.assert_close(moved, expected)
