"""Pixels in and out of files: the only place where images and masks are decoded, resized or written.

Whatever a file holds becomes 8-bit RGB in the orientation that its EXIF entry asks for. Grey and palette are spelled
out, CMYK is converted, what is transparent lies on black, 16-bit grey is divided by 257 so that its full range stays
the full range. Refused, always with the file's name: a broken or truncated file, floating-point pixels, a TIFF of
several pages, and more pixels than `Image.MAX_IMAGE_PIXELS`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from threecad.errors import DataError
from threecad.files import replacing

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")

_FORMATS = ("PNG", "JPEG", "BMP", "TIFF")  # Pillow knows many more, some of which start other programs
_EXIF_ORIENTATION = 0x0112
_UPRIGHT = {  # EXIF orientation -> what turns the stored pixels upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = (5, 6, 7, 8)


def read_image(path: Path, size: tuple[int, int] | None = None) -> np.ndarray:
    """RGB pixels (H, W, 3) uint8 of an image file, resized to `size` (height, width) if given.

    Resizing is bilinear with antialiasing. 16-bit colour keeps its upper eight bits, as Pillow decodes it.

    Raises:
        DataError: the file is missing or cannot be read as an image; names the file and the reason.
    """
    image = _rgb(_decode(path), path)
    if size is not None:
        image = image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    return np.array(image)


def image_size(path: Path) -> tuple[int, int]:
    """Height and width in pixels of the upright image, from the file's header alone.

    Raises:
        DataError: the file is missing or its header cannot be read; names the file and the reason.
    """
    with _opened(path) as image:
        width, height = image.size
        sideways = _orientation(image) in _SIDEWAYS
    return (width, height) if sideways else (height, width)


def read_mask(path: Path, size: tuple[int, int] | None = None) -> np.ndarray:
    """Mask (H, W) uint8 of 0 and 1 from a file in which any pixel that is not black, however dark, belongs to a defect.

    With `size` (height, width) it is resized by nearest neighbour, in which a tiny defect can vanish.

    Raises:
        DataError: the file is missing or cannot be read as an image; names the file and the reason.
    """
    image = _decode(path)
    # Integers are compared before they are scaled: a 16-bit mask may hold 0 and 1.
    pixels = np.asarray(image) if image.mode == "I" or image.mode.startswith("I;16") else np.asarray(_rgb(image, path))
    mask = (pixels != 0).reshape(*pixels.shape[:2], -1).any(axis=2).astype(np.uint8)
    if size is not None:
        mask = np.array(Image.fromarray(mask).resize((size[1], size[0]), Image.Resampling.NEAREST))
    return mask


def image_pixels(image: Image.Image) -> np.ndarray:
    """RGB pixels (H, W, 3) uint8 of a PIL image, by the rules for files.

    Raises:
        DataError: floating-point pixels, or a mode that has no RGB.
    """
    place = Path(getattr(image, "filename", "") or "the image")
    _refuse_unusable(image, place)
    return np.array(_rgb(image, place))


def resize_image(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Pixels (H, W, 3) uint8 resized to `size` (height, width) as `read_image` does it."""
    if pixels.shape[:2] == tuple(size):
        return pixels
    return np.array(Image.fromarray(pixels).resize((size[1], size[0]), Image.Resampling.BILINEAR))


def resize_map(anomaly_map: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Anomaly map (H, W) float32 resized to `size` (height, width): bilinear, with antialiasing where it shrinks."""
    if anomaly_map.shape == tuple(size):
        return anomaly_map
    image = Image.fromarray(np.ascontiguousarray(anomaly_map, dtype=np.float32))
    return np.array(image.resize((size[1], size[0]), Image.Resampling.BILINEAR))


def write_png(path: Path, pixels: np.ndarray) -> None:
    """A PNG file of uint8 `pixels`, grey (H, W) or RGB (H, W, 3); an existing file is replaced as a whole.

    Raises:
        FileError: the file cannot be written; names the file and the reason.
    """
    with replacing(path) as temporary:
        Image.fromarray(np.ascontiguousarray(pixels, dtype=np.uint8)).save(temporary, format="PNG")


def write_tiff(path: Path, anomaly_map: np.ndarray) -> None:
    """A TIFF file of float32 `anomaly_map` (H, W), unscaled, deflated; an existing file is replaced as a whole.

    Raises:
        FileError: the file cannot be written; names the file and the reason.
    """
    with replacing(path) as temporary:
        image = Image.fromarray(np.ascontiguousarray(anomaly_map, dtype=np.float32))
        image.save(temporary, format="TIFF", compression="tiff_adobe_deflate")


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """The image with its header read; whatever goes wrong inside the block becomes a DataError about the file."""
    try:
        # An open file and not its path: given a path, Pillow maps an uncompressed file into memory, which scrambles a
        # TIFF that stands on its side.
        with path.open("rb") as file, Image.open(file, formats=_FORMATS) as image:
            _refuse_unusable(image, path)
            yield image
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(f"expected an image at {path}, found no such file") from None
    except UnidentifiedImageError:
        found = "an empty file" if path.stat().st_size == 0 else "something else"
        raise DataError(f"{path} cannot be read: expected a png, jpg, bmp or tif image, found {found}") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"{path} cannot be read: {_lower(str(error))}") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {_lower(error.strerror or str(error))}") from None
    except Exception as error:  # on a damaged file Pillow's decoders raise whatever their parsing runs into
        raise DataError(f"{path} cannot be read: damaged file ({type(error).__name__}: {error})") from None


def _refuse_unusable(image: Image.Image, path: Path) -> None:
    width, height = image.size
    limit = Image.MAX_IMAGE_PIXELS  # beyond it Pillow itself only warns, and raises at twice as many
    if limit is not None and width * height > limit:
        raise DataError(f"{path} cannot be read: expected at most {limit} pixels, found {height}×{width}")
    if image.mode == "F":
        raise DataError(f"{path} cannot be read: expected 8 or 16 bits a channel, found floating-point pixels")
    pages = getattr(image, "n_frames", 1) if image.format == "TIFF" else 1
    if pages > 1:
        raise DataError(f"{path} cannot be read: expected a TIFF of one page, found {pages}; save each as its own file")


def _decode(path: Path) -> Image.Image:
    """The upright image in memory, in the mode of its file."""
    with _opened(path) as image:
        orientation = _orientation(image)
        image.load()
        return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image.copy()


def _orientation(image: Image.Image) -> int:
    """EXIF orientation that is still to be applied; asked before the pixels are loaded."""
    if image.format == "TIFF":
        return 1  # Pillow itself turns a TIFF, size and pixels
    return Image.Image.getexif(image).get(_EXIF_ORIENTATION, 1)  # PngImageFile.getexif would decode the whole file


def _rgb(image: Image.Image, path: Path) -> Image.Image:
    if image.mode == "I" or image.mode.startswith("I;16"):
        return _from_16_bit(image, path)
    try:
        if image.has_transparency_data:
            black = Image.new("RGBA", image.size, (0, 0, 0, 255))
            image = Image.alpha_composite(black, image.convert("RGBA"))
        return image.convert("RGB")
    except ValueError:
        raise DataError(f"{path} cannot be read: no conversion from {image.mode} to RGB") from None


def _from_16_bit(image: Image.Image, path: Path) -> Image.Image:
    levels = np.asarray(image).astype(np.int64)
    if levels.min() < 0 or levels.max() > 65535:
        raise DataError(
            f"{path} cannot be read: expected 16-bit grey levels of 0 to 65535, found {levels.min()} to {levels.max()}"
        )
    return Image.fromarray(((levels + 128) // 257).astype(np.uint8)).convert("RGB")


def _lower(sentence: str) -> str:
    return sentence[:1].lower() + sentence[1:]
