"""Synthetic anomalies: Perlin masks, textures, the ten operations on them, and what blending makes of all three."""

from __future__ import annotations

import colorsys
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Generator, Tensor

from threecad.errors import DataError, SettingsError
from threecad.synthesis import augment
from threecad.synthesis.blending import TextureSynthesizer
from threecad.synthesis.colour import AXES, hsv_to_rgb, rgb_to_hsv
from threecad.synthesis.foreground import otsu_foreground
from threecad.synthesis.noise import lattice_noise, perlin_mask, perlin_noise
from threecad.synthesis.rotation import rotate
from threecad.synthesis.textures import FolderTextures, ProceduralTextures, texture_source

SIZE = (64, 48)


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


class Plain:
    """Textures of one brightness, above anything that `dark_images` holds."""

    name = "plain"

    def sample(self, count: int, size: tuple[int, int], generator: Generator) -> Tensor:
        return torch.ones(count, 3, *size)


def dark_images(count: int = 8, size: tuple[int, int] = SIZE) -> Tensor:
    """Images at 8-bit levels from 0 to 0.5."""
    return torch.randint(0, 128, (count, 3, *size), generator=seeded(9)) / 255


def levels(size: tuple[int, int] = (24, 20), count: int = 1) -> Tensor:
    """Smooth colourful 8-bit pictures with a narrow range of levels, as float (count, 3, H, W)."""
    return (ProceduralTextures().sample(count, size, seeded(5)) * 180 + 30).round()


def as_picture(values: Tensor) -> Image.Image:
    return Image.fromarray(values.permute(1, 2, 0).numpy().astype(np.uint8))


def from_picture(picture: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float()


# Noise


def test_lattice_noise_is_perlins_noise_written_out_corner_by_corner() -> None:
    rows, columns, (height, width) = 4, 2, (10, 12)
    noise = lattice_noise(torch.tensor([[rows, columns]], dtype=torch.float32), (height, width), seeded())
    angles = 2 * math.pi * torch.rand(1, rows + 1, rows + 1, generator=seeded())[0].double()

    def fade(t: float) -> float:
        return 6 * t**5 - 15 * t**4 + 10 * t**3

    for row in range(height):
        for column in range(width):
            y, x = row * rows / height, column * columns / width
            i, j = int(y), int(x)
            dots = {
                (a, b): math.sin(angles[i + a, j + b]) * (y - i - a) + math.cos(angles[i + a, j + b]) * (x - j - b)
                for a in (0, 1)
                for b in (0, 1)
            }
            upper = dots[0, 0] + fade(x - j) * (dots[0, 1] - dots[0, 0])
            lower = dots[1, 0] + fade(x - j) * (dots[1, 1] - dots[1, 0])
            expected = math.sqrt(2) * (upper + fade(y - i) * (lower - upper))
            assert noise[0, 0, row, column].item() == pytest.approx(expected, abs=2e-6)


def test_images_of_one_batch_have_lattices_of_their_own() -> None:
    cells = torch.tensor([[1.0, 1.0], [16.0, 16.0], [1.0, 16.0]])
    coarse, fine, mixed = lattice_noise(cells, (64, 64), seeded())[:, 0]
    roughness = [
        (noise.diff(dim=0).abs().mean().item(), noise.diff(dim=1).abs().mean().item())
        for noise in (coarse, fine, mixed)
    ]
    assert roughness[1][0] > 4 * roughness[0][0]
    assert roughness[2][1] > 4 * roughness[2][0]


def test_about_one_mask_in_twenty_is_empty_and_the_others_cover_a_twentieth() -> None:
    masks = perlin_mask(800, (256, 256), seeded()).flatten(1)
    covered = masks.mean(dim=1)
    assert 0.025 < (covered == 0).float().mean() < 0.075
    assert 0.045 < covered[covered > 0].mean() < 0.065


def test_a_mask_is_where_noise_exceeds_a_half() -> None:
    noise, mask = perlin_noise(16, SIZE, seeded(3)), perlin_mask(16, SIZE, seeded(3))
    assert torch.equal(mask, (noise > 0.5).float())
    assert noise.abs().max() <= math.sqrt(2)


@pytest.mark.parametrize("size", [(96, 80), (97, 51), (32, 256), (8, 8), (3, 5)])
def test_noise_has_any_size(size: tuple[int, int]) -> None:
    noise = perlin_noise(6, size, seeded())
    assert noise.shape == (6, 1, *size)
    assert noise.isfinite().all()
    assert noise.std() > 0.02


# Rotation


def test_a_quarter_turn_is_counter_clockwise_and_exact() -> None:
    images = torch.rand(2, 3, 16, 16, generator=seeded())
    turned = rotate(images, torch.tensor([90.0, -90.0]))
    torch.testing.assert_close(turned[0], torch.rot90(images[0], 1, (1, 2)), atol=1e-5, rtol=0)
    torch.testing.assert_close(turned[1], torch.rot90(images[1], -1, (1, 2)), atol=1e-5, rtol=0)


def test_rotation_is_pillows_on_a_canvas_that_is_not_square() -> None:
    image = levels((40, 30))
    turned = rotate(image, torch.tensor([25.0]))[0]
    expected = from_picture(as_picture(image[0]).rotate(25, Image.Resampling.BILINEAR))
    inside = rotate(torch.ones_like(image), torch.tensor([25.0]))[0] > 0.999
    assert 0.5 < inside.float().mean() < 0.9
    assert (turned - expected)[inside].abs().max() <= 1  # Pillow cuts to whole levels
    assert turned[:, 0, 0].eq(0).all()


# Textures


def write_pictures(folder: Path, count: int = 3) -> None:
    for index in range(count):
        path = folder / f"kind{index % 2}" / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20 + index, 30), (10 * index, 100, 200)).save(path)


def test_folder_textures_are_the_pictures_of_the_folder_and_below(tmp_path: Path) -> None:
    write_pictures(tmp_path)
    source = texture_source(tmp_path)
    textures = source.sample(40, (12, 16), seeded())
    assert textures.shape == (40, 3, 12, 16)
    reds = (textures[:, 0, 0, 0] * 255).round().int().tolist()
    assert set(reds) == {0, 10, 20}
    assert torch.equal(textures[:, 2], torch.full((40, 12, 16), 200 / 255))


def test_textures_beyond_the_memory_limit_are_decoded_when_drawn_and_are_the_same(tmp_path: Path) -> None:
    write_pictures(tmp_path)
    held, read = FolderTextures(tmp_path), FolderTextures(tmp_path, memory_limit=100)
    assert torch.equal(held.sample(9, SIZE, seeded()), read.sample(9, SIZE, seeded()))


def test_the_name_of_a_folder_follows_its_content_and_not_its_place(tmp_path: Path) -> None:
    for parent in ("a", "b"):
        write_pictures(tmp_path / parent / "dtd")
    name = FolderTextures(tmp_path / "a" / "dtd").name
    assert name.startswith("folder:dtd#")
    assert len(name) == len("folder:dtd#") + 12
    assert FolderTextures(tmp_path / "b" / "dtd").name == name
    Image.new("RGB", (20, 30), (1, 2, 3)).save(tmp_path / "b" / "dtd" / "kind0" / "0.png")
    assert FolderTextures(tmp_path / "b" / "dtd").name != name


def test_a_texture_folder_that_is_missing_or_empty_is_an_error_naming_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere"):
        texture_source(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("no picture")
    with pytest.raises(DataError, match=r"expected texture pictures .* found none"):
        texture_source(tmp_path)


def test_an_unreadable_texture_is_an_error_naming_the_file(tmp_path: Path) -> None:
    write_pictures(tmp_path)
    (tmp_path / "broken.jpg").write_bytes(b"not a picture")
    with pytest.raises(DataError, match=r"broken\.jpg"):
        texture_source(tmp_path).sample(1, SIZE, seeded())


def test_without_a_choice_of_textures_the_first_use_is_an_error_that_names_the_setting() -> None:
    source = texture_source(None)
    for use in (lambda: TextureSynthesizer(source).source, lambda: source.sample(1, SIZE, seeded())):
        with pytest.raises(SettingsError, match=r"'data\.textures': .*\n.*data\.textures = \"procedural\""):
            use()


def test_procedural_textures_are_varied_and_within_range() -> None:
    source = texture_source("procedural")
    assert source.name == "procedural"
    textures = source.sample(48, (64, 64), seeded())
    assert textures.min() >= 0
    assert textures.max() <= 1
    means = textures.mean(dim=(2, 3))
    assert torch.cdist(means, means).fill_diagonal_(1).min() > 1e-3  # no two alike
    assert means.std(dim=0).min() > 0.1  # colours differ between textures
    assert (textures.std(dim=(2, 3)).amax(dim=1) > 0.01).all()  # and none is flat


@pytest.mark.parametrize("size", [(96, 80), (33, 47)])
def test_procedural_textures_have_any_size_and_follow_the_generator(size: tuple[int, int]) -> None:
    first, again, other = (ProceduralTextures().sample(7, size, seeded(seed)) for seed in (1, 1, 2))
    assert first.shape == (7, 3, *size)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


# Operations on textures


@pytest.mark.parametrize("operation", augment.OPERATIONS, ids=lambda operation: operation.__name__)
def test_every_operation_changes_textures_one_by_one_and_follows_the_generator(operation: augment.Operation) -> None:
    before = levels(count=12)
    first, again = operation(before.clone(), seeded(4)), operation(before.clone(), seeded(4))
    assert torch.equal(first, again)
    assert first.shape == before.shape
    assert first.isfinite().all()
    assert (first.round() - before).abs().amax(dim=(1, 2, 3)).gt(1).sum() >= 4


def test_three_different_operations_are_applied_to_each_texture_in_the_drawn_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def numbered(index: int) -> augment.Operation:
        return lambda values, generator: values * 6 + index  # the digits in base 6 spell the order

    monkeypatch.setattr(augment, "OPERATIONS", tuple(numbered(index) for index in range(4)))
    spelled = (augment.augment_textures(torch.zeros(200, 3, 2, 2), seeded()) * 255).round()
    codes = spelled[:, 0, 0, 0].int().tolist()
    orders = {(code // 36, code // 6 % 6, code % 6) for code in codes}
    assert all(len(set(order)) == 3 for order in orders)
    assert len(orders) == 4 * 3 * 2


def test_augmented_textures_are_8_bit_levels_and_leave_the_given_ones_alone() -> None:
    textures = ProceduralTextures().sample(64, (40, 32), seeded())
    kept = textures.clone()
    augmented = augment.augment_textures(textures, seeded(1))
    assert torch.equal(textures, kept)
    assert augmented.min() >= 0
    assert augmented.max() <= 1
    torch.testing.assert_close(augmented * 255, (augmented * 255).round(), atol=1e-3, rtol=0)
    assert torch.equal(augmented, augment.augment_textures(textures, seeded(1)))


@pytest.mark.parametrize("factor", [0.0, 0.4, 1.0, 1.7])
def test_sharpening_is_pillows(factor: float) -> None:
    image = levels()
    expected = from_picture(ImageEnhance.Sharpness(as_picture(image[0])).enhance(factor))
    sharpened = augment.sharpen(image, torch.tensor(factor)).round().clamp(0, 255)
    assert (sharpened[0] - expected).abs().max() <= 1


@pytest.mark.parametrize("cutoff", [0, 7, 20])
def test_autocontrast_is_pillows(cutoff: int) -> None:
    image = levels()
    expected = from_picture(ImageOps.autocontrast(as_picture(image[0]), cutoff))
    stretched = augment.stretch(image, torch.full((1, 1, 1, 1), float(cutoff))).clamp(0, 255)
    assert (stretched[0] - expected).abs().max() <= 1


def test_equalize_is_pillows_also_for_flat_and_two_coloured_channels() -> None:
    batch = levels((24, 20), 3)
    batch[1, 0] = 70
    batch[2, 1] = (batch[2, 1] > 100) * 90.0
    equalized = augment.equalize(batch, seeded())
    for before, after in zip(batch, equalized, strict=True):
        assert torch.equal(after, from_picture(ImageOps.equalize(as_picture(before))))


def test_autocontrast_of_a_flat_channel_changes_nothing() -> None:
    flat = torch.full((1, 3, 8, 8), 70.0)
    assert torch.equal(augment.stretch(flat, torch.zeros(1, 1, 1, 1)), flat)


def test_posterize_solarize_and_invert_are_pillows_for_some_draw() -> None:
    batch = levels((24, 20), 1).expand(64, -1, -1, -1)
    picture = as_picture(batch[0])
    posterized = {bits: from_picture(ImageOps.posterize(picture, bits)) for bits in range(1, 9)}
    drawn = [
        [bits for bits, expected in posterized.items() if torch.equal(after, expected)]
        for after in augment.posterize(batch, seeded())
    ]
    assert all(drawn)
    assert {bits for found in drawn for bits in found} == set(range(1, 9))

    solarized = [from_picture(ImageOps.solarize(picture, threshold)) for threshold in range(32, 129)]
    after = augment.solarize(batch, seeded())
    unchanged = [torch.equal(image, batch[0]) for image in after]
    assert 16 < sum(unchanged) < 48
    assert all(
        same or any(torch.equal(image, expected) for expected in solarized)
        for image, same in zip(after, unchanged, strict=True)
    )

    assert torch.equal(augment.invert(batch, seeded())[0], from_picture(ImageOps.invert(picture)))


def test_gamma_keeps_black_and_white_and_draws_for_each_channel() -> None:
    ramp = torch.tensor([0.0, 64.0, 128.0, 255.0]).expand(200, 3, 1, 4)
    after = augment.gamma_contrast(ramp, seeded())
    assert torch.equal(after[..., 0], ramp[..., 0])
    assert torch.equal(after[..., 3], ramp[..., 3])
    exponents = (after[..., 0, 2] / 255).log() / math.log(128 / 255)
    assert 0.5 <= exponents.min() < 0.55
    assert 1.95 < exponents.max() <= 2.0001
    assert exponents.std(dim=1).min() > 0


# Colour spaces


def colours(count: int = 60) -> Tensor:
    """Random colours (count, 3, 1, 1) together with black, white, grey and the primaries."""
    special = torch.tensor([[0, 0, 0], [1, 1, 1], [0.5, 0.5, 0.5], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
    return torch.cat([torch.rand(count, 3, generator=seeded()), special])[..., None, None]


@pytest.mark.parametrize("space", AXES)
def test_writing_the_lightness_that_was_read_changes_no_colour(space: str) -> None:
    axis = AXES[space]
    torch.testing.assert_close(axis.write(colours(), axis.read(colours())), colours(), atol=2e-4, rtol=0)


@pytest.mark.parametrize("space", AXES)
def test_the_lightness_that_is_written_is_read_again(space: str) -> None:
    axis, muted = AXES[space], 0.4 + 0.2 * colours()
    wanted = axis.read(muted) * 1.1
    torch.testing.assert_close(axis.read(axis.write(muted, wanted)), wanted, atol=1e-4, rtol=0)


def test_hsv_and_hls_are_the_standard_librarys() -> None:
    for rgb in colours():
        red, green, blue = (value.double().item() for value in rgb.flatten())
        hsv = rgb_to_hsv(rgb[None])[0].flatten()
        assert hsv.tolist() == pytest.approx(colorsys.rgb_to_hsv(red, green, blue), abs=1e-5)
        torch.testing.assert_close(hsv_to_rgb(rgb_to_hsv(rgb[None]))[0], rgb, atol=1e-5, rtol=0)
        hue, lightness, saturation = colorsys.rgb_to_hls(red, green, blue)
        expected = colorsys.hls_to_rgb(hue, 0.9 * lightness, saturation)
        written = AXES["HLS"].write(rgb[None], torch.full((1, 1, 1, 1), 0.9 * lightness))
        assert written.flatten().tolist() == pytest.approx(expected, abs=1e-5)


def test_lab_lightness_of_middle_grey_is_the_textbooks() -> None:
    grey = torch.full((1, 3, 1, 1), 119 / 255)
    assert 100 * AXES["Lab"].read(grey).item() == pytest.approx(50.03, abs=0.05)
    brighter = AXES["Luv"].write(grey, torch.full((1, 1, 1, 1), 0.6))
    assert brighter.std() < 1e-3  # grey stays grey


# Blending


def test_the_mask_is_exactly_where_the_augmented_image_differs() -> None:
    images = dark_images(16)
    batch = TextureSynthesizer(Plain())(images, seeded())
    assert set(batch.mask.unique().tolist()) == {0.0, 1.0}
    assert batch.mask.shape == (16, 1, *SIZE)
    assert torch.equal(batch.image, images)
    assert torch.equal((batch.augmented != images).any(dim=1, keepdim=True), batch.mask == 1)


def test_opacity_is_one_number_an_image_uniform_in_its_range() -> None:
    images = torch.zeros(400, 3, 32, 32)
    batch = TextureSynthesizer(Plain(), opacity=(0.2, 1.0))(images, seeded())
    opacity = batch.augmented.amax(dim=(1, 2, 3))
    inside = torch.where(batch.mask == 1, batch.augmented, opacity.view(-1, 1, 1, 1))
    assert (inside == opacity.view(-1, 1, 1, 1)).all()
    opacity = opacity[opacity > 0]
    assert 0.2 <= opacity.min() < 0.22
    assert 0.98 < opacity.max() <= 1
    assert opacity.mean().item() == pytest.approx(0.6, abs=0.05)


def test_images_that_are_not_chosen_keep_their_pixels_and_an_empty_mask() -> None:
    images = dark_images(400, (32, 32))
    batch = TextureSynthesizer(Plain(), share=0.5)(images, seeded())
    altered = (batch.augmented != images).flatten(1).any(dim=1)
    assert torch.equal(altered, batch.mask.flatten(1).any(dim=1))
    assert 0.36 < altered.float().mean() < 0.56  # half, less the masks that are empty
    assert not TextureSynthesizer(Plain(), share=0.0)(images, seeded()).mask.any()


def test_rotated_clean_images_are_what_the_batch_calls_normal() -> None:
    images = dark_images(300, (24, 24)) + 0.1
    batch = TextureSynthesizer(Plain(), rotate_clean=0.3)(images, seeded())
    rotated = (batch.image != images).flatten(1).any(dim=1)
    assert 0.2 < rotated.float().mean() < 0.4
    outside = (batch.mask == 0).expand_as(images)
    assert torch.equal(batch.augmented[outside], batch.image[outside])
    assert (batch.image[rotated] == 0).flatten(1).any(dim=1).float().mean() > 0.9  # black corners
    assert images.min() > 0  # the given images were left alone


def test_eight_bit_blending_cuts_down_to_levels_inside_the_mask_only() -> None:
    images = dark_images(16)
    smooth = TextureSynthesizer(Plain())(images, seeded())
    whole = TextureSynthesizer(Plain(), eight_bit=True)(images, seeded())
    level = whole.augmented * 255
    torch.testing.assert_close(level, level.round(), atol=1e-3, rtol=0)
    lost = smooth.augmented * 255 - level
    assert lost.min() > -0.01
    assert 0.5 < lost.max() < 1
    outside = (whole.mask == 0).expand_as(images)
    assert torch.equal(whole.augmented[outside], images[outside])


def test_anomalies_stay_within_the_foreground() -> None:
    def left_half(images: Tensor) -> Tensor:
        mask = torch.ones(len(images), 1, *images.shape[-2:])
        mask[..., images.shape[-1] // 2 :] = 0
        return mask

    batch = TextureSynthesizer(Plain(), foreground=left_half)(dark_images(32), seeded())
    assert batch.mask[..., : SIZE[1] // 2].any()
    assert not batch.mask[..., SIZE[1] // 2 :].any()


@pytest.mark.parametrize("bright_part", [True, False])
def test_otsu_finds_the_part_on_a_lighter_or_darker_background(bright_part: bool) -> None:
    part = torch.zeros(1, 1, 64, 48)
    part[..., 12:50, 10:40] = 1
    holed = part.clone()
    holed[..., 30:32, 20:23] = 0  # a dark spot on the part
    holed[..., 3:5, 3:5] = 1  # and a speck beside it
    grey = 0.2 + 0.5 * (holed if bright_part else 1 - holed)
    images = (grey + 0.02 * torch.randn(1, 1, 64, 48, generator=seeded())).expand(-1, 3, -1, -1).clamp(0, 1)
    assert torch.equal(otsu_foreground(images), part)


def test_an_image_of_one_level_is_all_foreground() -> None:
    assert otsu_foreground(torch.full((2, 3, 16, 16), 0.3)).eq(1).all()


@pytest.mark.parametrize(
    "options",
    [{}, {"share": 0.5, "augment": True, "rotate_clean": 0.3}, {"share": 0.5, "augment": True, "eight_bit": True}],
    ids=["cfrg", "draem", "realnet"],
)
def test_a_batch_follows_from_the_generator_alone(options: dict) -> None:
    images = dark_images(12, (96, 80))
    torch.manual_seed(1)
    first = TextureSynthesizer(ProceduralTextures(), **options)(images, seeded(7))
    torch.manual_seed(2)
    again = TextureSynthesizer(ProceduralTextures(), **options)(images, seeded(7))
    other = TextureSynthesizer(ProceduralTextures(), **options)(images, seeded(8))
    assert torch.equal(first.augmented, again.augmented)
    assert torch.equal(first.mask, again.mask)
    assert torch.equal(first.image, again.image)
    assert not torch.equal(first.augmented, other.augmented)
    assert first.augmented.min() >= 0
    assert first.augmented.max() <= 1
    assert first.augmented.dtype == first.mask.dtype == torch.float32
