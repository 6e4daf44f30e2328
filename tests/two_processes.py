"""Run by `test_training.py` in a process of its own: fits detectors data-parallel, and saves what each process has.

python tests/two_processes.py OUT        # starts its own second process
"""

from __future__ import annotations

import logging
import sys
import warnings
from pathlib import Path

import torch
from lightning_fabric import Fabric
from safetensors.torch import save_file
from torch import Tensor, nn

from test_contract import build, parts, rows, settings_for
from test_training import Shade, numbered
from threecad.data.loading import Rows
from threecad.detector import Detector
from threecad.fit_plan import plan_fit
from threecad.methods import METHODS
from threecad.records import Batch
from threecad.runs import RunFolder
from threecad.settings import TrainingSettings
from threecad.synthesis.textures import ProceduralTextures
from threecad.tensors import seed_everything
from threecad.training import train


class Normalised(Shade):
    """Has running statistics of its own, which each process sees another part of."""

    def __init__(self) -> None:
        super().__init__()
        self.colour = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        return {"colour": (self.colour(batch.augmented.mean(dim=(2, 3))) - 1).square().mean()}


def fit_all(out: Path, fabric: Fabric) -> None:
    """Fit every detector and save `OUT/NAME.RANK.safetensors` of each process."""
    for name in ("shade", "normalised", *METHODS):
        detector, images, settings = prepare(name, fabric.world_size)
        folder = out / name
        folder.mkdir(parents=True, exist_ok=True)
        textures = ProceduralTextures()
        plan = plan_fit(detector, textures, settings, len(images))
        train(detector, images, textures, settings, plan, RunFolder(folder), fabric)
        tensors = {key: tensor.contiguous() for key, tensor in detector.state_dict().items()}
        save_file(tensors, out / f"{name}.{fabric.global_rank}.safetensors")


def prepare(name: str, devices: int) -> tuple[Detector, Rows, TrainingSettings]:
    """The same detector, images and settings in each process."""
    if name in METHODS:
        detector = build(name)
        images = rows(parts(5, detector.config.image_size))
        return detector, images, settings_for(detector).model_copy(update={"devices": devices, "batch": 4})
    seed_everything((0,), torch.device("cpu"))
    detector = Shade() if name == "shade" else Normalised()
    return detector, numbered(6), TrainingSettings(devices=devices)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    logging.getLogger("lightning_fabric").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp")
    fabric.launch()
    fit_all(Path(sys.argv[1]), fabric)
