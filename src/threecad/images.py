"""Pixels in and out of files: the only place where images and masks are decoded, resized or written.

Whatever a file holds becomes 8-bit RGB in the orientation that its EXIF entry asks for:

- grey and palette are spelled out, CMYK is converted;
- what is transparent lies on black; but where alpha is 0 everywhere, as camera drivers leave a byte that they do not
  use, there is no transparency and the colour is kept;
- whole numbers of more than 8 bits run from 0 to 2^`bits` - 1, which becomes 255. `bits` is 16, so that the full range
  stays the full range, unless the caller knows that a camera put fewer bits into 16; a level beyond is refused;
- floating-point numbers run from 0 to 1, which becomes 255; a number beyond, or none, is refused;
- 16-bit colour keeps its upper eight bits, as Pillow decodes it.

Refused, always with the file's name: a broken or truncated file, a TIFF of several pages, and more pixels than
`max_pixels`, since a small file can claim to hold more than fits into memory.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from threecad.errors import DataError
from threecad.files import replacing
from threecad.signatures import kind_of_file

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")

MAX_PIXELS = 89_478_485
"""Pixels of the largest image that is read unless the caller allows more: a quarter of a GiB of 24-bit colour."""

Decoding = Mapping[str, Any]
"""How files become pixels: keywords of `read_image`."""

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


def decoding_of(data: Mapping[str, Any]) -> Decoding:
    """What the table [data] of a run's settings says of decoding; what it leaves open stays as `read_image` has it."""
    return {name: data[name] for name in ("bits", "max_pixels") if data.get(name) is not None}


def limit_of(decoding: Decoding) -> dict[str, Any]:
    """What of the decoding concerns headers and masks, too."""
    return {name: value for name, value in decoding.items() if name == "max_pixels"}


def read_image(
    path: Path, size: tuple[int, int] | None = None, *, bits: int = 16, max_pixels: int = MAX_PIXELS
) -> np.ndarray:
    """RGB pixels (H, W, 3) uint8 of an image file, resized to `size` (height, width) if given.

    Resizing is bilinear with antialiasing.

    Args:
        bits: how many bits of a grey level with more than 8 the camera filled, 9 to 16 (setting `data.bits`).
        max_pixels: pixels of the largest image that is read (setting `data.max_pixels`).

    Raises:
        DataError: the file is missing or cannot be read as an image; names the file and the reason.
    """
    image = _rgb(_decode(path, max_pixels), path, bits)
    if size is not None:
        image = image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    return np.array(image)


def image_size(path: Path, *, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Height and width in pixels of the upright image, from the file's header alone.

    Raises:
        DataError: the file is missing or its header cannot be read; names the file and the reason.
    """
    with _opened(path, max_pixels) as image:
        width, height = image.size
        sideways = _orientation(image) in _SIDEWAYS
    return (width, height) if sideways else (height, width)


def brightest_level(path: Path, *, max_pixels: int = MAX_PIXELS) -> int | None:
    """The highest grey level of an image with more than 8 bits a pixel; None for 8 bits and for floating point.

    Raises:
        DataError: the file is missing or cannot be read as an image; names the file and the reason.
    """
    with _opened(path, max_pixels) as image:
        if _is_deep(image):
            return int(np.asarray(image).max())
    return None


def read_mask(
    path: Path, size: tuple[int, int] | None = None, *, more: tuple[Path, ...] = (), max_pixels: int = MAX_PIXELS
) -> np.ndarray:
    """Mask (H, W) uint8 of 0 and 1 from a file in which any pixel that is not black, however dark, belongs to a defect.

    With `size` (height, width) it is resized by nearest neighbour, in which a tiny defect can vanish. Where an image
    has several masks, `more` are the others; all together are the defect.

    Raises:
        DataError: a file is missing, cannot be read as an image, or differs in size; names the file and the reason.
    """
    mask = _is_not_black(path, max_pixels)
    for other in more:
        another = _is_not_black(other, max_pixels)
        if another.shape != mask.shape:
            expected, found = ("×".join(map(str, shape)) for shape in (mask.shape, another.shape))
            raise DataError(f"{other}: expected the size of {path.name}, {expected}, found {found}")
        mask |= another
    if size is not None:
        mask = np.array(Image.fromarray(mask).resize((size[1], size[0]), Image.Resampling.NEAREST))
    return mask


def image_pixels(image: Image.Image) -> np.ndarray:
    """RGB pixels (H, W, 3) uint8 of a PIL image, by the rules for files.

    Raises:
        DataError: floating-point pixels, or a mode that has no RGB.
    """
    place = Path(getattr(image, "filename", "") or "the image")
    _refuse_unusable(image, place, MAX_PIXELS)
    return np.array(_rgb(image, place))


def resize_image(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Pixels (H, W, 3) uint8 resized to `size` (height, width) as `read_image` does it."""
    if pixels.shape[:2] == tuple(size):
        return pixels
    return np.array(Image.fromarray(pixels).resize((size[1], size[0]), Image.Resampling.BILINEAR))


def mask_levels(path: Path, *, max_pixels: int = MAX_PIXELS) -> set[int]:
    """The different levels in a mask of 8 bits; none of a deeper one, where nothing but 0 has a meaning.

    Raises:
        DataError: the file is missing or cannot be read as an image; names the file and the reason.
    """
    image = _decode(path, max_pixels)
    return set() if _is_deep(image) or image.mode == "F" else set(np.unique(np.asarray(_rgb(image, path))).tolist())


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
def _opened(path: Path, max_pixels: int) -> Iterator[Image.Image]:
    """The image with its header read; whatever goes wrong inside the block becomes a DataError about the file."""
    try:
        # An open file and not its path: given a path, Pillow maps an uncompressed file into memory, which scrambles a
        # TIFF that stands on its side.
        with path.open("rb") as file, _open(file) as image:
            _refuse_unusable(image, path, max_pixels)
            yield image
    except DataError:
        raise
    except FileNotFoundError:
        if path.is_symlink():
            raise DataError(f"{path} is a link to {path.readlink()}, which is not there") from None
        raise DataError(f"expected an image at {path}, found no such file") from None
    except UnidentifiedImageError:
        raise DataError(
            f"{path} cannot be read: expected a png, jpg, bmp or tif image, found {kind_of_file(path)}"
        ) from None
    except MemoryError:
        raise DataError(f"{path} cannot be read: there is not enough memory for its pixels") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {_lower(error.strerror or str(error))}") from None
    except Exception as error:  # on a damaged file Pillow's decoders raise whatever their parsing runs into
        if "MAX_TEXT_CHUNK" in str(error) or "MAX_TEXT_MEMORY" in str(error):
            raise DataError(f"{path} cannot be read: it carries more than 1 MB of text; save it without") from None
        raise DataError(f"{path} cannot be read: damaged file ({type(error).__name__}: {error})") from None


def _open(file: io.BufferedReader) -> Image.Image:
    """The image with its header read, as `Image.open` gives it but for the limit on its pixels, which is ours.

    Raises:
        UnidentifiedImageError: none of our formats.
    """
    Image.preinit()
    Image.init()
    prefix = file.read(16)
    for name in _FORMATS:
        open_as, accepts = Image.OPEN[name]
        if accepts is not None and accepts(prefix):
            file.seek(0)
            try:
                return open_as(file, "")
            except (SyntaxError, IndexError, TypeError, struct.error):
                break
    raise UnidentifiedImageError


def _refuse_unusable(image: Image.Image, path: Path, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise DataError(
            f"{path} cannot be read: expected at most {max_pixels} pixels, found {height}×{width}; "
            f"predict takes --max-pixels {width * height}, elsewhere --set data.max_pixels={width * height} allows it"
        )
    pages = getattr(image, "n_frames", 1) if image.format == "TIFF" else 1
    if pages > 1:
        raise DataError(f"{path} cannot be read: expected a TIFF of one page, found {pages}; save each as its own file")


def _decode(path: Path, max_pixels: int) -> Image.Image:
    """The upright image in memory, in the mode of its file."""
    with _opened(path, max_pixels) as image:
        orientation = _orientation(image)
        image.load()
        return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image.copy()


def _orientation(image: Image.Image) -> int:
    """EXIF orientation that is still to be applied; asked before the pixels are loaded."""
    if image.format == "TIFF":
        return 1  # Pillow itself turns a TIFF, size and pixels
    return Image.Image.getexif(image).get(_EXIF_ORIENTATION, 1)  # PngImageFile.getexif would decode the whole file


def _is_deep(image: Image.Image) -> bool:
    """Whether its pixels are whole numbers of more than 8 bits."""
    return image.mode == "I" or image.mode.startswith("I;16")


def _is_not_black(path: Path, max_pixels: int) -> np.ndarray:
    """Mask (H, W) uint8 of an image file at its own size."""
    image = _decode(path, max_pixels)
    # Numbers are compared before they are scaled: a 16-bit mask may hold 0 and 1.
    pixels = np.asarray(image) if _is_deep(image) or image.mode == "F" else np.asarray(_rgb(image, path))
    return (pixels != 0).reshape(*pixels.shape[:2], -1).any(axis=2).astype(np.uint8)


def _rgb(image: Image.Image, path: Path, bits: int = 16) -> Image.Image:
    if _is_deep(image):
        return _from_whole_numbers(image, path, bits)
    if image.mode == "F":
        return _from_fractions(image, path)
    try:
        if image.has_transparency_data:
            image = _on_black(image.convert("RGBA"))
        return image.convert("RGB")
    except ValueError:
        raise DataError(f"{path} cannot be read: no conversion from {image.mode} to RGB") from None


def _on_black(image: Image.Image) -> Image.Image:
    """An RGBA image without its transparency."""
    if image.getchannel("A").getextrema()[1] == 0:
        return image.convert("RGB")
    return Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)


def _from_whole_numbers(image: Image.Image, path: Path, bits: int) -> Image.Image:
    levels = np.asarray(image)
    brightest = 2**bits - 1
    if levels.min() < 0 or levels.max() > brightest:
        found = f"{levels.min()} to {levels.max()}"
        raise DataError(f"{path} cannot be read: expected {bits}-bit grey levels of 0 to {brightest}, found {found}")
    return Image.fromarray(((levels.astype(np.int32) * 255 + brightest // 2) // brightest).astype(np.uint8)).convert(
        "RGB"
    )


def _from_fractions(image: Image.Image, path: Path) -> Image.Image:
    fractions = np.asarray(image)
    if not (fractions.min() >= 0 and fractions.max() <= 1):  # false for NaN too
        found = f"{fractions.min():g} to {fractions.max():g}"
        raise DataError(f"{path} cannot be read: expected floating-point pixels of 0 to 1, found {found}")
    return Image.fromarray(np.rint(fractions * 255).astype(np.uint8)).convert("RGB")


def _lower(sentence: str) -> str:
    return sentence[:1].lower() + sentence[1:]
