"""The folder in which decoded images and pretrained weights are kept between runs."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(room: str) -> Path:
    """Folder of one kind of cached thing, under `THREECAD_CACHE` or the platform's cache folder; not created here."""
    root = os.environ.get("THREECAD_CACHE")
    if root:
        return Path(root) / room
    import platformdirs

    return Path(platformdirs.user_cache_dir("threecad", appauthor=False)) / room
