"""What a run is, in lines that a person reads: method, settings that were chosen, data, state, versions."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

from threecad.errors import SettingsError
from threecad.methods import METHODS
from threecad.presets import resolve_settings
from threecad.runs import RunFolder, RunRecord


def run_summary(path: Path) -> list[str]:
    """Lines `what: value` about the run in a folder.

    Raises:
        RunError: there is no run, or not one that this version reads.
    """
    run = RunFolder(path)
    record = run.read_record()
    return [f"{what}: {value}" for what, value in (*_origin(run, record), *_choices(record), *_conditions(record))]


def _origin(run: RunFolder, record: RunRecord) -> Iterator[tuple[str, str]]:
    """What was fitted, and how far it is."""
    yield "run", str(run.path)
    if record.method in METHODS:
        paper = METHODS.paper(record.method)
        yield "method", f"{record.method} ({paper.title}, {paper.venue})"
    else:
        yield "method", f"{record.method}, which this version does not have"
    yield "categories", ", ".join(record.categories)
    if record.finished:
        verdicts = run.read_verdicts()
        counts = ", ".join(f"{len(parts)} of {name}" for name, parts in verdicts.good.parts.items())
        yield "good parts", f"{counts} (scored by the fit: {record.scoring})"
        for line in record.choices:
            yield "chosen by good parts", line
        for line in verdicts.summary():
            yield "promise", line
        yield "state", f"finished after {timedelta(seconds=round(record.duration_s))}"
        yield (
            "scores",
            str(run.scores_file) if run.scores_file.exists() else "none yet; `threecad evaluate` writes them",
        )
    else:
        yield (
            "state",
            f"not finished; go on with `threecad fit {record.method} --data ROOT --out {run.path} "
            f"--config {run.settings_file} --resume`",
        )


def _choices(record: RunRecord) -> Iterator[tuple[str, str]]:
    """The preset, and every setting that makes the run another than the preset's."""
    try:
        preset = resolve_settings(record.method, {"training": {"preset": record.preset}}).as_tables()
    except SettingsError as error:
        yield "preset", f"{record.preset}; its settings cannot be compared: {error}"
        return
    differ = record.departures
    count = f", but for {len(differ)} setting{'s' if len(differ) > 1 else ''}" if differ else ""
    yield "preset", record.preset + count
    for name in differ:
        table, _, key = name.partition(".")
        usual, chosen = (tables.get(table, {}).get(key, "unset") for tables in (preset, record.settings))
        yield f"  {name}", f"{chosen} (the preset: {usual})"


def _conditions(record: RunRecord) -> Iterator[tuple[str, str]]:
    """Networks, data, machine and versions behind the numbers."""
    if record.backbone is not None:
        weights = f"weights {record.weights_sha256[:12]}" if record.weights_sha256 else "random weights"
        yield "backbone", f"{record.backbone}, {weights}"
    yield "precision", record.precision
    yield "training", f"{record.steps} steps, seed {record.seed}, devices {record.devices}, threads {record.threads}"
    if record.texture_source is not None:
        yield "textures", record.texture_source
    yield "data", f"good images with the fingerprint {record.data_fingerprint[:12]}, {len(record.exclusions)} left out"
    yield "kept aside", f"{len(record.holdout)} good images"
    yield "machine", record.hardware
    yield "versions", ", ".join(f"{name} {version}" for name, version in _versions(record))


def _versions(record: RunRecord) -> list[tuple[str, str]]:
    return [("threecad", record.version), *record.libraries.items()]
