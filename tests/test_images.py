"""Pixels in and out of files: every kind of picture that a camera or a labelling tool writes, and the broken ones."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from threecad.errors import DataError, FileError
from threecad.images import (
    MAX_PIXELS,
    brightest_level,
    image_size,
    read_image,
    read_mask,
    resize_map,
    write_png,
    write_tiff,
)

CORNERS = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]], [[255, 255, 255], [9, 9, 9], [0, 0, 0]]], np.uint8)


def reason(path: Path, read=read_image) -> str:
    """The message with which a file is refused: one to three lines that name it."""
    with pytest.raises(DataError) as refused:
        read(path)
    message = str(refused.value)
    assert path.name in message
    assert len(message.splitlines()) <= 3
    return message


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds no pixels."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)), (b"IDAT", b""), (b"IEND", b"")]
    body = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


# --- what is read ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".tiff", ".PNG"])
def test_a_lossless_file_gives_its_rgb_pixels_back(tmp_path, suffix):
    path = tmp_path / f"part{suffix}"
    Image.fromarray(CORNERS).save(path)
    np.testing.assert_array_equal(read_image(path), CORNERS)


def test_the_pixels_can_be_written_to(tmp_path):
    Image.fromarray(CORNERS).save(tmp_path / "part.png")
    read_image(tmp_path / "part.png")[0, 0] = 7
    Image.fromarray(CORNERS[..., 0]).save(tmp_path / "mask.png")
    read_mask(tmp_path / "mask.png")[0, 0] = 1


def test_a_grey_image_has_three_equal_channels(tmp_path):
    grey = np.arange(6, dtype=np.uint8).reshape(2, 3)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(read_image(tmp_path / "grey.png"), np.stack([grey] * 3, axis=2))


def test_a_palette_image_has_the_colours_of_its_palette(tmp_path):
    Image.fromarray(CORNERS).quantize(6).save(tmp_path / "palette.png")
    assert Image.open(tmp_path / "palette.png").mode == "P"
    np.testing.assert_array_equal(read_image(tmp_path / "palette.png"), CORNERS)


def test_a_one_bit_image_is_black_and_white(tmp_path):
    Image.fromarray(np.array([[True, False]])).save(tmp_path / "bits.png")
    assert read_image(tmp_path / "bits.png").tolist() == [[[255] * 3, [0] * 3]]


def test_a_cmyk_jpeg_becomes_rgb(tmp_path):
    ink = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    ink.save(tmp_path / "ink.jpg", quality=100, subsampling=0)
    np.testing.assert_allclose(read_image(tmp_path / "ink.jpg")[8, 8], [255, 0, 0], atol=3)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bits_keep_their_full_range(tmp_path, suffix):
    levels = np.array([[0, 128, 129, 257, 65535 - 128, 65535]], np.uint16)
    Image.fromarray(levels).save(tmp_path / f"deep{suffix}")
    assert read_image(tmp_path / f"deep{suffix}")[0, :, 0].tolist() == [0, 0, 1, 1, 255, 255]


def test_a_big_endian_sixteen_bit_tiff_is_not_read_backwards(tmp_path):
    Image.frombytes("I;16B", (2, 1), struct.pack(">HH", 257, 65535)).save(tmp_path / "big.tif")
    assert read_image(tmp_path / "big.tif")[0, :, 0].tolist() == [1, 255]


def test_a_32_bit_image_within_16_bits_is_read_and_beyond_is_refused(tmp_path):
    Image.fromarray(np.array([[0, 65535]], np.int32)).save(tmp_path / "fits.tif")
    assert read_image(tmp_path / "fits.tif")[0, :, 0].tolist() == [0, 255]
    Image.fromarray(np.array([[-3, 70000]], np.int32)).save(tmp_path / "beyond.tif")
    assert "0 to 65535, found -3 to 70000" in reason(tmp_path / "beyond.tif")


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_twelve_bits_in_sixteen_become_the_whole_range_once_their_number_is_known(tmp_path, suffix):
    levels = np.array([[0, 8, 9, 2048, 4095]], np.uint16)
    Image.fromarray(levels).save(tmp_path / f"camera{suffix}")
    assert read_image(tmp_path / f"camera{suffix}", bits=12)[0, :, 0].tolist() == [0, 0, 1, 128, 255]
    assert read_image(tmp_path / f"camera{suffix}")[0, :, 0].tolist() == [0, 0, 0, 8, 16]
    assert brightest_level(tmp_path / f"camera{suffix}") == 4095


def test_a_level_beyond_the_bits_that_were_named_is_refused(tmp_path):
    Image.fromarray(np.array([[0, 4096]], np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(DataError, match="expected 12-bit grey levels of 0 to 4095, found 0 to 4096"):
        read_image(tmp_path / "deep.png", bits=12)


def test_the_number_of_bits_does_not_touch_an_image_of_eight(tmp_path):
    Image.fromarray(CORNERS).save(tmp_path / "part.png")
    np.testing.assert_array_equal(read_image(tmp_path / "part.png", bits=12), CORNERS)
    assert brightest_level(tmp_path / "part.png") is None


def test_floating_point_pixels_run_from_0_to_1(tmp_path):
    write_tiff(tmp_path / "float.tif", np.array([[0, 0.25, 0.5, 1]], np.float32))
    assert read_image(tmp_path / "float.tif")[0, :, 0].tolist() == [0, 64, 128, 255]


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_alpha_that_is_0_everywhere_is_no_transparency(tmp_path, suffix):
    Image.fromarray(np.dstack([CORNERS, np.zeros((2, 3), np.uint8)])).save(tmp_path / f"unused{suffix}")
    np.testing.assert_array_equal(read_image(tmp_path / f"unused{suffix}"), CORNERS)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_what_is_transparent_lies_on_black(tmp_path, suffix):
    Image.fromarray(np.array([[[200, 100, 50, 255], [200, 100, 50, 0]]], np.uint8)).save(tmp_path / f"alpha{suffix}")
    assert read_image(tmp_path / f"alpha{suffix}").tolist() == [[[200, 100, 50], [0, 0, 0]]]


def test_a_transparent_colour_lies_on_black_too(tmp_path):
    Image.fromarray(CORNERS).save(tmp_path / "keyed.png", transparency=(255, 0, 0))
    assert read_image(tmp_path / "keyed.png")[0, :2].tolist() == [[0, 0, 0], [0, 255, 0]]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
def test_an_image_stands_upright_as_its_exif_entry_asks(tmp_path, suffix, orientation):
    grey = np.kron(np.array([[0, 90, 180], [30, 120, 250]], np.uint8), np.ones((16, 16), np.uint8))
    upright = {
        1: grey,
        2: grey[:, ::-1],
        3: grey[::-1, ::-1],
        4: grey[::-1],
        5: grey.T,
        6: np.rot90(grey, -1),
        7: grey[::-1, ::-1].T,
        8: np.rot90(grey),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"turned{suffix}"
    Image.fromarray(grey).save(path, exif=exif, **({"quality": 100} if suffix == ".jpg" else {}))
    assert image_size(path) == upright.shape
    np.testing.assert_allclose(read_image(path)[..., 0], upright, atol=2)
    np.testing.assert_array_equal(read_mask(path), read_image(path)[..., 0] > 0)


def test_the_size_comes_from_the_header_alone(tmp_path):
    path = tmp_path / "cut.png"
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:200])
    assert image_size(path) == (40, 60)
    assert "truncated" in reason(path)


def test_shrinking_is_antialiased(tmp_path):
    stripes = np.zeros((64, 64), np.uint8)
    stripes[:, ::2] = 200
    Image.fromarray(stripes).save(tmp_path / "stripes.png")
    small = read_image(tmp_path / "stripes.png", size=(8, 16))
    assert small.shape == (8, 16, 3)
    assert abs(small[2:-2, 2:-2].astype(int) - 100).max() <= 1  # neighbours alone would give 0, 200 or a beat


def test_a_picture_of_several_frames_that_is_no_tiff_gives_its_first(tmp_path):
    first, second = Image.fromarray(CORNERS), Image.new("RGB", (3, 2))
    first.save(tmp_path / "moving.png", save_all=True, append_images=[second])
    np.testing.assert_array_equal(read_image(tmp_path / "moving.png"), CORNERS)


# --- masks and maps --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "levels",
    [
        np.array([[0, 255]], np.uint8),
        np.array([[0, 1]], np.uint8),
        np.array([[0, 1]], np.uint16),
        np.array([[0, 1]], np.int32),
        np.array([[[0, 0, 0], [0, 0, 1]]], np.uint8),
        np.array([[False, True]]),
        np.array([[[0, 0, 0, 255], [255, 255, 255, 255]]], np.uint8),
    ],
    ids=["0 and 255", "0 and 1", "16 bits", "32 bits", "blue", "1 bit", "opaque"],
)
def test_whatever_is_not_black_belongs_to_the_mask(tmp_path, levels):
    Image.fromarray(levels).save(tmp_path / "mask.tif")
    mask = read_mask(tmp_path / "mask.tif")
    assert mask.dtype == np.uint8
    assert mask.tolist() == [[0, 1]]


def test_several_masks_of_an_image_are_one_together(tmp_path):
    for name, levels in (("a", [[9, 0, 0]]), ("b", [[0, 0, 255]]), ("c", [[0, 0]])):
        Image.fromarray(np.array(levels, np.uint8)).save(tmp_path / f"{name}.png")
    a, b, c = (tmp_path / f"{name}.png" for name in "abc")
    assert read_mask(a, more=(b,)).tolist() == [[1, 0, 1]]
    with pytest.raises(DataError, match=r"c\.png: expected the size of a\.png, 1×3, found 1×2"):
        read_mask(a, more=(b, c))


def test_a_mask_of_fractions_is_defect_where_it_is_not_zero(tmp_path):
    write_tiff(tmp_path / "map.tif", np.array([[0, 0.001, 7]], np.float32))
    assert read_mask(tmp_path / "map.tif").tolist() == [[0, 1, 1]]


def test_a_mask_stays_binary_when_resized_and_may_lose_a_tiny_defect(tmp_path):
    mask = np.zeros((64, 64), np.uint8)
    mask[0, 0] = 255  # lies between the pixels that are looked at
    mask[2, 12] = 255  # is one of them
    mask[32:, 32:] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    small = read_mask(tmp_path / "mask.png", size=(16, 8))
    expected = np.zeros((16, 8), np.uint8)
    expected[0, 1] = 1
    expected[8:, 4:] = 1
    np.testing.assert_array_equal(small, expected)


def test_a_map_keeps_its_raw_values_when_resized():
    ramp = np.linspace(-5, 1000, 8, dtype=np.float32)[None].repeat(4, axis=0)
    large = resize_map(ramp, (16, 32))
    assert large.dtype == np.float32 and large.shape == (16, 32)
    assert large.min() == ramp.min() and large.max() == ramp.max()
    np.testing.assert_allclose(resize_map(large, (4, 8))[:, 2:-2], ramp[:, 2:-2], rtol=1e-4)
    np.testing.assert_array_equal(resize_map(ramp[:, ::-1], (4, 8)), ramp[:, ::-1])


def test_a_map_written_as_tiff_comes_back_bit_for_bit(tmp_path):
    anomaly_map = np.random.default_rng(0).normal(0, 1e3, (5, 7)).astype(np.float32)
    write_tiff(tmp_path / "map.tif", anomaly_map)
    with Image.open(tmp_path / "map.tif") as image:
        np.testing.assert_array_equal(np.asarray(image), anomaly_map)


def test_writing_replaces_a_file_as_a_whole_and_leaves_nothing_beside_it(tmp_path):
    path = tmp_path / "out.png"
    path.write_text("old")
    write_png(path, CORNERS)
    np.testing.assert_array_equal(read_image(path), CORNERS)
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_cannot_be_written_is_an_error_naming_it_and_leaves_nothing_behind(tmp_path):
    (tmp_path / "taken.png").mkdir()
    with pytest.raises(FileError, match=r"cannot write .*taken\.png"):
        write_png(tmp_path / "taken.png", CORNERS)
    (tmp_path / "file").touch()
    with pytest.raises(FileError, match=r"cannot write .*map\.tif"):
        write_tiff(tmp_path / "file" / "map.tif", np.zeros((2, 2)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "taken.png"]


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("read", [read_image, read_mask, image_size])
def test_a_missing_file_is_an_error_naming_it(tmp_path, read):
    assert "found no such file" in reason(tmp_path / "missing.png", read)


@pytest.mark.parametrize("read", [read_image, read_mask, image_size])
def test_an_empty_file_is_an_error_that_says_so(tmp_path, read):
    (tmp_path / "empty.png").touch()
    assert "an empty file" in reason(tmp_path / "empty.png", read)


@pytest.mark.parametrize("read", [read_image, read_mask, image_size])
def test_text_called_png_is_an_error_saying_what_was_expected(tmp_path, read):
    (tmp_path / "text.png").write_text("not a picture")
    assert "expected a png, jpg, bmp or tif image" in reason(tmp_path / "text.png", read)


def test_a_script_that_another_program_would_run_is_not_opened(tmp_path):
    (tmp_path / "postscript.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
    assert "expected a png" in reason(tmp_path / "postscript.png")


def test_a_folder_called_png_is_an_error_naming_it(tmp_path):
    (tmp_path / "folder.png").mkdir()
    assert "cannot be read" in reason(tmp_path / "folder.png")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read every file")
def test_a_file_without_permission_is_an_error_that_says_so(tmp_path):
    Image.fromarray(CORNERS).save(tmp_path / "locked.png")
    (tmp_path / "locked.png").chmod(0)
    assert "ermission denied" in reason(tmp_path / "locked.png")


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".tif"])
@pytest.mark.filterwarnings("ignore:Truncated File Read:UserWarning")
def test_a_truncated_file_is_refused_wherever_it_is_cut(tmp_path, suffix):
    noise = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    whole = tmp_path / f"whole{suffix}"
    Image.fromarray(noise).save(whole)
    content = whole.read_bytes()
    path = tmp_path / f"cut{suffix}"
    for length in np.linspace(1, len(content) * 0.97, 40).astype(int):
        path.write_bytes(content[:length])
        reason(path)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".tif"])
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")
def test_a_damaged_file_gives_an_image_or_a_named_error_and_never_a_traceback(tmp_path, suffix):
    rng = np.random.default_rng(0)
    whole = tmp_path / f"whole{suffix}"
    Image.fromarray(rng.integers(0, 256, (12, 20, 3), dtype=np.uint8)).save(whole)
    content = np.frombuffer(whole.read_bytes(), np.uint8)
    path = tmp_path / f"damaged{suffix}"
    refused = 0
    for _ in range(200):
        damaged = content.copy()
        damaged[rng.integers(0, min(len(content), 300), 3)] = rng.integers(0, 256, 3)
        path.write_bytes(damaged.tobytes())
        try:
            assert read_image(path).ndim == 3
            assert len(image_size(path)) == 2
        except DataError as error:
            assert path.name in str(error)
            refused += 1
    assert refused > 0


@pytest.mark.parametrize("read", [read_image, read_mask, image_size])
def test_a_decompression_bomb_is_refused_with_its_size_and_how_to_allow_it(tmp_path, read):
    (tmp_path / "bomb.png").write_bytes(png_header(30_000, 30_000))
    message = reason(tmp_path / "bomb.png", read)
    assert f"at most {MAX_PIXELS} pixels, found 30000×30000" in message
    assert "--set data.max_pixels=900000000" in message


def test_an_image_of_a_line_camera_is_read_where_its_pixels_are_allowed(tmp_path):
    line = np.zeros((30, 90), np.uint8)
    Image.fromarray(line).save(tmp_path / "line.png")
    for read in (read_image, read_mask, image_size):
        with pytest.raises(DataError, match="at most 2699 pixels, found 30×90"):
            read(tmp_path / "line.png", max_pixels=2699)
    assert read_image(tmp_path / "line.png", max_pixels=2700).shape == (30, 90, 3)


def test_the_limit_on_pixels_is_ours_and_a_host_program_keeps_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 3)
    Image.fromarray(CORNERS).save(tmp_path / "part.png")
    assert read_image(tmp_path / "part.png").shape == CORNERS.shape
    assert Image.MAX_IMAGE_PIXELS == 3


def test_a_picture_too_large_for_the_memory_is_not_called_damaged(tmp_path, monkeypatch):
    Image.fromarray(CORNERS).save(tmp_path / "part.png")

    def no_memory(image):
        raise MemoryError

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", no_memory)
    message = reason(tmp_path / "part.png")
    assert "not enough memory" in message and "damaged" not in message


def test_a_png_with_a_long_comment_is_refused_with_that_reason(tmp_path):
    comment = PngImagePlugin.PngInfo()
    comment.add_text("note", "x" * 3_000_000, zip=True)
    Image.fromarray(CORNERS).save(tmp_path / "chatty.png", pnginfo=comment)
    assert "more than 1 MB of text" in reason(tmp_path / "chatty.png")


@pytest.mark.parametrize(
    ("start", "kind"),
    [
        (b"RIFF\x10\x00\x00\x00WEBPVP8 ", "a webp"),
        (b"\x00\x00\x00\x1cftypavif", "an avif"),
        (b"GIF89a", "a gif"),
        (b"%PDF-1.7", "a pdf"),
        (b"version https://git-lfs.github.com/spec/v1", "Git LFS has not fetched"),
    ],
)
def test_what_else_lies_in_a_file_called_png_is_said(tmp_path, start, kind):
    (tmp_path / "other.png").write_bytes(start + bytes(40))
    assert f"found {kind}" in reason(tmp_path / "other.png") or kind in reason(tmp_path / "other.png")


def test_a_link_to_nowhere_is_called_a_link(tmp_path):
    try:
        (tmp_path / "link.png").symlink_to(tmp_path / "gone.png")
    except OSError:
        pytest.skip("this system makes no links")
    assert "a link to" in reason(tmp_path / "link.png") and "gone.png" in reason(tmp_path / "link.png")


@pytest.mark.parametrize(
    ("fractions", "what"), [([0.0, 1.5], "0 to 1.5"), ([-0.1, 0.5], "-0.1 to 0.5"), ([np.nan, 0.5], "nan")]
)
def test_floating_point_pixels_beyond_0_to_1_are_refused(tmp_path, fractions, what):
    write_tiff(tmp_path / "map.tif", np.array([fractions], np.float32))
    assert "floating-point pixels of 0 to 1, found" in reason(tmp_path / "map.tif")
    assert what in reason(tmp_path / "map.tif")


def test_a_tiff_of_several_pages_is_refused_with_their_number(tmp_path):
    page = Image.fromarray(CORNERS)
    page.save(tmp_path / "stack.tif", save_all=True, append_images=[page, page])
    assert "expected a TIFF of one page, found 3" in reason(tmp_path / "stack.tif")


def test_reading_images_needs_no_torch():
    program = "import sys, threecad.images, threecad.data.readers; sys.exit('torch' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", program], env=environment, check=False).returncode == 0
