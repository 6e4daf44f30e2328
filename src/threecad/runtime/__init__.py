"""A bundle at work: the exported detector on a PC without torch, GPU or internet.

    predictor = threecad.runtime.load("bundle/")
    predictor("part.png").score

The same `Predictor` as of a run: pictures are read, resized and compared by the same code, only the network is another.
"""

from __future__ import annotations

from pathlib import Path

from threecad.predictor import GoodParts, Predictor
from threecad.runtime.bundle import Bundle, BundleRecord, is_bundle
from threecad.runtime.networks import open_network

__all__ = ["Bundle", "BundleRecord", "is_bundle", "load"]


def load(folder: Path | str, *, device: str | None = None, precision: str | None = None) -> Predictor:
    """The predictor of a bundle.

    Args:
        device: `cpu`, or another one that OpenVINO finds on this machine.
        precision: `float32`, the only one.

    Raises:
        BundleError: no bundle, one with a changed or missing file, or one whose library is not installed.
        SettingsError: a device or a precision that it does not run in.
    """
    bundle = Bundle(Path(folder))
    record = bundle.read_record()
    bundle.refuse_unless_whole(record)
    network = open_network(bundle.path / record.model, record, device, precision)
    good = {
        name: GoodParts(record.good_scores.get(name, []), record.good_peaks.get(name, [])) for name in record.categories
    }
    return Predictor(network, record.method, good, record.decoding, identity=record.sha256)
