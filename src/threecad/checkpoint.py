"""A fitted detector in its run folder: it describes itself, moves as one piece, and loads without hub or pickle.

Every tensor that is not byte-identical to the pretrained backbone's file lies in `detector.safetensors`; the backbone's
file lies beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from threecad.detector import Detector
from threecad.errors import FileError, RunError, SettingsError, WeightsError
from threecad.files import file_sha256, link_or_copy, read_tensors, sweep, write_tensors
from threecad.methods import METHODS
from threecad.nets.pyramid import pretrained_pyramids
from threecad.presets import detector_of
from threecad.runs import RunFolder, RunRecord
from threecad.settings_layers import validate
from threecad.verdicts import GoodScores, Verdicts


def save_detector(run: RunFolder, detector: Detector, record: RunRecord, good: GoodScores | None = None) -> None:
    """Write the fitted detector and its verdicts, then the record that calls it finished; drop the state of the fit.

    Args:
        good: what is known of the good parts; their conditions are stamped here.

    Raises:
        RunError: a tensor is not finite; nothing is written.
    """
    tensors = own_tensors(detector)
    refuse_unless_finite(tensors, "the fit has ended with")
    write_tensors(run.detector_file, tensors)
    file = backbone_file(detector)
    if file is not None:
        link_or_copy(file, run.backbone_file)
    record.detector_sha256 = file_sha256(run.detector_file)
    conditions = dict(record.conditions(detector.config.image_size, record.precision))
    known = good or GoodScores(parts=dict.fromkeys(record.categories, ()))
    run.write_verdicts(Verdicts(known.model_copy(update={"conditions": conditions})))
    record.finished = True
    run.write_record(record)
    run.state_file.unlink(missing_ok=True)
    sweep(run.path)


def load_detector(run: RunFolder) -> tuple[Detector, RunRecord]:
    """The fitted detector in eval mode, and the record of its fit.

    Raises:
        RunError: the run is unfinished, damaged, or of another method or version.
    """
    record = run.read_record()
    if not record.finished:
        raise RunError(f"the fit in {run.path} is not finished; go on with `threecad fit … --out {run.path} --resume`")
    if record.method not in METHODS:
        raise RunError(f"{run.path} is a run of the method '{record.method}', which this version does not have")
    _refuse_unless_hash(run.detector_file, record.detector_sha256)
    tables = {name: dict(values) for name, values in record.settings.items()}
    tables["method"]["weights"] = "random"  # a setting of somebody else's run chooses no file on this machine
    if record.weights_sha256 is not None:
        _refuse_unless_hash(run.backbone_file, record.weights_sha256)
        tables["method"]["weights"] = str(run.backbone_file.resolve())
    try:
        detector = detector_of(record.method, validate(tables, METHODS[record.method].Config))
        load_own(detector, read_tensors(run.detector_file)[0], run.detector_file)
    except SettingsError as error:
        raise RunError(f"{run.record_file} does not fit this version: {error}") from None
    except (WeightsError, FileError) as error:
        raise RunError(str(error)) from None
    return detector.eval(), record


def backbone_file(detector: Detector) -> Path | None:
    """The file behind the detector's frozen backbone; None without one, or with random weights."""
    files = [part.file.path for part in pretrained_pyramids(detector).values() if part.file]
    return files[0] if files else None


def own_tensors(detector: Detector) -> dict[str, Tensor]:
    """The tensors of the detector's state dict that are not in its backbone's file, contiguous on the CPU."""
    frozen = tuple(f"{name}.network." for name in pretrained_pyramids(detector))
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


def refuse_unless_finite(tensors: Mapping[str, Tensor], where: str) -> None:
    """Nothing, where every number is finite.

    Args:
        where: the beginning of the sentence that says what is not.

    Raises:
        RunError: a tensor holds NaN or infinity; names it.
    """
    for name, tensor in tensors.items():  # NaN is both ends of what holds one; no mask of all values is made
        if tensor.is_floating_point() and tensor.numel() and not all(end.isfinite() for end in tensor.aminmax()):
            raise RunError(f"{where} a value in {name} that is not finite: expected numbers; try a smaller rate")


def _refuse_unless_hash(file: Path, sha256: str | None) -> None:
    try:
        if sha256 is not None and file_sha256(file) == sha256:
            return
    except PermissionError as error:
        raise RunError(f"{file} cannot be read: {error.strerror}; its owner has to allow it") from None
    except OSError:
        pass  # it is not there
    raise RunError(f"{file} is missing or damaged: it is not the file that run.json names")
