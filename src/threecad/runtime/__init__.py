"""A bundle at work: the exported detector on a PC without torch, GPU or internet.

    predictor = threecad.runtime.load("bundle/")
    predictor("part.png").score

The same `Predictor` as of a run: pictures are read, framed and judged by the same code, only the network is another.
"""

from __future__ import annotations

from pathlib import Path

from threecad.framing import MapUnits
from threecad.predictor import Predictor
from threecad.runtime.bundle import Bundle, BundleRecord, is_bundle
from threecad.runtime.networks import open_network
from threecad.verdicts import read_verdicts

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
    verdicts, framing = read_verdicts(bundle.path), bundle.read_framing(record)
    units = {kind: MapUnits(*values) for kind, values in record.map_units.items()}
    return Predictor(network, record.method, verdicts, record.conditions, framing, units, record.decoding)
