"""Pictures and maps on disk, under names that no client can choose: the hash of the content, the number of the part.

STORE/pictures/AB/ABCDEF…   the bytes as they came
      maps/000/1.tiff       the map of part 1, float32, at most `MAP_SIDE` px on its longer side
"""

from __future__ import annotations

import hashlib
import io
import threading
from pathlib import Path

import numpy as np
from PIL import Image

from threecad.errors import DataError
from threecad.files import replacing
from threecad.images import Decoding, image_size, read_image, resize_image, resize_map, write_tiff
from threecad.overlay import Scale, colour, overlay

MAP_SIDE = 1024  # px; of maps that are kept, and of pictures that pages show
QUALITY = 88  # of JPEG files


class Pictures:
    """The picture files of a store."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.used = 0  # bytes, once measured
        self.keeping = threading.RLock()
        """Held from keeping a picture until its part is accepted, and while one is removed."""

    def measure(self) -> None:
        """Count the bytes that are there; from then on they are counted as they come and go."""
        files = (file for kind in ("pictures", "maps") for file in (self.folder / kind).rglob("*") if file.is_file())
        self.used = sum(file.stat().st_size for file in files)

    def keep(self, content: bytes, max_pixels: int) -> str:
        """The name of a picture that is now on disk: the SHA-256 of its bytes.

        Raises:
            DataError: no picture, or one of more pixels than allowed; told by its header, nothing is decoded.
            FileError: it cannot be written.
        """
        name = hashlib.sha256(content).hexdigest()
        path = self.path(name)
        if not path.exists():
            with replacing(path) as temporary:
                temporary.write_bytes(content)
                try:
                    image_size(temporary, max_pixels=max_pixels)
                except DataError as error:
                    raise DataError(without_path(error, temporary)) from None
            self._count(len(content))
        return name

    def remove(self, name: str) -> None:
        """No longer keep a picture."""
        self._unlink(self.path(name))

    def path(self, name: str) -> Path:
        """Where the picture of this hash lies."""
        return self.folder / "pictures" / name[:2] / name

    def map_path(self, part: int) -> Path:
        """Where the map of a part lies."""
        return self.folder / "maps" / f"{part // 1000:03}" / f"{part}.tiff"

    def keep_map(self, part: int, anomaly_map: np.ndarray) -> None:
        """Keep the map (H, W) of a part.

        Raises:
            FileError: it cannot be written.
        """
        path = self.map_path(part)
        write_tiff(path, resize_map(anomaly_map, shown_size(anomaly_map.shape[:2])))
        self._count(path.stat().st_size)

    def remove_map(self, part: int) -> None:
        """No longer keep the map of a part."""
        self._unlink(self.map_path(part))

    def shown(self, name: str, decoding: Decoding) -> bytes:
        """The picture as a JPEG that any browser shows.

        Raises:
            DataError: it is not there, or damaged.
        """
        return _jpeg(self._pixels(name, decoding))

    def coloured_map(self, part: int, scale: Scale) -> bytes:
        """The map of a part as a PNG, the more opaque the more unusual, to be laid over its picture.

        Raises:
            DataError: there is none.
        """
        values = self._map(part)
        opacity = (255 * np.sqrt(scale.apply(values))).astype(np.uint8)
        return _encoded(np.dstack([colour(values, scale), opacity]), "PNG")

    def overlay(self, name: str, part: int, scale: Scale, decoding: Decoding) -> bytes:
        """Picture and map in one JPEG, with a line around what is unusual.

        Raises:
            DataError: one of them is not there.
        """
        values = self._map(part)
        return _jpeg(overlay(resize_image(self._pixels(name, decoding), values.shape[:2]), values, scale))

    def _count(self, size: int) -> None:
        with self.keeping:
            self.used += size

    def _unlink(self, path: Path) -> None:
        if path.exists():
            self._count(-path.stat().st_size)
            path.unlink()

    def _pixels(self, name: str, decoding: Decoding) -> np.ndarray:
        if not self.path(name).exists():
            raise DataError("the picture is no longer kept")
        try:
            pixels = read_image(self.path(name), **decoding)
        except DataError as error:
            raise DataError(without_path(error, self.path(name))) from None
        return resize_image(pixels, shown_size(pixels.shape[:2]))

    def _map(self, part: int) -> np.ndarray:
        try:
            with Image.open(self.map_path(part)) as image:
                return np.array(image, dtype=np.float32)
        except OSError:
            raise DataError(f"the map of part {part} is no longer kept") from None


def without_path(error: Exception, path: Path) -> str:
    """What an error says, without telling a client where files lie."""
    return str(error).replace(str(path), "the picture").partition("; --set ")[0]


def shown_size(size: tuple[int, ...]) -> tuple[int, int]:
    """Height and width of a picture of `size` when its longer side is at most `MAP_SIDE`."""
    shrink = min(1.0, MAP_SIDE / max(size))
    return max(1, round(size[0] * shrink)), max(1, round(size[1] * shrink))


def _jpeg(pixels: np.ndarray) -> bytes:
    return _encoded(pixels, "JPEG")


def _encoded(pixels: np.ndarray, kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, quality=QUALITY)
    return buffer.getvalue()
