"""A bundle's proof repeated where it is to work, without torch.

The trained detector's scores stand in `proof.json`, its maps of the pictures that travel along in `maps.npz`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydantic import ValidationError

from threecad.errors import BundleError
from threecad.files import file_sha256, first_fault
from threecad.images import IMAGE_SUFFIXES
from threecad.runtime import load
from threecad.runtime.bundle import Bundle
from threecad.runtime.proof import Picture, Proof, compare, look, prove, ran, thresholds_of
from threecad.verdicts import Verdicts, VerdictSettings


def verify(folder: Path, pictures: Path | None = None) -> Proof:
    """The proof of a bundle repeated on this machine, with the pictures that travel along or those of a folder.

    Args:
        pictures: a folder with pictures of the proof, told by their content; others in it are left alone.

    Raises:
        BundleError: the bundle is damaged or cannot run here, none of the pictures is one of the proof, or a verdict
            differs.
    """
    bundle = Bundle(folder)
    predictor = load(folder)
    before = read_proof(bundle)
    known = {one.sha256: one for one in before.images}
    place = pictures or bundle.pictures
    found = {file_sha256(file): file for file in _images_below(place)}
    chosen = [(sha256, file) for sha256, file in found.items() if sha256 in known]
    if not chosen:
        whose = "travel with this bundle" if pictures is None else f"lie in {pictures}"
        raise BundleError(f"expected pictures of the proof, found that none {whose}; name a folder that holds them")
    again = [Picture(file, known[sha].image, known[sha].kind, known[sha].category) for sha, file in chosen]
    thresholds = _thresholds_now(before, predictor.verdicts)
    maps = _read_maps(bundle)
    compared = compare(
        again,
        [known[sha].trained_score for sha, _ in chosen],
        [maps.get(sha) for sha, _ in chosen],
        look(predictor, [file for _, file in chosen]),
        predictor.verdicts,
        thresholds,
    )
    proof = prove(
        compared,
        before.trained,
        ran(predictor),
        predictor.verdicts.settings,
        thresholds,
        before.thresholds_from + _changed_since(before.budgets, predictor.verdicts.settings),
        before.good_parts,
        before.defective_parts,
    )
    proof.refuse_flips("do not use it on this machine")
    return proof


def read_proof(bundle: Bundle) -> Proof:
    """What `proof.json` says.

    Raises:
        BundleError: it is missing or damaged.
    """
    try:
        return Proof.model_validate_json(bundle.proof_file.read_bytes())
    except (OSError, ValidationError) as error:
        reason = error.strerror if isinstance(error, OSError) else first_fault(error)
        raise BundleError(f"{bundle.proof_file} is not a readable proof: {reason}") from None


def _thresholds_now(before: Proof, verdicts: Verdicts) -> dict[str, dict[str, float]]:
    """By category; those of the proof, unless budgets were changed since."""
    return {
        name: thresholds_of(verdicts, name, []) if verdicts.can_judge(name) else lines
        for name, lines in before.thresholds.items()
    }


def _changed_since(before: VerdictSettings, now: VerdictSettings) -> str:
    """What of the budgets is another than in the proof: `; budgets were changed since the proof: …`, or nothing."""
    then, values = before.model_dump(), now.model_dump()
    changed = [f"{name} was {then[name]}, is {values[name]}" for name in then if then[name] != values[name]]
    return f"; budgets were changed since the proof: {', '.join(changed)}" if changed else ""


def _images_below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())


def _read_maps(bundle: Bundle) -> dict[str, np.ndarray]:
    if not bundle.maps_file.is_file():
        return {}
    with np.load(bundle.maps_file, allow_pickle=False) as maps:
        return {sha256: maps[sha256] for sha256 in maps.files}
