"""One detector a place: the k-th frame of every part goes to the k-th of several detectors of one method.

A tile of the hub and one of the rim need not be told apart by one network; each place has its own, which has seen no
other. No method knows of it: the detectors are built, fitted one after another, and called as any other is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from threecad.detector import Detector, Phase
from threecad.errors import DataError
from threecad.nets.pyramid import pretrained_pyramids
from threecad.records import Prediction
from threecad.synthesis import TextureSource


class Places(Detector):
    """Several detectors of one method as one; they share the weights of their pretrained backbone.

    Args:
        detectors: one for each frame of a part, in the order of the frames.
    """

    def __init__(self, detectors: Sequence[Detector]) -> None:
        first = detectors[0]
        super().__init__(first.config)
        self.paper, self.batch = first.paper, first.batch  # type: ignore[misc]  # as of every one of them
        self.detectors = nn.ModuleList(detectors)
        for other in detectors[1:]:
            for name, pyramid in pretrained_pyramids(other).items():
                weights = first.get_submodule(name).state_dict(keep_vars=True)
                pyramid.load_state_dict(weights, assign=True)

    @property
    def places(self) -> int:
        """How many there are."""
        return len(self.detectors)

    @property
    def least_batch(self) -> int:
        """Fewest images a step and device from which one of them can learn."""
        return self._each[0].least_batch

    def forward(self, image: Tensor) -> Prediction:
        """Map and score of each frame, from its place's detector.

        Args:
            image: (B, 3, H, W), the frames of B / `places` parts, part after part.

        Raises:
            DataError: a part lacks frames.
        """
        if image.shape[0] % self.places:  # len(image) would be a constant in an exported graph
            raise DataError(f"expected {self.places} frames of each part, found {image.shape[0]} together")
        of_places = image.unflatten(0, (-1, self.places)).unbind(1)
        found = [detector(frames) for detector, frames in zip(self._each, of_places, strict=True)]
        maps, scores = (torch.stack(list(values), dim=1).flatten(0, 1) for values in zip(*found, strict=True))
        return Prediction(maps, scores)

    def choices(self) -> list[str]:
        """Of each place."""
        return [
            f"place {place}: {choice}" for place, detector in enumerate(self._each, 1) for choice in detector.choices()
        ]

    def phases(self, textures: TextureSource) -> Iterator[Phase]:
        """The phases of each place's detector, which look at the frames of that place alone."""
        for place, detector in enumerate(self._each):
            for phase in detector.phases(textures):
                yield replace(phase, name=f"place {place + 1}: {phase.name}", place=place)

    @property
    def _each(self) -> list[Detector]:
        return list(self.detectors)  # type: ignore[arg-type]
