"""The contract of a method: a network, and the phases by which it learns what is normal.

    class MyMethod(Detector):
        paper = METHODS.paper("my_method")
        Config = MyConfig

        def forward(self, image): ...        # (B, 3, H, W) in [0, 1] -> Prediction
        def phases(self, textures): ...      # yields StatisticsPhase and GradientPhase

One loop (`training.py`) runs every phase of every method. Devices, loggers, metrics, thresholds and file paths are
none of a detector's business; the texture source is handed in.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import _register_namedtuple

from threecad.errors import DataError, SettingsError
from threecad.records import Batch, Paper, Prediction
from threecad.schedules import Schedule, constant
from threecad.settings import AUTO, MethodConfig
from threecad.synthesis import Synthesizer, TextureSource

# So that exported programs can be saved; PyTorch's public registration takes dataclasses only.
_register_namedtuple(Prediction, serialized_type_name="threecad.records.Prediction")

Scope = Literal["category", "dataset"]


@dataclass(frozen=True)
class Epochs:
    """A duration in passes over the training images."""

    count: float


@dataclass(frozen=True)
class Steps:
    """A duration in optimiser steps."""

    count: int


@dataclass(frozen=True)
class StatisticsPhase:
    """A pass over the training images, without gradient, that ends in closed form.

    When the phase starts, the loop asks for `empty_sums`, float64 tensors by name, and moves them to its device.
    `observe` adds a batch to the tensors that it is handed, in place, and changes nothing else. Their totals over all
    processes go to `conclude`, which writes the detector's buffers. Interrupted, the phase starts again from zero.
    """

    name: str
    empty_sums: Callable[[], dict[str, Tensor]]
    observe: Callable[[Mapping[str, Tensor], Batch], None]
    conclude: Callable[[Mapping[str, Tensor]], None]
    synthesizer: Synthesizer | None = None
    duration: Epochs | Steps = Epochs(1)
    place: int | None = None  # the frame of each part that it looks at; None: at all of them


@dataclass(frozen=True)
class GradientPhase:
    """Training by gradient. The total loss is the sum of the terms that `losses` names.

    Only the modules in `trains` are in training mode and get gradients; everything else stays in eval mode.
    `accumulate` batches are summed, not averaged, into one optimiser step; `Steps` and `schedule` count those steps.
    """

    name: str
    losses: Callable[[Batch], dict[str, Tensor]]
    trains: Sequence[nn.Module]
    optimizers: Sequence[Optimizer]
    duration: Epochs | Steps
    schedule: Schedule = constant
    accumulate: int = 1
    clip_norm: float | None = None
    synthesizer: Synthesizer | None = None
    place: int | None = None  # as of `StatisticsPhase`


Phase = StatisticsPhase | GradientPhase


@dataclass(frozen=True)
class Preset:
    """What a preset changes in the settings; the `paper` preset changes nothing."""

    method: Mapping[str, object] = field(default_factory=dict)
    training: Mapping[str, object] = field(default_factory=dict)


class Detector(nn.Module, ABC):
    """A network that maps images to anomaly maps and scores, and knows how it is fitted.

    Every module and buffer exists from `__init__` in its final shape, so that a state dict can be loaded at any time.
    """

    paper: ClassVar[Paper]
    Config: ClassVar[type[MethodConfig]]
    scope: ClassVar[Scope] = "category"  # "dataset": one model for all categories
    batch: ClassVar[int] = 32  # the paper's
    paper_precision: ClassVar[Literal["auto", "float32"]] = "float32"  # in the `paper` preset
    quick: ClassVar[Preset] = Preset()
    leaves_out: ClassVar[bool] = False  # whether `left_out` knows the answer
    advice: ClassVar[str] = ""  # said at the end of a `quick` fit

    def __init__(self, config: MethodConfig) -> None:
        super().__init__()
        if config.image_size == AUTO:
            raise SettingsError(
                "setting 'method.image_size': 'auto' is settled by a fit, from the parts' shape; "
                "expected a height and a width here"
            )
        self.config = config

    def __call__(self, image: Tensor) -> Prediction:
        """Map and score of images, after a look at their shape and type: a misfit would give a number all the same.

        Raises:
            DataError: anything but a floating-point tensor (B, 3, H, W) of the configured image size.
        """
        expected = (3, *self.config.image_size)
        shape = tuple(getattr(image, "shape", ()))
        fits = isinstance(image, Tensor) and image.is_floating_point() and shape[1:] == expected and len(shape) == 4
        if not fits:
            kind = getattr(image, "dtype", type(image).__name__)
            raise DataError(
                f"expected images (B, {', '.join(map(str, expected))}) of floats in [0, 1], found {shape} of {kind}; "
                "threecad.load(run) takes pictures of any size"
            )
        return super().__call__(image)  # type: ignore[no-any-return]

    @abstractmethod
    def forward(self, image: Tensor) -> Prediction:
        """Map and score of each image by itself.

        Args:
            image: (B, 3, H, W), RGB in [0, 1]; normalised inside.
        """

    def left_out(self, image: Tensor) -> Prediction:
        """Map and score of images that were learnt from, each as if the fit had left it out, in closed form.

        Args:
            image: as of `forward`.
        """
        raise NotImplementedError

    def choices(self) -> list[str]:
        """What the fit read off the good parts, and by what evidence; a sentence each."""
        return []

    @property
    def places(self) -> int:
        """How many frames of a part have a network of their own; they then come in together."""
        return 1

    @property
    def least_batch(self) -> int:
        """Fewest images a step and device from which the method can learn.

        BatchNorm needs two values of each channel. An image as small as the coarsest stride has one position there.
        """
        return 2 if math.prod(self.config.image_size) == self.config.grid**2 else 1

    @abstractmethod
    def phases(self, textures: TextureSource) -> Iterator[Phase]:
        """The phases of fitting, in order.

        Replayable: reads only settings and the state dict, so that a resumed run can skip to the interrupted phase.
        """
