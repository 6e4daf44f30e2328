"""From a method's name and what was asked for to frozen settings: defaults, preset, then the layers above them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from threecad.detector import Detector
from threecad.framing import Tiles
from threecad.methods import METHODS
from threecad.places import Places
from threecad.settings import AUTO, Settings
from threecad.settings_layers import merge, validate
from threecad.synthesis.textures import PROCEDURAL

Tables = Mapping[str, Mapping[str, Any]]

PROVENANCE = {
    "data": ("exclude",),
    "training": ("preset", "seed", "devices", "checkpoint_s"),
}
"""Settings that say which data and which machine; runs that differ in them alone are of the same preset."""


def preset_tables(method: str, preset: str) -> dict[str, dict[str, Any]]:
    """What a preset changes in the method's defaults, as settings tables."""
    detector = METHODS[method]
    presets: dict[str, dict[str, dict[str, Any]]] = {
        "paper": {"data": {"holdout": 0.0}, "training": {"precision": detector.paper_precision}},
        "quick": {
            "data": {"textures": PROCEDURAL},
            "method": {"image_size": "auto", **detector.quick.method},
            "evaluation": {"size": "auto"},
            "training": dict(detector.quick.training),
        },
    }
    return presets.get(preset, {})


def resolve_settings(method: str, *layers: Tables) -> Settings:
    """Frozen settings of a method: its defaults, its preset's, then the layers, the last one winning.

    Raises:
        SettingsError: an unknown method, preset, table, key, or a value that does not fit.
    """
    config = METHODS[method].Config
    requested = merge(*layers)
    preset = str(requested.get("training", {}).get("preset", "paper"))
    return validate(merge(preset_tables(method, preset), requested), config)


def departures(method: str, settings: Settings) -> list[str]:
    """Settings, as `table.key`, in which a run differs from the preset that it is called by.

    A run is the preset's only while this list is empty.
    """
    preset = {"training": {"preset": settings.training.preset}}
    pure, found = resolve_settings(method, preset).as_tables(), settings.as_tables()
    return [
        f"{table}.{key}"
        for table in found
        for key in sorted(found[table].keys() | pure[table].keys())
        if found[table].get(key) != pure[table].get(key)
        and key not in PROVENANCE.get(table, ())
        and not (key == "textures" and found[table].get(key) != PROCEDURAL)  # a folder is what the papers take
    ]


def settle_sizes(settings: Settings, image_size: tuple[int, int]) -> Settings:
    """The settings with `image_size`, and the evaluation's size with it, wherever they are `auto`.

    Raises:
        SettingsError: the method cannot take that size.
    """
    tables = settings.as_tables()
    if settings.method.image_size == AUTO:
        tables["method"]["image_size"] = list(image_size)
    if settings.evaluation.size == AUTO:
        tables["evaluation"]["size"] = tables["method"]["image_size"]
    return validate(tables, type(settings.method))


def size_on_grid(shape: tuple[float, float], pixels: int, grid: int) -> tuple[int, int]:
    """The height and width, multiples of `grid`, of an image of about `pixels` pixels with the aspect of `shape`."""
    height = math.sqrt(pixels * shape[0] / shape[1])
    least = -(-32 // grid)
    return tuple(grid * max(round(side / grid), least) for side in (height, pixels / height))  # type: ignore[return-value]


def detector_of(method: str, settings: Settings) -> Detector:
    """An untrained detector; several as one, where each place of a part is to have its own.

    Raises:
        WeightsError: pretrained weights that are not on this machine.
    """
    tiles = Tiles.of(settings.data.model_dump())
    if tiles is None or not tiles.each:
        return METHODS[method](settings.method)
    return Places([METHODS[method](settings.method) for _ in range(tiles.frames)])


def build(method: str, **settings: Any) -> Detector:
    """An untrained detector: `build("cfrg", weights="random")`; keywords are the method's settings.

    Raises:
        SettingsError: an unknown method or setting.
        WeightsError: pretrained weights that are not on this machine.
    """
    detector = METHODS[method]
    return detector(validate({"method": settings}, detector.Config).method)
