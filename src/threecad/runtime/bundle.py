"""What lies in a bundle, and the record that says what it is.

BUNDLE/bundle.json          method, image size, tiles, conditions, versions, SHA-256 of all files but verdict.toml
       detector.onnx        or detector.xml and detector.bin
       good.json            the good parts that verdicts stand on
       verdict.toml         how many of them may be rejected or set aside: the engineer's, and no part of the proof
       roi.png              the region of interest, where there is one
       golden.png           the golden part, where parts are laid upon one
       proof.json           the trained and the exported detector side by side, picture by picture
       maps.npz             the trained detector's maps of the pictures that travel along
       pictures/            those pictures: a few good parts and a few defective ones
       examples.png         each beside what the exported detector finds in it
       licenses/
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from threecad.errors import BundleError
from threecad.files import file_sha256, read_record
from threecad.framing import Framing, Region, Tiles
from threecad.registration import GoldenPart

FORMAT = 2
"""Version of the bundle; a reader refuses any other."""

PREPROCESSING = "decoded and resized by Pillow, bilinear with antialiasing; RGB / 255 as float32 (batch, 3, H, W)"

Backend = Literal["onnx", "openvino"]


class BundleRecord(BaseModel):
    """What `bundle.json` says."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    format: int = FORMAT
    backend: Backend
    model: str  # the file that the backend opens
    opset: int | None = None  # of an ONNX file, as read back from it
    method: str
    categories: list[str]
    image_size: tuple[int, int]  # height and width that pictures are resized to
    preprocessing: str = PREPROCESSING
    decoding: dict[str, Any] = Field(default_factory=dict)  # keywords of `read_image`
    precision: Literal["float32"] = "float32"  # of the arithmetic, asked of the backend explicitly
    settings: dict[str, str] = Field(default_factory=dict)  # of the backend
    tiles: Tiles | None = None  # into which pictures are cut
    region_fill: tuple[int, int, int] | None = None  # the colour outside roi.png
    region_is_exact: bool = True  # made for pictures of its own size
    reach: tuple[float, float] | None = None  # within which parts are laid upon golden.png, shares of height and width
    map_units: dict[str, tuple[float, float]] = Field(default_factory=dict)  # centre and spread of good parts' peaks
    conditions: dict[str, str | int | float | bool | None]  # what scores depend on; also those of good.json
    fit: dict[str, Any]  # how the run came about
    versions: dict[str, str]  # of the libraries that made the bundle
    files: dict[str, str]  # SHA-256 of every file but this and verdict.toml, by its place in the bundle
    sha256: str = ""  # of this record without this field


class Bundle:
    """The files of one bundle."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.record_file = path / "bundle.json"
        self.proof_file = path / "proof.json"
        self.maps_file = path / "maps.npz"
        self.pictures = path / "pictures"
        self.region_file = path / "roi.png"
        self.golden_file = path / "golden.png"

    def read_record(self) -> BundleRecord:
        """What `bundle.json` says.

        Raises:
            BundleError: it is missing, not ours, changed, or of another version.
        """
        try:
            record = read_record(
                self.record_file,
                BundleRecord,
                what="bundle",
                version=FORMAT,
                error=BundleError,
                otherwise="export it again",
            )
        except FileNotFoundError:
            raise BundleError(
                f"expected a bundle with bundle.json at {self.path}, found none; `threecad export` makes one"
            ) from None
        if record.sha256 != digest(record):
            raise BundleError(f"{self.record_file} was changed after the export; export the run again")
        return record

    def read_framing(self, record: BundleRecord) -> Framing:
        """What of a picture the network sees."""
        region = Region.recorded(self.region_file, record.region_fill, record.region_is_exact, record.decoding)
        golden = GoldenPart.recorded(self.golden_file, record.reach)
        return Framing(record.image_size, region, record.tiles, golden)

    def refuse_unless_whole(self, record: BundleRecord) -> None:
        """Nothing, where every file is there and as it was exported.

        Raises:
            BundleError: a file is missing or has changed; names it.
        """
        for place, expected in record.files.items():
            file = self.path / place
            try:
                found = file_sha256(file)
            except OSError as error:
                raise BundleError(
                    f"the bundle is incomplete: {file} cannot be read: {error.strerror}; copy it again"
                ) from None
            if found != expected:
                raise BundleError(f"{file} is not the file that was exported: a byte has changed; copy it again")


def is_bundle(path: Path) -> bool:
    """Whether a folder is a bundle, by the record in it."""
    return (path / "bundle.json").is_file()


def digest(record: BundleRecord) -> str:
    """SHA-256 of all that a record says beside its own."""
    content = record.model_dump(mode="json", exclude={"sha256"})
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
