"""The state of a fit that scores best on the test images: what some papers report, and nobody can have in production.

Only for comparing with them. Such rows say so, and stand in tables of their own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from threecad.benchmark.plan import Job
from threecad.checkpoint import load_detector, load_own, own_tensors, save_detector
from threecad.data.readers import read_category
from threecad.detector import Detector
from threecad.errors import MetricError
from threecad.evaluation import evaluate
from threecad.files import read_tensors, write_tensors
from threecad.inference import predictor_of, recorded_framing
from threecad.runs import RunFolder
from threecad.training import StepReport

LOOKS = 10
"""States that are scored in the course of each phase, evenly spread; the last of the fit is scored besides."""


class BestOnTest:
    """Scores states of a fit on its test images, and keeps the one whose mean of I-AUROC and P-AUROC is highest."""

    def __init__(self, data: Path, job: Job, folder: Path) -> None:
        self.run = RunFolder(folder)
        self.categories = [read_category(data, name) for name in job.categories]
        self.file = folder / "best.safetensors"
        self.best, self.at = -1.0, 1.0
        if self.file.exists():
            about = read_tensors(self.file)[1]
            self.best, self.at = float(about["score"]), float(about["at"])

    def look(self, report: StepReport) -> None:
        """Score the state after an optimiser step, if it is time again; a resumed fit looks at the same states."""
        is_due = LOOKS * report.step // report.steps > LOOKS * (report.step - 1) // report.steps
        if report.rate is None or not is_due:
            return
        with _as_it_was(report.detector):
            try:
                score = self._score(report.detector)
            except MetricError:
                return  # a map that is not finite before what comes later in the fit has been learnt
            if score > self.best:
                self.best, self.at = score, report.done
                about = {"score": repr(score), "at": repr(report.done)}
                write_tensors(self.file, own_tensors(report.detector), about)

    def put_in_place(self) -> None:
        """Replace the finished detector by the best state, where that is better than the last."""
        detector, record = load_detector(self.run)
        last = self._score(detector)
        if not self.file.exists() or last >= self.best:
            self.best, self.at = max(last, self.best), 1.0 if last > self.best else self.at
            return
        load_own(detector, read_tensors(self.file)[0], self.file)
        record.scoring = "none"  # good parts were scored by the last state
        save_detector(self.run, detector, record)

    def described(self, scores: dict[str, Any]) -> dict[str, Any]:
        """`scores.json` with how the state was chosen."""
        chosen = {"selection": "best_on_test", "selected_at": self.at}
        if "categories" not in scores:
            return {**scores, **chosen}
        return {**scores, "categories": {name: {**of, **chosen} for name, of in scores["categories"].items()}}

    def forget(self) -> None:
        """Begin anew, with the fit."""
        self.best, self.at = -1.0, 1.0

    def _score(self, detector: Detector) -> float:
        record = self.run.read_record()
        predictor = predictor_of(detector, record, recorded_framing(self.run, record))
        found = [evaluate(predictor, record, category) for category in self.categories]
        return float(np.mean([scores[name] for scores in found for name in ("i_auroc", "p_auroc") if scores[name]]))


@contextmanager
def _as_it_was(detector: Detector) -> Iterator[None]:
    """Within, the detector predicts; afterwards every part of it is in its mode again."""
    modes = [(part, part.training) for part in detector.modules()]
    detector.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode
