"""Where the appearance of a synthetic anomaly comes from: a folder of pictures, or patterns drawn on the spot."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Generator, Tensor

from threecad.errors import DataError, SettingsError
from threecad.images import IMAGE_SUFFIXES, read_image
from threecad.synthesis import TextureSource
from threecad.synthesis.noise import lattice_noise
from threecad.threads import thread_count

MEMORY_LIMIT_BYTES = 3 << 29  # 1.5 GiB hold all 5,640 pictures of DTD at 256×256 px


PROCEDURAL = "procedural"
"""What `data.textures` says where no folder of pictures is to be used."""


def texture_source(chosen: Path | str | None) -> TextureSource:
    """The pictures in a folder, or patterns drawn on the spot if `chosen` is "procedural".

    Without a choice a source comes out that methods without synthetic anomalies never notice, and that others cannot
    use.

    Raises:
        DataError: the folder is missing or has no pictures.
    """
    if chosen is None:
        return MissingTextures()
    return ProceduralTextures() if str(chosen) == PROCEDURAL else FolderTextures(Path(chosen))


class MissingTextures:
    """No textures: raises SettingsError, which names the setting, as soon as any are asked for."""

    @property
    def name(self) -> str:
        raise _missing()

    def sample(self, count: int, size: tuple[int, int], generator: Generator) -> Tensor:
        raise _missing()


def _missing() -> SettingsError:
    return SettingsError(
        "setting 'data.textures': the synthetic anomalies of this method need textures, found none\n"
        "Name a folder of pictures (the papers take the Describable Textures Dataset, DTD), "
        f'or say data.textures = "{PROCEDURAL}".'
    )


class FolderTextures:
    """Pictures of a folder and the folders below it, drawn uniformly; the papers take the Describable Textures (DTD).

    Pictures are resized to the asked size without a crop, and held in memory as 8-bit tensors, per size, until
    `memory_limit` bytes are full; beyond that they are decoded each time they are drawn.

    Raises:
        DataError: the folder is missing or has no pictures; when first drawn from, also for an unreadable picture.
    """

    def __init__(self, folder: Path, memory_limit: int = MEMORY_LIMIT_BYTES) -> None:
        if not folder.is_dir():
            raise DataError(f"expected a folder of texture pictures at {folder}, found none")
        self.files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
        if not self.files:
            raise DataError(f"expected texture pictures ({', '.join(IMAGE_SUFFIXES)}) in {folder}, found none")
        self.name = f"folder:{folder.resolve().name}#{_fingerprint(folder, self.files)}"
        self.memory_limit = memory_limit
        self._held: dict[tuple[tuple[int, int], torch.device], Tensor] = {}

    def sample(self, count: int, size: tuple[int, int], generator: Generator) -> Tensor:
        """`count` pictures as (count, 3, H, W) in [0, 1] on the generator's device."""
        chosen = torch.randint(len(self.files), (count,), generator=generator, device=generator.device)
        held = self._hold(size, generator.device)
        if held is None:
            pictures = _decode([self.files[index] for index in chosen.tolist()], size).to(generator.device)
        else:
            pictures = held.index_select(0, chosen)
        return pictures.float().div_(255)

    def _hold(self, size: tuple[int, int], device: torch.device) -> Tensor | None:
        """All pictures at `size` as uint8 (N, 3, H, W), or None where they do not fit beside what is already held."""
        key = (size, device)
        if key not in self._held:
            taken = sum(held.numel() for held in self._held.values())
            if taken + len(self.files) * 3 * math.prod(size) > self.memory_limit:
                return None
            self._held[key] = _decode(self.files, size).to(device)
        return self._held[key]


def _decode(files: list[Path], size: tuple[int, int]) -> Tensor:
    """Pictures as uint8 (N, 3, H, W)."""
    pictures = torch.empty(len(files), 3, *size, dtype=torch.uint8)

    def decode(index: int) -> None:
        pictures[index] = torch.from_numpy(read_image(files[index], size=size)).permute(2, 0, 1)

    with ThreadPoolExecutor(thread_count()) as pool:  # Pillow lets go of the interpreter while it decodes
        list(pool.map(decode, range(len(files))))
    return pictures


def _fingerprint(folder: Path, files: list[Path]) -> str:
    """First 12 hexadecimal digits of a hash over names, sizes and contents."""
    digest = hashlib.sha256()
    for path in files:
        try:
            content = path.read_bytes()
        except OSError as error:
            raise DataError(f"texture {path} cannot be read: {error.strerror}") from None
        digest.update(f"{path.relative_to(folder).as_posix()}\0{len(content)}\0".encode())
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()[:12]


class ProceduralTextures:
    """Patterns drawn on the spot: cloudy noise, stripes, checkers and patches, in two to four random colours.

    For places where no folder of textures may be brought. Scores depend on the textures, so results name the source.
    """

    name = PROCEDURAL

    def sample(self, count: int, size: tuple[int, int], generator: Generator) -> Tensor:
        """`count` patterns as (count, 3, H, W) in [0, 1] on the generator's device."""
        textures = torch.empty(count, 3, *size, device=generator.device)
        kinds = torch.randint(len(_PATTERNS), (count,), generator=generator, device=generator.device)
        for kind, pattern in enumerate(_PATTERNS):
            members = (kinds == kind).nonzero().flatten()
            if len(members):
                textures[members] = pattern(len(members), size, generator)
        return _weathered(textures, generator).clamp_(0, 1)


def _clouds(count: int, size: tuple[int, int], generator: Generator) -> Tensor:
    """Octaves of noise, coloured from one colour over a second to a third."""
    height = (_octaves(count, size, generator) * 1.2 + 0.5).clamp_(0, 1)
    low, middle, high = _colours(count, 3, generator).unbind(1)
    return torch.lerp(torch.lerp(low, middle, height), torch.lerp(middle, high, height), height)


def _stripes(count: int, size: tuple[int, int], generator: Generator) -> Tensor:
    """Wavy stripes, soft to hard."""
    along, _ = _turned_axes(count, size, generator)
    first, second = _colours(count, 2, generator).unbind(1)
    return torch.lerp(first, second, _wave(along, generator))


def _checkers(count: int, size: tuple[int, int], generator: Generator) -> Tensor:
    """Two crossed waves: a chessboard where they are hard, a weave where they are soft."""
    along, across = _turned_axes(count, size, generator)
    one, other = _wave(along, generator), _wave(across, generator)
    first, second = _colours(count, 2, generator).unbind(1)
    return torch.lerp(first, second, one + other - 2 * one * other)


def _patches(count: int, size: tuple[int, int], generator: Generator) -> Tensor:
    """Patches of four colours, as the signs of two noise fields."""
    fields = _octaves(2 * count, size, generator).view(count, 2, *size)
    one, other = ((fields * _uniform(count, 8, 60, generator)) + 0.5).clamp_(0, 1).split(1, dim=1)
    a, b, c, d = _colours(count, 4, generator).unbind(1)
    return torch.lerp(torch.lerp(a, b, one), torch.lerp(c, d, one), other)


_Pattern = Callable[[int, tuple[int, int], Generator], Tensor]
_PATTERNS: tuple[_Pattern, ...] = (_clouds, _stripes, _checkers, _patches)


def _weathered(textures: Tensor, generator: Generator) -> Tensor:
    """`textures` with uneven light and grain, in place: nothing that is photographed is flat."""
    count, _, height, width = textures.shape
    light = lattice_noise(torch.full((count, 2), 2.0, device=textures.device), (height, width), generator)
    grain = torch.randn(count, 1, height, width, generator=generator, device=textures.device)
    grain *= _uniform(count, 0, 0.08, generator)
    return textures.mul_(1 + light.mul_(_uniform(count, 0, 0.6, generator))).add_(grain)


def _octaves(count: int, size: tuple[int, int], generator: Generator) -> Tensor:
    """Fractal noise (count, 1, H, W), about in [-0.5, 0.5]: four octaves, each weaker than the last by U(0.4, 0.8)."""
    base = torch.randint(1, 5, (count, 2), generator=generator, device=generator.device)
    weaker = _uniform(count, 0.4, 0.8, generator)
    noise = lattice_noise(2.0**base, size, generator)
    for octave in range(1, 4):
        noise += weaker**octave * lattice_noise(2.0 ** (base + octave), size, generator)
    return noise.mul_(0.8)


def _turned_axes(count: int, size: tuple[int, int], generator: Generator) -> tuple[Tensor, Tensor]:
    """Two perpendicular coordinates (count, 1, H, W) at a random angle, in periods of 6 to 64 px, slightly bent."""
    device = generator.device
    rows = torch.arange(size[0], device=device, dtype=torch.float32).view(-1, 1)
    columns = torch.arange(size[1], device=device, dtype=torch.float32)
    angle = _uniform(count, 0, math.pi, generator)
    periods = 6 * (64 / 6) ** torch.rand(2, count, 1, 1, 1, generator=generator, device=device)
    bend = lattice_noise(torch.full((count, 2), 4.0, device=device), size, generator)
    bend *= _uniform(count, 0, 1, generator) ** 2 * 0.1 * max(size)
    along = (angle.cos() * columns + angle.sin() * rows + bend) / periods[0]
    across = (angle.cos() * rows - angle.sin() * columns + bend) / periods[1]
    return along, across


def _wave(phase: Tensor, generator: Generator) -> Tensor:
    """0…1 once a period, from a sine to an almost square wave, with unequal halves."""
    count = len(phase)
    hardness = 0.6 * 10 ** _uniform(count, 0, 1, generator)
    shift = _uniform(count, -0.5, 0.5, generator)
    return (2 * math.pi * phase).sin_().add_(shift).mul_(hardness).add_(0.5).clamp_(0, 1)


def _colours(count: int, colours: int, generator: Generator) -> Tensor:
    """Random colours (count, colours, 3, 1, 1), more often muted than vivid, as materials are."""
    device = generator.device
    vivid = torch.rand(count, colours, 3, 1, 1, generator=generator, device=device)
    grey = torch.rand(count, colours, 1, 1, 1, generator=generator, device=device)
    return torch.lerp(grey, vivid, torch.rand(count, 1, 1, 1, 1, generator=generator, device=device) ** 2)


def _uniform(count: int, low: float, high: float, generator: Generator) -> Tensor:
    """(count, 1, 1, 1) uniform in [low, high]."""
    return low + (high - low) * torch.rand(count, 1, 1, 1, generator=generator, device=generator.device)
