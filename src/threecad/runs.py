"""Run folders: what lies where, and the record that tells how a run came about.

    RUN/run.json                what was fitted, on what, by which settings and versions; `finished`
        settings.toml           the resolved settings, which `--config` accepts again
        metrics.csv             loss terms and learning rate at each step
        detector.safetensors    every tensor that the backbone's file does not hold
        backbone.safetensors    the pretrained backbone, where there is one: hard link or copy
        state.safetensors       while unfinished: model and optimisers, to resume from
        good.json               the score of each good part by a model that has not learnt from it
        verdict.toml            how many good parts may be rejected or set aside; may be edited
        roi.png                 the region of interest, where there is one
        golden.png              the golden part, where parts are laid upon one
        scores.json             written by `evaluate`

Nothing here needs torch: a run can be shown without loading it.
"""

from __future__ import annotations

import importlib.metadata
import platform
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import BaseModel, ConfigDict, Field

from threecad.errors import RunError
from threecad.files import is_leftover, read_record, write_text
from threecad.settings import Settings
from threecad.verdicts import Conditions, Verdicts, read_verdicts, write_verdicts

FORMAT = 3
"""Version of the run folder; a reader refuses any other."""

LIBRARIES = ("torch", "timm", "numpy", "pillow", "lightning-fabric")


def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in LIBRARIES} | {"python": platform.python_version()}


class RunRecord(BaseModel):
    """What `run.json` says of a fit."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, validate_assignment=True)

    format: int = FORMAT
    method: str
    categories: list[str]  # in the order in which they were learnt
    plain: bool = False  # learnt from a plain folder of images, whose name says nothing of the part
    settings: dict[str, dict[str, Any]]
    seed: int
    preset: str
    departures: list[str] = Field(default_factory=list)  # settings that differ from the preset's
    precision: str
    threads: int
    devices: int
    hardware: str
    steps: int  # optimiser steps of all phases together
    backbone: str | None
    weights_sha256: str | None
    texture_source: str | None
    data_fingerprint: str  # of the good images that were learnt from
    exclusions: list[str] = Field(default_factory=list)
    holdout: list[str] = Field(default_factory=list)  # good images kept aside, relative to the data root
    scoring: str = "none"  # how good parts were scored: hold-out, folds, left out (in closed form), or none
    region_fill: tuple[int, int, int] | None = None  # the colour outside roi.png
    region_is_exact: bool = True  # made for pictures of its own size
    reach: tuple[float, float] | None = None  # within which parts are laid upon golden.png, shares of height and width
    map_units: dict[str, tuple[float, float]] = Field(default_factory=dict)  # centre and spread of good parts' peaks
    choices: list[str] = Field(default_factory=list)  # what the fit read off the good parts, and by what evidence
    resumed_inexactly: list[str] = Field(default_factory=list)  # conditions that changed while it was fitted
    duration_s: float = 0.0
    finished: bool = False
    detector_sha256: str | None = None
    version: str = Field(default_factory=lambda: importlib.metadata.version("threecad"))
    libraries: dict[str, str] = Field(default_factory=_versions)

    def conditions(self, image_size: tuple[int, int], precision: str, backend: str = "torch") -> Conditions:
        """What the scores of this run depend on, where it is looked through like that."""
        return {
            "detector": self.detector_sha256,
            "weights": self.weights_sha256,
            "image_size": "×".join(map(str, image_size)),
            "bits": self.settings.get("data", {}).get("bits"),
            "precision": precision,
            "backend": backend,
        }


class RunFolder:
    """The files of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.record_file = path / "run.json"
        self.settings_file = path / "settings.toml"
        self.metrics_file = path / "metrics.csv"
        self.detector_file = path / "detector.safetensors"
        self.backbone_file = path / "backbone.safetensors"
        self.state_file = path / "state.safetensors"
        self.good_file = path / "good.json"
        self.verdict_file = path / "verdict.toml"
        self.region_file = path / "roi.png"
        self.golden_file = path / "golden.png"
        self.scores_file = path / "scores.json"

    @property
    def is_started(self) -> bool:
        """Whether a fit has left its record here."""
        return self.record_file.exists()

    def refuse_unless_free(self) -> None:
        """Nothing, where the folder does not exist or is empty.

        Raises:
            RunError: there is something in it already.
        """
        if self.path.exists() and not self.path.is_dir():
            raise RunError(f"expected a folder for the run, found the file {self.path}; choose another --out")
        if self.path.is_dir() and any(not is_leftover(entry) for entry in self.path.iterdir()):
            unfinished = self.is_started and not self.read_record().finished
            inside = "an unfinished run; go on with --resume" if unfinished else "files already"
            raise RunError(
                f"expected a new or an empty folder for the run, found {self.path} with {inside},\n"
                "or choose another --out"
            )

    def create(self, record: RunRecord, settings: Settings) -> None:
        """Make the folder: `run.json` first, so that a fit that is killed here can be resumed, then `settings.toml`."""
        self.write_record(record)
        write_text(self.settings_file, tomli_w.dumps(settings.as_tables()))

    def write_record(self, record: RunRecord) -> None:
        """Replace `run.json`."""
        write_text(self.record_file, record.model_dump_json(indent=1) + "\n")

    def read_record(self) -> RunRecord:
        """What `run.json` says.

        Raises:
            RunError: it is missing, not ours, or of another version.
        """
        try:
            return read_record(
                self.record_file, RunRecord, what="run", version=FORMAT, error=RunError, otherwise="fit it again"
            )
        except FileNotFoundError:
            if (self.path / "bundle.json").is_file():
                raise RunError(
                    f"expected a run, found the bundle {self.path}: only predict, verdict, verify and serve take one; "
                    "change the run and export it again"
                ) from None
            raise RunError(
                f"expected a run folder with run.json at {self.path}, found none; `threecad fit` makes one"
            ) from None

    def write_verdicts(self, verdicts: Verdicts) -> None:
        """Replace `good.json`, then `verdict.toml`."""
        write_verdicts(self.path, verdicts)

    def read_verdicts(self) -> Verdicts:
        """The good parts of the run, and the budgets in its `verdict.toml`; the usual ones where it has been removed.

        Raises:
            RunError, SettingsError: as `verdicts.read_verdicts`.
        """
        return read_verdicts(self.path)
