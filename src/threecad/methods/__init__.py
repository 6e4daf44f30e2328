"""The registry of methods: one line each. Names and papers sit here without torch; a class loads on first use."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple

from threecad.errors import SettingsError, did_you_mean
from threecad.records import Paper

if TYPE_CHECKING:
    from threecad.detector import Detector


class Entry(NamedTuple):
    """A method's class in the file named as its key, and the paper behind it."""

    class_name: str
    paper: Paper
    ours: tuple[str, ...] = ()  # settings that make another method of the paper's, off by default


class Registry(Mapping[str, "type[Detector]"]):
    """Detector classes by name; key = file stem = command-line name = name in results."""

    def __init__(self, entries: dict[str, Entry]) -> None:
        self._entries = entries

    def __getitem__(self, name: str) -> type[Detector]:
        """The class of the method `name`; raises SettingsError, with the nearest name, for an unknown one."""
        entry = self.entry(name)
        return getattr(importlib.import_module(f"threecad.methods.{name}"), entry.class_name)

    def paper(self, name: str) -> Paper:
        """The paper of the method `name`, without loading the method."""
        return self.entry(name).paper

    def entry(self, name: str) -> Entry:
        """The registry's line of the method `name`; raises SettingsError, with the nearest name, for an unknown one."""
        if name not in self._entries:
            raise SettingsError(f"unknown method '{name}'{did_you_mean(name, self._entries)}")
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


METHODS = Registry(
    {
        "padim": Entry(
            "PaDiM",
            Paper(
                name="PaDiM",
                title="PaDiM: a Patch Distribution Modeling Framework for Anomaly Detection and Localization",
                venue="ICPR 2020 workshops",
                link="https://arxiv.org/abs/2011.08785",
                group="E-b",
                needs=("backbone",),
            ),
            ours=("shared",),
        ),
        "patchcore": Entry(
            "PatchCore",
            Paper(
                name="PatchCore",
                title="Towards Total Recall in Industrial Anomaly Detection",
                venue="CVPR 2022",
                link="https://github.com/amazon-science/patchcore-inspection",
                group="E-b",
                needs=("backbone",),
            ),
            ours=("whitened", "standardised"),
        ),
        "fastflow": Entry(
            "FastFlow",
            Paper(
                name="FastFlow",
                title="FastFlow: Unsupervised Anomaly Detection and Localization via 2D Normalizing Flows",
                venue="arXiv 2021",
                link="https://arxiv.org/abs/2111.07677",
                group="E-b",
                needs=("backbone",),
            ),
        ),
        "rd": Entry(
            "RD",
            Paper(
                name="RD",
                title="Anomaly Detection via Reverse Distillation from One-Class Embedding",
                venue="CVPR 2022",
                link="https://github.com/hq-deng/RD4AD",
                group="E-b",
                needs=("backbone",),
            ),
        ),
        "rdpp": Entry(
            "RDPP",
            Paper(
                name="RD++",
                title="Revisiting Reverse Distillation for Anomaly Detection",
                venue="CVPR 2023",
                link="https://github.com/tientrandinh/Revisiting-Reverse-Distillation",
                group="E-b",
                needs=("backbone",),
            ),
        ),
        "simplenet": Entry(
            "SimpleNet",
            Paper(
                name="SimpleNet",
                title="SimpleNet: A Simple Network for Image Anomaly Detection and Localization",
                venue="CVPR 2023",
                link="https://github.com/DonaldRR/SimpleNet",
                group="E-b",
                needs=("backbone",),
            ),
            ours=("standardised",),
        ),
        "cfrg": Entry(
            "CFRG",
            Paper(
                name="CFRG",
                title="3CAD: A Large-Scale Real-World 3C Product Dataset for Unsupervised Anomaly Detection",
                venue="AAAI 2025",
                link="https://github.com/EnquanYang2022/3CAD",
                group="E-b",
                needs=("backbone", "textures"),
            ),
            ours=("calibrated",),
        ),
        "draem": Entry(
            "DRAEM",
            Paper(
                name="DRAEM",
                title="DRAEM: A Discriminatively Trained Reconstruction Embedding for Surface Anomaly Detection",
                venue="ICCV 2021",
                link="https://github.com/VitjanZ/DRAEM",
                group="A-syn",
                needs=("textures",),
            ),
        ),
        "destseg": Entry(
            "DeSTSeg",
            Paper(
                name="DeSTSeg",
                title="DeSTSeg: Segmentation Guided Denoising Student-Teacher for Anomaly Detection",
                venue="CVPR 2023",
                link="https://github.com/apple/ml-destseg",
                group="A-syn",
                needs=("backbone", "textures"),
            ),
        ),
        "realnet": Entry(
            "RealNet",
            Paper(
                name="RealNet",
                title="RealNet: A Feature Selection Network with Realistic Synthetic Anomaly for Anomaly Detection",
                venue="CVPR 2024",
                link="https://github.com/cnulab/RealNet",
                group="R-b",
                needs=("backbone", "textures"),
            ),
            ours=("standardised",),
        ),
        "uniad": Entry(
            "UniAD",
            Paper(
                name="UniAD",
                title="A Unified Model for Multi-class Anomaly Detection",
                venue="NeurIPS 2022",
                link="https://github.com/zhiyuanyou/UniAD",
                group="U-ni",
                needs=("backbone",),
            ),
            ours=("standardised",),
        ),
        "crad": Entry(
            "CRAD",
            Paper(
                name="CRAD",
                title="Continuous Memory Representation for Anomaly Detection",
                venue="ECCV 2024",
                link="https://github.com/tae-mo/CRAD",
                group="U-ni",
                needs=("backbone",),
            ),
        ),
    }
)


def row_name(method: str, settings: Mapping[str, object]) -> str:
    """The name of a method's row in tables: "CFRG" as in the paper, "CFRG, calibrated" with what is ours.

    Args:
        method: a key of `METHODS`.
        settings: the method's settings table, [method].
    """
    entry = METHODS.entry(method)
    return ", ".join([entry.paper.name, *(key for key in entry.ours if settings.get(key))])
