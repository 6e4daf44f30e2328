"""The key of a row: everything that makes its numbers. Another key, another row."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import threecad
from threecad.benchmark.plan import Job, Plan
from threecad.data.hashes import content_hashes
from threecad.data.readers import exclude, fingerprint, read_category
from threecad.errors import ThreeCADError
from threecad.files import file_sha256
from threecad.methods import METHODS
from threecad.nets.weights import find_weights
from threecad.presets import resolve_settings
from threecad.synthesis.textures import texture_source

ROOMS_WITHOUT_NUMBERS = ("benchmark", "cli", "demo", "engines", "report")
"""Parts of the package that start, order and show work: a change to them changes no row."""

BY_CONTENT = {"data": ("textures", "exclude", "roi"), "method": ("weights",), "training": ("seed", "checkpoint_s")}
"""Settings that are left out of the settings' hash, since the key holds what they lead to, or that change nothing."""


def with_keys(plan: Plan) -> list[Job]:
    """The plan's jobs, each with its key; files are looked at once for all of them."""
    for remembered in (_data, _weights, _region, _textures):
        remembered.cache_clear()
    return [job.model_copy(update={"key": row_key(plan, job)}) for job in plan.jobs()]


def row_key(plan: Plan, job: Job) -> dict[str, Any]:
    """Code version, hashes of settings, data, weights and textures, seed, budget and selection of a job's row.

    What cannot be read has an empty hash: the job itself will say why.
    """
    settings = resolve_settings(job.method, job.settings)
    tables = settings.as_tables()
    for table, names in BY_CONTENT.items():
        for name in names:
            tables[table].pop(name, None)
    backbone = getattr(settings.method, "backbone", None)
    needs_textures = "textures" in METHODS.paper(job.method).needs
    excluded = settings.data.exclude
    return {
        "code": code_version(),
        "settings": _hash(tables),
        "data": _data(str(plan.data), job.categories, str(excluded) if excluded else None),
        "weights": _weights(backbone, settings.method.weights) if backbone else "",
        "textures": _textures(settings.data.textures) if needs_textures else "",
        "roi": _region(settings.data.roi),
        "seed": job.seed,
        "categories": list(job.categories),
        "budget": f"{plan.budget.minutes:g} minutes" if plan.budget and plan.budget.minutes else "",
        "selection": plan.selection,
    }


def key_id(key: Mapping[str, Any]) -> str:
    """Eight hex digits that stand for a key in the names of files."""
    return _hash(key)[:8]


@cache
def code_version() -> str:
    """The package's version and a hash of the source files that numbers come from."""
    root = Path(threecad.__file__).parent
    digest = hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        place = file.relative_to(root)
        if place.parts[0] not in ROOMS_WITHOUT_NUMBERS:
            digest.update(place.as_posix().encode() + b"\0" + file.read_bytes() + b"\0")
    return f"{importlib.metadata.version('threecad')}+{digest.hexdigest()[:12]}"


def _hash(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


@cache
def _data(root: str, categories: tuple[str, ...], excluded: str | None) -> str:
    try:
        found = [read_category(Path(root), name) for name in categories]
        kept = [exclude(category, Path(excluded)) for category in found] if excluded else found
        samples = [sample for category in kept for sample in category.samples]
        paths = [path for sample in samples for path in (sample.image, sample.mask) if path is not None]
        hashes = dict(zip(paths, content_hashes(paths), strict=True))
        return fingerprint(samples, hashes.__getitem__)
    except ThreeCADError:
        return ""


@cache
def _weights(backbone: str, weights: str) -> str:
    try:
        file = find_weights(backbone, weights)
    except ThreeCADError:
        return ""
    return file.sha256 if file else "random"


@cache
def _region(roi: Path | tuple[tuple[float, ...], ...] | None) -> str:
    if not isinstance(roi, Path):
        return _hash(roi) if roi else ""
    return file_sha256(roi) if roi.is_file() else ""


@cache
def _textures(folder: Path | None) -> str:
    try:
        return texture_source(folder).name
    except ThreeCADError:
        return ""
