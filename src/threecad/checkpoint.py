"""Run folders: a fitted detector that describes itself, moves as one piece and loads without hub, package or pickle.

    RUN/run.json                what was fitted, on what, by which settings and versions; `finished`
        settings.toml           the resolved settings, which `--config` accepts again
        metrics.csv             loss terms and learning rate at each step
        detector.safetensors    every tensor that the backbone's file does not hold
        backbone.safetensors    the pretrained backbone, where there is one: hard link or copy
        state.safetensors       while unfinished: model and optimisers, to resume from
        scores.json             written by `evaluate`

Every file is written to a temporary name and renamed.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import tomli_w
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from threecad.detector import Detector
from threecad.errors import RunError, SettingsError
from threecad.methods import METHODS
from threecad.nets.pyramid import Pyramid
from threecad.nets.weights import file_sha256
from threecad.settings import Settings, validate

FORMAT = 1
"""Version of the run folder; a reader refuses a newer one."""

LEFT_BY_A_KILL = (".*.part", ".tmp*")
"""Files under names that are never read: ours, and those that safetensors itself writes before it renames."""

LIBRARIES = ("torch", "timm", "numpy", "pillow", "lightning-fabric")


@dataclass
class RunRecord:
    """What `run.json` says of a fit."""

    method: str
    categories: list[str]
    settings: dict[str, dict[str, Any]]
    seed: int
    preset: str
    precision: str
    threads: int
    devices: int
    steps: int  # optimiser steps of all phases together
    backbone: str | None
    weights_sha256: str | None
    texture_source: str | None
    data_fingerprint: str  # of the good images that were learnt from
    exclusions: list[str] = field(default_factory=list)
    holdout: list[str] = field(default_factory=list)  # good images kept aside, relative to the data root
    good_scores: list[float] = field(default_factory=list)  # the detector's scores of those
    good_peaks: list[float] = field(default_factory=list)  # the largest value of each of their maps
    duration_s: float = 0.0
    finished: bool = False
    detector_sha256: str | None = None
    hardware: str = field(default_factory=lambda: hardware())
    version: str = field(default_factory=lambda: importlib.metadata.version("threecad"))
    libraries: dict[str, str] = field(
        default_factory=lambda: (
            {name: importlib.metadata.version(name) for name in LIBRARIES} | {"python": platform.python_version()}
        )
    )
    format: int = FORMAT


def hardware() -> str:
    """The accelerator's name, else the processor's, with its cores."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next(line.partition(": ")[2] for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass  # not Linux, or a processor that does not say
    return f"{name}, {os.cpu_count()} cores"


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
        self.scores_file = path / "scores.json"

    def refuse_unless_free(self) -> None:
        """Nothing, where the folder does not exist or is empty.

        Raises:
            RunError: there is something in it already.
        """
        if self.path.is_dir() and any(self.path.iterdir()):
            unfinished = self.record_file.exists() and not self.read_record().finished
            inside = "an unfinished run; go on with --resume" if unfinished else "files already"
            raise RunError(
                f"expected a new or an empty folder for the run, found {self.path} with {inside},\n"
                "or choose another --out"
            )
        if self.path.exists() and not self.path.is_dir():
            raise RunError(f"expected a folder for the run, found the file {self.path}; choose another --out")

    def create(self, record: RunRecord, settings: Settings) -> None:
        """Make the folder with `run.json` and `settings.toml`."""
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        write_text(self.settings_file, tomli_w.dumps(settings.as_tables()))
        self.write_record(record)

    def write_record(self, record: RunRecord) -> None:
        """Replace `run.json`."""
        write_json(self.record_file, asdict(record))

    def read_record(self) -> RunRecord:
        """What `run.json` says.

        Raises:
            RunError: it is missing, not ours, or of a newer version.
        """
        try:
            content = json.loads(self.record_file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise RunError(
                f"expected a run folder with run.json at {self.path}, found none; `threecad fit` makes one"
            ) from None
        except (OSError, ValueError) as error:
            raise RunError(f"{self.record_file} is not readable: {error}") from None
        version = content.get("format") if isinstance(content, dict) else None
        if not isinstance(version, int):
            raise RunError(f"{self.record_file}: expected a run of ThreeCAD, found something else")
        if version > FORMAT:
            raise RunError(
                f"{self.path} was written by ThreeCAD {content.get('version')}, run format {version}; "
                f"this one reads up to {FORMAT}: update it"
            )
        try:
            return RunRecord(**content)
        except TypeError as error:
            raise RunError(
                f"{self.record_file} is damaged: {str(error).replace('RunRecord.__init__() ', '')}"
            ) from None

    def save_detector(self, detector: Detector, record: RunRecord) -> None:
        """Write the fitted detector, then the record that calls it finished, then drop the state of the fit."""
        save_tensors(self.detector_file, own_tensors(detector))
        file = backbone_file(detector)
        if file is not None:
            _link_or_copy(file, self.backbone_file)
        record.finished = True
        record.detector_sha256 = file_sha256(self.detector_file)
        self.write_record(record)
        self.state_file.unlink(missing_ok=True)
        for pattern in LEFT_BY_A_KILL:
            for file in self.path.glob(pattern):
                file.unlink()

    def load_detector(self) -> tuple[Detector, RunRecord]:
        """The fitted detector in eval mode, and the record of its fit.

        Raises:
            RunError: the run is unfinished, damaged, or of another method or version.
        """
        record = self.read_record()
        if not record.finished:
            raise RunError(
                f"the fit in {self.path} is not finished; go on with `threecad fit … --out {self.path} --resume`"
            )
        if record.method not in METHODS:
            raise RunError(f"{self.path} is a run of the method '{record.method}', which this version does not have")
        if not self.detector_file.is_file() or file_sha256(self.detector_file) != record.detector_sha256:
            raise RunError(f"{self.detector_file} is missing or damaged: it is not the file that run.json names")
        method = METHODS[record.method]
        tables = {name: dict(values) for name, values in record.settings.items()}
        if record.weights_sha256 is not None:
            if not self.backbone_file.is_file() or file_sha256(self.backbone_file) != record.weights_sha256:
                raise RunError(f"{self.backbone_file} is missing or damaged: it is not the file that run.json names")
            tables["method"]["weights"] = str(self.backbone_file)
        try:
            detector = method(validate(tables, method.Config).method)
        except SettingsError as error:
            raise RunError(f"{self.record_file} does not fit this version: {error}") from None
        load_own(detector, load_tensors(self.detector_file), self.detector_file)
        return detector.eval(), record


def load(run: Path | str) -> Detector:
    """The fitted detector of a run folder, ready to predict.

    Raises:
        RunError: there is no finished run, or it does not fit this version.
    """
    return RunFolder(Path(run)).load_detector()[0]


def backbone_file(detector: Detector) -> Path | None:
    """The file behind the detector's frozen backbone; None without one, or with random weights."""
    files = [part.file.path for part in _frozen_pyramids(detector).values() if part.file is not None]
    return files[0] if files else None


def own_tensors(detector: Detector) -> dict[str, Tensor]:
    """The tensors of the detector's state dict that are not in its backbone's file, contiguous on the CPU."""
    frozen = tuple(f"{name}.network." for name, part in _frozen_pyramids(detector).items() if part.file is not None)
    state = detector.state_dict()
    return {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in state.items()
        if not (frozen and name.startswith(frozen))
    }


def load_own(detector: Detector, tensors: Mapping[str, Tensor], source: Path) -> None:
    """Copy `own_tensors` back; values only, so that the memory format of each parameter stays.

    Raises:
        RunError: a tensor is missing, too many, or of another shape.
    """
    mine = own_tensors(detector)
    for name in sorted(mine.keys() | tensors.keys()):
        expected, found = mine.get(name), tensors.get(name)
        if expected is None or found is None or expected.shape != found.shape:
            what = [f"{tuple(t.shape)}" if t is not None else "nothing" for t in (expected, found)]
            raise RunError(f"{source} does not fit the method: expected {name} {what[0]}, found {what[1]}")
    detector.load_state_dict(dict(tensors), strict=False)


def save_tensors(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file, whole or not at all, and make sure that it has reached the disk."""
    temporary = path.with_name(f".{path.name}.part")
    with writing(path):
        try:
            save_file(dict(tensors), temporary, metadata=dict(about or {}))
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file by name."""
    return read_about(path)[0]


def write_json(path: Path, content: object) -> None:
    """Write indented JSON, whole or not at all."""
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text, whole or not at all."""
    temporary = path.with_name(f".{path.name}.part")
    with writing(path):
        try:
            temporary.write_text(text, encoding="utf-8")
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


class writing:
    """A block in which a refused write becomes a RunError that names the file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, (OSError, SafetensorError)):
            reason = getattr(error, "strerror", None) or str(error)
            raise RunError(f"cannot write {self.path}: {reason}; is the folder writable, and is there room?") from None


def read_about(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors of a safetensors file by name, and the text that was saved with them.

    Raises:
        RunError: it is missing, damaged, or of another kind.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise RunError(f"{path} is not a readable safetensors file: {error}") from None


def _frozen_pyramids(detector: Detector) -> dict[str, Pyramid]:
    named = {name: part for name, part in detector.named_modules() if isinstance(part, Pyramid)}
    return {name: part for name, part in named.items() if not part.trainable}


def _link_or_copy(source: Path, target: Path) -> None:
    """A hard link where the file system has them: the backbone of a hundred runs then lies on disk once."""
    with writing(target):
        if target.exists():
            return
        try:
            os.link(source, target)
        except OSError:
            temporary = target.with_name(f".{target.name}.part")
            shutil.copyfile(source, temporary)
            temporary.replace(target)
