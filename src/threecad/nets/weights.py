"""Where the weights of a pretrained backbone come from: the installed package, our cache, or a file. Never a hub.

The cache holds `<sha256>.safetensors` files and, for each timm tag, a small `<tag>.json` that names one. Only `fetch`
and `import` write such an entry; a file given as `method.weights` serves the fit that named it and no other. Only
`fetch` reaches the internet, and only when a person asked for it. A `.pth` file is read with `weights_only=True`.
"""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from threecad.cache import cache_folder
from threecad.errors import FileError, WeightsError, did_you_mean
from threecad.files import file_sha256, replacing, write_json
from threecad.nets.shipped_weights import SHIPPED
from threecad.settings import EMBEDDED_BACKBONE


@dataclass(frozen=True, slots=True)
class WeightFile:
    """A safetensors file of a backbone's pretrained weights."""

    path: Path
    sha256: str

    @classmethod
    def at(cls, path: Path) -> WeightFile:
        """The safetensors file at `path`, whatever it is called, with the hash of its bytes; it is not looked into."""
        return cls(path, file_sha256(path))

    def tensors(self) -> dict[str, Tensor]:
        """Its tensors by name.

        Raises:
            WeightsError: it is damaged, or of another kind; nothing in it is run.
        """
        return _read_safetensors(self.path)


def find_weights(tag: str, weights: str | Path) -> WeightFile | None:
    """The file behind a `weights` setting for the backbone `tag`; None for random weights.

    Raises:
        WeightsError: the weights are not on this machine; names the ways to bring them here.
    """
    if weights == "random":
        return None
    if weights == "embedded":
        return _embedded(tag)
    if weights == "imagenet":
        return _imagenet(tag)
    path = Path(weights).expanduser()
    if not path.is_file():
        raise WeightsError(
            f"method.weights: expected 'imagenet', 'embedded', 'random' or a file, found '{weights}', which is no file"
        )
    return WeightFile.at(path) if path.suffix == ".safetensors" else _store(_read_torch(path))


def load_into(network: nn.Module, file: WeightFile, tag: str) -> None:
    """Copy the file's tensors into a (possibly truncated) feature network.

    Raises:
        WeightsError: a tensor of the network is missing in the file or has another shape.
    """
    network.load_state_dict(_matching(network, file.tensors(), file.path, tag))


def import_weights(path: Path, tag: str) -> WeightFile:
    """Bring a `.pth` or `.safetensors` file into the cache as the weights of the backbone `tag`.

    Raises:
        WeightsError: timm knows no such tag, the file holds anything but tensors by name, or they do not fit.
    """
    import timm

    if tag not in timm.list_pretrained():
        raise WeightsError(f"expected a full timm tag, found '{tag}'{did_you_mean(tag, timm.list_pretrained())}")
    tensors = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    try:
        with torch.device("meta"):  # names and shapes are all that is compared
            network: nn.Module = timm.create_model(tag, pretrained=False, features_only=True)
    except (RuntimeError, AttributeError) as error:
        raise WeightsError(f"'{tag}' gives no feature maps and cannot be a backbone: {error}") from None
    _matching(getattr(network, "model", network), tensors, path, tag)  # timm wraps a transformer once more
    file = _store(tensors)
    _write_entry(cache_folder("weights") / f"{tag}.json", file, path.name)
    return file


def tag_of(path: Path) -> str:
    """The timm tag that a published weight file's name stands for: `wide_resnet50_2-95faca4d.pth`, say.

    Raises:
        WeightsError: no tag, or several, publish a file of this name.
    """
    import timm

    known = timm.list_pretrained()
    configs = {tag: timm.get_pretrained_cfg(tag) for tag in known}
    urls = {tag: config.url for tag, config in configs.items() if config and isinstance(config.url, str)}
    found = [tag for tag, url in urls.items() if url and Path(url).stem == path.stem]
    if not found and path.stem in known:
        found = [path.stem]
    if len(found) != 1:
        several = f"several: {', '.join(found[:5])}" if found else f"none{did_you_mean(path.stem, known)}"
        raise WeightsError(
            f"which backbone is {path.name}? Say it with --tag TAG, such as --tag wide_resnet50_2.tv_in1k.\n"
            f"Expected a file name that one timm tag publishes, found {several}"
        )
    return found[0]


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
        reason = next(iter(str(error).splitlines()), "")
        raise WeightsError(f"could not fetch '{tag}': {type(error).__name__}: {reason}") from None
    return import_weights(Path(file), tag)


def cached_weights() -> dict[str, WeightFile]:
    """What the cache holds, by tag."""
    entries = {path.stem: _read_entry(path) for path in sorted(cache_folder("weights").glob("*.json"))}
    return {tag: file for tag, file in entries.items() if file is not None}


def _imagenet(tag: str) -> WeightFile:
    """The cache's weights of `tag`; those of the embedded backbone come with the installation."""
    cached = cached_weights().get(tag)
    if cached is not None:
        return cached
    if tag == EMBEDDED_BACKBONE:
        return _embedded(tag)
    raise WeightsError(
        f"no weights for backbone '{tag}' in {cache_folder('weights')}; nothing is downloaded unasked.\n"
        f"Bring them with `threecad weights fetch {tag}` (needs internet), `threecad weights import FILE`, or\n"
        "method.weights=FILE. To begin without them: --preset quick --backbone embedded (comes with the installation)."
    )


def _embedded(tag: str) -> WeightFile:
    """The weights of `tag` from the package that carries them, converted once."""
    shipped = SHIPPED.get(tag)
    if shipped is None:
        raise WeightsError(f"only {' and '.join(map(repr, SHIPPED))} have embedded weights, found backbone '{tag}'")
    entry = cache_folder("weights") / "embedded" / f"{shipped.sha256}.json"
    converted = _read_entry(entry)
    if converted is not None:
        return converted
    file = _store(shipped.tensors())
    _write_entry(entry, file, shipped.package)
    return file


def _matching(network: nn.Module, tensors: Mapping[str, Tensor], source: Path, tag: str) -> dict[str, Tensor]:
    """The state of `network` out of the tensors of a file, which may hold more.

    timm joins the names of flattened modules with `_`, so names are compared with every `.` read as `_`.
    """
    by_name = {name.replace(".", "_"): tensor for name, tensor in tensors.items()}
    matched = {}
    for name, tensor in network.state_dict().items():
        found = by_name.get(name.replace(".", "_"))
        if found is None or found.shape != tensor.shape:
            shape = "nothing" if found is None else f"a tensor {tuple(found.shape)}"
            raise WeightsError(
                f"{source.name} does not fit backbone '{tag}': expected {name} {tuple(tensor.shape)}, found {shape}"
            )
        matched[name] = found
    return matched


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except FileNotFoundError:
        raise WeightsError(f"expected a weight file at {path}, found none") from None
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{path} is not a readable safetensors file: {error}") from None


def _read_torch(path: Path) -> dict[str, Tensor]:
    """Tensors by name from a torch file, in which nothing but tensors may lie."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise WeightsError(f"expected a weight file at {path}, found none") from None
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(f"{path} holds no plain tensors and is not loaded: {reason}") from None
    if isinstance(content, Mapping):
        content = content.get("state_dict", content)
    if not isinstance(content, Mapping):
        raise WeightsError(f"{path}: expected tensors by name, found one {type(content).__name__}")
    others = [name for name, value in content.items() if not isinstance(value, Tensor)]
    if others:
        kind = type(content[others[0]]).__name__
        raise WeightsError(f"{path}: expected tensors by name, found '{others[0]}' of the type {kind}")
    return dict(content)


def _store(tensors: Mapping[str, Tensor]) -> WeightFile:
    """The file of the cache that holds these tensors, named by its content."""
    content = save({name: tensor.contiguous().clone() for name, tensor in tensors.items()})
    sha256 = hashlib.sha256(content).hexdigest()
    path = cache_folder("weights") / f"{sha256}.safetensors"
    if not path.is_file():
        try:
            with replacing(path) as temporary:
                temporary.write_bytes(content)
        except FileError as error:
            raise _no_cache(error) from None
    return WeightFile(path, sha256)


def _write_entry(path: Path, file: WeightFile, source: str) -> None:
    """Let the cache find `file` under the name of `path`."""
    try:
        write_json(path, {"sha256": file.sha256, "source": source})
    except FileError as error:
        raise _no_cache(error) from None


def _read_entry(path: Path) -> WeightFile | None:
    """The file that an entry of the cache names; None for anything else."""
    try:
        sha256 = str(json.loads(path.read_text(encoding="utf-8"))["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    file = cache_folder("weights") / f"{sha256}.safetensors"
    return WeightFile(file, sha256) if file.is_file() else None


def _no_cache(error: FileError) -> WeightsError:
    return WeightsError(f"{error}\nSet THREECAD_CACHE to a writable folder for pretrained weights.")
