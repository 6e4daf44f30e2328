"""Pixels as tensors, and the seeding of everything that is random."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor


def to_tensor(pixels: np.ndarray, device: torch.device | str = "cpu") -> Tensor:
    """Images (B, 3, H, W) in [0, 1], channels last, from pixels (B, H, W, 3) uint8."""
    tensor = torch.from_numpy(np.ascontiguousarray(pixels)).to(device)
    return tensor.permute(0, 3, 1, 2).to(torch.float32).div_(255)


def seed_everything(key: Sequence[int], device: torch.device) -> torch.Generator:
    """Seed torch, NumPy and Python from a key of integers; a generator on `device` seeded likewise comes out."""
    digest = hashlib.sha256(repr(tuple(int(part) for part in key)).encode()).digest()
    seed = int.from_bytes(digest[:7], "big")
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - for libraries that draw from NumPy's global state
    random.seed(seed)
    return torch.Generator(device).manual_seed(seed)


@contextmanager
def own_randomness() -> Iterator[None]:
    """A block that may seed as it likes: afterwards the caller's random states are as they were."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        torch.set_rng_state(states[2])
        if devices:
            torch.cuda.set_rng_state_all(devices)
